"""The one way to write: a transaction whose guards have names, settled where its answer was lost. Called by every write in `store`.

After a lost answer the very same transaction is sent again. It is compared on the revision of the key that it writes,
so it has one effect however often it arrives: whichever comes first writes the key, which is what makes every later
one fail. Its other branch reads the key in the same instant and shows whether it was ours that came first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.errors import Ambiguous, Fenced
from reconciler.store.client import Client
from reconciler.store.transaction import Compare, Delete, Get, Item, KeyRange, Operation, Put, mod_is

PATIENCE = 10.0
"""Seconds for which a write whose answer was lost is settled before it is given up as ambiguous."""

_PAUSE = 0.1
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition of a write, and what it means where it does not hold: the end of "cannot …, because"."""

    compare: Compare
    otherwise: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a write. `failed` are the guards that did not hold (empty: it was made), `found` what was read with it."""

    revision: int
    failed: tuple[Guard, ...] = ()
    found: tuple[tuple[Item, ...], ...] = ()

    @property
    def made(self) -> bool:
        return not self.failed


def commit(
    client: Client,
    guards: Sequence[Guard],
    operations: Sequence[Operation],
    *,
    witness: Put | Delete,
    reads: Sequence[KeyRange] = (),
    otherwise: Sequence[KeyRange] = (),
    patience: float = PATIENCE,
) -> Outcome:
    """Write `operations` where all `guards` hold, once. `reads` are read in any case, after that, and before them `otherwise`
    where it was not made: `Outcome.found`.

    `witness` is the operation that shows whether the write was made; one of the guards compares its key's etcd
    revision. Raises `Ambiguous` where that cannot be found out within `patience` seconds.
    """
    compares = [guard.compare for guard in guards]
    looks = [Get(KeyRange(compare.key, compare.end, limit=1)) for compare in compares]
    asked = [*looks, Get(KeyRange(witness.key if isinstance(witness, Put) else witness.keys.key))]
    then = [Get(keys) for keys in reads]
    instead = [*(Get(keys) for keys in otherwise), *then]
    end = time.monotonic() + patience
    lost = False
    while True:
        try:
            reply = client.txn(compares, [*operations, *then], [*asked, *instead])
        except Ambiguous:
            lost = True
            if time.monotonic() > end:
                raise
            client.pause(_PAUSE * (0.5 + _random.random()))
            continue
        if reply.succeeded:
            return Outcome(reply.revision, (), reply.responses[len(operations) :])
        seen = reply.responses[len(looks)]
        if lost and _is_made(witness, guards, seen):
            return Outcome(
                seen[0].mod_revision if seen else reply.revision, (), reply.responses[len(asked) :]
            )
        failed = _failed(guards, reply.responses)
        if lost and seen and not any(map(_for_good, failed)) and _still_holds(guards, failed, seen[0]):
            _bump(client, seen[0])
        return Outcome(reply.revision, failed, reply.responses[len(asked) :])


def require(what: str, outcome: Outcome) -> int:
    """The etcd revision of a write that was made. Raises `Fenced`, saying what cannot be done and which guards failed."""
    if outcome.made:
        return outcome.revision
    reasons = "; ".join(dict.fromkeys(guard.otherwise for guard in outcome.failed))
    raise Fenced(f"cannot {what}: {reasons}")


def _is_made(witness: Put | Delete, guards: Sequence[Guard], seen: tuple[Item, ...]) -> bool:
    """Whether the key is as the write leaves it, and not as it was before."""
    if isinstance(witness, Delete):
        return not seen
    before = [guard.compare for guard in guards if guard.compare.key == witness.key]
    return bool(
        seen and seen[0].value == witness.value and not all(compare.holds(seen[0]) for compare in before)
    )


def _failed(guards: Sequence[Guard], found: Sequence[tuple[Item, ...]]) -> tuple[Guard, ...]:
    """The guards that did not hold; where none of one key failed it was one of a range."""
    single = tuple(
        guard
        for guard, items in zip(guards, found, strict=False)
        if guard.compare.end is None and not guard.compare.holds(items[0] if items else None)
    )
    return single or tuple(guard for guard in guards if guard.compare.end is not None) or tuple(guards)


def _still_holds(guards: Sequence[Guard], failed: Sequence[Guard], item: Item) -> bool:
    """Whether the written key is still as it was acted on, so that a request which is under way could still land."""
    return any(guard.compare.key == item.key and guard not in failed for guard in guards)


def _for_good(guard: Guard) -> bool:
    """Whether a guard that failed can never hold again, so that a request which is under way fails whatever comes."""
    compare = guard.compare
    return (
        compare.end is None
        and compare.target != "value"
        and compare.result == "equal"
        and bool(compare.operand)
    )


def _bump(client: Client, item: Item) -> None:
    """Write the key once, as it is: a request that is still under way then fails for good, whatever becomes true again."""
    for _ in range(3):
        try:
            client.txn([mod_is(item.key, item.mod_revision)], [Put(item.key, item.value, item.lease)])
            return
        except Ambiguous:
            # Made or not, sending it again is harmless: only one of them can find the revision that it compares.
            continue
    raise Ambiguous(
        f"cannot settle a write to {item.key}: etcd's answers are lost; it is read again before anything is decided"
    )
