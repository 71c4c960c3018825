"""What one server does next, decided from its plan and one view of etcd. Pure; called by its agent.

Three things come before the next step of the open phase: what an older rollout left unsettled, what this rollout
has taken down and must bring back up (closing steps run after a stop as well), and entering the rollout. Coming
back after a crash is no case of its own: the records say what has begun, and the host is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from reconciler.core.artifact import OS_IMAGE, Image, Key
from reconciler.core.plan import Plan, Step, effect_of
from reconciler.core.state import (
    ABORTED,
    COMPLETE,
    PLAN_FORMAT,
    PREFETCH_WAVE,
    RUNNING,
    Now,
    Rollout,
    Server,
    ServerStatus,
    StepRecord,
)
from reconciler.core.window import is_open, next_opening


@dataclass(frozen=True, slots=True)
class Perform:
    """Perform `step`. A closing step is guarded by the holder's record and not by the open phase; a repair's by there being none."""

    step: Step
    rollout: str
    closing: bool = False
    repair: bool = False


@dataclass(frozen=True, slots=True)
class Fetch:
    """Perform these `fetch` steps side by side: nothing on the host changes by them."""

    steps: tuple[Step, ...]
    rollout: str


@dataclass(frozen=True, slots=True)
class TurnBack:
    """Give the slot back, and delete the records of `steps` (those from `acquire` on), in one transaction."""

    rollout: str
    steps: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Look at the host, change nothing, and record what `record`'s step did."""

    record: StepRecord


@dataclass(frozen=True, slots=True)
class Report:
    """Post `status` for this server."""

    status: ServerStatus


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now, and why. `for_seconds` is when the answer may change by time alone; None when only news can change it."""

    reason: str
    waiting: Literal["window", "slot"] | None = None
    for_seconds: float | None = None


Move = Perform | Fetch | TurnBack | Settle | Report | Wait

_REBOOT = "reboot:host"
_LOOKED_AT = ("change", "stop", "fetch")
"""Effects whose outcome a look at the host shows."""


def advance(plan: Plan, server: Server, now: Now) -> Move:
    """The server's next move. `plan` is made for the rollout that is in `server`, or for the newest desired state without one."""
    if server.neco_at_work:
        return Wait(
            f"a Neco updater or worker is at work ({server.neco_at_work}): stop it, then `reconcile adopt`"
        )
    rollout = server.rollout
    current = rollout.id if rollout else ""
    for other in sorted({record.rollout for record in server.steps.values()} - {current}):
        move = _bring_back(plan, server, other)
        if move:
            return move
    if rollout is None:
        return Wait("there is no rollout")
    if not _is_active(server, rollout):
        return _bring_back(plan, server, current) or Wait(_why_inactive(server, rollout))
    if rollout.plan_format is None or rollout.plan_format > PLAN_FORMAT:
        return Wait(
            f"the rollout's plan format {rollout.plan_format} is newer than this program's {PLAN_FORMAT}"
        )
    status = server.status if server.status and server.status.rollout == rollout.id else None
    if status is None:
        old = server.status or ServerStatus("", "", 1)
        entered = replace(old, version=rollout.version, rollout=rollout.id, step=1, cond=RUNNING)
        return Report(replace(entered, message="entered the rollout", waiting=None))
    if status.cond == ABORTED:
        return _bring_back(plan, server, current) or Wait(f"failed in this rollout: {status.message}")
    if status.cond == COMPLETE:
        return Wait("this server is complete")
    return _in_phase(plan, server, rollout, status, now)


def bring_back(plan: Plan, server: Server) -> Move | None:
    """What is left to do to bring up a server that may not go on with any rollout: its plan, or its revision, is refused."""
    for rollout in sorted({record.rollout for record in server.steps.values()}):
        move = _bring_back(plan, server, rollout)
        if move:
            return move
    return None


