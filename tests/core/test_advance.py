"""`advance`: what a server does next, from every state that a crash can leave; promises 3 and 5 row by row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

import pytest

from reconciler.core.advance import (
    Fetch,
    Move,
    Perform,
    Report,
    Settle,
    TurnBack,
    Wait,
    advance,
    is_closing,
    records_of,
)
from reconciler.core.artifact import OS_IMAGE, AptDeb, Artifact, Container, Image, Key, OsImage
from reconciler.core.interrupted import interrupted
from reconciler.core.plan import Plan, make_plan
from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import (
    ABORTED,
    COMPLETE,
    PHASES,
    RUNNING,
    ArtifactSet,
    Desired,
    Detail,
    Installed,
    LeftOut,
    Lock,
    Machine,
    Notice,
    Now,
    OpenPhase,
    OsDriver,
    RebootPolicy,
    Recorded,
    Revision,
    Rollout,
    Server,
    ServerGroup,
    ServerStatus,
    StepRecord,
    Strategy,
    Wave,
)
from reconciler.core.window import Window

NOON = 1_767_268_800.0  # Thursday 2026-01-01 12:00 UTC
INSIDE, OUTSIDE = Now(NOON + 60, 0.0), Now(NOON + 7200, 0.0)
WINDOW = Window(None, 12, 0, 3600.0)
RULES = RebootPolicy(windows=(WINDOW,), before=("drain",), after=("undrain",), warn=60.0)

OLDER, THIS = "2025-12-31T00:00:00.000000000Z", "2026-01-01T00:00:00.000000000Z"
ROLLOUT = Rollout("b" * 40, (0, 1), THIS, (Wave((0, 1)),), mod_revision=50)
PREFETCH, DEBS, STOP, CONTAINERS, OS, REBOOT, VERIFY = range(1, 8)
HOLDER = Holder("m0", "agent", 0, mod_revision=40)
ANN = Notice("ann", "mending", "")


# --- the words of the tables ----------------------------------------------------------------------------------------


def wanted(*artifacts: Artifact, rules: RebootPolicy = RULES, os_reboots: bool = True) -> Desired:
    group = ServerGroup("boot", frozenset({0, 1}), OsDriver("command", reboot=os_reboots), rules)
    return Desired(Revision(ROLLOUT.version), (ArtifactSet(artifacts),), (group,))


def had(*artifacts: Artifact) -> Recorded:
    return {
        artifact.key: Installed(artifact.key, artifact.version, Detail(artifact, artifact.version, "", ""))
        for artifact in artifacts
    }


def app(tag: str, update: str = "rolling", **fields: object) -> Image:
    return Image("app", "registry.example/app", tag, container=Container(update=update, **fields))  # type: ignore[arg-type]  # rows give plain text


def records(
    *lines: str, rollout: str = THIS, chain: str = "reboot:host", boot: str = "b1"
) -> dict[str, StepRecord]:
    """Step records from lines such as `acquire done` or `reboot running b1`; each is written after the one before."""
    found: dict[str, StepRecord] = {}
    for number, line in enumerate(lines, 10):
        tail, state, *rest = line.split()
        id = tail if tail.count(":") > 1 and not tail.startswith("hook:") else f"{chain}:{tail}"
        found[id] = StepRecord(id, rollout, state, boot_id=rest[0] if rest else boot, mod_revision=number)  # type: ignore[arg-type]  # rows give plain text
    return found


def server(
    phase: int,
    steps: dict[str, StepRecord] | None = None,
    recorded: Recorded | None = None,
    *,
    boot: str = "b1",
    holds: bool = True,
    rollout: Rollout | None = ROLLOUT,
    sentinel: bool = False,
) -> Server:
    """Server 0, in this phase, which is open for it (wave 0 in prefetch), with the slot unless `holds` is False."""
    going = rollout is not None and not rollout.stop and rollout.unfinished
    return Server(
        lrn=0,
        machine_id="m0",
        boot_id=boot,
        machine=Machine(0, "m0"),
        recorded=recorded or {},
        rollout=rollout,
        phase=OpenPhase(THIS, 0 if phase == PREFETCH else 1, phase, 55) if going else None,
        status=ServerStatus(ROLLOUT.version, THIS, phase, mod_revision=60) if rollout else None,
        steps=steps or {},
        lock=Lock("default", Semaphore(1, ("m0",) if holds else ()), (HOLDER,) if holds else ()),
        reboot_required=sentinel,
    )


def plan_of(desired: Desired, one: Server) -> Plan:
    """The plan as the agent makes it."""
    begun = frozenset(records_of(one, one.rollout.id)) if one.rollout else frozenset[str]()
    return make_plan(desired, one.recorded, one.lrn, interrupted=interrupted(one), begun=begun)


def text(move: Move) -> str:
    """A move in a few words; a closing step has a mark of exclamation."""
    match move:
        case Perform(step, rollout, closing):
            return f"{step.id}{'!' if closing else ''}{'' if rollout == THIS else ' older'}"
        case Fetch(steps, _):
            return "fetch " + " ".join(step.subject.name for step in steps if step.subject)
        case TurnBack(rollout, _, reason):
            return f"turn back{'' if rollout == THIS else ' older'}: {reason}"
        case Settle(record):
            return f"settle {record.id}{'' if record.rollout == THIS else ' older'}"
        case Report(status):
            condition = {RUNNING: "", ABORTED: " aborted", COMPLETE: " complete"}[status.cond]
            return f"report {status.step}{condition}{f' [{status.waiting}]' if status.waiting else ''}: {status.message}"
        case Wait(reason, waiting, seconds):
            return f"wait{f' {seconds:g} s' if seconds else ''}{f' [{waiting}]' if waiting else ''}: {reason}"
        case _:
            assert_never(move)


def moves(desired: Desired, one: Server, now: Now = INSIDE) -> str:
    return text(advance(plan_of(desired, one), one, now))


# --- entering, waiting, leaving -------------------------------------------------------------------------------------

NEW_DEB, OLD_DEB = AptDeb("a", "2"), AptDeb("a", "1")
GOING = server(DEBS, recorded=had(OLD_DEB))
STOPPED = replace(ROLLOUT, stop=True, stopped_by="ann")


@pytest.mark.parametrize(
    ("case", "one", "expected"),
    [
        ("no rollout", replace(GOING, rollout=None), "wait: there is no rollout"),
        ("a new rollout", replace(GOING, status=None), "report 1: entered the rollout"),
        ("a status of an older one", replace(GOING, status=ServerStatus("a", OLDER, 7, COMPLETE)), "report 1: entered the rollout"),
        ("its phase is open", GOING, "debs:deb/a:change"),
        ("ahead of the others", replace(GOING, phase=OpenPhase(THIS, 0, 1)), "wait: waiting for the other servers before debs"),
        ("done with what is open", replace(GOING, status=ServerStatus("b", THIS, STOP)), "wait: waiting for the other servers before stop"),
        ("another wave's turn", replace(GOING, rollout=replace(ROLLOUT, waves=(Wave((1,)), Wave((0,))))), "wait: waiting for the other servers before debs"),
        ("prefetch is for every wave", replace(server(PREFETCH, recorded=had(OLD_DEB)), rollout=replace(ROLLOUT, waves=(Wave((1,)), Wave((0,))))), "fetch a"),
        ("complete", replace(GOING, status=ServerStatus("b", THIS, 7, COMPLETE)), "wait: this server is complete"),
        ("failed", replace(GOING, status=ServerStatus("b", THIS, 2, ABORTED, "a: broken")), "wait: failed in this rollout: a: broken"),
        ("stopped by a person", replace(GOING, rollout=STOPPED), "wait: the rollout was stopped by ann"),
        ("stopped by nobody known", replace(GOING, rollout=replace(STOPPED, stopped_by=None)), "wait: the rollout was stopped by somebody"),
        ("stopped, and the phase was not seen to close", replace(GOING, rollout=STOPPED, status=None), "wait: the rollout was stopped by ann"),
        ("a step of another server closed the phase", replace(GOING, phase=None), "wait: the rollout has failed: no phase is open"),
        ("the phase is an older rollout's", replace(GOING, phase=OpenPhase(OLDER, 1, DEBS)), "wait: the rollout has failed: no phase is open"),
        ("finished", replace(GOING, rollout=replace(ROLLOUT, outcome="complete")), "wait: there is no rollout: the last one has finished"),
        ("added later", replace(GOING, rollout=replace(ROLLOUT, servers=(1,), waves=(Wave((1,)),))), "wait: this server was added after the rollout opened: it waits for the next one"),
        ("left out", replace(GOING, rollout=replace(ROLLOUT, out={0: LeftOut("silent", "silent in debs")})), "wait: left out of this rollout: silent in debs"),
        ("removed and added again meanwhile", replace(GOING, added=45, rollout=replace(ROLLOUT, opened=44)), "wait: this server was added again after the rollout opened: it waits for the next one"),
        ("added just before", replace(GOING, added=43, rollout=replace(ROLLOUT, opened=44)), "debs:deb/a:change"),
        ("added nobody knows when", replace(GOING, added=45), "debs:deb/a:change"),
        ("another one is left out", replace(GOING, rollout=replace(ROLLOUT, out={1: LeftOut("silent", "silent in debs")})), "debs:deb/a:change"),
        ("disabled", replace(GOING, disabled=ANN), "wait: disabled by ann: mending"),
        ("removed", replace(GOING, machine=Machine(0, "m0", removed=True)), "wait: this server was removed: `reconcile server add` brings it back"),
        ("a newer program's rollout", replace(GOING, rollout=replace(ROLLOUT, plan_format=2)), "wait: the rollout's plan format 2 is newer than this program's 1"),
        ("Neco at work", replace(GOING, neco_at_work="/neco/leader/worker/x"), "wait: a Neco updater or worker is at work (/neco/leader/worker/x): stop it, then `reconcile adopt`"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 and ":" not in value else "",
)  # fmt: skip
def test_whether_a_server_goes_on(case: str, one: Server, expected: str) -> None:
    assert moves(wanted(NEW_DEB), one) == expected


def test_entering_keeps_what_a_newer_program_wrote_and_the_revision_that_guards_the_write() -> None:
    old = ServerStatus("a", OLDER, 7, COMPLETE, "complete", "slot", mod_revision=33, extra={"new": 1})
    move = advance(Plan(0, "boot", 1), replace(GOING, status=old), INSIDE)
    assert move == Report(
        ServerStatus(ROLLOUT.version, THIS, 1, RUNNING, "entered the rollout", None, 33, {"new": 1})
    )


@pytest.mark.parametrize(
    ("case", "phase", "steps", "expected"),
    [
        ("first", DEBS, [], "debs:deb/a:change"),
        ("crashed in the middle", DEBS, ["debs:deb/a:change running"], "debs:deb/a:change"),
        ("the next one", DEBS, ["debs:deb/a:change done"], "debs:deb/b:change"),
        ("the phase is done", DEBS, ["debs:deb/a:change done", "debs:deb/b:change done"], "report 3: debs is done"),
        ("failed", DEBS, ["debs:deb/a:change done", "debs:deb/b:change failed"], "report 2 aborted: debs:deb/b:change: "),
        ("a phase without steps", STOP, [], "report 4: stop is done"),
        ("nothing asks for a reboot", REBOOT, [], "report 7: reboot is done"),
        ("fetched side by side", PREFETCH, [], "fetch app a b"),
        ("what is left to fetch", PREFETCH, ["prefetch:deb/a:fetch done", "prefetch:deb/b:fetch running"], "fetch app b"),
        ("one cannot be fetched", PREFETCH, ["prefetch:deb/b:fetch failed"], "report 1 aborted: prefetch:deb/b:fetch: "),
        ("all is fetched", PREFETCH, ["prefetch:image/app:fetch done", "prefetch:deb/a:fetch done", "prefetch:deb/b:fetch done"], "report 2: prefetch is done"),
        ("verify", VERIFY, [], "verify:host:health"),
        ("verify is no closing step", VERIFY, ["verify:host:health running"], "verify:host:health"),
        ("the end", VERIFY, ["verify:host:health done"], "report 7 complete: complete"),
    ],
    ids=lambda value: value if isinstance(value, str) and ":" not in value and value[:6] != "fetch " else "",
)  # fmt: skip
def test_step_after_step(case: str, phase: int, steps: list[str], expected: str) -> None:
    desired = wanted(app("1", "parallel"), NEW_DEB, AptDeb("b", "1"))
    assert moves(desired, server(phase, records(*steps), had(OLD_DEB))) == expected


def test_an_older_rollouts_records_count_for_nothing_in_this_one() -> None:
    done = records("debs:deb/a:change done", rollout=OLDER)
    assert moves(wanted(NEW_DEB), server(DEBS, done, had(OLD_DEB))) == "debs:deb/a:change"


def test_a_failure_says_which_step_and_why() -> None:
    failed = records("debs:deb/a:change failed")
    failed = {id: replace(record, message="dpkg: no space") for id, record in failed.items()}
    expected = "report 2 aborted: debs:deb/a:change: dpkg: no space"
    assert moves(wanted(NEW_DEB), server(DEBS, failed, had(OLD_DEB))) == expected


# --- waiting, said and unsaid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "now", "steps", "holds", "expected"),
    [
        (None, OUTSIDE, [], False, "report 6 [window]: waiting for the window"),
        ("window", OUTSIDE, [], False, "wait 79200 s [window]: waiting for the window"),
        ("slot", OUTSIDE, [], False, "report 6 [window]: waiting for the window"),
        ("window", INSIDE, [], False, "report 6: reboot:host:acquire"),
        (None, INSIDE, [], False, "reboot:host:acquire"),
        ("slot", INSIDE, ["acquire running"], False, "reboot:host:acquire"),
        ("slot", OUTSIDE, ["acquire running"], False, "turn back: the window has closed"),
        ("slot", INSIDE, ["acquire done"], True, "report 6: reboot:host:hook:before:0"),
        ("window", INSIDE, ["acquire done"], True, "report 6: reboot:host:hook:before:0"),
    ],
)
def test_waiting_is_said_and_taken_back_before_anything_is_done(
    said: str | None, now: Now, steps: list[str], holds: bool, expected: str
) -> None:
    """The leader neither counts the time of who waits nor minds replacing its rollout."""
    one = server(REBOOT, records(*steps), sentinel=True, holds=holds)
    status = ServerStatus(ROLLOUT.version, THIS, REBOOT, waiting=said)  # type: ignore[arg-type]  # rows give plain text
    assert moves(wanted(), replace(one, status=status), now) == expected


def test_who_waits_for_the_others_no_longer_waits_for_a_window() -> None:
    status = ServerStatus(ROLLOUT.version, THIS, DEBS, waiting="window")
    one = replace(GOING, phase=OpenPhase(THIS, 0, 1), status=status)
    assert moves(wanted(NEW_DEB), one) == "report 2: waiting for the other servers before debs"


# --- whether a reboot is asked for ----------------------------------------------------------------------------------

OS1, OS2 = OsImage("stable", "1"), OsImage("stable", "2")
STAGED = "os-image:os-image:change done b1"
NO_REBOOT = "report 7: reboot is done"


@pytest.mark.parametrize(
    ("case", "os", "recorded", "steps", "boot", "sentinel", "strategy", "os_reboots", "expected"),
    [
        ("nothing", None, None, [], "b1", False, "etcd-lock", True, NO_REBOOT),
        ("the sentinel", None, None, [], "b1", True, "etcd-lock", True, "reboot:host:acquire"),
        ("the sentinel, without a lock", None, None, [], "b1", True, "reboot", True, "reboot:host:hook:before:0"),
        ("the sentinel, off", None, None, [], "b1", True, "off", True, NO_REBOOT),
        ("a new OS", OS2, OS1, [STAGED], "b1", False, "etcd-lock", True, "reboot:host:acquire"),
        ("a first OS", OS2, None, [STAGED], "b1", False, "etcd-lock", True, "reboot:host:acquire"),
        ("a new OS, off", OS2, OS1, [STAGED], "b1", False, "off", True, NO_REBOOT),
        ("a new OS that needs none", OS2, OS1, [STAGED], "b1", False, "etcd-lock", False, NO_REBOOT),
        ("another boot before the reboot's turn", OS2, OS1, [STAGED], "b2", False, "etcd-lock", True, "reboot:host:acquire"),
        ("the OS is as recorded", OS2, OS2, [], "b1", False, "etcd-lock", True, NO_REBOOT),
        ("back to the recorded OS, in this boot", OS1, OS1, [STAGED], "b1", False, "etcd-lock", True, "reboot:host:acquire"),
        ("back to the recorded OS, another boot", OS1, OS1, [STAGED], "b2", False, "etcd-lock", True, NO_REBOOT),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value and ":" not in value else "",
)  # fmt: skip
def test_whether_a_server_reboots(
    case: str,
    os: OsImage | None,
    recorded: OsImage | None,
    steps: list[str],
    boot: str,
    sentinel: bool,
    strategy: Strategy,
    os_reboots: bool,
    expected: str,
) -> None:
    desired = wanted(*([os] if os else []), rules=replace(RULES, strategy=strategy), os_reboots=os_reboots)
    one = server(
        REBOOT, records(*steps), had(*([recorded] if recorded else [])), boot=boot, sentinel=sentinel
    )
    assert moves(desired, replace(one, lock=None)) == expected


# --- the reboot, from every state that a crash can leave ------------------------------------------------------------

CHAIN = ("acquire", "hook:before:0", "warn", "reboot", "hook:after:0", "health", "release")


def progress(
    at: str, state: str, *, chain: str = "reboot:host", rollout: str = THIS
) -> dict[str, StepRecord]:
    """The records of a chain that has come to step `at`. What comes after the reboot was begun in boot b2."""
    order = {"reboot:host": CHAIN}.get(chain, ("acquire", "change", "health", "release"))
    steps = order[: order.index(at) + 1]
    rebooted = steps.index("reboot") if "reboot" in steps else len(steps)
    lines = [
        f"{step} {state if step == at else 'done'} {'b2' if number > rebooted else 'b1'}"
        for number, step in enumerate(steps)
    ]
    return records(*lines, chain=chain, rollout=rollout)


BACK, GIVE = "after!", "back"
REBOOT_TABLE = [
    #  step            state      same boot   other boot  window closed  slot lost   stopped     older
    ("acquire",       "running", "acquire",  "acquire",  GIVE,          "acquire",  GIVE,       GIVE),
    ("acquire",       "done",    "before",   "before",   GIVE,          GIVE,       GIVE,       GIVE),
    ("acquire",       "failed",  "aborted",  "aborted",  "aborted",     "aborted",  GIVE,       GIVE),
    ("hook:before:0", "running", "before",   "before",   BACK,          BACK,       BACK,       BACK),
    ("hook:before:0", "done",    "warn",     "warn",     BACK,          BACK,       BACK,       BACK),
    ("hook:before:0", "failed",  "aborted",  "aborted",  "aborted",     "aborted",  BACK,       BACK),
    ("warn",          "running", "warn",     "warn",     BACK,          BACK,       BACK,       BACK),
    ("warn",          "done",    "reboot",   "reboot",   BACK,          BACK,       BACK,       BACK),
    ("warn",          "failed",  "aborted",  "aborted",  "aborted",     "aborted",  BACK,       BACK),
    ("reboot",        "running", "reboot",   "reboot",   BACK,          BACK,       BACK,       BACK),
    ("reboot",        "done",    "after!",   "after!",   "after!",      "after!",   "after!",   "after!"),
    ("reboot",        "failed",  "aborted",  "aborted",  "aborted",     "aborted",  "holds",    "enters"),
    ("hook:after:0",  "running", "after!",   "after!",   "after!",      "after!",   "after!",   "after!"),
    ("hook:after:0",  "done",    "health!",  "health!",  "health!",     "health!",  "health!",  "health!"),
    ("hook:after:0",  "failed",  "aborted",  "aborted",  "aborted",     "aborted",  "holds",    "after!"),
    ("health",        "running", "health!",  "health!",  "health!",     "health!",  "health!",  "health!"),
    ("health",        "done",    "release!", "release!", "release!",    "release!", "release!", "release!"),
    ("health",        "failed",  "aborted",  "aborted",  "aborted",     "aborted",  "holds",    "health!"),
    ("release",       "running", "release!", "release!", "release!",    "release!", "release!", "release!"),
    ("release",       "done",    "next",     "next",     "next",        "next",     "holds",    "enters"),
    ("release",       "failed",  "aborted",  "aborted",  "aborted",     "aborted",  "holds",    "release!"),
]  # fmt: skip
SITUATIONS = ("same boot", "other boot", "window closed", "slot lost", "stopped", "older")


def in_short(move: Move) -> str:
    """A move in one word of `REBOOT_TABLE`."""
    match move:
        case Perform(step, _, closing):
            return f"{step.list or step.effect}{'!' if closing else ''}"
        case TurnBack():
            return GIVE
        case Settle(record):
            return f"settle {record.id.split(':')[2]}"
        case Report(status) if status.cond == ABORTED:
            return "aborted"
        case Report(status):
            return "enters" if status.step == 1 else "next"
        case Wait():
            return "holds"
        case _:
            return text(move)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("row", REBOOT_TABLE, ids=lambda row: f"{row[0]} {row[1]}")
def test_the_reboot_from_every_crash_state(row: tuple[str, ...], situation: str) -> None:
    at, state, *cells = row
    steps = progress(at, state, rollout=OLDER if situation == "older" else THIS)
    one = server(REBOOT, steps, sentinel=True, boot="b2" if CHAIN.index(at) > CHAIN.index("reboot") else "b1")
    now = INSIDE
    match situation:
        case "other boot":
            one = replace(one, boot_id="b9")
        case "window closed":
            now = OUTSIDE
        case "slot lost":
            one = replace(one, lock=Lock("default"))
        case "stopped":
            one = replace(one, rollout=STOPPED, phase=None)
        case "older":
            one = replace(one, status=None)
    assert in_short(advance(plan_of(wanted(), one), one, now)) == cells[SITUATIONS.index(situation)]


@pytest.mark.parametrize(
    ("case", "changed", "expected"),
    [
        ("window closed", {}, "reboot:host:reboot"),
        ("stopped", {"rollout": STOPPED, "phase": None}, "reboot:host:reboot!"),
        ("finished", {"rollout": replace(ROLLOUT, outcome="complete"), "phase": None}, "reboot:host:reboot!"),
        ("no phase", {"phase": None}, "reboot:host:reboot!"),
        (
            "left out",
            {"rollout": replace(ROLLOUT, out={0: LeftOut("silent", "silent")})},
            "reboot:host:reboot!",
        ),
        ("disabled", {"disabled": ANN}, "reboot:host:reboot!"),
        ("aborted", {"status": ServerStatus("b", THIS, REBOOT, ABORTED)}, "reboot:host:reboot!"),
        ("slot lost", {"lock": None}, "reboot:host:reboot"),
    ],
    ids=lambda value: value if isinstance(value, str) and ":" not in value else "",
)
def test_a_server_that_has_booted_comes_back_whatever_has_happened_meanwhile(
    case: str, changed: dict[str, object], expected: str
) -> None:
    """Another boot id than when the step began is the proof, whoever caused it (promise 3)."""
    one = server(REBOOT, progress("reboot", "running"), boot="b2", sentinel=True)
    assert moves(wanted(), replace(one, **changed), OUTSIDE) == expected  # type: ignore[arg-type]  # rows name fields


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["acquire done", "hook:before:0 done", "hook:after:0 running"], "reboot:host:hook:after:0!"),
        (["acquire done", "hook:before:0 done", "hook:after:0 done"], "turn back: the slot is lost"),
        (["acquire done", "hook:before:0 done", "warn done", "reboot running", "hook:after:0 done"], "turn back: the slot is lost"),
        (["acquire done", "hook:before:0 done", "hook:after:0 failed"], "report 6 aborted: reboot:host:hook:after:0: "),
    ],
)  # fmt: skip
def test_the_way_back_is_gone_to_its_end_though_the_window_opens_again(
    steps: list[str], expected: str
) -> None:
    assert moves(wanted(), server(REBOOT, records(*steps), sentinel=True), INSIDE) == expected


def test_turning_back_names_the_records_from_acquire_on_and_nothing_else() -> None:
    steps = records(
        "debs:deb/a:change done", "acquire done", "hook:before:0 done", "warn done", "hook:after:0 done"
    ) | records("containers:image/app:acquire done", "containers:image/app:release done")
    one = server(REBOOT, steps, sentinel=True)
    chain = ("acquire", "hook:after:0", "hook:before:0", "warn")
    expected = TurnBack(THIS, tuple(f"reboot:host:{step}" for step in chain), "the window has closed")
    assert advance(plan_of(wanted(), one), one, OUTSIDE) == expected


def test_without_before_hooks_turning_back_runs_no_after_hook() -> None:
    desired = wanted(rules=replace(RULES, before=()))
    one = server(REBOOT, records("acquire done", "warn done"), sentinel=True)
    assert moves(desired, one, OUTSIDE) == "turn back: the window has closed"


def test_every_after_hook_runs_on_the_way_back() -> None:
    desired = wanted(rules=replace(RULES, after=("undrain", "announce")))
    steps = ["acquire done", "hook:before:0 running", "hook:after:0 done"]
    assert moves(desired, server(REBOOT, records(*steps)), OUTSIDE) == "reboot:host:hook:after:1!"
    stopped = server(REBOOT, records(*steps), rollout=STOPPED)
    assert moves(desired, stopped) == "reboot:host:hook:after:1!"


@pytest.mark.parametrize("holder", [replace(HOLDER, source="operator"), replace(HOLDER, lrn=1), replace(HOLDER, machine_id="m1")])  # fmt: skip
def test_another_ones_slot_is_not_mine(holder: Holder) -> None:
    one = server(REBOOT, progress("warn", "done"), sentinel=True)
    one = replace(one, lock=Lock("default", Semaphore(1, (holder.machine_id,)), (holder,)))
    assert moves(wanted(), one) == "reboot:host:hook:after:0!"


def test_a_failed_way_back_keeps_the_slot_and_does_not_run_the_hook_for_ever() -> None:
    steps = records("acquire done", "hook:before:0 done", "hook:after:0 failed")
    aborted = ServerStatus(ROLLOUT.version, THIS, REBOOT, ABORTED, "undrain failed")
    expected = "wait: failed in this rollout: undrain failed"
    assert moves(wanted(), replace(server(REBOOT, steps), status=aborted)) == expected
    assert moves(wanted(), server(REBOOT, steps, rollout=STOPPED)) == "wait: the rollout was stopped by ann"


# --- strategy reboot: the same without a slot -----------------------------------------------------------------------

ALONE = replace(RULES, strategy="reboot")


@pytest.mark.parametrize(
    ("steps", "now", "expected"),
    [
        ([], INSIDE, "reboot:host:hook:before:0"),
        ([], OUTSIDE, "report 6 [window]: waiting for the window"),
        (["hook:before:0 done"], INSIDE, "reboot:host:warn"),
        (["hook:before:0 running"], OUTSIDE, "reboot:host:hook:after:0!"),
        (["hook:before:0 done", "warn done"], OUTSIDE, "reboot:host:hook:after:0!"),
        (["hook:before:0 done", "warn done", "hook:after:0 done"], OUTSIDE, "turn back: the window has closed"),
        (["hook:before:0 done", "warn done", "reboot running b0"], OUTSIDE, "reboot:host:reboot"),
        (["hook:before:0 done", "warn done", "reboot done b0"], OUTSIDE, "reboot:host:hook:after:0!"),
        (["hook:before:0 done", "warn done", "reboot done b0", "hook:after:0 done"], OUTSIDE, "reboot:host:health!"),
    ],
)  # fmt: skip
def test_a_reboot_without_a_slot_looks_at_the_window_as_well(
    steps: list[str], now: Now, expected: str
) -> None:
    one = server(REBOOT, records(*steps), sentinel=True, holds=False)
    assert moves(wanted(rules=ALONE), one, now) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["hook:before:0 running"], "reboot:host:hook:after:0!"),
        (["hook:before:0 done", "hook:after:0 done"], "turn back: the rollout does not go on"),
        (["hook:before:0 done", "warn done", "reboot running b0"], "reboot:host:reboot!"),
        (["hook:before:0 done", "warn done", "reboot done b0", "hook:after:0 done"], "reboot:host:health!"),
        (["hook:before:0 done", "reboot done b0", "hook:after:0 done", "health done"], "wait: the rollout was stopped by ann"),
        (["hook:before:0 done", "reboot done b0", "hook:after:0 done", "health failed"], "wait: the rollout was stopped by ann"),
    ],
)  # fmt: skip
def test_a_stopped_reboot_without_a_slot_is_undone_too(steps: list[str], expected: str) -> None:
    one = server(REBOOT, records(*steps), sentinel=True, holds=False, rollout=STOPPED)
    assert moves(wanted(rules=ALONE), one) == expected


# --- a rolling restart ----------------------------------------------------------------------------------------------

ROLLING = "containers:image/app"
ROLLING_TABLE = [
    #  step      state      as it goes  window closed  slot lost   stopped           older
    ("acquire", "running", "acquire",  GIVE,          "acquire",  GIVE,             GIVE),
    ("acquire", "done",    "change",   GIVE,          GIVE,       GIVE,             GIVE),
    ("acquire", "failed",  "aborted",  "aborted",     "aborted",  GIVE,             GIVE),
    ("change",  "running", "change",   "change",      "aborted",  "settle change",  "settle change"),
    ("change",  "done",    "health!",  "health!",     "health!",  "health!",        "health!"),
    ("change",  "failed",  "aborted",  "aborted",     "aborted",  "health!",        "health!"),
    ("health",  "running", "health!",  "health!",     "health!",  "health!",        "health!"),
    ("health",  "done",    "release!", "release!",    "release!", "release!",       "release!"),
    ("health",  "failed",  "aborted",  "aborted",     "aborted",  "holds",          "health!"),
    ("release", "running", "release!", "release!",    "release!", "release!",       "release!"),
    ("release", "done",    "next",     "next",        "next",     "holds",          "enters"),
    ("release", "failed",  "aborted",  "aborted",     "aborted",  "holds",          "release!"),
]  # fmt: skip
ROLLING_SITUATIONS = ("as it goes", "window closed", "slot lost", "stopped", "older")


@pytest.mark.parametrize("situation", ROLLING_SITUATIONS)
@pytest.mark.parametrize("row", ROLLING_TABLE, ids=lambda row: f"{row[0]} {row[1]}")
def test_a_rolling_restart_from_every_crash_state(row: tuple[str, ...], situation: str) -> None:
    at, state, *cells = row
    steps = progress(at, state, chain=ROLLING, rollout=OLDER if situation == "older" else THIS)
    one = server(CONTAINERS, steps, had(app("1")))
    now = INSIDE
    match situation:
        case "window closed":
            now = OUTSIDE
        case "slot lost":
            one = replace(one, lock=Lock("default"))
        case "stopped":
            one = replace(one, rollout=STOPPED, phase=None)
        case "older":
            one = replace(one, status=None)
    assert (
        in_short(advance(plan_of(wanted(app("2")), one), one, now))
        == cells[ROLLING_SITUATIONS.index(situation)]
    )


def test_a_rolling_restart_waits_for_the_window() -> None:
    one = server(CONTAINERS, {}, had(app("1")), holds=False)
    assert moves(wanted(app("2")), one, OUTSIDE) == "report 4 [window]: waiting for the window"
    assert moves(wanted(app("2")), one) == f"{ROLLING}:acquire"
    anytime = wanted(app("2", "parallel"))
    assert moves(anytime, server(CONTAINERS, {}, had(app("1", "parallel"))), OUTSIDE) == f"{ROLLING}:change"


def test_a_failed_change_gives_the_slot_back_once_the_container_answers() -> None:
    """A rollout that stops gives back the slots of servers that are not down (promise 3)."""
    aborted = ServerStatus(ROLLOUT.version, THIS, CONTAINERS, ABORTED, "broken")
    for lines, expected in [
        (["acquire done", "change failed"], f"{ROLLING}:health!"),
        (["acquire done", "change failed", "health done"], f"{ROLLING}:release!"),
        (["acquire done", "change failed", "health failed"], "wait: failed in this rollout: broken"),
        (
            ["acquire done", "change failed", "health done", "release done"],
            "wait: failed in this rollout: broken",
        ),
    ]:
        one = replace(server(CONTAINERS, records(*lines, chain=ROLLING), had(app("1"))), status=aborted)
        assert moves(wanted(app("2")), one) == expected


@pytest.mark.parametrize("holds", [True, False])
def test_whose_slot_was_released_while_it_is_down_goes_no_further_but_up(holds: bool) -> None:
    desired = wanted(app("2", started=("unseal",)))
    steps = records("acquire done", "change done", chain=ROLLING)
    one = server(CONTAINERS, steps, had(app("2", started=("unseal",))), holds=holds)
    assert moves(desired, one) == f"{ROLLING}:hook:started:0!"
    steps |= records("hook:started:0 done", chain=ROLLING)
    assert moves(desired, replace(one, steps=steps)) == f"{ROLLING}:health!"


def brings_up(move: Move) -> str:
    """A move in short, and which hook."""
    if isinstance(move, Perform) and move.step.list is not None:
        return f"{move.step.id.removeprefix(f'{ROLLING}:')}{'!' if move.closing else ''}"
    return in_short(move)


UNSEALED = app("2", started=("unseal", "warm"))
STARTED_TABLE = [
    #  the chain's records                                                                      stopped                older
    (["acquire done", "change done"],                                                           "hook:started:0!",     "hook:started:0!"),
    (["acquire done", "change done", "hook:started:0 running"],                                 "hook:started:0!",     "hook:started:0!"),
    (["acquire done", "change done", "hook:started:0 done"],                                    "hook:started:1!",     "hook:started:1!"),
    (["acquire done", "change done", "hook:started:0 done", "hook:started:1 done"],             "health!",             "health!"),
    (["acquire done", "change done", "hook:started:0 failed"],                                  "holds",               "hook:started:0!"),
    (["acquire done", "change failed"],                                                         "health!",             "hook:started:0!"),
    (["acquire done"],                                                                          GIVE,                  GIVE),
]  # fmt: skip


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("steps", "stopped", "later"), STARTED_TABLE)
def test_a_server_that_is_brought_back_up_has_run_its_started_hooks(
    steps: list[str], stopped: str, later: str, older: bool
) -> None:
    """After a stop, in a newer rollout, after a repair that was killed: with the hooks of what is recorded."""
    rollout = OLDER if older else THIS
    one = server(CONTAINERS, records(*steps, chain=ROLLING, rollout=rollout), had(UNSEALED))
    one = replace(one, status=None) if older else replace(one, rollout=STOPPED, phase=None)
    desired = wanted(app("3", started=("other",))) if older else wanted(UNSEALED)
    assert brings_up(advance(plan_of(desired, one), one, INSIDE)) == (later if older else stopped)


@pytest.mark.parametrize(
    ("steps", "target", "expected"),
    [
        (["change done"], "2", "hook:started:0!"),
        (["change done", "hook:started:0 done"], "2", "hook:started:1!"),
        (["change done", "hook:started:0 done", "hook:started:1 done"], "2", "holds"),
        (["change done", "hook:started:0 failed"], "2", "holds"),
        (["change done"], "", "holds"),  # found on the host, and only recorded: nothing was started
        (["change failed"], "2", "holds"),
    ],
)
def test_without_a_slot_too(steps: list[str], target: str, expected: str) -> None:
    beside = replace(UNSEALED, container=replace(UNSEALED.container or Container(), update="parallel"))
    found = {
        id: replace(record, target=target if id.endswith(":change") else "")
        for id, record in records(*steps, chain=ROLLING).items()
    }
    one = replace(server(CONTAINERS, found, had(beside), holds=False), rollout=STOPPED, phase=None)
    assert brings_up(advance(plan_of(wanted(beside), one), one, INSIDE)) == expected


# --- an older rollout's remains -------------------------------------------------------------------------------------


def test_an_older_container_is_looked_at_as_it_is_recorded_and_not_as_the_new_plan_wants_it() -> None:
    steps = records("acquire done", "change done", chain=ROLLING, rollout=OLDER)
    one = server(CONTAINERS, steps, had(app("2")))
    move = advance(plan_of(wanted(app("3")), one), one, INSIDE)
    assert isinstance(move, Perform)
    assert (move.step.id, move.step.change, move.rollout) == (f"{ROLLING}:health", None, OLDER)


@pytest.mark.parametrize(
    ("case", "now_wanted"),
    [
        ("no longer there", wanted()),
        ("now kept only", wanted(Image("app", "registry.example/app", "2"))),
        ("now parallel", wanted(app("2", "parallel"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_slot_is_given_back_whatever_has_become_of_its_container(case: str, now_wanted: Desired) -> None:
    lines = ["acquire done", "change done", "health done"]
    one = server(CONTAINERS, records(*lines, chain=ROLLING, rollout=OLDER), had(app("1")))
    assert moves(now_wanted, one) == f"{ROLLING}:release! older"


@pytest.mark.parametrize("strategy", ["reboot", "off"])
def test_a_slot_is_given_back_whatever_the_strategy_has_become(strategy: Strategy) -> None:
    lines = ["acquire done", "reboot done", "hook:after:0 done", "health done"]
    one = server(REBOOT, records(*lines, rollout=OLDER), boot="b2")
    assert moves(wanted(rules=replace(RULES, strategy=strategy)), one) == "reboot:host:release! older"


@pytest.mark.parametrize("rollout", [None, replace(ROLLOUT, outcome="complete"), STOPPED])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["acquire done"], "turn back older: the rollout does not go on"),
        (["acquire done", "reboot done", "hook:after:0 done"], "reboot:host:health! older"),
    ],
)
def test_giving_a_slot_back_needs_no_rollout(
    rollout: Rollout | None, lines: list[str], expected: str
) -> None:
    one = server(REBOOT, records(*lines, rollout=OLDER), boot="b2", rollout=rollout)
    assert moves(wanted(), one) == expected


@pytest.mark.parametrize("effect", ["prefetch:deb/a:fetch", "debs:deb/a:change", "stop:image/app:stop"])
@pytest.mark.parametrize("where", ["older", "stopped", "no rollout"])
def test_what_was_begun_is_settled_before_anything_else(effect: str, where: str) -> None:
    steps = records(f"{effect} running", rollout=THIS if where == "stopped" else OLDER)
    rollout = {"older": ROLLOUT, "stopped": STOPPED, "no rollout": None}[where]
    one = replace(server(DEBS, steps, had(OLD_DEB), rollout=rollout), status=None)
    assert moves(wanted(NEW_DEB), one) == f"settle {effect}{'' if where == 'stopped' else ' older'}"


@pytest.mark.parametrize(("written", "expected"), [(49, "reboot:host:health! older"), (51, "report 1: entered the rollout")])  # fmt: skip
def test_a_failed_closing_step_is_tried_once_more_for_each_newer_rollout(written: int, expected: str) -> None:
    steps = records("acquire done", "reboot done", "hook:after:0 done", "health failed", rollout=OLDER)
    steps["reboot:host:health"] = replace(steps["reboot:host:health"], mod_revision=written)
    one = replace(server(REBOOT, steps, boot="b2"), status=None)
    assert moves(wanted(), one) == expected


@pytest.mark.parametrize(("boot", "expected"), [("b1", "report 1: entered the rollout"), ("b2", "reboot:host:reboot! older")])  # fmt: skip
def test_a_reboot_that_failed_is_looked_at_again_only_after_a_boot(boot: str, expected: str) -> None:
    one = replace(server(REBOOT, progress("reboot", "failed", rollout=OLDER), boot=boot), status=None)
    assert moves(wanted(), one) == expected


def test_a_server_that_did_not_come_back_well_reboots_in_the_next_rollout_with_the_slot_it_has() -> None:
    steps = records("acquire done", "reboot done", "hook:after:0 done", "health failed", rollout=OLDER)
    steps["reboot:host:health"] = replace(steps["reboot:host:health"], mod_revision=51)
    assert moves(wanted(), server(REBOOT, steps, boot="b2")) == "reboot:host:acquire"
    came_back = steps | records("health done", "release done", rollout=OLDER)
    assert moves(wanted(), server(REBOOT, came_back, boot="b2")) == NO_REBOOT


def test_what_a_newer_rollout_has_left_of_an_older_chain_is_no_chain() -> None:
    """The ids are the same in each rollout, so a newer one writes over an older one's records, one by one."""
    older = records("hook:before:1 done", "hook:after:1 done", rollout=OLDER)
    newer = records("acquire done", "hook:before:0 done", "warn done")
    newer = {id: replace(record, mod_revision=70) for id, record in newer.items()}
    assert moves(wanted(), server(REBOOT, older | newer, sentinel=True)) == "reboot:host:reboot"


