"""The checker catches what it is for: histories with one fault planted in each, and one without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.artifact import Artifact, Container, Image, OsImage, ReleaseDeb
from reconciler.core.state import Detail, Installed
from reconciler.store.keys import Keys
from reconciler.store.serving import Found, recording
from reconciler.store.transaction import delete, put
from tests.conftest import Etcd
from tests.fleet.checker import Changed, faults, most_down, prove
from tests.fleet.fleet import running
from tests.fleet.simulated import SimulatedFleet

KEYS = Keys("/f/", "lock")
A, B = "a" * 32, "b" * 32
Change = Mapping[str, Any]


def document(*holders: str, slots: int = 1) -> Change:
    return {
        KEYS.semaphore("default"): {"semaphore": slots - len(holders), "max": slots, "holders": list(holders)}
    }


def record(machine: str) -> Change:
    return {KEYS.holder("default", machine): {"machineID": machine, "source": "agent"}}


def gone(machine: str) -> Change:
    return {KEYS.holder("default", machine): None}


def step(id: str, state: str, lrn: int = 0, **more: str) -> Change:
    return {KEYS.step(lrn, id): {"rollout": "r", "state": state, **more}}


def by_hand(machine: str) -> Change:
    """An operator releases the slot of the only holder."""
    return {**document(), **gone(machine), f"{KEYS.lock_history}1": {"holder": {"machineID": machine}}}


MACHINES: Change = {KEYS.machine(0): {"machineID": A}, KEYS.machine(1): {"machineID": B}}
TAKES = {**document(A), **record(A)}
GIVES = {**document(), **gone(A)}
ACQUIRED = step("reboot:host:acquire", "done")
BOOTING = step("reboot:host:reboot", "running")
HEALTHY = step("reboot:host:health", "done")
RELEASING = step("reboot:host:release", "running")
GOOD: list[Change] = [document(), MACHINES, TAKES, ACQUIRED, BOOTING, HEALTHY, RELEASING, GIVES]


def changed(*changes: Change) -> list[Changed]:
    return [
        Changed(
            revision, {key: None if value is None else json.dumps(value) for key, value in change.items()}
        )
        for revision, change in enumerate(changes, 1)
    ]


def found(*changes: Change) -> list[str]:
    return list(faults(changed(*changes), KEYS))


def test_a_good_history_has_no_fault() -> None:
    assert found(*GOOD) == []
    assert (
        found(document(slots=2), MACHINES, {**document(A, slots=2), **record(A)}, document(A, slots=0)) == []
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([*GOOD[:3], {**document(A, B), **record(B)}], "beyond max 1"),
        ([document(slots=2), MACHINES, {**document(A, A, slots=2), **record(A)}], "twice"),
        ([document(), MACHINES, document(A)], "without a record"),
        ([*GOOD[:3], gone(A)], "lost its record"),
        ([*GOOD[:3], document()], "has a record and is no holder"),
        ([document(), MACHINES, ACQUIRED, BOOTING], "holds no slot"),
        ([*GOOD[:5], {**GIVES}, step("reboot:host:hook:after:0", "running")], "holds no slot"),
        ([*GOOD[:5], RELEASING, GIVES], "before it was healthy"),
        ([*GOOD[:5], step("reboot:host:health", "failed"), RELEASING, GIVES], "before it was healthy"),
        ([*GOOD[:3], {KEYS.semaphore("default"): None}], "was deleted"),
        ([document(), MACHINES, BOOTING], "holds no slot"),
        ([document(), MACHINES, TAKES, step("reboot:host:acquire", "done", target="rack"), BOOTING], "holds no slot"),
        ([*GOOD[:4], by_hand(A), TAKES, GIVES, BOOTING], "holds no slot"),
    ],
)  # fmt: skip
def test_each_planted_fault_is_caught(changes: list[Change], says: str) -> None:
    problems = found(*changes)
    assert len([problem for problem in problems if says in problem]) == 1, problems


def test_a_slot_that_an_operator_released_excuses_what_was_under_way() -> None:
    assert found(*GOOD[:5], by_hand(A), step("reboot:host:hook:after:0", "running"), HEALTHY) == []


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        (GOOD, 1),
        ([BOOTING, step("containers:image/a:change", "running")], 1),
        ([BOOTING, step("containers:image/a:change", "running", 1)], 2),
        ([BOOTING, HEALTHY, step("containers:image/a:change", "done", 1)], 1),
        ([BOOTING, step("reboot:host:health", "failed"), step("reboot:host:reboot", "running", 1)], 2),
        ([step("debs:deb/a:change", "running"), step("containers:image/a:acquire", "done", 1)], 0),
    ],
)
def test_how_many_were_down_at_once_does_not_believe_the_lock(changes: list[Change], most: int) -> None:
    assert most_down(changed(*changes), KEYS) == most


def test_every_fleet_ends_with_the_whole_history_of_a_real_etcd(etcd: Etcd, tmp_path: Path) -> None:
    """A fault that was put right again long ago is found, with its etcd revision."""
    keys = etcd.keys
    one = '{"semaphore": 0, "max": 1, "holders": ["x"]}'
    two = '{"semaphore": -1, "max": 1, "holders": ["x", "y"]}'
    etcd.client.txn([], [put(keys.semaphore("default"), one), put(keys.holder("default", "x"), "{}")])
    wrong = etcd.client.txn([], [put(keys.semaphore("default"), two), put(keys.holder("default", "y"), "{}")])
    etcd.client.txn([], [put(keys.semaphore("default"), one), delete(keys.holder("default", "y"))])
    said = f"etcd revision {wrong.revision}: .* y was added beyond max 1"
    with pytest.raises(AssertionError, match=said):
        prove(etcd.client, keys, etcd.since)
    # Every fleet of whole agents is made by `running`, and every other one is a SimulatedFleet.
    with pytest.raises(AssertionError, match=said), running(etcd, tmp_path):
        pass
    with pytest.raises(AssertionError, match=said):
        SimulatedFleet(etcd, tmp_path).prove()


IMAGE = Image("web", "registry.example/web", "1")


@pytest.mark.parametrize(
    "artifact",
    [
        ReleaseDeb("tool", "acme", "tool", "v1.0"),
        pytest.param(IMAGE, marks=pytest.mark.needs("podman")),
        pytest.param(replace(IMAGE, container=Container()), marks=pytest.mark.needs("podman")),
        OsImage("stable", "2"),
    ],
    ids=["deb", "kept image", "container", "OS image"],
)
def test_no_fleet_ends_with_a_record_of_what_is_not_there(
    etcd: Etcd, tmp_path: Path, artifact: Artifact
) -> None:
    """Promise 8: each kind of artifact, recorded by hand and on no host."""
    found = {"deb": "1.0", "image": f"sha256:{1:064x}", "os-image": "stable/2"}[artifact.key.kind]
    detail = Detail(artifact, found, "a revision", "2026-01-01T00:00:00Z")
    record = Installed(artifact.key, artifact.version, detail)
    (tmp_path / "whole").mkdir()
    said = f"{artifact.key.subject} is recorded as .*{found}, found "
    with pytest.raises(AssertionError, match=said), running(etcd, tmp_path / "whole") as servers:
        machine = servers.add(0)
        machine.os_hooks("stable/1")
        servers.give_podman(machine)
        etcd.client.txn([], recording(etcd.keys, 0, Found((record,))))
    simulated = SimulatedFleet(etcd, tmp_path)
    simulated.add(0)
    etcd.client.txn([], recording(etcd.keys, 0, Found((record,))))
    with pytest.raises(AssertionError, match=f"{artifact.key.subject} is recorded as .*, found None"):
        simulated.prove()
