"""What the leader does next, decided from one view of the fleet. Pure; called by the agent that leads.

The leader opens a rollout, opens phase after phase for wave after wave, leaves out servers that failed within the
budget, and finishes or stops it. All that it needs to know about time is `Seen`, which `watch` carries from one pass
to the next: how long each server has shown no progress, by the leader's own monotonic clock. A new leader starts
with an empty one, which can only make it wait longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from reconciler.core.artifact import OS_IMAGE, Key
from reconciler.core.difference import difference
from reconciler.core.duration import timestamp
from reconciler.core.interrupted import interrupted
from reconciler.core.plans import waves_of
from reconciler.core.schedule import may_open, next_time
from reconciler.core.state import (
    ABORTED,
    COMPLETE,
    PLAN_FORMAT,
    PREFETCH_WAVE,
    Desired,
    Fleet,
    LeftOut,
    Now,
    OpenPhase,
    Rollout,
    Server,
    ServerStatus,
)

DEFAULT_TIMEOUT = 3600.0


@dataclass(frozen=True, slots=True)
class Open:
    """Open `rollout`, after its references are pinned. `replaces` is the unfinished one that gives way."""

    rollout: Rollout
    replaces: Rollout | None = None


@dataclass(frozen=True, slots=True)
class OpenNext:
    """Open the next phase (`status/phase`)."""

    rollout: Rollout
    current: OpenPhase
    wave: int
    phase: int


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Write `rollout`, whose `out` has grown by `servers`, with the reasons."""

    rollout: Rollout
    servers: Mapping[int, LeftOut]


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop `rollout`: more has failed than may."""

    rollout: Rollout
    message: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Every server that is not left out is complete."""

    rollout: Rollout
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now, and why. `for_seconds` is when the answer may change by time alone; None when only news can change it."""

    reason: str
    for_seconds: float | None = None


Order = Open | OpenNext | LeaveOut | Stop | Finish | Wait


@dataclass(frozen=True, slots=True)
class Seen:
    """What one leader has seen: each server's last sign (its status' etcd revision) and when, the open phase, and since when it is done."""

    marks: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    phase: tuple[int, float] = (0, 0.0)
    done_since: float | None = None


def watch(seen: Seen, fleet: Fleet, now: Now) -> Seen:
    """`seen`, carried on by one view of the fleet."""
    rollout, phase = fleet.rollout, fleet.phase
    if rollout is None or phase is None or not rollout.unfinished:
        return Seen()
    waiting = _waiting(fleet, rollout)
    marks: dict[int, tuple[int, float]] = {}
    for lrn in rollout.servers:
        status = fleet.statuses.get(lrn)
        revision = status.mod_revision if status else 0
        old = seen.marks.get(lrn)
        silent = old is not None and old[0] == revision and lrn not in waiting
        marks[lrn] = old if old and silent else (revision, now.monotonic)
    same = seen.phase[0] == phase.mod_revision
    opened = seen.phase if same else (phase.mod_revision, now.monotonic)
    done = all(_has_done(fleet, lrn, rollout, phase.phase) for lrn in participants(rollout, phase))
    since = (seen.done_since if same and seen.done_since is not None else now.monotonic) if done else None
    return Seen(marks, opened, since)


def _waiting(fleet: Fleet, rollout: Rollout) -> frozenset[int]:
    """Servers that wait for a window or a slot, which does not count as silence as long as their agent lives."""
    alive = {agent.lrn for agent in fleet.agents}
    return frozenset(
        lrn
        for lrn in rollout.servers
        if lrn in alive and (status := _status_in(fleet, rollout, lrn)) and status.waiting
    )


def lead(desired: Desired | None, fleet: Fleet, seen: Seen, now: Now) -> Order:
    """The leader's next order. `desired` is the newest valid revision, None where there is none yet."""
    if fleet.neco_at_work:
        return Wait(
            f"a Neco updater or worker is at work ({fleet.neco_at_work}): stop it, then `reconcile adopt`"
        )
    rollout = fleet.rollout
    if rollout is None or not rollout.unfinished:
        return _open(desired, fleet, now, None)
    if rollout.stop:
        if rollout.stopped_by == "leader" and _is_newer(desired, rollout):
            return _open(desired, fleet, now, rollout)
        who = "a failure" if rollout.stopped_by == "leader" else (rollout.stopped_by or "somebody")
        return Wait(
            f"the rollout of {rollout.version[:12]} was stopped by {who}: `reconcile recover` clears it"
        )
    if rollout.plan_format is None or rollout.plan_format > PLAN_FORMAT:
        return Wait(
            f"the rollout's plan format {rollout.plan_format} is newer than this program's {PLAN_FORMAT}"
        )
    if fleet.phase is None or fleet.phase.rollout != rollout.id:
        return Stop(rollout, _failures(fleet, rollout) or "a server closed the phase after a failed step")
    return _continue(desired, fleet, rollout, fleet.phase, seen, now)