# --- one slot for all that takes a server down ----------------------------------------------------------------------

UNWELL = records("acquire done", "change done", "health failed", chain=ROLLING, rollout=OLDER)
"""A rolling restart of an older rollout that did not get healthy: the server holds its slot for it."""
TRIED = {id: replace(record, mod_revision=51) for id, record in UNWELL.items()}


HEALTHY = [
    "acquire done",
    "hook:before:0 done",
    "warn done",
    "reboot done b0",
    "hook:after:0 done",
    "health done",
]


@pytest.mark.parametrize(
    ("case", "lines", "rollout", "unwell", "now", "expected"),
    [
        ("an older reboot's way back", ["acquire done"], "2025-12-30", TRIED, INSIDE, "reboot:host:acquire"),
        ("likewise, and nothing is unwell", ["acquire done"], "2025-12-30", {}, INSIDE, "turn back"),
        ("a release", HEALTHY, THIS, TRIED, INSIDE, "report 7: reboot is done"),
        ("likewise, and nothing is unwell", HEALTHY, THIS, {}, INSIDE, "reboot:host:release!"),
        ("the window closes", ["acquire done", "hook:before:0 done", "hook:after:0 done"], THIS, TRIED, OUTSIDE, "wait: cannot turn back"),
        ("likewise, and nothing is unwell", ["acquire done", "hook:before:0 done", "hook:after:0 done"], THIS, {}, OUTSIDE, "turn back"),
        ("the hook still runs", ["acquire done", "hook:before:0 done"], THIS, TRIED, OUTSIDE, "reboot:host:hook:after:0!"),
    ],
    ids=lambda value: value if isinstance(value, str) and ":" not in value else "",
)  # fmt: skip
def test_the_slot_is_kept_as_long_as_anything_of_the_server_is_down(
    case: str, lines: list[str], rollout: str, unwell: dict[str, StepRecord], now: Now, expected: str
) -> None:
    desired = wanted(app("1"))
    one = server(REBOOT, records(*lines, rollout=rollout) | unwell, had(app("1")), sentinel=True)
    assert moves(desired, one, now).startswith(expected)


