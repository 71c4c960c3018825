"""Plans as JSON: their form, what the digest stands for, and that equal plans are equal bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from reconciler.core.artifact import AptDeb, Container, Image, Key, OsImage
from reconciler.core.plan import Plan, make_plan
from reconciler.core.state import (
    ArtifactSet,
    Desired,
    Installed,
    OsDriver,
    Recorded,
    Revision,
    ServerGroup,
)
from reconciler.wire.plan import change_json, plan_json
from reconciler.wire.schema import violations

ETCD = Image("etcd", "quay.io/cybozu/etcd", "3.5.5.1", container=Container(after=("vault",)))
VAULT = Image("vault", "quay.io/cybozu/vault", "1.10")
DESIRED = Desired(
    Revision("1a2b", "/srv/fleet.git", "main", "ops"),
    (
        ArtifactSet((ETCD, VAULT, AptDeb("chrony", "4.3-2"))),
        ArtifactSet((OsImage("stable", "3227.2.0"),), frozenset({"boot"})),
    ),
    (ServerGroup("boot", frozenset({0, 1}), OsDriver("command", reboot=True)),),
)
RECORDED: Recorded = {
    Key("image", "etcd"): Installed(Key("image", "etcd"), "3.5.4.1"),
    Key("image", "vault"): Installed(Key("image", "vault"), "1.10"),
    Key("image", "squid"): Installed(Key("image", "squid"), "5.4"),
    Key("os-image", "os-image"): Installed(Key("os-image", "os-image"), "stable/3139.2.1"),
}


def plans() -> list[Plan]:
    return [make_plan(DESIRED, RECORDED, 1), make_plan(DESIRED, RECORDED, 0), make_plan(DESIRED, {}, 10)]


def test_the_form_is_the_schemas() -> None:
    document = plan_json(plans(), DESIRED, 88123)
    assert not violations(document, "plan")
    assert violations({**document, "more": 1}, "plan") == [
        "more: this field is not known; known here: desired, digest, etcd_revision, format_version, reboot_required, servers, summary"
    ]


def test_a_fleets_plan() -> None:
    document = plan_json(plans(), DESIRED, 88123)
    assert document["desired"] == {
        "repo": "/srv/fleet.git",
        "ref": "main",
        "revision": "1a2b",
        "signer": "ops",
    }
    assert [(server["lrn"], server["group"]) for server in document["servers"]] == [
        (0, "boot"),
        (1, "boot"),
        (10, "default"),
    ]
    # Servers 0 and 1: chrony in, etcd and the OS changed, squid out, vault as it is. Server 10: three in.
    assert document["summary"] == {
        "install": 5,
        "change": 4,
        "record": 0,
        "remove": 2,
        "unchanged": 2,
        "restarts": 2,
        "reboots": 2,
        "servers": 3,
    }
    changes = {change["name"]: change for change in document["servers"][0]["changes"]}
    assert changes["etcd"] == {
        "kind": "image",
        "name": "etcd",
        "action": "upgrade",
        "before": {"name": "etcd", "version": "3.5.4.1"},
        "after": {
            "name": "etcd",
            "repository": "quay.io/cybozu/etcd",
            "tag": "3.5.5.1",
            "container": {"after": ["vault"]},
        },
        "fields": ["tag"],
        "reason": "version_changed",
        "restart": True,
        "reboot": False,
        "pinned": False,
    }
    assert changes["squid"]["after"] is None
    assert changes["chrony"]["before"] is None
    assert (changes["os-image"]["kind"], changes["os-image"]["reboot"]) == ("os-image", True)


def test_what_is_only_recorded_is_not_unchanged() -> None:
    observed = frozenset({Key("deb", "chrony")})
    summary = plan_json([make_plan(DESIRED, {}, 10, observed=observed)], DESIRED, 0)["summary"]
    assert (summary["install"], summary["record"], summary["unchanged"]) == (2, 1, 0)


def test_steps_are_in_the_order_of_execution_and_name_what_they_need() -> None:
    [server] = plan_json([make_plan(DESIRED, {}, 10)], DESIRED, 0)["servers"]
    ids = [step["id"] for step in server["steps"]]
    for position, step in enumerate(server["steps"]):
        assert set(step["needs"]) <= set(ids[:position])
        assert step["id"].startswith(f"{step['phase']}:{step['subject']}:{step['step']}")


def without_place(document: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in document.items() if name not in ("digest", "etcd_revision")}
    return {**kept, "desired": {"revision": document["desired"]["revision"]}}


def test_the_digest_is_that_of_the_canonical_json_without_where_it_came_from() -> None:
    document = plan_json(plans(), DESIRED, 88123, "/run/reboot-required")
    canonical = json.dumps(without_place(document), sort_keys=True, separators=(",", ":"))
    assert document["digest"] == f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def test_where_it_came_from_changes_no_digest_and_what_is_done_does() -> None:
    digest = plan_json(plans(), DESIRED, 1)["digest"]
    elsewhere = replace(DESIRED, revision=Revision("1a2b", "ssh://git@host/fleet", "v1", None))
    assert plan_json(plans()[::-1], elsewhere, 2)["digest"] == digest
    later = replace(DESIRED, revision=Revision("3c4d", "/srv/fleet.git", "main", "ops"))
    assert plan_json(plans(), later, 1)["digest"] != digest
    assert plan_json(plans()[:2], DESIRED, 1)["digest"] != digest
    assert plan_json(plans(), DESIRED, 1, "/run/reboot-required")["digest"] != digest


def test_equal_inputs_give_equal_bytes() -> None:
    assert json.dumps(plan_json(plans(), DESIRED, 7)) == json.dumps(plan_json(plans(), DESIRED, 7))


def test_one_change() -> None:
    [change] = [change for change in make_plan(DESIRED, RECORDED, 0).changes if change.key.name == "squid"]
    assert change_json(change)["before"] == {"name": "squid", "version": "5.4"}