def participants(rollout: Rollout, phase: OpenPhase) -> tuple[int, ...]:
    """The servers that a barrier waits for: those of the open wave (of all waves in *prefetch*) that are not left out."""
    servers = rollout.servers if phase.wave == PREFETCH_WAVE else rollout.waves[phase.wave - 1].servers
    return tuple(lrn for lrn in servers if lrn not in rollout.out)


def _continue(
    desired: Desired | None, fleet: Fleet, rollout: Rollout, phase: OpenPhase, seen: Seen, now: Now
) -> Order:
    gone = {lrn: reason for lrn in participants(rollout, phase) if (reason := _gone(fleet, rollout, lrn))}
    failed = {
        lrn: reason
        for lrn in participants(rollout, phase)
        if lrn not in gone and (reason := _failed(fleet, rollout, phase, lrn, seen, now))
    }
    out = {**rollout.out, **gone, **failed}
    for wave in rollout.waves:
        lost = {lrn: out[lrn] for lrn in wave.servers if lrn in out and out[lrn].counts}
        if len(lost) > wave.max_failures:
            return Stop(rollout, "; ".join(f"server {lrn} {reason}" for lrn, reason in sorted(lost.items())))
    if gone or failed:
        return LeaveOut(rollout, {**gone, **failed})
    if _is_newer(desired, rollout) and _gives_way(fleet, rollout, phase):
        order = _open(desired, fleet, now, rollout)
        if isinstance(order, Open):
            return order
    waited_for = [
        lrn for lrn in participants(rollout, phase) if not _has_done(fleet, lrn, rollout, phase.phase)
    ]
    if waited_for:
        names = ", ".join(map(str, waited_for[:5])) + (", …" if len(waited_for) > 5 else "")
        return Wait(
            f"waiting for server {names} in {rollout.phases[phase.phase - 1]}",
            _next_timeout(frozenset(waited_for) - _waiting(fleet, rollout), rollout, seen, now),
        )
    return _next(rollout, phase, seen, now)


def _next(rollout: Rollout, phase: OpenPhase, seen: Seen, now: Now) -> Order:
    """What follows once everybody has done the open phase."""
    last_phase = len(rollout.phases)
    if phase.wave == PREFETCH_WAVE:
        return _enter(rollout, phase, _next_wave(rollout, 0))
    if phase.phase < last_phase:
        return OpenNext(rollout, phase, phase.wave, phase.phase + 1)
    following = _next_wave(rollout, phase.wave)
    soak = rollout.waves[phase.wave - 1].soak
    soaked = now.monotonic - (now.monotonic if seen.done_since is None else seen.done_since)
    if following is not None and soaked < soak:
        return Wait(f"wave {phase.wave} is complete and soaks", soak - soaked)
    return _enter(rollout, phase, following)


def _enter(rollout: Rollout, phase: OpenPhase, wave: int | None) -> Order:
    if wave is not None:
        return OpenNext(rollout, phase, wave, 2)
    message = f"{len(rollout.servers) - len(rollout.out)} of {len(rollout.servers)} servers complete"
    left = "; ".join(f"server {lrn} {reason}" for lrn, reason in sorted(rollout.out.items()))
    return Finish(rollout, f"{message}; left out: {left}" if left else message)


def _next_wave(rollout: Rollout, wave: int) -> int | None:
    """The next wave that has anybody left in it."""
    return next(
        (
            number
            for number in range(wave + 1, len(rollout.waves) + 1)
            if any(lrn not in rollout.out for lrn in rollout.waves[number - 1].servers)
        ),
        None,
    )


