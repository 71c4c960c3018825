"""The window closes, or an operator releases the slot, at each point of what takes a server down. Promises 3 and 5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reconciler.core.artifact import OsImage
from reconciler.core.state import ArtifactSet, Desired, OsDriver, RebootPolicy, Revision, ServerGroup
from reconciler.core.window import Window
from reconciler.store.lock import RebootLock
from reconciler.store.view import read_fleet
from tests.conftest import Etcd
from tests.fleet.simulated import Fate, SimulatedFleet
from tests.fleet.test_kill import rolling

RULES = RebootPolicy(windows=(Window(None, 22, 0, 3600.0),), before=("drain",), after=("undrain",))
OLD, NEW = (rolling("1"), OsImage("stable", "1")), (rolling("2"), OsImage("stable", "2"))
DAY = 86400.0


def desired(rules: RebootPolicy) -> Desired:
    group = ServerGroup("boot", frozenset({0}), OsDriver("command", reboot=True), rules)
    return Desired(Revision("2" * 40), (ArtifactSet(NEW),), (group,))


class Story:
    """One server goes to a revision, and at one point something happens."""

    def __init__(self, etcd: Etcd, directory: Path, rules: RebootPolicy, fate: Fate) -> None:
        etcd = etcd.emptied()
        self.fleet = SimulatedFleet(etcd, directory / f"at{fate.chosen}", revisions=[desired(rules)])
        self.place = self.fleet.add(0, OLD)
        for hook in ("drain", "undrain", "unseal"):
            self.fleet.hook(0, hook)
        self.etcd, self.fate = etcd, fate

    def run(self, passes: int = 15) -> None:
        for _ in range(passes):
            self.fleet.step()
            if self.complete:
                return

    @property
    def complete(self) -> bool:
        rollout = read_fleet(self.etcd.client, self.etcd.keys).rollout
        newest = self.fleet.revisions[-1].revision.id
        return bool(rollout and (rollout.version, rollout.outcome) == (newest, "complete"))

    @property
    def hooks(self) -> list[str]:
        file = self.place.host.root / "hooks"
        found = file.read_text().split() if file.exists() else []
        return [name for name in found if name != "unseal"]

    @property
    def holders(self) -> tuple[str, ...]:
        lock = read_fleet(self.etcd.client, self.etcd.keys).locks.get("default")
        return lock.semaphore.holders if lock else ()

    def end(self) -> None:
        """End the agent; promises 1 and 8 must have been kept."""
        self.fleet.end()
        self.fleet.prove()

    def two_hours_pass(self) -> None:
        self.place.wall += 2 * 3600

    def push(self, revision: str = "3" * 40) -> None:
        """A newer revision, of the same artifacts."""
        newer = replace(self.fleet.revisions[-1], revision=Revision(revision))
        self.fleet.revisions.append(newer)
        self.fleet.agents[0].follower.push(newer)

    def release(self) -> None:
        """An operator gives back whatever slot the server holds."""
        RebootLock(self.etcd.client, self.etcd.keys).release_of(
            f"{0:032x}", "admin", "a test", "2026-01-01T00:00:00Z"
        )


def points(etcd: Etcd, directory: Path, rules: RebootPolicy, first: str, last: str) -> range:
    """The points of a rollout without trouble, from the first that has `first` in its name to before one with `last`."""
    fate = Fate()
    story = Story(etcd, directory, rules, fate)
    story.fleet.start(0, fate)
    story.run()
    story.end()
    assert story.complete and story.hooks == ["drain", "undrain"]
    begin = next(number for number, name in enumerate(fate.points, 1) if first in name)
    return range(begin, next(number for number, name in enumerate(fate.points, 1) if last in name))


def test_the_window_closes_at_each_point_before_the_reboot(etcd: Etcd, tmp_path: Path) -> None:
    """`after` has run where `before` began, the slot is given back, no reboot; when the window opens again it is done."""
    tried = 0
    for chosen in points(etcd, tmp_path, RULES, first="reboot:host:acquire", last="reboot:host:reboot"):
        fate = Fate(chosen)
        story = Story(etcd, tmp_path, RULES, fate)
        fate.at_point = story.two_hours_pass
        story.fleet.start(0, fate)
        story.run(12)
        at = fate.points[chosen - 1]
        assert story.place.boots == 0 and not story.complete, at
        assert story.holders == (), at
        assert story.hooks in ([], ["drain", "undrain"], ["drain", "undrain", "undrain"]), (at, story.hooks)
        story.place.wall += DAY - 2 * 3600
        story.run()
        assert story.complete and story.place.boots == 1 and story.holders == (), at
        assert story.hooks[-2:] == ["drain", "undrain"], at
        story.end()
        tried += 1
    assert tried >= 6


def test_an_operator_releases_the_slot_at_each_point_of_what_it_is_taken_for(
    etcd: Etcd, tmp_path: Path
) -> None:
    """Fault 21: before the server is down it turns back and asks again; once it is down it comes up and frees nobody's.

    Where steps would follow that need the slot the rollout stops and says so, and a newer revision goes through.
    """
    rules = replace(RULES, windows=())
    tried = stopped = 0
    for chosen in points(etcd, tmp_path, rules, first="containers:image/app:acquire", last="verify:host"):
        fate = Fate(chosen)
        story = Story(etcd, tmp_path, rules, fate)
        fate.at_point = story.release
        story.fleet.start(0, fate)
        story.run()
        at = fate.points[chosen - 1]
        rollout = read_fleet(etcd.client, etcd.keys).rollout
        if rollout and rollout.stop:
            assert "the slot was released meanwhile" in rollout.message, at
            assert story.holders == (), at
            stopped += 1
            story.push()
            story.run()
        assert story.complete and story.place.boots == 1 and story.holders == (), at
        assert story.hooks[-1] == "undrain", (at, story.hooks)
        assert story.place.has == {artifact.key: artifact.version for artifact in NEW}, at
        story.end()
        tried += 1
    assert tried >= 20 and stopped <= tried / 4
