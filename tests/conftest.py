"""What all tests share: a real etcd, a fresh prefix in it, and the marker for programs that may be missing."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from tests.etcd_server import EtcdServer


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, by name, a test whose programs are missing."""
    for marker in item.iter_markers("needs"):
        missing = [program for program in marker.args if shutil.which(program) is None]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")


@dataclass(frozen=True)
class Etcd:
    """One test's part of a real etcd: keys that no other test uses."""

    server: EtcdServer
    keys: Keys
    client: Client

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    @property
    def prefix(self) -> str:
        return self.keys.prefix

    @property
    def lock_prefix(self) -> str:
        return self.keys.lock_prefix

    def new_client(self, timeout: float = 5.0) -> Client:
        """Another connection, as another process would have."""
        return Client(EtcdOptions((self.endpoint,)), timeout)


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """One real etcd for all tests that do it no harm."""
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("needs etcd and etcdctl")
    with EtcdServer() as server:
        yield server


@pytest.fixture
def etcd(etcd_server: EtcdServer) -> Iterator[Etcd]:
    name = secrets.token_hex(6)
    with Client(EtcdOptions((etcd_server.endpoint,))) as client:
        yield Etcd(etcd_server, Keys(f"/test/{name}/", f"test.example/{name}/rebootlock"), client)


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdServer]:
    """Three members of one cluster, which a test may kill and pause."""
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("needs etcd and etcdctl")
    with EtcdServer(members=3) as server:
        yield server
