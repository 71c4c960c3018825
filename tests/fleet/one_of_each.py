"""One server with something of each driver: packages, a container, an image that is only kept, and a netboot image.

Its agent is a real one, with a podman, a registry and release servers of its own. Used by the tests of drift and of kills.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.flatcar_server import KERNEL, release_server
from tests.fleet.fleet import Machine, Servers
from tests.fleet.machine import NETBOOT
from tests.podman import podman
from tests.ports import free_port
from tests.registry import Registry, registry

OS = {"1": "3139.2.1", "2": "3227.2.0"}
"""The OS image that goes with each version of the others."""


@dataclass
class OneOfEach:
    """The server, and where its web server listens."""

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
    def netboot(self) -> Path:
        return self.root / NETBOOT.lstrip("/")

    @property
    def kernel(self) -> Path:
        return self.netboot / "current" / KERNEL

    def podman(self, *words: str) -> str:
        return podman(self.machine.environment, *words, check=True)

    def push(self, version: str = "1", **policy: Any) -> str:
        """Ask for `1` or `2` of everything."""
        script = f"trap 'exit 0' TERM; httpd -p {self.port} -h /www; while :; do sleep 1000 & wait $!; done"
        container = {"args": ["sh", "-c", script], "health": {"http": f"http://127.0.0.1:{self.port}/"}}
        wanted = [
            {
                "name": "web",
                "repository": self.images.repository("web"),
                "tag": version,
                "container": container,
            },
            {"name": "kept", "repository": self.images.repository("kept"), "tag": version},
        ]
        group = {"name": "boot", "servers": [0], "osImage": {"driver": "netboot", "directory": NETBOOT}}
        return self.servers.push(
            {"tool": f"{version}.0", "filed": f"{version}.0"},
            policy=policy,
            groups=[group],
            sets=[{"images": wanted, "osImage": {"channel": "stable", "version": OS[version]}}],
        )

    def answers(self, version: str = "1") -> bool:
        """Whether the web server says that it is of this version."""
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2) as reply,
        ):
            return bool(reply.read().decode() == version)
        return False


@contextlib.contextmanager
def one_of_each(servers: Servers, directory: Path, *arguments: str) -> Iterator[OneOfEach]:
    """Add server 0, with these arguments for its agent, and start it; it is ended with the block."""
    with (
        registry(directory / "registry") as images,
        release_server(directory / "flatcar") as flatcar,
    ):
        for version, os_version in OS.items():
            images.push("web", version)
            images.push("kept", version, f"kept {version}")
            flatcar.release("stable", os_version)
        machine = servers.add(0, "--flatcar-url", flatcar.url, *arguments)
        servers.give_podman(machine)
        servers.start()
        yield OneOfEach(servers, images, free_port())
        servers.end()
