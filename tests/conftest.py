"""What all tests share: a real etcd, a fresh prefix in it, and the marker for programs that may be missing."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import settings

from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.transaction import delete_under
from tests.etcd_server import EtcdServer, etcdctl
from tests.etcd_users import ROOT, Users, make_users

# The same examples at each run: what `make test` finds comes from the change and not by chance. `make soak` looks elsewhere.
settings.register_profile("same", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


_LONGEST = ("tests/test_container.py", "tests/test_examples.py", "tests/fleet/", "tests/cli/", "tests/host/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: what is short fills up the end, where several processes share the tests."""

    def place(item: pytest.Item) -> int:
        return next(
            (index for index, name in enumerate(_LONGEST) if item.nodeid.startswith(name)), len(_LONGEST)
        )

    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, by name, a test whose programs are missing."""
    for marker in item.iter_markers("needs"):
        missing = [program for program in marker.args if shutil.which(program) is None]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")


@dataclass(frozen=True)
class Etcd:
    """One test's part of a real etcd: keys that no other test uses, from the etcd revision `since` on.

    Where the etcd has users, `client` and the others here are root's unless another user is named.
    """

    server: EtcdServer
    keys: Keys
    client: Client
    since: int = 1

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    @property
    def prefix(self) -> str:
        return self.keys.prefix

    @property
    def lock_prefix(self) -> str:
        return self.keys.lock_prefix

    @property
    def users(self) -> Users | None:
        return self.server.users

    def options(self, user: str = ROOT) -> EtcdOptions:
        """What a client of `user`'s needs."""
        return options(self.server, user)

    def flags(self, user: str) -> list[str]:
        """The same for the command line, without the endpoint."""
        return self.users.flags(user) if self.users is not None else []

    def new_client(self, timeout: float = 5.0, user: str = ROOT) -> Client:
        """Another connection, as another process would have."""
        return Client(self.options(user), timeout)

    def emptied(self) -> Etcd:
        """The same, once every key of it is deleted."""
        folders = [delete_under(self.prefix), delete_under(self.keys.lock)]
        return replace(self, since=self.client.txn([], folders).revision + 1)


def options(server: EtcdServer, user: str = ROOT) -> EtcdOptions:
    endpoints = (server.endpoint,)
    return server.users.options(endpoints, user) if server.users is not None else EtcdOptions(endpoints)


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


@pytest.fixture(scope="session")
def etcd_users(tmp_path_factory: pytest.TempPathFactory) -> Users:
    """The users and roles of a fleet: `EtcdServer(users=etcd_users)` has authentication on."""
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("needs etcd and etcdctl")
    # Hashing a password well takes a tenth of a second, and here are twenty.
    with EtcdServer(arguments=("--bcrypt-cost", "4")) as server:
        users = make_users(server.endpoint, tmp_path_factory.mktemp("users"))
        etcdctl(server.endpoint, "snapshot", "save", str(users.snapshot), login=users.login(ROOT))
    return users


@pytest.fixture(scope="session")
def secured_server(etcd_users: Users) -> Iterator[EtcdServer]:
    """One real etcd with authentication on, for all tests that do it no harm."""
    with EtcdServer(users=etcd_users) as server:
        yield server


@pytest.fixture
def secured_etcd(secured_server: EtcdServer) -> Iterator[Etcd]:
    """Empty, under the keys for which the roles are."""
    with Client(options(secured_server)) as client:
        yield Etcd(secured_server, Keys(), client).emptied()


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdServer]:
    """Three members of one cluster, which a test may kill and pause."""
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("needs etcd and etcdctl")
    with EtcdServer(members=3) as server:
        yield server