def _is_active(server: Server, rollout: Rollout) -> bool:
    """Whether steps other than closing ones may begin: what the fence of *begin* compares, seen beforehand."""
    return (
        rollout.unfinished
        and not rollout.stop
        and server.phase is not None
        and server.phase.rollout == rollout.id
        and server.lrn in rollout.servers
        and server.lrn not in rollout.out
        and server.disabled is None
        and not (server.machine and server.machine.removed)
        and not rollout.is_older_than(server.added)
    )


def _why_inactive(server: Server, rollout: Rollout) -> str:
    if rollout.outcome is not None:
        return "there is no rollout: the last one has finished"
    if rollout.stop:
        return f"the rollout was stopped by {rollout.stopped_by or 'somebody'}"
    if server.lrn not in rollout.servers:
        return "this server was added after the rollout opened: it waits for the next one"
    if server.lrn in rollout.out:
        return f"left out of this rollout: {rollout.out[server.lrn]}"
    if server.disabled:
        return f"disabled by {server.disabled.who}: {server.disabled.why}"
    if server.machine and server.machine.removed:
        return "this server was removed: `reconcile server add` brings it back"
    if rollout.is_older_than(server.added):
        return "this server was added again after the rollout opened: it waits for the next one"
    return "the rollout has failed: no phase is open"


# --- the open phase -------------------------------------------------------------------------------------------------


def _in_phase(plan: Plan, server: Server, rollout: Rollout, status: ServerStatus, now: Now) -> Move:
    phase = server.phase
    wave = PREFETCH_WAVE if status.step == 1 else rollout.wave_of(server.lrn)
    if phase is None or (phase.wave, phase.phase) != (wave, status.step):
        return _tell(status, Wait(f"waiting for the other servers before {_name(rollout, status.step)}"))
    name = _name(rollout, status.step)
    records = records_of(server, rollout.id)
    steps = plan.steps_of(name)
    # Looked for first: on the way back it is a later step that has failed.
    failed = next((records[step.id] for step in steps if _has_failed(records, step.id)), None)
    if failed:
        return Report(_aborted(status, failed))
    for step in steps:
        if _is_done(records, step.id) or _is_skipped(step, plan, server, records):
            continue
        if step.effect == "release" and _is_needed(server, rollout.id, _chain_of(step.id)):
            continue
        if step.effect == "fetch":
            left = [other for other in steps if other.effect == "fetch" and not _is_done(records, other.id)]
            return Fetch(tuple(left), rollout.id)
        back = _turn_back(step, plan, server, records, now)
        if isinstance(back, TurnBack) and _is_needed(server, rollout.id, _chain_of(step.id)):
            return _tell(
                status, Wait(f"cannot turn back: this server is down and needs its slot ({back.reason})")
            )
        if back:
            return back
        if step.effect in ("change", "hook") and _is_unlocked(step, plan, server, records):
            return Report(
                _status(status, cond=ABORTED, message=f"{step.id}: the slot was released meanwhile")
            )
        return _begin(step, plan, server, status, now)
    if status.step == len(rollout.phases):
        return Report(_status(status, cond=COMPLETE, message="complete"))
    return Report(_status(status, step=status.step + 1, message=f"{name} is done"))


def _begin(step: Step, plan: Plan, server: Server, status: ServerStatus, now: Now) -> Move:
    rules = plan.reboot
    takes_down = step.effect == "acquire" or (
        step.id == _first_reboot_step(plan) and rules.strategy == "reboot"
    )
    if takes_down and not is_open(rules.windows, rules.timezone, now.wall):
        opening = next_opening(rules.windows, rules.timezone, now.wall)
        until = opening - now.wall if opening is not None else None
        return _tell(status, Wait("waiting for the window", "window", until))
    in_line = step.effect == "acquire" and status.waiting == "slot"
    if status.waiting and not in_line:
        # Who waits may be passed over (by the timeout, by a newer revision): from here on this server does not.
        return Report(_status(status, message=step.id))
    return Perform(step, status.rollout, is_closing(step, plan))


