"""*release*: give the slot back. One that this server does not hold is no error."""

from __future__ import annotations

from reconciler.agent.hands import Did
from reconciler.agent.writing import Writing
from reconciler.core.state import Server


def release(server: Server, writing: Writing) -> Did:
    return Did(writing.give_slot_back(server))
