"""*warn*: tell the users who are logged in that the server goes down, and give them the time that the group's rules say."""

from __future__ import annotations

from reconciler.agent.hands import Did, Hands
from reconciler.core.duration import format_duration
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server
from reconciler.errors import HeldBack
from reconciler.host import reboot as host


def warn(step: Step, plan: Plan, server: Server, hands: Hands) -> Did:
    told = host.warn(
        hands.host,
        f"This server reboots in {format_duration(plan.reboot.warn)}: please save your work and log out.",
    )
    if told and hands.ending.wait(plan.reboot.warn):
        raise HeldBack("the warning was left off: the agent ends")
    return Did(", ".join(user.name for user in told))
