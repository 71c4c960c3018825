"""The leader of a rehearsed fleet, alone in its process: the agent's real parts without a server. Tasks: `roll N`, `end`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping

from bench.inside import Answer, answering, cpu_seconds, peak_mb
from bench.inside.fleet import GivenRevisions, pin, revision
from reconciler.agent.leader import Conductor
from reconciler.agent.leading import Leading
from reconciler.agent.loop import Bells, Watching
from reconciler.agent.notify import Addresses, Notifier
from reconciler.agent.publisher import Publisher
from reconciler.agent.resolve import Resolver
from reconciler.core.artifact import Artifact, Kind, Pin
from reconciler.core.published import Published
from reconciler.core.state import Rollout
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys

NUMBER = 999_999
"""This leader's own server, which has no worker and is not registered."""


class Pinned:
    """Resolves every reference to the same content, at once."""

    def resolve(self, artifact: Artifact) -> Pin | None:
        return pin(artifact)


class Leader:
    """Leads while it is told a rollout, and is idle between them."""

    def __init__(self, endpoint: str) -> None:
        self.client = Client(EtcdOptions((endpoint,)))
        self._keys, self._bells, self._ending = Keys(), Bells(), threading.Event()
        self._follower = GivenRevisions()
        self._publisher = Publisher(Published())
        self._watching = Watching(self.client, self._keys, NUMBER, self._bells, self._ending)
        self.leading = Leading(self.client, self._keys, "leader", 10.0, self._bells.lead.ring)
        self.notifier = Notifier(lambda: Addresses())
        resolvers: Mapping[Kind, Resolver] = {"image": Pinned()}
        self._conductor = Conductor(
            self.leading,
            self._follower,
            resolvers,
            self._publisher,
            self.notifier,
            lambda: 600.0,
            self._watching.lead,
        )
        self._watching.start(candidate=True)

    def roll(self, number: str) -> Answer:
        """Roll revision `number` out: seconds from its arrival until it is complete, with CPU seconds and etcd requests."""
        wanted = revision(int(number)).revision.id
        self._follower.push(int(number))
        began, cpu, before, passes = time.perf_counter(), cpu_seconds(), self._requests(), 0
        while True:
            pause = self._conductor.conduct()
            passes += 1
            rollout = self._rollout()
            if rollout is not None and rollout.version == wanted and not rollout.unfinished:
                break
            self._bells.lead.wait(pause)
        return {
            "seconds": time.perf_counter() - began,
            "cpu": cpu_seconds() - cpu,
            "requests": self._requests() - before,
            "looks": passes,
            "peak_mb": peak_mb(),
            "outcome": rollout.outcome,
            "message": rollout.message,
        }

    def _rollout(self) -> Rollout | None:
        fleet = self._publisher().fleet
        return fleet.rollout if fleet else None

    def _requests(self) -> int:
        return sum(self.client.counts.get(name, 0) for name in ("Txn", "Range"))

    def end(self) -> Answer:
        self._ending.set()
        self.leading.resign()
        self._watching.close()
        self.notifier.close()
        self.client.close()
        return {}


def main() -> None:
    leader = Leader(sys.argv[1])
    answering({"roll": leader.roll, "end": leader.end})


if __name__ == "__main__":
    main()
