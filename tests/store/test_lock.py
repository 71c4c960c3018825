"""The reboot lock on a real etcd: slots, records, the waiting line, and every fault that must not free or take one twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from reconciler.core.semaphore import Holder, Source
from reconciler.errors import Corrupt, Fenced, HeldBack, ReconcilerError, Unavailable
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.commit import Guard
from reconciler.store.keys import Keys
from reconciler.store.line import Line
from reconciler.store.lock import RebootLock, read_released
from reconciler.store.lock_view import Refused, Taken
from reconciler.store.session import Session
from reconciler.store.transaction import (
    Compare,
    Operation,
    Put,
    Reply,
    absent,
    delete,
    one,
    put,
    under,
)
from reconciler.store.view import read_locks
from tests.conftest import Etcd
from tests.etcd_server import etcdctl
from tests.fleet.checker import history, prove
from tests.proxy import Proxy

LATER = "2026-01-02T04:00:00.000000000Z"


def holder(machine: str, source: Source = "agent", lrn: int | None = 1) -> Holder:
    return Holder(machine, source, lrn, start_time=1_700_000_000, boot_id="b1", reason="reboot")


def lock(etcd: Etcd, group: str = "default") -> RebootLock:
    return RebootLock(etcd.client, etcd.keys, group)


def take(etcd: Etcd, machine: str) -> Holder:
    answer = lock(etcd).take(holder(machine))
    assert isinstance(answer, Taken)
    return answer.holder


def document(etcd: Etcd, group: str = "default") -> dict[str, object]:
    (found,) = etcd.client.read([one(etcd.keys.semaphore(group))]).items
    decoded: dict[str, object] = json.loads(found[0].value)
    return decoded


class TestSlots:
    def test_reading_writes_nothing(self, etcd: Etcd) -> None:
        assert read_locks(etcd.client, etcd.keys)["default"].semaphore.max == 1
        assert lock(etcd).holder_of("m1") is None
        assert etcd.client.read([under(etcd.keys.lock)]).items == ((),)

    def test_taking_and_giving_back(self, etcd: Etcd) -> None:
        mine = take(etcd, "m1")
        assert document(etcd) == {"semaphore": 0, "max": 1, "holders": ["m1"]}
        again = lock(etcd).take(holder("m1"))
        assert again == Taken(mine, again=True)
        refused = lock(etcd).take(holder("m2"))
        assert isinstance(refused, Refused)
        assert "held by m1, max 1" in refused.reason
        assert lock(etcd).release(mine)
        assert not lock(etcd).release(mine)
        assert document(etcd) == {"semaphore": 1, "max": 1, "holders": []}
        assert etcd.client.read([under(etcd.keys.holders("default"))]).items == ((),)

    @pytest.mark.parametrize(("source", "lrn"), [("fleetlock", 1), ("agent", 2), ("operator", None)])
    def test_a_slot_is_its_owners_alone(self, etcd: Etcd, source: Source, lrn: int | None) -> None:
        mine = take(etcd, "m1")
        other = holder("m1", source, lrn)
        refused = lock(etcd).take(other)
        assert isinstance(refused, Refused)
        assert not refused.waits
        assert not lock(etcd).release(Holder("m1", source, lrn, mod_revision=mine.mod_revision))
        assert document(etcd)["holders"] == ["m1"]

    def test_a_release_that_comes_late_does_not_free_a_slot_that_was_taken_anew(self, etcd: Etcd) -> None:
        old = take(etcd, "m1")
        remembering = lock(etcd)
        assert isinstance(remembering.take(holder("m1")), Taken)
        lock(etcd).release_of("m1", "ann", "stuck", LATER)
        new = take(etcd, "m1")
        assert not remembering.release(old)
        assert document(etcd)["holders"] == ["m1"]
        assert remembering.release(new)

    def test_one_that_remembers_a_slot_that_was_released_does_not_believe_it(self, etcd: Etcd) -> None:
        remembering = lock(etcd)
        first = remembering.take(holder("m1"))
        assert isinstance(first, Taken)
        lock(etcd).release_of("m1", "ann", "stuck", LATER)
        second = remembering.take(holder("m1"))
        assert isinstance(second, Taken)
        assert not second.again
        assert second.holder.mod_revision > first.holder.mod_revision

    def test_a_guard_that_does_not_hold_takes_nothing(self, etcd: Etcd) -> None:
        key = f"{etcd.prefix}phase"
        etcd.client.txn([], [put(key, "")])
        with pytest.raises(Fenced, match="the phase is not open"):
            lock(etcd).take(
                holder("m1"), guards=[Guard(absent(key), "the phase is not open")], also=[delete(key)]
            )
        assert etcd.client.read([under(etcd.keys.lock)]).items == ((),)
        assert isinstance(lock(etcd).take(holder("m1"), also=[delete(key)]), Taken)
        assert etcd.client.read([one(key)]).items == ((),)

    def test_groups_are_apart(self, etcd: Etcd) -> None:
        assert isinstance(lock(etcd, "a/b").take(holder("m1")), Taken)
        assert isinstance(lock(etcd).take(holder("m1")), Taken)
        assert {
            group: found.semaphore.holders for group, found in read_locks(etcd.client, etcd.keys).items()
        } == {
            "a/b": ("m1",),
            "default": ("m1",),
        }

    def test_the_maximum(self, etcd: Etcd) -> None:
        assert lock(etcd).set_max(2) == 1
        first, second = take(etcd, "m1"), take(etcd, "m2")
        assert lock(etcd).set_max(1) == 2
        assert document(etcd) == {"semaphore": -1, "max": 1, "holders": ["m1", "m2"]}
        lock(etcd).release(first)
        assert isinstance(lock(etcd).take(holder("m3")), Refused)
        lock(etcd).release(second)
        assert isinstance(lock(etcd).take(holder("m3")), Taken)
        assert lock(etcd).set_max(0) == 1
        assert lock(etcd).set_max(0) == 0
        with pytest.raises(ValueError, match="0 closes it"):
            lock(etcd).set_max(-1)
        with pytest.raises(ValueError, match="empty machine id"):
            lock(etcd).take(holder(""))


class TestDocumentsOfOthers:
    def test_locksmiths_document_is_used_and_left_in_its_form(self, etcd: Etcd) -> None:
        key = etcd.keys.semaphore("default")
        etcdctl(etcd.endpoint, "put", key, '{"semaphore": 9, "max": 2, "holders": ["zz"], "note": "ours"}')
        mine = take(etcd, "aa")
        assert document(etcd) == {"semaphore": 0, "max": 2, "holders": ["aa", "zz"], "note": "ours"}
        lock(etcd).release(mine)
        assert document(etcd) == {"semaphore": 1, "max": 2, "holders": ["zz"], "note": "ours"}
        operators = lock(etcd).holder_of("zz")
        assert operators == Holder("zz")
        assert lock(etcd).take(Holder("zz")) == Taken(Holder("zz"), again=True)
        assert lock(etcd).release(Holder("zz"))
        assert document(etcd)["holders"] == []

    def test_null_holders_are_none(self, etcd: Etcd) -> None:
        etcdctl(
            etcd.endpoint, "put", etcd.keys.semaphore("default"), '{"semaphore":1,"max":1,"holders":null}'
        )
        take(etcd, "m1")

    @pytest.mark.parametrize("text", ["", "not json", "[]", '{"max":"1"}', '{"max":1,"holders":["a","a"]}'])
    def test_what_is_no_semaphore_is_named_and_never_overwritten(self, etcd: Etcd, text: str) -> None:
        key = etcd.keys.semaphore("default")
        etcd.client.txn([], [put(key, text)])
        for attempt in (
            lambda: lock(etcd).take(holder("m1")),
            lambda: lock(etcd).release(holder("m1")),
            lambda: lock(etcd).release_of("m1", "ann", "why", LATER),
            lambda: lock(etcd).set_max(2),
        ):
            with pytest.raises(Corrupt, match=key):
                attempt()
        assert etcd.client.read([one(key)]).items[0][0].value == text.encode()

    def test_a_document_that_was_deleted_is_not_made_anew_while_somebody_holds(self, etcd: Etcd) -> None:
        remembering = lock(etcd)
        mine = remembering.take(holder("m1"))
        assert isinstance(mine, Taken)
        etcd.client.txn([], [delete(etcd.keys.semaphore("default"))])
        for attempt in (
            lambda: lock(etcd).take(holder("m2")),
            lambda: lock(etcd).set_max(3),
            lambda: remembering.release(mine.holder),
        ):
            with pytest.raises(ReconcilerError, match="is missing but there are holders' records"):
                attempt()

    def test_a_record_that_the_document_does_not_bear_out_is_dropped_by_its_owner_alone(
        self, etcd: Etcd
    ) -> None:
        mine = take(etcd, "m1")
        with pytest.raises(Fenced, match="it is held"):
            lock(etcd).drop_record(mine)
        etcd.client.txn([], [delete(etcd.keys.semaphore("default"))])
        for other in (holder("m1", "fleetlock"), holder("m1", lrn=2), holder("m2")):
            assert not lock(etcd).drop_record(other)
        with pytest.raises(ReconcilerError, match="is missing"):
            lock(etcd).take(holder("m2"))
        assert lock(etcd).drop_record(mine)
        assert not lock(etcd).drop_record(mine)
        take(etcd, "m2")
        assert document(etcd)["holders"] == ["m2"]


class TestOperators:
    def test_a_release_is_noted(self, etcd: Etcd) -> None:
        mine = take(etcd, "m1")
        assert lock(etcd).release_of("m1", "ann", "stuck", LATER) == mine
        assert lock(etcd).release_of("m1", "ann", "stuck", LATER) is None
        (noted,) = read_released(etcd.client, etcd.keys)
        assert (noted.group, noted.holder.machine_id, noted.who, noted.why) == (
            "default",
            "m1",
            "ann",
            "stuck",
        )

    def test_only_the_slot_that_was_seen(self, etcd: Etcd) -> None:
        old = take(etcd, "m1")
        lock(etcd).release(old)
        take(etcd, "m1")
        with pytest.raises(HeldBack, match="taken anew"):
            lock(etcd).release_of("m1", "ann", "stuck", LATER, old.mod_revision)

    def test_holder_and_operator_release_at_once(self, etcd: Etcd) -> None:
        """Never freed twice, and never another's, who takes the slot in between."""
        for _ in range(20):
            mine = take(etcd, "m1")
            freed: list[bool] = []
            threads = [
                threading.Thread(
                    target=lambda mine=mine, freed=freed: freed.append(lock(etcd).release(mine))
                ),
                threading.Thread(
                    target=lambda freed=freed: freed.append(
                        lock(etcd).release_of("m1", "ann", "x", LATER) is not None
                    )
                ),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(freed) == [False, True]
            other = take(etcd, "m2")
            assert not lock(etcd).release(mine)
            assert lock(etcd).release(other)


class TestLine:
    def test_who_does_not_wait_is_refused_while_somebody_does(self, etcd: Etcd) -> None:
        mine = take(etcd, "m1")
        with Session(etcd.client, 30) as session:
            waiting = lock(etcd)
            waiter, _ = waiting.enqueue(session, holder("m2"))
            assert waiting.enqueue(session, holder("m2"))[0] == waiter
            remembering = lock(etcd)
            assert isinstance(remembering.take(holder("m3")), Refused)
            lock(etcd).release(mine)
            refused = remembering.take(holder("m3"))
            assert isinstance(refused, Refused)
            assert "others wait" in refused.reason
            assert isinstance(waiting.take(holder("m2"), waiter), Taken)
            assert read_locks(etcd.client, etcd.keys)["default"].waiters == ()

    def test_a_remembered_empty_line_is_not_believed(self, etcd: Etcd) -> None:
        remembering = lock(etcd)
        mine = remembering.take(holder("m1"))
        assert isinstance(mine, Taken)
        with Session(etcd.client, 30) as session:
            lock(etcd).enqueue(session, holder("m2"))
            assert remembering.release(mine.holder)
            assert isinstance(remembering.take(holder("m1")), Refused)

    def test_the_order_is_that_of_asking(self, etcd: Etcd) -> None:
        mine = take(etcd, "m0")
        order: list[str] = []

        def wait(machine: str) -> None:
            with etcd.new_client() as client:
                own = RebootLock(client, etcd.keys)
                answer = Line(own).acquire(holder(machine), wait=20)
                assert isinstance(answer, Taken)
                order.append(machine)
                own.release(answer.holder)

        threads = []
        for number in range(1, 7):
            threads.append(threading.Thread(target=wait, args=(f"m{number}",)))
            threads[-1].start()
            line(etcd, number)
        lock(etcd).release(mine)
        for thread in threads:
            thread.join(20)
        assert order == [f"m{number}" for number in range(1, 7)]

    def test_time_up_leaves_the_line(self, etcd: Etcd) -> None:
        take(etcd, "m1")
        started = time.monotonic()
        assert isinstance(Line(lock(etcd)).acquire(holder("m2"), wait=0.3), Refused)
        assert time.monotonic() - started < 3
        line(etcd, 0)

    def test_more_slots_let_more_in(self, etcd: Etcd) -> None:
        take(etcd, "m0")
        taken: list[str] = []

        def wait(machine: str) -> None:
            with etcd.new_client() as client:
                if isinstance(Line(RebootLock(client, etcd.keys)).acquire(holder(machine), wait=20), Taken):
                    taken.append(machine)

        threads = [threading.Thread(target=wait, args=(f"m{number}",)) for number in (1, 2, 3)]
        for thread in threads:
            thread.start()
        line(etcd, 3)
        lock(etcd).set_max(4)
        for thread in threads:
            thread.join(20)
        assert sorted(taken) == ["m1", "m2", "m3"]

    def test_one_in_the_middle_that_leaves_lets_nobody_pass(self, etcd: Etcd) -> None:
        """Whoever watched it watches the one before then, and the first still goes first."""
        mine = take(etcd, "m0")
        order: list[str] = []
        stop = threading.Event()

        def wait(machine: str) -> None:
            with etcd.new_client() as client:
                own = RebootLock(client, etcd.keys)
                answer = Line(own).acquire(holder(machine), 30, stop if machine == "m2" else None)
                if isinstance(answer, Taken):
                    order.append(machine)
                    own.release(answer.holder)

        threads = [threading.Thread(target=wait, args=(f"m{number}",)) for number in (1, 2, 3)]
        for number, thread in enumerate(threads, 1):
            thread.start()
            line(etcd, number)
        stop.set()
        threads[1].join(30)
        line(etcd, 2)
        assert order == []
        lock(etcd).release(mine)
        for thread in threads:
            thread.join(30)
        assert order == ["m1", "m3"]

    def test_a_free_slot_is_the_firsts_though_one_in_the_middle_leaves(self, etcd: Etcd) -> None:
        """Whoever comes after that one expects to be first now, and is not."""
        mine = take(etcd, "m0")
        taken: list[Holder] = []
        slow = lock(etcd)
        with Session(etcd.client, 30) as first, Session(etcd.client, 30) as second:
            m1, _ = slow.enqueue(first, holder("m1"))
            m2, _ = slow.enqueue(second, holder("m2"))

            def wait() -> None:
                with etcd.new_client() as client:
                    answer = Line(RebootLock(client, etcd.keys)).acquire(holder("m3"), wait=30)
                    assert isinstance(answer, Taken)
                    taken.append(answer.holder)

            thread = threading.Thread(target=wait)
            thread.start()
            line(etcd, 3)
            lock(etcd).release(mine)
            slow.leave(m2)
            time.sleep(0.3)
            assert taken == []
            answer = slow.take(holder("m1"), m1)
            assert isinstance(answer, Taken)
            slow.release(answer.holder)
            thread.join(10)
        assert [held.machine_id for held in taken] == ["m3"]

    def test_waiting_asks_etcd_nothing(self, etcd: Etcd) -> None:
        """Whoever stands in the line is woken by its watch."""
        mine = take(etcd, "m0")
        taken: list[float] = []
        with etcd.new_client() as client:

            def wait() -> None:
                answer = Line(RebootLock(client, etcd.keys)).acquire(holder("m1"), wait=30)
                assert isinstance(answer, Taken)
                taken.append(time.monotonic())

            thread = threading.Thread(target=wait)
            thread.start()
            line(etcd, 1)
            settled = dict(client.counts)
            for _ in range(50):
                time.sleep(0.02)
                if settled == (settled := dict(client.counts)) and settled.get("Watch", 0) >= 1:
                    break
            time.sleep(0.5)
            assert dict(client.counts) == settled
            lock(etcd).release(mine)
            thread.join(10)
        assert taken

    def test_a_place_that_is_lost_takes_nothing(self, etcd: Etcd) -> None:
        mine = take(etcd, "m1")
        with Session(etcd.client, 30) as session:
            waiting = lock(etcd)
            waiter, _ = waiting.enqueue(session, holder("m2"))
            etcd.client.revoke(session.lease)
            lock(etcd).release(mine)
            with pytest.raises(Fenced, match="place in the line is lost"):
                waiting.take(holder("m2"), waiter)
        assert document(etcd)["holders"] == []

    def test_a_stop_ends_the_waiting(self, etcd: Etcd) -> None:
        take(etcd, "m1")
        stop = threading.Event()
        threading.Timer(0.2, stop.set).start()
        started = time.monotonic()
        assert isinstance(Line(lock(etcd)).acquire(holder("m2"), wait=20, stop=stop), Refused)
        assert time.monotonic() - started < 3


def line(etcd: Etcd, number: int, within: float = 10) -> None:
    """Wait until so many stand in line."""
    end = time.monotonic() + within
    while len(read_locks(etcd.client, etcd.keys)["default"].waiters) != number:
        if time.monotonic() > end:
            raise AssertionError(f"not {number} in the line")
        time.sleep(0.01)


WORKER = """
import sys, time
from reconciler.core.semaphore import Holder
from reconciler.store import line
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.line import Line
from reconciler.store.lock import RebootLock
from reconciler.store.lock_view import Taken
endpoint, prefix, lock_prefix, machine, wait, hold, keep, ttl = sys.argv[1:]
line.WAITER_TTL = float(ttl)
with Client(EtcdOptions((endpoint,))) as client:
    lock = RebootLock(client, Keys(prefix, lock_prefix))
    answer = Line(lock).acquire(Holder(machine, "agent", 1), wait=float(wait))
    print("taken" if isinstance(answer, Taken) else "refused", flush=True)
    time.sleep(float(hold))
    if keep == "False":
        lock.release(answer.holder)
"""


def worker(
    etcd: Etcd, machine: str, wait: float, hold: float = 0, *, keep: bool = True, ttl: float = 30
) -> subprocess.Popen[str]:
    """A process of its own that takes a slot and keeps it, or gives it back."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            WORKER,
            etcd.endpoint,
            etcd.prefix,
            etcd.lock_prefix,
            machine,
            str(wait),
            str(hold),
            str(keep),
            str(ttl),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def said(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output.strip()


class TestProcesses:
    def test_twenty_at_once_on_twenty_slots(self, etcd: Etcd) -> None:
        lock(etcd).set_max(20)
        processes = [worker(etcd, f"m{number:02}", wait=0) for number in range(20)]
        assert [said(process) for process in processes] == ["taken"] * 20
        assert document(etcd)["holders"] == [f"m{number:02}" for number in range(20)]

    def test_twenty_at_once_on_one_slot_take_it_in_the_order_of_asking(self, etcd: Etcd) -> None:
        """As etcd's history shows it: the places in the line, and who took the slot next."""
        mine = take(etcd, "m-")
        since = etcd.client.txn([], [put(f"{etcd.prefix}begins", "")]).revision
        processes = [worker(etcd, f"m{number:02}", wait=120, keep=False) for number in range(20)]
        line(etcd, 20, within=120)
        lock(etcd).release(mine)
        assert [said(process) for process in processes] == ["taken"] * 20
        places, taken = [], []
        for change in history(etcd.client, etcd.keys, since):
            for key, text in change.keys.items():
                if text is not None and key.startswith(etcd.keys.waiters("default")):
                    places.append(json.loads(text)["machineID"])
                elif text is not None and key.startswith(etcd.keys.holders("default")):
                    taken.append(json.loads(text)["machineID"])
        assert len(taken) == 20 and taken == places
        prove(etcd.client, etcd.keys, since)

    def test_one_that_is_killed_while_holding_keeps_its_slot(self, etcd: Etcd) -> None:
        held = worker(etcd, "m1", wait=0, hold=60)
        assert held.stdout is not None
        assert held.stdout.readline() == "taken\n"
        os.kill(held.pid, signal.SIGKILL)
        held.communicate()
        assert isinstance(lock(etcd).take(holder("m2")), Refused)
        assert lock(etcd).take(holder("m1")) == Taken(lock(etcd).holder_of("m1") or holder(""), again=True)

    def test_one_that_is_killed_while_waiting_leaves_the_line(self, etcd: Etcd) -> None:
        """Its lease ends, and the one behind it goes on by what its watch tells; nobody else helps."""
        mine = take(etcd, "m1")
        dead = worker(etcd, "m2", wait=60, ttl=3)
        line(etcd, 1, within=30)
        waiting = worker(etcd, "m3", wait=60)
        line(etcd, 2, within=30)
        os.kill(dead.pid, signal.SIGKILL)
        dead.communicate()
        line(etcd, 1, within=30)
        lock(etcd).release(mine)
        assert said(waiting) == "taken"


def test_many_threads_on_one_slot_are_never_two(etcd: Etcd) -> None:
    """Each revision of the document is looked at afterwards: never more holders than slots."""
    first = etcd.client.txn([], [put(etcd.keys.semaphore("default"), '{"semaphore":1,"max":1,"holders":[]}')])
    inside: list[str] = []
    worst: list[int] = []

    def cycle(machine: str) -> None:
        with etcd.new_client() as client:
            own = RebootLock(client, etcd.keys)
            for _ in range(5):
                answer = Line(own).acquire(holder(machine), wait=30)
                assert isinstance(answer, Taken)
                inside.append(machine)
                worst.append(len(inside))
                inside.remove(machine)
                assert own.release(answer.holder)

    threads = [threading.Thread(target=cycle, args=(f"m{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(worst), max(worst)) == (40, 1)
    last = etcd.client.read([one(etcd.keys.semaphore("default"))]).revision
    for revision in range(first.revision, last + 1):
        (found,) = etcd.client.read([one(etcd.keys.semaphore("default"))], revision).items
        assert len(json.loads(found[0].value)["holders"]) <= 1


class Crowd(Client):
    """Somebody else changes the document before each of our writes."""

    def __init__(self, etcd: Etcd) -> None:
        super().__init__(etcd.options())
        self._key, self.refused = etcd.keys.semaphore("default"), 0

    def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Reply:
        if any(isinstance(operation, Put) for operation in then):
            ((found,),) = self.read([one(self._key)]).items
            super().txn([], [put(self._key, found.value)])
            self.refused += 1
        return super().txn(compares, then, otherwise)


def test_a_document_that_others_change_all_the_time_is_given_up_after_the_patience(etcd: Etcd) -> None:
    """It says which, for how long it was tried, and nothing has changed."""
    mine = take(etcd, "m1")
    lock(etcd).set_max(2)
    before = document(etcd)
    with contextlib.closing(Crowd(etcd)) as client:
        crowded = RebootLock(client, etcd.keys, patience=0.1)
        for what, attempt in (
            ("take a slot", lambda: crowded.take(holder("m2"))),
            ("give back a slot", lambda: crowded.release(mine)),
            ("release a slot", lambda: crowded.release_of("m1", "ann", "stuck", LATER)),
            ("set the maximum", lambda: crowded.set_max(3)),
        ):
            tried = client.refused
            with pytest.raises(Unavailable) as raised:
                attempt()
            assert str(raised.value) == (
                f"cannot {what} of lock group default: others changed {etcd.keys.semaphore('default')} "
                "all the time for 0.1 s; try again"
            )
            assert client.refused - tried >= 2, "it was tried again"
    assert document(etcd) == before and lock(etcd).holder_of("m1") == mine
    assert read_released(etcd.client, etcd.keys) == ()


def test_answers_that_are_lost_take_and_free_once(etcd: Etcd) -> None:
    with (
        Proxy(etcd.server.members[0].client_port) as proxy,
        Client(EtcdOptions((proxy.endpoint,)), timeout=1) as client,
    ):
        own = RebootLock(client, Keys(etcd.prefix, etcd.lock_prefix))
        for _ in range(3):
            own.holder_of("m1")
            proxy.lose_replies = True
            threading.Timer(0.5, lambda: setattr(proxy, "lose_replies", False)).start()
            taken = own.take(holder("m1"))
            assert isinstance(taken, Taken)
            assert document(etcd)["holders"] == ["m1"]
            proxy.lose_replies = True
            threading.Timer(0.5, lambda: setattr(proxy, "lose_replies", False)).start()
            assert own.release(taken.holder)
            assert document(etcd) == {"semaphore": 1, "max": 1, "holders": []}
