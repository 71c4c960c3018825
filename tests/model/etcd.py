"""An etcd that is a value: transactions and ranges as etcd 3 has them, and nothing else of it. Pure.

`test_etcd.py` compares it with the real one. A state of a search holds one of these; a transaction gives the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from reconciler.store.transaction import (
    Compare,
    Delete,
    Get,
    Item,
    KeyRange,
    Operation,
    Put,
    Reply,
    Snapshot,
)


@dataclass(frozen=True, slots=True)
class Txn:
    """One transaction, as a client sends it."""

    compares: tuple[Compare, ...]
    then: tuple[Operation, ...]
    otherwise: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class Etcd:
    """All keys, sorted, at one etcd revision."""

    revision: int = 1
    items: tuple[Item, ...] = ()

    def range(self, keys: KeyRange) -> tuple[Item, ...]:
        found = [item for item in self.items if _within(item.key, keys.key, keys.end)]
        if keys.created_before:
            found = [item for item in found if item.create_revision < keys.created_before]
        if keys.order != "key":
            found.sort(key=attrgetter("create_revision"), reverse=keys.order == "newest")
        found = found[: keys.limit] if keys.limit else found
        return tuple(item._replace(value=b"") if keys.keys_only else item for item in found)

    def get(self, key: str) -> Item | None:
        return next((item for item in self.items if item.key == key), None)

    def read(self, ranges: Sequence[KeyRange]) -> Snapshot:
        return Snapshot(self.revision, tuple(map(self.range, ranges)))

    def holds(self, compare: Compare) -> bool:
        """A range with no key in it counts as one absent key; otherwise every key in it has to hold."""
        found: Iterable[Item | None] = self.range(KeyRange(compare.key, compare.end)) or (None,)
        return all(map(compare.holds, found))

    def txn(self, txn: Txn) -> tuple[Etcd, Reply]:
        succeeded = all(map(self.holds, txn.compares))
        operations = txn.then if succeeded else txn.otherwise
        revision = self.revision + 1
        items = {item.key: item for item in self.items}
        changed, responses = False, list[tuple[Item, ...]]()
        for operation in operations:
            match operation:
                case Get(keys):
                    now = Etcd(revision, tuple(items[key] for key in sorted(items))) if changed else self
                    responses.append(now.range(keys))
                case Put(key, value, lease):
                    created = items[key].create_revision if key in items else revision
                    items[key] = Item(key, value, created, revision, lease)
                    changed = True
                    responses.append(())
                case Delete(keys):
                    gone = [key for key in items if _within(key, keys.key, keys.end)]
                    for key in gone:
                        del items[key]
                    changed = changed or bool(gone)
                    responses.append(())
        if not changed:
            return self, Reply(succeeded, self.revision, tuple(responses))
        after = Etcd(revision, tuple(items[key] for key in sorted(items)))
        return after, Reply(succeeded, revision, tuple(responses))

    def write(self, *operations: Operation) -> Etcd:
        """Without conditions, as somebody with `etcdctl` would."""
        return self.txn(Txn((), operations))[0]


def _within(key: str, start: str, end: str | None) -> bool:
    return key == start if end is None else start <= key < end
