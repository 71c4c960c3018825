"""What is changed on a host by hand: real agents say so within the interval, and put it right where the policy says so."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.host.driver import Host
from tests.debs import DebSpec, build, dpkg
from tests.flatcar_server import KERNEL
from tests.fleet.daemon import metric
from tests.fleet.fleet import Servers
from tests.fleet.one_of_each import OneOfEach, one_of_each
from tests.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@dataclass
class Scene:
    """A server with one of each, and with some things that are not ours."""

    one: OneOfEach

    def add_what_is_not_ours(self) -> None:
        file = build(DebSpec("theirs", "1.0"), self.one.machine.directory)
        dpkg(Host(self.one.root), "--install", str(file))
        self.one.podman("tag", f"{self.one.images.repository('web')}:1", "localhost/theirs:1")
        self.one.podman(
            "run", "--detach", "--network", "host", "--name", "theirs", "localhost/theirs:1", "sleep", "9"
        )
        self.one.podman("stop", "--time", "0", "theirs")

    def change_by_hand(self) -> None:
        dpkg(Host(self.one.root), "--remove", "tool")
        (self.one.root / "usr/share/filed/version").write_text("another\n")
        self.one.podman("stop", "--time", "0", "web")
        self.one.podman("tag", "localhost/theirs:1", f"{self.one.images.repository('kept')}:1")
        self.one.kernel.write_bytes(b"another kernel\n")

    def is_not_ours_as_it_was(self) -> None:
        assert self.one.machine.deb("theirs") == "ii 1.0"
        listed = self.one.podman("ps", "--all", "--filter", "name=theirs", "--format", "{{.State}}").strip()
        assert listed.startswith("Exited")
        assert "localhost/theirs" in self.one.podman("images")


@pytest.fixture
def scene(servers: Servers, receiver: Receiver, tmp_path: Path) -> Iterator[Scene]:
    arguments = ("--drift-interval", "1s", "--notify-webhook", receiver.url)
    with one_of_each(servers, tmp_path, *arguments) as one:
        yield Scene(one)


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
def test_what_was_changed_by_hand_is_reported_with_its_difference(scene: Scene, receiver: Receiver) -> None:
    scene.one.servers.wait_for_end(scene.one.push(drift="report"))
    scene.add_what_is_not_ours()
    scene.change_by_hand()
    began = time.monotonic()
    scene.one.servers.wait(
        "status says five", lambda: [agent.drift for agent in scene.one.servers.view().agents] == [5]
    )
    assert time.monotonic() - began < 15, "the interval is one second"
    for kind, number in (("deb", 2), ("image", 2), ("os-image", 1)):
        assert metric(scene.one.machine, "reconciler_artifacts_drifted", kind=kind) == number
    parts = (
        "deb/tool: recorded 1.0, found nothing",
        "deb/filed: recorded 1.0, found 1.0 with /usr/share/filed/version altered",
        "image/web: recorded sha256:",
        " stopped ",
        "image/kept: recorded sha256:",
        f"os-image: recorded stable/3139.2.1, found stable/3139.2.1 ({KERNEL} was changed)",
    )
    # A look in the middle of the changes shows a part of them.
    scene.one.servers.wait("a notification has all", lambda: _told(receiver, *parts))
    assert all(part in scene.one.machine.log for part in parts)
    assert "theirs" not in _told(receiver, *parts)
    # Reported, and no more than that.
    assert scene.one.machine.deb("tool") == ""
    assert not scene.one.answers()
    scene.is_not_ours_as_it_was()
    # As the fixture leaves no fleet whose records are not true.
    (built,) = (scene.one.servers.directory / "built").glob("tool_1.0_*.deb")
    dpkg(Host(scene.one.root), "--install", str(built))
    scene.one.servers.wait(
        "it is seen to be back", lambda: [a.drift for a in scene.one.servers.view().agents] == [4]
    )


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
def test_what_was_changed_by_hand_is_put_right_under_the_slot(scene: Scene) -> None:
    scene.one.servers.wait_for_end(scene.one.push(drift="repair"))
    recorded = scene.one.servers.recorded(0)
    kernel = scene.one.kernel.read_bytes()
    scene.add_what_is_not_ours()
    scene.change_by_hand()
    scene.one.servers.wait(
        "all is as it was",
        lambda: (
            scene.one.machine.deb("tool") == "ii 1.0"
            and (scene.one.root / "usr/share/filed/version").read_text() == "1.0\n"
            and scene.one.kernel.read_bytes() == kernel
            and scene.one.answers()
        ),
        within=60,
    )
    scene.one.servers.wait(
        "the slot is back", lambda: not any(lock.holders for lock in scene.one.servers.view().locks.values())
    )
    assert {f"containers:image/web:{effect}" for effect in ("acquire", "change", "health", "release")} <= {
        step
        for step, record in scene.one.servers.view().steps[0].items()
        if record.rollout.startswith("repair-")
    }
    scene.one.servers.wait(
        "no drift is left", lambda: metric(scene.one.machine, "reconciler_artifacts_drifted") == 0
    )
    scene.one.servers.wait(
        "status says none", lambda: all(not agent.drift for agent in scene.one.servers.view().agents)
    )
    assert scene.one.servers.recorded(0) == recorded
    assert scene.one.podman("images", "--format", "{{.Repository}}:{{.Tag}}").count("/kept:1") == 1
    scene.is_not_ours_as_it_was()


def test_nothing_is_repaired_while_a_rollout_is_open(servers: Servers) -> None:
    servers.gather(2, "--drift-interval", "1s")
    servers.wait_for_end(servers.push({"tool": "1.0"}, policy={"drift": "repair"}))
    other = servers.machines[1]
    other.kill()
    other.hold_dpkg()
    servers.start(other)
    revision = servers.push({"tool": "1.0", "more": "1.0"}, policy={"drift": "repair"})
    servers.wait("server 1 installs", lambda: other.in_dpkg)
    servers.wait("server 0 is done with its part", lambda: servers.recorded(0).get("deb/more") == "v1.0")
    dpkg(Host(servers.machines[0].root), "--remove", "tool")

    def passes() -> float:
        return metric(servers.machines[0], "reconciler_loop_duration_seconds_count", loop="worker")

    seen = passes()
    servers.wait("server 0 has looked around", lambda: passes() > seen + 2)
    other.let_dpkg_go()
    servers.wait_for_end(revision)
    servers.wait("it is put right afterwards", lambda: servers.machines[0].deb("tool") == "ii 1.0")
    log = servers.machines[0].log
    repaired = log.index("begins debs:deb/tool:change", log.index("has done debs:deb/more:change"))
    assert (
        log.index("deb/tool: recorded 1.0, found nothing")
        < log.rindex("has done verify:host:health")
        < repaired
    )


def _told(receiver: Receiver, *parts: str) -> str:
    """The first notification of drift that has all of `parts`; nothing if there is none."""
    told = (json.dumps(event) for event in receiver.events("drift"))
    return next((text for text in told if all(part in text for part in parts)), "")
