"""A watch that goes on: it resumes after its last event, and says so where history is gone. Called by the agent and the lock.

What it tells is a hint. Whoever acts reads the state itself, and every pass finds what a lost event would have told.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from reconciler.errors import ReconcilerError
from reconciler.store.transaction import Event, KeyRange

if TYPE_CHECKING:
    from reconciler.store.client import Client, WatchStream

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_STOP_SEEN_WITHIN = 0.2
_random = random.SystemRandom()


class Watch:
    """Events of `ranges` from `start_revision` on, in a thread of its own, until `close`.

    `on_events` gets the events of one etcd revision or more, and the etcd revision they bring one to. `on_compacted`
    is called where history is gone: it reads everything anew and returns the etcd revision that it read at.
    `on_trouble`, if given, hears each error before the watch is tried again.
    """

    def __init__(
        self,
        client: Client,
        ranges: Sequence[KeyRange],
        start_revision: int,
        on_events: Callable[[tuple[Event, ...], int], None],
        on_compacted: Callable[[], int],
        on_trouble: Callable[[ReconcilerError], None] | None = None,
    ) -> None:
        self._client = client
        self._ranges = tuple(ranges)
        self._next = [start_revision] * len(self._ranges)
        self._on_events = on_events
        self._on_compacted = on_compacted
        self._on_trouble = on_trouble
        self._stop = threading.Event()
        self._stream: WatchStream | None = None
        self._pause = _FIRST_PAUSE
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it. Returns when its thread has ended, or after two seconds."""
        self._stop.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(2)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except ReconcilerError as error:
                if self._stop.is_set():
                    return
                if self._on_trouble is not None:
                    self._on_trouble(error)
                self._stop.wait(self._pause * (0.5 + _random.random()))
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _follow(self) -> None:
        """One stream to its end: it breaks, it is cancelled, or everything was read anew."""
        stream = self._stream = self._client.open_watch(self._ranges, self._next)
        if self._stop.is_set():  # set before `close` could see this stream
            stream.cancel()
        for reply in stream:
            if self._stop.is_set():
                return
            self._pause = _FIRST_PAUSE
            if reply.compacted:
                self._next = [self._on_compacted() + 1] * len(self._ranges)
                stream.cancel()
                return
            if reply.events:
                self._on_events(reply.events, reply.revision)
            self._next[reply.index] = max(self._next[reply.index], reply.revision + 1)


def wait_for(
    client: Client,
    keys: Sequence[KeyRange],
    revision: int,
    timeout: float,
    stop: threading.Event | None = None,
) -> bool:
    """Wait for a change of `keys` after etcd revision `revision`, at most `timeout` seconds. False when the time was up, or at `stop`."""
    news = threading.Event()

    def compacted() -> int:
        news.set()
        return revision

    end = time.monotonic() + timeout
    with Watch(client, keys, revision + 1, lambda events, at: news.set(), compacted):
        while (left := end - time.monotonic()) > 0 and not (stop is not None and stop.is_set()):
            if news.wait(left if stop is None else min(left, _STOP_SEEN_WITHIN)):
                return True
    return False
