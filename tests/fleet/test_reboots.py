"""Reboots under the lock: agents that are killed by their reboot command and come back with another boot id, the same one, or not.

Promises 1, 3, 4 and 5. After each test the checker reads the lock's whole history.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.semaphore import Holder
from reconciler.core.state import ABORTED, Rollout
from reconciler.store.lock import RebootLock
from reconciler.store.lock_view import Taken
from tests.fleet.checker import history, most_down
from tests.fleet.fleet import Machine, Servers

HOOKS = {"before": ["drain"], "after": ["undrain"]}


def group(servers: Servers, **rules: Any) -> list[Mapping[str, Any]]:
    """One server group with hooks that note when they run."""
    for machine in servers.machines.values():
        for name in ("drain", "undrain"):
            machine.hook(name, f"echo {name} >> {machine.directory}/hooks")
    return [{"name": "boot", "servers": ["0-9"], "reboot": {**HOOKS, **rules}}]


def hooks(directory: Path) -> list[str]:
    return (directory / "hooks").read_text().split() if (directory / "hooks").exists() else []


def holders(servers: Servers, lock_group: str = "default") -> tuple[str, ...]:
    lock = servers.view().locks.get(lock_group)
    return lock.semaphore.holders if lock else ()


def test_five_servers_reboot_and_never_more_than_the_slots_are_down(servers: Servers) -> None:
    servers.gather(5)
    servers.wants_reboot(*range(5))
    revision = servers.push({"tool": "1.0"}, groups=group(servers, slots=2, lockGroup="rack"))
    servers.wait_for_end(revision, within=40)
    keys = servers.etcd.keys
    assert most_down(history(servers.etcd.client, keys, servers.etcd.since), keys) == 2, (
        "both slots were used"
    )
    assert holders(servers, "rack") == ()
    for machine in servers.machines.values():
        assert len(machine.reboots) == 1 and hooks(machine.directory) == ["drain", "undrain"]
    servers.has("tool", "1.0")


def test_without_a_reason_nobody_reboots(servers: Servers) -> None:
    servers.gather(2)
    servers.wait_for_end(servers.push({"tool": "1.0"}, groups=group(servers)))
    assert all(not machine.reboots for machine in servers.machines.values())


def test_one_that_stays_away_keeps_its_slot_until_a_person_releases_it(servers: Servers) -> None:
    """The rollout stops at the timeout and names it; after `lock release`, `server remove` and `recover` the others go on."""
    servers.gather(3)
    for machine in servers.machines.values():
        machine.os_hooks("stable/1")
        machine.stays_away = True
    groups = [{**each, "osImage": {"driver": "command"}} for each in group(servers)]
    image = {"osImage": {"channel": "stable", "version": "2"}}
    servers.push(sets=[image], groups=groups, policy={"timeout": "4s"})
    gone = servers.wait(
        "one goes down", lambda: next((m for m in servers.machines.values() if m.reboots), None)
    )
    for machine in servers.machines.values():
        machine.stays_away = machine is gone
    servers.wait("its agent has ended", lambda: gone.process is None)
    # It boots, but its agent cannot start: for the fleet it stays away all the same.
    gone.arguments = ("--interval", "never")
    servers.start(gone)
    assert gone.wait_until_ended() == 64
    stopped = servers.wait("the rollout stops", lambda: rollout(servers, stopped=True))
    assert f"server {gone.lrn}" in stopped.message and "silent in reboot" in stopped.message
    time.sleep(0.5)
    assert holders(servers) == (gone.machine_id,)
    assert sum(len(machine.reboots) for machine in servers.machines.values()) == 1
    assert not any(servers.recorded(lrn) for lrn in servers.machines), "what is staged is not installed"
    RebootLock(servers.etcd.client, servers.etcd.keys).release_of(
        gone.machine_id, "admin", "its board is dead", "2026-01-01T00:00:00Z"
    )
    servers.administration.remove_server(gone.lrn)
    servers.administration.recover("2026-01-01T00:00:01Z")
    others = [machine for machine in servers.machines.values() if machine is not gone]
    finished = servers.wait("the others go on", lambda: rollout(servers, stopped=False))
    assert list(finished.servers) == [machine.lrn for machine in others] and finished.outcome == "complete"
    for machine in others:
        assert servers.recorded(machine.lrn) == {"os-image": "stable/2"}
        assert (machine.os, len(machine.reboots)) == ("stable/2", 1)


def rollout(servers: Servers, stopped: bool) -> Rollout | None:
    """The rollout, once it has stopped, or has its outcome."""
    found = servers.view().rollout
    return found if found and (found.stop if stopped else found.outcome) else None


def test_a_server_that_boots_another_os_fails_and_keeps_its_slot(servers: Servers) -> None:
    """Issue 4's wrong version; the next revision takes the slot as its own, and heals."""
    servers.gather(2)
    for machine in servers.machines.values():
        machine.os_hooks("stable/1")
    wrong = servers.machines[1]
    wrong.hook("os-stage", f'echo "$1/broken" > {wrong.directory}/staged')
    groups = [{**each, "osImage": {"driver": "command"}} for each in group(servers)]
    image = {"osImage": {"channel": "stable", "version": "2"}}
    stopped = servers.wait_for_stop(servers.push(sets=[image], groups=groups))
    assert "server 1 has booted stable/broken and not stable/2" in stopped.message
    assert holders(servers) == (wrong.machine_id,) and "os-image" not in servers.recorded(1)
    wrong.os_hooks(wrong.os)
    image["osImage"]["version"] = "3"
    servers.wait_for_end(servers.push(sets=[image], groups=groups))
    assert [machine.os for machine in servers.machines.values()] == ["stable/3", "stable/3"]
    assert holders(servers) == ()


