"""`lead`: what the leader does next, row by row; and what it counts as time (`watch`)."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import pytest

from reconciler.core.artifact import AptDeb, Artifact, OsImage
from reconciler.core.duration import timestamp
from reconciler.core.lead import (
    Finish,
    LeaveOut,
    Open,
    OpenNext,
    Order,
    Seen,
    Stop,
    Wait,
    lead,
    participants,
    watch,
)
from reconciler.core.plans import waves_of
from reconciler.core.state import (
    ABORTED,
    COMPLETE,
    PHASES,
    RUNNING,
    Agent,
    ArtifactSet,
    Budget,
    Desired,
    Detail,
    Fleet,
    Installed,
    LeftOut,
    Notice,
    Now,
    OpenPhase,
    RebootPolicy,
    Recorded,
    Revision,
    Rollout,
    RolloutPolicy,
    ServerGroup,
    ServerStatus,
    Settings,
    StepRecord,
    Wave,
    WavePolicy,
)

OLD, NEW, NEWER = "a" * 40, "b" * 40, "c" * 40
ID = "2026-01-01T00:00:00.000000000Z"
T0 = 1000.0
"""The leader's monotonic clock when it first looks."""
THURSDAY_NOON = 1_767_268_800.0  # 2026-01-01 12:00 UTC
TIMEOUT = 3600.0
PREFETCH, DEBS, VERIFY = 1, 2, 7
ORDERS = ("open", "phase", "leave", "stop", "finish", "wait")
ANN = Notice("ann", "the switch is being replaced", "2026-01-01T00:00:00Z")


def now(seconds: float = 0.0, wall: float = THURSDAY_NOON) -> Now:
    return Now(wall + seconds, T0 + seconds)


def desired(revision: str = NEW, *artifacts: Artifact, policy: RolloutPolicy = RolloutPolicy()) -> Desired:
    return Desired(Revision(revision), (ArtifactSet(artifacts or (AptDeb("a", "2"),)),), policy=policy)


def recorded(*servers: int, version: str = "1") -> dict[int, Recorded]:
    artifact = AptDeb("a", version)
    return {
        lrn: {artifact.key: Installed(artifact.key, version, Detail(artifact, version, "", ""))}
        for lrn in servers
    }


def idle(*servers: int, version: str = "1") -> Fleet:
    """Servers that have version `version` of a package, and no rollout yet."""
    return Fleet(servers=frozenset(servers), recorded=recorded(*servers, version=version))


def rollout(*waves: Wave, version: str = NEW) -> Rollout:
    waves = waves or (Wave((0, 1, 2)),)
    servers = tuple(sorted(lrn for wave in waves for lrn in wave.servers))
    return Rollout(version, servers, ID, waves, timeout=TIMEOUT, mod_revision=50)


def status(
    step: int, cond: int = RUNNING, message: str = "", rollout: str = ID, waiting: str | None = None
) -> ServerStatus:
    return ServerStatus(NEW, rollout, step, cond, message, waiting, mod_revision=60)  # type: ignore[arg-type]  # rows give plain text


def running(
    wave: int,
    phase: int,
    *statuses: ServerStatus | None,
    over: Rollout | None = None,
    dead: tuple[int, ...] = (),
) -> Fleet:
    """A rollout with this phase open; one status a server, None where it has none. `dead` ones have no agent."""
    over = over or rollout()
    return replace(
        idle(*over.servers),
        rollout=over,
        phase=OpenPhase(ID, wave, phase, mod_revision=55),
        statuses={lrn: each for lrn, each in zip(over.servers, statuses, strict=True) if each},
        agents=tuple(Agent(lrn, f"s{lrn}", f"m{lrn}", "1") for lrn in over.servers if lrn not in dead),
    )


def text(order: Order) -> str:
    """An order in a few words."""
    match order:
        case Open(opened, replaces):
            servers = " ".join(map(str, opened.servers))
            return f"open {opened.version[0]} on {servers}" + (
                f" for {replaces.version[0]}" if replaces else ""
            )
        case OpenNext(_, _, wave, phase):
            return f"phase {wave}.{phase}"
        case LeaveOut(_, servers):
            return "leave out " + "; ".join(f"{lrn} {reason}" for lrn, reason in sorted(servers.items()))
        case Stop(_, message):
            return f"stop: {message}"
        case Finish(_, message):
            return f"finish: {message}"
        case Wait(reason, None):
            return f"wait: {reason}"
        case Wait(reason, seconds):
            return f"wait {seconds:g} s: {reason}"
        case _:
            assert_never(order)


def case_only(value: object) -> str:
    """A row's id: its first column, and nothing of the orders."""
    is_order = isinstance(value, str) and value.split()[0].rstrip(":") in ORDERS
    return value if isinstance(value, str) and not is_order else ""


