"""A fleet taken over from Neco: only its keys are in etcd, and what is written stays readable as Neco's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from reconciler.host.driver import Host
from reconciler.wire.schema import violations
from tests.cli.command import Command
from tests.cli.git import Repository, artifacts
from tests.conftest import Etcd
from tests.debs import DebSpec, build, dpkg, state
from tests.etcd_server import etcdctl
from tests.podman import podman
from tests.registry import Registry, registry
from tests.release_server import ReleaseServer

pytestmark = pytest.mark.needs("dpkg", "dpkg-deb", "git")

RELEASE = "2022.05.23-12345"
STARTED = "2022-05-23T09:10:11.123456789Z"


def put(etcd: Etcd, key: str, value: str) -> None:
    etcdctl(etcd.endpoint, "put", f"{etcd.prefix}{key}", "--", value)


def keys(etcd: Etcd) -> dict[str, str]:
    """Every key below the prefix, with its text."""
    found = json.loads(etcdctl(etcd.endpoint, "get", "--prefix", etcd.prefix, "--write-out", "json"))
    from base64 import b64decode

    return {
        b64decode(item["key"]).decode().removeprefix(etcd.prefix): b64decode(item.get("value", "")).decode()
        for item in found.get("kvs", [])
    }


def deb(name: str, release: str) -> dict[str, str]:
    return {"name": name, "owner": "cybozu-go", "repository": name, "release": release}


@pytest.fixture
def neco(etcd: Etcd, host: Host, releases: ReleaseServer, tmp_path: Path) -> None:
    """What a Neco that has been stopped after an update leaves: in etcd, and on the host."""
    put(etcd, "info/bootservers/0", "")
    put(etcd, "info/neco-release", RELEASE)
    put(etcd, "contents/sabakan/0", "its own affair")
    put(etcd, "config/check-update-interval", "600000000000")
    put(
        etcd,
        "status/current",
        json.dumps({"version": RELEASE, "servers": [0], "stop": False, "started_at": STARTED}),
    )
    put(
        etcd,
        "status/bootservers/0",
        json.dumps({"version": RELEASE, "step": 5, "cond": 3, "message": ""}),
    )
    for name in ("etcdpasswd", "setup", "leftover"):
        put(etcd, f"install/0/debs/{name}", "v1.0")
        dpkg(host, "--install", str(build(DebSpec(name, "1.0"), tmp_path)))
    for name, version in (("etcdpasswd", "1.1"), ("setup", "1.0"), ("fresh", "1.0")):
        releases.add(
            "cybozu-go",
            name,
            f"v{version}",
            build(DebSpec(name, version), tmp_path, f"{name}_{version}_amd64.deb"),
        )


def changes(command: Command) -> list[tuple[str, str, str, Any]]:
    (server,) = command("--dry-run", "--output", "json").ok().document["servers"]
    return [
        (change["kind"], change["name"], change["action"], change["before"]) for change in server["changes"]
    ]


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


@pytest.mark.needs("dpkg", "podman", "docker-registry", "busybox")
@pytest.mark.usefixtures("neco")
def test_what_neco_recorded_is_planned_taken_over_and_written_as_neco_reads_it(
    command: Command,
    repository: Repository,
    etcd: Etcd,
    host: Host,
    images: Registry,
    podman_environment: dict[str, str],
) -> None:
    for tag in ("5.4.1.1", "5.5.1"):
        images.push("squid", tag)
    put(etcd, "install/0/containers/squid", "5.4.1.1")
    podman(
        podman_environment, "pull", "--tls-verify=false", f"{images.repository('squid')}:5.4.1.1", check=True
    )
    wanted = [deb("setup", "v1.0"), deb("etcdpasswd", "v1.1"), deb("fresh", "v1.0")]
    squid = {"name": "squid", "repository": images.repository("squid"), "tag": "5.4.1.1"}
    repository.commit(artifacts(debs=[*wanted, deb("leftover", "v1.0")], images=[squid]))

    # Only what differs is planned, though nothing but versions is known of it.
    assert changes(command) == [
        ("deb", "etcdpasswd", "upgrade", {"name": "etcdpasswd", "version": "v1.0"}),
        ("deb", "fresh", "install", None),
    ]

    # Neco's own update still stands there: nothing begins before it is taken over.
    ran = command("--yes")
    assert ran.status == 3
    assert "`reconcile adopt`" in ran.err
    assert "leader" not in "".join(keys(etcd))

    # Without a terminal it must be said that it is meant.
    before = keys(etcd)
    assert command("adopt").status == 64
    assert keys(etcd) == before

    adopted = command("adopt", "--yes").ok()
    assert " = deb/setup " in adopted.out
    assert " = deb/leftover " in adopted.out
    assert " = deb/etcdpasswd               v1.0 " in adopted.out
    assert RELEASE in command("history").ok().out
    assert not [key for key in keys(etcd) if key.startswith("status/")]
    assert command("adopt", "--yes").ok().out == "Server 0: nothing to take over.\n"

    # What was adopted can be removed now.
    squid["tag"] = "5.5.1"
    repository.commit(artifacts(debs=wanted, images=[squid]))
    command("--yes").ok()
    assert [state(host, name) for name in ("setup", "etcdpasswd", "fresh", "leftover")] == [
        "ii 1.0",
        "ii 1.1",
        "ii 1.0",
        "",
    ]

    now = keys(etcd)
    commit = repository.git("rev-parse", "HEAD").strip()
    assert {
        key: value for key, value in now.items() if key.startswith("install/0/") and "details" not in key
    } == {
        "install/0/containers/squid": "5.5.1",
        "install/0/debs/etcdpasswd": "v1.1",
        "install/0/debs/fresh": "v1.0",
        "install/0/debs/setup": "v1.0",
    }
    assert now["info/neco-release"] == commit
    assert now["info/bootservers/0"] == ""
    assert now["contents/sabakan/0"] == "its own affair"
    assert now["config/check-update-interval"] == "600000000000"
    current = json.loads(now["status/current"])
    assert (current["version"], current["servers"], current["stop"]) == (commit, [0], False)
    assert datetime.fromisoformat(current["started_at"]).year > 2022
    assert len(current["started_at"].partition(".")[2]) == len("123456789Z")
    status = json.loads(now["status/bootservers/0"])
    assert (status["version"], status["cond"]) == (commit, 3)
    assert isinstance(status["step"], int)
    assert isinstance(status["message"], str)


@pytest.mark.usefixtures("neco")
def test_a_leftover_of_neco_becomes_ours_and_goes(
    command: Command, repository: Repository, etcd: Etcd, host: Host
) -> None:
    """What is recorded and on the host, though nothing asks for it any more."""
    repository.commit(artifacts(debs=[deb("setup", "v1.0"), deb("etcdpasswd", "v1.1")]))
    taken = command("adopt", "--yes", "--output", "json").ok().document
    assert violations(taken, "adopt") == []
    assert {"kind": "deb", "name": "leftover", "version": "v1.0", "found": "1.0"} in taken["artifacts"]
    assert (taken["server"], taken["neco_update"]) == (0, {"version": RELEASE, "started_at": STARTED})
    assert ("deb", "leftover", "remove") in [change[:3] for change in changes(command)]
    command("--yes").ok()
    assert state(host, "leftover") == ""
    assert "install/0/debs/leftover" not in keys(etcd)


@pytest.mark.usefixtures("neco")
def test_what_was_never_adopted_is_not_removed(
    command: Command, repository: Repository, etcd: Etcd, host: Host
) -> None:
    """Promise 17: a name in etcd alone removes nothing from the host."""
    etcdctl(etcd.endpoint, "del", "--prefix", f"{etcd.prefix}status/")
    repository.commit(artifacts(debs=[deb("setup", "v1.0"), deb("etcdpasswd", "v1.1")]))
    ran = command("--yes")
    assert ran.status == 1
    assert "it is not in this host's ledger" in ran.err
    assert "`reconcile adopt` takes it over, `prune: false` in the RolloutPolicy leaves it" in ran.err
    assert state(host, "leftover") == "ii 1.0"
    assert keys(etcd)["install/0/debs/leftover"] == "v1.0"


@pytest.mark.usefixtures("neco")
def test_a_neco_at_work_is_left_alone(command: Command, repository: Repository, etcd: Etcd) -> None:
    put(etcd, "leader/worker//5bd1", "boot-0")
    repository.commit(artifacts(debs=[deb("setup", "v1.0"), deb("etcdpasswd", "v1.1")]))
    before = keys(etcd)
    ran = command("--yes")
    assert (ran.status, "Neco is at work" in ran.err) == (3, True), ran
    ran = command("adopt", "--yes")
    assert (ran.status, f"{etcd.prefix}leader/worker//5bd1" in ran.err) == (3, True), ran
    assert keys(etcd) == before
