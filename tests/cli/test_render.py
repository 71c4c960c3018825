"""The plan as people read it: whole texts, so that a change of shape is seen."""

from __future__ import annotations

from textwrap import dedent

from reconciler.cli.render import coloured, numbers_text, plan_text, short_id, table
from reconciler.core.artifact import (
    OS_IMAGE,
    Bind,
    Container,
    Image,
    Key,
    Known,
    OsImage,
    ReleaseDeb,
)
from reconciler.core.change import Change
from reconciler.core.difference import difference
from reconciler.core.plan import Plan
from reconciler.core.state import RebootPolicy, Revision

REVISION = Revision("1a2b3c4d5e6f78901a2b3c4d5e6f78901a2b3c4d", "/srv/fleet.git", "main", "ops")
REMOVED = Change(
    Key("image", "teleport"),
    "remove",
    Image("teleport", "quay.io/cybozu/teleport", "8.1.0"),
    None,
    "not_desired",
)


def etcd(tag: str, container: Container | None = None) -> Image:
    return Image("etcd", "quay.io/cybozu/etcd", tag, digest="sha256:" + "0" * 64, container=container)


def changed(before: Image, after: Image) -> Change:
    (change,) = difference({before.key: before}, {after.key: after})
    return change


def test_the_plan_of_the_design_page() -> None:
    changes = (
        changed(etcd("3.5.4.1", Container()), etcd("3.5.5.1", Container())),
        Change(
            Key("image", "squid"),
            "install",
            None,
            Image("squid", "quay.io/cybozu/squid", "5.4.1.1"),
            "not_recorded",
            pinned=False,
        ),
        Change(
            Key("image", "chrony"),
            "record",
            None,
            Image("chrony", "quay.io/cybozu/chrony", "4.2.0.1"),
            "found_on_host",
        ),
        Change(
            Key("deb", "etcdpasswd"),
            "downgrade",
            ReleaseDeb("etcdpasswd", "cybozu-go", "etcdpasswd", "v1.4.0"),
            ReleaseDeb("etcdpasswd", "cybozu-go", "etcdpasswd", "v1.3.9"),
            "version_changed",
            ("release",),
        ),
        REMOVED,
        Change(
            OS_IMAGE,
            "upgrade",
            OsImage("stable", "3139.2.1"),
            OsImage("stable", "3227.2.0"),
            "version_changed",
            ("version",),
            reboot=True,
        ),
    )
    assert plan_text(
        [Plan(0, "boot", 1, changes)], REVISION, "etcd revision 88123", {"default": 1}
    ) == dedent(
        """\
        Desired   main@1a2b3c4 (signed by ops)       Recorded  etcd revision 88123
         ~ image etcd        3.5.4.1 → 3.5.5.1                          upgrade    version_changed   restart (lock default)
         + image squid       5.4.1.1                                    install    not_recorded      unpinned
         = image chrony      4.2.0.1                                    record     found_on_host
         ~ deb   etcdpasswd  v1.4.0 → v1.3.9                            downgrade  version_changed
         - image teleport    8.1.0                                      remove     not_desired
         ~ os    stable      3139.2.1 → 3227.2.0                        upgrade    version_changed   reboot (lock default)
        Plan: 1 to install, 3 to change, 1 to record, 1 to remove on server 0; 1 restart and 1 reboot, at most 1 server down at once."""
    )


def test_what_differs_inside_an_artifact_stands_under_its_change() -> None:
    before = Container(
        args=("--name", "boot"), binds=(Bind("data", "/var/lib/a", "/data"),), environment=(("A", "1"),)
    )
    after = Container(
        args=("--name", "boot-$(lrn)"),
        binds=(Bind("data", "/var/lib/b", "/data", True),),
        environment=(("B", "2"),),
        update="parallel",
    )
    plan = Plan(0, "default", 1, (changed(etcd("3.5.4.1", before), etcd("3.5.4.1", after)),))
    assert plan_text([plan], REVISION, "etcd revision 7", {}) == dedent(
        """\
        Desired   main@1a2b3c4 (signed by ops)       Recorded  etcd revision 7
         ~ image etcd  3.5.4.1                                    replace    definition_changed  restart (parallel)
             container.args[1]: "boot" → "boot-$(lrn)"
             + container.binds[0].readOnly: true
             container.binds[0].source: "/var/lib/a" → "/var/lib/b"
             - container.environment.A: "1"
             + container.environment.B: "2"
             + container.update: "parallel"
        Plan: 1 to change on server 0; 1 restart, at most 1 server down at once."""
    )


