"""The reboot lock's document damaged, deleted, lowered and edited by hand while whole agents reboot. Promises 1, 3 and 8; faults 15 to 19."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from reconciler.core.artifact import Key
from reconciler.store.lock import RebootLock
from reconciler.store.transaction import delete, one, put
from tests.fleet.checker import history
from tests.fleet.cluster import says
from tests.fleet.fleet import Machine, Servers
from tests.fleet.test_reboots import group, holders


@dataclass
class Hand:
    """A person with `etcdctl`. What is between a fault and its mending is no fault of ours, so the checker passes over it."""

    servers: Servers
    since: int = 0

    @property
    def key(self) -> str:
        return self.servers.etcd.keys.semaphore("default")

    @property
    def document(self) -> str | None:
        (found,) = self.servers.etcd.client.read([one(self.key)]).items
        return found[0].value.decode() if found else None

    def write(self, text: str | None) -> int:
        """Put any text there, or delete the key."""
        change = delete(self.key) if text is None else put(self.key, text)
        return self.servers.etcd.client.txn([], [change]).revision

    def breaks(self, text: str | None) -> None:
        self.since = self.write(text)

    def mends(self, text: str) -> None:
        self.servers.planted.append(range(self.since, self.write(text)))


@pytest.fixture
def hand(servers: Servers) -> Hand:
    return Hand(servers)


def one_stays_down(servers: Servers, lrn: int = 1) -> tuple[Machine, str]:
    """Server `lrn` has the slot, has gone down and does not come back yet; the revision for which it did."""
    machine = servers.machines[lrn]
    machine.stays_away = True
    servers.wants_reboot(lrn)
    revision = servers.push({"tool": "1.0"}, groups=group(servers))
    servers.wait("it goes down", lambda: machine.reboots and machine.process is None)
    assert holders(servers) == (machine.machine_id,)
    return machine, revision


def test_promise_3_a_damaged_document_is_never_overwritten_and_the_slot_stays_held(hand: Hand) -> None:
    """Fault 15: the holder cannot give back, another cannot take; both say so, and go on once a person has put it right."""
    servers = hand.servers
    servers.gather(2)
    machine, revision = one_stays_down(servers)
    whole = hand.document
    assert whole is not None
    damage = "what is this"
    hand.breaks(damage)
    servers.wants_reboot(0)
    servers.start(machine)
    other = servers.machines[0]
    servers.wait("the holder says so", lambda: hand.key in machine.log)
    servers.wait("the other one says so", lambda: hand.key in other.log)
    assert not other.reboots and hand.document == damage
    hand.mends(whole)
    servers.wait_for_end(revision, within=60)
    assert len(machine.reboots) == 1 and holders(servers) == ()


def test_promise_3_a_deleted_document_is_not_made_anew_while_a_holders_record_stands(hand: Hand) -> None:
    """Fault 17: who would take a slot says so, and does not go down; once the holder is healthy its record goes, and all go on."""
    servers = hand.servers
    servers.gather(2)
    for machine in servers.machines.values():
        machine.stays_away = True
    servers.wants_reboot(0, 1)
    revision = servers.push({"tool": "1.0"}, groups=group(servers))
    servers.wait("one is down", lambda: down(servers))
    (holder,) = down(servers)
    (other,) = (machine for machine in servers.machines.values() if machine is not holder)
    hand.breaks(None)
    servers.wait("the other one says so", lambda: f"{hand.key} is missing" in other.log)
    assert not other.reboots and hand.document is None
    other.stays_away = False
    servers.start(holder)
    servers.wait_for_end(revision, within=60)
    assert [len(machine.reboots) for machine in servers.machines.values()] == [1, 1]
    assert "its record is dropped" in holder.log and holders(servers) == ()
    keys = servers.etcd.keys
    record = keys.holder("default", holder.machine_id)
    changes = history(servers.etcd.client, keys, hand.since)
    (dropped,) = (change.revision for change in changes if change.keys.get(record, "") is None)
    took = next(change.revision for change in changes if change.keys.get(hand.key))
    assert dropped < took, "while it stood, nobody made the document anew"
    servers.planted.append(range(hand.since, dropped))


def test_promise_1_a_counter_that_lies_and_holders_that_are_null_are_taken_as_they_are(hand: Hand) -> None:
    """Fault 16: the counter is ignored; one holder twice is refused by name."""
    servers = hand.servers
    servers.gather(2)
    hand.write('{"semaphore": 7, "max": 1, "holders": null}')
    servers.wants_reboot(0, 1)
    servers.wait_for_end(servers.push({"tool": "1.0"}, groups=group(servers)), within=40)
    assert [len(machine.reboots) for machine in servers.machines.values()] == [1, 1]
    someone = "e" * 32
    hand.breaks(f'{{"semaphore": 0, "max": 1, "holders": {says([someone, someone])}}}')
    servers.wants_reboot(0)
    revision = servers.push({"tool": "2.0"}, groups=group(servers))
    first = servers.machines[0]
    servers.wait("it names who is there twice", lambda: f"{someone}" in first.log and "twice" in first.log)
    assert len(first.reboots) == 1
    hand.mends('{"semaphore": 1, "max": 1, "holders": []}')
    servers.wait_for_end(revision, within=60)
    assert len(first.reboots) == 2


def test_promise_1_nobody_is_added_while_there_are_more_holders_than_max(hand: Hand) -> None:
    """Fault 18: `max` is lowered while two are down; they come back, and only one goes down at a time."""
    servers = hand.servers
    servers.gather(3)
    for machine in servers.machines.values():
        machine.stays_away = True
    servers.wants_reboot(*range(3))
    groups = [{**each, "reboot": {**each["reboot"], "slots": 2}} for each in group(servers)]
    revision = servers.push({"tool": "1.0"}, groups=groups)
    servers.wait("two are down", lambda: len(down(servers)) == 2)
    RebootLock(servers.etcd.client, servers.etcd.keys).set_max(1)
    first = down(servers)
    servers.start(first[0])
    servers.wait("one has come back", lambda: len(holders(servers)) == 1)
    assert {machine.machine_id for machine in first[1:]} == set(holders(servers)), "nobody took its place"
    for machine in servers.machines.values():
        machine.stays_away = False
    servers.start(first[1])
    servers.wait_for_end(revision, within=60)
    assert [len(machine.reboots) for machine in servers.machines.values()] == [1, 1, 1]


def down(servers: Servers) -> list[Machine]:
    """Those that have gone down and whose agent does not run."""
    return [machine for machine in servers.machines.values() if machine.reboots and machine.process is None]


def test_promise_8_a_recorded_version_that_was_edited_is_no_reason_to_do_anything_blindly(hand: Hand) -> None:
    """Fault 19: the newest revision is rolled out again; the driver looks at the host first, and what the host has is recorded."""
    servers = hand.servers
    servers.gather(2)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    keys, client = servers.etcd.keys, servers.etcd.client
    version = keys.version(1, Key("deb", "tool"))
    lists = servers.machines[1].root / "var/lib/dpkg/info/tool.list"
    before = lists.stat().st_mtime_ns
    for by_hand, timeout in ((put(version, "v9.9"), "600000000000"), (delete(version), "900000000000")):
        client.txn([], [by_hand])
        # Any news make the leader look; without them it does so each minute.
        servers.administration.set_config("worker-timeout", timeout)
        servers.wait("it is recorded again", lambda: servers.recorded(1).get("deb/tool") == "v1.0")
        servers.wait("that rollout ends", lambda: (r := servers.view().rollout) and not r.unfinished)
        servers.has("tool", "1.0")
    assert lists.stat().st_mtime_ns == before, "it was there, so it was recorded and not installed again"