@pytest.mark.parametrize(
    ("app_lines", "expected"),
    [
        (["acquire done", "change done", "health failed"], "wait: the rollout was stopped by ann"),
        (["acquire done", "change done", "health done"], f"{ROLLING}:release!"),
        (["acquire done", "change done", "health done", "release done"], "reboot:host:release!"),
    ],
)
def test_a_stopped_rollouts_slot_goes_when_the_last_of_its_chains_is_well(
    app_lines: list[str], expected: str
) -> None:
    reboot = records("acquire done", "reboot done b0", "hook:after:0 done", "health done")
    steps = records(*app_lines, chain=ROLLING) | reboot
    assert moves(wanted(app("1")), server(REBOOT, steps, had(app("1")), rollout=STOPPED)) == expected


# --- what is planned again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "rollout", "expected"),
    [
        (["debs:deb/a:change running"], OLDER, [Key("deb", "a")]),
        (["debs:deb/a:change failed"], OLDER, [Key("deb", "a")]),
        (["debs:deb/a:change done"], OLDER, []),
        (["debs:deb/a:change failed"], THIS, []),
        (["prefetch:deb/a:fetch failed"], OLDER, []),
        (["reboot:host:reboot failed", "reboot:host:health failed", "reboot:host:hook:after:0 failed"], OLDER, []),
        (["verify:host:health failed"], OLDER, []),
        ([f"{ROLLING}:acquire running"], OLDER, []),
        ([f"{ROLLING}:change done", f"{ROLLING}:health failed"], OLDER, [Key("image", "app")]),
        ([f"{ROLLING}:change done", f"{ROLLING}:hook:started:0 failed"], OLDER, [Key("image", "app")]),
        ([f"{ROLLING}:change done", f"{ROLLING}:release failed"], OLDER, []),
        (["stop:image/app:stop running"], OLDER, [Key("image", "app")]),
        (["stop:image/app:stop done"], OLDER, [Key("image", "app")]),
        (["stop:image/app:stop done"], THIS, []),
        (["stop:image/app:stop done", f"{ROLLING}:change failed"], OLDER, [Key("image", "app")]),
        (["stop:image/app:stop done", f"{ROLLING}:change done"], OLDER, []),
        ([f"{ROLLING}:change done", "stop:image/app:stop done"], OLDER, [Key("image", "app")]),
    ],
)  # fmt: skip
def test_what_an_older_rollout_left_open_is_planned_again(
    lines: Iterable[str], rollout: str, expected: list[Key]
) -> None:
    assert sorted(interrupted(server(DEBS, records(*lines, rollout=rollout)))) == expected


