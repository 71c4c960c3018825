"""*stop*: stop a `stop-all` container, before any of its wave starts again."""

from __future__ import annotations

from reconciler.agent.hands import Did, Hands
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server
from reconciler.errors import HostError


def stop(step: Step, plan: Plan, server: Server, hands: Hands) -> Did:
    if step.subject is None:
        raise HostError(f"step {step.id} names no container")
    hands.containers.stop(step.subject)
    return Did()
