"""A whole agent is killed right before one system call: before it opens a file to write, renames or removes one, or starts a program.

Python's audit events come immediately before the call; they are counted in the agent's own process, so each can be hit. Promises 8 and 9.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial

import pytest

from reconciler.host.driver import Host
from tests.debs import audit
from tests.fleet.daemon import wait_for_log
from tests.fleet.fleet import Machine, Servers

COUNTS = """
import os, signal, sys
names = {"os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "subprocess.Popen"}
at, below, seen = int(os.environ["KILL_AT"]), os.environ["KILL_BELOW"], os.environ["KILL_SEEN"]
calls = 0

def count(event, arguments):
    global calls
    if event == "open":
        path, _, flags = arguments
        ours = isinstance(path, str) and path.startswith(below) and bool(flags & (os.O_WRONLY | os.O_RDWR))
    else:
        ours = event in names
    if not ours or arguments[0] == seen:
        return
    calls += 1
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
    if not at:
        os.write(note, f"{event} {arguments[0]}\\n".encode())

note = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(count)
"""
"""For the agent's `sitecustomize`: end at the call of this number, or where that is 0 note them all."""


def start(servers: Servers, machine: Machine, at: int) -> None:
    """Start the agent: it ends before its call number `at`; for 0 it notes them all."""
    place = servers.directory / "site"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(COUNTS)
    machine.environment = {
        "PYTHONPATH": str(place),
        "KILL_AT": str(at),
        "KILL_BELOW": str(machine.directory),
        "KILL_SEEN": str(machine.directory / "seen"),
    }
    servers.start(machine)


def versions() -> Iterator[str]:
    while True:
        yield from ("2.0", "1.0")


@pytest.mark.parametrize(
    "kills", [2, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_promise_9_killed_before_a_system_call_it_comes_to_the_same_end(servers: Servers, kills: int) -> None:
    machine, version = servers.add(0), versions()
    wanted = next(version)
    revision = servers.push({"tool": wanted})
    start(servers, machine, 0)
    servers.wait_for_end(revision)
    assert machine.terminate() == 0
    calls = (machine.directory / "seen").read_text().splitlines()
    assert {call.split()[0] for call in calls} >= {"open", "os.rename", "subprocess.Popen"}
    machine.stays_away = True
    for at in range(len(calls), 0, -max(1, len(calls) // kills)):
        wanted = next(version)
        revision = servers.push({"tool": wanted})
        start(servers, machine, at)
        servers.wait(f"it is killed before call {at}", partial(has_ended, servers, machine, revision), 60)
        if machine.process is not None:  # the last few come as the agent ends
            assert machine.terminate() in (0, -signal.SIGKILL)
        servers.prove_recorded()
        machine.environment = {}
        served = machine.log.count("serves http")
        servers.start(machine)
        wait_for_log(servers, machine, "serves http", served + 1)
        servers.wait_for_end(revision, within=60)
        servers.has("tool", wanted)
        assert audit(Host(machine.root)) == ""
        assert machine.terminate() == 0


def has_ended(servers: Servers, machine: Machine, revision: str) -> bool:
    """Its process, or else the rollout."""
    rollout = servers.view().rollout
    return machine.process is None or bool(rollout and rollout.version == revision and rollout.outcome)