@pytest.mark.parametrize(
    ("recorded", "target", "rollout", "expected"),
    [
        (OS1, "stable/2", OLDER, [OS_IMAGE]),
        (OS2, "stable/2", OLDER, []),
        (None, "stable/2", OLDER, []),
        (OS1, "stable/2", THIS, []),
        (OS1, "", OLDER, []),
    ],
)
def test_an_os_that_was_staged_and_never_seen_to_run_is_planned_again(
    recorded: OsImage | None, target: str, rollout: str, expected: list[Key]
) -> None:
    steps = {id: replace(record, target=target) for id, record in records(STAGED, rollout=rollout).items()}
    assert list(interrupted(server(DEBS, steps, had(*([recorded] if recorded else []))))) == expected


@pytest.mark.parametrize(
    ("state", "target", "recorded", "rollout", "expected"),
    [
        ("failed", "stable/2", OS2, OLDER, [OS_IMAGE]),
        ("failed", "stable/2", OS2, THIS, []),
        ("running", "stable/2", OS2, OLDER, []),
        ("done", "stable/2", OS2, OLDER, []),
        ("failed", "", OS2, OLDER, []),  # this server boots no OS of ours
        ("failed", "stable/2", None, OLDER, []),
    ],
)
def test_an_os_that_a_boot_did_not_bring_is_planned_again(
    state: str, target: str, recorded: OsImage | None, rollout: str, expected: list[Key]
) -> None:
    """It is recorded, and something else runs: without this the next rollout would only boot that once more."""
    steps = progress("reboot", state, rollout=rollout)
    steps = {id: replace(record, target=target) for id, record in steps.items()}
    one = server(OS, steps, had(*([recorded] if recorded else [])))
    assert list(interrupted(one)) == expected
    if expected:
        assert moves(wanted(OS2), one) == "os-image:os-image:change"


