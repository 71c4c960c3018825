"""What the tests of `cli` share: the command on a part of the real etcd, a git repository, a server of its own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.host.driver import Host
from tests.cli.command import Command, of
from tests.cli.git import Repository
from tests.conftest import Etcd
from tests.debs import bare_host
from tests.podman import podman_below
from tests.release_server import ReleaseServer


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[ReleaseServer]:
    with ReleaseServer(tmp_path / "releases").serving() as server:
        yield server


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A server that has dpkg's database and knows who it is."""
    made = bare_host(tmp_path)
    (made.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    boot = made.root / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text(f"{uuid.uuid4()}\n")
    return made


@pytest.fixture
def podman_environment(tmp_path: Path, command: Command) -> Iterator[dict[str, str]]:
    """A podman of this test's own, which the command uses too."""
    if os.geteuid() != 0:
        pytest.skip("a server's podman is root's")
    with podman_below(tmp_path / "podman") as environment:
        command.environment.update(environment)
        yield dict(environment)


@pytest.fixture
def command(
    tmp_path: Path, etcd: Etcd, repository: Repository, host: Host, releases: ReleaseServer
) -> Command:
    """The command for that server, repository and etcd."""
    variables = {
        **of(etcd),
        "repo": str(repository.path),
        "host_root": str(host.root),
        "host_exec": "direct",
        "github_api": releases.url,
    }
    return Command(tmp_path, variables)
