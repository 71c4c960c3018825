"""A watch that goes on: it resumes after its last event, and says so where history is gone. Called by the agent and the lock.

What it tells is a hint. Whoever acts reads the state itself, and every pass finds what a lost event would have told.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from reconciler.errors import NoEtcd, ReconcilerError
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
    """Watches on one stream, of which one is waited for at a time: for who waits for this and then for that. For one thread.

    Each begins now and not at an etcd revision of the past, however near: what lies behind, etcd hands out only every
    100 ms. So one watches first, then reads, and then waits. Of each watch only the newest event is kept.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stream: WatchStream | None = None
        self._news = _News()
        self._watched: dict[KeyRange, int] = {}

    def watch(self, keys: KeyRange, *, deletions_only: bool = False) -> bool:
        """Watch `keys` from now on, until `drop`. False where they are watched already. Raises `Unavailable`."""
        if self._stream is not None and keys in self._watched:
            return False
        if self._stream is None:
            self._stream, self._news = self._client.open_watch((), ()), _News()
            arguments = (self._stream, self._news)
            threading.Thread(target=_pass_on, args=arguments, name="etcd-lookout", daemon=True).start()
        number = self._watched[keys] = self._stream.add(keys, 0, deletions_only=deletions_only)
        try:
            if not self._news.wait(lambda news: number in news.made, _MADE_WITHIN):
                raise NoEtcd("cannot watch etcd: it does not answer")
        except ReconcilerError:
            self.close()
            raise
        return True

    def wait(
        self, keys: KeyRange, after: int, timeout: float, stop: threading.Event | None = None
    ) -> Event | None:
        """The newest event of `keys`, which are watched, once there is one after the etcd revision `after`.

        None when `timeout` (seconds) is over, or at `stop`. Raises `Unavailable` when the stream breaks.
        """
        number = self._watched[keys]

        def has_come(news: _News) -> bool:
            return number in news.newest and news.newest[number].item.mod_revision > after

        try:
            return self._news.newest[number] if self._news.wait(has_come, timeout, stop) else None
        except ReconcilerError:
            self.close()
            raise

    def drop(self, keys: KeyRange) -> None:
        """Watch `keys` no longer. Not watching them is no error."""
        number = self._watched.pop(keys, None)
        if number is not None and self._stream is not None:
            self._stream.drop(number)
            self._news.newest.pop(number, None)

    def close(self) -> None:
        """End the stream; the next watch opens another."""
        self._watched.clear()
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


class _News:
    """What a stream has told, by the number of the watch: which are made, and the newest event of each."""

    def __init__(self) -> None:
        self.made: set[int] = set()
        self.newest: dict[int, Event] = {}
        self.trouble: ReconcilerError | None = None
        self._told = threading.Condition()

    def tell(self, reply: WatchReply | ReconcilerError) -> None:
        with self._told:
            if isinstance(reply, ReconcilerError):
                self.trouble = reply
            elif reply.events:
                self.newest[reply.index] = reply.events[-1]
            else:
                self.made.add(reply.index)
            self._told.notify_all()

    def wait(
        self, has_come: Callable[[_News], bool], timeout: float, stop: threading.Event | None = None
    ) -> bool:
        """Whether what is waited for has come within `timeout` seconds, and before `stop`. Raises what broke the stream."""
        end = time.monotonic() + timeout
        with self._told:
            while not has_come(self):
                left = end - time.monotonic()
                if self.trouble is not None:
                    raise self.trouble
                if left <= 0 or (stop is not None and stop.is_set()):
                    return False
                self._told.wait(left if stop is None else min(left, _STOP_SEEN_WITHIN))
        return True


def _pass_on(stream: WatchStream, news: _News) -> None:
    try:
        for reply in stream:
            news.tell(reply)
    except ReconcilerError as error:
        news.tell(error)
