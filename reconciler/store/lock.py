"""The reboot lock: slots of a lock group, their holders' records and the waiting line. Called by the agent, `lock` and FleetLock.

The document and the holder's record change in one transaction, compared on the document's etcd revision; a conflict
is tried again. What was read last is kept, so that a change nobody interferes with is one transaction and no read.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import Waiter
from reconciler.errors import Fenced, HeldBack, ReconcilerError, Unavailable
from reconciler.store.client import Client
from reconciler.store.commit import Guard, Outcome, commit, require
from reconciler.store.keys import DEFAULT_GROUP, Keys
from reconciler.store.leading import prune
from reconciler.store.session import Session
from reconciler.store.transaction import (
    Delete,
    Item,
    KeyRange,
    Operation,
    Put,
    absent,
    create_is,
    delete,
    last_before,
    mod_is,
    none_under,
    oldest_under,
    one,
    put,
    under,
)
from reconciler.store.watch import Lookout
from reconciler.wire.lock import (
    ReleasedSlot,
    decode_holder,
    decode_released,
    decode_semaphore,
    decode_waiter,
    encode_holder,
    encode_released,
    encode_semaphore,
    encode_waiter,
)

PATIENCE = 30.0
"""Seconds for which a change is tried again while others change the same document."""

WAITER_TTL = 30.0
"""Seconds without a sign of life after which a waiter has left the line."""

_LINE_LOOKED_AT = 64
_LOOKS_AGAIN_AFTER = 20.0
_AWAY_PAUSE = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
_TRIED_AT_ONCE = 4
"""Conflicts after which one pauses: who pauses after each never comes in beside one that goes on without a pause."""
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Taken:
    """The slot is held, by `holder` as it is recorded. `again`: it was held already, and nothing was changed."""

    holder: Holder
    again: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """No slot now, and why. `waits`: it is only that none is free, or that somebody came before."""

    reason: str
    waits: bool = True


@dataclass(frozen=True, slots=True)
class _View:
    """One lock group: `first` are the first in the waiting line. `fresh`: read by the call that is under way."""

    fresh: bool
    revision: int
    semaphore: Semaphore
    mod_revision: int
    holders: dict[str, Holder]
    first: tuple[str, ...]

    def record_of(self, machine_id: str) -> Holder | None:
        """The record of a machine that holds a slot. One without a record is an operator's."""
        if machine_id not in self.semaphore.holders:
            return None
        return self.holders.get(machine_id, Holder(machine_id))


