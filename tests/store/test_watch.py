"""A watch on a real etcd: what it tells, and that it goes on after cuts, frozen members, lost quorum and compaction."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from reconciler.errors import Unavailable
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.transaction import Event, delete, one, put, under
from reconciler.store.watch import Lookout, Watch
from tests.conftest import Etcd, options
from tests.etcd_server import EtcdServer, etcdctl
from tests.etcd_users import Users, agent
from tests.proxy import Proxy


class Heard:
    """What a watch has told, in order."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[Event, int]] = queue.Queue()
        self.compactions = 0

    def __call__(self, events: tuple[Event, ...], revision: int) -> None:
        for event in events:
            self.events.put((event, revision))

    def values(self, number: int, timeout: float = 8.0) -> list[str]:
        """The next events' values; `-` for a deletion."""
        found = []
        for _ in range(number):
            event, _ = self.events.get(timeout=timeout)
            found.append("-" if event.deleted else event.item.value.decode())
        return found


def never() -> int:
    raise AssertionError("nothing was compacted")


@pytest.fixture
def heard() -> Iterator[Heard]:
    yield Heard()


def test_it_tells_what_happens_in_its_ranges_and_nothing_else(etcd: Etcd, heard: Heard) -> None:
    a, b, c = f"{etcd.prefix}a/1", f"{etcd.prefix}b", f"{etcd.prefix}c"
    first = etcd.client.txn([], [put(a, "before")]).revision
    with Watch(etcd.client, [under(f"{etcd.prefix}a/"), one(b)], first + 1, heard, never):
        etcd.client.txn([], [put(a, "1")])
        etcd.client.txn([], [put(c, "no")])
        etcd.client.txn([], [put(b, "2")])
        etcd.client.txn([], [delete(a)])
        assert sorted(heard.values(3)) == ["-", "1", "2"]
    assert heard.events.empty()


def test_it_tells_the_past_from_its_start(etcd: Etcd, heard: Heard) -> None:
    key = f"{etcd.prefix}a"
    first = etcd.client.txn([], [put(key, "1")]).revision
    etcd.client.txn([], [put(key, "2")])
    with Watch(etcd.client, [one(key)], first, heard, never):
        assert heard.values(2) == ["1", "2"]


def test_it_resumes_after_a_cut_without_loss_and_without_telling_twice(etcd: Etcd, heard: Heard) -> None:
    key = f"{etcd.prefix}a"
    first = etcd.client.txn([], [put(key, "0")]).revision
    with (
        Proxy(etcd.server.members[0].client_port) as proxy,
        Client(EtcdOptions((proxy.endpoint,))) as client,
        Watch(client, [one(key)], first + 1, heard, never),
    ):
        for number in range(1, 6):
            etcd.client.txn([], [put(key, str(number))])
            if number % 2:
                proxy.cut()
        assert heard.values(5) == ["1", "2", "3", "4", "5"]
        time.sleep(0.2)
    assert heard.events.empty()


def test_closing_ends_its_thread_at_once(etcd: Etcd, heard: Heard) -> None:
    before = threading.active_count()
    watch = Watch(etcd.client, [one(f"{etcd.prefix}a")], 0, heard, never)
    time.sleep(0.1)
    started = time.monotonic()
    watch.close()
    assert time.monotonic() - started < 2
    end = time.monotonic() + 2
    while threading.active_count() > before + 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "etcd-watch"]


def test_it_says_where_history_is_gone_and_goes_on_from_what_was_read(
    etcd_cluster: EtcdServer, heard: Heard
) -> None:
    with Client(EtcdOptions(etcd_cluster.endpoints)) as client:
        first = client.txn([], [put("/a", "1")]).revision
        client.txn([], [put("/a", "2")])
        last = client.txn([], [put("/a", "3")]).revision
        etcdctl(etcd_cluster.endpoint, "compact", str(last))
        again = threading.Event()

        def read_anew() -> int:
            revision = client.read([one("/a")]).revision
            again.set()
            return revision

        with Watch(client, [one("/a")], first, heard, read_anew):
            assert again.wait(5)
            client.txn([], [put("/a", "4")])
            assert heard.values(1) == ["4"]


