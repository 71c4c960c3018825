"""`report`: the fleet's state in one word and a sentence, each server's line, and the reboot lock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.report import HolderReport, LockReport, ServerReport, lock_report, report
from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import (
    ABORTED,
    COMPLETE,
    RUNNING,
    Agent,
    Desired,
    Fleet,
    Leader,
    LeftOut,
    Lock,
    Notice,
    Now,
    OpenPhase,
    RebootPolicy,
    Revision,
    Rollout,
    ServerGroup,
    ServerStatus,
    Settings,
    Told,
    Unopened,
    Waiter,
    Wave,
)
from reconciler.core.window import Window

ID = "2026-01-01T00:00:00.000000000Z"
NOON = 1_767_268_800.0  # Thursday 2026-01-01 12:00 UTC
NOW = Now(NOON, 5.0)
WAVES = (Wave((0,)), Wave((1, 2)))
ROLLOUT = Rollout("b" * 40, (0, 1, 2), ID, WAVES)
LEADER = Leader("s0", "k", 1)
UNOPENED = Told(unopened=Unopened("c" * 40, "cannot open it:\nno such tag\nnor that one"))
ANN = Notice("ann", "mending", "2026-01-01T00:00:00Z")


def status(step: int, cond: int = RUNNING, message: str = "", **fields: str) -> ServerStatus:
    return ServerStatus(ROLLOUT.version, fields.pop("rollout", ID), step, cond, message, **fields)  # type: ignore[arg-type]  # `waiting` is a literal


def fleet(wave: int, phase: int, *statuses: ServerStatus, rollout: Rollout = ROLLOUT) -> Fleet:
    return Fleet(
        etcd_revision=88,
        servers=frozenset({0, 1, 2}),
        rollout=rollout,
        phase=OpenPhase(ID, wave, phase),
        statuses=dict(enumerate(statuses)),
        agents=tuple(Agent(lrn, f"s{lrn}", f"m{lrn}", "1") for lrn in (0, 1, 2)),
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Fleet(), ("none", "no rollout is under way")),
        (Fleet(neco_at_work="/neco/leader/worker/x", rollout=ROLLOUT), ("neco", "a Neco updater or worker is at work: /neco/leader/worker/x")),
        (Fleet(rollout=replace(ROLLOUT, outcome="complete", message="3 of 3 servers complete")), ("complete", "3 of 3 servers complete")),
        (Fleet(rollout=replace(ROLLOUT, outcome="replaced", stop=True, message="by c")), ("replaced", "by c")),
        (Fleet(rollout=replace(ROLLOUT, stop=True, stopped_by="ann")), ("stopped", "stopped by ann")),
        (Fleet(rollout=replace(ROLLOUT, stop=True)), ("stopped", "stopped by somebody")),
        (Fleet(rollout=replace(ROLLOUT, stop=True, stopped_by="leader", message="server 1 failed: x")), ("stopped", "server 1 failed: x")),
        (Fleet(rollout=ROLLOUT), ("failed", "a step has failed and closed the phase")),
        (Fleet(rollout=ROLLOUT, phase=OpenPhase("older", 1, 2)), ("failed", "a step has failed and closed the phase")),
        (fleet(0, 1, status(2), status(1)), ("running", "prefetch is open for all waves; waiting for server 1, 2")),
        (fleet(1, 2, status(2)), ("running", "debs is open for wave 1 of 2; waiting for server 0")),
        (fleet(1, 2, status(3)), ("running", "debs is open for wave 1 of 2; every server has done it")),
        (fleet(1, 7, status(7, COMPLETE)), ("running", "verify is open for wave 1 of 2; every server has done it")),
        (fleet(1, 2, status(3, ABORTED)), ("running", "debs is open for wave 1 of 2; waiting for server 0")),
        (fleet(1, 2, status(3, rollout="older")), ("running", "debs is open for wave 1 of 2; waiting for server 0")),
        (fleet(2, 2, status(7, COMPLETE), status(2), status(3)), ("running", "debs is open for wave 2 of 2; waiting for server 1")),
        (fleet(2, 2, status(7), status(2), status(3), rollout=replace(ROLLOUT, out={1: LeftOut("silent", "silent")})), ("running", "debs is open for wave 2 of 2; every server has done it")),
    ],
)  # fmt: skip
def test_the_state_in_a_word_and_a_sentence(found: Fleet, expected: tuple[str, str]) -> None:
    status = report(found, None, NOW)
    assert (status.state, status.message) == expected


def test_of_many_servers_eight_are_named() -> None:
    for servers, names in [(8, "0, 1, 2, 3, 4, 5, 6, 7"), (9, "0, 1, 2, 3, 4, 5, 6, 7, …")]:
        many = Rollout("b" * 40, tuple(range(servers)), ID, (Wave(tuple(range(servers))),))
        message = report(Fleet(rollout=many, phase=OpenPhase(ID, 1, 3)), None, NOW).message
        assert message == f"stop is open for wave 1 of 1; waiting for server {names}"


@pytest.mark.parametrize(
    ("case", "found", "lrn", "expected"),
    [
        ("at work", fleet(1, 2, status(2, message="installs a")), 0, ("running", "debs", "installs a", None, 1)),
        ("waits", fleet(1, 6, status(6, message="for the lock", waiting="slot")), 0, ("running", "reboot", "for the lock", "slot", 1)),
        ("failed", fleet(1, 2, status(2, ABORTED, "a: broken")), 0, ("aborted", "debs", "a: broken", None, 1)),
        ("complete", fleet(1, 7, status(7, COMPLETE, "complete")), 0, ("complete", "verify", "complete", None, 1)),
        ("not there yet", fleet(0, 1), 1, ("not running", None, "has not entered the rollout yet", None, 2)),
        ("an older rollout's status", fleet(0, 1, status(7, COMPLETE, rollout="x")), 0, ("not running", None, "has not entered the rollout yet", None, 1)),
        ("added later", replace(fleet(0, 1), servers=frozenset({0, 1, 2, 3}), agents=(Agent(3, "s3", "m3", "1"),)), 3, ("not running", None, "waits for the next rollout", None, 0)),
        ("no agent", replace(fleet(0, 1), agents=()), 1, ("not running", None, "no agent is running", None, 2)),
        ("left out", fleet(1, 2, status(2), rollout=replace(ROLLOUT, out={0: LeftOut("silent", "silent in debs")})), 0, ("running", "debs", "left out: silent in debs", None, 1)),
        ("disabled", replace(fleet(1, 2, status(2)), disabled={0: ANN}), 0, ("running", "debs", "disabled by ann: mending", None, 1)),
        ("removed meanwhile", replace(fleet(0, 1), servers=frozenset({0})), 2, ("not running", None, "has not entered the rollout yet", None, 2)),
        ("before any rollout", replace(fleet(0, 1), rollout=None, phase=None), 1, ("not running", None, "", None, 0)),
        ("a phase that this program does not know", fleet(1, 2, status(9)), 0, ("running", None, "", None, 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_servers_line(
    case: str, found: Fleet, lrn: int, expected: tuple[str, str | None, str, str | None, int]
) -> None:
    line = next(line for line in report(found, None, NOW).servers if line.lrn == lrn)
    assert (line.condition, line.phase, line.message, line.waiting, line.wave) == expected


SOAKS = replace(ROLLOUT, waves=(Wave((0,), soak=600.0), Wave((1, 2))))
DONE = (status(7, COMPLETE), status(2), status(2))
QUEUE = Lock(
    "rack",
    Semaphore(2, ("m1", "x")),
    (Holder("m1", "agent", 1), Holder("x", "operator")),
    (Waiter("k", "m0", 0),),
)


@pytest.mark.parametrize(
    ("case", "found", "lrn", "expected"),
    [
        ("at work", fleet(1, 2, status(2)), 0, None),
        ("about to enter", fleet(0, 1), 0, None),
        ("done before the others", fleet(0, 1, status(2), status(1)), 0, "server 1, 2 in prefetch"),
        ("done with the last one's phase", fleet(1, 3, status(4)), 0, None),
        ("another wave's turn", fleet(1, 2, *DONE), 1, "wave 1"),
        ("another wave soaks", fleet(1, 7, *DONE, rollout=SOAKS), 1, "wave 1, which soaks"),
        ("another wave is at work and will soak", fleet(1, 7, status(7), *DONE[1:], rollout=SOAKS), 1, "wave 1"),
        ("a window", fleet(1, 6, status(6, waiting="window")), 0, "its window"),
        ("a slot", fleet(1, 6, status(6, waiting="slot")), 0, "a slot"),
        ("a slot that others hold", replace(fleet(1, 6, status(6, waiting="slot")), locks={"rack": QUEUE}), 0, "a slot of rack, held by server 1, x"),
        ("complete", fleet(1, 7, *DONE), 0, None),
        ("its agent is dead", replace(fleet(1, 2, status(2)), agents=()), 0, "its agent, which does not run"),
        ("complete, and its agent is dead", replace(fleet(1, 7, *DONE), agents=()), 0, None),
        ("disabled", replace(fleet(1, 2, status(2)), disabled={0: ANN}), 0, "`reconcile server enable`"),
        ("left out", fleet(1, 2, status(2), rollout=replace(ROLLOUT, out={0: LeftOut("silent", "silent")})), 0, "the next rollout"),
        ("added meanwhile", replace(fleet(0, 1), servers=frozenset({0, 1, 2, 3})), 3, "the next rollout"),
        ("added again meanwhile", replace(fleet(1, 2, rollout=replace(ROLLOUT, opened=44)), added={0: 45}), 0, "the next rollout"),
        ("a person stopped it", fleet(1, 2, status(2), rollout=replace(ROLLOUT, stop=True, stopped_by="ann")), 0, "`reconcile recover`"),
        ("it has failed", fleet(1, 2, status(2), rollout=replace(ROLLOUT, stop=True, stopped_by="leader")), 0, "a newer revision, or recover"),
        ("it is over", fleet(1, 2, status(2), rollout=replace(ROLLOUT, outcome="complete")), 0, None),
        ("before any rollout", replace(fleet(0, 1), rollout=None), 0, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_each_server_waits_for(case: str, found: Fleet, lrn: int, expected: str | None) -> None:
    line = next(line for line in report(found, None, NOW).servers if line.lrn == lrn)
    assert line.waits_for == expected


def test_a_wave_that_soaks_is_said_to() -> None:
    assert (
        report(fleet(1, 7, *DONE, rollout=SOAKS), None, NOW).message
        == "wave 1 of 2 is complete and soaks for 10m"
    )
    assert "waiting for server 0" in report(fleet(1, 7, status(7), rollout=SOAKS), None, NOW).message


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Fleet(), None),
        (Fleet(noted="b" * 40, rollout=ROLLOUT), None),
        (Fleet(noted="c" * 40), None),
        (Fleet(noted="c" * 40, pause=ANN), "paused by ann: mending"),
        (Fleet(noted="c" * 40, leader=LEADER, told=UNOPENED), "cannot open it: no such tag; nor that one"),
        (Fleet(noted="c" * 40, leader=None, told=UNOPENED), None),
        (Fleet(noted="d" * 40, leader=LEADER, told=UNOPENED), None),
        (Fleet(noted="c" * 40, leader=LEADER, told=UNOPENED, pause=ANN), "paused by ann: mending"),
        (Fleet(noted="c" * 40, leader=LEADER, told=UNOPENED, rollout=ROLLOUT), "cannot open it: no such tag; nor that one"),
        (Fleet(noted="c" * 40, leader=LEADER, told=UNOPENED, rollout=replace(ROLLOUT, version="c" * 40, outcome="complete")), "cannot open it: no such tag; nor that one"),
        (Fleet(noted="c" * 40, leader=LEADER, told=UNOPENED, rollout=replace(ROLLOUT, stop=True, stopped_by="ann")), "the last rollout was stopped, and waits for `reconcile recover`"),
        (Fleet(noted="c" * 40, settings=Settings(release_time="0 4 * * *")), "outside the release time (config/release-time)"),
        (Fleet(noted="c" * 40, rollout=ROLLOUT, pause=ANN), "a rollout is under way"),
        (Fleet(noted="c" * 40, rollout=replace(ROLLOUT, stop=True, stopped_by="ann")), "the last rollout was stopped, and waits for `reconcile recover`"),
        (Fleet(noted="c" * 40, rollout=replace(ROLLOUT, stop=True, stopped_by="leader"), pause=ANN), "paused by ann: mending"),
        (Fleet(noted="c" * 40, rollout=replace(ROLLOUT, outcome="complete"), pause=replace(ANN, until="2026-01-01T11:00:00Z")), None),
    ],
)  # fmt: skip
def test_why_the_newest_revision_is_not_rolled_out(found: Fleet, expected: str | None) -> None:
    assert report(found, None, NOW).held == expected


def test_whether_a_holder_is_away_is_known_of_agents_only() -> None:
    holders = (
        Holder("m0", "agent", 0),
        Holder("m1", "agent", 1),
        Holder("x", "operator", 1),
        Holder("y", "agent"),
    )
    lock = Lock("edge", Semaphore(4, ("m0", "m1", "x", "y", "z")), holders)
    away = {held.machine_id: held.away for held in lock_report(lock, NOW, frozenset({0})).holders}
    assert away == {"m0": False, "m1": True, "x": None, "y": None, "z": None}


def test_a_server_that_is_gone_stays_listed_until_its_rollout_ends() -> None:
    gone = replace(fleet(0, 1), servers=frozenset({0, 5}))
    assert [line.lrn for line in report(gone, None, NOW).servers] == [0, 1, 2, 5]
    ended = replace(gone, rollout=replace(ROLLOUT, outcome="complete"))
    assert [line.lrn for line in report(ended, None, NOW).servers] == [0, 5]


@pytest.mark.parametrize(
    ("case", "statuses", "windows", "expected"),
    [
        ("waits for it", (status(6, waiting="window"),), (Window(None, 14, 0, 60.0),), NOON + 7200),
        ("waits for a slot", (status(6, waiting="slot"),), (Window(None, 14, 0, 60.0),), None),
        ("at work", (status(6),), (Window(None, 14, 0, 60.0),), None),
        ("has not begun", (), (Window(None, 14, 0, 60.0),), NOON + 7200),
        ("any time", (status(6, waiting="window"),), (), None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_next_window(
    case: str, statuses: tuple[ServerStatus, ...], windows: tuple[Window, ...], expected: float | None
) -> None:
    group = ServerGroup("boot", frozenset({0}), reboot=RebootPolicy(windows=windows))
    desired = Desired(Revision("c" * 40), groups=(group,))
    lines = report(fleet(1, 6, *statuses), desired, NOW).servers
    assert [(line.group, line.next_window) for line in lines] == [
        ("boot", expected),
        ("default", None),
        ("default", None),
    ]


def test_what_is_only_passed_on() -> None:
    found = replace(
        fleet(1, 2, status(2, message="installs a")),
        leader=Leader("s1", "key", 7),
        noted="c" * 40,
        pause=ANN,
        settings=Settings(proxy="http://proxy.example"),
        disabled={0: ANN},
    )
    shown = report(found, Desired(Revision("c" * 40)), NOW)
    assert (shown.etcd_revision, shown.leader, shown.desired, shown.noted) == (88, "s1", "c" * 40, "c" * 40)
    assert (shown.rollout, shown.phase) == (ROLLOUT, OpenPhase(ID, 1, 2))
    assert (shown.pause, shown.settings.proxy) == (ANN, "http://proxy.example")
    assert shown.servers[0] == ServerReport(
        0,
        "default",
        1,
        "s0",
        "running",
        "debs",
        ROLLOUT.version,
        "disabled by ann: mending",
        None,
        "`reconcile server enable`",
        disabled=ANN,
    )
    nobody = report(Fleet(), None, NOW)
    assert (nobody.leader, nobody.desired, nobody.servers, nobody.locks) == (None, None, (), ())


def test_the_reboot_lock_with_each_holders_age() -> None:
    holders = (Holder("m0", "agent", 0, start_time=int(NOON) - 90), Holder("m1", start_time=int(NOON) + 60))
    lock = Lock("edge", Semaphore(3, ("m0", "m1", "m2")), holders, (Waiter("k", "m3", 3), Waiter("l", "x")))
    assert lock_report(lock, NOW) == LockReport(
        "edge",
        3,
        0,
        (
            HolderReport("m0", holders[0], 90.0),
            HolderReport("m1", holders[1], 0.0),
            HolderReport("m2", None, None),
        ),
        (("m3", 3), ("x", None)),
    )


def test_lock_groups_come_by_name() -> None:
    locks = {name: Lock(name, Semaphore(2)) for name in ("edge", "default")}
    assert [(lock.group, lock.free) for lock in report(Fleet(locks=locks), None, NOW).locks] == [
        ("default", 2),
        ("edge", 2),
    ]


@pytest.mark.parametrize(
    ("held", "alarm_after", "overdue"), [(599.0, 600.0, False), (601.0, 600.0, True), (61.0, 60.0, True)]
)
def test_a_slot_that_is_held_for_longer_than_the_alarm_is_overdue(
    held: float, alarm_after: float, overdue: bool
) -> None:
    lock = Lock("default", Semaphore(1, ("m0",)), (Holder("m0", "agent", 0, start_time=int(NOON - held)),))
    assert [holder.overdue for holder in lock_report(lock, NOW, alarm_after=alarm_after).holders] == [overdue]
    shown = report(replace(fleet(0, 1), locks={"default": lock}), None, NOW, alarm_after)
    assert [holder.overdue for holder in shown.locks[0].holders] == [overdue]


def test_an_operators_slot_without_a_record_is_never_overdue() -> None:
    """Nothing says since when it is held."""
    assert not lock_report(Lock("default", Semaphore(1, ("m0",))), NOW, alarm_after=1.0).holders[0].overdue


@pytest.mark.parametrize(
    ("message", "cond", "rollout", "rebooting"),
    [
        ("reboot:host:acquire", RUNNING, ROLLOUT, False),
        ("waiting for a slot of lock group default", RUNNING, ROLLOUT, False),
        ("reboot:host:hook:before:0", RUNNING, ROLLOUT, True),
        ("reboot:host:reboot", RUNNING, ROLLOUT, True),
        ("reboot:host:health", RUNNING, replace(ROLLOUT, stop=True), True),
        ("reboot:host:reboot: has not rebooted", ABORTED, ROLLOUT, False),
        ("reboot is done", RUNNING, ROLLOUT, False),
        ("reboot:host:release", RUNNING, replace(ROLLOUT, outcome="stopped"), False),
    ],
)
def test_a_server_in_the_middle_of_its_reboot_is_shown_as_such(
    message: str, cond: int, rollout: Rollout, rebooting: bool
) -> None:
    """And does not ask for one any more, whatever its agent said before it went down."""
    found = fleet(1, 6, status(6, cond, message), rollout=rollout)
    found = replace(found, agents=(Agent(0, "s0", "m0", "1", reboot_required=True),))
    line = report(found, None, NOW).servers[0]
    assert (line.rebooting, line.reboot_required) == (rebooting, not rebooting)
