"""*release*: give the slot back. One that this server does not hold is no error."""

from __future__ import annotations

from reconciler.agent.hands import Did
from reconciler.agent.writing import Writing
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server


def release(step: Step, plan: Plan, server: Server, writing: Writing) -> Did:
    writing.give_slot_back(server, plan.reboot.lock_group)
    return Did(plan.reboot.lock_group)
