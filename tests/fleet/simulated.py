"""Simulated servers with the real agent: drivers in memory, real etcd, and a fate that kills an agent at a chosen point.

A `Place` is what survives a kill: what the host has, what was done to it and when. An `Agent` is one process: its objects are
dropped when it is killed, and new ones are made, as a restart would. Points are before and after every write to etcd, and
before, in the middle of and after every action on the host.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.agent.follow import Follower, Following
from reconciler.agent.hands import Hands
from reconciler.agent.leader import Conductor
from reconciler.agent.leading import Leading
from reconciler.agent.notify import Addresses, Notifier
from reconciler.agent.publisher import Publisher
from reconciler.agent.worker import Worker
from reconciler.agent.writing import Identity, Writing, with_its_slot
from reconciler.core.artifact import OS_IMAGE, Artifact, Image, Key, Kind, Known, Pin, reference
from reconciler.core.published import Published
from reconciler.core.state import Desired, Detail, Installed, Server
from reconciler.errors import Ambiguous, HostError, Unavailable, Unfetchable
from reconciler.host.driver import Host, Progress, silent
from reconciler.host.ledger import Ledger
from reconciler.host.policy import EVERYTHING
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.serving import Found, recording
from reconciler.store.transaction import Compare, Get, KeyRange, Operation, Put, Reply, Snapshot, put, under
from reconciler.store.view import read_server
from tests import etcd_users
from tests.conftest import Etcd

_LOOKS = 2000
"""No rollout here takes one agent as many looks at etcd."""


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
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def point(self, name: str) -> None:
        with self._mutex:
            self.points.append(name)
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
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    boots: int = 0
    entered: list[str] = field(default_factory=list)
    before: dict[Key, Image] = field(default_factory=dict)
    images: dict[Key, Image] = field(default_factory=dict)
    journal: list[Entry] = field(default_factory=list)
    wall: float = 1_700_000_000.0
    """The time that its agent sees; 22:13 UTC on a Tuesday."""
    lies: set[Key] = field(default_factory=set)
    """Artifacts whose installation succeeds and changes nothing."""
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
        if self.staged is not None:
            self.has[OS_IMAGE], self.staged = self.staged, None

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


class MortalClient(Client):
    """The real client; each write is two points of the fate, and after the kill nothing reaches etcd."""

    def __init__(self, options: EtcdOptions, keys: Keys, places: Mapping[int, Place], fate: Fate) -> None:
        super().__init__(options)
        self._keys, self._places, self._fate = keys, places, fate
        self.leases: list[int] = []
        self.lose_reply = False
        self.has_lost_the_lead = False

    def read(self, ranges: Sequence[KeyRange], revision: int | None = None) -> Snapshot:
        self._require_alive()
        return super().read(ranges, revision)

    def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Reply:
        self._require_alive()
        if all(isinstance(operation, Get) for operation in then):
            return super().txn(compares, then, otherwise)
        name = self._name(then)
        self._fate.point(f"before {name}")
        self._judge(then)
        reply = super().txn(compares, then, otherwise)
        if reply.succeeded:
            assert not (self.has_lost_the_lead and self._is_a_leaders(then)), (
                f"{name} by one that leads no more"
            )
            self._note(then)
        self._fate.point(f"after {name}")
        if self.lose_reply:
            self.lose_reply = False
            raise Ambiguous("the answer was lost")
        return reply

    def grant(self, ttl: float) -> tuple[int, float]:
        self._require_alive()
        lease, granted = super().grant(ttl)
        self.leases.append(lease)
        return lease, granted

    def refresh(self, lease: int, timeout: float | None = None) -> float:
        self._require_alive()
        return super().refresh(lease, timeout)

    def revoke(self, lease: int, timeout: float | None = None) -> None:
        self._require_alive()
        super().revoke(lease, timeout)

    def _require_alive(self) -> None:
        if self._fate.dead:
            raise Unavailable("this agent was killed")

    def _is_a_leaders(self, operations: Sequence[Operation]) -> bool:
        return any(
            isinstance(operation, Put)
            and operation.key in (self._keys.rollout, self._keys.phase, self._keys.noted)
            for operation in operations
        )

    def _name(self, operations: Sequence[Operation]) -> str:
        keys = [
            operation.key if isinstance(operation, Put) else operation.keys.key for operation in operations
        ]
        return f"writing {keys[0].removeprefix(self._keys.prefix)}"

    def _judge(self, operations: Sequence[Operation]) -> None:
        """Promise 8: nothing is recorded as installed that is not there."""
        for operation in operations:
            if isinstance(operation, Put) and operation.key.startswith(self._keys.installed):
                lrn, _, rest = operation.key.removeprefix(self._keys.installed).partition("/")
                if rest.startswith("details/"):
                    continue
                place = self._places[int(lrn)]
                found = {self._keys.version(int(lrn), key): text for key, text in place.has.items()}
                there = found.get(operation.key)
                assert there == operation.value.decode(), (
                    f"{operation.key} is recorded, and the host has {there}"
                )

    def _note(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if isinstance(operation, Put) and operation.key.startswith(self._keys.all_steps):
                lrn, _, id = operation.key.removeprefix(self._keys.all_steps).partition("/")
                if json.loads(operation.value)["state"] == "done":
                    self._places[int(lrn)].journal.append(Entry(int(lrn), "recorded", id))


class GivenRevisions(Follower):
    """Git as one has it in one's head: which revisions there are, and which is the newest. A host goes only forward."""

    def __init__(self, revisions: Sequence[Desired], place: Place) -> None:
        self._revisions, self._place = list(revisions), place
        self.state = Following(newest=self._revisions[-1])

    def look(self) -> bool:
        return False

    def push(self, desired: Desired) -> None:
        self._revisions.append(desired)
        self.state = Following(newest=desired)

    def at(self, id: str) -> Desired:
        return next(desired for desired in self._revisions if desired.revision.id == id)

    def enter(self, id: str) -> None:
        self._place.entered.append(id)


