"""A small real HTTP server that speaks GitHub's release API, and fails as it is told.

Used by the tests of downloads and packages. As a program: `python -m tests.release_server DIRECTORY [PORT]` serves
`DIRECTORY/<owner>/<repository>/<tag>/<file>` and prints its address. Files are read at each request.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

Fault = Literal[
    "500",
    "404",
    "403",
    "rate-limit",
    "hang",
    "hang-headers",
    "truncate",
    "corrupt",
    "drip",
    "endless",
    "close",
]


@dataclass(slots=True)
class Order:
    """A fault for the requests whose path holds `part`: the next `times` of them (negative: all)."""

    part: str
    fault: Fault
    times: int = -1


@dataclass(slots=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(slots=True)
class ReleaseServer:
    """The releases below `directory`. `token` is asked for where it is set; `digests` says whether the API gives them."""

    directory: Path
    token: str | None = None
    digests: bool = True
    orders: list[Order] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    port: int = 0
    host: str = "127.0.0.1"
    closing: threading.Event = field(default_factory=threading.Event)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def storage(self) -> str:
        """The same server by another name, where assets are redirected to: another host, as a token must see it."""
        return f"http://localhost:{self.port}" if self.host == "127.0.0.1" else self.url

    def add(self, owner: str, repository: str, tag: str, *files: Path) -> None:
        """Put files into a release."""
        place = self.directory / owner / repository / tag
        place.mkdir(parents=True, exist_ok=True)
        for file in files:
            (place / file.name).write_bytes(file.read_bytes())

    def fail(self, part: str, fault: Fault, times: int = -1) -> None:
        self.orders.append(Order(part, fault, times))

    def paths(self) -> list[str]:
        return [request.path for request in self.seen]

    def fault(self, path: str) -> Fault | None:
        with self._mutex:
            for order in self.orders:
                if order.part in path and order.times:
                    order.times -= 1
                    return order.fault
        return None

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[ReleaseServer]:
        """Serve on loopback until the block ends."""
        server = ThreadingHTTPServer((self.host, port), _handler(self))
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            server.shutdown()
            server.server_close()

    # --- what it answers -------------------------------------------------------------------------------------------

    def release(self, owner: str, repository: str, tag: str) -> dict[str, Any] | None:
        place = self.directory / owner / repository / tag
        if not place.is_dir():
            return None
        files = sorted(place.iterdir())
        return {"tag_name": tag, "assets": [self._asset(owner, repository, tag, file) for file in files]}

    def _asset(self, owner: str, repository: str, tag: str, file: Path) -> dict[str, Any]:
        content = file.read_bytes()
        return {
            "name": file.name,
            "size": len(content),
            "url": f"{self.url}/repos/{owner}/{repository}/releases/assets/{tag}/{file.name}",
            "browser_download_url": f"{self.url}/{owner}/{repository}/releases/download/{tag}/{file.name}",
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}" if self.digests else None,
        }

    def file(self, owner: str, repository: str, tag: str, name: str) -> bytes | None:
        place = self.directory / owner / repository / tag / name
        return place.read_bytes() if place.is_file() else None


def _handler(releases: ReleaseServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        server_of = releases

    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: ReleaseServer

    def log_message(self, format: str, *args: Any) -> None:
        """What was answered, for the report of a test that fails; tests themselves look at `seen`."""
        sys.stderr.write(f"{self.server_of.url} from {self.server_of.directory}: {format % args}\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server_of.seen.append(Seen(self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        with suppress(BrokenPipeError, ConnectionResetError):
            self._fail_or_answer(path)

    def _fail_or_answer(self, path: str) -> None:
        match fault := self.server_of.fault(path):
            case "500":
                self._say(500, {"message": "server error"})
            case "404":
                self._say(404, {"message": "Not Found"})
            case "403":
                self._say(403, {"message": "Resource not accessible"})
            case "rate-limit":
                reset = str(int(time.time()) + 90)
                limit = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
                self._say(403, {"message": "API rate limit exceeded"}, limit)
            case "hang":
                self.server_of.closing.wait(60)
                self.close_connection = True
            case "hang-headers":
                self._drip(b"HTTP/1.1 200 OK\r\n", b"X-Slow: 1\r\n")
            case "close":
                self.close_connection = True
            case _:
                self._answer(path, fault)

    def _answer(self, path: str, fault: Fault | None) -> None:
        match path.strip("/").split("/"):
            case ["repos", owner, repository, "releases", "tags", tag]:
                self._release(owner, repository, tag)
            case ["repos", owner, repository, "releases", "assets", tag, name]:
                self._asset(owner, repository, tag, name)
            case [owner, repository, "releases", "download", tag, name] if not self._private():
                self._redirect(f"/files/{owner}/{repository}/{tag}/{name}?signature=s3cr3t")
            case ["files", owner, repository, tag, name]:
                self._file(self.server_of.file(owner, repository, tag, name), fault)
            case _:
                self._say(404, {"message": "Not Found"})

    def _private(self) -> bool:
        return self.server_of.token is not None

    def _allowed(self) -> bool:
        wanted = self.server_of.token
        return wanted is None or self.headers.get("Authorization") in (f"Bearer {wanted}", f"token {wanted}")

    def _release(self, owner: str, repository: str, tag: str) -> None:
        found = self.server_of.release(owner, repository, tag) if self._allowed() else None
        self._say(200 if found else 404, found or {"message": "Not Found"})

    def _asset(self, owner: str, repository: str, tag: str, name: str) -> None:
        # GitHub says 404, and not 403, to whoever may not see a private repository.
        if not self._allowed():
            self._say(404, {"message": "Not Found"})
        elif self.headers.get("Accept") == "application/octet-stream":
            self._redirect(f"/files/{owner}/{repository}/{tag}/{name}?signature=s3cr3t")
        else:
            self._say(200, {"name": name})

    def _redirect(self, path: str) -> None:
        self.send_response(302)
        self.send_header("Location", self.server_of.storage + path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _say(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, content: bytes | None, fault: Fault | None) -> None:
        if content is None:
            self._say(404, {"message": "Not Found"})
            return
        begin = self._begin(len(content))
        if begin is None:
            self._say(416, {"message": "Range Not Satisfiable"}, {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if fault != "endless":
            self.send_header("Content-Length", str(len(content) - begin))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self._body(content[begin:], fault)

    def _begin(self, size: int) -> int | None:
        wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
        return int(wanted) if int(wanted) < max(size, 1) else None

    def _body(self, content: bytes, fault: Fault | None) -> None:
        match fault:
            case "truncate":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            case "corrupt":
                self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
            case "drip":
                self._drip(b"", b"x")
            case "endless":
                while not self.server_of.closing.is_set():
                    self.wfile.write(b"x" * 65536)
            case _:
                self.wfile.write(content)

    def _drip(self, first: bytes, again: bytes) -> None:
        self.wfile.write(first)
        while not self.server_of.closing.wait(0.05):
            self.wfile.write(again)
            self.wfile.flush()
        self.close_connection = True


def main(directory: str, port: str = "0") -> None:
    """Serve until ended."""
    with ReleaseServer(Path(directory)).serving(int(port)) as server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
