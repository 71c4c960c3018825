"""A watch that goes on: it resumes after its last event, and says so where history is gone. Called by the agent and the lock.

What it tells is a hint. Whoever acts reads the state itself, and every pass finds what a lost event would have told.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from reconciler.errors import ReconcilerError, Unavailable
from reconciler.store.transaction import Event, KeyRange

if TYPE_CHECKING:
    from reconciler.store.client import Client
    from reconciler.store.stream import WatchReply, WatchStream

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_STOP_SEEN_WITHIN = 0.2
_MADE_WITHIN = 5.0
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


class Lookout:
    """Short watches, one after another, on one stream: for who waits for this and then for that. For one thread at a time.

    Each begins now and not at an etcd revision of the past, however near: what lies behind, etcd hands out only every
    100 ms. So one watches first, then reads, and then waits.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stream: WatchStream | None = None
        self._news: queue.SimpleQueue[WatchReply | ReconcilerError] = queue.SimpleQueue()
        self._index = -1

    @contextlib.contextmanager
    def on(self, keys: KeyRange) -> Iterator[Lookout]:
        """Watch `keys` from now on. Raises `Unavailable` where the watch cannot be made."""
        stream = self._open()
        self._index = stream.add(keys, 0)
        try:
            made = self._next(time.monotonic() + _MADE_WITHIN, None)
            if made is None:
                raise Unavailable("cannot watch etcd: it does not answer")
            yield self
        except ReconcilerError:
            self.close()
            raise
        finally:
            stream.drop(self._index)

    def wait(self, timeout: float, stop: threading.Event | None = None) -> tuple[Event, ...] | None:
        """The next events, within `on`. None when `timeout` (seconds) is over, or at `stop`. Raises `Unavailable` when the stream breaks."""
        end = time.monotonic() + timeout
        while (reply := self._next(end, stop)) is not None:
            if reply.events:
                return reply.events
        return None

    def _next(self, end: float, stop: threading.Event | None) -> WatchReply | None:
        while (left := end - time.monotonic()) > 0 and not (stop is not None and stop.is_set()):
            try:
                reply = self._news.get(timeout=left if stop is None else min(left, _STOP_SEEN_WITHIN))
            except queue.Empty:
                continue
            if isinstance(reply, ReconcilerError):
                raise reply
            if reply.index == self._index:
                return reply
        return None

    def _open(self) -> WatchStream:
        if self._stream is None:
            self._stream, self._news = self._client.open_watch((), ()), queue.SimpleQueue()
            reader = threading.Thread(
                target=_pass_on, args=(self._stream, self._news), name="etcd-lookout", daemon=True
            )
            reader.start()
        return self._stream

    def close(self) -> None:
        """End the stream; the next watch opens another."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


def _pass_on(stream: WatchStream, news: queue.SimpleQueue[WatchReply | ReconcilerError]) -> None:
    try:
        for reply in stream:
            news.put(reply)
    except ReconcilerError as error:
        news.put(error)