def led(fleet: Fleet, wanted: Desired | None = None, *, after: float = 0.0) -> str:
    """What a leader orders that has seen `fleet` unchanged for `after` seconds."""
    seen = watch(watch(Seen(), fleet, now()), fleet, now(after))
    return text(lead(wanted or desired(), fleet, seen, now(after)))


# --- whether a rollout opens ----------------------------------------------------------------------------------------

FINISHED = replace(rollout(), outcome="complete")
COMPLETED = {lrn: status(VERIFY, COMPLETE) for lrn in (0, 1, 2)}
UNBOOTED = ServerGroup("boot", frozenset({0, 1, 2}), reboot=RebootPolicy("off"))
ASKS_FOR_REBOOT = Agent(1, "s1", "m1", "1", reboot_required=True)
AFTER = replace(idle(0, 1, 2, version="2"), rollout=FINISHED, statuses=COMPLETED)
"""The fleet after the rollout of `NEW`."""


@pytest.mark.parametrize(
    ("case", "fleet", "wanted", "expected"),
    [
        ("no revision", idle(0, 1), None, "wait: there is no valid revision yet"),
        ("no server", idle(), desired(), "wait: no server is registered"),
        (
            "every server disabled",
            replace(idle(0), disabled={0: ANN}),
            desired(),
            "wait: no server is registered",
        ),
        ("a new revision", idle(0, 1, 2), desired(), "open b on 0 1 2"),
        ("a disabled server", replace(idle(0, 1, 2), disabled={1: ANN}), desired(), "open b on 0 2"),
        (
            "nothing changed",
            idle(0, 1, version="2"),
            desired(),
            "wait: nothing to do: no server differs from the newest revision",
        ),
        (
            "one of them differs",
            replace(idle(0, 1), recorded=recorded(0, version="2")),
            desired(),
            "open b on 0 1",
        ),
        (
            "nothing changed, and one has to reboot",
            replace(idle(0, 1, version="2"), agents=(ASKS_FOR_REBOOT,)),
            desired(),
            "open b on 0 1",
        ),
        (
            "nothing changed, and a disabled one has to reboot",
            replace(idle(0, 1, version="2"), agents=(ASKS_FOR_REBOOT,), disabled={1: ANN}),
            desired(),
            "wait: nothing to do: no server differs from the newest revision",
        ),
        (
            "nothing changed, and one has to reboot that nobody reboots",
            replace(idle(0, 1, version="2"), agents=(ASKS_FOR_REBOOT,)),
            replace(desired(), groups=(ServerGroup("boot", frozenset({1}), reboot=RebootPolicy("off")),)),
            "wait: nothing to do: no server differs from the newest revision",
        ),
        (
            "complete, and one has to reboot: the next rollout does it",
            replace(AFTER, agents=(ASKS_FOR_REBOOT,)),
            desired(),
            "wait: nothing to do: the newest revision is rolled out",
        ),
        (
            "only a disabled one differs",
            replace(idle(0, 1, 2), recorded=recorded(0, 1, version="2"), disabled={2: ANN}),
            desired(),
            "wait: nothing to do: no server differs from the newest revision",
        ),
        (
            "more than is desired, without prune",
            idle(0),
            Desired(Revision(NEW), policy=RolloutPolicy(prune=False)),
            "wait: nothing to do: no server differs from the newest revision",
        ),
        (
            "paused",
            replace(idle(0, 1), pause=ANN),
            desired(),
            "wait: paused by ann: the switch is being replaced",
        ),
        (
            "paused for ten minutes more",
            replace(idle(0, 1), pause=replace(ANN, until="2026-01-01T12:10:00Z")),
            desired(),
            "wait 600 s: paused by ann: the switch is being replaced",
        ),
        (
            "paused until now",
            replace(idle(0, 1), pause=replace(ANN, until="2026-01-01T12:00:00Z")),
            desired(),
            "open b on 0 1",
        ),
        (
            "outside the release time",
            replace(idle(0), settings=Settings(release_time="0 13 * * *\n0 4 * * *")),
            desired(),
            "wait 3600 s: outside the release time (config/release-time)",
        ),
        (
            "inside it in its time zone",
            replace(idle(0), settings=Settings(release_time="* 21 * * thu", release_timezone="Asia/Tokyo")),
            desired(),
            "open b on 0",
        ),
        (
            "never",
            replace(idle(0), settings=Settings(release_time="0 0 30 2 *")),
            desired(),
            "wait: outside the release time (config/release-time)",
        ),
        ("complete", AFTER, desired(), "wait: nothing to do: the newest revision is rolled out"),
        ("complete, and a newer revision", AFTER, desired(NEWER, AptDeb("a", "3")), "open c on 0 1 2"),
        (
            "complete, and a newer revision that changes nothing",
            AFTER,
            desired(NEWER, AptDeb("a", "2")),
            "wait: nothing to do: no server differs from the newest revision",
        ),
        (
            "complete, and a record was deleted by hand: it is installed again",
            replace(AFTER, recorded=recorded(0, 2, version="2")),
            desired(),
            "open b on 0 1 2",
        ),
        (
            "complete, and a record was changed by hand",
            replace(AFTER, recorded=recorded(0, 1, version="2") | recorded(2, version="9")),
            desired(),
            "open b on 0 1 2",
        ),
        (
            "complete, and the record of one that is disabled was deleted",
            replace(AFTER, recorded=recorded(0, 1, version="2"), disabled={2: ANN}),
            desired(),
            "wait: nothing to do: the newest revision is rolled out",
        ),
        (
            "complete, and an OS image waits for somebody's boot to be recorded",
            AFTER,
            replace(desired(NEW, AptDeb("a", "2"), OsImage("stable", "1")), groups=(UNBOOTED,)),
            "wait: nothing to do: the newest revision is rolled out",
        ),
        (
            "complete, and the record of an OS image was deleted",
            AFTER,
            desired(NEW, AptDeb("a", "2"), OsImage("stable", "1")),
            "open b on 0 1 2",
        ),
        (
            "complete, and a server was added",
            replace(AFTER, servers=frozenset({0, 1, 2, 3})),
            desired(),
            "open b on 0 1 2 3",
        ),
        (
            "complete, and a server was removed",
            replace(AFTER, servers=frozenset({0, 1})),
            desired(),
            "wait: nothing to do: the newest revision is rolled out",
        ),
        (
            "complete, and a server was removed and added again",
            replace(AFTER, statuses={0: COMPLETED[0], 1: COMPLETED[1]}),
            desired(),
            "open b on 0 1 2",
        ),
        (
            "complete without one that was disabled, which is still so",
            replace(
                AFTER,
                rollout=replace(FINISHED, out={2: LeftOut("disabled", "disabled by ann")}),
                statuses={0: COMPLETED[0], 1: COMPLETED[1]},
                disabled={2: ANN},
            ),
            desired(),
            "wait: nothing to do: the newest revision is rolled out",
        ),
        (
            "complete without one that was disabled, which is back",
            replace(
                AFTER,
                rollout=replace(FINISHED, out={2: LeftOut("disabled", "disabled by ann")}),
                statuses={0: COMPLETED[0], 1: COMPLETED[1], 2: status(DEBS)},
            ),
            desired(),
            "open b on 0 1 2",
        ),
        (
            "complete without one that failed: it gets the next revision",
            replace(
                AFTER,
                rollout=replace(FINISHED, out={2: LeftOut("failed", "failed: dpkg")}),
                statuses={0: COMPLETED[0], 1: COMPLETED[1], 2: status(DEBS, ABORTED)},
            ),
            desired(),
            "wait: nothing to do: the newest revision is rolled out",
        ),
        (
            "complete without one that was silent: likewise",
            replace(
                AFTER,
                rollout=replace(FINISHED, out={2: LeftOut("silent", "silent in debs for 3600 s")}),
                statuses={0: COMPLETED[0], 1: COMPLETED[1]},
            ),
            desired(),
            "wait: nothing to do: the newest revision is rolled out",
        ),
    ],
    ids=case_only,
)
def test_whether_a_rollout_opens(case: str, fleet: Fleet, wanted: Desired | None, expected: str) -> None:
    assert text(lead(wanted, fleet, Seen(), now())) == expected