def _gone(fleet: Fleet, rollout: Rollout, lrn: int) -> LeftOut | None:
    if lrn not in fleet.servers:
        return LeftOut("removed", "removed from the fleet")
    if rollout.is_older_than(fleet.added.get(lrn, 0)):
        # Its records and its status went with it: what is there now waits for the next rollout.
        return LeftOut("removed", "removed from the fleet and added again")
    if lrn in fleet.disabled:
        return LeftOut("disabled", f"disabled by {fleet.disabled[lrn].who}")
    return None


def _failed(
    fleet: Fleet, rollout: Rollout, phase: OpenPhase, lrn: int, seen: Seen, now: Now
) -> LeftOut | None:
    status = _status_in(fleet, rollout, lrn)
    if status and status.cond == ABORTED:
        return LeftOut("failed", f"failed: {status.message}")
    if _has_done(fleet, lrn, rollout, phase.phase):
        return None
    _, since = seen.marks.get(lrn, (0, now.monotonic))
    since = max(since, seen.phase[1])
    if now.monotonic - since < rollout.timeout:
        return None
    message = f" ({status.message})" if status and status.message else ""
    name = rollout.phases[phase.phase - 1]
    return LeftOut("silent", f"silent in {name} for {rollout.timeout:g} s{message}")


def _failures(fleet: Fleet, rollout: Rollout) -> str:
    failed = [
        f"server {lrn} failed: {status.message}"
        for lrn in rollout.servers
        if (status := _status_in(fleet, rollout, lrn)) and status.cond == ABORTED
    ]
    return "; ".join(failed)


def _status_in(fleet: Fleet, rollout: Rollout, lrn: int) -> ServerStatus | None:
    """The server's status if it is one of this rollout: another one's counts for nothing."""
    status = fleet.statuses.get(lrn)
    return status if status and status.rollout == rollout.id else None


def _has_done(fleet: Fleet, lrn: int, rollout: Rollout, phase: int) -> bool:
    status = _status_in(fleet, rollout, lrn)
    return bool(status and status.cond != ABORTED and (status.cond == COMPLETE or status.step > phase))


def _next_timeout(counted: frozenset[int], rollout: Rollout, seen: Seen, now: Now) -> float | None:
    """When the first of the servers whose time counts will have been silent for too long."""
    since = [max(seen.marks[lrn][1], seen.phase[1]) for lrn in counted if lrn in seen.marks]
    return max(0.1, rollout.timeout - (now.monotonic - min(since))) if since else None


def _is_newer(desired: Desired | None, rollout: Rollout) -> bool:
    """Whether there is another revision than the rollout's; that it is a descendant, each host has checked for itself."""
    return desired is not None and desired.revision.id != rollout.version


def _gives_way(fleet: Fleet, rollout: Rollout, phase: OpenPhase) -> bool:
    """A rollout in its prefetch, or in which every unfinished server only waits for a window or a slot."""
    if phase.wave == PREFETCH_WAVE:
        return True
    unfinished = [
        status
        for lrn in participants(rollout, phase)
        if not _has_done(fleet, lrn, rollout, phase.phase)
        for status in [_status_in(fleet, rollout, lrn)]
    ]
    return bool(unfinished) and all(status is not None and status.waiting for status in unfinished)


def _open(desired: Desired | None, fleet: Fleet, now: Now, replaces: Rollout | None) -> Order:
    if desired is None:
        return Wait("there is no valid revision yet")
    servers = tuple(sorted(fleet.servers - fleet.disabled.keys()))
    if not servers:
        return Wait("no server is registered")
    last = fleet.rollout if replaces is None else None
    if last and last.version == desired.revision.id:
        if all(_has_had(fleet, last, lrn) for lrn in servers) and not _lacks_records(desired, fleet, last):
            return Wait("nothing to do: the newest revision is rolled out")
    elif replaces is None and not _differs(desired, fleet, servers):
        # One that gives way is replaced in any case: it must not go on to a revision that is desired no more.
        return Wait("nothing to do: no server differs from the newest revision")
    return held_back(fleet, now) or Open(_rollout(desired, fleet, servers, now), replaces)


