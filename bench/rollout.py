"""A rollout over a rehearsed fleet: real workers and a real leader on a real etcd, with hosts in memory.

Beside it stands the same number of transactions by the same client and threads, with nothing decided.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from bench.child import Child
from bench.measure import Figure, Measured, NotMeasured, Target
from bench.stage import Stage

RUNS: Mapping[int, int] = {3: 7, 30: 7, 300: 5, 1_000: 5}
"""Servers → rollouts that are measured."""
TARGETS: Mapping[int, tuple[Target, ...]] = {1_000: (Target(60.0),)}
LEADER = (Target(150, "peak"),)


def figures(stage: Stage, runs: int) -> Iterator[Figure]:
    for number, times in RUNS.items():
        if stage.quick and number > 30:
            continue
        yield from _rolled_out(stage, number, times)


def _rolled_out(stage: Stage, number: int, times: int) -> Iterator[Figure]:
    # Each fleet has the keys to itself: the one before was ended and is taken away.
    stage.clear()
    with Child("servers", stage.endpoint, number) as servers, Child("leader", stage.endpoint) as leader:
        servers.ask("start")
        leader.ask("roll", 1, within=300)
        taken, counted = [], [servers.ask("count")]
        for run in range(times):
            taken.append(leader.ask("roll", run + 2, within=300))
            counted.append(servers.ask("count"))
        for one in taken:
            if one["outcome"] != "complete" or str(number) not in one["message"]:
                raise NotMeasured(
                    f"a rollout on {number} servers ended as {one['outcome']}: {one['message']}"
                )
        requests = [after["requests"] - before["requests"] for before, after in itertools.pairwise(counted)]
        floor = servers.ask("floor", requests[0], within=300)
        servers.ask("end")
        leader.ask("end")
    what = f"{number:,} servers, one image"
    cpu = (counted[-1]["cpu"] - counted[0]["cpu"]) / times
    seconds = Measured(tuple(one["seconds"] for one in taken), cpu=cpu, peak_mb=counted[-1]["peak_mb"])
    beside = Measured((floor["seconds"],))
    yield Figure("rollout", what, seconds, "as many transactions alone", beside, TARGETS.get(number, ()))
    each = Measured(tuple(count / number for count in requests), "requests")
    yield Figure("rollout", f"{what}: etcd requests of each server", each)
    looks = Measured(
        tuple(float(one["requests"]) for one in taken),
        "requests",
        taken[-1]["cpu"],
        max(one["peak_mb"] for one in taken),
    )
    yield Figure("rollout", f"{what}: the leader's etcd requests", looks, targets=LEADER)
