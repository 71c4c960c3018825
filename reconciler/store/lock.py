"""The reboot lock: slots of a lock group, and their holders' records. Called by the agent, `lock`, FleetLock and the waiting line.

The document and the holder's record change in one transaction, compared on the document's etcd revision; a conflict
is tried again. What was read last is kept, so that a change nobody interferes with is one transaction and no read.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from reconciler.core.semaphore import Holder
from reconciler.core.state import Waiter
from reconciler.errors import Fenced, HeldBack, Unavailable
from reconciler.store.client import Client
from reconciler.store.commit import Guard, Outcome, commit, require
from reconciler.store.keys import DEFAULT_GROUP, Keys
from reconciler.store.leading import prune
from reconciler.store.lock_view import LockView, Refused, Taken, lock_ranges, lock_view
from reconciler.store.session import Session
from reconciler.store.transaction import (
    Delete,
    Item,
    Operation,
    Put,
    absent,
    create_is,
    delete,
    last_before,
    mod_is,
    none_older,
    none_under,
    one,
    put,
    under,
)
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

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
_random = random.SystemRandom()


class RebootLock:
    """One lock group. Not for several threads at once; each makes its own over the shared client."""

    def __init__(
        self, client: Client, keys: Keys, group: str = DEFAULT_GROUP, patience: float = PATIENCE
    ) -> None:
        self.client = client
        self.group = group
        self.key = keys.semaphore(group)
        self._keys = keys
        self._patience = patience
        self._ranges = lock_ranges(keys, group)
        self._seen: LockView | None = None

    # --- taking -----------------------------------------------------------------------------------------------------

    def take(
        self,
        holder: Holder,
        waiter: Waiter | None = None,
        *,
        guards: Sequence[Guard] = (),
        also: Sequence[Operation] = (),
        first: LockView | None = None,
    ) -> Taken | Refused:
        """Take a slot for `holder` if one is free and nobody came before: `waiter` is one's own place in the line, if any.

        Asking again is success. `guards` are compared, and `also` is written, in the same transaction (where the slot
        is held already: in one of their own); a guard that does not hold raises `Fenced`. `first` is what to try on first.
        """
        if not holder.machine_id:
            raise ValueError("an empty machine id cannot hold a slot")
        for view in self._views(first):
            held = view.record_of(holder.machine_id)
            refused = None if held else view.refusal(waiter)
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
        view: LockView,
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
            view.unchanged(self.key),
            Guard(mod_is(key, left_over.mod_revision if left_over else 0), "the holder's record has changed"),
            Guard(create_is(waiter.key, waiter.create_revision), "the place in the line is lost")
            if waiter
            else Guard(none_under(under(line)), "others wait"),
        ]
        if not view.mod_revision:
            own.append(Guard(none_under(under(self._keys.holders(self.group))), "there are holders' records"))
        if waiter and view.presumed:
            earlier = none_older(under(line), waiter.create_revision)
            own.append(Guard(earlier, "others came before in the line"))
        write = put(key, encode_holder(holder))
        operations = [put(self.key, encode_semaphore(semaphore)), write, *also]
        if waiter:
            operations.append(delete(waiter.key))
        outcome = self._commit([*own, *guards], operations, write)
        if outcome.made:
            holders = {**view.holders, holder.machine_id: replace(holder, mod_revision=outcome.revision)}
            self._seen = view.changed(outcome.revision, semaphore, holders, waiter)
        else:
            self._after_conflict(outcome, guards, "take a slot")
        return outcome

    # --- a place in the line ----------------------------------------------------------------------------------------

    def enqueue(self, session: Session, holder: Holder) -> tuple[Waiter, LockView]:
        """Join the end of the line, with `session`'s lease: who dies leaves it. One's place is kept when asking again."""
        key = self._keys.waiter(self.group, session.lease)
        waiter = Waiter(key, holder.machine_id, holder.lrn, holder.reason)
        write = put(key, encode_waiter(waiter), session.lease)
        guard = Guard(absent(key), "there already")
        reads = [one(key), *self._ranges]
        outcome = commit(self.client, [guard], [write], witness=write, reads=reads)
        place, *found = outcome.found
        if not place:
            raise Fenced(f"cannot wait for a slot of lock group {self.group}: the place in the line is lost")
        self._seen = lock_view(self._keys, self.group, outcome.revision, found)
        return decode_waiter(place[0].value, key, place[0].create_revision), self._seen

    def leave(self, waiter: Waiter) -> None:
        """Leave the line. Not being in it is no error."""
        write = delete(waiter.key)
        guard = Guard(create_is(waiter.key, waiter.create_revision), "left already")
        commit(self.client, [guard], [write], witness=write)

    def before(self, waiter: Waiter, view: LockView) -> str | None:
        """The key of the one before `waiter` in line, as in `view`; None for the first."""
        if waiter.key in view.first:
            place = view.first.index(waiter.key)
            return view.first[place - 1] if place else None
        line = last_before(self._keys.waiters(self.group), waiter.create_revision)
        (found,) = self.client.read((line,), view.revision).items
        return found[0].key if found else None

    def slot_of(self, place: Item) -> str:
        """The key of the record that whoever had `place` in the line has while it holds a slot."""
        return self._keys.holder(self.group, decode_waiter(place.value, place.key, 0).machine_id)

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

    def drop_record(self, holder: Holder) -> bool:
        """Delete `holder`'s record where the document does not say that it holds a slot: somebody edited or deleted that.

        Whether there was such a record. Raises `Fenced` where the document says so now.
        """
        key = self._keys.holder(self.group, holder.machine_id)
        document, found = self.client.read([one(self.key), one(key)]).items
        record = decode_holder(found[0].value, key, found[0].mod_revision) if found else None
        if record is None or record.owner != holder.owner:
            return False
        what = f"drop the record of the lost slot of lock group {self.group}"
        if document and holder.machine_id in decode_semaphore(document[0].value, self.key).holders:
            raise Fenced(f"cannot {what}: it is held")
        guards = [
            Guard(mod_is(self.key, document[0].mod_revision if document else 0), "the semaphore has changed"),
            Guard(mod_is(key, record.mod_revision), "the holder's record has changed"),
        ]
        gone = delete(key)
        require(what, commit(self.client, guards, [gone], witness=gone))
        return True

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
            pruned = prune(self.client, self._keys.lock_history, history)
            if self._remove(view, held, (), [note, *pruned]).made:
                return held
        raise self._crowded("release a slot")

    def _remove(
        self, view: LockView, held: Holder, guards: Sequence[Guard], also: Sequence[Operation]
    ) -> Outcome:
        key = self._keys.holder(self.group, held.machine_id)
        own = [
            view.unchanged(self.key),
            Guard(mod_is(key, held.mod_revision), "the holder's record has changed"),
        ]
        semaphore = view.semaphore.remove(held.machine_id)
        write = put(self.key, encode_semaphore(semaphore))
        gone = delete(key)
        outcome = self._commit([*own, *guards], [write, gone, *also], gone if held.mod_revision else write)
        if outcome.made:
            holders = {other: record for other, record in view.holders.items() if other != held.machine_id}
            self._seen = view.changed(outcome.revision, semaphore, holders, None)
        else:
            self._after_conflict(outcome, guards, "give back a slot")
        return outcome

    def holder_of(self, machine_id: str) -> Holder | None:
        """The slot that `machine_id` holds, as it is recorded; None where it holds none."""
        return self.look().record_of(machine_id)

    # --- the maximum ------------------------------------------------------------------------------------------------

    def set_max(self, slots: int) -> int:
        """Set the number of slots and return the old one. Below the number of holders nobody enters until enough have left; 0 closes."""
        for view in self._views(fresh=True):
            semaphore = view.semaphore.with_max(slots)
            if view.mod_revision and view.semaphore.max == slots:
                return slots
            guards = [view.unchanged(self.key)]
            if not view.mod_revision:
                records = none_under(under(self._keys.holders(self.group)))
                guards.append(Guard(records, "there are holders' records"))
            write = put(self.key, encode_semaphore(semaphore))
            outcome = self._commit(guards, [write], write)
            if outcome.made:
                return view.semaphore.max
            self._after_conflict(outcome, (), "set the maximum")
        raise self._crowded("set the maximum")

    # --- parts ------------------------------------------------------------------------------------------------------

    def look(self) -> LockView:
        """The lock group as it stands now."""
        snapshot = self.client.read(self._ranges)
        return lock_view(self._keys, self.group, snapshot.revision, snapshot.items)

    def _views(self, first: LockView | None = None, *, fresh: bool = False) -> Iterator[LockView]:
        """What to decide from, one after another, with a jittered pause after each conflict, until the patience is over.

        The first may be `first`, or what is remembered of an earlier change: good enough to try a transaction on,
        which compares it, and for no other answer.
        """
        remembered = None if fresh else first or self._seen
        self._seen = replace(remembered, fresh=False) if remembered else None
        end, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while time.monotonic() < end:
            if self._seen is None:
                self._seen = self.look()
            elif self._seen.fresh:
                # Eight that try again at once make each other fail: 6.4 requests a cycle instead of 3.1.
                time.sleep(pause * (0.5 + _random.random()))
                pause = min(_LONGEST_PAUSE, pause * 2)
                # What the failed transaction read has grown old meanwhile: it would only fail again.
                self._seen = self.look()
            yield self._seen

    def _commit(
        self, guards: Sequence[Guard], operations: Sequence[Operation], witness: Operation
    ) -> Outcome:
        if not isinstance(witness, Put | Delete):
            raise ValueError("a read shows nothing about a write")
        return commit(self.client, guards, operations, witness=witness, otherwise=self._ranges)

    def _after_conflict(self, outcome: Outcome, guards: Sequence[Guard], what: str) -> None:
        """Take in what the failed transaction read. A failed guard of the caller's raises `Fenced`; a conflict does not."""
        failed = [guard for guard in outcome.failed if guard in guards]
        if failed:
            require(f"{what} of lock group {self.group}", replace(outcome, failed=tuple(failed)))
        self._seen = lock_view(self._keys, self.group, outcome.revision, outcome.found)

    def _crowded(self, what: str) -> Unavailable:
        return Unavailable(
            f"cannot {what} of lock group {self.group}: others changed {self.key} all the time for {self._patience:g} s; try again"
        )


def read_released(client: Client, keys: Keys) -> tuple[ReleasedSlot, ...]:
    """The slots that operators released, newest first."""
    (found,) = client.read((under(keys.lock_history),)).items
    newest_first = sorted(found, key=lambda item: item.create_revision, reverse=True)
    return tuple(decode_released(item.value, item.key) for item in newest_first)
