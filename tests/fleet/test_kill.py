"""`kill -9` between every single write and action of a rollout and the next: always the same end. Promises 1, 2, 8, 9 and 12."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.core.artifact import Artifact, Container, Image, OsImage, ReleaseDeb
from reconciler.core.state import (
    ArtifactSet,
    Desired,
    OsDriver,
    RebootPolicy,
    Revision,
    RolloutPolicy,
    ServerGroup,
)
from reconciler.store.view import read_fleet, read_history
from tests.conftest import Etcd
from tests.fleet.simulated import Fate, SimulatedFleet

CHUNKS = 3
"""The points are shared out among so many tests, so that they run side by side."""


def deb(version: str) -> ReleaseDeb:
    return ReleaseDeb("tool", "acme", "tool", version)


def rolling(tag: str) -> Image:
    return Image("app", "registry.example/app", tag, container=Container(started=("unseal",)))


def stopped(tag: str) -> Image:
    return Image("db", "registry.example/db", tag, container=Container(update="stop-all"))


OLD: tuple[Artifact, ...] = (deb("v1"), rolling("1"), stopped("1"), OsImage("stable", "1"))
NEW: tuple[Artifact, ...] = (deb("v2"), rolling("2"), stopped("2"), OsImage("stable", "2"))
BOOT = ServerGroup(
    "boot",
    frozenset({0}),
    OsDriver("command", reboot=True),
    RebootPolicy(lock_group="rack", before=("drain",), after=("undrain",)),
)
REVISION = Desired(
    Revision("2" * 40),
    (ArtifactSet(NEW, frozenset({"boot"})), ArtifactSet((deb("v2"),), frozenset({"default"}))),
    (BOOT,),
    RolloutPolicy(),
)


def upgrade(
    etcd: Etcd,
    directory: Path,
    fate: Fate,
    *,
    who: int = 0,
    survey: bool = False,
    trouble: Callable[[SimulatedFleet], None] | None = None,
) -> SimulatedFleet:
    """Two servers, of which 0 has everything that a rollout can do; the fate is that of `who`. Runs until all is done.

    `trouble` is what happens at the chosen point, where it is no kill. With `survey` the fate knows its moments afterwards.
    """
    etcd = etcd.emptied()
    fleet = SimulatedFleet(etcd, directory / f"at{fate.chosen}", revisions=[REVISION])
    fleet.add(0, OLD)
    fleet.add(1, (deb("v1"),))
    for hook in ("drain", "undrain", "unseal"):
        fleet.hook(0, hook)
    if trouble is not None:
        fate.at_point = lambda: trouble(fleet)
    if survey:
        fate.world = lambda: (fleet.etcd_revision, fleet.places[who].seen)
    try:
        for lrn in (0, 1):
            fleet.start(lrn, fate if lrn == who else None)
        for _ in range(60):
            fleet.step()
            seen = read_fleet(etcd.client, etcd.keys)
            rollout = seen.rollout
            if rollout and f"complete {rollout.id}" in seen.told.names and len(rollout.servers) == 2:
                break
    finally:
        fleet.end()
    judge(fleet, fate)
    fleet.prove()
    return fleet


def judge(fleet: SimulatedFleet, fate: Fate) -> None:
    """The end is what it would have been, and nothing that was recorded was done again."""
    at = f"killed at {fate.points[fate.chosen - 1] if fate.chosen else 'no point'} ({fate.chosen})"
    assert len(fate.points) >= fate.chosen, "the chosen point was never come to"
    seen = read_fleet(fleet.admin, fleet.keys)
    assert seen.rollout and seen.rollout.outcome == "complete" and not seen.rollout.out, at
    for lrn, wanted in ((0, NEW), (1, (deb("v2"),))):
        versions = {artifact.key: artifact.version for artifact in wanted}
        assert fleet.places[lrn].has == versions and not fleet.places[lrn].half, at
        assert {key: item.version for key, item in seen.recorded[lrn].items()} == versions, at
        assert all(record.state == "done" for record in seen.steps[lrn].values()), at
        assert_nothing_twice(fleet, lrn, at)
    assert_told(fleet, fate, at)
    assert all(not lock.holders and not lock.semaphore.holders for lock in seen.locks.values()), at
    place = fleet.places[0]
    assert place.boots == 1 and place.staged is None and not place.stopped, at
    hooks = Counter((place.host.root / "hooks").read_text().split())
    assert all(1 <= hooks[name] <= 2 for name in ("drain", "undrain", "unseal")), f"{at}: {hooks}"


def assert_told(fleet: SimulatedFleet, fate: Fate, at: str) -> None:
    """Each rollout's beginning and end: never lost, and a second time only by one that was killed in between."""
    told: Counter[tuple[str, str]] = Counter(
        (event.event, event.rollout) for place in fleet.places.values() for event in place.told
    )
    for past in read_history(fleet.admin, fleet.keys):
        for kind in ("rollout_opened", *(["rollout_complete"] if past.outcome == "complete" else [])):
            assert 1 <= told[kind, past.started] <= (2 if fate.chosen else 1), (
                f"{at}: {kind} of {past}: {told}"
            )