@pytest.mark.parametrize(
    ("id", "state", "opens"),
    [
        ("debs:deb/a:change", "failed", True),
        ("debs:deb/a:change", "running", True),
        ("debs:deb/a:change", "done", False),
        ("containers:image/app:health", "failed", True),
        ("reboot:host:health", "failed", True),
        ("reboot:host:acquire", "running", True),
        ("prefetch:deb/a:fetch", "failed", False),
    ],
)
def test_a_step_that_did_not_end_is_worth_a_rollout_though_nothing_differs(
    id: str, state: str, opens: bool
) -> None:
    record = StepRecord(id, "older", state)  # type: ignore[arg-type]  # rows give plain text
    fleet = replace(idle(0, version="2"), steps={0: {id: record}})
    assert isinstance(lead(desired(), fleet, Seen(), now()), Open) is opens


def test_a_release_time_that_cannot_be_read_opens_nothing_and_names_the_key() -> None:
    fleet = replace(idle(0), settings=Settings(release_time="whenever"))
    assert led(fleet).startswith("wait: config/release-time or config/release-timezone cannot be read: ")


@pytest.mark.parametrize(
    ("policy", "setting", "expected"),
    [(None, None, 3600.0), (None, 600.0, 600.0), (60.0, 600.0, 60.0)],
)
def test_the_rollout_carries_its_timeout_waves_and_budgets(
    policy: float | None, setting: float | None, expected: float
) -> None:
    rules = RolloutPolicy((WavePolicy(frozenset({0}), soak=9.0),), policy, Budget(1))
    fleet = replace(idle(0, 1), settings=Settings(worker_timeout=setting))
    order = lead(desired(NEW, policy=rules), fleet, Seen(), now())
    assert isinstance(order, Open)
    assert order.rollout == Rollout(
        NEW,
        (0, 1),
        "2026-01-01T12:00:00.000000000Z",
        (Wave((0,), 9.0, 1), Wave((1,), 0.0, 1)),
        timeout=expected,
    )


