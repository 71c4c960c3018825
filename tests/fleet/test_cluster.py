"""Members of etcd die, freeze and are too few while whole agents are at work. Promise 10; faults 7, 8, 10, 12 and 13."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.state import PHASES
from reconciler.store.library import etcd_and_grpc
from reconciler.store.transaction import one
from tests.etcd_server import Member
from tests.etcd_users import ROOT
from tests.fleet.cluster import Cluster, begins, completes, opens
from tests.fleet.fleet import Machine, Servers
from tests.fleet.test_reboots import group, holders


def push_with_reboot(servers: Servers, lrn: int, tool: str, **rules: Any) -> str:
    """Push a revision that has a package for all, and after which server `lrn` reboots."""
    servers.wants_reboot(lrn)
    return servers.push({"tool": tool}, groups=group(servers, **rules))


def with_a_held_dpkg(cluster: Cluster, lrn: int = 1, *arguments: str) -> Machine:
    """Three agents, of which `lrn`'s dpkg waits."""
    for number in range(3):
        cluster.add(number, *arguments)
    held = cluster.servers.machines[lrn]
    held.hold_dpkg()
    cluster.servers.start()
    cluster.servers.wait_for_registered(0, 1, 2)
    return held


def agents_live(servers: Servers) -> bool:
    return all(machine.process and machine.process.poll() is None for machine in servers.machines.values())


def test_promise_10_etcds_leader_is_killed_as_each_phase_opens(cluster: Cluster) -> None:
    """Fault 7: it dies with the request that opens the phase in hand. Nothing is done twice."""
    servers = cluster.servers
    cluster.gather(3, "--lease-ttl", "5s")
    killed: list[str] = []

    def kill() -> None:
        cluster.heal_members()
        member = cluster.member_that_leads()
        member.kill()
        killed.append(member.name)

    for number in range(1, len(PHASES) + 1):
        cluster.when(opens(number), kill)
    finished = servers.wait_for_end(push_with_reboot(servers, 1, "1.0"), within=60)
    assert len(killed) == len(PHASES) and not finished.out
    servers.has("tool", "1.0")
    assert len(servers.machines[1].reboots) == 1 and holders(servers) == ()
    assert all(record.attempt == 1 for steps in servers.view().steps.values() for record in steps.values())


def test_promise_10_a_member_freezes_as_a_step_begins_is_recorded_and_takes_the_slot(
    cluster: Cluster,
) -> None:
    """A member that says nothing costs its clients a deadline; another one serves them."""
    servers = cluster.servers
    cluster.gather(3, "--lease-ttl", "5s")
    frozen: list[Member] = []

    def freeze() -> None:
        cluster.heal_members()
        frozen[:] = [cluster.follower()]
        frozen[0].pause()

    moments = [
        cluster.when(texts, freeze, lrn)
        for lrn, texts in (
            (1, begins(1, "debs:deb/tool:change")),
            (2, completes(2, "debs:deb/tool:change")),
            (1, begins(1, "reboot:host:acquire")),
        )
    ]
    servers.wait_for_end(push_with_reboot(servers, 1, "1.0"), within=60)
    assert all(moment.come.is_set() for moment in moments)
    servers.has("tool", "1.0")
    assert len(servers.machines[1].reboots) == 1


def test_promise_10_without_a_quorum_what_runs_finishes_and_nothing_begins(cluster: Cluster) -> None:
    """Fault 8, while a dpkg runs, and again with a slot in hand and the reboot about to be noted: no reboot before etcd is back."""
    servers = cluster.servers
    held = with_a_held_dpkg(cluster)
    revision = push_with_reboot(servers, 1, "1.0")
    servers.wait("a dpkg runs", lambda: held.in_dpkg)
    servers.wait("the others are ready", lambda: servers.recorded(0) and servers.recorded(2))
    lost = cluster.two_others()

    def too_few() -> None:
        for member in lost:
            member.kill()

    too_few()
    held.let_dpkg_go()
    servers.wait_on_hosts("dpkg finishes", lambda: held.deb("tool") == "ii 1.0")
    noting = cluster.when(begins(1, "reboot:host:reboot"), too_few, 1)
    cluster.heal_members()
    servers.wait_on_hosts("the reboot is about to be noted", noting.come.is_set)
    time.sleep(2)
    assert not held.reboots, "nobody could be told that it is down"
    cluster.heal_members()
    servers.wait_for_end(revision, within=60)
    assert len(held.reboots) == 1 and agents_live(servers)
    servers.has("tool", "1.0")


