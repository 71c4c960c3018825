"""A registry that misbehaves: a proxy in front of a real one that fails, hangs, cuts off, damages, or wants a login.

Used by the tests of containers. What a healthy registry cannot be made to show is done here and nowhere else.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["none", "500", "429", "hang", "cut off", "truncate", "damage"]


@dataclass
class Proxy:
    """What the proxy does, changed by the tests while it runs.

    `fault` hits requests whose path has `where` in it, `times` times (None: always). `login` wants `user:password`, by
    `scheme`; with a token nobody needs a login unless `login` is set.
    """

    address: str
    upstream: str
    fault: Fault = "none"
    where: str = "/blobs/"
    times: int | None = None
    login: str | None = None
    scheme: Literal["none", "basic", "bearer"] = "none"
    asked: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def repository(self, name: str) -> str:
        return f"{self.address}/{name}"

    def hits(self, path: str) -> Fault:
        """The fault for this request."""
        if self.fault == "none" or self.where not in path:
            return "none"
        if self.times is not None:
            if self.times == 0:
                return "none"
            self.times -= 1
        return self.fault


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy before the registry at `upstream`, for as long as the block runs."""
    server = _Server(("127.0.0.1", 0), _Handler)
    state = server.state = Proxy(f"127.0.0.1:{server.server_port}", upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


_TOKEN = "a-token-of-the-test"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    state: Proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def state(self) -> Proxy:
        assert isinstance(self.server, _Server)
        return self.server.state

    def do_GET(self) -> None:
        state = self.state
        state.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/token"):
            self._token()
        elif not self._allowed():
            self._challenge()
        else:
            self._forward(state.hits(self.path))

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet: what was asked is in `Proxy.asked`."""

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        match self.state.scheme:
            case "none":
                return True
            case "basic":
                return given == _basic(self.state.login or "")
            case "bearer":
                return given == f"Bearer {_TOKEN}"

    def _challenge(self) -> None:
        challenge = 'Basic realm="registry"'
        if self.state.scheme == "bearer":
            name = urllib.parse.urlsplit(self.path).path.removeprefix("/v2/").split("/manifests/")[0]
            challenge = (
                f'Bearer realm="http://{self.state.address}/token",service="the-test",'
                f'scope="repository:{name}:pull"'
            )
        self._answer(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', {"WWW-Authenticate": challenge})

    def _token(self) -> None:
        if self.state.login and self.headers.get("Authorization") != _basic(self.state.login):
            self._answer(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', {})
        else:
            self._answer(200, json.dumps({"token": _TOKEN, "expires_in": 300}).encode(), {})

    def _forward(self, fault: Fault) -> None:
        if fault in ("500", "429"):
            self._answer(int(fault), b"{}", {})
            return
        upstream = http.client.HTTPConnection(self.state.upstream, timeout=20)
        # The registry builds addresses from the name that it was asked by.
        headers = {"Host": self.headers["Host"], "Accept": self.headers.get("Accept", "*/*")}
        upstream.request(self.command, self.path, headers=headers)
        reply = upstream.getresponse()
        body = reply.read()
        passed = {
            name: value
            for name, value in reply.getheaders()
            if name.lower()
            in ("content-type", "docker-content-digest", "docker-distribution-api-version", "etag")
        }
        upstream.close()
        if self.command == "HEAD":
            passed["Content-Length"] = reply.getheader("Content-Length") or "0"
        self._misbehave(fault, reply.status, body, passed)

    def _misbehave(self, fault: Fault, status: int, body: bytes, headers: dict[str, str]) -> None:
        match fault:
            case "hang":
                self._start(status, len(body), headers)
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.state.released.wait(60)
                self.close_connection = True
            case "cut off":
                self._start(status, len(body), headers)
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            case "truncate":
                self._answer(status, body[: len(body) // 2], headers)
            case "damage":
                middle = len(body) // 2
                self._answer(status, body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :], headers)
            case _:
                self._answer(status, body, headers)

    def _start(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._start(status, len(body), headers)
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)


def _basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()
