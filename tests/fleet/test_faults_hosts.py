"""The power of a host fails, its dpkg is locked, its disk is full, and a commit arrives in the middle of another one's rollout. Promises 3, 8, 9 and 11; faults 3, 24, 25 and 41."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

from reconciler.host.driver import Host
from tests.debs import DebSpec
from tests.disks import small_disk
from tests.fleet.fleet import Servers
from tests.fleet.machine import Machine
from tests.fleet.test_reboots import group, holders
from tests.host.test_packages import lock_holder

CHANGE = "debs:deb/tool:change"


def power_off(machine: Machine) -> None:
    """The agent and whatever it has started end at once; the next start is another boot."""
    machine.kill()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(machine.directory).encode() in words:
            os.kill(int(entry.name), signal.SIGKILL)
    machine.new_boot()


def test_promise_9_the_power_fails_while_a_dpkg_runs_and_again_with_a_slot_in_hand(servers: Servers) -> None:
    """The step is looked at and done; the slot is found as its own, and given back once, after the health check."""
    for lrn in range(2):
        servers.add(lrn)
    machine = servers.machines[1]
    machine.hold_dpkg()
    servers.start()
    servers.wait_for_registered(0, 1)
    groups = group(servers)
    machine.hook(
        "drain",
        f"touch {machine.directory}/draining; while [ -e {machine.directory}/wait ]; do sleep 0.02; done",
    )
    (machine.directory / "wait").touch()
    servers.wants_reboot(1)
    revision = servers.push({"tool": "1.0"}, groups=groups)
    servers.wait("a dpkg runs", lambda: machine.in_dpkg)
    power_off(machine)
    assert not servers.recorded(1), "nothing is recorded that was not seen"
    machine.let_dpkg_go()
    servers.start(machine)
    servers.wait("it drains itself", (machine.directory / "draining").exists)
    assert holders(servers) == (machine.machine_id,)
    power_off(machine)
    (machine.directory / "wait").unlink()
    servers.start(machine)
    servers.wait_for_end(revision, within=60)
    servers.has("tool", "1.0")
    steps = servers.view().steps[1]
    assert steps[CHANGE].attempt == 2 and all(record.state == "done" for record in steps.values())
    assert len(machine.reboots) <= 1 and holders(servers) == ()


def test_promise_9_a_dpkg_lock_that_somebody_else_holds_is_waited_for(servers: Servers) -> None:
    """Fault 25: as an apt that an administrator runs. The step begins, changes nothing and fails nothing, and is done when that has ended."""
    servers.gather(1)
    machine = servers.machines[0]
    holder = lock_holder(Host(machine.root))
    try:
        revision = servers.push({"tool": "1.0"})
        servers.wait("it names who holds it", lambda: f"(process {holder.pid}) holds" in machine.log)
        assert machine.deb("tool") == "" and not servers.recorded(0)
    finally:
        holder.kill()
        holder.wait()
    servers.wait_for_end(revision)
    servers.has("tool", "1.0")
    assert servers.view().steps[0][CHANGE].attempt == 1


@contextlib.contextmanager
def full_disk(place: Path) -> Iterator[Path]:
    """A file system of 1 MiB at `place`, of which a file takes all; that file."""
    with small_disk(place, "1m"):
        ballast = place / "ballast"
        ballast.write_bytes(bytes((1 << 20) - (64 << 10)))
        yield ballast


def test_promise_11_a_full_disk_is_named_before_anybody_goes_down_and_with_room_it_goes_on(
    servers: Servers,
) -> None:
    """Fault 24: nobody has changed anything or taken a slot, and what was recorded before stands."""
    servers.add(0)
    poor = servers.add(1, "--no-lead")
    noise = secrets.token_hex(200_000)
    servers.release_package(DebSpec("large", "1.0", files=(("/usr/share/large/noise", noise),)))
    with full_disk(poor.directory / "state") as ballast:
        servers.start()
        servers.wait_for_registered(0, 1)
        servers.wait_for_end(servers.push({"tool": "1.0"}))
        servers.wants_reboot(0, 1)
        servers.built.add(("large", "1.0"))
        revision = servers.push({"tool": "2.0", "large": "1.0"}, groups=group(servers))
        stopped = servers.wait_for_stop(revision)
        assert "server 1" in stopped.message and "make room there" in stopped.message
        for machine in servers.machines.values():
            assert machine.deb("tool") == "ii 1.0" and not machine.reboots
        assert holders(servers) == ()
        assert {servers.recorded(lrn)["deb/tool"] for lrn in servers.machines} == {"v1.0"}
        ballast.unlink()
        servers.administration.recover("2026-01-01T00:00:00Z")
        servers.wait_for_end(revision, within=60)
        servers.has("large", "1.0")
        assert [len(machine.reboots) for machine in servers.machines.values()] == [1, 1]


def test_promise_8_a_commit_that_arrives_in_the_middle_waits_and_each_is_recorded_as_its_own(
    servers: Servers,
) -> None:
    """Fault 41: one commit a plan."""
    for lrn in range(2):
        servers.add(lrn)
    held = servers.machines[1]
    held.hold_dpkg()
    servers.start()
    servers.wait_for_registered(0, 1)
    first = servers.push({"tool": "1.0"})
    servers.wait("a dpkg runs", lambda: held.in_dpkg)
    second = servers.push({"tool": "2.0"})
    servers.wait("the second is known", lambda: all(second in m.log for m in servers.machines.values()))
    rollout = servers.view().rollout
    assert rollout and rollout.version == first and not rollout.stop
    held.let_dpkg_go()
    servers.wait_for_end(second, within=40)
    servers.has("tool", "2.0")
    (history,) = [servers.command()("history", "--output", "json").ok().document]
    assert str(history).count(first) >= 1 and str(history).count(second) >= 1
