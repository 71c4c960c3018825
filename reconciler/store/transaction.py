"""What is asked of etcd and what it answers, as plain values. Pure; used by everything in `store`.

Nothing here knows gRPC or protobuf: `client` turns these into requests, and replies into these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

MAX_OPERATIONS = 128
"""etcd's own limit of operations in one transaction (`--max-txn-ops`)."""


class Item(NamedTuple):
    """One key as etcd has it. `lease` is 0 where none is attached; `value` is empty where only keys were asked for."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys from `key` to `end` (not included), or one key where `end` is None.

    `order` by create revision wants a `limit`; `created_before` takes only what was created before that etcd revision.
    """

    key: str
    end: str | None = None
    limit: int = 0
    keys_only: bool = False
    order: Literal["key", "oldest", "newest"] = "key"
    created_before: int = 0

    def covers(self, key: str) -> bool:
        """Whether `key` is in it."""
        return key == self.key if self.end is None else self.key <= key < self.end


def one(key: str) -> KeyRange:
    """The key itself."""
    return KeyRange(key)


def under(prefix: str, *, keys_only: bool = False) -> KeyRange:
    """All keys that begin with `prefix`, which must end in `/`: `install/1` would take in the servers 10 to 19."""
    if not prefix.endswith("/"):
        raise ValueError(f"a range of keys ends in a slash, and {prefix!r} does not")
    return KeyRange(prefix, prefix[:-1] + chr(ord("/") + 1), keys_only=keys_only)


def oldest_under(prefix: str, limit: int, *, keys_only: bool = False) -> KeyRange:
    """The `limit` keys under `prefix` that were created first, in that order."""
    return replace(under(prefix, keys_only=keys_only), limit=limit, order="oldest")


def last_before(prefix: str, create_revision: int) -> KeyRange:
    """The key under `prefix` that was created last before `create_revision`: the predecessor in a line."""
    return replace(under(prefix), limit=1, order="newest", created_before=create_revision)


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction. With `end` it must hold for every key from `key` to `end`, and holds for none."""

    key: str
    target: Literal["mod", "create", "value"]
    operand: int | bytes
    result: Literal["equal", "less", "greater"] = "equal"
    end: str | None = None

    def holds(self, item: Item | None) -> bool:
        """Whether it holds for one key as it was found: to say which guard failed."""
        if self.target == "value":
            return item is not None and item.value == self.operand
        revision = 0 if item is None else item.mod_revision if self.target == "mod" else item.create_revision
        match self.result:
            case "equal":
                return revision == self.operand
            case "less":
                return revision < int(self.operand)
            case "greater":
                return revision > int(self.operand)


def mod_is(key: str, revision: int) -> Compare:
    """`key` was last written at etcd revision `revision`; 0 means that it is absent."""
    return Compare(key, "mod", revision)


def create_is(key: str, revision: int) -> Compare:
    """`key` was created at etcd revision `revision`, and not deleted since."""
    return Compare(key, "create", revision)


def absent(key: str) -> Compare:
    """`key` does not exist."""
    return Compare(key, "create", 0)


def value_is(key: str, value: str | bytes) -> Compare:
    """`key` has exactly this value."""
    return Compare(key, "value", as_bytes(value))


def none_under(keys: KeyRange) -> Compare:
    """No key of the range exists."""
    return Compare(keys.key, "create", 0, end=keys.end)


def none_older(keys: KeyRange, create_revision: int) -> Compare:
    """No key of the range was created before etcd revision `create_revision`."""
    return Compare(keys.key, "create", create_revision - 1, "greater", keys.end)


def unchanged_since(keys: KeyRange, revision: int) -> Compare:
    """No key of the range was written after etcd revision `revision`. A deletion is not seen."""
    return Compare(keys.key, "mod", revision + 1, "less", keys.end)


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value`; `lease` 0 attaches none."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or all of a range."""

    keys: KeyRange


@dataclass(frozen=True, slots=True)
class Get:
    """Read in the same transaction."""

    keys: KeyRange


Operation = Put | Delete | Get


def put(key: str, value: str | bytes, lease: int = 0) -> Put:
    return Put(key, as_bytes(value), lease)


def delete(key: str) -> Delete:
    return Delete(KeyRange(key))


def delete_under(prefix: str) -> Delete:
    """Delete every key that begins with `prefix`, which must end in `/`."""
    return Delete(under(prefix))


def get(key: str) -> Get:
    return Get(KeyRange(key))


def as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


@dataclass(frozen=True, slots=True)
class Reply:
    """A transaction's answer. `responses` are those of the branch taken, one for each operation: what a `Get` found."""

    succeeded: bool
    revision: int
    responses: tuple[tuple[Item, ...], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What several ranges held at one etcd revision, in the order asked."""

    revision: int
    items: tuple[tuple[Item, ...], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One change that a watch tells. A deletion's item has its etcd revision as `mod_revision`, and as value what the key had
    last where the watch asks for deletions only (none where history was compacted since): else it is empty.
    """

    deleted: bool
    item: Item