def test_one_that_comes_back_with_the_same_boot_id_reboots_again(servers: Servers) -> None:
    """Promise 3: its slot is kept, and it looks before it asks for the reboot again."""
    servers.gather(2)
    servers.wants_reboot(0)
    servers.boots_with_the_same_id(0)
    revision = servers.push({"tool": "1.0"}, groups=group(servers))
    machine = servers.machines[0]
    servers.wait("the first try", lambda: machine.reboots)
    assert holders(servers) == (machine.machine_id,)
    servers.boots_with_the_same_id(0, same=False)
    servers.wait_for_end(revision)
    assert [what for _, what in machine.reboots][-1] == "boots"
    assert len([what for _, what in machine.reboots if what == "boots"]) == 1
    assert hooks(machine.directory) == ["drain", "undrain"], "what was recorded is not done again"


def test_a_reboot_that_does_not_happen_fails_and_the_slot_stays_held(servers: Servers) -> None:
    """Fault 45: the command returns, and the boot id is unchanged `--alarm-after` after it."""
    servers.gather(2)
    servers.wants_reboot(0)
    machine = servers.machines[0]
    (machine.directory / "reboot").write_text("#!/bin/sh\nexit 0\n")
    stopped = servers.wait_for_stop(servers.push({"tool": "1.0"}, groups=group(servers)))
    assert "has not rebooted" in stopped.message and "server 0" in stopped.message
    time.sleep(0.3)
    assert holders(servers) == (machine.machine_id,)
    assert servers.view().statuses[0].cond == ABORTED
    # A person boots it: it is healthy, and gives its slot back without any rollout.
    machine.kill()
    machine.new_boot()
    (machine.root / servers.reboot_required.lstrip("/")).unlink()
    servers.start(machine)
    servers.wait("the slot is free", lambda: not holders(servers))
    assert hooks(machine.directory) == ["drain", "undrain"]


def test_a_slot_that_an_operator_released_meanwhile_is_given_back_once(servers: Servers) -> None:
    """The holder comes back and releases too: never freed twice, and never another's."""
    servers.gather(2)
    servers.wants_reboot(0)
    machine = servers.machines[0]
    machine.stays_away = True
    revision = servers.push({"tool": "1.0"}, groups=group(servers))
    servers.wait("it is down", lambda: machine.reboots)
    servers.wait("its agent has ended", lambda: machine.process is None)
    lock = RebootLock(servers.etcd.client, servers.etcd.keys)
    lock.release_of(machine.machine_id, "admin", "it was thought lost", "2026-01-01T00:00:00Z")
    taken = lock.take(Holder("f" * 32, "operator", None, 1))
    assert isinstance(taken, Taken)
    servers.start(machine)
    servers.wait_for_end(revision)
    assert holders(servers) == ("f" * 32,)
    lock.release(taken.holder)


def test_a_leader_that_reboots_hands_over_and_comes_back(servers: Servers) -> None:
    """Every server reboots in turn, the leader too; whoever leads then goes on with the rollout."""
    servers.gather(3)
    servers.wants_reboot(*range(3))
    servers.wait_for_end(servers.push({"tool": "1.0"}, groups=group(servers)), within=40)
    assert [len(machine.reboots) for machine in servers.machines.values()] == [1, 1, 1]


@pytest.mark.parametrize("during", ["a before hook", "the warning"])
def test_the_window_closes_before_the_reboot(servers: Servers, during: str) -> None:
    """`after` has run where `before` began, the slot is given back, no reboot; the server waits for the window."""
    machine = servers.add(0)
    clock = with_a_clock(machine)
    servers.start()
    servers.wait_for_registered(0)
    servers.wants_reboot(0)
    half_an_hour_ago = time.strftime("%H:%M", time.gmtime(time.time() - 1800))
    rules: dict[str, Any] = {"windows": [{"start": half_an_hour_ago, "length": "1h"}]}
    groups = group(servers, **rules)
    if during == "a before hook":
        machine.hook("drain", f"echo drain >> {machine.directory}/hooks\necho 7200 > {clock}")
    else:
        groups = group(servers, **rules, before=[], warn="1s")
        told = f"cat > {machine.directory}/told\necho 7200 > {clock}"
        for name, text in (("who", "echo 'ada pts/1 2026-11-21 03:03'"), ("wall", told)):
            (machine.directory / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (machine.directory / "bin" / name).chmod(0o755)
    servers.push({"tool": "1.0"}, groups=groups)
    servers.wait(
        "it waits for the window",
        lambda: (status := servers.view().statuses.get(0)) and status.waiting == "window",
    )
    keys = servers.etcd.keys
    changed = {
        key for change in history(servers.etcd.client, keys, servers.etcd.since) for key in change.keys
    }
    assert keys.holder("default", machine.machine_id) in changed, "it has had its slot"
    assert holders(servers) == () and not servers.view().steps.get(0, {}).keys() & {"reboot:host:reboot"}
    assert hooks(machine.directory) == (["drain", "undrain"] if during == "a before hook" else [])
    assert machine.reboots == []
    if during == "the warning":
        assert (machine.directory / "told").read_text().startswith("This server reboots in 1s: ")
        assert "has done reboot:host:warn in 1." in machine.log, "who is told gets so long"


def with_a_clock(machine: Machine) -> Path:
    """A file with the seconds by which the wall clock that its agent sees goes ahead; programs of its own come from `bin`."""
    programs, clock = machine.directory / "bin", machine.directory / "ahead"
    programs.mkdir()
    clock.write_text("0\n")
    # Python imports this before anything of ours.
    (programs / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        f"real, ahead = time.time, pathlib.Path({str(clock)!r})\n"
        "time.time = lambda: real() + float(ahead.read_text() or 0)\n"
    )
    machine.environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(programs)}
    return clock
