"""What the fleet is doing and what it waits for, from one view of etcd. Pure; shown by the command, HTTP, metrics and notifications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.core.duration import format_duration
from reconciler.core.lead import held_back, participants
from reconciler.core.semaphore import Holder
from reconciler.core.state import (
    ABORTED,
    COMPLETE,
    PREFETCH_WAVE,
    RUNNING,
    Agent,
    Desired,
    Fleet,
    LeftOut,
    Lock,
    Notice,
    Now,
    OpenPhase,
    Rollout,
    ServerStatus,
    Settings,
)
from reconciler.core.window import next_opening

_REBOOT = "reboot:host:"
"""How a status' message begins while its server reboots: it is the step that was begun last."""
CONDITIONS = ("not running", "running", "aborted", "complete")


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server. `phase` is the phase for which it is ready or in which it is; `next_window` in Unix seconds.

    `rebooting`: it has its slot for the reboot, and is not known to be up and well again.
    """

    lrn: int
    group: str
    wave: int
    agent: str | None
    condition: str
    phase: str | None
    version: str | None
    message: str
    waiting: str | None
    waits_for: str | None = None
    """What has to happen before it goes on; None where it is at work, complete, or nothing is to be done."""
    next_window: float | None = None
    disabled: Notice | None = None
    out: LeftOut | None = None
    trouble: str = ""
    drift: int = 0
    reboot_required: bool = False
    rebooting: bool = False


@dataclass(frozen=True, slots=True)
class HolderReport:
    """One holder of a slot; `age` in seconds, None where it has no record or no start time. `overdue`: for longer than is well.

    `away`: it is an agent's, and no agent of that server lives; None where that is not known.
    """

    machine_id: str
    record: Holder | None
    age: float | None
    away: bool | None = None
    overdue: bool = False


@dataclass(frozen=True, slots=True)
class LockReport:
    group: str
    max: int
    free: int
    holders: tuple[HolderReport, ...]
    waiters: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Status:
    """All of it, at one etcd revision."""

    etcd_revision: int
    leader: str | None
    state: str
    message: str
    desired: str | None
    noted: str | None
    rollout: Rollout | None
    phase: OpenPhase | None
    servers: tuple[ServerReport, ...]
    locks: tuple[LockReport, ...]
    pause: Notice | None
    settings: Settings
    held: str | None = None
    """Why the newest revision is not being rolled out; None where it is, or was."""


ALARM_AFTER = 600.0
"""Seconds for which a slot is held before that is worth looking at, where nothing else is said (`--alarm-after`)."""


def report(fleet: Fleet, desired: Desired | None, now: Now, alarm_after: float = ALARM_AFTER) -> Status:
    """The fleet's status. `desired` (where it is known) adds groups and windows; a slot is overdue after `alarm_after` seconds."""
    rollout = fleet.rollout
    state, message = _state(fleet)
    known = sorted(fleet.servers | set(rollout.servers if rollout and rollout.unfinished else ()))
    places = _places(fleet)
    return Status(
        etcd_revision=fleet.etcd_revision,
        leader=fleet.leader.host if fleet.leader else None,
        state=state,
        message=message,
        desired=desired.revision.id if desired else None,
        noted=fleet.noted,
        rollout=rollout,
        phase=fleet.phase,
        servers=tuple(_server(fleet, desired, lrn, now, places) for lrn in known),
        locks=tuple(
            lock_report(lock, now, frozenset(places.agents), alarm_after)
            for _, lock in sorted(fleet.locks.items())
        ),
        pause=fleet.pause,
        settings=fleet.settings,
        held=_held(fleet, now),
    )


def _held(fleet: Fleet, now: Now) -> str | None:
    rollout, unopened = fleet.rollout, _unopened(fleet)
    is_newest = rollout is not None and rollout.version == fleet.noted
    if fleet.noted is None or (is_newest and not unopened):
        return None
    if rollout and rollout.unfinished and not rollout.stop:
        return unopened or "a rollout is under way"
    if rollout and rollout.unfinished and rollout.stopped_by != "leader":
        return "the last rollout was stopped, and waits for `reconcile recover`"
    wait = held_back(fleet, now)
    return wait.reason if wait else unopened


def _unopened(fleet: Fleet) -> str | None:
    """What the leader says of it, on one line."""
    said = fleet.told.unopened
    if said is None or fleet.leader is None or said.revision != fleet.noted:
        return None
    return "; ".join(said.why.splitlines()).replace(":; ", ": ")


