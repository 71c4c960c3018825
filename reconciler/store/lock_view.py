"""One lock group as it stands in etcd, and who may take a slot there now. Called by the lock and its line; reads, writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import Waiter
from reconciler.errors import Fenced, ReconcilerError
from reconciler.store.commit import Guard
from reconciler.store.keys import Keys
from reconciler.store.transaction import Item, KeyRange, mod_is, oldest_under, one, under, value_is
from reconciler.wire.lock import decode_holder, decode_semaphore, encode_semaphore

_LINE_LOOKED_AT = 64


@dataclass(frozen=True, slots=True)
class Taken:
    """The slot is held, by `holder` as it is recorded. `again`: it was held already, and nothing was changed."""

    holder: Holder
    again: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """No slot now, and why: `view` shows it. `waits`: it is only that none is free, or that somebody came before."""

    reason: str
    waits: bool = True
    view: LockView | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class LockView:
    """One lock group: `first` are the first in the waiting line.

    `fresh`: read by the call that is under way. `guessed`: the document is what one expects and has not read;
    `presumed`: so is the place in the line, the first. Both are good enough to try a transaction on, which compares them.
    """

    group: str
    revision: int
    semaphore: Semaphore
    mod_revision: int
    holders: Mapping[str, Holder]
    first: tuple[str, ...]
    fresh: bool = True
    guessed: bool = False
    presumed: bool = False

    def record_of(self, machine_id: str) -> Holder | None:
        """The record of a machine that holds a slot. One without a record is an operator's."""
        if machine_id not in self.semaphore.holders:
            return None
        return self.holders.get(machine_id, Holder(machine_id))

    def refusal(self, waiter: Waiter | None) -> Refused | None:
        """Why nobody, or not the one at `waiter`'s place in the line, may take a slot now; None where it may."""
        free = self.semaphore.free
        if not free:
            held = ", ".join(self.semaphore.holders) or "nobody"
            return Refused(
                f"no slot of lock group {self.group} is free: held by {held}, max {self.semaphore.max}",
                view=self,
            )
        if waiter is None:
            others = f"others wait for a slot of lock group {self.group}"
            return Refused(others, view=self) if self.first else None
        if waiter.key in self.first[:free]:
            return None
        if waiter.key in self.first or len(self.first) >= _LINE_LOOKED_AT:
            return Refused(f"others came before in the line of lock group {self.group}", view=self)
        # What is remembered may be older than the place in the line: a fresh look tells whether it is lost.
        if self.fresh:
            raise Fenced(f"cannot take a slot of lock group {self.group}: the place in the line is lost")
        return Refused(f"the place in the line of lock group {self.group} is not known yet", view=self)

    def unchanged(self, key: str) -> Guard:
        """The guard that the document at `key` is still this one."""
        is_this = (
            value_is(key, encode_semaphore(self.semaphore))
            if self.guessed
            else mod_is(key, self.mod_revision)
        )
        return Guard(is_this, "the semaphore has changed")

    def changed(
        self, revision: int, semaphore: Semaphore, holders: Mapping[str, Holder], left: Waiter | None
    ) -> LockView:
        """As it stands after one's own change at etcd revision `revision`, by which `left` has left the line."""
        first = tuple(key for key in self.first if left is None or key != left.key)
        return LockView(self.group, revision, semaphore, revision, holders, first, fresh=False)

    def emptied(self, waiter: Waiter) -> LockView:
        """What one expects where all that were seen to hold a slot have given it back, and `waiter` is first."""
        return replace(
            self,
            semaphore=replace(self.semaphore, holders=()),
            holders={},
            first=(waiter.key,),
            fresh=False,
            guessed=True,
            presumed=True,
        )


def lock_ranges(keys: Keys, group: str) -> tuple[KeyRange, ...]:
    """What `lock_view` is made of."""
    return (
        one(keys.semaphore(group)),
        under(keys.holders(group)),
        oldest_under(keys.waiters(group), _LINE_LOOKED_AT, keys_only=True),
    )


def lock_view(keys: Keys, group: str, revision: int, found: Sequence[tuple[Item, ...]]) -> LockView:
    """The lock group as its `lock_ranges` show it. Raises `Corrupt`, or says that the document is missing."""
    document, records, waiters = found
    if not document and records:
        raise ReconcilerError(
            f"cannot use lock group {group}: {keys.semaphore(group)} is missing but there are holders' records "
            f"({records[0].key}, …); put the document back, or delete the records of those that hold nothing"
        )
    start = len(keys.holders(group))
    return LockView(
        group,
        revision,
        decode_semaphore(document[0].value, document[0].key) if document else Semaphore(),
        document[0].mod_revision if document else 0,
        {item.key[start:]: decode_holder(item.value, item.key, item.mod_revision) for item in records},
        tuple(item.key for item in waiters),
    )


def view_from_document(document: Item, group: str, waiter: Waiter) -> LockView:
    """What a watch told the first in the line, `waiter`, of the document: good enough to try a transaction on."""
    semaphore = decode_semaphore(document.value, document.key)
    revision = document.mod_revision
    return LockView(group, revision, semaphore, revision, {}, (waiter.key,), fresh=False, presumed=True)