def test_neco_at_work_stops_everything() -> None:
    fleet = replace(running(0, PREFETCH, None, None, None), neco_at_work="/neco/leader/worker/x")
    assert led(fleet) == (
        "wait: a Neco updater or worker is at work (/neco/leader/worker/x): stop it, then `reconcile adopt`"
    )


# --- stopped, failed, and what gets through -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "wanted", "expected"),
    [
        ("ann", desired(), "wait: the rollout of bbbbbbbbbbbb was stopped by ann: `reconcile recover` clears it"),
        ("ann", desired(NEWER), "wait: the rollout of bbbbbbbbbbbb was stopped by ann: `reconcile recover` clears it"),
        (None, desired(NEWER), "wait: the rollout of bbbbbbbbbbbb was stopped by somebody: `reconcile recover` clears it"),
        ("leader", desired(), "wait: the rollout of bbbbbbbbbbbb was stopped by a failure: `reconcile recover` clears it"),
        ("leader", None, "wait: the rollout of bbbbbbbbbbbb was stopped by a failure: `reconcile recover` clears it"),
        ("leader", desired(NEWER), "open c on 0 1 2 for b"),
        ("leader", desired(NEWER, AptDeb("a", "1")), "open c on 0 1 2 for b"),
    ],
)  # fmt: skip
def test_a_stopped_rollout(by: str | None, wanted: Desired | None, expected: str) -> None:
    fleet = replace(running(1, DEBS, None, None, None), phase=None)
    fleet = replace(fleet, rollout=replace(rollout(), stop=True, stopped_by=by))
    assert text(lead(wanted, fleet, Seen(), now())) == expected


@pytest.mark.parametrize("wanted", [desired(), desired(NEWER)])
@pytest.mark.parametrize("phase", [None, OpenPhase("2025-12-31T00:00:00.000000000Z", 1, DEBS)])
@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((status(2), status(2, ABORTED, "deb/a:change: broken"), None), "stop: server 1 failed: deb/a:change: broken"),
        ((status(2), status(2), None), "stop: a server closed the phase after a failed step"),
        ((status(2, ABORTED, "x", "older"), None, None), "stop: a server closed the phase after a failed step"),
    ],
)  # fmt: skip
def test_no_open_phase_means_failed_and_a_leader_only_stops(
    wanted: Desired,
    phase: OpenPhase | None,
    statuses: tuple[ServerStatus | None, ...],
    expected: str,
) -> None:
    fleet = replace(running(1, DEBS, *statuses), phase=phase)
    assert led(fleet, wanted) == expected


@pytest.mark.parametrize("plan_format", [2, None])
def test_a_rollout_of_another_plan_format_is_left_alone(plan_format: int | None) -> None:
    fleet = running(0, PREFETCH, None, None, None, over=replace(rollout(), plan_format=plan_format))
    assert led(fleet, desired(NEWER)).startswith(f"wait: the rollout's plan format {plan_format} is newer")


READY, BEHIND = status(DEBS + 1), status(DEBS)
WAITS = status(DEBS, waiting="slot")


@pytest.mark.parametrize(
    ("case", "fleet", "gives_way"),
    [
        ("in prefetch", running(0, PREFETCH, None, status(1), status(2)), True),
        ("everybody at work", running(1, DEBS, BEHIND, BEHIND, BEHIND), False),
        ("all wait for a slot", running(1, DEBS, WAITS, WAITS, WAITS), True),
        ("all wait for a window", running(1, DEBS, *[status(DEBS, waiting="window")] * 3), True),
        ("one at work", running(1, DEBS, WAITS, WAITS, BEHIND), False),
        ("one has not been heard of", running(1, DEBS, WAITS, WAITS, None), False),
        ("one has done it, the others wait", running(1, DEBS, READY, WAITS, WAITS), True),
        ("waiting was said in an older rollout", running(1, DEBS, WAITS, WAITS, replace(WAITS, rollout="x")), False),
        ("everybody has done it", running(1, DEBS, READY, READY, READY), False),
    ],
    ids=case_only,
)  # fmt: skip
def test_which_running_rollouts_give_way_to_a_newer_revision(
    case: str, fleet: Fleet, gives_way: bool
) -> None:
    expected = "open c on 0 1 2 for b"
    assert (led(fleet, desired(NEWER)) == expected) is gives_way
    # A revert to what is recorded as well: nothing differs, and yet the rollout must not go on.
    assert (led(fleet, desired(NEWER, AptDeb("a", "1"))) == expected) is gives_way
    assert "open c" not in led(replace(fleet, pause=ANN), desired(NEWER))
    assert "open" not in led(fleet, desired(NEW)).replace("open b", "")


