"""One fleet for each test, on an etcd with authentication. When the test is over, it must have kept promises 1 and 8 (`fleet.running`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Etcd
from tests.etcd_server import EtcdServer
from tests.etcd_users import Users
from tests.fleet import fleet
from tests.fleet.cluster import Cluster, at_the_cluster


@pytest.fixture
def etcd(secured_etcd: Etcd) -> Etcd:
    """Each agent has its own server's rights and no others; what a test reads and plants itself, it does as root."""
    return secured_etcd


@pytest.fixture
def servers(etcd: Etcd, tmp_path: Path) -> Iterator[fleet.Servers]:
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("git", "dpkg", "dpkg-deb")):
        pytest.skip("needs git, dpkg, dpkg-deb, and root")
    with fleet.running(etcd, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def three_members(etcd_users: Users) -> Iterator[EtcdServer]:
    """One cluster for the tests of a file, which put right what they do to it."""
    with EtcdServer(members=3, users=etcd_users) as server:
        yield server


@pytest.fixture
def cluster(three_members: EtcdServer, tmp_path: Path) -> Iterator[Cluster]:
    """A fleet whose agents have roads of their own to three members."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("git", "dpkg", "dpkg-deb")):
        pytest.skip("needs git, dpkg, dpkg-deb, and root")
    with at_the_cluster(three_members, tmp_path) as found:
        yield found