def test_it_leaves_a_member_that_has_lost_its_quorum(etcd_cluster: EtcdServer, heard: Heard) -> None:
    """The member is alone but alive, its connection stands: only that it has no leader shows it."""
    members = etcd_cluster.members
    with Client(EtcdOptions((members[0].endpoint,))) as client:
        first = client.txn([], [put("/a", "0")]).revision
        troubles: queue.Queue[str] = queue.Queue()
        with Watch(client, [one("/a")], first + 1, heard, never, lambda error: troubles.put(str(error))):
            time.sleep(0.3)
            for member in members[1:]:
                member.pause()
            try:
                assert "leader" in troubles.get(timeout=15)
            finally:
                for member in members[1:]:
                    member.resume()
            etcd_cluster.wait_until_it_serves()
            etcdctl(members[0].endpoint, "put", "/a", "1")
            assert heard.values(1) == ["1"]


def test_a_lookout_waits_for_this_and_then_for_that(etcd: Etcd) -> None:
    first, second = f"{etcd.prefix}a", f"{etcd.prefix}b"
    etcd.client.txn([], [put(first, "0"), put(second, "0")])
    with contextlib.closing(Lookout(etcd.client)) as lookout:
        assert lookout.watch(one(first))
        assert not lookout.watch(one(first)), "it is watched already"
        started = time.monotonic()
        assert lookout.wait(one(first), 0, 0.2) is None
        assert 0.15 < time.monotonic() - started < 2
        written = etcd.client.txn([], [put(first, "1")]).revision
        told(lookout.wait(one(first), 0, 5), b"1")
        assert lookout.wait(one(first), written, 0.05) is None, "what has been read already is no news"
        lookout.drop(one(first))
        etcd.client.txn([], [put(first, "2")])
        assert lookout.watch(one(second))
        etcd.client.txn([], [put(first, "3")])
        took, known = [], 0
        for value in (b"4", b"5", b"6", b"7", b"8"):
            started = time.monotonic()
            written = etcd.client.txn([], [put(second, value)]).revision
            told(lookout.wait(one(second), known, 5), value)
            took.append(time.monotonic() - started)
            known = written
        assert min(took) < 0.09, "etcd hands out the past every 100 ms only, and this is none"
        started = time.monotonic()
        stop = threading.Event()
        threading.Timer(0.1, stop.set).start()
        assert lookout.wait(one(second), etcd.client.txn([], []).revision, 5, stop) is None
        assert time.monotonic() - started < 2


def test_a_lookout_for_deletions_tells_nothing_else_and_keeps_only_the_newest(etcd: Etcd) -> None:
    key = f"{etcd.prefix}a"
    with contextlib.closing(Lookout(etcd.client)) as lookout:
        lookout.watch(one(key), deletions_only=True)
        etcd.client.txn([], [put(key, "1")])
        first = etcd.client.txn([], [delete(key)]).revision
        event = lookout.wait(one(key), 0, 5)
        assert event is not None and (event.deleted, event.item.mod_revision) == (True, first)
        etcd.client.txn([], [put(key, "2")])
        second = etcd.client.txn([], [delete(key)]).revision
        event = lookout.wait(one(key), first, 5)
        assert event is not None and event.item.mod_revision == second


def told(event: Event | None, value: bytes) -> None:
    assert event is not None
    assert event.item.value == value


def watched_again(lookout: Lookout, key: str) -> bool:
    """Watch `key` once the connection that broke is gone for good."""
    end = time.monotonic() + 10
    while True:
        try:
            return lookout.watch(one(key))
        except Unavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def test_a_lookout_says_that_its_stream_broke_and_opens_another(etcd: Etcd) -> None:
    key = f"{etcd.prefix}a"
    with (
        Proxy(etcd.server.members[0].client_port) as proxy,
        Client(EtcdOptions((proxy.endpoint,))) as client,
        contextlib.closing(Lookout(client)) as lookout,
    ):
        assert lookout.watch(one(key))
        threading.Timer(0.2, proxy.cut).start()
        with pytest.raises(Unavailable):
            lookout.wait(one(key), 0, 20)
        assert watched_again(lookout, key), "it is watched anew"
        etcd.client.txn([], [put(key, "1")])
        told(lookout.wait(one(key), 0, 5), b"1")


def test_it_logs_in_again_where_a_member_was_started_anew(etcd_users: Users, heard: Heard) -> None:
    """The token was known to the old process alone, and nothing but the watch asks etcd for anything."""
    with (
        EtcdServer(users=etcd_users) as server,
        Client(options(server)) as root,
        Client(options(server, agent(0))) as client,
    ):
        key = Keys().phase
        first = client.read([one(key)]).revision
        with Watch(client, [one(key)], first + 1, heard, never):
            root.txn([], [put(key, "before")])
            assert heard.values(1) == ["before"]
            server.members[0].end()
            server.members[0].start()
            server.wait_until_it_serves()
            with Client(options(server)) as anew:
                anew.txn([], [put(key, "after")])
            assert heard.values(1, 15) == ["after"]