def test_promise_10_two_seconds_of_latency_are_no_failure(cluster: Cluster) -> None:
    """Fault 10, from the moment at which a step has begun until the phase is over. Nobody is left out, nothing is done again."""
    servers = cluster.servers
    held = with_a_held_dpkg(cluster, 1, "--lease-ttl", "10s")
    revision = servers.push({"tool": "1.0"})
    servers.wait("a dpkg runs", lambda: held.in_dpkg)
    for road in cluster.roads.values():
        road.delay = 1.0
    held.let_dpkg_go()
    servers.wait_for_phase("stop")
    for road in cluster.roads.values():
        road.delay = 0.0
    assert not servers.wait_for_end(revision, within=60).out
    servers.has("tool", "1.0")
    assert servers.view().steps[1]["debs:deb/tool:change"].attempt == 1


def test_promise_10_a_full_etcd_begins_nothing_and_is_named(cluster: Cluster) -> None:
    """Fault 12: the NOSPACE alarm is raised while a dpkg runs; it finishes and is recorded once the alarm is disarmed."""
    servers = cluster.servers
    held = with_a_held_dpkg(cluster)
    revision = push_with_reboot(servers, 1, "1.0")
    servers.wait("a dpkg runs", lambda: held.in_dpkg)
    raise_alarm(cluster)
    held.let_dpkg_go()
    try:
        servers.wait(
            "it is named", lambda: "NOSPACE alarm" in held.log and "etcdctl alarm disarm" in held.log
        )
        time.sleep(1)
        assert held.deb("tool") == "ii 1.0" and not servers.recorded(1) and not held.reboots
    finally:
        cluster.server.etcdctl("alarm", "disarm")
    servers.wait_for_end(revision, within=60)
    servers.has("tool", "1.0")
    assert len(held.reboots) == 1 and agents_live(servers)


def raise_alarm(cluster: Cluster) -> None:
    """What a member does whose quota is used up."""
    rpc, grpc = etcd_and_grpc()
    users = cluster.server.users
    with grpc.insecure_channel(cluster.server.endpoint.removeprefix("http://")) as channel:
        known = users.options(cluster.server.endpoints, ROOT) if users else None
        metadata: tuple[tuple[str, str], ...] = ()
        if known is not None and known.user and known.password_file:
            password = Path(known.password_file).read_text().strip()
            request = rpc.AuthenticateRequest(name=known.user, password=password)
            metadata = (("token", rpc.AuthStub(channel).Authenticate(request, timeout=5).token),)
        stub = rpc.MaintenanceStub(channel)
        member = stub.Status(rpc.StatusRequest(), timeout=5, metadata=metadata).header.member_id
        request = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=member, alarm=rpc.NOSPACE)
        stub.Alarm(request, timeout=5, metadata=metadata)


@pytest.mark.soak
def test_promise_10_history_is_compacted_while_an_agent_hears_nothing(cluster: Cluster) -> None:
    """Fault 13: its watch cannot resume, so it reads anew, and hears what comes after."""
    servers = cluster.servers
    cluster.gather(2)
    leader = cluster.leading
    deaf = 1 - leader
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    cluster.roads[deaf].closed = True
    revision = servers.push({"tool": "2.0"})
    servers.wait("the leader has done what it can", lambda: servers.recorded(leader))
    now = servers.etcd.client.read([one(servers.etcd.keys.rollout)]).revision
    servers.compact(now)
    cluster.roads[deaf].closed = False
    cluster.roads[deaf].cut()
    servers.wait_for_end(revision)
    servers.has("tool", "2.0")
    servers.wait_for_end(servers.push({"tool": "3.0"}))
    servers.has("tool", "3.0")