def _first_reboot_step(plan: Plan) -> str | None:
    return next((step.id for step in plan.steps_of("reboot")), None)


def is_closing(step: Step, plan: Plan) -> bool:
    """Whether `step` brings a server back up: `after` and `started` hooks, and health and release where a slot or a reboot came before."""
    if step.effect == "release" or (step.effect == "hook" and step.list in ("after", "started")):
        return True
    if step.effect != "health":
        return False
    taken = {other.effect for other in plan.steps if _chain_of(other.id) == _chain_of(step.id)}
    return bool(taken & {"acquire", "reboot"})


def _is_skipped(step: Step, plan: Plan, server: Server, records: Mapping[str, StepRecord]) -> bool:
    """A reboot that neither the OS, nor the sentinel, nor an older reboot that did not end well asks for, and that has not begun."""
    if step.phase != "reboot" or any(_chain_of(begun) == _REBOOT for begun in records):
        return False
    return not (server.reboot_required or _os_waits_for_boot(plan, server, records) or _is_left_down(server))


def _os_waits_for_boot(plan: Plan, server: Server, records: Mapping[str, StepRecord]) -> bool:
    """Whether the plan's OS image runs only after a boot: it is not recorded, or was put in place since the last one."""
    step = next((step for step in plan.steps_of("os-image") if step.effect == "change"), None)
    if step is None or step.change is None or step.change.after is None or not step.change.reboot:
        return False
    installed, record = server.recorded.get(OS_IMAGE), records.get(step.id)
    return (
        installed is None
        or installed.version != step.change.after.version
        or (record is not None and record.boot_id == server.boot_id)
    )


def _is_left_down(server: Server) -> bool:
    """Whether a reboot of an older rollout has failed after the server went down: its slot is still taken."""
    current = server.rollout.id if server.rollout else ""
    for rollout in {record.rollout for record in server.steps.values()} - {current}:
        mine = _chain_records(records_of(server, rollout), _REBOOT)
        if _has_begun(_REBOOT, mine, server) and not _ended(mine) and _is_down(_REBOOT, mine, server):
            return True
    return False


def _tell(status: ServerStatus, wait: Wait) -> Move:
    """Wait, after having posted what is waited for."""
    if status.waiting == wait.waiting:
        return wait
    return Report(_status(status, message=wait.reason, waiting=wait.waiting))


def _status(
    status: ServerStatus,
    *,
    step: int | None = None,
    cond: int = RUNNING,
    message: str,
    waiting: Literal["window", "slot"] | None = None,
) -> ServerStatus:
    return ServerStatus(
        status.version,
        status.rollout,
        step or status.step,
        cond,
        message,
        waiting,
        status.mod_revision,
        status.extra,
    )


def _aborted(status: ServerStatus, record: StepRecord) -> ServerStatus:
    return _status(status, cond=ABORTED, message=f"{record.id}: {record.message}")


# --- what takes a server down ---------------------------------------------------------------------------------------


def _turn_back(
    step: Step, plan: Plan, server: Server, records: Mapping[str, StepRecord], now: Now
) -> Perform | TurnBack | None:
    """Before what takes the server down: look at window and slot; if they forbid it, turn back."""
    chain = _chain_of(step.id)
    mine = _chain_records(records, chain)
    if not _has_begun(chain, mine, server) or _is_down(chain, mine, server):
        return None
    rules = plan.reboot
    acquired = next((record for id, record in mine.items() if effect_of(id) == "acquire"), None)
    has_slot = acquired is None or acquired.state == "running" or _holds(server)
    opened = is_open(rules.windows, rules.timezone, now.wall)
    if opened and has_slot and not _is_turning(mine):
        return None
    reason = "the window has closed" if not opened else "the slot is lost"
    return _way_back(plan, chain, mine, next(iter(mine.values())).rollout, reason)


