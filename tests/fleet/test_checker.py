"""The checker catches what it is for: histories with one fault planted in each, and one without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from reconciler.store.keys import Keys
from reconciler.store.transaction import delete, put
from tests.conftest import Etcd
from tests.fleet.checker import Changed, faults, prove

KEYS = Keys("/f/", "lock")
A, B = "a" * 32, "b" * 32
Change = Mapping[str, Any]


def document(*holders: str, slots: int = 1) -> Change:
    return {
        KEYS.semaphore("default"): {"semaphore": slots - len(holders), "max": slots, "holders": list(holders)}
    }


def record(machine: str) -> Change:
    return {KEYS.holder("default", machine): {"machineID": machine, "source": "agent"}}


def gone(machine: str) -> Change:
    return {KEYS.holder("default", machine): None}


def step(id: str, state: str, lrn: int = 0) -> Change:
    return {KEYS.step(lrn, id): {"rollout": "r", "state": state}}


MACHINES: Change = {KEYS.machine(0): {"machineID": A}, KEYS.machine(1): {"machineID": B}}
TAKES = {**document(A), **record(A)}
GIVES = {**document(), **gone(A)}
ACQUIRED = step("reboot:host:acquire", "done")
BOOTING = step("reboot:host:reboot", "running")
HEALTHY = step("reboot:host:health", "done")
RELEASING = step("reboot:host:release", "running")
GOOD: list[Change] = [document(), MACHINES, TAKES, ACQUIRED, BOOTING, HEALTHY, RELEASING, GIVES]


def found(*changes: Change) -> list[str]:
    texts = [
        Changed(
            revision, {key: None if value is None else json.dumps(value) for key, value in change.items()}
        )
        for revision, change in enumerate(changes, 1)
    ]
    return list(faults(texts, KEYS))


def test_a_good_history_has_no_fault() -> None:
    assert found(*GOOD) == []
    assert (
        found(document(slots=2), MACHINES, {**document(A, slots=2), **record(A)}, document(A, slots=0)) == []
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([*GOOD[:3], {**document(A, B), **record(B)}], "beyond max 1"),
        ([document(slots=2), MACHINES, {**document(A, A, slots=2), **record(A)}], "twice"),
        ([document(), MACHINES, document(A)], "without a record"),
        ([*GOOD[:3], gone(A)], "lost its record"),
        ([*GOOD[:3], document()], "has a record and is no holder"),
        ([document(), MACHINES, ACQUIRED, BOOTING], "holds no slot"),
        ([*GOOD[:5], {**GIVES}, step("reboot:host:hook:after:0", "running")], "holds no slot"),
        ([*GOOD[:5], RELEASING, GIVES], "before it was healthy"),
        ([*GOOD[:5], step("reboot:host:health", "failed"), RELEASING, GIVES], "before it was healthy"),
        ([*GOOD[:3], {KEYS.semaphore("default"): None}], "was deleted"),
    ],
)  # fmt: skip
def test_each_planted_fault_is_caught(changes: list[Change], says: str) -> None:
    problems = found(*changes)
    assert len([problem for problem in problems if says in problem]) == 1, problems


def test_it_reads_the_whole_history_of_a_real_etcd(etcd: Etcd) -> None:
    """A fault that was put right again long ago is found, with its etcd revision."""
    keys = etcd.keys
    one = '{"semaphore": 0, "max": 1, "holders": ["x"]}'
    two = '{"semaphore": -1, "max": 1, "holders": ["x", "y"]}'
    etcd.client.txn([], [put(keys.semaphore("default"), one), put(keys.holder("default", "x"), "{}")])
    wrong = etcd.client.txn([], [put(keys.semaphore("default"), two), put(keys.holder("default", "y"), "{}")])
    etcd.client.txn([], [put(keys.semaphore("default"), one), delete(keys.holder("default", "y"))])
    with pytest.raises(AssertionError, match=f"etcd revision {wrong.revision}: .* y was added beyond max 1"):
        prove(etcd.client, keys, etcd.since)