def _state(fleet: Fleet) -> tuple[str, str]:
    """One word for the rollout (`none`, `running`, `stopped`, `failed`, or its outcome), and a sentence."""
    rollout = fleet.rollout
    if fleet.neco_at_work:
        return "neco", f"a Neco updater or worker is at work: {fleet.neco_at_work}"
    if rollout is None:
        return "none", "no rollout is under way"
    if rollout.outcome is not None:
        return rollout.outcome, rollout.message
    if rollout.stop:
        if rollout.stopped_by == "leader":
            return "stopped", rollout.message
        why = f": {rollout.message}" if rollout.message else ""
        return "stopped", f"stopped by {rollout.stopped_by or 'somebody'}{why}"
    if fleet.phase is None or fleet.phase.rollout != rollout.id:
        return "failed", "a step has failed and closed the phase"
    name = rollout.phases[fleet.phase.phase - 1]
    waited = _waited_for(fleet, rollout, fleet.phase)
    if not waited and (soak := _soak(rollout, fleet.phase)):
        return "running", f"wave {fleet.phase.wave} of {len(rollout.waves)} is complete and soaks for {soak}"
    where = (
        "all waves"
        if fleet.phase.wave == PREFETCH_WAVE
        else f"wave {fleet.phase.wave} of {len(rollout.waves)}"
    )
    servers = (
        f"waiting for server {', '.join(map(str, waited[:8]))}" if waited else "every server has done it"
    )
    return "running", f"{name} is open for {where}; {servers}{', …' if len(waited) > 8 else ''}"


def _waited_for(fleet: Fleet, rollout: Rollout, phase: OpenPhase) -> tuple[int, ...]:
    """Who has not done the open phase."""
    return tuple(
        lrn
        for lrn in participants(rollout, phase)
        if not _done(fleet.statuses.get(lrn), rollout, phase.phase)
    )


def _soak(rollout: Rollout, phase: OpenPhase) -> str:
    """How long the open wave soaks once everybody has done it; empty where it does not, or its end is not near."""
    if phase.wave in (PREFETCH_WAVE, len(rollout.waves)) or phase.phase < len(rollout.phases):
        return ""
    soak = rollout.waves[phase.wave - 1].soak
    return format_duration(int(soak)) if soak else ""


def _done(status: ServerStatus | None, rollout: Rollout, phase: int) -> bool:
    return bool(
        status
        and status.rollout == rollout.id
        and status.cond != ABORTED
        and (status.cond == COMPLETE or status.step > phase)
    )


@dataclass(frozen=True, slots=True)
class _Places:
    """What each server is looked up in: a search for each of them would grow with the square of the fleet.

    Agents and waves by server, who takes part, whom the open phase waits for, and where each server queues for a slot.
    """

    agents: Mapping[int, Agent]
    waves: Mapping[int, int]
    members: frozenset[int]
    waited_for: tuple[int, ...] = ()
    queues: Mapping[int, Lock] = field(default_factory=dict)


def _places(fleet: Fleet) -> _Places:
    agents: dict[int, Agent] = {}
    for agent in fleet.agents:
        agents.setdefault(agent.lrn, agent)
    rollout = fleet.rollout
    if rollout is None:
        return _Places(agents, {}, frozenset())
    waves: dict[int, int] = {}
    for number, wave in enumerate(rollout.waves, 1):
        for lrn in wave.servers:
            waves.setdefault(lrn, number)
    waited = (
        _waited_for(fleet, rollout, fleet.phase) if fleet.phase and fleet.phase.rollout == rollout.id else ()
    )
    queues = {
        waiter.lrn: lock for lock in fleet.locks.values() for waiter in lock.waiters if waiter.lrn is not None
    }
    return _Places(agents, waves, frozenset(rollout.servers), waited, queues)


def _server(fleet: Fleet, desired: Desired | None, lrn: int, now: Now, places: _Places) -> ServerReport:
    rollout = fleet.rollout
    status = fleet.statuses.get(lrn)
    if status and (rollout is None or status.rollout != rollout.id):
        status = None
    group = desired.group_of(lrn) if desired else None
    found = places.agents.get(lrn)
    agent = found.host if found else None
    in_rollout = lrn in places.members
    phase = (
        rollout.phases[status.step - 1] if status and rollout and status.step <= len(rollout.phases) else None
    )
    rebooting = bool(
        status
        and status.cond == RUNNING
        and not (rollout is None or rollout.outcome is not None)
        and status.message.startswith(_REBOOT)
        and not status.message.endswith(":acquire")
    )
    waits_for_window = bool(status and status.waiting == "window")
    return ServerReport(
        lrn=lrn,
        group=group.name if group else "default",
        wave=places.waves.get(lrn, 0),
        agent=agent,
        condition=CONDITIONS[status.cond] if status else CONDITIONS[0],
        phase=phase,
        version=status.version if status else None,
        message=_message(fleet, lrn, status, in_rollout, agent),
        waiting=status.waiting if status else None,
        waits_for=_waits_for(fleet, lrn, status, places),
        next_window=next_opening(group.reboot.windows, group.reboot.timezone, now.wall)
        if group and group.reboot.windows and (waits_for_window or not in_rollout or status is None)
        else None,
        disabled=fleet.disabled.get(lrn),
        out=rollout.out.get(lrn) if rollout else None,
        trouble=found.trouble if found else "",
        drift=found.drift if found else 0,
        # What its agent said before it went down is no longer news.
        reboot_required=found.reboot_required and not rebooting if found else False,
        rebooting=rebooting,
    )