def _is_unlocked(step: Step, plan: Plan, server: Server, records: Mapping[str, StepRecord]) -> bool:
    """Whether an operator released the slot under which this step would take the server, which is down, further."""
    taken = any(effect_of(id) == "acquire" for id in _chain_records(records, _chain_of(step.id)))
    return taken and not _holds(server) and not is_closing(step, plan)


def _is_turning(records: Mapping[str, StepRecord]) -> bool:
    """Once an `after` hook has begun on a server that is not down, the way back is gone to its end."""
    return any(":hook:after:" in id for id in records)


def _way_back(
    plan: Plan, chain: str, records: Mapping[str, StepRecord], rollout: str, reason: str
) -> Perform | TurnBack:
    if any(":hook:before:" in id for id in records):
        for step in plan.steps:
            if _chain_of(step.id) == chain and step.list == "after" and not _is_done(records, step.id):
                return Perform(step, rollout, closing=True)
    return TurnBack(rollout, tuple(sorted(records)), reason)


def _is_down(chain: str, records: Mapping[str, StepRecord], server: Server) -> bool:
    """Whether what takes the server down may have happened: the reboot (another boot id shows it), or the change."""
    for id, record in records.items():
        if chain == _REBOOT and effect_of(id) == "reboot":
            return record.state != "running" or record.boot_id != server.boot_id
        if chain != _REBOOT and effect_of(id) == "change":
            return True
    return False


def _bring_back(plan: Plan, server: Server, rollout: str) -> Move | None:
    """What is left to do for a rollout that this server may no longer go on with: settle what ran, bring back what is down."""
    records = records_of(server, rollout)
    for record in records.values():
        if record.state == "running" and effect_of(record.id) in _LOOKED_AT:
            return Settle(record)
    for chain in sorted({_chain_of(id) for id in records}):
        move = _close(plan, server, chain, _chain_records(records, chain), rollout)
        if move:
            return move
    return None


def _close(
    plan: Plan, server: Server, chain: str, records: Mapping[str, StepRecord], rollout: str
) -> Perform | TurnBack | None:
    if not _has_begun(chain, records, server) or _ended(records):
        return None
    if _is_down(chain, records, server):
        older = server.rollout is None or server.rollout.id != rollout
        steps = [
            step
            for step in _closing_steps(plan, server, chain, records, older)
            if not _is_done(records, step.id)
        ]
        move: Perform | TurnBack | None = Perform(steps[0], rollout, closing=True) if steps else None
    else:
        move = _way_back(plan, chain, records, rollout, "the rollout does not go on")
    if isinstance(move, Perform) and not _may_try(records.get(move.step.id), server):
        return None
    gives = isinstance(move, TurnBack) or (move is not None and move.step.effect == "release")
    return None if gives and _is_needed(server, rollout, chain) else move


def _is_needed(server: Server, rollout: str, chain: str) -> bool:
    """Whether another chain than this one is down with the server's slot: there is one slot, whatever it was taken for."""
    for other in {record.rollout for record in server.steps.values()}:
        records = records_of(server, other)
        for id in records:
            if effect_of(id) != "acquire" or (other, _chain_of(id)) == (rollout, chain):
                continue
            mine = _chain_records(records, _chain_of(id))
            well = any(
                effect_of(step) == "health" and record.state == "done" for step, record in mine.items()
            )
            if not well and not _ended(mine) and _is_down(_chain_of(id), mine, server):
                return True
    return False


def _may_try(record: StepRecord | None, server: Server) -> bool:
    """A closing step that has failed is tried once more for each newer rollout: until then its server keeps its slot.

    A reboot is only looked at, never asked for again: after each boot once, whoever caused it.
    """
    if record is None or record.state != "failed":
        return True
    if effect_of(record.id) == "reboot":
        return record.boot_id != server.boot_id
    rollout = server.rollout
    return rollout is not None and record.rollout != rollout.id and record.mod_revision < rollout.mod_revision


