"""Real agents as processes: how soon a push is acted on, how soon another one leads, and what one costs that has nothing to do."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

from bench.agents import Agent, Repository, running, wait_until_complete
from bench.measure import Command, Figure, Measured, NotMeasured, Target, measure
from bench.stage import Stage

FIRST_STEP = (Target(0.300),)
TTL = 3.0
FAILOVER = (Target(TTL + 1.0),)
PASS, PASS_REQUESTS = (Target(0.020),), (Target(3.0),)
IDLE = 60.0
"""Seconds for which an idle agent is looked at: git is polled once meanwhile."""
HANGUPS = 10
SETTLED = 3.0
IMPORTS = "import click, git, grpc, jsonschema, yaml, starlette, uvicorn, prometheus_client, watchfiles, resource, pathlib\n"


def figures(stage: Stage, runs: int) -> Iterator[Figure]:
    if os.geteuid() != 0:
        raise NotMeasured("hooks have to be root's: run it as root")
    repository = Repository(stage.directory / "git")
    one = [Agent(stage, repository, 0)]
    with running(one):
        _roll(stage, repository, one)
        yield from _pushed(stage, repository, one, runs)
        yield from _hung_up(stage, one[0], runs)
        yield from _idle(stage, one[0])
    stage.clear()
    three = [Agent(stage, repository, lrn, ("--lease-ttl", f"{TTL:g}s")) for lrn in range(1, 4)]
    with running(three):
        _roll(stage, repository, three)
        yield from _failed_over(stage, repository, three)


def _roll(stage: Stage, repository: Repository, agents: list[Agent]) -> None:
    """Wait until all are registered, and for a rollout to all of them."""
    end = time.monotonic() + 30
    while len(stage.keys("/neco/leader/agents/")) < len(agents):
        if time.monotonic() > end:
            raise NotMeasured("the agents have not registered within 30 s")
        time.sleep(0.05)
    revision = repository.commit()
    repository.push()
    wait_until_complete(stage, revision, agents)


def _pushed(stage: Stage, repository: Repository, agents: list[Agent], runs: int) -> Iterator[Figure]:
    """From the start of `git push` until etcd has the first step's record."""
    first, whole, pushes = [], [], []
    for _ in range(runs):
        revision = repository.commit()
        with stage.watch("/neco/steps/") as steps:
            began = time.perf_counter()
            pushes.append(repository.push())
            steps.wait(20)
            first.append(time.perf_counter() - began)
        wait_until_complete(stage, revision, agents)
        whole.append(time.perf_counter() - began)
        # Nothing of this rollout is left to do when the next one begins.
        time.sleep(0.5)
    push = Measured(tuple(pushes))
    yield Figure(
        "agent", "push to the first step", Measured(tuple(first)), "git push itself", push, FIRST_STEP
    )
    yield Figure("agent", "push to the end, one change", Measured(tuple(whole)), "git push itself", push)


def _hung_up(stage: Stage, agent: Agent, runs: int) -> Iterator[Figure]:
    """SIGHUP makes every loop look: what a look costs that finds nothing."""
    time.sleep(SETTLED)
    seconds: dict[str, list[float]] = {"worker": [], "leader": [], "git": []}
    asked: list[float] = []
    for _ in range(runs):
        before, requests = agent.passes(), stage.requests()
        for _ in range(HANGUPS):
            _hang_up(agent)
        after = agent.passes()
        for loop, each in seconds.items():
            took, count = (new - old for new, old in zip(after[loop], before[loop], strict=True))
            each.append(took / count)
        asked.append((stage.requests() - requests) / HANGUPS)
    yield Figure(
        "agent", "a pass of the worker that finds nothing", Measured(tuple(seconds["worker"])), targets=PASS
    )
    yield Figure(
        "agent", "a pass of the leader that finds nothing", Measured(tuple(seconds["leader"])), targets=PASS
    )
    (fetch,) = measure(Command(["git", "fetch", "--quiet"], cwd=stage.directory / "git" / "work"), runs=runs)
    yield Figure(
        "agent", "a look at git that finds nothing", Measured(tuple(seconds["git"])), "git fetch", fetch
    )
    yield Figure(
        "agent",
        "etcd requests of one pass of all loops",
        Measured(tuple(asked), "requests"),
        targets=PASS_REQUESTS,
    )


def _hang_up(agent: Agent) -> None:
    before = agent.passes()
    os.kill(agent.pid, signal.SIGHUP)
    end = time.monotonic() + 10
    while any(count <= before[loop][1] for loop, (_, count) in agent.passes().items()):
        if time.monotonic() > end:
            raise NotMeasured("SIGHUP made no pass of each loop within 10 s")
        time.sleep(0.01)


def _idle(stage: Stage, agent: Agent) -> Iterator[Figure]:
    time.sleep(SETTLED)
    looked = 10.0 if stage.quick else IDLE
    cpu, requests = agent.cpu_seconds(), stage.requests()
    time.sleep(looked)
    used = 100 * (agent.cpu_seconds() - cpu) / looked
    asked = (stage.requests() - requests) * 60 / looked
    (floor,) = measure(Command([sys.executable, "-c", IMPORTS]), runs=5)
    memory = Measured((floor.peak_mb or 0.0,), "MB")
    yield Figure(
        "agent",
        "idle: memory",
        Measured((agent.resident_mb(),), "MB"),
        "python with the same libraries",
        memory,
    )
    yield Figure("agent", "idle: CPU", Measured((used,), "% of a core"), targets=(Target(0.3),))
    yield Figure("agent", "idle: etcd requests a minute", Measured((asked,), "requests"))


def _failed_over(stage: Stage, repository: Repository, agents: list[Agent]) -> Iterator[Figure]:
    """From `kill -9` of the leader until another one has opened a rollout; beside it, until etcd takes its key away."""
    taken, freed = [], []
    for _ in range(5):
        leader = _leader(stage, agents)
        revision = repository.commit()
        with stage.watch("/neco/leader/updater/") as line, stage.watch("/neco/status/current") as rollout:
            leader.kill()
            began = time.perf_counter()
            repository.push()
            line.wait(60)
            freed.append(time.perf_counter() - began)
            rollout.wait(60)
            taken.append(time.perf_counter() - began)
        leader.start()
        wait_until_complete(stage, revision, agents)
    what = f"the leader is killed: another one opens a rollout, TTL {TTL:g} s"
    yield Figure(
        "agent", what, Measured(tuple(taken)), "etcd ends its lease", Measured(tuple(freed)), FAILOVER
    )


def _leader(stage: Stage, agents: list[Agent]) -> Agent:
    first = min(stage.keys("/neco/leader/updater/"), key=lambda item: item[2])
    return next(agent for agent in agents if first[1] == f"boot-{agent.lrn}")
