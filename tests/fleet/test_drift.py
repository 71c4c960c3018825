"""What is changed on a host by hand: real agents say so within the interval, and put it right where the policy says so."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconciler.host.driver import Host
from tests.debs import DebSpec, build, dpkg
from tests.flatcar_server import KERNEL, release_server
from tests.fleet.daemon import metric
from tests.fleet.fleet import Machine, Servers
from tests.podman import podman, podman_below
from tests.receiver import Receiver, receiving
from tests.registry import Registry, free_port, registry

NETBOOT = "/var/lib/netboot"


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        running.push("web", "1")
        running.push("kept", "1", "another")
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@dataclass
class Scene:
    """One server with packages, a container, an image that is only kept and a netboot image; and some things that are not ours."""

    servers: Servers
    images: Registry
    port: int

    @property
    def machine(self) -> Machine:
        return self.servers.machines[0]

    @property
    def root(self) -> Path:
        return self.machine.root

    @property
    def kernel(self) -> Path:
        return self.root / NETBOOT.lstrip("/") / "stable/3139.2.1" / KERNEL

    def podman(self, *words: str) -> str:
        return podman(self.machine.environment, *words, check=True)

    def push(self, policy: dict[str, Any]) -> str:
        script = f"trap 'exit 0' TERM; httpd -p {self.port} -h /www; while :; do sleep 1000 & wait $!; done"
        container = {"args": ["sh", "-c", script], "health": {"http": f"http://127.0.0.1:{self.port}/"}}
        wanted = [
            {"name": "web", "repository": self.images.repository("web"), "tag": "1", "container": container},
            {"name": "kept", "repository": self.images.repository("kept"), "tag": "1"},
        ]
        group = {"name": "boot", "servers": [0], "osImage": {"driver": "netboot", "directory": NETBOOT}}
        return self.servers.push(
            {"tool": "1.0", "filed": "1.0"},
            policy=policy,
            groups=[group],
            sets=[{"images": wanted, "osImage": {"channel": "stable", "version": "3139.2.1"}}],
        )

    def add_what_is_not_ours(self) -> None:
        file = build(DebSpec("theirs", "1.0"), self.machine.directory)
        dpkg(Host(self.root), "--install", str(file))
        self.podman("tag", f"{self.images.repository('web')}:1", "localhost/theirs:1")
        self.podman(
            "run", "--detach", "--network", "host", "--name", "theirs", "localhost/theirs:1", "sleep", "9"
        )
        self.podman("stop", "--time", "0", "theirs")

    def change_by_hand(self) -> None:
        dpkg(Host(self.root), "--remove", "tool")
        (self.root / "usr/share/filed/version").write_text("another\n")
        self.podman("stop", "--time", "0", "web")
        self.podman("tag", "localhost/theirs:1", f"{self.images.repository('kept')}:1")
        self.kernel.write_bytes(b"another kernel\n")

    def is_not_ours_as_it_was(self) -> None:
        assert self.machine.deb("theirs") == "ii 1.0"
        listed = self.podman("ps", "--all", "--filter", "name=theirs", "--format", "{{.State}}").strip()
        assert listed.startswith("Exited")
        assert "localhost/theirs" in self.podman("images")

    def answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2) as reply,
        ):
            return bool(reply.read() == b"1")
        return False


@pytest.fixture
def scene(servers: Servers, images: Registry, receiver: Receiver, tmp_path: Path) -> Iterator[Scene]:
    with release_server(tmp_path / "flatcar") as flatcar, podman_below(tmp_path / "podman") as environment:
        flatcar.release("stable", "3139.2.1")
        machine = servers.add(
            0, "--drift-interval", "1s", "--notify-webhook", receiver.url, "--flatcar-url", flatcar.url
        )
        machine.environment = environment
        servers.start()
        yield Scene(servers, images, free_port())
        servers.end()


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
def test_what_was_changed_by_hand_is_reported_with_its_difference(scene: Scene, receiver: Receiver) -> None:
    scene.servers.wait_for_end(scene.push({"drift": "report"}))
    scene.add_what_is_not_ours()
    scene.change_by_hand()
    began = time.monotonic()
    scene.servers.wait(
        "status says five", lambda: [agent.drift for agent in scene.servers.view().agents] == [5]
    )
    assert time.monotonic() - began < 15, "the interval is one second"
    for kind, number in (("deb", 2), ("image", 2), ("os-image", 1)):
        assert metric(scene.machine, "reconciler_artifacts_drifted", kind=kind) == number
    scene.servers.wait("a notification has all", lambda: _told(receiver, "os-image"))
    text = _told(receiver, "os-image")
    for part in (
        "deb/tool: recorded 1.0, found nothing",
        "deb/filed: recorded 1.0, found 1.0 with /usr/share/filed/version altered",
        "image/web: recorded sha256:",
        " stopped ",
        "image/kept: recorded sha256:",
        f"os-image: recorded stable/3139.2.1, found stable/3139.2.1 ({KERNEL} was changed)",
    ):
        assert part in text and part in scene.machine.log
    assert "theirs" not in text
    # Reported, and no more than that.
    assert scene.machine.deb("tool") == ""
    assert not scene.answers()
    scene.is_not_ours_as_it_was()
    # As the fixture leaves no fleet whose records are not true.
    (built,) = (scene.servers.directory / "built").glob("tool_1.0_*.deb")
    dpkg(Host(scene.root), "--install", str(built))
    scene.servers.wait("it is seen to be back", lambda: [a.drift for a in scene.servers.view().agents] == [4])


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
def test_what_was_changed_by_hand_is_put_right_under_the_slot(scene: Scene) -> None:
    scene.servers.wait_for_end(scene.push({"drift": "repair"}))
    recorded = scene.servers.recorded(0)
    kernel = scene.kernel.read_bytes()
    scene.add_what_is_not_ours()
    scene.change_by_hand()
    scene.servers.wait(
        "all is as it was",
        lambda: (
            scene.machine.deb("tool") == "ii 1.0"
            and (scene.root / "usr/share/filed/version").read_text() == "1.0\n"
            and scene.kernel.read_bytes() == kernel
            and scene.answers()
        ),
        within=60,
    )
    scene.servers.wait(
        "the slot is back", lambda: not any(lock.holders for lock in scene.servers.view().locks.values())
    )
    assert {f"containers:image/web:{effect}" for effect in ("acquire", "change", "health", "release")} <= {
        step for step, record in scene.servers.view().steps[0].items() if record.rollout.startswith("repair-")
    }
    scene.servers.wait("no drift is left", lambda: metric(scene.machine, "reconciler_artifacts_drifted") == 0)
    scene.servers.wait(
        "status says none", lambda: all(not agent.drift for agent in scene.servers.view().agents)
    )
    assert scene.servers.recorded(0) == recorded
    assert scene.podman("images", "--format", "{{.Repository}}:{{.Tag}}").count("/kept:1") == 1
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


def _told(receiver: Receiver, part: str) -> str:
    return next((text for event in receiver.events("drift") if part in (text := json.dumps(event))), "")
