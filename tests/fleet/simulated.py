"""Simulated servers with the real agent on a real etcd, killed where its fate says.

An `Agent` is one process: its objects are dropped when it is killed, and new ones are made, as a restart would. Points are
before and after every write to etcd, and those of its host (`simulated_host`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.agent.follow import Follower, Following
from reconciler.agent.hands import Hands
from reconciler.agent.leader import Conductor
from reconciler.agent.leading import Leading
from reconciler.agent.notify import Addresses, Event, Notifier, Telling
from reconciler.agent.publisher import Publisher
from reconciler.agent.worker import Worker
from reconciler.agent.writing import Identity, Writing, with_its_slot
from reconciler.core.artifact import Artifact, Image, Key, Kind
from reconciler.core.published import Published
from reconciler.core.state import Desired, Detail, Installed, Server
from reconciler.errors import Ambiguous, Unavailable
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.policy import EVERYTHING
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.serving import Found, recording
from reconciler.store.transaction import (
    Compare,
    Get,
    KeyRange,
    Operation,
    Put,
    Reply,
    Snapshot,
    one,
    put,
    under,
)
from reconciler.store.view import read_fleet, read_server
from tests import etcd_users
from tests.conftest import Etcd
from tests.fleet.checker import prove
from tests.fleet.simulated_host import (
    Entry,
    Fate,
    Killed,
    Place,
    PowerCord,
    SimulatedContainers,
    SimulatedDriver,
    SimulatedOs,
)

__all__ = ["Fate", "Killed", "Place", "SimulatedDriver", "SimulatedFleet"]

_LOOKS = 2000
"""No rollout here takes one agent as many looks at etcd."""


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
            self._enter(then)
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

    def _enter(self, operations: Sequence[Operation]) -> None:
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


class HeardNotifier(Notifier):
    """Tells at once; what people heard is the place's to keep. The points of the fate around it are those of the writes."""

    def __init__(self, place: Place) -> None:
        super().__init__(Addresses)
        self._place = place

    def tell(self, event: Event) -> Telling:
        self._place.told.append(event)
        return super().tell(event)


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
            asks = place.asks_for_reboot
            return read_server(
                self.client, keys, place.lrn, machine, place.boot_id, group, reboot_required=asks
            )

        looks = itertools.count()

        def read() -> Server:
            assert next(looks) < _LOOKS, "the worker goes round and round"
            newest = self.follower.state.newest
            return with_its_slot(look, newest.group_of(place.lrn).reboot.lock_group if newest else "default")

        self.worker = Worker(hands, self.writing, self.follower, read, publisher, wall=hands.wall)
        self.leading = Leading(self.client, keys, f"boot-{place.lrn}", 30.0, lambda: None)
        self.notifier = HeardNotifier(place)
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

    @property
    def etcd_revision(self) -> int:
        return self.admin.read([one(self.keys.rollout)]).revision

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

    def prove(self) -> None:
        """Promises 1 and 8, by the history of the reboot lock and by the hosts, as of every fleet."""
        prove(self.admin, self.keys, self.etcd.since)
        for lrn, recorded in read_fleet(self.admin, self.keys).recorded.items():
            for key, installed in recorded.items():
                place = self.places[lrn]
                there = place.has.get(key)
                excused = self._is_changing(lrn, key) or (there is None and key in place.lost)
                assert there == installed.version or excused, (
                    f"server {lrn}: {key.subject} is recorded as {installed.version}, found {there}"
                )

    def _is_changing(self, lrn: int, key: Key) -> bool:
        steps = read_fleet(self.admin, self.keys).steps.get(lrn, {})
        return any(
            record.state != "done" and id.split(":")[1:3] == [key.subject, "change"]
            for id, record in steps.items()
        )