class RebootLock:
    """One lock group. Not for several threads at once; each makes its own over the shared client."""

    def __init__(
        self, client: Client, keys: Keys, group: str = DEFAULT_GROUP, patience: float = PATIENCE
    ) -> None:
        self._client = client
        self._keys = keys
        self.group = group
        self._patience = patience
        self._key = keys.semaphore(group)
        self._seen: _View | None = None
        self._session: Session | None = None
        self._lookout = Lookout(client)
        self._is_kept = False
        self._had_to_wait = False  # then one joins the line at once the next time

    # --- taking -----------------------------------------------------------------------------------------------------

    def take(
        self,
        holder: Holder,
        waiter: Waiter | None = None,
        *,
        guards: Sequence[Guard] = (),
        also: Sequence[Operation] = (),
    ) -> Taken | Refused:
        """Take a slot for `holder` if one is free and nobody came before: `waiter` is one's own place in the line, if any.

        Asking again is success. `guards` are compared, and `also` is written, in the same transaction (where the slot
        is held already: in one of their own); a guard that does not hold raises `Fenced`.
        """
        if not holder.machine_id:
            raise ValueError("an empty machine id cannot hold a slot")
        for view in self._views():
            held = view.record_of(holder.machine_id)
            refused = None if held else self._refusal(view, waiter)
            if (held or refused) and not view.fresh:
                self._seen = None
                continue
            if held is not None:
                return self._again(holder, held, waiter, guards, also)
            if refused is not None:
                return refused
            outcome = self._add(view, holder, waiter, guards, also)
            if outcome.made:
                return Taken(replace(holder, mod_revision=outcome.revision))
        raise self._crowded("take a slot")

    def _refusal(self, view: _View, waiter: Waiter | None) -> Refused | None:
        free = view.semaphore.free
        if not free:
            held = ", ".join(view.semaphore.holders) or "nobody"
            return Refused(
                f"no slot of lock group {self.group} is free: held by {held}, max {view.semaphore.max}"
            )
        if waiter is None:
            return Refused(f"others wait for a slot of lock group {self.group}") if view.first else None
        if waiter.key in view.first[:free]:
            return None
        if waiter.key in view.first or len(view.first) >= _LINE_LOOKED_AT:
            return Refused(f"others came before in the line of lock group {self.group}")
        # What is remembered may be older than the place in the line: a fresh look tells whether it is lost.
        if view.fresh:
            raise Fenced(f"cannot take a slot of lock group {self.group}: the place in the line is lost")
        return Refused(f"the place in the line of lock group {self.group} is not known yet")

    def _again(
        self,
        holder: Holder,
        held: Holder,
        waiter: Waiter | None,
        guards: Sequence[Guard],
        also: Sequence[Operation],
    ) -> Taken | Refused:
        if held.owner != holder.owner:
            whose = f"{held.source} of server {held.lrn}" if held.lrn is not None else held.source
            return Refused(
                f"machine {held.machine_id} holds a slot of lock group {self.group} already, for {whose}",
                False,
            )
        operations = [*also, *([delete(waiter.key)] if waiter else [])]
        if operations:
            still = Guard(
                mod_is(self._keys.holder(self.group, held.machine_id), held.mod_revision),
                "the slot was released",
            )
            require("note the slot", self._commit([still, *guards], operations, operations[0]))
        return Taken(held, again=True)

    def _add(
        self,
        view: _View,
        holder: Holder,
        waiter: Waiter | None,
        guards: Sequence[Guard],
        also: Sequence[Operation],
    ) -> Outcome:
        semaphore = view.semaphore.add(holder.machine_id)
        if semaphore is None:
            raise AssertionError("a slot was free")
        key = self._keys.holder(self.group, holder.machine_id)
        left_over = view.holders.get(holder.machine_id)
        line = self._keys.waiters(self.group)
        own = [
            Guard(mod_is(self._key, view.mod_revision), "the semaphore has changed"),
            Guard(mod_is(key, left_over.mod_revision if left_over else 0), "the holder's record has changed"),
            Guard(create_is(waiter.key, waiter.create_revision), "the place in the line is lost")
            if waiter
            else Guard(none_under(under(line)), "others wait"),
        ]
        if not view.mod_revision:
            own.append(Guard(none_under(under(self._keys.holders(self.group))), "there are holders' records"))
        write = put(key, encode_holder(holder))
        operations = [put(self._key, encode_semaphore(semaphore)), write, *also]
        if waiter:
            operations.append(delete(waiter.key))
        outcome = self._commit([*own, *guards], operations, write)
        if outcome.made:
            holders = {**view.holders, holder.machine_id: replace(holder, mod_revision=outcome.revision)}
            first = tuple(other for other in view.first if not waiter or other != waiter.key)
            self._seen = _View(False, outcome.revision, semaphore, outcome.revision, holders, first)
        else:
            self._after_conflict(outcome, guards, "take a slot")
        return outcome

    # --- the waiting line -------------------------------------------------------------------------------------------

    def enqueue(self, session: Session, holder: Holder) -> Waiter:
        """Join the end of the line, with `session`'s lease: who dies leaves it. One's place is kept when asking again."""
        key = self._keys.waiter(self.group, session.lease)
        waiter = Waiter(key, holder.machine_id, holder.lrn, holder.reason)
        write = put(key, encode_waiter(waiter), session.lease)
        guard = Guard(absent(key), "there already")
        outcome = commit(self._client, [guard], [write], witness=write, reads=[one(key), *self._ranges()])
        place, *found = outcome.found
        if not place:
            raise Fenced(f"cannot wait for a slot of lock group {self.group}: the place in the line is lost")
        self._seen = self._view(outcome.revision, found)
        return decode_waiter(place[0].value, place[0].key, place[0].create_revision)

    def leave(self, waiter: Waiter) -> None:
        """Leave the line. Not being in it is no error."""
        write = delete(waiter.key)
        guard = Guard(create_is(waiter.key, waiter.create_revision), "left already")
        commit(self._client, [guard], [write], witness=write)

    def wait_for_turn(self, waiter: Waiter, timeout: float, stop: threading.Event | None = None) -> bool:
        """Wait for what may let `waiter` in, at most `timeout` seconds: its predecessor leaves or, for the first, a slot is freed.

        True where it is worth trying again; False when the time is up, or at `stop`.
        """
        end = time.monotonic() + timeout
        try:
            self._wait(self._read(), waiter, end, stop)
        finally:
            if not self._is_kept:
                self._lookout.close()
        return time.monotonic() < end and not (stop is not None and stop.is_set())

    def _wait(self, view: _View, waiter: Waiter, end: float, stop: threading.Event | None) -> None:
        """Wait until it is worth trying again. `waiter` stood in line as in `view`: it watches the one key that concerns it."""
        before = self._predecessor(view, waiter)
        while self._refusal(view, waiter) is not None:
            with self._lookout.on(one(before or self._key)) as watching:
                view = self._seen = self._read()
                if before != (before := self._predecessor(view, waiter)):
                    continue
                if self._refusal(view, waiter) is None:
                    return
                # Watches are hints: what one did not tell is found by looking again now and then.
                events = watching.wait(min(end - time.monotonic(), _LOOKS_AGAIN_AFTER), stop)
            if not events:
                self._seen = None
                return
            if before is None:
                self._remember(events[-1].item, waiter)
                return
            before = None  # most likely one is first now: the look that follows tells

    def _predecessor(self, view: _View, waiter: Waiter) -> str | None:
        """The key of the one before `waiter` in line; None for the first."""
        if waiter.key in view.first:
            place = view.first.index(waiter.key)
            return view.first[place - 1] if place else None
        line = last_before(self._keys.waiters(self.group), waiter.create_revision)
        (found,) = self._client.read((line,), view.revision).items
        return found[0].key if found else None

    def _remember(self, document: Item, waiter: Waiter) -> None:
        """What the watch of the first in line told: good enough to try a transaction on."""
        if document.value:
            semaphore = decode_semaphore(document.value, self._key)
            self._seen = _View(
                False, document.mod_revision, semaphore, document.mod_revision, {}, (waiter.key,)
            )

    def acquire(
        self, holder: Holder, wait: float = 0.0, stop: threading.Event | None = None
    ) -> Taken | Refused:
        """Take a slot; with `wait` (seconds) stand in line for it until then, or until `stop` is set. Without, never queue."""
        end = time.monotonic() + wait
        if wait <= 0 or not self._had_to_wait:
            answer = self.take(holder)
            if wait <= 0 or isinstance(answer, Taken) or not answer.waits:
                return answer
        try:
            return self._wait_in_line(holder, end, stop)
        finally:
            if not self._is_kept:
                self.close()

    def _wait_in_line(self, holder: Holder, end: float, stop: threading.Event | None) -> Taken | Refused:
        """Stand in line until the slot is taken or the time is up; etcd may be away meanwhile. Only a lost lease loses the place."""
        while True:
            try:
                session = self._line_session()
                waiter = self.enqueue(session, holder)
                return self._stay_in_line(waiter, holder, end, stop)
            except Fenced:
                if session.alive or time.monotonic() > end:
                    raise
            except Unavailable:
                if time.monotonic() > end:
                    raise
                self._seen = None
                time.sleep(_AWAY_PAUSE * (0.5 + _random.random()))

    def _stay_in_line(
        self, waiter: Waiter, holder: Holder, end: float, stop: threading.Event | None
    ) -> Taken | Refused:
        self._had_to_wait = False
        while True:
            view = self._seen or self._read()
            refused = self._refusal(view, waiter)
            if refused is None or view.record_of(holder.machine_id):
                answer = self.take(holder, waiter)
                if isinstance(answer, Taken):
                    return answer
                view, refused = self._seen or view, answer
            if not refused.waits or time.monotonic() > end or (stop is not None and stop.is_set()):
                self.leave(waiter)
                return refused
            self._had_to_wait = True
            self._wait(view, waiter, end, stop)

    def _line_session(self) -> Session:
        if self._session is None or not self._session.alive:
            self.close()
            self._session = Session(self._client, WAITER_TTL)
        return self._session

    def __enter__(self) -> RebootLock:
        """Keep what one waits with, a lease and a stream, for who takes slots again and again."""
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

    # --- giving back ------------------------------------------------------------------------------------------------

    def release(
        self, holder: Holder, *, guards: Sequence[Guard] = (), also: Sequence[Operation] = ()
    ) -> bool:
        """Give back the slot that `holder` records. False, and nothing is freed, where it is no longer held or is another's.

        `also` is written in any case where `guards` hold: with the slot, or without one that is gone.
        """
        for view in self._views():
            held = view.record_of(holder.machine_id)
            mine = (
                held is not None and held.owner == holder.owner and held.mod_revision == holder.mod_revision
            )
            if not mine and not view.fresh:
                self._seen = None
                continue
            if not mine:
                if also:
                    require("note that the slot is gone", self._commit(guards, also, also[0]))
                return False
            outcome = self._remove(view, holder, guards, also)
            if outcome.made:
                return True
        raise self._crowded("give back a slot")

    def release_of(
        self, machine_id: str, who: str, why: str, at: str, revision: int | None = None
    ) -> Holder | None:
        """An operator's release of whatever slot `machine_id` holds, noted in `lock-history`. None where it holds none.

        With `revision`, only the holder's record of that etcd revision is released: the one that the operator saw.
        `at` is now, RFC 3339.
        """
        history = self._keys.released(at)
        for view in self._views(fresh=True):
            held = view.record_of(machine_id)
            if held is None:
                return None
            if revision is not None and held.mod_revision != revision:
                raise HeldBack(
                    f"cannot release the slot of machine {machine_id}: it was taken anew at etcd revision {held.mod_revision}, "
                    f"and you saw {revision}; look at `reconcile lock status` again"
                )
            note = put(history, encode_released(ReleasedSlot(self.group, held, who, why, at)))
            pruned = prune(self._client, self._keys.lock_history, history)
            if self._remove(view, held, (), [note, *pruned]).made:
                return held
        raise self._crowded("release a slot")

    def _remove(
        self, view: _View, held: Holder, guards: Sequence[Guard], also: Sequence[Operation]
    ) -> Outcome:
        key = self._keys.holder(self.group, held.machine_id)
        own = [
            Guard(mod_is(self._key, view.mod_revision), "the semaphore has changed"),
            Guard(mod_is(key, held.mod_revision), "the holder's record has changed"),
        ]
        semaphore = view.semaphore.remove(held.machine_id)
        write = put(self._key, encode_semaphore(semaphore))
        gone = delete(key)
        outcome = self._commit([*own, *guards], [write, gone, *also], gone if held.mod_revision else write)
        if outcome.made:
            holders = {other: record for other, record in view.holders.items() if other != held.machine_id}
            self._seen = _View(False, outcome.revision, semaphore, outcome.revision, holders, view.first)
        else:
            self._after_conflict(outcome, guards, "give back a slot")
        return outcome

    def holder_of(self, machine_id: str) -> Holder | None:
        """The slot that `machine_id` holds, as it is recorded; None where it holds none."""
        return self._read().record_of(machine_id)

    # --- the maximum ------------------------------------------------------------------------------------------------

    def set_max(self, slots: int) -> int:
        """Set the number of slots and return the old one. Below the number of holders nobody enters until enough have left; 0 closes."""
        for view in self._views(fresh=True):
            semaphore = view.semaphore.with_max(slots)
            if view.mod_revision and view.semaphore.max == slots:
                return slots
            guards = [Guard(mod_is(self._key, view.mod_revision), "the semaphore has changed")]
            if not view.mod_revision:
                records = none_under(under(self._keys.holders(self.group)))
                guards.append(Guard(records, "there are holders' records"))
            write = put(self._key, encode_semaphore(semaphore))
            outcome = self._commit(guards, [write], write)
            if outcome.made:
                return view.semaphore.max
            self._after_conflict(outcome, (), "set the maximum")
        raise self._crowded("set the maximum")

    # --- parts ------------------------------------------------------------------------------------------------------

    def _ranges(self) -> tuple[KeyRange, ...]:
        return (
            one(self._key),
            under(self._keys.holders(self.group)),
            oldest_under(self._keys.waiters(self.group), _LINE_LOOKED_AT, keys_only=True),
        )

    def _read(self) -> _View:
        snapshot = self._client.read(self._ranges())
        return self._view(snapshot.revision, snapshot.items)

    def _view(self, revision: int, found: Sequence[tuple[Item, ...]]) -> _View:
        document, records, waiters = found
        if not document and records:
            raise ReconcilerError(
                f"cannot use lock group {self.group}: {self._key} is missing but there are holders' records "
                f"({records[0].key}, …); put the document back, or delete the records of those that hold nothing"
            )
        start = len(self._keys.holders(self.group))
        return _View(
            True,
            revision,
            decode_semaphore(document[0].value, self._key) if document else Semaphore(),
            document[0].mod_revision if document else 0,
            {item.key[start:]: decode_holder(item.value, item.key, item.mod_revision) for item in records},
            tuple(item.key for item in waiters),
        )

    def _views(self, fresh: bool = False) -> Iterator[_View]:
        """What to decide from, one after another, with a jittered pause after some conflicts, until the patience is over.

        The first may be what is remembered of an earlier change: good enough to try a transaction on, which compares
        it, and for no other answer.
        """
        self._seen = None if fresh or self._seen is None else replace(self._seen, fresh=False)
        end, pause, conflicts = time.monotonic() + self._patience, _FIRST_PAUSE, 0
        while time.monotonic() < end:
            if self._seen is None:
                self._seen = self._read()
            elif self._seen.fresh:
                conflicts += 1
                if conflicts % _TRIED_AT_ONCE == 0:
                    time.sleep(pause * (0.5 + _random.random()))
                    pause = min(_LONGEST_PAUSE, pause * 2)
                    # What the failed transaction read has grown old meanwhile: it would only fail again.
                    self._seen = self._read()
            yield self._seen

    def _commit(
        self, guards: Sequence[Guard], operations: Sequence[Operation], witness: Operation
    ) -> Outcome:
        if not isinstance(witness, Put | Delete):
            raise ValueError("a read shows nothing about a write")
        return commit(self._client, guards, operations, witness=witness, reads=self._ranges())

    def _after_conflict(self, outcome: Outcome, guards: Sequence[Guard], what: str) -> None:
        """Take in what the failed transaction read. A failed guard of the caller's raises `Fenced`; a conflict does not."""
        failed = [guard for guard in outcome.failed if guard in guards]
        if failed:
            require(f"{what} of lock group {self.group}", replace(outcome, failed=tuple(failed)))
        self._seen = self._view(outcome.revision, outcome.found)

    def _crowded(self, what: str) -> Unavailable:
        return Unavailable(
            f"cannot {what} of lock group {self.group}: others changed {self._key} all the time for {self._patience:g} s; try again"
        )


def read_released(client: Client, keys: Keys) -> tuple[ReleasedSlot, ...]:
    """The slots that operators released, newest first."""
    (found,) = client.read((under(keys.lock_history),)).items
    newest_first = sorted(found, key=lambda item: item.create_revision, reverse=True)
    return tuple(decode_released(item.value, item.key) for item in newest_first)
