"""What the fleet is doing and what it waits for, from one view of etcd. Pure; shown by the command, HTTP, metrics and notifications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.core.lead import participants
from reconciler.core.semaphore import Holder
from reconciler.core.state import (
    ABORTED,
    COMPLETE,
    PREFETCH_WAVE,
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

CONDITIONS = ("not running", "running", "aborted", "complete")


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server. `phase` is the phase for which it is ready or in which it is; `next_window` in Unix seconds."""

    lrn: int
    group: str
    wave: int
    agent: str | None
    condition: str
    phase: str | None
    version: str | None
    message: str
    waiting: str | None
    next_window: float | None = None
    disabled: Notice | None = None
    out: LeftOut | None = None
    trouble: str = ""
    drift: int = 0
    reboot_required: bool = False


@dataclass(frozen=True, slots=True)
class HolderReport:
    """One holder of a slot; `age` in seconds, None where it has no record or no start time."""

    machine_id: str
    record: Holder | None
    age: float | None


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


def report(fleet: Fleet, desired: Desired | None, now: Now) -> Status:
    """The fleet's status. `desired` (where it is known) adds groups and windows."""
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
        locks=tuple(lock_report(lock, now) for _, lock in sorted(fleet.locks.items())),
        pause=fleet.pause,
        settings=fleet.settings,
    )


def _state(fleet: Fleet) -> tuple[str, str]:
    """One word for the rollout (`none`, `running`, `stopped`, `failed`, or its outcome), and a sentence."""
    rollout = fleet.rollout
    if fleet.neco_at_work:
        return "neco", f"a Neco updater or worker is at work: {fleet.neco_at_work}"
    if rollout is None:
        return "none", "no rollout has been opened yet"
    if rollout.outcome is not None:
        return rollout.outcome, rollout.message
    if rollout.stop:
        return "stopped", rollout.message or f"stopped by {rollout.stopped_by or 'somebody'}"
    if fleet.phase is None or fleet.phase.rollout != rollout.id:
        return "failed", "a step has failed and closed the phase"
    name = rollout.phases[fleet.phase.phase - 1]
    waited = [
        lrn
        for lrn in participants(rollout, fleet.phase)
        if not _done(fleet.statuses.get(lrn), rollout, fleet.phase.phase)
    ]
    where = (
        "all waves"
        if fleet.phase.wave == PREFETCH_WAVE
        else f"wave {fleet.phase.wave} of {len(rollout.waves)}"
    )
    servers = (
        f"waiting for server {', '.join(map(str, waited[:8]))}" if waited else "every server has done it"
    )
    return "running", f"{name} is open for {where}; {servers}{', …' if len(waited) > 8 else ''}"


def _done(status: ServerStatus | None, rollout: Rollout, phase: int) -> bool:
    return bool(
        status
        and status.rollout == rollout.id
        and status.cond != ABORTED
        and (status.cond == COMPLETE or status.step > phase)
    )


@dataclass(frozen=True, slots=True)
class _Places:
    """Agents and waves by server, and who takes part: a search for each server would grow with the square of the fleet."""

    agents: Mapping[int, Agent]
    waves: Mapping[int, int]
    members: frozenset[int]


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
    return _Places(agents, waves, frozenset(rollout.servers))


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
        next_window=next_opening(group.reboot.windows, group.reboot.timezone, now.wall)
        if group and group.reboot.windows and (waits_for_window or not in_rollout or status is None)
        else None,
        disabled=fleet.disabled.get(lrn),
        out=rollout.out.get(lrn) if rollout else None,
        trouble=found.trouble if found else "",
        drift=found.drift if found else 0,
        reboot_required=found.reboot_required if found else False,
    )


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


def lock_report(lock: Lock, now: Now) -> LockReport:
    """One lock group, each holder with its record and age."""
    records = {holder.machine_id: holder for holder in lock.holders}
    holders = tuple(
        HolderReport(machine_id, records.get(machine_id), _age(records.get(machine_id), now))
        for machine_id in lock.semaphore.holders
    )
    waiters = tuple((waiter.machine_id, waiter.lrn) for waiter in lock.waiters)
    return LockReport(lock.group, lock.semaphore.max, lock.semaphore.free, holders, waiters)


def _age(holder: Holder | None, now: Now) -> float | None:
    return max(0.0, now.wall - holder.start_time) if holder and holder.start_time else None