def test_servers_with_equal_plans_stand_together() -> None:
    plans = [
        Plan(lrn, "boot" if lrn < 3 else "workers", 1 + (lrn > 2), (REMOVED,) if lrn != 1 else ())
        for lrn in range(1000)
    ]
    assert plan_text(plans, Revision("sha256:" + "ab" * 32, "/srv/state"), "etcd revision 9", {}) == dedent(
        """\
        Desired   /srv/state@sha256:abababa          Recorded  etcd revision 9

        2 servers: 0, 2 (group boot, wave 1)
         - image teleport  8.1.0                                      remove     not_desired

        997 servers: 3-999 (group workers, wave 2)
         - image teleport  8.1.0                                      remove     not_desired

        Server 1 (group boot, wave 1)
         nothing to do
        Plan: 999 to remove on 1000 servers; no restart and no reboot."""
    )


def test_nothing_to_do() -> None:
    assert plan_text([Plan(4, "default", 1)], REVISION, "etcd revision 9", {}) == dedent(
        """\
        Desired   main@1a2b3c4 (signed by ops)       Recorded  etcd revision 9
        Nothing to do: server 4 is as main@1a2b3c4 (signed by ops) asks."""
    )


def test_an_os_image_of_another_channel_is_shown_whole() -> None:
    change = Change(
        OS_IMAGE,
        "replace",
        Known(OS_IMAGE, "stable/3139.2.1"),
        OsImage("beta", "3185.1.1"),
        "version_changed",
    )
    text = plan_text([Plan(0, "default", 1, (change,))], REVISION, "etcd revision 9", {})
    assert " ~ os    beta  stable/3139.2.1 → beta/3185.1.1 " in text


def test_how_many_may_be_down_at_once_follows_slots_locks_and_waves() -> None:
    restart = changed(etcd("1", Container()), etcd("2", Container()))
    reboot = Change(OS_IMAGE, "upgrade", None, OsImage("stable", "2"), "version_changed", reboot=True)

    def down(plans: list[Plan], slots: dict[str, int]) -> str:
        return plan_text(plans, REVISION, "", slots).splitlines()[-1].partition("; ")[2]

    def plan(lrn: int, change: Change, wave: int = 1, rules: RebootPolicy | None = None) -> Plan:
        return Plan(lrn, "g", wave, (change,), (), rules or RebootPolicy())

    free = RebootPolicy(strategy="reboot")
    rack = RebootPolicy(lock_group="rack", slots=5)
    assert (
        down([plan(n, restart) for n in range(4)], {"default": 2})
        == "4 restarts, at most 2 servers down at once."
    )
    assert (
        down([plan(n, restart) for n in range(4)], {"default": 9})
        == "4 restarts, at most 4 servers down at once."
    )
    assert (
        down([plan(n, reboot, 1 + n // 3, free) for n in range(4)], {})
        == "4 reboots, at most 3 servers down at once."
    )
    assert (
        down([plan(0, restart), *(plan(n, reboot, 1, rack) for n in range(1, 9))], {"rack": 1})
        == "1 restart and 8 reboots, at most 6 servers down at once."
    )


def test_colours_are_only_painted_when_asked_for() -> None:
    plan = Plan(0, "default", 1, (REMOVED,))
    assert "\x1b[" not in plan_text([plan], REVISION, "", {})
    assert "\x1b[31m - image teleport" in plan_text([plan], REVISION, "", {}, coloured)


def test_numbers_and_tables() -> None:
    assert numbers_text([7, 0, 1, 2, 4]) == "0-2, 4, 7"
    assert short_id("f" * 40) == "fffffff"
    assert table([["1", "boot-1"], ["10", "b"]], ["LRN", "HOST"]) == "LRN  HOST\n1    boot-1\n10   b"
