"""Three servers in network namespaces, each with an etcd member and an agent, cut off from each other. Promises 1 and 10; fault 9."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.store.client import Client
from reconciler.store.keys import Keys
from tests.conftest import Etcd
from tests.etcd_server import EtcdServer
from tests.etcd_users import ROOT, Users
from tests.fleet import fleet
from tests.fleet.fleet import Servers
from tests.fleet.namespaces import HERE, Network, address, is_possible, network
from tests.fleet.test_reboots import group, holders


@pytest.fixture
def apart(tmp_path: Path, etcd_users: Users) -> Iterator[tuple[Servers, Network]]:
    """Each agent asks its own server's member first and knows the others."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "iptables", "etcd", "etcdctl", "dpkg", "git"))):
        pytest.skip("needs ip, iptables, etcd, etcdctl, dpkg, git, and root")
    if not is_possible():
        pytest.skip("needs the right to make network namespaces")
    with network(0, 1, 2) as joined:
        server = EtcdServer(members=3, users=etcd_users)
        for lrn, member in enumerate(server.members):
            member.host, member.before = address(lrn), tuple(joined.inside(lrn))
        with (
            server,
            Client(etcd_users.options(server.endpoints, ROOT)) as client,
            fleet.running(Etcd(server, Keys(), client), tmp_path, host=HERE) as servers,
        ):
            for lrn in range(3):
                servers.add(lrn, "--etcd", ",".join(server.endpoints)).before = tuple(joined.inside(lrn))
            servers.start()
            servers.wait_for_registered(0, 1, 2)
            yield servers, joined
            servers.end()
            joined.heal()
            server.wait_until_it_serves()


def test_promise_10_the_minority_does_nothing_the_majority_goes_on_and_healed_it_is_the_same_end(
    apart: tuple[Servers, Network],
) -> None:
    """The leader is cut off with a slot in its hand, and then whoever leads next by its cable. Never more than one is down."""
    servers, joined = apart
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    leader = servers.leader()
    others = [lrn for lrn in servers.machines if lrn != leader.lrn]
    groups = group(servers)
    leader.hook(
        "drain",
        f"touch {leader.directory}/draining; while [ ! -e {leader.directory}/go ]; do sleep 0.02; done",
    )
    servers.wants_reboot(leader.lrn)
    revision = servers.push({"tool": "2.0"}, groups=groups)
    servers.wait("the leader drains itself", (leader.directory / "draining").exists)
    assert holders(servers) == (leader.machine_id,)
    joined.cut_off(leader.lrn, others)
    (leader.directory / "go").touch()
    # The test's own client must not wait for the cut-off member.
    next_leader = servers.wait(
        "another one leads", lambda: found if (found := servers.leader()) is not leader else None, 30
    )
    time.sleep(2)
    assert not leader.reboots, f"it could not note that it goes down\n{servers.report()}"
    assert holders(servers) == (leader.machine_id,), "its slot stays held"
    before = servers.view().statuses[leader.lrn]
    joined.heal()
    servers.wait_for_end(revision, within=60)
    assert servers.view().statuses[leader.lrn] != before
    assert len(leader.reboots) == 1 and holders(servers) == ()
    servers.has("tool", "2.0")
    joined.pull_the_cable(next_leader.lrn)
    revision = servers.push({"tool": "3.0"})
    majority = [lrn for lrn in servers.machines if lrn != next_leader.lrn]
    servers.wait(
        "the majority has fetched it",
        lambda: all(fetched(servers, lrn, "3.0") for lrn in majority),
        40,
    )
    assert next_leader.deb("tool") == "ii 2.0"
    joined.heal()
    servers.wait_for_end(revision, within=60)
    servers.has("tool", "3.0")


def fetched(servers: Servers, lrn: int, version: str) -> bool:
    record = servers.view().steps.get(lrn, {}).get("prefetch:deb/tool:fetch")
    rollout = servers.view().rollout
    return bool(record and rollout and record.rollout == rollout.id and record.state == "done" and version)
