"""The reboot lock's documents: Locksmith's semaphore, the records beside it, and what is corrupt."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import Waiter
from reconciler.errors import Corrupt
from reconciler.wire import lock
from tests.wire import values

KEY = "coreos.com/updateengine/rebootlock/semaphore"

both_ways = settings(deadline=None, max_examples=50)


@both_ways
@given(values.semaphores)
def test_semaphore(value: Semaphore) -> None:
    assert lock.decode_semaphore(lock.encode_semaphore(value), KEY) == value


@both_ways
@given(values.holders)
def test_holder(value: Holder) -> None:
    assert lock.decode_holder(lock.encode_holder(value), KEY, value.mod_revision) == value


@both_ways
@given(values.waiters)
def test_waiter(value: Waiter) -> None:
    assert lock.decode_waiter(lock.encode_waiter(value), value.key, value.create_revision) == value


@both_ways
@given(values.released)
def test_released_slot(value: lock.ReleasedSlot) -> None:
    assert lock.decode_released(lock.encode_released(value), KEY) == value


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        ('{"semaphore":1,"max":1,"holders":null}', Semaphore(1)),  # as Locksmith's Go writes an empty slice
        ('{"semaphore":1,"max":1,"holders":[]}', Semaphore(1)),
        ('{"semaphore":1,"max":1}', Semaphore(1)),
        ('{"semaphore":0,"max":2,"holders":["b","a"]}', Semaphore(2, ("b", "a"))),  # unsorted: as it is
        ('{"semaphore":99,"max":1,"holders":["a"]}', Semaphore(1, ("a",))),  # the counter is never believed
        ('{"semaphore":-1,"max":1,"holders":["a","b"]}', Semaphore(1, ("a", "b"))),  # max was lowered
        ('{"max":0,"holders":[]}', Semaphore(0)),
        ('{"semaphore":1,"max":1,"holders":[],"note":"x"}', Semaphore(1, (), {"note": "x"})),
    ],
)
def test_locksmiths_documents(stored: str, value: Semaphore) -> None:
    assert lock.decode_semaphore(stored, KEY) == value


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Semaphore(2, ("a",)), '{"semaphore":1,"max":2,"holders":["a"]}'),
        (Semaphore(1, ("a", "b")), '{"semaphore":-1,"max":1,"holders":["a","b"]}'),
        (Semaphore(1, (), {"note": "x"}), '{"semaphore":1,"max":1,"holders":[],"note":"x"}'),
    ],
)
def test_the_counter_is_written_for_other_readers(value: Semaphore, stored: str) -> None:
    assert lock.encode_semaphore(value) == stored


def test_a_holders_record_has_the_keyspaces_names() -> None:
    holder = Holder("m1", "agent", 3, 1_700_000_000, "b1", "reboot", "1a2b")
    assert json.loads(lock.encode_holder(holder)) == {
        "machineID": "m1",
        "startTime": 1_700_000_000,
        "lrn": 3,
        "bootID": "b1",
        "reason": "reboot",
        "revision": "1a2b",
        "source": "agent",
    }


def test_another_programs_record_is_an_operators() -> None:
    holder = lock.decode_holder('{"machineID":"m1","startTime":1700000000,"host":"boot-1"}', KEY, 8)
    assert holder == Holder("m1", "operator", None, 1_700_000_000, mod_revision=8, extra={"host": "boot-1"})
    assert json.loads(lock.encode_holder(holder))["host"] == "boot-1"


CORRUPT: list[tuple[Callable[[Any, str], object], str, str]] = [
    (lock.decode_semaphore, "locked", 'it is not JSON (Expecting value: line 1 column 1 (char 0)), but the text "locked"'),
    (lock.decode_semaphore, '["a"]', "it is a list, and must be a JSON object"),
    (lock.decode_semaphore, "{}", "max is missing, and must be a whole number"),
    (lock.decode_semaphore, '{"max":"1"}', 'max is the text "1", and must be a whole number'),
    (lock.decode_semaphore, '{"max":1.0}', "max is the number 1.0, and must be a whole number"),
    (lock.decode_semaphore, '{"max":true}', "max is true, and must be a whole number"),
    (lock.decode_semaphore, '{"max":-1}', "max is the number -1, and must be at least 0"),
    (lock.decode_semaphore, '{"max":1,"semaphore":"1"}', 'semaphore is the text "1", and must be a whole number'),
    (lock.decode_semaphore, '{"max":1,"holders":"a"}', 'holders is the text "a", and must be a list'),
    (lock.decode_semaphore, '{"max":1,"holders":[1]}', "holders holds the number 1, and must be a list of texts"),
    (lock.decode_semaphore, '{"max":1,"holders":[""]}', "holders holds an empty machine id"),
    (lock.decode_semaphore, '{"max":3,"holders":["a","b","a"]}', 'holders holds the machine id "a" twice'),
    (lock.decode_holder, "{}", "machineID is missing, and must be text"),
    (lock.decode_holder, '{"machineID":""}', "machineID is empty"),
    (lock.decode_holder, '{"machineID":"a","startTime":"now"}', 'startTime is the text "now", and must be a whole number'),
    (lock.decode_holder, '{"machineID":"a","source":"me"}', 'source is the text "me", and must be one of agent, operator, fleetlock'),
    (lock.decode_holder, '{"machineID":"a","lrn":-1}', "lrn is the number -1, and must be at least 0"),
    (lock.decode_waiter, '{"machineID":""}', "machineID is empty"),
    (lock.decode_released, '{"lock_group":"a"}', "holder is missing, and must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "stored", "problem"), CORRUPT)
def test_what_is_corrupt_is_named_with_what_was_found(
    read: Callable[[Any, str], object], stored: str, problem: str
) -> None:
    with pytest.raises(Corrupt) as caught:
        read(stored, KEY)
    assert str(caught.value) == (
        f"cannot use {KEY}: {problem}; correct or delete it by hand, it is never overwritten"
    )


DOCUMENTS = st.dictionaries(
    st.sampled_from(
        ["semaphore", "max", "holders", "machineID", "startTime", "lrn", "source", "holder", "x"]
    ),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=3),
        st.lists(st.text(max_size=2), max_size=3),
    ),
)


@settings(deadline=None)
@given(
    st.sampled_from([lock.decode_semaphore, lock.decode_holder, lock.decode_waiter, lock.decode_released]),
    st.one_of(st.binary(max_size=20), DOCUMENTS.map(lambda value: json.dumps(value).encode())),
)
def test_any_stored_bytes_read_or_are_corrupt(read: Callable[[Any, str], object], stored: bytes) -> None:
    try:
        read(stored, KEY)
    except Corrupt as error:
        assert KEY in str(error)
