"""The etcd of the models answers as the real one does: the same transactions, side by side."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.store.transaction import (
    Compare,
    Delete,
    Get,
    Item,
    KeyRange,
    Operation,
    Put,
    delete,
    delete_under,
    get,
    none_under,
    oldest_under,
    put,
    unchanged_since,
    under,
)
from tests import conftest
from tests.model.etcd import Etcd, Txn

NAMES = ("a/1", "a/2", "b/1", "b/2", "c")
FOLDERS = ("a/", "b/")

names = st.sampled_from(NAMES)
folders = st.sampled_from(FOLDERS)


@st.composite
def written(draw: st.DrawFn) -> tuple[Operation, ...]:
    """Some writes, each key at most once: etcd refuses a transaction that writes a key twice."""
    chosen = draw(st.lists(names, unique=True, max_size=3))
    return tuple(
        put(name, draw(st.sampled_from("xyz"))) if draw(st.booleans()) else delete(name) for name in chosen
    )


reads = st.lists(
    st.one_of(
        names.map(get),
        folders.map(lambda folder: Get(under(folder))),
        folders.map(lambda folder: Get(oldest_under(folder, 1))),
        folders.map(lambda folder: Get(KeyRange(folder, "z", limit=2, order="newest"))),
    ),
    max_size=2,
).map(tuple)

compares = st.lists(
    st.one_of(
        st.builds(
            Compare,
            names,
            st.sampled_from(["mod", "create"]),
            st.integers(0, 8),
            st.sampled_from(["equal", "less"]),
        ),
        st.builds(Compare, names, st.just("value"), st.sampled_from([b"x", b"y", b""])),
        folders.map(lambda folder: none_under(under(folder))),
        st.builds(lambda folder, at: unchanged_since(under(folder), at), folders, st.integers(0, 8)),
    ),
    max_size=2,
).map(tuple)

transactions = st.builds(
    lambda compares, writes, found, otherwise, whole: Txn(
        compares, (*((delete_under("a/"),) if whole else writes), *found), (*otherwise, *found)
    ),
    compares,
    written(),
    reads,
    written(),
    st.integers(0, 9).map(lambda chance: chance == 0),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(transactions, min_size=1, max_size=12))
def test_it_answers_as_the_real_one_does(etcd: conftest.Etcd, sent: list[Txn]) -> None:
    prefix = etcd.prefix
    etcd.client.txn([], [delete_under(prefix)])
    start = etcd.client.txn([], [put(f"{prefix}made", "")]).revision
    model = Etcd(start, (Item(f"{prefix}made", b"", start, start, 0),))
    for txn in sent:
        moved = Txn(
            tuple(_moved(compare, prefix, start) for compare in txn.compares),
            tuple(_placed(operation, prefix) for operation in txn.then),
            tuple(_placed(operation, prefix) for operation in txn.otherwise),
        )
        model, expected = model.txn(moved)
        assert etcd.client.txn(moved.compares, moved.then, moved.otherwise) == expected
    everything = (under(prefix),)
    assert etcd.client.read(everything).items == model.read(everything).items


def _moved(compare: Compare, prefix: str, start: int) -> Compare:
    """The compare under this test's prefix; a revision counts from where the test began."""
    end = None if compare.end is None else prefix + compare.end
    operand = (
        compare.operand + start if isinstance(compare.operand, int) and compare.operand else compare.operand
    )
    return Compare(prefix + compare.key, compare.target, operand, compare.result, end)


def _placed(operation: Operation, prefix: str) -> Operation:
    match operation:
        case Put(key, value, lease):
            return Put(prefix + key, value, lease)
        case Delete(keys):
            return Delete(_range(keys, prefix))
        case Get(keys):
            return Get(_range(keys, prefix))


def _range(keys: KeyRange, prefix: str) -> KeyRange:
    end = None if keys.end is None else prefix + keys.end
    return KeyRange(prefix + keys.key, end, keys.limit, keys.keys_only, keys.order, keys.created_before)
