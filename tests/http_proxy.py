"""A proxy that leads nowhere: it notes what it is asked for, and says that it has none of it. For tests of who asks it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """`url` is its address; `asked` has the method and address of each request, in order."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def http_proxy() -> Iterator[HttpProxy]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            proxy.asked.append(f"{self.command} {self.path}")
            self.send_error(404)

        do_HEAD = do_CONNECT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy = HttpProxy(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()
