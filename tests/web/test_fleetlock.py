"""FleetLock by real HTTP over a real etcd: the protocol, what it may not touch, and a hundred clients at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.semaphore import Holder
from reconciler.errors import UsageError
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.lock import RebootLock
from reconciler.store.lock_view import Taken
from reconciler.store.session import Session
from reconciler.web.fleetlock import FULL, FleetLockOptions, serve_fleetlock
from reconciler.web.listener import Listen, Server
from tests.cli import command as cli
from tests.conftest import Etcd
from tests.etcd_server import EtcdServer, etcdctl
from tests.web.agent import Answer, Authority, Listening, ask

pytestmark = pytest.mark.needs("etcd", "etcdctl")

HEADER = {"fleet-lock-protocol": "true"}
PRE_REBOOT, STEADY_STATE = "/v1/pre-reboot", "/v1/steady-state"


@contextmanager
def fleetlock(client: Client, keys: Keys, *groups: str, listen: Listen | None = None) -> Iterator[Server]:
    server = serve_fleetlock(FleetLockOptions(listen or Listen("127.0.0.1:0"), groups), client, keys)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server(etcd: Etcd) -> Iterator[Server]:
    with fleetlock(etcd.client, etcd.keys, "workers", "default") as running:
        yield running


@dataclass(frozen=True, slots=True)
class Command:
    """`reconcile fleetlock`, a process of its own."""

    process: subprocess.Popen[str]
    port: int


@contextmanager
def command(etcd: Etcd, directory: Path, *words: str) -> Iterator[Command]:
    process = subprocess.Popen(
        [sys.executable, "-m", "reconciler", "fleetlock", "--listen", "127.0.0.1:0", *words],
        env=cli.Command(directory, cli.of(etcd)).whole_environment({}),
        cwd=directory,
        stderr=subprocess.PIPE,
        text=True,
    )
    too_late = threading.Timer(60.0, process.kill)
    too_late.start()
    try:
        says = re.compile(r"FleetLock at 127\.0\.0\.1:0, port (\d+), for workers, default\n")
        said = next(found for line in process.stderr or () if (found := says.match(line)))
        yield Command(process, int(said[1]))
    finally:
        too_late.cancel()
        process.kill()
        process.communicate()


def call(server: Listening, path: str, id: str = "m1", group: str = "workers", **how: Any) -> Answer:
    body = json.dumps({"client_params": {"id": id, "group": group}}).encode()
    return ask(server, path, "POST", body, HEADER, **how)


def holders(etcd: Etcd, group: str = "workers") -> list[str]:
    text = etcdctl(etcd.endpoint, "get", "--print-value-only", etcd.keys.semaphore(group))
    return list(json.loads(text)["holders"]) if text else []


def test_a_clients_whole_exchange(etcd: Etcd, server: Server) -> None:
    for _ in range(2):
        answer = call(server, PRE_REBOOT)
        assert (answer.status, answer.body) == (200, b"")
        assert holders(etcd) == ["m1"]
    record = json.loads(
        etcdctl(etcd.endpoint, "get", "--print-value-only", etcd.keys.holder("workers", "m1"))
    )
    assert (record["source"], record["reason"]) == ("fleetlock", "FleetLock, from 127.0.0.1")
    assert abs(record["startTime"] - time.time()) < 60
    assert "lrn" not in record
    for _ in range(2):
        answer = call(server, STEADY_STATE)
        assert (answer.status, answer.body) == (200, b"")
        assert holders(etcd) == []
    assert etcdctl(etcd.endpoint, "get", etcd.keys.holder("workers", "m1")) == ""


def test_the_command_serves_the_groups_that_it_is_told_until_it_is_ended(etcd: Etcd, tmp_path: Path) -> None:
    with command(etcd, tmp_path, "--lock-groups", "workers,default") as served:
        assert call(served, PRE_REBOOT).status == 200
        assert call(served, PRE_REBOOT, id="m2").status == 409
        assert call(served, PRE_REBOOT, group="rack").json["kind"] == "bad_group"
        assert call(served, STEADY_STATE).status == 200
        assert call(served, PRE_REBOOT, id="m2").status == 200
        served.process.terminate()
        assert served.process.wait(20) == 0
    assert holders(etcd) == ["m2"], "its end frees nothing"


def test_asking_again_writes_nothing(etcd: Etcd, server: Server) -> None:
    call(server, PRE_REBOOT)
    before = etcd.client.read(()).revision
    call(server, PRE_REBOOT)
    call(server, STEADY_STATE, id="m2")
    assert etcd.client.read(()).revision == before


def test_when_no_slot_is_free_it_is_409_and_says_who_holds(server: Server) -> None:
    call(server, PRE_REBOOT)
    answer = call(server, PRE_REBOOT, id="m2")
    assert answer.status == 409
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["kind"] == FULL == "failed_lock_semaphore_full"
    assert "held by m1, max 1" in answer.json["value"]
    call(server, STEADY_STATE)
    assert call(server, PRE_REBOOT, id="m2").status == 200


def test_each_group_has_its_own_slots(server: Server) -> None:
    assert call(server, PRE_REBOOT, id="m1", group="workers").status == 200
    assert call(server, PRE_REBOOT, id="m2", group="default").status == 200
    assert call(server, STEADY_STATE, id="m1", group="default").status == 200
    assert call(server, PRE_REBOOT, id="m3", group="workers").status == 409


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "bad_request"),
        (b"{", "bad_request"),
        (b"[" * 200_000, "bad_request"),
        (b"\xff", "bad_request"),
        (b"[]", "bad_request"),
        (b"{}", "bad_request"),
        (b'{"client_params": []}', "bad_request"),
        (b'{"client_params": {"group": "workers"}}', "bad_identity"),
        (b'{"client_params": {"id": "", "group": "workers"}}', "bad_identity"),
        (b'{"client_params": {"id": 7, "group": "workers"}}', "bad_identity"),
        (b'{"client_params": {"id": null, "group": "workers"}}', "bad_identity"),
        (b'{"client_params": {"id": "../../etc", "group": "workers"}}', "bad_identity"),
        (b'{"client_params": {"id": "a/b", "group": "workers"}}', "bad_identity"),
        (b'{"client_params": {"id": "a\\nb", "group": "workers"}}', "bad_identity"),
        (b'{"client_params": {"id": "' + b"a" * 129 + b'", "group": "workers"}}', "bad_identity"),
        (b'{"client_params": {"id": "m1"}}', "bad_group"),
        (b'{"client_params": {"id": "m1", "group": ""}}', "bad_group"),
        (b'{"client_params": {"id": "m1", "group": "work ers"}}', "bad_group"),
        (b'{"client_params": {"id": "m1", "group": "work/ers"}}', "bad_group"),
        (b'{"client_params": {"id": "m1", "group": "unserved"}}', "bad_group"),
    ],
)
@pytest.mark.parametrize("path", [PRE_REBOOT, STEADY_STATE])
def test_what_is_wrong_is_400_in_json(etcd: Etcd, server: Server, path: str, body: bytes, kind: str) -> None:
    answer = ask(server, path, "POST", body, HEADER)
    assert answer.status == 400
    assert set(answer.json) == {"kind", "value"}
    assert answer.json["kind"] == kind
    assert etcdctl(etcd.endpoint, "get", "--prefix", etcd.keys.lock) == ""


@pytest.mark.parametrize("headers", [{}, {"fleet-lock-protocol": "false"}, {"fleet-lock-protocol": ""}])
def test_without_the_protocols_header_it_is_400(server: Server, headers: Mapping[str, str]) -> None:
    body = b'{"client_params": {"id": "m1", "group": "workers"}}'
    answer = ask(server, PRE_REBOOT, "POST", body, headers)
    assert (answer.status, answer.json["kind"]) == (400, "bad_request")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_anything_but_post_is_405(server: Server, method: str) -> None:
    for path in (PRE_REBOOT, STEADY_STATE):
        answer = ask(server, path, method, headers=HEADER)
        assert answer.status == 405
        assert method == "HEAD" or answer.json["kind"] == "method_not_allowed"


def test_another_path_is_404_and_a_large_body_413(server: Server) -> None:
    assert call(server, "/v1/reboot").json["kind"] == "no_such_call"
    assert ask(server, PRE_REBOOT, "POST", b"a" * ((1 << 20) + 1), HEADER).status == 413


# --- what it may not touch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "holder", [Holder("m1", "agent", 3), Holder("m1", "operator")], ids=["agent", "operator"]
)
def test_a_slot_that_is_not_fleetlocks_is_neither_freed_nor_shared(
    etcd: Etcd, server: Server, holder: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    lock = RebootLock(etcd.client, etcd.keys, "workers")
    assert isinstance(lock.take(holder), Taken)
    assert call(server, STEADY_STATE).status == 200
    assert holders(etcd) == ["m1"]
    assert f"its slot of lock group workers stays, it is the {holder.source}'s" in caplog.text
    answer = call(server, PRE_REBOOT)
    assert (answer.status, answer.json["kind"]) == (409, "failed_lock_other_holder")
    held = lock.holder_of("m1")
    assert held is not None
    assert held.owner == holder.owner


def test_a_holder_whom_locksmith_wrote_stays(etcd: Etcd, server: Server) -> None:
    document = '{"semaphore": 0, "max": 1, "holders": ["m1"], "note": "kept"}'
    etcdctl(etcd.endpoint, "put", etcd.keys.semaphore("workers"), document)
    assert call(server, STEADY_STATE).status == 200
    assert call(server, PRE_REBOOT, id="m2").status == 409
    assert holders(etcd) == ["m1"]


def test_it_never_queues_and_goes_before_nobody_who_waits(etcd: Etcd, server: Server) -> None:
    lock = RebootLock(etcd.client, etcd.keys, "workers")
    with Session(etcd.client, 30) as session:
        waiter, _ = lock.enqueue(session, Holder("m9", "agent", 9))
        answer = call(server, PRE_REBOOT)
        assert (answer.status, answer.json["kind"]) == (409, FULL)
        assert holders(etcd) == []
        lock.leave(waiter)
    assert call(server, PRE_REBOOT).status == 200


def test_a_document_that_is_none_is_an_error_and_never_overwritten(etcd: Etcd, server: Server) -> None:
    key = etcd.keys.semaphore("workers")
    etcdctl(etcd.endpoint, "put", key, "not json")
    answer = call(server, PRE_REBOOT)
    assert (answer.status, answer.json["kind"]) == (500, "failed_lock")
    assert key in answer.json["value"]
    assert etcdctl(etcd.endpoint, "get", "--print-value-only", key).strip() == "not json"


# --- many, and none -------------------------------------------------------------------------------------------------


def test_a_hundred_clients_at_once(etcd: Etcd, server: Server) -> None:
    RebootLock(etcd.client, etcd.keys, "workers").set_max(30)
    answers: Counter[int] = Counter()

    def client(number: int) -> None:
        answers[call(server, PRE_REBOOT, id=f"m{number}").status] += 1

    together = [threading.Thread(target=client, args=(number,)) for number in range(100)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert answers == {200: 30, 409: 70}
    assert len(set(holders(etcd))) == len(holders(etcd)) == 30
    for id in holders(etcd):
        assert call(server, STEADY_STATE, id=id).status == 200
    assert holders(etcd) == []


def test_etcd_away_is_503_and_it_goes_on_by_itself() -> None:
    with (
        EtcdServer() as etcd_server,
        Client(EtcdOptions((etcd_server.endpoint,)), timeout=2.0) as client,
        fleetlock(client, Keys(), "workers") as server,
    ):
        assert call(server, PRE_REBOOT).status == 200
        (member,) = etcd_server.members
        member.pause()
        answer = call(server, PRE_REBOOT, id="m2")
        assert (answer.status, answer.json["kind"]) == (503, "failed_lock_unavailable")
        member.resume()
        etcd_server.wait_until_it_serves()
        assert call(server, STEADY_STATE).status == 200


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_with_client_certificates_one_may_ask_for_oneself_only(
    etcd: Etcd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority.make(tmp_path / "ca")
    cert, key = authority.issue("lock", "server")
    m1 = authority.trusting(authority.issue("m1", "m1"))
    m2 = authority.trusting(authority.issue("m2", "m2"))
    stranger = authority.trusting(Authority.make(tmp_path / "other").issue("m1", "m1"))
    listen = Listen("127.0.0.1:0", cert, key, authority.ca)
    with fleetlock(etcd.client, etcd.keys, "workers", listen=listen) as server:
        assert call(server, PRE_REBOOT, tls=m1).status == 200
        for path in (PRE_REBOOT, STEADY_STATE):
            answer = call(server, path, id="m1", tls=m2)
            assert (answer.status, answer.json["kind"]) == (400, "bad_identity")
        assert holders(etcd) == ["m1"]
        for nobody in (authority.trusting(), stranger):
            with pytest.raises(OSError):
                call(server, STEADY_STATE, tls=nobody)
        assert holders(etcd) == ["m1"]
        assert call(server, STEADY_STATE, tls=m1).status == 200
    assert "certificate names m2" in caplog.text


@pytest.mark.parametrize(
    ("groups", "problem"),
    [((), "name the lock groups"), (("work ers",), "letters, digits, dots and hyphens")],
)
def test_the_groups_must_be_named(etcd: Etcd, groups: tuple[str, ...], problem: str) -> None:
    with (
        pytest.raises(UsageError, match=problem),
        fleetlock(etcd.client, etcd.keys, *groups),
    ):
        pass


def test_elsewhere_than_on_loopback_without_certificates_it_warns(
    etcd: Etcd, caplog: pytest.LogCaptureFixture
) -> None:
    with fleetlock(etcd.client, etcd.keys, "workers", listen=Listen("0.0.0.0:0")) as server:
        assert call(server, PRE_REBOOT).status == 200
    assert "whoever reaches it may hold the slots of workers" in caplog.text
