"""The *change* of the agent itself: handed to a process outside, which replaces it; the agent that is started then finds the step begun.

What replaces the agent must not be its child in any way: systemd ends a service's whole control group, and a container all
that is in it. So the change is noted in the state directory, made by `agent/replacement` outside, and not waited for but by
the old agent's being ended. The new agent looks at the host, as after any crash, and records what it sees.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from reconciler.agent import replacement
from reconciler.agent.hands import Hands
from reconciler.agent.replacement import Replacement
from reconciler.core.artifact import Artifact, Key, Pin
from reconciler.core.plan import OWN
from reconciler.errors import HeldBack, HostError
from reconciler.host import units

TRIES = 2
"""Replacements by one and the same artifact that are begun before the step fails."""
_ENDS_WITHIN = 120.0
"""Seconds that a replacement has for its end after it has started this agent, and this agent before it ends itself after its own."""
_STOPPED_WITHIN = 5.0
_POLL = 0.2
_ME = uuid.uuid4().hex
"""This process: it has not been replaced as long as it lives."""


def is_own(key: Key, hands: Hands) -> bool:
    """Whether to change it is to end this very agent. A package of the host does not touch an agent that runs in a container."""
    if hands.restart is None or key.name != OWN:
        return False
    return key.kind == "image" or (key.kind == "deb" and hands.host.exec == "direct")


def replace_agent(artifact: Artifact, pin: Pin | None, there: Callable[[], bool], hands: Hands) -> None:
    """Returns where the host has `artifact`, which another process has brought there; else it ends in an error.

    Raises `HeldBack` when this agent is ended for its replacement, `HostError` where that cannot be made.
    """
    before = replacement.recall(hands.host)
    if before is None or (before.artifact, before.pin) != (artifact, pin):
        before = Replacement(artifact, pin, hands.runtime, "", 0)
    if before.by not in ("", _ME) and _comes_to_its_end(there, hands):
        return
    if before.times >= TRIES:
        replacement.forget(hands.host)
        raise HostError(
            f"cannot replace the agent on server {hands.host.lrn} by {artifact.key.subject} {artifact.version}: it was tried "
            f"{before.times} times{_why(before.outcome)}"
        )
    replacement.hand_over(replace(before, by=_ME, times=before.times + 1, outcome=None), hands.host)
    _wait_to_be_ended(artifact, there, hands)


def _comes_to_its_end(there: Callable[[], bool], hands: Hands) -> bool:
    """The replacement that started this agent may still be at its end; where it holds the host's lock, it has ended before this agent began."""
    end = time.monotonic() + (_ENDS_WITHIN if units.has_systemd(hands.host) else 0.0)
    while not there():
        found = replacement.recall(hands.host)
        if found is None or found.outcome is not None or time.monotonic() > end:
            return there()
        if hands.ending.wait(_POLL):
            raise HeldBack("the agent ends while it is being replaced")
    return True


def _wait_to_be_ended(artifact: Artifact, there: Callable[[], bool], hands: Hands) -> None:
    end = time.monotonic() + _ENDS_WITHIN + hands.alarm_after()
    while time.monotonic() < end:
        if hands.ending.wait(_POLL):
            raise HeldBack("the agent is being replaced: the new one goes on")
        found = replacement.recall(hands.host)
        if found is not None and found.outcome:
            raise HostError(f"cannot replace the agent on server {hands.host.lrn}: {found.outcome}")
        if found is not None and (found.outcome == "" or (found.by_systemd and there())):
            # Nobody has ended it for the new one's sake, which its supervisor starts in its place.
            if not hands.ending.wait(_STOPPED_WITHIN) and hands.restart is not None:
                hands.restart()
                hands.ending.wait(_ENDS_WITHIN)
            raise HeldBack("the agent has been replaced: the new one goes on")
    raise HostError(
        f"cannot replace the agent on server {hands.host.lrn} by {artifact.key.subject} {artifact.version}: what replaces "
        f"it has not ended; {hands.host.state_dir / replacement.OUTPUT} has what it said"
    )


def _why(outcome: str | None) -> str:
    return f": {outcome}" if outcome else ", and the host still does not have it"
