"""A simulated host: what it has, drivers in memory that change it, and a fate that kills its agent at a chosen point.

A `Place` is what survives a kill: what the host has, what was done to it and when. Points are before, in the middle of and
after every action on the host; `simulated` adds those of etcd.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.agent.notify import Event
from reconciler.core.artifact import OS_IMAGE, Artifact, Image, Key, Known, Pin, reference
from reconciler.errors import HostError, Unfetchable
from reconciler.host.driver import Host, Progress, silent


class Killed(BaseException):
    """`kill -9`: nothing of the agent runs after it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened: an action on a host, or a step's record that says `done`."""

    lrn: int
    what: str
    subject: str


@dataclass
class Fate:
    """Counts the points that an agent comes through, and does something at the chosen one."""

    chosen: int = 0
    points: list[str] = field(default_factory=list)
    dead: bool = False
    at_point: Callable[[], None] | None = None
    """What happens there instead of a kill."""
    world: Callable[[], object] | None = None
    """What there is at each point, noted in `worlds`: all that outlives an agent."""
    worlds: list[object] = field(default_factory=list)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    @property
    def moments(self) -> list[int]:
        """The points of which each finds another world than the one before it: who is killed at one that does not, comes to the same."""
        worlds = [object(), *self.worlds]
        return [number for number in range(1, len(worlds)) if worlds[number] != worlds[number - 1]]

    def point(self, name: str) -> None:
        with self._mutex:
            self.points.append(name)
            if self.world is not None:
                self.worlds.append(self.world())
            hit = len(self.points) == self.chosen
            if hit and self.at_point is None:
                self.dead = True
        if hit and self.at_point is not None:
            self.at_point()
        if self.dead:
            raise Killed(name)


@dataclass
class Place:
    """One simulated host. `half`: an artifact whose change was broken off."""

    lrn: int
    host: Host
    has: dict[Key, str] = field(default_factory=dict)
    half: set[Key] = field(default_factory=set)
    fetched: set[tuple[Key, str]] = field(default_factory=set)
    stopped: set[Key] = field(default_factory=set)
    staged: str | None = None
    falls_back_to: str | None = None
    """The OS that the next boot brings, whatever was staged or ran."""
    asks_for_reboot: bool = False
    """Its sentinel is there."""
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    boots: int = 0
    entered: list[str] = field(default_factory=list)
    before: dict[Key, Image] = field(default_factory=dict)
    images: dict[Key, Image] = field(default_factory=dict)
    journal: list[Entry] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    """What its agent has told people."""
    wall: float = 1_700_000_000.0
    """The time that its agent sees; 22:13 UTC on a Tuesday."""
    lies: set[Key] = field(default_factory=set)
    """Artifacts whose installation succeeds and changes nothing."""
    lost: set[Key] = field(default_factory=set)
    """What a person has taken away: recorded all the same, until the agent has put it right."""
    fails: dict[str, str] = field(default_factory=dict)
    """Action and subject (`apply deb/a`) → how it fails."""

    @property
    def asked_to_boot(self) -> Path:
        return self.host.root / "asked-to-boot"

    def boot(self) -> None:
        """Power off and on: a staged OS runs, containers run again."""
        self.asked_to_boot.unlink(missing_ok=True)
        self.boots += 1
        self.boot_id = str(uuid.uuid4())
        self.stopped.clear()
        self.asks_for_reboot = False
        if self.staged is not None or self.falls_back_to is not None:
            self.has[OS_IMAGE] = self.falls_back_to or self.staged or ""
            self.staged = self.falls_back_to = None

    def loses(self, *keys: Key) -> None:
        """A person takes these away."""
        for key in keys:
            del self.has[key]
        self.lost.update(keys)

    @property
    def seen(self) -> object:
        """All that is on the host now."""
        files = {path: path.read_bytes() for path in self.host.root.rglob("*") if path.is_file()}
        parts = (self.has, self.half, self.fetched, self.stopped, self.before, self.images, files)
        return tuple(map(copy, parts)), self.staged, self.boots, len(self.entered)

    def note(self, what: str, key: Key) -> None:
        self.journal.append(Entry(self.lrn, what, key.subject))