def test_a_revert_after_staging_stages_the_recorded_os_again_and_boots_it() -> None:
    steps = {id: replace(record, target="stable/2") for id, record in records(STAGED, rollout=OLDER).items()}
    assert moves(wanted(OS1), server(OS, steps, had(OS1))) == "os-image:os-image:change"
    restaged = {id: replace(record, rollout=THIS, target="stable/1") for id, record in steps.items()}
    assert moves(wanted(OS1), server(REBOOT, restaged, had(OS1))) == "reboot:host:acquire"


@pytest.mark.parametrize(
    ("id", "closing"),
    [
        ("reboot:host:acquire", False),
        ("reboot:host:hook:before:0", False),
        ("reboot:host:warn", False),
        ("reboot:host:reboot", False),
        ("reboot:host:hook:after:0", True),
        ("reboot:host:health", True),
        ("reboot:host:release", True),
        (f"{ROLLING}:change", False),
        (f"{ROLLING}:hook:started:0", True),
        (f"{ROLLING}:health", True),
        ("containers:image/beside:health", False),
        ("verify:host:health", False),
    ],
)
def test_which_steps_bring_a_server_back_up(id: str, closing: bool) -> None:
    beside = Image("beside", "registry.example/beside", "1", container=Container(update="parallel"))
    desired = wanted(app("2", started=("unseal",)), beside)
    plan = plan_of(desired, server(CONTAINERS, recorded=had(app("1"))))
    assert [is_closing(step, plan) for step in plan.steps if step.id == id] == [closing]


def test_every_phase_of_the_format_is_walked_through() -> None:
    """A server with nothing to do posts each phase, and completes."""
    posted = []
    for phase in range(1, len(PHASES) + 1):
        steps = records("verify:host:health done") if phase == VERIFY else {}
        posted.append(moves(wanted(), server(phase, steps)))
    assert posted == [
        *(f"report {n + 1}: {name} is done" for n, name in enumerate(PHASES[:-1], 1)),
        "report 7 complete: complete",
    ]
