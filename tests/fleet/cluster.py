"""Whole agents on a real etcd of three members, each agent on a road of its own: what happens to members and on roads is the test's.

`Cluster` is the etcd; `heal` puts right whatever a test did to it. `at_the_cluster` is a fleet whose agents reach it by their roads.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from tests.conftest import Etcd
from tests.etcd_server import EtcdServer, Member
from tests.etcd_users import ROOT
from tests.fleet import fleet
from tests.fleet.fleet import Machine, Servers
from tests.grpc_proxy import Fate, Moment, Road, when


@dataclass
class Cluster:
    """Three members, and one road for each agent. The test itself has no proxy between."""

    server: EtcdServer
    servers: Servers
    roads: dict[int, Road] = field(default_factory=dict)

    def add(self, lrn: int, *arguments: str) -> Machine:
        """A server whose agent, once started, comes to etcd by `roads[lrn]`."""
        self.roads[lrn] = Road([member.client_port for member in self.server.members])
        return self.servers.add(lrn, "--etcd", self.roads[lrn].endpoints, *arguments)

    def gather(self, number: int = 3, *arguments: str) -> None:
        for lrn in range(number):
            self.add(lrn, *arguments)
        self.servers.start()
        self.servers.wait_for_registered(*range(number))

    def when(self, texts: Iterable[str], do: Callable[[], Fate | None], *servers: int) -> Moment:
        """Call `do` when the agent of one of `servers` (of any, if none is named) sends a request with all of `texts`, once."""
        return when([self.roads[lrn] for lrn in servers or self.roads], texts, do)

    @property
    def leading(self) -> int:
        """The server whose agent leads."""
        return self.servers.leader().lrn

    def member_that_leads(self) -> Member:
        """The cluster's leader. One that was started or resumed a moment ago may not answer yet."""
        end = time.monotonic() + 20
        while True:
            try:
                return self.server.leader()
            except AssertionError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def follower(self) -> Member:
        """A member that does not lead the cluster."""
        leader = self.member_that_leads()
        return next(member for member in self.server.members if member is not leader and member.process)

    def two_others(self) -> list[Member]:
        """A majority, the cluster's leader among it."""
        leader = self.member_that_leads()
        return [leader, next(member for member in self.server.members if member is not leader)]

    def heal(self) -> None:
        """Every road is clear and every member runs."""
        for road in self.roads.values():
            road.clear()
        self.heal_members()

    def heal_members(self) -> None:
        """Every member runs, and the cluster serves."""
        for member in self.server.members:
            member.resume()
            if member.process is None:
                member.start(wait=False)
        for member in self.server.members:
            member.wait_until_it_listens()
        self.server.wait_until_it_serves()


@contextlib.contextmanager
def at_the_cluster(server: EtcdServer, directory: Path) -> Iterator[Cluster]:
    """A fleet without servers yet. When the test is over, all is healed."""
    known = server.users.options(server.endpoints, ROOT) if server.users else EtcdOptions(server.endpoints)
    with Client(known) as client:
        etcd = Etcd(server, Keys(), client).emptied()
        with fleet.running(etcd, directory) as servers:
            cluster = Cluster(server, servers)
            try:
                yield cluster
            finally:
                servers.end()
                cluster.heal()
                for road in cluster.roads.values():
                    road.end()


def says(value: object) -> str:
    """As it stands in a document in etcd."""
    return json.dumps(value, separators=(",", ":"))


def takes_slot(machine: Machine) -> tuple[str, str]:
    """What the request holds by which a server takes the only slot."""
    return "/semaphore", f'"holders":{says([machine.machine_id])}'


def gives_slot_back() -> tuple[str, str]:
    """What the request holds by which the only slot is given back."""
    return "/semaphore", '"holders":[]'


def opens(number: int) -> tuple[str, str]:
    """What the request holds that opens a phase."""
    return "status/phase", f'"phase":{number}}}'


def begins(lrn: int, step: str) -> tuple[str, str]:
    """What the request holds that begins a step."""
    return f"steps/{lrn}/{step}", '"state":"running"'


def completes(lrn: int, step: str) -> tuple[str, str]:
    """What the request holds that records a step as done."""
    return f"steps/{lrn}/{step}", '"state":"done"'
