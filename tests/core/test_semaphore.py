"""The semaphore: Locksmith's behaviour row by row, and where ours differs from it on purpose."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.semaphore import Holder, Semaphore

LOCK = "locksmith lock/semaphore_test.go, lock/lock_test.go"
COUNT = "locksmith lock/semaphore.go: SetMax moves the counter with the maximum"
AGAIN = "promise 4; locksmith says `holder exists` or `holder does not exist` instead"
COUNTED = "keyspace: the stored counter is never believed; free is max less holders"


@pytest.mark.parametrize(
    ("semaphore", "who", "expected", "source"),
    [
        (Semaphore(1), "a", ("a",), f"{LOCK}: TestSingleLock"),
        (Semaphore(1, ("a",)), "a", ("a",), f"{AGAIN}: TestSingleDeadlock"),
        (Semaphore(1, ("a",)), "b", None, f"{LOCK}: TestDoubleLockFail"),
        (Semaphore(2, ("a",)), "b", ("a", "b"), f"{LOCK}: TestDoubleLockSuccess"),
        (Semaphore(3, ("b",)), "a", ("a", "b"), f"{LOCK}: holders are kept sorted, for its binary search"),
        (Semaphore(3, ("a", "c")), "b", ("a", "b", "c"), f"{LOCK}: holders are kept sorted"),
        (Semaphore(3, ("c", "a")), "b", ("a", "b", "c"), f"{COUNTED}: an unsorted list of another writer"),
        (Semaphore(2, ("a", "b")), "c", None, f"{LOCK}: the semaphore is at 0"),
        (Semaphore(0), "a", None, "issue 4: 0 closes the lock"),
        (Semaphore(0, ("a",)), "a", ("a",), f"{AGAIN}, also where the lock was closed meanwhile"),
        (Semaphore(1, ("a", "b")), "c", None, f"{COUNT}: below 0 nobody enters"),
    ],
)
def test_add(semaphore: Semaphore, who: str, expected: tuple[str, ...] | None, source: str) -> None:
    after = semaphore.add(who)
    assert (after.holders if after else None) == expected, source


@pytest.mark.parametrize(
    ("semaphore", "who", "expected", "source"),
    [
        (Semaphore(1, ("a",)), "a", (), f"{LOCK}: TestSingleLock"),
        (Semaphore(1), "a", (), f"{AGAIN}: TestSingleUnlock"),
        (Semaphore(1, ("a",)), "b", ("a",), f"{AGAIN}: it is another's slot"),
        (Semaphore(2, ("a", "b")), "a", ("b",), f"{LOCK}: TestDoubleLockSuccess"),
        (Semaphore(0, ("a",)), "a", (), f"{LOCK}: TestDoubleLockSuccess unlocks with a maximum of 0"),
        (Semaphore(1, ("a",)), "", ("a",), "nobody holds under an empty id"),
    ],
)
def test_remove(semaphore: Semaphore, who: str, expected: tuple[str, ...], source: str) -> None:
    assert semaphore.remove(who).holders == expected, source


@pytest.mark.parametrize(
    ("semaphore", "free", "source"),
    [
        (Semaphore(), 1, "locksmith lock/semaphore.go: a new one has a maximum of 1 and no holders"),
        (Semaphore(2, ("a",)), 1, COUNTED),
        (Semaphore(2, ("a", "b")), 0, COUNTED),
        (Semaphore(1, ("a", "b", "c")), 0, f"{COUNTED}; locksmith shows -2"),
        (Semaphore(0), 0, "issue 4: 0 closes the lock"),
    ],
)
def test_free(semaphore: Semaphore, free: int, source: str) -> None:
    assert semaphore.free == free, source


def test_asking_again_changes_nothing_at_all() -> None:
    held = Semaphore(1, ("a",), {"comment": "kept"})
    assert held.add("a") is held
    assert held.remove("b") is held


@pytest.mark.parametrize("slots", [3, 2, 1, 0, 1, 2, 3])
def test_the_maximum_moves_under_a_holder(slots: int) -> None:
    """Locksmith's TestDoubleLockSuccess walks the maximum up and down while one is held."""
    moved = Semaphore(2, ("a",)).with_max(slots)
    assert (moved.max, moved.holders) == (slots, ("a",))
    assert moved.free == max(0, slots - 1)


def test_below_the_number_of_holders_nobody_enters_until_enough_have_left() -> None:
    held = Semaphore(3, ("a", "b", "c")).with_max(1)
    assert held.add("d") is None
    one_left = held.remove("a").remove("b")
    assert one_left.add("d") is None
    none_left = one_left.remove("c").add("d")
    assert none_left
    assert none_left.holders == ("d",)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 slots: 0 closes it"):
        Semaphore().with_max(-1)  # locksmith takes it
    with pytest.raises(ValueError, match="empty machine id"):
        Semaphore().add("")


def test_fields_of_other_writers_stay() -> None:
    semaphore = Semaphore(2, (), {"comment": "kept"})
    added = semaphore.add("a")
    assert added
    assert added.extra == added.remove("a").extra == semaphore.with_max(1).extra == {"comment": "kept"}


def test_a_slot_belongs_to_machine_source_and_number_together() -> None:
    mine = Holder("m", "agent", 1)
    assert mine.owner != Holder("m", "operator", 1).owner
    assert mine.owner != Holder("m", "agent", 2).owner
    assert mine.owner == Holder("m", "agent", 1, start_time=5, reason="os-image", mod_revision=9).owner


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "max"]), st.sampled_from("abcde"), st.integers(0, 4)),
        max_size=40,
    )
)
@settings(deadline=None)
def test_no_holder_is_added_beyond_the_maximum_and_none_twice(steps: list[tuple[str, str, int]]) -> None:
    semaphore = Semaphore()
    for what, who, slots in steps:
        before = semaphore
        match what:
            case "add":
                semaphore = before.add(who) or before
            case "remove":
                semaphore = before.remove(who)
            case _:
                semaphore = before.with_max(slots)
        assert len(set(semaphore.holders)) == len(semaphore.holders)
        assert tuple(sorted(semaphore.holders)) == semaphore.holders
        if len(semaphore.holders) > len(before.holders):
            assert len(semaphore.holders) <= semaphore.max
