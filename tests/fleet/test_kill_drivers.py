"""An agent that changes a host is killed at random moments again and again: with its children, without them, and only they.

After each, while nothing runs yet, etcd claims nothing that the host has not; then a new run converges. dpkg, podman and the
files themselves are the judges. The seed is printed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from reconciler.core.artifact import OS_IMAGE
from reconciler.host.driver import Host
from tests.debs import audit
from tests.flatcar_server import INITRD, KERNEL
from tests.fleet.fleet import Servers
from tests.fleet.one_of_each import OS, OneOfEach, one_of_each

pytestmark = pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
PHASES = ("prefetch", "debs", "containers", "os-image", "containers")
LONGEST = {"prefetch": 1.0, "debs": 0.6, "containers": 2.0, "os-image": 0.1}
"""Seconds after a phase's opening within which the kill falls: about as long as it takes."""


def below(pid: int) -> list[int]:
    """All that a process started and still has below it."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for thread in threads for word in (thread / "children").read_text().split()]
    except OSError:
        return []
    return [found for child in children for found in (child, *below(child))]


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def strike(one: OneOfEach, whom: str) -> None:
    """Kill the agent, its children, or both. Where the agent dies, it is not started again yet."""
    process = one.machine.process
    assert process is not None
    children = below(process.pid)
    if whom == "children":
        kill(*children)
        return
    one.machine.stays_away = True
    process.kill()
    if whom == "all":
        kill(*children)
    one.machine.kill()


def claims_only_what_is_there(one: OneOfEach) -> None:
    """Promise 8, with nobody at work: but for what a step was at, all that is recorded is on the host."""
    fleet = one.servers.view()
    one.servers.prove_recorded()
    if OS_IMAGE in fleet.recorded.get(0, {}):
        for name in (KERNEL, INITRD):
            assert (one.netboot / "current" / name).stat().st_size > 0


def is_sound(one: OneOfEach, version: str) -> None:
    """All that was asked for is there, and nothing is left over."""
    assert [one.machine.deb(name) for name in ("tool", "filed")] == [f"ii {version}.0"] * 2
    assert audit(Host(one.root)) == ""
    assert one.answers(version)
    names = one.podman("ps", "--all", "--format", "{{.Names}}").split()
    assert names == ["web"]
    tags = one.podman("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert all(sum(f"/{name}:" in tag for tag in tags) <= 2 for name in ("web", "kept")), tags
    assert list((one.machine.directory / "state/pull").glob("*")) == []
    assert (one.netboot / "current").readlink() == Path("stable") / OS[version]
    assert {path.name for path in one.netboot.iterdir()} <= {"stable", "current"}


def converge(one: OneOfEach, revision: str) -> None:
    """Start what was killed, and see the rollout to its end; one that failed because a child was killed is cleared, as a person would."""
    servers = one.servers
    one.machine.stays_away = False
    if one.machine.process is None:
        servers.start(0)

    def ended() -> bool:
        rollout = servers.view().rollout
        if rollout is not None and rollout.version == revision and rollout.stop:
            servers.administration.recover(f"2030-01-01T00:00:{time.monotonic_ns() % 60:02d}.000000000Z")
        return rollout is not None and rollout.version == revision and rollout.outcome == "complete"

    servers.wait("the rollout is complete", ended, within=90)


def kill_again_and_again(one: OneOfEach, times: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    sys.stderr.write(f"the kills' seed is {seed}\n")
    chance = random.Random(seed)
    one.servers.wait_for_end(one.push("1"), within=60)
    for number in range(times):
        version = "21"[number % 2]
        phase, whom = PHASES[number % len(PHASES)], chance.choice(("agent", "children", "all"))
        revision = one.push(version)
        one.servers.wait(f"{phase} is open", lambda r=revision, p=phase: _reached(one, r, p))  # type: ignore[misc]  # bound now
        time.sleep(chance.uniform(0, LONGEST[phase]))  # the moment of the kill, and no wait for anything
        strike(one, whom)
        if one.machine.process is None:
            claims_only_what_is_there(one)
        converge(one, revision)
        is_sound(one, version)
        claims_only_what_is_there(one)


def _reached(one: OneOfEach, revision: str, name: str) -> bool:
    fleet = one.servers.view()
    rollout = fleet.rollout
    if rollout is None or rollout.version != revision:
        return False
    if fleet.phase is None:
        return not rollout.unfinished
    return rollout.phases.index(name) < fleet.phase.phase


def test_killed_at_random_moments_a_new_run_converges(servers: Servers, tmp_path: Path) -> None:
    with one_of_each(servers, tmp_path) as one:
        kill_again_and_again(one, 5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_fifty_times_a_new_run_converges(servers: Servers, tmp_path: Path) -> None:
    with one_of_each(servers, tmp_path) as one:
        kill_again_and_again(one, 50)
