"""Who may take a server down: the strategies `reboot`, without a slot, and `off`, nobody, on whole agents. Promise 8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reconciler.core.artifact import OS_IMAGE, Check
from reconciler.core.state import RebootPolicy
from reconciler.store.view import read_fleet
from tests.conftest import Etcd
from tests.fleet.checker import history
from tests.fleet.simulated import Fate
from tests.fleet.test_turning_back import Story

HOOKS = RebootPolicy(before=("drain",), after=("undrain",))


def story(etcd: Etcd, directory: Path, rules: RebootPolicy) -> Story:
    """A server that goes to another container and OS image by these rules."""
    found = Story(etcd, directory, rules, Fate())
    found.fleet.start(0)
    found.run()
    return found


def recorded_os(found: Story) -> str:
    return read_fleet(found.etcd.client, found.etcd.keys).recorded[0][OS_IMAGE].version


def test_the_strategy_reboot_asks_for_no_slot(etcd: Etcd, tmp_path: Path) -> None:
    """The container's rolling restart still takes one."""
    found = story(etcd, tmp_path, replace(HOOKS, strategy="reboot"))
    found.fleet.end()
    assert found.complete and found.place.boots == 1 and found.hooks == ["drain", "undrain"]
    assert recorded_os(found) == "stable/2"
    keys = found.etcd.keys
    steps = {
        key.removeprefix(keys.all_steps)
        for change in history(found.etcd.client, keys, found.etcd.since)
        for key in change.keys
        if key.startswith(keys.all_steps)
    }
    assert "0/containers:image/app:acquire" in steps and "0/reboot:host:acquire" not in steps


def test_a_reboot_that_only_the_sentinel_asked_for_shows_an_os_that_fell_back(
    etcd: Etcd, tmp_path: Path
) -> None:
    """Nothing was staged: the OS that is desired has to run all the same, and the next rollout stages it again."""
    found = story(etcd, tmp_path, HOOKS)
    assert (found.place.boots, recorded_os(found)) == (1, "stable/2")
    found.place.asks_for_reboot, found.place.falls_back_to = True, "stable/1"
    found.push()
    found.run()
    rollout = read_fleet(etcd.client, etcd.keys).rollout
    assert rollout and rollout.stop and "has booted stable/1 and not stable/2" in rollout.message
    assert (found.holders, found.place.boots) == ((f"{0:032x}",), 2)
    found.push("4" * 40)
    found.run()
    found.end()
    assert found.complete and (found.holders, found.place.boots) == ((), 3)
    assert found.place.has[OS_IMAGE] == recorded_os(found) == "stable/2"
    assert found.hooks[-1] == "undrain"


def test_a_server_that_is_not_healthy_after_its_boot_keeps_its_slot(etcd: Etcd, tmp_path: Path) -> None:
    """The step fails, the rollout stops and says why; the next one looks once more, and gives the slot back."""
    rules = replace(HOOKS, health=(Check("hook", "probe", timeout=0.1),))
    found = Story(etcd, tmp_path, rules, Fate())
    root = found.place.host.root
    found.fleet.hook(0, "probe")
    (root / "etc/reconciler/hooks/probe").write_text(f"#!/bin/sh\necho it is sick\ntest ! -e {root}/sick\n")
    (root / "sick").touch()
    found.fleet.start(0)
    found.run()
    rollout = read_fleet(etcd.client, etcd.keys).rollout
    assert rollout and rollout.stop, "the rollout goes on"
    assert "server 0 failed: reboot:host:health: " in rollout.message and "it is sick" in rollout.message
    assert (found.holders, found.place.boots) == ((f"{0:032x}",), 1)
    assert recorded_os(found) == "stable/2", "it has booted all the same"
    (root / "sick").unlink()
    found.push()
    found.run()
    found.end()
    assert found.complete and (found.holders, found.place.boots) == ((), 1)
    assert found.hooks == ["drain", "undrain"]


def test_the_strategy_off_boots_nothing_and_records_the_os_once_another_boot_shows_it(
    etcd: Etcd, tmp_path: Path
) -> None:
    found = story(etcd, tmp_path, replace(HOOKS, strategy="off"))
    assert (found.complete, found.place.boots, found.hooks) == (True, 0, [])
    assert recorded_os(found) == "stable/1", "it is staged and does not run"
    # A person boots it.
    found.fleet.agents[0].fate.dead = True
    found.place.boot()
    found.fleet.restart(0)
    found.push()
    found.run()
    found.end()
    assert (found.complete, found.place.boots, recorded_os(found)) == (True, 1, "stable/2")
