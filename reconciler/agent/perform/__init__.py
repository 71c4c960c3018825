"""Performs one step: says it in etcd (fenced), does it, records what the host shows. One file a kind of step.

No file here reads a rollout's state or compares a time (`tests/agent/test_perform.py`): whether a step may begin was
`advance`'s to decide, and the fence's to confirm.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import assert_never

from reconciler.agent.hands import Did, Hands, pin_of
from reconciler.agent.perform.acquire import Queued, acquire
from reconciler.agent.perform.change import change, installed
from reconciler.agent.perform.fetch import fetch
from reconciler.agent.perform.health import Restored, health
from reconciler.agent.perform.hook import hook
from reconciler.agent.perform.reboot import after_boot, has_booted, reboot
from reconciler.agent.perform.release import release
from reconciler.agent.perform.stop import stop
from reconciler.agent.perform.warn import warn
from reconciler.agent.writing import Writing
from reconciler.core.advance import Perform
from reconciler.core.artifact import Known
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server, StepRecord
from reconciler.errors import HeldBack, HostError, Unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Done:
    """The step is done and recorded. `seconds` is how long it took."""

    step: Step
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The step has failed, and that is recorded."""

    step: Step
    seconds: float
    message: str


@dataclass(frozen=True, slots=True)
class LeftOff:
    """The step was begun and is not ended: the agent ends, or it waits in the lock's line. It goes on from its record."""

    step: Step
    reason: str
    queued: bool = False


Outcome = Done | Failed | LeftOff


def perform(move: Perform, plan: Plan, server: Server, hands: Hands, writing: Writing) -> Outcome:
    """Perform `move`. Raises `Fenced` where it may not begin, `Unavailable` where etcd cannot be asked."""
    step, started = move.step, time.monotonic()
    record = server.steps.get(step.id)
    booted = step.effect == "reboot" and has_booted(record, move.rollout, server)
    in_line = step.effect == "acquire" and record is not None and record.rollout == move.rollout
    if record is None or not (booted or (in_line and record.state == "running")):
        record = writing.begin(step, move, server, _target(step, plan, server, writing))
        log.info("begins %s", step.id, extra=_fields(server, step, move.rollout))
    try:
        did = after_boot(record, server, hands) if booted else _effect(move, plan, server, hands, writing)
    except HeldBack as error:
        return LeftOff(step, str(error), isinstance(error, Queued))
    except (HostError, Unavailable) as error:
        seconds = time.monotonic() - started
        found = error.did if isinstance(error, Restored) else Did()
        if booted:
            # This boot has been looked at: only another one can show anything else.
            record = replace(record, boot_id=server.boot_id)
        writing.fail(record, server, str(error), found)
        log.error("%s failed: %s", step.id, error, extra=_fields(server, step, move.rollout))
        return Failed(step, seconds, str(error))
    writing.complete(record, server, did)
    seconds = time.monotonic() - started
    log.info("has done %s in %.1f s", step.id, seconds, extra=_fields(server, step, move.rollout))
    return Done(step, seconds)


def _effect(move: Perform, plan: Plan, server: Server, hands: Hands, writing: Writing) -> Did:
    step = move.step
    match step.effect:
        case "fetch":
            return fetch(step, plan, server, hands)
        case "acquire":
            return acquire(step, plan, server, writing)
        case "hook":
            return hook(step, plan, server, hands)
        case "warn":
            return warn(step, plan, server, hands)
        case "stop":
            return stop(step, plan, server, hands)
        case "change":
            return change(step, plan, server, hands)
        case "reboot":
            return reboot(step, plan, server, hands)
        case "health":
            return health(step, plan, server, hands, move.rollout)
        case "release":
            return release(server, writing)
        case _:
            assert_never(step.effect)


def settle(record: StepRecord, plan: Plan, server: Server, hands: Hands, writing: Writing) -> None:
    """Look at the host, change nothing, and record what `record`'s step did: all of it, or not."""
    step = next((step for step in plan.steps if step.id == record.id), None)
    try:
        did = _look_only(step, record, server, hands) if step else None
    except HostError as error:
        writing.fail(record, server, f"was interrupted, and the host cannot be looked at: {error}", Did())
        return
    if did is None:
        writing.fail(
            record, server, "was interrupted: the next plan looks at the host and goes on from there", Did()
        )
    else:
        writing.complete(record, server, did)
    log.info("settled %s: %s", record.id, "done" if did else "interrupted", extra={"step": record.id})


def _look_only(step: Step, record: StepRecord, server: Server, hands: Hands) -> Did | None:
    """What a *change* has done, if it has done all of it."""
    if step.effect != "change" or step.subject is None or step.change is None:
        return None
    if step.change.action == "remove":
        known = step.change.before
        gone = known is not None and step.subject not in hands.look([known])
        return Did(removals=(step.subject,)) if gone else None
    return _as_wanted(step, server, hands)


def _as_wanted(step: Step, server: Server, hands: Hands) -> Did | None:
    artifact = step.change.after if step.change else None
    if (
        step.subject is None
        or artifact is None
        or isinstance(artifact, Known)
        or (step.change and step.change.reboot)
    ):
        return None
    target = hands.drivers[step.subject.kind].target(artifact, pin_of(artifact, server.pins))
    found = hands.look([artifact]).get(step.subject)
    if found is None or found != target:
        return None
    return Did(found, (installed(artifact, found, server, hands),))


def _target(step: Step, plan: Plan, server: Server, writing: Writing) -> str:
    """What the record says that the step is to bring about: a version, or a slot of which lock group; nothing where it is there."""
    if step.effect == "reboot":
        return plan.os
    if step.effect == "acquire":
        return writing.slot_group(server, plan.reboot.lock_group)
    artifact = step.change.after if step.change else None
    if artifact is None or (step.change and step.change.reason == "found_on_host"):
        return ""
    return artifact.version


def _fields(server: Server, step: Step, rollout: str) -> dict[str, object]:
    return {"server": server.lrn, "step": step.id, "rollout": rollout, "revision": server.revision}


__all__ = ["Done", "Failed", "LeftOff", "Outcome", "perform", "settle"]
