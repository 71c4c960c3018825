"""The waiting line for a slot of the reboot lock: who waits is let in in the order of asking. Called by the agent and `lock`.

Waiting asks etcd nothing: the first in the line watches the document, everybody else the one before, and whether that one
gives the slot back at once. What a watch tells is a hint: whether one's turn has come is compared in the transaction that
takes the slot.
"""

from __future__ import annotations

import random
import threading
import time

from reconciler.core.semaphore import Holder
from reconciler.core.state import Waiter
from reconciler.errors import Fenced, Unavailable
from reconciler.store.lock import RebootLock
from reconciler.store.lock_view import LockView, Refused, Taken, view_from_document
from reconciler.store.session import Session
from reconciler.store.transaction import Event, KeyRange, one
from reconciler.store.watch import Lookout

WAITER_TTL = 30.0
"""Seconds without a sign of life after which a waiter has left the line."""

_LOOKS_AGAIN_AFTER = 20.0
_SOON = 0.05
"""Seconds for which the next in the line waits for the one before alone, who has just gone in."""
_AWAY_PAUSE = 0.5
_random = random.SystemRandom()


class Line:
    """The line before one lock. Not for several threads at once.

    Within a `with` block it keeps what one waits with, a lease and a stream, for who takes slots again and again.
    """

    def __init__(self, lock: RebootLock) -> None:
        self._lock = lock
        self._lookout = Lookout(lock.client)
        self._session: Session | None = None
        self._is_kept = False
        self._before: tuple[
            KeyRange, ...
        ] = ()  # the watched keys of the one before: its place, and the slot that it took
        self._had_to_wait = False  # then one joins the line at once the next time

    def __enter__(self) -> Line:
        self._is_kept = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_kept = False
        self.close()

    def close(self) -> None:
        """Give back what one waited with. Slots stay: nothing but a release ends them."""
        self._lookout.close()
        if self._session is not None:
            self._session.close()
            self._session = None

    # --- with a place of one's own ----------------------------------------------------------------------------------

    def acquire(
        self, holder: Holder, wait: float = 0.0, stop: threading.Event | None = None
    ) -> Taken | Refused:
        """Take a slot; with `wait` (seconds) stand in line for it until then, or until `stop` is set. Without, never queue."""
        end = time.monotonic() + wait
        if wait <= 0 or not self._had_to_wait:
            answer = self._lock.take(holder)
            if wait <= 0 or isinstance(answer, Taken) or not answer.waits:
                return answer
        try:
            return self._wait_in_line(holder, end, stop)
        finally:
            self._lookout.drop(one(self._lock.key))
            if not self._is_kept:
                self.close()

    def _wait_in_line(self, holder: Holder, end: float, stop: threading.Event | None) -> Taken | Refused:
        """Stand in line until the slot is taken or the time is up; etcd may be away meanwhile. Only a lost lease loses the place."""
        while True:
            try:
                session = self._line_session()
                waiter, view = self._lock.enqueue(session, holder)
                return self._stay_in_line(waiter, view, holder, end, stop)
            except Fenced:
                if session.alive or time.monotonic() > end:
                    raise
            except Unavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(_AWAY_PAUSE * (0.5 + _random.random()))

    def _stay_in_line(
        self, waiter: Waiter, view: LockView, holder: Holder, end: float, stop: threading.Event | None
    ) -> Taken | Refused:
        self._had_to_wait = False
        while True:
            refused = view.refusal(waiter)
            if refused is None or view.record_of(holder.machine_id):
                answer = self._lock.take(holder, waiter, first=view)
                if isinstance(answer, Taken):
                    return answer
                refused, view = answer, answer.view or self._lock.look()
            if not refused.waits or _is_over(end, stop):
                self._lock.leave(waiter)
                return refused
            self._had_to_wait = True
            view = self._wait(view, waiter, end, stop)

    def _line_session(self) -> Session:
        if self._session is None or not self._session.alive:
            self.close()
            self._session = Session(self._lock.client, WAITER_TTL)
        return self._session

    # --- waiting ----------------------------------------------------------------------------------------------------

    def wait_for_turn(self, waiter: Waiter, timeout: float, stop: threading.Event | None = None) -> bool:
        """Wait for what may let `waiter` in, at most `timeout` seconds: its predecessor leaves or, for the first, a slot is freed.

        True where it is worth trying again; False when the time is up, or at `stop`.
        """
        end = time.monotonic() + timeout
        try:
            view = self._lock.look()
            while view.refusal(waiter) is not None and not _is_over(end, stop):
                view = self._wait(view, waiter, end, stop)
                if view.guessed:
                    view = self._lock.look()
        finally:
            if not self._is_kept:
                self._lookout.close()
        return not _is_over(end, stop)

    def _wait(self, view: LockView, waiter: Waiter, end: float, stop: threading.Event | None) -> LockView:
        """Wait until something has happened to what concerns `waiter`, who stood in line as in `view`: what is known, or expected, then.

        What is watched only from now on may have changed since `view`: there is no waiting before another look.
        """
        before = self._lock.before(waiter, view)
        if before is None:
            return self._wait_for_slot(view, waiter, end, stop)
        place = one(before)
        if place not in self._before:
            for watched in self._before:
                self._lookout.drop(watched)
            self._before = (place,)
        if self._lookout.watch(place, deletions_only=True):
            return self._lock.look()
        left = self._wait_for(place, view.revision, end, stop)
        if left is None:
            return self._lock.look()
        # Most likely that one was first and has taken a slot.
        if self._gives_back_soon(left, end, stop):
            return view.emptied(waiter)
        return self._wait_for_slot(view, waiter, end, stop)

    def _gives_back_soon(self, left: Event, end: float, stop: threading.Event | None) -> bool:
        """Whether the one before, who has just left the line, was seen to give a slot back at once.

        For two watches that stay while the line is kept, where the document's would tell everybody of everybody's slot.
        """
        if not left.item.value:
            return False
        slot = one(self._lock.slot_of(left.item))
        if slot not in self._before:
            self._before = (*self._before, slot)
        if self._lookout.watch(slot, deletions_only=True):
            return False
        soon = min(end, time.monotonic() + _SOON)
        return self._wait_for(slot, left.item.mod_revision, soon, stop) is not None

    def _wait_for_slot(
        self, view: LockView, waiter: Waiter, end: float, stop: threading.Event | None
    ) -> LockView:
        """The first in the line waits for the document. At first it expects that whoever held a slot has given it back meanwhile."""
        document = one(self._lock.key)
        if self._lookout.watch(document):
            return view.emptied(waiter) if view.mod_revision else self._lock.look()
        event = self._wait_for(document, view.revision, end, stop)
        if event is None or event.deleted:
            return self._lock.look()
        return view_from_document(event.item, self._lock.group, waiter)

    def _wait_for(
        self, watched: KeyRange, after: int, end: float, stop: threading.Event | None
    ) -> Event | None:
        # Watches are hints: what one did not tell is found by looking again now and then.
        patience = min(end - time.monotonic(), _LOOKS_AGAIN_AFTER)
        return self._lookout.wait(watched, after, patience, stop)


def _is_over(end: float, stop: threading.Event | None) -> bool:
    return time.monotonic() > end or (stop is not None and stop.is_set())