def test_while_paused_the_running_rollout_goes_on() -> None:
    fleet = replace(running(0, PREFETCH, READY, READY, READY), pause=ANN)
    assert led(fleet, desired(NEWER)) == "phase 1.2"


# --- phase after phase ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", range(1, len(PHASES)))
def test_the_next_phase_opens_when_every_server_has_done_the_one_before(phase: int) -> None:
    wave = 0 if phase == PREFETCH else 1
    done, behind = status(phase + 1), status(phase)
    assert led(running(wave, phase, done, done, done)) == f"phase 1.{phase + 1}"
    for statuses in [(done, done, behind), (None, done, done), (done, replace(done, rollout="older"), done)]:
        assert led(running(wave, phase, *statuses)).startswith("wait 3600 s: waiting for server")


def test_who_is_waited_for_is_named() -> None:
    assert led(running(1, DEBS, READY, BEHIND, None)) == "wait 3600 s: waiting for server 1, 2 in debs"
    many = rollout(Wave(tuple(range(7))))
    assert (
        led(running(1, DEBS, *[BEHIND] * 7, over=many))
        == "wait 3600 s: waiting for server 0, 1, 2, 3, 4, … in debs"
    )
    five = rollout(Wave(tuple(range(5))))
    assert (
        led(running(1, DEBS, *[BEHIND] * 5, over=five))
        == "wait 3600 s: waiting for server 0, 1, 2, 3, 4 in debs"
    )


def test_complete_is_done_with_every_phase() -> None:
    end = status(VERIFY, COMPLETE)
    assert led(running(1, VERIFY, end, end, end)) == "finish: 3 of 3 servers complete"
    assert led(running(1, VERIFY, end, end, status(VERIFY))).startswith(
        "wait 3600 s: waiting for server 2 in verify"
    )


TWO_WAVES = rollout(Wave((0,), soak=600.0), Wave((1, 2)))
AHEAD = status(2)


@pytest.mark.parametrize(
    ("case", "fleet", "after", "expected"),
    [
        (
            "prefetch is for all waves at once",
            running(0, PREFETCH, AHEAD, AHEAD, status(1), over=TWO_WAVES),
            0,
            "wait 3600 s: waiting for server 2 in prefetch",
        ),
        ("then the first wave", running(0, PREFETCH, AHEAD, AHEAD, AHEAD, over=TWO_WAVES), 0, "phase 1.2"),
        (
            "no other wave is waited for",
            running(1, DEBS, status(3), AHEAD, AHEAD, over=TWO_WAVES),
            0,
            "phase 1.3",
        ),
        (
            "the first wave complete",
            running(1, VERIFY, status(7, COMPLETE), AHEAD, AHEAD, over=TWO_WAVES),
            0,
            "wait 600 s: wave 1 is complete and soaks",
        ),
        (
            "soaking",
            running(1, VERIFY, status(7, COMPLETE), AHEAD, AHEAD, over=TWO_WAVES),
            599,
            "wait 1 s: wave 1 is complete and soaks",
        ),
        ("soaked", running(1, VERIFY, status(7, COMPLETE), AHEAD, AHEAD, over=TWO_WAVES), 600, "phase 2.2"),
        (
            "the second wave",
            running(2, VERIFY, status(7, COMPLETE), status(7, COMPLETE), status(7, COMPLETE), over=TWO_WAVES),
            0,
            "finish: 3 of 3 servers complete",
        ),
        (
            "the last wave's soak is waited for by nobody",
            running(1, VERIFY, *[status(7, COMPLETE)] * 2, over=rollout(Wave((0, 1), soak=600.0))),
            0,
            "finish: 2 of 2 servers complete",
        ),
        (
            "a wave of which everybody is out is passed over",
            running(
                0,
                PREFETCH,
                None,
                AHEAD,
                AHEAD,
                over=replace(TWO_WAVES, out={0: LeftOut("disabled", "disabled by ann")}),
            ),
            0,
            "phase 2.2",
        ),
        (
            "and one at the end",
            running(
                1,
                VERIFY,
                status(7, COMPLETE),
                None,
                None,
                over=replace(
                    TWO_WAVES,
                    out={
                        1: LeftOut("removed", "removed from the fleet"),
                        2: LeftOut("disabled", "disabled by ann"),
                    },
                ),
            ),
            0,
            "finish: 1 of 3 servers complete; left out: server 1 removed from the fleet; server 2 disabled by ann",
        ),
        (
            "nobody is left at all",
            running(
                0,
                PREFETCH,
                None,
                over=replace(rollout(Wave((0,))), out={0: LeftOut("disabled", "disabled by ann")}),
            ),
            0,
            "finish: 0 of 1 servers complete; left out: server 0 disabled by ann",
        ),
    ],
    ids=case_only,
)
def test_waves(case: str, fleet: Fleet, after: float, expected: str) -> None:
    assert led(fleet, after=after) == expected