class Agent:
    """One agent's process, driven by hand: `step` is one pass of each of its loops."""

    def __init__(
        self,
        place: Place,
        options: EtcdOptions,
        keys: Keys,
        places: Mapping[int, Place],
        revisions: Sequence[Desired],
        fate: Fate,
    ) -> None:
        self.place, self.fate = place, fate
        self.client = MortalClient(options, keys, places, fate)
        machine = f"{place.lrn:032x}"
        containers = SimulatedContainers(place, fate)
        plain, os_images = SimulatedDriver(place, fate), SimulatedOs(place, fate)
        drivers: dict[Kind, SimulatedDriver] = {"deb": plain, "image": containers, "os-image": os_images}
        hands = Hands(
            place.host,
            drivers,
            containers,
            Ledger.open(place.host),
            EVERYTHING,
            reboot_command=f"touch {place.asked_to_boot}",
            alarm_after=lambda: 1.0,
            ending=PowerCord(place, fate),
            wall=lambda: place.wall,
        )
        self.follower = GivenRevisions(revisions, place)
        publisher = Publisher(Published(place.lrn))
        self.writing = Writing(
            self.client,
            keys,
            Identity(place.lrn, f"boot-{place.lrn}", machine, holds_host_lock=True),
            hands.wall,
            lambda: None,
        )

        def look(group: str) -> Server:
            return read_server(self.client, keys, place.lrn, machine, place.boot_id, group)

        looks = itertools.count()

        def read() -> Server:
            assert next(looks) < _LOOKS, "the worker goes round and round"
            newest = self.follower.state.newest
            return with_its_slot(look, newest.group_of(place.lrn).reboot.lock_group if newest else "default")

        self.worker = Worker(hands, self.writing, self.follower, read, publisher, wall=hands.wall)
        self.leading = Leading(self.client, keys, f"boot-{place.lrn}", 30.0, lambda: None)
        self.notifier = Notifier(lambda: Addresses())
        self.conductor = Conductor(
            self.leading, self.follower, drivers, publisher, self.notifier, alarm_after=lambda: 600.0
        )

    def step(self) -> None:
        """One pass of the leader's loop and one of the worker's. Raises `Killed`."""
        self.conductor.conduct()
        self.worker.work()

    def bury(self) -> None:
        """Drop it: its threads end, and nothing more is written. Its leases stand until somebody ends them."""
        self.fate.dead = True
        self.writing.close()
        self.leading.leave()
        self.notifier.close()
        self.client.close()


@dataclass
class SimulatedFleet:
    """Some simulated servers and their agents on a real etcd, each agent with its own user's rights."""

    etcd: Etcd
    directory: Path
    places: dict[int, Place] = field(default_factory=dict)
    agents: dict[int, Agent] = field(default_factory=dict)
    revisions: list[Desired] = field(default_factory=list)

    @property
    def admin(self) -> Client:
        """Root's client: what a test reads and plants itself."""
        return self.etcd.client

    @property
    def keys(self) -> Keys:
        return self.etcd.keys

    def add(self, lrn: int, recorded: Sequence[Artifact] = ()) -> Place:
        """A server that has `recorded` already, and etcd says so."""
        root = self.directory / f"host{lrn}"
        root.mkdir(parents=True)
        place = Place(lrn, Host(root=root, state_dir=root / "state", lrn=lrn, hostname=f"boot-{lrn}"))
        installs = []
        for artifact in recorded:
            place.has[artifact.key] = artifact.version
            if isinstance(artifact, Image):
                place.images[artifact.key] = artifact
            detail = Detail(artifact, artifact.version, "before", "2026-01-01T00:00:00Z")
            installs.append(Installed(artifact.key, artifact.version, detail))
        self.admin.txn(
            [], [*recording(self.keys, lrn, Found(tuple(installs))), put(f"{self.keys.prefix}made", "")]
        )
        self.places[lrn] = place
        return place

    def hook(self, lrn: int, name: str) -> None:
        """A hook that notes that it ran."""
        place = self.places[lrn].host.root / "etc/reconciler/hooks" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"#!/bin/sh\necho {name} >> {self.places[lrn].host.root}/hooks\n")
        place.chmod(0o755)

    def start(self, lrn: int, fate: Fate | None = None) -> Agent:
        options = self.etcd.options(etcd_users.agent(lrn))
        agent = Agent(self.places[lrn], options, self.keys, self.places, self.revisions, fate or Fate())
        self.agents[lrn] = agent
        return agent

    def step(self) -> None:
        """One pass of every agent. One that is killed is made anew, and its place in the leader's line runs out."""
        for lrn, agent in list(self.agents.items()):
            try:
                agent.step()
            except Killed:
                self.restart(lrn)

    def restart(self, lrn: int) -> None:
        """New objects for a dead agent, with the same fate. Its place in the leader's line has run out meanwhile."""
        agent = self.agents[lrn]
        agent.bury()
        self.loses_its_place(lrn)
        fate = agent.fate
        self.start(lrn, Fate(fate.chosen, fate.points, at_point=fate.at_point))

    def loses_its_place(self, lrn: int) -> None:
        """Its place in the leader's line runs out."""
        (line,) = self.admin.read([under(self.keys.election)]).items
        for item in line:
            if item.lease in self.agents[lrn].client.leases:
                self.admin.revoke(item.lease)

    def end(self) -> None:
        for agent in self.agents.values():
            agent.bury()
