"""Health checks against real servers, sockets and hooks."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reconciler.core.artifact import Check
from reconciler.errors import HeldBack
from reconciler.host.driver import Host
from reconciler.host.health import Unhealthy, check, look
from tests.ports import free_port


class Service:
    """An HTTP service whose answers a test sets."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"fine"
        self.moved: dict[str, str] = {}
        self.asked: list[str] = []


@contextlib.contextmanager
def _service() -> Iterator[tuple[Service, str]]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.asked.append(self.path)
            to = service.moved.get(self.path)
            self.send_response(302 if to else service.status)
            if to:
                self.send_header("Location", to)
            self.send_header("Content-Length", str(len(service.body)))
            self.end_headers()
            self.wfile.write(service.body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet: what was asked is in `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service, f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    with _service() as running:
        yield running


HOST = Host(lrn=3, hostname="boot-3")


def test_http_passes_on_a_success(service: tuple[Service, str]) -> None:
    state, address = service
    check(HOST, Check("http", f"http://{address}/health/$(lrn)", 5))
    assert state.asked == ["/health/3"]


def test_a_redirect_is_followed_and_is_no_success_itself(service: tuple[Service, str]) -> None:
    state, address = service
    state.moved = {"/old": "/new"}
    assert look(HOST, Check("http", f"http://{address}/old", 5)) is None
    assert state.asked == ["/old", "/new"]
    state.status = 503
    assert (look(HOST, Check("http", f"http://{address}/old", 5)) or "").startswith("status 503")
    state.status = 300
    assert (look(HOST, Check("http", f"http://{address}/", 5)) or "").startswith("status 300")


def test_http_is_tried_until_it_passes(service: tuple[Service, str]) -> None:
    state, address = service
    state.status = 503
    threading.Timer(0.3, lambda: setattr(state, "status", 200)).start()
    check(HOST, Check("http", f"http://{address}/", 10), interval=0.05)
    assert len(state.asked) > 2


def test_the_last_answer_is_in_the_message(service: tuple[Service, str]) -> None:
    state, address = service
    state.status, state.body = 503, b"no leader\x1b[31m yet"
    with pytest.raises(Unhealthy, match=r"server 3.*within 0.3 s.*status 503 no leader \[31m yet"):
        check(HOST, Check("http", f"http://{address}/", 0.3), interval=0.05)


def test_http_does_not_go_through_a_proxy(
    service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert look(HOST, Check("http", f"http://{service[1]}/", 5)) is None


def test_a_body_without_end_is_not_read(service: tuple[Service, str]) -> None:
    state, address = service
    state.body = b"x" * (20 << 20)
    assert look(HOST, Check("http", f"http://{address}/", 5)) is None


def test_tcp_passes_when_somebody_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        check(HOST, Check("tcp", f"127.0.0.1:{listener.getsockname()[1]}", 5))


def test_tcp_says_that_nobody_listens() -> None:
    with pytest.raises(Unhealthy, match="refused"):
        check(HOST, Check("tcp", f"127.0.0.1:{free_port()}", 0.2), interval=0.05)


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_one_that_accepts_and_says_nothing_is_bounded(kind: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        if kind == "http":
            with pytest.raises(Unhealthy):
                check(HOST, Check("http", f"http://{address}/", 0.5), interval=0.05)
        else:
            check(HOST, Check("tcp", address, 0.5), interval=0.05)
        assert time.monotonic() - started < 3


def test_a_server_that_drips_is_bounded() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def drip() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    for letter in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100:
                        connection.send(bytes([letter]))
                        time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        said = look(HOST, Check("http", f"http://127.0.0.1:{listener.getsockname()[1]}/", 0.5))
        assert said is not None
        assert time.monotonic() - started < 3


def test_an_agent_that_ends_does_not_wait_for_the_check() -> None:
    ending = threading.Event()
    ending.set()
    with pytest.raises(HeldBack):
        check(HOST, Check("tcp", f"127.0.0.1:{free_port()}", 60), ending=ending)


def _hook(root: Path, name: str, text: str) -> Host:
    hooks = root / "etc/reconciler/hooks"
    hooks.mkdir(parents=True)
    (hooks / name).write_text(f"#!/bin/sh\n{text}\n")
    (hooks / name).chmod(0o755)
    return Host(root=root, lrn=3)


roots = pytest.mark.skipif(os.getuid() != 0, reason="hooks must be root's")


@roots
def test_a_hook_passes_with_status_0(tmp_path: Path) -> None:
    host = _hook(tmp_path, "quorum", f"echo $RECONCILER_HOOK $RECONCILER_LRN > {tmp_path}/said")
    check(host, Check("hook", "quorum", 5))
    assert (tmp_path / "said").read_text() == "quorum 3\n"


@roots
def test_a_hook_that_fails_is_quoted(tmp_path: Path) -> None:
    host = _hook(tmp_path, "quorum", "echo two members are missing >&2; exit 1")
    with pytest.raises(Unhealthy, match="two members are missing"):
        check(host, Check("hook", "quorum", 0.3), interval=0.05)


@roots
def test_a_hook_that_hangs_is_ended(tmp_path: Path) -> None:
    host = _hook(tmp_path, "quorum", "sleep 60")
    started = time.monotonic()
    with pytest.raises(Unhealthy, match="did not end within"):
        check(host, Check("hook", "quorum", 0.5), interval=0.05)
    assert time.monotonic() - started < 5


def test_a_hook_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(Unhealthy, match="quorum"):
        check(Host(root=tmp_path), Check("hook", "quorum", 0.2), interval=0.05)