def test_a_new_leader_lets_a_wave_soak_again_and_waits_the_whole_timeout_again() -> None:
    soaking = running(1, VERIFY, status(7, COMPLETE), AHEAD, AHEAD, over=TWO_WAVES)
    seen = watch(Seen(), soaking, now(500))
    assert text(lead(desired(), soaking, seen, now(500))) == "wait 600 s: wave 1 is complete and soaks"
    silent = running(1, DEBS, READY, READY, BEHIND)
    assert text(lead(desired(), soaking, Seen(), now())) == "wait 600 s: wave 1 is complete and soaks"
    for seen in (Seen(), watch(Seen(), silent, now(99_999))):
        assert text(lead(desired(), silent, seen, now(99_999))).startswith("wait")


def test_what_begins_to_soak_is_counted_from_when_the_last_server_was_done() -> None:
    before = running(1, VERIFY, status(7), AHEAD, AHEAD, over=TWO_WAVES)
    after = running(1, VERIFY, status(7, COMPLETE), AHEAD, AHEAD, over=TWO_WAVES)
    seen = watch(watch(Seen(), before, now()), after, now(500))
    assert text(lead(desired(), after, seen, now(700))) == "wait 400 s: wave 1 is complete and soaks"
    assert watch(seen, before, now(800)).done_since is None


def test_a_wave_with_a_failure_in_it_is_not_done() -> None:
    failed = running(1, VERIFY, status(8, ABORTED), AHEAD, AHEAD, over=TWO_WAVES)
    assert watch(Seen(), failed, now()).done_since is None


def test_a_phase_that_was_done_says_nothing_of_the_next_one() -> None:
    first = running(1, VERIFY - 1, status(7, COMPLETE), AHEAD, AHEAD, over=TWO_WAVES)
    seen = watch(Seen(), first, now())
    last = replace(first, phase=OpenPhase(ID, 1, VERIFY, mod_revision=56))
    seen = watch(seen, last, now(600))
    assert text(lead(desired(), last, seen, now(600))) == "wait 600 s: wave 1 is complete and soaks"


# --- who is left out, and when that is too much ---------------------------------------------------------------------

BROKEN = status(DEBS, ABORTED, "debs:deb/a:change: dpkg failed")
LENIENT = rollout(Wave((0, 1, 2), max_failures=1))