STEPS = {
    "fetch": "prefetch:{}:fetch",
    "stop": "stop:{}:stop",
}


def assert_nothing_twice(fleet: SimulatedFleet, lrn: int, at: str) -> None:
    recorded: set[str] = set()
    for entry in fleet.places[lrn].journal:
        if entry.what == "recorded":
            assert entry.subject not in recorded or ":host:" in entry.subject, (
                f"{at}: {entry.subject} is recorded twice"
            )
            recorded.add(entry.subject)
            continue
        phase = {"deb/tool": "debs", "os-image": "os-image"}.get(entry.subject, "containers")
        step = STEPS.get(entry.what, f"{phase}:{{}}:change").format(entry.subject)
        assert step not in recorded, (
            f"{at}: {entry.what} {entry.subject} was done again after it was recorded"
        )


def test_a_rollout_without_any_trouble(etcd: Etcd, tmp_path: Path) -> None:
    fate = Fate()
    fleet = upgrade(etcd, tmp_path, fate)
    kinds = Counter(name.split()[0] for name in fate.points)
    assert kinds["before"] > 60 and kinds["in"] == 4, "the loops below are over these"
    did = [(entry.what, entry.subject) for entry in fleet.places[0].journal if entry.what != "recorded"]
    assert sorted(set(did)) == sorted(did), "each action once"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_killed_at_every_point_it_comes_to_the_same_end(etcd: Etcd, tmp_path: Path, chunk: int) -> None:
    """The agent that leads and has everything to do: between each write and action and the next, and in each action."""
    fate = Fate()
    upgrade(etcd, tmp_path, fate, survey=True)
    for chosen in fate.moments[chunk::CHUNKS]:
        upgrade(etcd, tmp_path, Fate(chosen))


def test_one_that_does_not_lead_is_killed_at_every_point(etcd: Etcd, tmp_path: Path) -> None:
    fate = Fate()
    upgrade(etcd, tmp_path, fate, who=1, survey=True)
    for chosen in fate.moments:
        upgrade(etcd, tmp_path, Fate(chosen), who=1)


def loses_the_reply(fleet: SimulatedFleet) -> None:
    fleet.agents[0].client.lose_reply = True


def loses_the_lead(fleet: SimulatedFleet) -> None:
    fleet.loses_its_place(0)
    fleet.agents[0].client.has_lost_the_lead = True


@pytest.mark.parametrize("chunk", range(2))
def test_the_reply_to_each_write_is_lost(etcd: Etcd, tmp_path: Path, chunk: int) -> None:
    """Promise 12: the write happened, and nobody is told."""
    fate = Fate()
    upgrade(etcd, tmp_path, fate)
    writes = [number for number, name in enumerate(fate.points, 1) if name.startswith("before writing")]
    for chosen in writes[chunk::2]:
        upgrade(etcd, tmp_path, Fate(chosen), trouble=loses_the_reply)


def test_the_lead_is_lost_before_each_write_of_the_leader(etcd: Etcd, tmp_path: Path) -> None:
    """Promise 2: what it has decided and not written yet is refused; another one leads on, and the end is the same."""
    fate = Fate()
    upgrade(etcd, tmp_path, fate)
    leaders = (
        "before writing status/current",
        "before writing status/phase",
        "before writing info/neco-release",
        "before writing leader/told",
    )
    for chosen in [number for number, name in enumerate(fate.points, 1) if name in leaders]:
        upgrade(etcd, tmp_path, Fate(chosen), trouble=loses_the_lead)


def test_an_installation_that_succeeds_and_changes_nothing_is_not_recorded(
    etcd: Etcd, tmp_path: Path
) -> None:
    """Promise 8: what counts is what the host shows afterwards."""
    fleet = SimulatedFleet(etcd, tmp_path / "lies", revisions=[REVISION])
    fleet.add(1, (deb("v1"),)).lies.add(deb("v2").key)
    fleet.start(1)
    for _ in range(8):
        fleet.step()
    fleet.end()
    fleet.prove()
    seen = read_fleet(etcd.client, etcd.keys)
    assert seen.rollout and seen.rollout.stop and "cannot verify deb/tool v2" in seen.rollout.message
    assert [item.version for item in seen.recorded[1].values()] == ["v1"]
