"""etcd, git and the registry killed under a running agent, in turn and together: it says what is missing, and goes on by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pytest

from reconciler.store.client import Client
from reconciler.store.keys import Keys
from tests.conftest import Etcd, options
from tests.etcd_server import EtcdServer
from tests.etcd_users import Users
from tests.fleet import fleet
from tests.fleet.daemon import ask
from tests.fleet.fleet import Machine, Servers
from tests.git_server import Server as GitServer
from tests.git_server import https_server
from tests.ports import free_ports
from tests.registry import Registry, registry
from tests.web.agent import Authority

pytestmark = pytest.mark.needs(
    "etcd", "etcdctl", "git", "dpkg", "openssl", "podman", "runc", "docker-registry", "busybox"
)
WITHIN = 90.0

T = TypeVar("T")


@dataclass
class Part(Generic[T]):
    """A server that is ended and started again: `make` says where it listens, each time at the same address."""

    make: Callable[[], AbstractContextManager[T]]
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> T:
        return self.stack.enter_context(self.make())

    def stop(self) -> None:
        self.stack.close()


@dataclass
class Surroundings:
    """The agent and what it needs, each of which can be killed and started again at the same address."""

    servers: Servers
    machine: Machine
    etcd: EtcdServer
    git: Part[GitServer]
    images: Part[Registry]
    address: str
    """The registry's."""
    pushed: int = 0

    def push(self) -> tuple[str, str]:
        """A revision that wants another tag of an image, which its leader has to resolve and to pull; tag and revision."""
        self.pushed += 1
        tag = str(self.pushed)
        image = {"name": "web", "repository": f"{self.address}/web", "tag": tag}
        return tag, self.servers.push(sets=[{"images": [image]}])

    def says(self, text: str, status: int = 200) -> None:
        """/readyz and the log name what is missing; the agent lives, and is ready unless that is etcd."""

        def said() -> bool:
            answer = ask(self.machine, "/readyz")
            return answer.status == status and text in answer.text and text in self.machine.log

        self.servers.wait(f"it misses {text}", said, within=WITHIN)
        self.lives()

    def lives(self) -> None:
        assert self.machine.process is not None and self.machine.process.poll() is None
        assert ask(self.machine, "/livez").status == 200

    def goes_on(self, tag: str, revision: str) -> None:
        """By itself: nobody touches it but with the push."""
        self.servers.wait_for_end(revision, within=WITHIN)
        assert self.servers.recorded(0)["image/web"] == tag
        well = (200, '{"ok":true,"reasons":[]}')

        def is_well() -> bool:
            answer = ask(self.machine, "/readyz")
            return (answer.status, answer.text) == well

        self.servers.wait("it misses nothing", is_well, within=WITHIN)
        self.lives()


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory, etcd_users: Users) -> Iterator[Surroundings]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    directory = tmp_path_factory.mktemp("away")
    authority = Authority.make(directory / "ca")
    certificate, key = authority.issue("git", "git")
    with (
        EtcdServer(users=etcd_users) as server,
        Client(options(server)) as client,
        fleet.running(Etcd(server, Keys(), client), directory) as servers,
        ExitStack() as stack,
    ):
        git_port, port = free_ports(2)
        git = Part(lambda: https_server(directory, certificate, key, git_port))
        images = Part(lambda: registry(directory / "registry", port))
        stack.callback(git.stop)
        stack.callback(images.stop)
        pushes = images.start()
        for tag in map(str, range(1, 7)):
            pushes.push("web", tag)
        told = {
            "repo": f"{git.start().url}/fleet.git",
            "verify": "none",
            "git-ca": authority.ca,
            "interval": "1s",
        }
        machine = servers.add(
            0, *(word for name, value in told.items() for word in (f"--{name}", str(value)))
        )
        servers.give_podman(machine)
        servers.start()
        made = Surroundings(servers, machine, server, git, images, pushes.address)
        made.goes_on(*made.push())
        yield made
        assert machine.terminate() == 0


@pytest.fixture
def around(surroundings: Surroundings) -> Iterator[Surroundings]:
    yield surroundings
    surroundings.servers.prove()


def test_etcd_is_killed(around: Surroundings) -> None:
    around.etcd.members[0].kill()
    pushed = around.push()
    around.says("etcd", status=503)
    around.etcd.members[0].start()
    around.goes_on(*pushed)


def test_git_is_killed(around: Surroundings) -> None:
    around.git.stop()
    pushed = around.push()
    around.says("git")
    around.git.start()
    around.goes_on(*pushed)


def test_the_registry_is_killed(around: Surroundings) -> None:
    around.images.stop()
    pushed = around.push()
    around.says(around.address)
    around.images.start()
    around.goes_on(*pushed)


def test_all_are_killed_together(around: Surroundings) -> None:
    around.etcd.members[0].kill()
    around.git.stop()
    around.images.stop()
    pushed = around.push()
    around.says("etcd", status=503)
    around.says("git", status=503)
    around.images.start()
    around.git.start()
    around.etcd.members[0].start()
    around.goes_on(*pushed)
