"""The reboot lock's documents: Locksmith's semaphore, holders' and waiters' records, released slots. Pure; called by `store`.

The semaphore's stored counter is written for other readers, as `max` less the number of holders, and never believed.
Each `decode_…` takes the stored text and its key, and raises `Corrupt`, which names the key and what was found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from reconciler.core.semaphore import Holder, Semaphore, Source
from reconciler.core.state import Waiter
from reconciler.wire.document import Fields, decode, encode, shown

_SOURCES: dict[str, Source] = {"agent": "agent", "operator": "operator", "fleetlock": "fleetlock"}


def encode_semaphore(semaphore: Semaphore) -> str:
    """Locksmith's document."""
    document = {
        "semaphore": semaphore.max - len(semaphore.holders),
        "max": semaphore.max,
        "holders": list(semaphore.holders),
    }
    return encode(document, semaphore.extra)


def decode_semaphore(text: str | bytes, key: str) -> Semaphore:
    """Locksmith's document. Holders are taken in the order that they stand in; `null` holders are none."""
    fields = Fields(decode(text, key), key)
    # The counter's value means nothing, but another type than a number means that this is no semaphore.
    fields.integer("semaphore", 0, least=-(2**63))
    holders = fields.texts("holders")
    for index, machine_id in enumerate(holders):
        if not machine_id:
            fields.wrong("holders", "holds an empty machine id")
        if machine_id in holders[:index]:
            fields.wrong(
                "holders", f"holds the machine id {shown(machine_id).removeprefix('the text ')} twice"
            )
    return Semaphore(fields.integer("max"), holders, fields.rest)


def encode_holder(holder: Holder) -> str:
    """`…/holders/<machine id>`."""
    return encode(_holder_json(holder), holder.extra)


def _holder_json(holder: Holder) -> dict[str, Any]:
    document: dict[str, Any] = {"machineID": holder.machine_id, "startTime": holder.start_time}
    if holder.lrn is not None:
        document["lrn"] = holder.lrn
    document |= {
        "bootID": holder.boot_id,
        "reason": holder.reason,
        "revision": holder.revision,
        "source": holder.source,
    }
    return document


def decode_holder(text: str | bytes, key: str, mod_revision: int = 0) -> Holder:
    """`…/holders/<machine id>`. One without our fields is an operator's."""
    return _holder(Fields(decode(text, key), key), mod_revision)


def _holder(fields: Fields, mod_revision: int = 0) -> Holder:
    machine_id = fields.text("machineID")
    if not machine_id:
        fields.wrong("machineID", "is empty")
    return Holder(
        machine_id=machine_id,
        source=_SOURCES[fields.one_of("source", _SOURCES, "operator")],
        lrn=fields.optional_integer("lrn"),
        start_time=fields.integer("startTime", 0),
        boot_id=fields.text("bootID", ""),
        reason=fields.text("reason", ""),
        revision=fields.text("revision", ""),
        mod_revision=mod_revision,
        extra=fields.rest,
    )


def encode_waiter(waiter: Waiter) -> str:
    """`…/waiters/<lease>`; the lease stands in the key."""
    document: dict[str, Any] = {"machineID": waiter.machine_id}
    if waiter.lrn is not None:
        document["lrn"] = waiter.lrn
    return encode({**document, "reason": waiter.reason})


def decode_waiter(text: str | bytes, key: str, create_revision: int = 0) -> Waiter:
    """`…/waiters/<lease>`."""
    fields = Fields(decode(text, key), key)
    machine_id = fields.text("machineID")
    if not machine_id:
        fields.wrong("machineID", "is empty")
    return Waiter(key, machine_id, fields.optional_integer("lrn"), fields.text("reason", ""), create_revision)


@dataclass(frozen=True, slots=True)
class ReleasedSlot:
    """`lock-history/<time>`: a slot that an operator gave back for its holder: who did it, why, when (RFC 3339)."""

    group: str
    holder: Holder
    who: str
    why: str
    at: str
    extra: dict[str, Any] = field(default_factory=dict)


def encode_released(released: ReleasedSlot) -> str:
    """`lock-history/<time>`."""
    document = {
        "lock_group": released.group,
        "holder": {**released.holder.extra, **_holder_json(released.holder)},
        "who": released.who,
        "why": released.why,
        "at": released.at,
    }
    return encode(document, released.extra)


def lock_history_json(released: Iterable[ReleasedSlot]) -> dict[str, Any]:
    """What `reconcile lock history` prints, as `schemas/lock-history.json` says."""
    return {"format_version": 1, "released": [_released_json(one) for one in released]}


def _released_json(released: ReleasedSlot) -> dict[str, Any]:
    holder = released.holder
    return {
        "at": released.at,
        "lock_group": released.group,
        "machine_id": holder.machine_id,
        "lrn": holder.lrn,
        "source": holder.source,
        "reason": holder.reason,
        "taken_at": holder.start_time,
        "who": released.who,
        "why": released.why,
    }


def decode_released(text: str | bytes, key: str) -> ReleasedSlot:
    """`lock-history/<time>`."""
    fields = Fields(decode(text, key), key)
    holder = fields.object("holder")
    if holder is None:
        fields.wrong("holder", "is missing, and must be an object")
    return ReleasedSlot(
        group=fields.text("lock_group"),
        holder=_holder(holder),
        who=fields.text("who", ""),
        why=fields.text("why", ""),
        at=fields.text("at", ""),
        extra=fields.rest,
    )
