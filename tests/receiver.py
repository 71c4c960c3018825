"""A web server that notifications are sent to: it answers as it is told, and keeps what came."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """Answers with `statuses`, one after the other, then 200. `bodies` are those that were taken."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.bodies: list[dict[str, object]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                if status == 200:
                    receiver.bodies.append(json.loads(body))
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/SECRET"

    def events(self, kind: str = "") -> list[dict[str, object]]:
        """What came over the plain webhook, all of it or one kind of event."""
        return [body for body in tuple(self.bodies) if body.get("event") and kind in ("", body["event"])]

    def wait_for(self, *kinds: str, within: float = 15.0) -> bool:
        """Whether these kinds of events have come."""
        end = time.monotonic() + within
        while not set(kinds) <= {body["event"] for body in self.events()}:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver, for as long as the block runs."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
