"""Requests whose answer is lost, that arrive late, and that come from one whose lease is gone, from whole agents.

Promises 2, 9 and 12; faults 4, 5, 6 and 11. Each fault hits one request at its moment: what opens, begins, records, takes, gives back.
"""

from __future__ import annotations

import signal
import time

import pytest

from reconciler.core.state import PHASES
from reconciler.store.transaction import Item, under
from tests.fleet.cluster import Cluster, begins, completes, gives_slot_back, opens, takes_slot
from tests.fleet.fleet import Servers
from tests.fleet.test_cluster import push_with_reboot
from tests.fleet.test_leader import leading, other_leader
from tests.fleet.test_reboots import holders
from tests.grpc_proxy import Fate

CHANGE = "debs:deb/tool:change"
OPENING = ("status/current", '"plan_format"', '"phase":1}')


def facts(servers: Servers) -> tuple[tuple[Item, ...], ...]:
    """All that a late request could change."""
    keys = servers.etcd.keys
    folders = (keys.status, keys.all_steps, keys.installed, keys.history, keys.lock)
    return servers.etcd.client.read([under(folder) for folder in folders]).items


def done_once(servers: Servers, rebooted: int) -> None:
    """The end is what it would have been, and nothing was done twice for it."""
    servers.has("tool", "1.0")
    assert all(record.attempt == 1 for steps in servers.view().steps.values() for record in steps.values())
    assert len(servers.machines[rebooted].reboots) == 1 and holders(servers) == ()
    assert (servers.machines[rebooted].directory / "hooks").read_text().split() == ["drain", "undrain"]


def test_promise_12_the_reply_to_each_kind_of_write_is_lost(cluster: Cluster) -> None:
    """Fault 6: it happened, nobody is told, and it is found out by reading."""
    servers = cluster.servers
    cluster.gather(3, "--lease-ttl", "5s")
    writes: list[tuple[tuple[str, ...], tuple[int, ...]]] = [(OPENING, ())]
    writes += [(opens(number), ()) for number in range(2, len(PHASES) + 1)]
    writes += [(begins(1, CHANGE), (1,)), (completes(2, CHANGE), (2,))]
    writes += [(takes_slot(servers.machines[1]), (1,)), (gives_slot_back(), (1,))]
    writes += [
        (begins(1, "reboot:host:hook:before:0"), (1,)),
        (completes(1, "reboot:host:hook:before:0"), (1,)),
    ]
    writes += [(begins(1, "reboot:host:reboot"), (1,)), (completes(1, "reboot:host:health"), (1,))]
    moments = [cluster.when(texts, lambda: Fate.LOSES_ITS_REPLY, *who) for texts, who in writes]
    servers.wait_for_end(push_with_reboot(servers, 1, "1.0"), within=60)
    assert [moment.texts for moment in moments if not moment.come.is_set()] == []
    done_once(servers, 1)


@pytest.mark.soak
def test_promise_12_requests_that_arrive_when_all_is_over_change_nothing(cluster: Cluster) -> None:
    """Fault 5: each was given up, sent again and decided; then the first one lands."""
    servers = cluster.servers
    cluster.gather(3, "--lease-ttl", "5s")
    writes: list[tuple[tuple[str, ...], tuple[int, ...]]] = [
        (opens(4), ()),
        (begins(1, CHANGE), (1,)),
        (completes(2, CHANGE), (2,)),
    ]
    writes += [(takes_slot(servers.machines[1]), (1,)), (gives_slot_back(), (1,))]
    moments = [cluster.when(texts, lambda: Fate.IS_HELD, *who) for texts, who in writes]
    servers.wait_for_end(push_with_reboot(servers, 1, "1.0"), within=90)
    assert [moment.texts for moment in moments if not moment.come.is_set()] == []
    before = facts(servers)
    for road in cluster.roads.values():
        road.let_go()
    servers.wait(
        "the late ones are answered",
        lambda: sum(road.answered_late for road in cluster.roads.values()) == len(moments),
    )
    assert facts(servers) == before
    done_once(servers, 1)


def test_promise_2_a_leader_that_froze_with_its_request_under_way_is_fenced_twice(cluster: Cluster) -> None:
    """Faults 4 and 5: its late request is refused on its token, and so is what it says after SIGCONT."""
    servers = cluster.servers
    cluster.gather()
    paused = servers.leader()

    def freeze() -> Fate:
        paused.signal(signal.SIGSTOP)
        return Fate.IS_HELD

    moment = cluster.when(opens(3), freeze, paused.lrn)
    revision = servers.push({"tool": "1.0"})
    assert moment.come.wait(30)
    another = other_leader(servers, paused, 10.0)
    others = [lrn for lrn in servers.machines if lrn != paused.lrn]
    servers.wait("the others are in the next phase", lambda: len(at_phase(servers, 4, others)) == 2)
    before = facts(servers)
    cluster.roads[paused.lrn].let_go()
    servers.wait("the late one is answered", lambda: cluster.roads[paused.lrn].answered_late == 1)
    assert facts(servers) == before
    paused.signal(signal.SIGCONT)
    servers.wait_for_end(revision, within=40)
    servers.has("tool", "1.0")
    assert leading(servers) is another
    servers.wait("it says that it leads no more", lambda: "leads no more" in paused.log)


def at_phase(servers: Servers, number: int, lrns: list[int]) -> list[int]:
    """Those of `lrns` that are ready for phase `number`, or in it."""
    statuses = servers.view().statuses
    return [lrn for lrn in lrns if lrn in statuses and statuses[lrn].step >= number]


def test_promise_2_a_lease_that_etcd_revokes_fences_what_was_decided_under_it(cluster: Cluster) -> None:
    """Fault 11: the leader's as it opens a phase, an agent's while its dpkg runs, and another's as it notes its reboot.

    What runs is recorded; what would begin is not begun before the agent is registered again; the slot stays held.
    """
    servers = cluster.servers
    for lrn in range(3):
        cluster.add(lrn)
    held = servers.machines[1]
    held.hold_dpkg()
    servers.start()
    servers.wait_for_registered(0, 1, 2)
    keys, client = servers.etcd.keys, servers.etcd.client

    def revoke(folder: str) -> None:
        (found,) = client.read([under(folder)]).items
        client.revoke(min(found, key=lambda item: item.create_revision).lease)

    def freeze_until_the_lease_is_gone() -> None:
        servers.machines[2].signal(signal.SIGSTOP)
        revoke(keys.agents_of(2))

    as_leader = cluster.when(opens(4), lambda: revoke(keys.election))
    as_it_reboots = cluster.when(begins(2, "reboot:host:reboot"), freeze_until_the_lease_is_gone, 2)
    revision = push_with_reboot(servers, 2, "1.0")
    servers.wait("a dpkg runs", lambda: held.in_dpkg)
    revoke(keys.agents_of(1))
    held.let_dpkg_go()
    assert as_it_reboots.come.wait(60), servers.report()
    time.sleep(0.5)
    assert not servers.machines[2].reboots and holders(servers) == (servers.machines[2].machine_id,)
    servers.machines[2].signal(signal.SIGCONT)
    servers.wait_for_end(revision, within=60)
    assert as_leader.come.is_set()
    servers.has("tool", "1.0")
    assert len(servers.machines[2].reboots) == 1 and holders(servers) == ()
    assert servers.view().steps[1][CHANGE].attempt == 1