@pytest.mark.parametrize(
    ("case", "fleet", "after", "expected"),
    [
        ("a server failed", running(1, DEBS, READY, READY, BROKEN), 0, "stop: server 2 failed: debs:deb/a:change: dpkg failed"),
        ("failed in prefetch", running(0, PREFETCH, READY, READY, BROKEN), 0, "stop: server 2 failed: debs:deb/a:change: dpkg failed"),
        ("an older rollout's failure counts for nothing", running(1, DEBS, READY, READY, replace(BROKEN, rollout="x")), 0, "wait 3600 s: waiting for server 2 in debs"),
        ("one may fail", running(1, DEBS, READY, READY, BROKEN, over=LENIENT), 0, "leave out 2 failed: debs:deb/a:change: dpkg failed"),
        ("two fail", running(1, DEBS, READY, BROKEN, BROKEN, over=LENIENT), 0, "stop: server 1 failed: debs:deb/a:change: dpkg failed; server 2 failed: debs:deb/a:change: dpkg failed"),
        ("another one had failed", running(1, DEBS, READY, READY, BROKEN, over=replace(LENIENT, out={0: LeftOut("silent", "silent in debs for 3600 s")})), 0, "stop: server 0 silent in debs for 3600 s; server 2 failed: debs:deb/a:change: dpkg failed"),
        ("who was disabled is no failure", running(1, DEBS, READY, READY, BROKEN, over=replace(LENIENT, out={0: LeftOut("disabled", "disabled by ann")})), 0, "leave out 2 failed: debs:deb/a:change: dpkg failed"),
        ("left out already", running(1, DEBS, READY, READY, BROKEN, over=replace(LENIENT, out={2: LeftOut("failed", "failed: x")})), 0, "phase 1.3"),
        ("each wave has its own budget", running(2, DEBS, status(7, COMPLETE), AHEAD, BROKEN, over=replace(rollout(Wave((0,), 0, 1), Wave((1, 2), 0, 1)), out={0: LeftOut("failed", "failed: x")})), 0, "leave out 2 failed: debs:deb/a:change: dpkg failed"),
        ("another wave's failure is no concern yet", running(1, DEBS, BEHIND, AHEAD, BROKEN, over=TWO_WAVES), 0, "wait 3600 s: waiting for server 0 in debs"),
        ("not yet silent", running(1, DEBS, READY, READY, BEHIND), 3599, "wait 1 s: waiting for server 2 in debs"),
        ("silent", running(1, DEBS, READY, READY, BEHIND), 3600, "stop: server 2 silent in debs for 3600 s"),
        ("silent in the middle of something", running(1, DEBS, READY, READY, replace(BEHIND, message="installs a")), 3600, "stop: server 2 silent in debs for 3600 s (installs a)"),
        ("never heard of", running(0, PREFETCH, AHEAD, AHEAD, None), 3600, "stop: server 2 silent in prefetch for 3600 s"),
        ("may be silent", running(1, DEBS, READY, READY, BEHIND, over=LENIENT), 3600, "leave out 2 silent in debs for 3600 s"),
        ("who is done may be silent", running(1, DEBS, READY, READY, READY), 99_999, "phase 1.3"),
        ("waiting does not count", running(1, DEBS, READY, READY, WAITS), 99_999, "wait: waiting for server 2 in debs"),
        ("waiting of the dead does", running(1, DEBS, READY, READY, WAITS, dead=(2,)), 3600, "stop: server 2 silent in debs for 3600 s"),
        ("waiting in another rollout does", running(1, DEBS, READY, READY, replace(WAITS, rollout="x")), 3600, "stop: server 2 silent in debs for 3600 s"),
        ("the next timeout is of who is at work", running(1, DEBS, READY, BEHIND, WAITS), 600, "wait 3000 s: waiting for server 1, 2 in debs"),
        ("removed", replace(running(1, DEBS, READY, READY, BEHIND), servers=frozenset({0, 1})), 0, "leave out 2 removed from the fleet"),
        ("removed and added again", replace(running(1, DEBS, READY, READY, None, over=replace(rollout(), opened=44)), added={2: 45}), 0, "leave out 2 removed from the fleet and added again"),
        ("added again, and its new failure is none", replace(running(1, DEBS, READY, READY, BROKEN, over=replace(rollout(), opened=44)), added={2: 45}), 0, "leave out 2 removed from the fleet and added again"),
        ("added again and disabled", replace(running(1, DEBS, READY, READY, None, over=replace(rollout(), opened=44)), added={2: 45}, disabled={2: ANN}), 0, "leave out 2 removed from the fleet and added again"),
        ("registered before", replace(running(1, DEBS, READY, READY, BEHIND, over=replace(rollout(), opened=44)), added={0: 1, 1: 2, 2: 44}), 3600, "stop: server 2 silent in debs for 3600 s"),
        ("opened nobody knows when", replace(running(1, DEBS, READY, READY, BEHIND), added={2: 45}), 0, "wait 3600 s: waiting for server 2 in debs"),
        ("removed ones and a failure within the budget", replace(running(1, DEBS, READY, BROKEN, None, over=replace(LENIENT, opened=44)), added={2: 45}), 0, "leave out 1 failed: debs:deb/a:change: dpkg failed; 2 removed from the fleet and added again"),
        ("removed, and its failure is none", replace(running(1, DEBS, READY, READY, BROKEN), servers=frozenset({0, 1})), 0, "leave out 2 removed from the fleet"),
        ("disabled", replace(running(1, DEBS, READY, READY, BEHIND), disabled={2: ANN}), 0, "leave out 2 disabled by ann"),
        ("disabled and silent", replace(running(1, DEBS, READY, READY, BEHIND), disabled={2: ANN}), 3600, "leave out 2 disabled by ann"),
        ("one disabled, one failed", replace(running(1, DEBS, READY, BROKEN, BEHIND, over=LENIENT), disabled={2: ANN}), 0, "leave out 1 failed: debs:deb/a:change: dpkg failed; 2 disabled by ann"),
        ("a server was added", replace(running(1, DEBS, READY, READY, READY), servers=frozenset({0, 1, 2, 3})), 0, "phase 1.3"),
    ],
    ids=case_only,
)  # fmt: skip
def test_who_is_left_out_and_when_the_rollout_stops(
    case: str, fleet: Fleet, after: float, expected: str
) -> None:
    assert led(fleet, after=after) == expected


def test_any_sign_of_life_begins_the_time_anew() -> None:
    fleet = running(1, DEBS, READY, READY, BEHIND)
    seen = watch(Seen(), fleet, now())
    heard = replace(fleet, statuses={**fleet.statuses, 2: replace(BEHIND, mod_revision=61)})
    seen = watch(seen, heard, now(3000))
    seen = watch(seen, heard, now(3600))
    assert text(lead(desired(), heard, seen, now(3600))) == "wait 3000 s: waiting for server 2 in debs"
    assert text(lead(desired(), heard, seen, now(6600))).startswith("stop: server 2 silent")


def test_the_time_of_a_phase_begins_when_it_opens() -> None:
    """Who was quick in the phase before has shown no sign since then: that is not held against it."""
    before = running(1, DEBS, READY, READY, BEHIND)
    seen = watch(Seen(), before, now())
    after = replace(before, phase=OpenPhase(ID, 1, DEBS + 1, mod_revision=56))
    seen = watch(seen, after, now(3000))
    assert text(lead(desired(), after, seen, now(3600))) == "wait 3000 s: waiting for server 0, 1, 2 in stop"


