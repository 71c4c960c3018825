"""Who leads, on real etcd with real agents: killed, stopped, paused, held up by others. Promises 2 and 9."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time

import pytest

from reconciler.core.state import PHASES
from reconciler.store.transaction import Item, put, under
from tests.etcd_users import ROOT
from tests.fleet.fleet import TTL, Machine, Servers


def other_leader(servers: Servers, than: Machine, within: float) -> Machine:
    """Wait until another one than `than` leads."""
    return servers.wait(
        f"another leader than server {than.lrn}",
        lambda: found if (found := leading(servers)) is not None and found is not than else None,
        within,
    )


def leading(servers: Servers) -> Machine | None:
    leader = servers.view().leader
    name = leader.host.removeprefix("boot-") if leader else ""
    return servers.machines.get(int(name)) if name.isdigit() else None


def test_the_leader_is_killed_in_each_phase_and_it_ends_as_it_would_have(servers: Servers) -> None:
    """Promise 9; another one leads within TTL + 1 s."""
    servers.gather(5)
    servers.wait_for_end(servers.push({"tool": "0"}))
    versions = map(str, itertools.count(1))
    for number, phase in enumerate(PHASES, 1):
        # A machine that is busy may be too late for a phase of some milliseconds.
        assert any(killed_in(servers, number, next(versions)) for _ in range(5)), f"never killed in {phase}"
    rollouts = int(next(versions))
    assert len(servers.etcd.client.read([under(servers.etcd.keys.history)]).items[0]) == rollouts


def killed_in(servers: Servers, number: int, version: str) -> bool:
    """Kill the leader of a rollout once phase `number` is open, and see it through; whether that phase was open still."""
    servers.release("tool", version)
    leader = servers.leader()
    revision = servers.push({"tool": version})
    servers.wait(f"phase {number}", lambda: reached(servers, revision, number))
    leader.kill()
    killed = time.monotonic()
    open_then = servers.view().phase
    other_leader(servers, leader, TTL + 1.0)
    assert time.monotonic() - killed < TTL + 1.0
    servers.start(leader)
    servers.wait_for_end(revision)
    servers.has("tool", version)
    return open_then is not None and open_then.phase == number


def reached(servers: Servers, revision: str, phase: int) -> bool:
    fleet = servers.view()
    if fleet.rollout is None or fleet.rollout.version != revision:
        return False
    return fleet.rollout.outcome is not None or bool(fleet.phase and fleet.phase.phase >= phase)


def test_a_leader_that_is_stopped_in_order_hands_over_at_once(servers: Servers) -> None:
    """It gives its lease back: nobody waits until that runs out."""
    servers.gather(5, "--lease-ttl", "20s")
    leader = servers.leader()
    leader.signal(signal.SIGTERM)
    other_leader(servers, leader, 5.0)
    assert leader.wait_until_ended() == 0
    servers.start(leader)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    servers.has("tool", "1.0")


def test_a_leader_that_was_paused_past_its_lease_is_fenced_and_steps_down(servers: Servers) -> None:
    """Promise 2: what another one has opened meanwhile stays as it is, and the paused one leads no more.

    That each write which one had decided on before is refused: `test_kill`, where the lead is lost before each of them.
    """
    servers.gather(3)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    paused = servers.leader()
    paused.signal(signal.SIGSTOP)
    another = other_leader(servers, paused, TTL + 2.0)
    revision = servers.push({"tool": "2.0"})
    servers.wait("the rollout is open", lambda: reached(servers, revision, 1))
    opened = servers.view().rollout
    paused.signal(signal.SIGCONT)
    servers.wait_for_end(revision)
    servers.has("tool", "2.0")
    finished = servers.view().rollout
    assert opened and finished and opened.started_at == finished.started_at, "it was opened once"
    assert leading(servers) is another
    servers.wait("it says that it leads no more", lambda: "leads no more" in paused.log)


@pytest.mark.needs("etcdctl")
def test_etcds_own_election_takes_its_turn_with_ours(servers: Servers) -> None:
    """Nobody of ours leads while `etcdctl elect` does; and it waits while one of ours does."""
    election = f"{servers.etcd.prefix}leader/updater/"
    for lrn in range(3):
        servers.add(lrn)
    stranger = elect(servers, election, "somebody")
    try:
        servers.wait("the stranger leads", lambda: line(servers)[:1] == ["somebody"])
        servers.start()
        servers.wait("ours stand in the line", lambda: len(line(servers)) == 4)
        servers.wait_for_registered(0, 1, 2)
        servers.push({"tool": "1.0"})
        time.sleep(1.0)
        assert servers.view().rollout is None and servers.view().noted is None
    finally:
        stranger.send_signal(signal.SIGINT)
        stranger.wait(10)
    leader = servers.leader()
    servers.wait("the rollout is done", lambda: (r := servers.view().rollout) and r.outcome)
    servers.has("tool", "1.0")
    stranger = elect(servers, election, "somebody")
    try:
        servers.wait("the stranger stands in the line", lambda: "somebody" in line(servers))
        assert leading(servers) is leader
        for machine in servers.machines.values():
            machine.signal(signal.SIGTERM)
        servers.wait("the stranger's turn has come", lambda: line(servers) == ["somebody"])
    finally:
        stranger.send_signal(signal.SIGINT)
        stranger.wait(10)


def elect(servers: Servers, election: str, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["etcdctl", "--endpoints", servers.etcd.endpoint, "elect", election, name],
        env={**os.environ, "ETCDCTL_API": "3", "ETCDCTL_USER": servers.etcd.server.login(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def line(servers: Servers) -> list[str]:
    """Who stands in the line, the leader first."""
    (found,) = servers.etcd.client.read([under(servers.etcd.keys.election)]).items
    return [item.value.decode() for item in sorted(found, key=lambda item: item.create_revision)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("leader/worker/0//1234", "boot-9"),
        ("status/current", '{"version": "2022.05.23-1", "servers": [0, 1], "stop": false, '
         '"started_at": "2022-05-23T06:02:12.000000000Z"}'),
    ],
    ids=["a worker", "an updater's rollout"],
)  # fmt: skip
def test_where_neco_is_at_work_nothing_is_written(servers: Servers, key: str, value: str) -> None:
    servers.etcd.client.txn([], [put(f"{servers.etcd.prefix}{key}", value)])
    found = stored(servers)
    for lrn in range(2):
        servers.add(lrn)
    servers.push({"tool": "1.0"})
    servers.start()
    servers.wait("it is said", lambda: all("Neco" in machine.log for machine in servers.machines.values()))
    time.sleep(0.5)
    assert stored(servers) == found


def stored(servers: Servers) -> tuple[Item, ...]:
    """All that stands below the test's prefix."""
    return servers.etcd.client.read([under(servers.etcd.prefix), under(servers.etcd.keys.lock)]).items[0]