class SimulatedDriver:
    """One kind of artifact on a simulated host: the role of `host/driver.Driver`."""

    def __init__(self, place: Place, fate: Fate) -> None:
        self._place, self._fate = place, fate

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        keys = [artifact.key for artifact in artifacts]
        found = {key: self._place.has[key] for key in keys if key in self._place.has}
        return {key: f"{text}, half" if key in self._place.half else text for key, text in found.items()}

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        return artifact.version

    def resolve(self, artifact: Artifact) -> Pin | None:
        if problem := self._place.fails.get(f"resolve {artifact.key.subject}"):
            raise HostError(problem)
        return Pin(f"sha256:{0:064x}", "nowhere") if reference(artifact) else None

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        with self._acting("fetch", artifact.key):
            self._place.fetched.add((artifact.key, artifact.version))

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        key = artifact.key
        if self._place.has.get(key) == artifact.version and key not in self._place.half:
            return
        if (key, artifact.version) not in self._place.fetched:
            raise HostError(f"cannot install {key.subject} {artifact.version}: it was not fetched")
        with self._acting("apply", key):
            self._place.half.add(key)
            self._fate.point(f"in apply {key.subject}")
            if key not in self._place.lies:
                self._put_in_place(artifact)
            self._place.half.discard(key)

    def _put_in_place(self, artifact: Artifact) -> None:
        self._place.has[artifact.key] = artifact.version

    def remove(self, key: Key) -> None:
        if key in self._place.has:
            with self._acting("remove", key):
                del self._place.has[key]
                self._place.half.discard(key)

    @contextlib.contextmanager
    def _acting(self, what: str, key: Key) -> Iterator[None]:
        self._fate.point(f"before {what} {key.subject}")
        problem = self._place.fails.get(f"{what} {key.subject}")
        if problem is not None:
            raise Unfetchable(problem) if what == "fetch" else HostError(problem)
        self._place.note(what, key)
        yield
        self._fate.point(f"after {what} {key.subject}")


class SimulatedContainers(SimulatedDriver):
    """Images and their containers."""

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        found = super().observe(artifacts)
        return {key: text for key, text in found.items() if key not in self._place.stopped}

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        if self._place.has.get(artifact.key) == artifact.version and artifact.key in self._place.stopped:
            with self._acting("start", artifact.key):
                self._place.stopped.discard(artifact.key)
            return
        super().apply(artifact, pin)

    def _put_in_place(self, artifact: Artifact) -> None:
        super()._put_in_place(artifact)
        self._place.stopped.discard(artifact.key)
        if isinstance(artifact, Image):
            if artifact.key in self._place.images:
                self._place.before.setdefault(artifact.key, self._place.images[artifact.key])
            self._place.images[artifact.key] = artifact

    def stop(self, key: Key) -> None:
        if key not in self._place.stopped:
            with self._acting("stop", key):
                self._place.stopped.add(key)

    def confirm(self, key: Key) -> None:
        self._place.before.pop(key, None)

    def previous(self, key: Key) -> Image | None:
        return self._place.before.get(key)

    def restore(self, key: Key) -> str | None:
        before = self._place.before.get(key)
        if before is None:
            return None
        with self._acting("restore", key):
            self._place.has[key] = before.version
            self._place.images[key] = before
        return before.version


class SimulatedOs(SimulatedDriver):
    """An OS image that is staged, and runs after a boot."""

    def _put_in_place(self, artifact: Artifact) -> None:
        self._place.staged = artifact.version


class PowerCord(threading.Event):
    """The agent's `ending`: whoever waits for it while the host has been asked to boot, is killed by that boot."""

    def __init__(self, place: Place, fate: Fate) -> None:
        super().__init__()
        self._place, self._fate = place, fate

    def wait(self, timeout: float | None = None) -> bool:
        if self._place.asked_to_boot.exists():
            self._fate.point("after the reboot command")
            self._place.boot()
            self._fate.dead = True
            raise Killed("boot")
        return super().wait(timeout)