def _has_begun(chain: str, records: Mapping[str, StepRecord], server: Server) -> bool:
    """Whether a chain that takes the server down has begun: with its slot, or, a reboot without one, with its first step.

    A container that takes no slot is down from its change until its `started` hooks have run. Without its `acquire` an
    older rollout's chain is only what a newer one has left of it.
    """
    if any(effect_of(id) == "acquire" for id in records):
        return True
    if chain != _REBOOT:
        change = records.get(f"{chain}:change")
        hooks = _started_hooks(server, chain)
        started = change is not None and change.state == "done" and change.target
        return bool(started) and not all(_is_done(records, step.id) for step in hooks)
    if not records:
        return False
    newest = max(record.mod_revision for record in records.values())
    others = _chain_records(server.steps, chain).keys() - records.keys()
    return all(server.steps[id].mod_revision <= newest for id in others)


def _ended(records: Mapping[str, StepRecord]) -> bool:
    """A chain has ended when its slot is released; one that holds no slot, when its health is known."""
    if any(effect_of(id) == "acquire" for id in records):
        return any(effect_of(id) == "release" and record.state == "done" for id, record in records.items())
    return any(effect_of(id) == "health" and record.state != "running" for id, record in records.items())


def _closing_steps(
    plan: Plan, server: Server, chain: str, records: Mapping[str, StepRecord], older: bool
) -> Iterable[Step]:
    """The closing steps of a chain, with a release where it has a slot, whatever the plan's rules have become.

    An older rollout's container is looked at as it is recorded: the plan, where it names it at all, means another one.
    The hooks are those of what is recorded too; after a change that failed, looking comes first: it goes back to what was.
    """
    phase, _, subject = chain.partition(":")
    key = Key.of_subject(subject)
    planned = [step for step in plan.steps if _chain_of(step.id) == chain and _closes(step)]
    if not planned or (older and chain != _REBOOT):
        planned = [Step(phase, key, "health")]
    if chain != _REBOOT and (older or _is_done(records, f"{chain}:change")):
        planned = [*_started_hooks(server, chain), *planned]
    slot = any(effect_of(id) == "acquire" for id in records)
    steps = [step for step in planned if step.effect != "release"]
    return [*steps, Step(phase, key, "release")] if slot else steps


def _closes(step: Step) -> bool:
    return step.effect in ("reboot", "health", "release") or step.list == "after"


def _started_hooks(server: Server, chain: str) -> tuple[Step, ...]:
    """The hooks that a container's chain ends with, as its recorded definition names them."""
    phase, _, subject = chain.partition(":")
    key = Key.of_subject(subject)
    recorded = server.recorded.get(key) if key else None
    artifact = recorded.artifact if recorded else None
    if not (isinstance(artifact, Image) and artifact.container):
        return ()
    return tuple(
        Step(phase, key, "hook", "started", index, hook=name)
        for index, name in enumerate(artifact.container.started)
    )


# --- records --------------------------------------------------------------------------------------------------------


def records_of(server: Server, rollout: str) -> dict[str, StepRecord]:
    """The step records of one rollout, by id, sorted: those of others count for nothing in it."""
    return {id: record for id, record in sorted(server.steps.items()) if record.rollout == rollout}


def _holds(server: Server) -> bool:
    owner = (server.machine_id, "agent", server.lrn)
    return server.lock is not None and any(holder.owner == owner for holder in server.lock.holders)


def _chain_records(records: Mapping[str, StepRecord], chain: str) -> dict[str, StepRecord]:
    return {id: record for id, record in records.items() if _chain_of(id) == chain}


def _is_done(records: Mapping[str, StepRecord], id: str) -> bool:
    return id in records and records[id].state == "done"


def _has_failed(records: Mapping[str, StepRecord], id: str) -> bool:
    return id in records and records[id].state == "failed"


def _chain_of(id: str) -> str:
    """`<phase>:<subject>`: the steps of one subject in one phase, of which each needs the one before."""
    return ":".join(id.split(":", 2)[:2])


def _name(rollout: Rollout, phase: int) -> str:
    return rollout.phases[phase - 1]
