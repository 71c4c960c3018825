"""Recorded against observed: what the host lost or had changed since it was recorded. Called by the worker, *verify* and `reconcile drift`."""

from __future__ import annotations

from reconciler.agent.hands import Hands
from reconciler.core.change import Change
from reconciler.core.difference import drift
from reconciler.core.state import Recorded


def drifted(recorded: Recorded, hands: Hands, *, closely: bool = False) -> tuple[Change, ...]:
    """Each difference, `before` as it was recorded and `after` as it is found. What Neco recorded says too little to compare.

    `closely`: the files of packages are read as well. Not in *verify*: they were put there a moment ago.
    """
    known = {key: entry.detail for key, entry in recorded.items() if entry.detail}
    found = hands.look((detail.desired for detail in known.values()), closely=closely)
    return drift({key: detail.found for key, detail in known.items()}, found)


def described(change: Change) -> str:
    """One difference as a line of text."""
    wanted = change.before.version if change.before else "nothing"
    return f"{change.key.subject}: recorded {wanted}, found {change.after.version if change.after else 'nothing'}"
