"""Faults by chance, on whole agents and three members: whatever came, once all is healed the newest revision is everywhere.

A schedule is made of its seed alone, which is printed; `RECONCILER_SEED=N` runs that one again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from reconciler.store.transaction import under
from tests.fleet.cluster import Cluster
from tests.fleet.test_reboots import group, holders
from tests.grpc_proxy import Fate

SERVERS = 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """One fault: of what kind, whose, for how long (seconds), and whether a new revision comes with it."""

    kind: str
    whose: int
    seconds: float
    push: bool

    def begin(self, cluster: Cluster) -> Callable[[], None]:
        """Do it; what ends it."""
        machine, road = cluster.servers.machines[self.whose], cluster.roads[self.whose]
        member = cluster.server.members[self.whose]
        match self.kind:
            case "agent killed":
                machine.kill()
                return lambda: cluster.servers.start(machine)
            case "agent frozen":
                machine.signal(signal.SIGSTOP)
                return lambda: machine.signal(signal.SIGCONT)
            case "member killed":
                member.kill()
                return cluster.heal_members
            case "member frozen":
                member.pause()
                return member.resume
            case "road closed":
                road.closed = True
                return road.clear
            case "road slow":
                road.delay = 0.3
                return road.clear
            case "connections cut":
                road.cut()
            case "reply lost":
                cluster.when(("/steps/",), lambda: Fate.LOSES_ITS_REPLY, self.whose)
            case "request late":
                cluster.when(("/steps/",), lambda: Fate.IS_HELD, self.whose)
                return road.clear
            case "lease revoked":
                keys, client = cluster.servers.etcd.keys, cluster.servers.etcd.client
                (found,) = client.read([under(keys.agents_of(self.whose))]).items
                for item in found:
                    client.revoke(item.lease)
            case _:
                raise ValueError(self.kind)
        return lambda: None


KINDS = (
    "agent killed", "agent frozen", "member killed", "member frozen", "road closed", "road slow", "connections cut",
    "reply lost", "request late", "lease revoked",
)  # fmt: skip


def schedule(seed: int, number: int) -> list[Trouble]:
    """Each kind as often as any other, in any order, on anybody."""
    chance = random.Random(seed)
    kinds = [KINDS[index % len(KINDS)] for index in range(number)]
    chance.shuffle(kinds)
    return [
        Trouble(kind, chance.randrange(SERVERS), chance.uniform(0.2, 1.5), push=index % 4 == 0)
        for index, kind in enumerate(kinds)
    ]


def test_promise_9_a_schedule_of_faults_ends_as_no_fault_would(cluster: Cluster) -> None:
    """Each kind of trouble once."""
    go_through(
        cluster, int(os.environ.get("RECONCILER_SEED") or random.SystemRandom().randrange(10**6)), len(KINDS)
    )


@pytest.mark.soak
@pytest.mark.parametrize("number", range(10))
def test_promise_9_long_schedules_of_faults_end_as_no_fault_would(cluster: Cluster, number: int) -> None:
    """Ten of them, of forty troubles each: a minute and a half for each on a busy machine."""
    go_through(cluster, int(os.environ.get("RECONCILER_SEED") or random.SystemRandom().randrange(10**6)), 40)


def go_through(cluster: Cluster, seed: int, number: int) -> None:
    troubles = schedule(seed, number)
    print(f"RECONCILER_SEED={seed}")
    servers = cluster.servers
    cluster.gather(SERVERS, "--lease-ttl", "3s")
    groups = group(servers)
    version = 0
    for trouble in troubles:
        if trouble.push:
            version += 1
            servers.wants_reboot(trouble.whose)
            servers.push({"tool": str(version)}, groups=groups)
        print(f"{time.strftime('%H:%M:%S')} {trouble}")
        heal = trouble.begin(cluster)
        end = time.monotonic() + trouble.seconds
        while time.monotonic() < end:
            servers.tend()
            time.sleep(0.02)
        heal()
    cluster.heal()
    servers.wait_for_end(servers.push({"tool": "99"}, groups=groups), within=120)
    servers.has("tool", "99")
    servers.wait("every slot is given back", lambda: not holders(servers))
