"""*hook*: run a root-owned program of the host that the desired state names."""

from __future__ import annotations

from reconciler.agent.hands import Did, Hands
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server
from reconciler.errors import HostError
from reconciler.host.hooks import run_hook


def hook(step: Step, plan: Plan, server: Server, hands: Hands) -> Did:
    if step.hook is None:
        raise HostError(f"step {step.id} names no hook")
    environment = {
        "RECONCILER_STEP": step.id,
        "RECONCILER_REVISION": server.revision,
    }
    run_hook(hands.host, step.hook, environment=environment)
    return Did()
