"""A client's login to an etcd with users: tokens that expire, a password that is changed, rights that are changed, and many threads."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.errors import ReconcilerError, Unavailable
from reconciler.store.client import Client
from reconciler.store.keys import Keys
from reconciler.store.transaction import one, put, under
from tests.etcd_server import EtcdServer, etcdctl
from tests.etcd_users import ROOT, Users, agent

KEYS = Keys()
EXPIRED = 2.5
"""Seconds after which etcd has forgotten a token of a second; it looks once a second."""


def a_read(client: Client) -> None:
    client.read([one(KEYS.rollout)])


def a_write(client: Client) -> None:
    assert client.txn([], [put(KEYS.server_status(0), "{}")]).succeeded


@pytest.fixture(scope="module")
def forgetful(etcd_users: Users) -> Iterator[EtcdServer]:
    """An etcd that forgets a token after a second without a use."""
    with EtcdServer(users=etcd_users, arguments=("--auth-token-ttl", "1")) as server:
        yield server


@pytest.fixture
def client(forgetful: EtcdServer, etcd_users: Users) -> Iterator[Client]:
    with Client(etcd_users.options(forgetful.endpoints, agent(0))) as client:
        yield client


def refusals(client: Client) -> int:
    return client.counts.get("error UNAUTHENTICATED", 0)


def test_many_threads_whose_token_expires_at_once_all_go_on(client: Client) -> None:
    """One asks for a new one, and nobody gives up because another one has it already."""
    a_read(client)
    time.sleep(EXPIRED)
    before = refusals(client)
    assert together(12, lambda: a_read(client), lambda: a_write(client)) == []
    assert refusals(client) > before, "the token had expired"


def together(number: int, *works: Callable[[], object]) -> list[Exception]:
    """Do each in so many threads, all at the same time; what went wrong in any."""
    troubles: list[Exception] = []
    start = threading.Barrier(number * len(works))

    def run(work: Callable[[], object]) -> None:
        start.wait()
        try:
            work()
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works * number]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return troubles


def test_a_watch_that_is_refused_for_its_token_is_made_with_another(client: Client) -> None:
    """An agent at rest asks for nothing but its lease, which needs no token: nobody else renews it."""
    lease, _ = client.grant(30)
    time.sleep(EXPIRED)
    assert client.refresh(lease) > 0
    with pytest.raises(Unavailable, match="invalid auth token"):
        next(iter(client.open_watch([under(KEYS.status)], [1])))
    stream = client.open_watch([under(KEYS.status)], [1])
    assert next(iter(stream)).revision == 0
    stream.cancel()
    client.revoke(lease)
    assert client.refresh(lease) == 0


def test_an_etcd_that_was_restarted(etcd_users: Users) -> None:
    with (
        EtcdServer(users=etcd_users) as server,
        Client(etcd_users.options(server.endpoints, agent(0))) as client,
    ):
        a_write(client)
        server.members[0].kill()
        server.members[0].start()
        server.wait_until_it_serves()
        a_write(client)


def test_a_password_that_is_changed_in_etcd_and_then_in_the_file(etcd_users: Users, tmp_path: Path) -> None:
    """In between nothing goes, and it says why; afterwards it goes on by itself."""
    users = etcd_users.copied(tmp_path, ROOT, agent(0))
    with (
        EtcdServer(users=users) as server,
        Client(users.options(server.endpoints, agent(0))) as client,
    ):
        a_write(client)
        server.etcdctl("user", "passwd", agent(0), "--interactive=false", stdin="another\n")
        with pytest.raises(ReconcilerError, match=r"cannot log in to etcd .*agent-0\.password"):
            a_write(client)
        users.password_file(agent(0)).write_text("another\n")
        a_write(client)


def test_authentication_that_is_turned_off_and_on_while_the_client_works(etcd_users: Users) -> None:
    with EtcdServer(users=etcd_users) as server:
        server.etcdctl("auth", "disable")
        with Client(etcd_users.options(server.endpoints, agent(0))) as client:
            a_write(client)
            etcdctl(server.endpoint, "auth", "enable")
            a_write(client)
            a_read(client)


@pytest.mark.needs("openssl")
def test_rights_that_are_changed_make_a_signed_token_old(etcd_users: Users, tmp_path: Path) -> None:
    """A JWT carries the revision of etcd's users: whenever anybody's rights change, everybody's token is refused."""
    private, public = tmp_path / "key", tmp_path / "key.pub"
    for words in (
        ("genrsa", "-out", str(private), "2048"),
        ("rsa", "-in", str(private), "-pubout", "-out", str(public)),
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
    kind = f"jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m"
    with (
        EtcdServer(users=etcd_users, arguments=("--auth-token", kind)) as server,
        Client(etcd_users.options(server.endpoints, agent(0))) as client,
    ):
        a_write(client)
        for number in range(3):
            server.etcdctl("role", "add", f"another-{number}")
            assert together(8, lambda: a_write(client)) == []
        stream = client.open_watch([under(KEYS.status)], [1])
        assert next(iter(stream)).revision == 0
        stream.cancel()
