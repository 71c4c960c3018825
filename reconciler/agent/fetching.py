"""How far the fetches of a phase have come, in bytes, for the log and for `reconcile status`. Called by the worker; not pure.

Drivers tell it from their threads; the worker asks it while it waits for them. What it says also shows the leader that a
long download makes progress.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from reconciler.core.artifact import Key
from reconciler.host.driver import Progress


class Fetching:
    """The fetches that are under way. `onward` hears what it is told, too."""

    def __init__(self, onward: Progress) -> None:
        self._onward = onward
        self._mutex = threading.Lock()
        self._parts: dict[str, tuple[int, int | None]] = {}

    def begin(self) -> None:
        """Forget the fetches of before."""
        with self._mutex:
            self._parts = {}

    def take(self, subject: str, done: int, total: int | None) -> None:
        """A `Progress`: `subject` has `done` bytes of `total`."""
        with self._mutex:
            self._parts[subject] = (done, total)
        self._onward(subject, done, total)

    def text(self, waited_for: Iterable[Key]) -> str:
        """`fetches image/web 12.3 of 200.1 MB, deb/tool`: what is still waited for, and how much of it has come."""
        with self._mutex:
            parts = dict(self._parts)
        return "fetches " + ", ".join(_one(key.subject, parts) for key in sorted(waited_for))


def _one(subject: str, parts: dict[str, tuple[int, int | None]]) -> str:
    # An OS image has two files, each told by its name after the subject.
    mine = [part for name, part in parts.items() if name == subject or name.startswith(f"{subject} ")]
    if not mine:
        return subject
    totals = [total for _, total in mine if total is not None]
    of = f" of {sum(totals) / 1e6:.1f}" if len(totals) == len(mine) else ""
    return f"{subject} {sum(done for done, _ in mine) / 1e6:.1f}{of} MB"
