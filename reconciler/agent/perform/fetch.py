"""*fetch*: bring all that an artifact's change will need to this server, and check it. Tries again where the failure may pass.

A download asks again, and goes on where it broke off; that all of it is tried again is said here alone.
"""

from __future__ import annotations

import logging
import random

from reconciler.agent.hands import Did, Hands, pin_of
from reconciler.core.artifact import Known
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server
from reconciler.errors import HeldBack, HostError, Unavailable

log = logging.getLogger(__name__)

TRIES = 3
FIRST_PAUSE = 4.0
"""Seconds before the second try; each further pause is twice as long, with jitter."""


def fetch(step: Step, plan: Plan, server: Server, hands: Hands, pause: float = FIRST_PAUSE) -> Did:
    artifact = step.change.after if step.change else None
    if step.subject is None or artifact is None or isinstance(artifact, Known):
        raise HostError(f"step {step.id} names nothing that could be fetched")
    driver = hands.drivers[step.subject.kind]
    for attempt in range(1, TRIES + 1):
        try:
            driver.fetch(artifact, pin_of(artifact, server.pins), hands.progress)
            return Did()
        except Unavailable as error:
            if attempt == TRIES:
                raise HostError(f"{error}\ngiven up after {TRIES} tries") from None
            log.warning("%s: try %d of %d failed: %s", step.id, attempt, TRIES, error)
        if hands.ending.wait(pause * (0.5 + random.random())):  # noqa: S311 (jitter is no secret)
            raise HeldBack(f"{step.id} was left off: the agent ends")
        pause *= 2
    raise AssertionError("unreachable")