def _waits_for(fleet: Fleet, lrn: int, status: ServerStatus | None, places: _Places) -> str | None:
    """What has to happen before this server goes on."""
    rollout, phase = fleet.rollout, fleet.phase
    if lrn in fleet.disabled:
        return "`reconcile server enable`"
    if rollout is None:
        return None
    if lrn not in places.members or lrn in rollout.out or rollout.is_older_than(fleet.added.get(lrn, 0)):
        return "the next rollout"
    if not rollout.unfinished or (status and status.cond == COMPLETE):
        return None
    if rollout.stop:
        return "a newer revision, or recover" if rollout.stopped_by == "leader" else "`reconcile recover`"
    if lrn not in places.agents:
        return "its agent, which does not run"
    if status is None or phase is None or status.cond == ABORTED:
        return None
    if status.waiting == "window":
        return "its window"
    if status.waiting == "slot":
        return _slot(places.queues.get(lrn))
    return _barrier(rollout, phase, status, places.waves.get(lrn, 0), places.waited_for)


def _slot(lock: Lock | None) -> str:
    """Whose slot a server waits for."""
    if lock is None:
        return "a slot"
    lrns = {holder.machine_id: holder.lrn for holder in lock.holders}
    names = [_holder_name(machine_id, lrns.get(machine_id)) for machine_id in lock.semaphore.holders]
    held = f", held by {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else ""
    return f"a slot of {lock.group}{held}"


def _holder_name(machine_id: str, lrn: int | None) -> str:
    return f"server {lrn}" if lrn is not None else machine_id


def _barrier(
    rollout: Rollout, phase: OpenPhase, status: ServerStatus, wave: int, waited_for: tuple[int, ...]
) -> str | None:
    """Whom a server waits for that has done what is open, or whose wave is not open yet."""
    open_for_it = phase.wave in (PREFETCH_WAVE, wave)
    if open_for_it and status.step <= phase.phase:
        return None
    if not open_for_it and phase.wave and wave > phase.wave:
        return f"wave {phase.wave}{', which soaks' if not waited_for and _soak(rollout, phase) else ''}"
    names = ", ".join(map(str, waited_for[:3])) + (", …" if len(waited_for) > 3 else "")
    return f"server {names} in {rollout.phases[phase.phase - 1]}" if waited_for else None


def _message(fleet: Fleet, lrn: int, status: ServerStatus | None, in_rollout: bool, agent: str | None) -> str:
    rollout = fleet.rollout
    if lrn in fleet.disabled:
        return f"disabled by {fleet.disabled[lrn].who}: {fleet.disabled[lrn].why}"
    if rollout and lrn in rollout.out:
        return f"left out: {rollout.out[lrn]}"
    if status:
        return status.message
    if agent is None:
        return "no agent is running"
    if rollout and rollout.unfinished and in_rollout:
        return "has not entered the rollout yet"
    return "waits for the next rollout" if rollout and not in_rollout else ""


def lock_report(
    lock: Lock, now: Now, agents: frozenset[int] | None = None, alarm_after: float = ALARM_AFTER
) -> LockReport:
    """One lock group, each holder with its record and age, and whether it has held its slot for longer than `alarm_after` seconds.

    `agents` are the servers whose agent lives, where that is known.
    """
    records = {holder.machine_id: holder for holder in lock.holders}
    holders = tuple(
        HolderReport(machine_id, record, age, _is_away(record, agents), age is not None and age > alarm_after)
        for machine_id in lock.semaphore.holders
        for record in [records.get(machine_id)]
        for age in [_age(record, now)]
    )
    waiters = tuple((waiter.machine_id, waiter.lrn) for waiter in lock.waiters)
    return LockReport(lock.group, lock.semaphore.max, lock.semaphore.free, holders, waiters)


def _is_away(holder: Holder | None, agents: frozenset[int] | None) -> bool | None:
    if agents is None or holder is None or holder.source != "agent" or holder.lrn is None:
        return None
    return holder.lrn not in agents


def _age(holder: Holder | None, now: Now) -> float | None:
    return max(0.0, now.wall - holder.start_time) if holder and holder.start_time else None
