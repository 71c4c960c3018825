"""Plain values to etcd's messages and back. Pure; called by `client` and `stream`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from reconciler.store.transaction import Compare, Delete, Event, Get, Item, KeyRange, Operation, Put


def range_request(rpc: Any, keys: KeyRange, revision: int | None, limit: int) -> Any:
    return rpc.RangeRequest(
        key=_key_bytes(keys.key),
        range_end=b"" if keys.end is None else _key_bytes(keys.end),
        limit=limit,
        revision=revision or 0,
        keys_only=keys.keys_only,
        sort_order={"key": 0, "oldest": rpc.RangeRequest.ASCEND, "newest": rpc.RangeRequest.DESCEND}[
            keys.order
        ],
        sort_target=rpc.RangeRequest.KEY if keys.order == "key" else rpc.RangeRequest.CREATE,
        max_create_revision=max(0, keys.created_before - 1),
    )


def compare_message(rpc: Any, compare: Compare) -> Any:
    message = rpc.Compare(
        key=_key_bytes(compare.key),
        range_end=b"" if compare.end is None else _key_bytes(compare.end),
        result={"equal": rpc.Compare.EQUAL, "less": rpc.Compare.LESS, "greater": rpc.Compare.GREATER}[
            compare.result
        ],
    )
    match compare.target:
        case "mod":
            message.target, message.mod_revision = rpc.Compare.MOD, compare.operand
        case "create":
            message.target, message.create_revision = rpc.Compare.CREATE, compare.operand
        case "value":
            message.target, message.value = rpc.Compare.VALUE, compare.operand
    return message


def operation_message(rpc: Any, operation: Operation) -> Any:
    match operation:
        case Put(key, value, lease):
            return rpc.RequestOp(request_put=rpc.PutRequest(key=_key_bytes(key), value=value, lease=lease))
        case Delete(keys):
            end = b"" if keys.end is None else _key_bytes(keys.end)
            request = rpc.DeleteRangeRequest(key=_key_bytes(keys.key), range_end=end)
            return rpc.RequestOp(request_delete_range=request)
        case Get(keys):
            return _get(rpc, keys)


@lru_cache(1024)  # the same keys are read again and again: half of what a transaction of the lock says
def _get(rpc: Any, keys: KeyRange) -> Any:
    """A `Get`, for copying into a request."""
    return rpc.RequestOp(request_range=range_request(rpc, keys, None, keys.limit))


def watch_request(rpc: Any, keys: KeyRange, revision: int, deletions_only: bool = False) -> Any:
    create = rpc.WatchCreateRequest(
        key=_key_bytes(keys.key),
        range_end=b"" if keys.end is None else _key_bytes(keys.end),
        start_revision=revision,
        progress_notify=True,
        filters=[rpc.WatchCreateRequest.NOPUT] if deletions_only else [],
        prev_kv=deletions_only,
    )
    return rpc.WatchRequest(create_request=create)


def event_of(event: Any) -> Event:
    (item,) = items_of((event.kv,))
    return Event(event.type == event.DELETE, item._replace(value=item.value or event.prev_kv.value))


def _key_bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def items_of(kvs: Any) -> list[Item]:
    return [
        Item(kv.key.decode(errors="surrogateescape"), kv.value, kv.create_revision, kv.mod_revision, kv.lease)
        for kv in kvs
    ]
