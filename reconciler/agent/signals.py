"""Signals as events: what each asks for is done by a thread that does nothing else. Used by the agent, a pass and `fleetlock`.

Python's own handlers run in the main thread, inside whatever that does: maybe while it holds the lock that the handler
then waits for, and not at all while it is blocked and the kernel has given the signal to another thread.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any


class Signals:
    """Within it, `actions` are done for their signals, one after the other. For the main thread; one at a time."""

    def __init__(self, actions: Mapping[int, Callable[[], None]]) -> None:
        self._actions = dict(actions)
        self._before: dict[int, Any] = {}
        self._reader, self._writer, self._old = -1, -1, -1

    def __enter__(self) -> Signals:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        threading.Thread(target=self._hear, args=(self._reader,), name="signals", daemon=True).start()
        # The interpreter writes each signal's number there from its C handler, in whichever thread that runs.
        self._old = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _heard) for number in self._actions}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old)
        os.close(self._writer)

    def _hear(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                action = self._actions.get(number[0])
                if action is not None:
                    action()


def _heard(number: int, frame: FrameType | None) -> None:
    """The thread hears of it; without a handler of its own a signal would end the process."""
