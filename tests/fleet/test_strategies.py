"""Who may take a server down: the strategies `reboot`, without a slot, and `off`, nobody, on whole agents. Promise 8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reconciler.core.artifact import OS_IMAGE
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


def test_the_strategy_off_boots_nothing_and_records_the_os_once_another_boot_shows_it(
    etcd: Etcd, tmp_path: Path
) -> None:
    found = story(etcd, tmp_path, replace(HOOKS, strategy="off"))
    assert found.complete and found.place.boots == 0 and found.hooks == []
    assert recorded_os(found) == "stable/1", "it is staged and does not run"
    # A person boots it.
    found.fleet.agents[0].fate.dead = True
    found.place.boot()
    found.fleet.restart(0)
    found.push()
    for _ in range(3):
        found.run()
    found.end()
    rollout = read_fleet(found.etcd.client, found.etcd.keys).rollout
    assert rollout and (rollout.version, rollout.outcome) == ("3" * 40, "complete")
    assert (found.place.boots, recorded_os(found)) == (1, "stable/2")
