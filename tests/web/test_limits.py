"""The server under clients that are slow, endless, many or wrong: by real sockets, with shorter times than it has."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from reconciler.core.report import ServerReport, Status
from reconciler.web.asking import BODY_LIMIT
from reconciler.web.connection import Limits
from reconciler.web.listener import Server
from tests.web.agent import Authority, Behind, ask, published, serving

SHORT = Limits(request=1.0, response=2.0, keep_alive=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(limits=SHORT) as running:
        yield running


def connect(server: Server, send: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    if send:
        client.sendall(send)
    return client


def seconds_until_closed(client: socket.socket, drip: bytes = b"", limit: float = 8.0) -> float:
    """How long the server keeps a client that sends `drip` every 0.1 s, if anything."""
    begun = time.monotonic()
    client.settimeout(0.1)
    while time.monotonic() - begun < limit:
        try:
            if drip:
                client.sendall(drip)
            if not client.recv(4096):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begun


def test_the_times_that_are_served_with_end_in_35_seconds() -> None:
    limits = Limits()
    assert limits.request + limits.response < 34
    assert limits.request <= 10


@pytest.mark.parametrize(
    ("sent", "drip"),
    [
        (b"", b""),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n", b""),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n"),
        (b"GET /livez HTTP/1.1\r\nx: ", b"a"),
        (b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n", b""),
        (b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n", b"a"),
        (b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n", b"a"),
        (b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", b""),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", b"G"),
    ],
    ids=[
        "says nothing",
        "half a head",
        "a header now and then",
        "an endless header",
        "no body",
        "a slow body",
        "a slow body that nobody wants",
        "slow chunks",
        "idles after its answer",
        "a slow second request",
    ],
)
def test_a_slow_client_is_hung_up(server: Server, sent: bytes, drip: bytes) -> None:
    with connect(server, sent) as client:
        assert seconds_until_closed(client, drip) < SHORT.request + SHORT.response + 1.5


def test_a_client_that_does_not_take_its_answer_is_hung_up() -> None:
    status = published().status
    assert status is not None
    with (
        serving(Behind(published(status=large(status))), limits=SHORT) as server,
        connect(server, b"GET /api/v1/status HTTP/1.1\r\nhost: x\r\n\r\n") as client,
    ):
        time.sleep(SHORT.request + SHORT.response + 1.5)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := client.recv(1 << 20):
                received += len(part)
        assert received < 16 << 20, "the whole answer waited for a client that did not read"


def large(status: Status) -> Status:
    """A status of more bytes than sockets hold."""
    template = status.servers[0]
    servers: tuple[ServerReport, ...] = tuple(
        replace(template, lrn=lrn, message="x" * 1000) for lrn in range(20_000)
    )
    return replace(status, servers=servers)


def test_an_answer_that_is_taken_late_but_in_time_arrives_whole() -> None:
    status = published().status
    assert status is not None
    with (
        serving(Behind(published(status=large(status))), limits=replace(SHORT, response=120.0)) as server,
        connect(server, b"GET /api/v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") as client,
    ):
        time.sleep(SHORT.request + 1.0)
        received = b""
        while part := client.recv(1 << 20):
            received += part
        assert len(received) > 16 << 20
        assert "locks" in json.loads(received.partition(b"\r\n\r\n")[2]), "it is whole"


def test_three_hundred_slow_clients_hold_nobody_up() -> None:
    kinds = (
        b"",
        b"GET /livez HTTP/1.1\r\n",
        b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n",
    )
    with serving() as server, contextlib.ExitStack() as crowd:
        for index in range(300):
            crowd.enter_context(connect(server, kinds[index % 3]))
        for path in ("/livez", "/readyz", "/metrics", "/api/v1/status", "/api/v1/plan"):
            took = []
            for _ in range(3):
                begun = time.monotonic()
                assert ask(server, path).status == 200
                took.append(time.monotonic() - begun)
            assert min(took) < 1.0, path


def test_where_all_connections_are_taken_the_one_that_waited_longest_makes_room() -> None:
    with (
        serving(limits=replace(SHORT, request=30.0, connections=20)) as server,
        contextlib.ExitStack() as crowd,
    ):
        clients = [crowd.enter_context(connect(server)) for _ in range(20)]
        assert ask(server, "/livez").status == 200
        assert seconds_until_closed(clients[0]) < 1
        clients[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            clients[-1].recv(1)


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_before_it_is_held(
    server: Server, tmp_path: Path, chunked: bool
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with serving(webhook_secret_file=secret) as hooked, connect(hooked) as client:
        if chunked:
            client.sendall(b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            part = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
            with contextlib.suppress(ConnectionError):
                for _ in range(BODY_LIMIT // 0x10000 + 2):
                    client.sendall(part)
        else:
            length = str(BODY_LIMIT + 1).encode()
            client.sendall(b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ncontent-length: " + length + b"\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with serving(webhook_secret_file=secret) as server:
        assert ask(server, "/hooks/git", "POST", b"a" * BODY_LIMIT).status == 401
        assert ask(server, "/hooks/git", "POST", b"a" * (BODY_LIMIT + 1)).status == 413


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000,
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 30_000,
    ],
    ids=["endless value", "large value", "large path", "many headers"],
)
def test_a_head_that_is_too_large_is_refused(server: Server, sent: bytes) -> None:
    with connect(server) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            answer = client.recv(4096)
            assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), answer
        assert seconds_until_closed(client) < 1
    assert ask(server, "/livez").status == 200


def test_endless_trailers_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with serving(webhook_secret_file=secret) as server, connect(server) as client:
        client.sendall(b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ")
        with pytest.raises(ConnectionError):
            for _ in range(2000):
                client.sendall(b"a" * 4096)


# --- what is no HTTP ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /hooks/git HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://[ HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x00" * 100,
        b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 200,
    ],
)
def test_what_is_no_request_is_answered_and_harms_nobody(server: Server, sent: bytes) -> None:
    with connect(server, sent) as client:
        answer = b""
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65536):
                answer += part
        assert b" 500 " not in answer
    assert ask(server, "/livez").status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_what_is_not_spoken_here_changes_nothing(server: Server, sent: bytes) -> None:
    with connect(server, sent) as client:
        client.settimeout(5)
        assert b" 101 " not in client.recv(4096)
    assert ask(server, "/livez").status == 200


# --- TLS ------------------------------------------------------------------------------------------------------------


def test_clients_that_never_end_their_handshake_are_hung_up_and_hold_nobody_up(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ca")
    cert, key = authority.issue("boot-0", "server")
    limits = replace(SHORT, connections=30)
    with (
        serving(tls_cert=cert, tls_key=key, limits=limits) as server,
        contextlib.ExitStack() as crowd,
    ):
        clients = [crowd.enter_context(connect(server, b"\x16\x03\x01"[: index % 4])) for index in range(60)]
        begun = time.monotonic()
        assert ask(server, "/livez", tls=authority.trusting()).status == 200
        assert time.monotonic() - begun < SHORT.request, "nobody had to be hung up first"
        assert seconds_until_closed(clients[-1]) < SHORT.request + 1.5
        assert ask(server, "/livez", tls=authority.trusting()).status == 200


def test_an_https_client_that_is_slow_after_its_handshake_is_hung_up(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ca")
    cert, key = authority.issue("boot-0", "server")
    with (
        serving(tls_cert=cert, tls_key=key, limits=SHORT) as server,
        connect(server) as raw,
        authority.trusting().wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            client.recv(1)
        assert time.monotonic() - begun < SHORT.request + 1.5


# --- the end --------------------------------------------------------------------------------------------------------


def test_closing_waits_for_no_slow_client_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with serving() as server:
        clients = [connect(server, b"GET /livez HTTP/1.1\r\n") for _ in range(5)]
        begun = time.monotonic()
        server.close()
        assert time.monotonic() - begun < 3
        for client in clients:
            client.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)


def test_while_nobody_is_connected_it_rests_and_then_knows_what_time_it_is() -> None:
    before = set(threading.enumerate())
    with serving() as server:
        (thread,) = set(threading.enumerate()) - before
        ask(server, "/livez")
        time.sleep(2.5)  # one more look at who is connected
        asleep = _times_woken(thread)
        time.sleep(2.5)
        assert _times_woken(thread) == asleep
        dated = parsedate_to_datetime(ask(server, "/livez").headers["date"]).timestamp()
        assert 0 <= time.time() - dated < 2


def _times_woken(thread: threading.Thread) -> int:
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    (times,) = (line.split()[1] for line in status.splitlines() if line.startswith("voluntary_ctxt"))
    return int(times)
