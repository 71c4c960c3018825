"""What an agent costs that has nothing to do: memory, time, etcd requests, and that none of it grows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from reconciler.core.state import Notice
from tests.fleet.daemon import Usage, metric, usage, usage_of
from tests.fleet.fleet import Machine, Servers

MEMORY = 90 << 20
SHARE = 0.003
"""Of a core. Where waking costs more than that, on a slow or a shared machine, what a bare Python takes in the same minute that
is woken fifty times a second.
"""
_WAKES = "import threading\nbell = threading.Event()\nwhile True: bell.wait(0.02)"
REQUESTS = 10
"""Etcd requests a minute besides the leases'."""
PASS_SECONDS, PASS_REQUESTS = 0.020, 3.0


def started(servers: Servers) -> Machine:
    """An agent as it is configured by default, alone in its fleet and so its leader, with a first revision done."""
    machine = servers.add(0, "--lease-ttl", "10s", "--interval", "1m")
    servers.start()
    servers.wait_for_end(servers.push({"tool": "1.0"}), within=60)
    return machine


def requests(machine: Machine) -> float:
    """What it has asked of etcd, but to keep its leases."""
    return metric(machine, "reconciler_etcd_requests") - metric(
        machine, "reconciler_etcd_requests", request="LeaseKeepAlive"
    )


def passes(machine: Machine) -> float:
    return metric(machine, "reconciler_loop_duration_seconds_count", loop="worker")


@pytest.mark.parametrize(
    "minutes",
    [1, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
def test_an_idle_agent_costs_next_to_nothing(servers: Servers, minutes: int) -> None:
    machine = started(servers)
    # What a rollout leaves to be done (a drift check, a lease's first refresh) is no idling.
    time.sleep(5)
    bare = subprocess.Popen([sys.executable, "-c", _WAKES])
    try:
        time.sleep(0.5)  # its start is not what is measured
        asked, before, bare_before = requests(machine), usage(machine), usage_of(bare.pid)
        time.sleep(60 * minutes)
        after, asked, bare_after = usage(machine), requests(machine) - asked, usage_of(bare.pid)
    finally:
        bare.kill()
        bare.wait()
    assert after.resident < MEMORY
    share, floor = (
        (now.cpu - then.cpu) / (60 * minutes) for now, then in ((after, before), (bare_after, bare_before))
    )
    assert share < max(SHARE, floor)
    assert asked <= REQUESTS * minutes
    assert after.threads <= before.threads and after.files <= before.files + 1


@pytest.mark.parametrize("number", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_passes_leave_nothing_behind(servers: Servers, number: int) -> None:
    """A pause that comes and goes makes it look, and there is nothing to do."""
    machine = started(servers)
    turns = _notices(servers)
    _passes(servers, machine, 100, turns)  # what is made once, is made
    made, asked, before = passes(machine), requests(machine), usage(machine)
    _passes(servers, machine, number, turns)
    made, asked, after = passes(machine) - made, requests(machine) - asked, usage(machine)
    assert _growth(before, after, memory=(2 << 20) + number * 2048) == []
    assert (after.cpu - before.cpu) / made <= PASS_SECONDS
    # The leader looks as well, at each of the pauses that it hears of.
    led = metric(machine, "reconciler_loop_duration_seconds_count", loop="leader")
    assert asked / made <= PASS_REQUESTS, (
        f"{asked:.0f} requests in {made:.0f} passes (the leader's: {led:.0f})"
    )


def _growth(before: Usage, after: Usage, memory: int) -> list[str]:
    """In words. A heap that has been stirred settles within `memory` bytes."""
    found = []
    if after.resident - before.resident > memory:
        found.append(f"{(after.resident - before.resident) >> 10} KiB of memory")
    if after.threads > before.threads + 1:
        found.append(f"threads: {before.threads}, then {after.threads}")
    if after.files > before.files + 1:
        found.append(f"open files: {before.files}, then {after.files}")
    return found


def _notices(servers: Servers) -> Iterator[None]:
    """Each turn writes or deletes the pause."""
    while True:
        servers.administration.pause(Notice("a test", "to be looked at", "2026-01-02T03:04:05.000000006Z"))
        yield
        servers.administration.resume()
        yield


def _passes(servers: Servers, machine: Machine, number: int, turns: Iterator[None]) -> None:
    """Have it make so many passes: the next turn comes when the last one was seen, and every tenth time that is checked."""
    wanted = passes(machine) + number
    end = time.monotonic() + 240
    while passes(machine) < wanted:
        assert time.monotonic() < end, servers.report()
        for _ in range(10):
            next(turns)
            time.sleep(0.025)
