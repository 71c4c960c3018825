"""*acquire*: take a slot of the lock group, or stand in its line. A slot that this server holds already is taken."""

from __future__ import annotations

from reconciler.agent.hands import Did
from reconciler.agent.writing import Writing
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server
from reconciler.errors import HeldBack


class Queued(HeldBack):
    """No slot is free, or others asked before: this server stands in the line and is woken when it moves."""


def acquire(step: Step, plan: Plan, server: Server, writing: Writing) -> Did:
    reason = f"{step.phase} {step.subject.subject}" if step.subject else "reboot"
    group = writing.slot_group(server, plan.reboot.lock_group)
    before = writing.take_slot(server, group, reason)
    if before is not None:
        raise Queued(f"waiting for a slot of lock group {group}: {before}")
    return Did(group)