def held_back(fleet: Fleet, now: Now) -> Wait | None:
    """Why no rollout may open now, whatever is desired: a pause, or the release time."""
    if fleet.pause and not _over(fleet.pause.until, now):
        return Wait(f"paused by {fleet.pause.who}: {fleet.pause.why}", _until(fleet.pause.until, now))
    return _outside_release_time(fleet, now)


def _has_had(fleet: Fleet, last: Rollout, lrn: int) -> bool:
    """Whether the server was taken along by the finished rollout `last`, or failed in it: such a one gets the next revision."""
    status = _status_in(fleet, last, lrn)
    left = last.out.get(lrn)
    return bool(status and status.cond == COMPLETE) or (left is not None and left.counts)


def _lacks_records(desired: Desired, fleet: Fleet, last: Rollout) -> bool:
    """Whether a server that completed the finished rollout `last` is not recorded as it was then: somebody has deleted
    (which means "install again") or changed a record by hand. With strategy `off` an OS image is recorded after another boot.
    """
    wanted: dict[str, dict[Key, str]] = {}
    for lrn in fleet.servers - fleet.disabled.keys() - last.out.keys():
        status, group = _status_in(fleet, last, lrn), desired.group_of(lrn)
        if status is None or status.cond != COMPLETE:
            continue
        if group.name not in wanted:
            artifacts = desired.artifacts_of(lrn)
            if group.reboot.strategy == "off":
                artifacts.pop(OS_IMAGE, None)
            wanted[group.name] = {key: artifact.version for key, artifact in artifacts.items()}
        recorded = fleet.recorded.get(lrn, {})
        if any(
            key not in recorded or recorded[key].version != text for key, text in wanted[group.name].items()
        ):
            return True
    return False


def _outside_release_time(fleet: Fleet, now: Now) -> Wait | None:
    times, timezone = fleet.settings.release_time, fleet.settings.release_timezone
    try:
        if may_open(times, timezone, now.wall):
            return None
        opening = next_time(times, timezone, now.wall)
    except ValueError as error:
        return Wait(f"config/release-time or config/release-timezone cannot be read: {error}")
    return Wait("outside the release time (config/release-time)", opening - now.wall if opening else None)


def _differs(desired: Desired, fleet: Fleet, servers: tuple[int, ...]) -> bool:
    """Whether any server has something to do: what is desired differs from its records, a step of an older rollout is
    still to be settled, or its agent says that it has to reboot.
    """
    asked = {agent.lrn for agent in fleet.agents if agent.reboot_required}
    for lrn in servers:
        if lrn in asked and desired.group_of(lrn).reboot.strategy != "off":
            return True
        before = {key: installed.artifact for key, installed in fleet.recorded.get(lrn, {}).items()}
        changes = difference(before, desired.artifacts_of(lrn))
        if any(desired.policy.prune or change.action != "remove" for change in changes):
            return True
        # What was only fetched has changed nothing; anything else that did not end is settled in a rollout.
        records = fleet.steps.get(lrn, {}).items()
        if any(record.state != "done" and not id.endswith(":fetch") for id, record in records):
            return True
        # A container that was stopped, or an OS that was staged, and nothing followed: a revert has to undo it.
        steps = fleet.steps.get(lrn, {})
        if interrupted(Server(lrn, "", "", recorded=fleet.recorded.get(lrn, {}), steps=steps)):
            return True
    return False


def _rollout(desired: Desired, fleet: Fleet, servers: tuple[int, ...], now: Now) -> Rollout:
    policy = desired.policy
    timeout = policy.timeout or fleet.settings.worker_timeout or DEFAULT_TIMEOUT
    return Rollout(
        version=desired.revision.id,
        servers=servers,
        started_at=timestamp(now.wall),
        waves=waves_of(desired, servers),
        timeout=timeout,
    )


def _over(until: str | None, now: Now) -> bool:
    return until is not None and datetime.fromisoformat(until).timestamp() <= now.wall


def _until(until: str | None, now: Now) -> float | None:
    return datetime.fromisoformat(until).timestamp() - now.wall if until else None
