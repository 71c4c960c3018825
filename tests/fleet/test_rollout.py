"""Whole agents, a real etcd, real dpkg: a push, and everybody has it."""

from __future__ import annotations

import time

from reconciler.store.transaction import KeyRange, under
from tests.fleet.fleet import Servers


def test_three_servers_converge_after_each_push(servers: Servers) -> None:
    """Install, upgrade, downgrade, and a removal."""
    servers.gather(3)
    for wanted in ({"tool": "1.0", "other": "1"}, {"tool": "2.0", "other": "1"}, {"tool": "1.0"}):
        servers.wait_for_end(servers.push(wanted))
        for name, version in wanted.items():
            servers.has(name, version)
    servers.has_not("other")
    assert len(servers.etcd.client.read([_history(servers)]).items[0]) == 3


def test_a_push_is_worked_on_by_all_within_a_second_without_a_poll(servers: Servers) -> None:
    """The agents' interval is an hour: what tells them is the repository's directory, and etcd's watches.

    One push of a few must be so fast: another process may have the machine for a second.
    """
    servers.gather(3)
    servers.wait_for_end(servers.push({"tool": "0"}))
    taken = [pushed_until_begun(servers, str(number)) for number in range(1, 4)]
    assert min(taken) < 1.0, taken


def pushed_until_begun(servers: Servers, version: str) -> float:
    """Seconds from a push until every server has begun a step of it."""
    servers.release("tool", version)
    revision = servers.push({"tool": version})
    pushed = time.monotonic()

    def all_begun() -> bool:
        fleet = servers.view()
        rollout = fleet.rollout
        return bool(rollout and rollout.version == revision) and all(
            any(record.rollout == rollout.id for record in fleet.steps.get(lrn, {}).values())
            for lrn in servers.machines
            if rollout
        )

    servers.wait("a step of each server", all_begun)
    taken = time.monotonic() - pushed
    servers.wait_for_end(revision)
    return taken


def _history(servers: Servers) -> KeyRange:
    return under(servers.etcd.keys.history)