def test_after_waiting_for_long_a_server_has_its_whole_time() -> None:
    waiting = running(1, DEBS, READY, READY, WAITS)
    seen = watch(Seen(), waiting, now())
    seen = watch(seen, waiting, now(50_000))
    at_work = replace(waiting, statuses={**waiting.statuses, 2: replace(BEHIND, mod_revision=61)})
    seen = watch(seen, at_work, now(50_001))
    assert text(lead(desired(), at_work, seen, now(50_001))) == "wait 3600 s: waiting for server 2 in debs"


def test_a_server_that_dies_while_it_waits_is_counted_from_when_it_was_last_alive() -> None:
    alive = running(1, DEBS, READY, READY, WAITS)
    dead = running(1, DEBS, READY, READY, WAITS, dead=(2,))
    seen = watch(watch(Seen(), alive, now()), alive, now(50_000))
    seen = watch(seen, dead, now(50_100))
    assert text(lead(desired(), dead, seen, now(50_100))) == "wait 3500 s: waiting for server 2 in debs"
    assert text(lead(desired(), dead, seen, now(53_600))) == "stop: server 2 silent in debs for 3600 s"


def test_the_wall_clock_changes_nothing_in_a_running_rollout() -> None:
    fleet = running(1, DEBS, READY, READY, BEHIND)
    for jump in (-86_400.0, 86_400.0):
        seen = watch(Seen(), fleet, now())
        assert text(lead(desired(), fleet, seen, now(0, THURSDAY_NOON + jump))).startswith("wait 3600 s")


@pytest.mark.parametrize(
    "fleet",
    [
        idle(0),
        replace(running(1, DEBS, READY, READY, READY), phase=None),
        replace(running(1, DEBS, READY, READY, READY), rollout=replace(rollout(), outcome="complete")),
    ],
)
def test_nothing_is_kept_in_mind_while_no_phase_is_open(fleet: Fleet) -> None:
    assert watch(Seen({0: (1, 1.0)}, (5, 5.0), 5.0), fleet, now()) == Seen()


# --- waves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waves", "servers", "expected"),
    [
        ([], (0, 1), [(0, 1)]),
        ([WavePolicy(frozenset({0}))], (0, 1, 2), [(0,), (1, 2)]),
        ([WavePolicy(frozenset({0})), WavePolicy(frozenset({2, 1}))], (0, 1, 2, 3), [(0,), (1, 2), (3,)]),
        ([WavePolicy(frozenset({9}))], (0, 1), [(0, 1)]),
        ([WavePolicy(groups=frozenset({"boot"}))], (0, 1, 5), [(0, 1), (5,)]),
        ([WavePolicy(groups=frozenset({"default"}))], (0, 1, 5), [(5,), (0, 1)]),
        ([WavePolicy(frozenset({5}), frozenset({"boot"}))], (0, 5, 6), [(0, 5), (6,)]),
        ([WavePolicy(frozenset({0})), WavePolicy(frozenset({0, 1}))], (0, 1), [(0,), (1,)]),
    ],
)
def test_the_waves_of_a_rollout(
    waves: list[WavePolicy], servers: tuple[int, ...], expected: list[tuple[int, ...]]
) -> None:
    group = ServerGroup("boot", frozenset({0, 1}))
    wanted = Desired(Revision(NEW), groups=(group,), policy=RolloutPolicy(tuple(waves)))
    assert [wave.servers for wave in waves_of(wanted, servers)] == expected


@pytest.mark.parametrize(
    ("budget", "servers", "expected"),
    [
        (Budget(0), 100, 0),
        (Budget(2), 100, 2),
        (Budget(2), 1, 2),
        (Budget(2, percent=True), 100, 2),
        (Budget(2, percent=True), 149, 2),
        (Budget(2, percent=True), 49, 0),
        (Budget(50, percent=True), 3, 1),
    ],
)
def test_how_many_of_a_wave_may_fail(budget: Budget, servers: int, expected: int) -> None:
    wanted = Desired(Revision(NEW), policy=RolloutPolicy(max_failures=budget))
    assert [wave.max_failures for wave in waves_of(wanted, tuple(range(servers)))] == [expected]


def test_a_barrier_waits_for_its_wave_and_not_for_who_is_out() -> None:
    over = replace(TWO_WAVES, out={2: LeftOut("disabled", "disabled by ann")})
    assert participants(over, OpenPhase(ID, 0, 1)) == (0, 1)
    assert participants(over, OpenPhase(ID, 1, 2)) == (0,)
    assert participants(over, OpenPhase(ID, 2, 2)) == (1,)


@pytest.mark.parametrize(
    ("wall", "expected"),
    [
        (0.0, "1970-01-01T00:00:00.000000000Z"),
        (THURSDAY_NOON + 0.25, "2026-01-01T12:00:00.250000000Z"),
        (THURSDAY_NOON + 0.9999998, "2026-01-01T12:00:01.000000000Z"),
    ],
)
def test_a_rollouts_id_is_its_time_with_nine_digits(wall: float, expected: str) -> None:
    assert timestamp(wall) == expected
