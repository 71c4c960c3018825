"""A TCP proxy between a client and a real server, which can be slow, cut, or lose what it carries. For tests.

`delay` (seconds) holds every piece in both directions. `lose_replies` lets requests through and drops what comes
back, then cuts. `hold` keeps what comes next on each connection that is open now until `let_go`, which delivers it
late; new connections are not held. `cut` ends all connections.

A socket is closed by the thread that reads it, and by nobody else: others shut it down. A number that is closed while a
thread is about to read it is soon another socket's, of which that thread would take what was not meant for it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

REQUEST_WITHIN = 0.3
"""Seconds in which a held request is complete: clients under test wait longer before they give up."""


class Proxy:
    """Listens on a free port of 127.0.0.1 and connects each client to `port`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay = 0.0
        self.lose_replies = False
        self.refuse = False
        self._held: dict[socket.socket, threading.Event] = {}
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hold(self) -> None:
        """Keep the next request of each open connection, and lose what follows it: its client gives up, and it still arrives."""
        with self._lock:
            for client, _ in self._pairs:
                self._held[client] = threading.Event()

    def let_go(self) -> None:
        """Deliver what is held."""
        with self._lock:
            for event in self._held.values():
                event.set()

    def cut(self) -> None:
        """End all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _end(end)

    def close(self) -> None:
        self._closed = True
        self.let_go()
        _end(self._listener)
        self._accepting.join()
        self.cut()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            while not self._closed:
                client, _ = self._listener.accept()
                if self.refuse or self._closed:
                    client.close()
                else:
                    threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """One connection, from its beginning to its end."""
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._target), 5) as server,
        ):
            server.settimeout(None)
            with self._lock:
                if self._closed:
                    return
                self._pairs.append((client, server))
            replies = threading.Thread(target=self._replies, args=(server, client), daemon=True)
            replies.start()
            self._requests(client, server)
            replies.join()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                time.sleep(self.delay)
                if client in self._held:
                    data += self._rest_of(client)
                    self._held[client].wait()
                    server.sendall(data)
                    return  # and the server does not hear that its client is gone, until `close`
                server.sendall(data)
        _end(server)

    @staticmethod
    def _rest_of(client: socket.socket) -> bytes:
        """What follows soon: the request is in it, and that its client gave it up is not."""
        rest, end = b"", time.monotonic() + REQUEST_WITHIN
        with contextlib.suppress(TimeoutError):
            while (left := end - time.monotonic()) > 0:
                client.settimeout(left)
                rest += client.recv(1 << 16)
        client.settimeout(None)
        return rest

    def _replies(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                time.sleep(self.delay)
                if self.lose_replies:
                    # What came may be no more than an acknowledgement: the server gets the time to do what it was asked.
                    time.sleep(REQUEST_WITHIN)
                    break
                client.sendall(data)
        for end in (client, server):
            _end(end)


def _end(connection: socket.socket) -> None:
    """Wake whoever waits for it: nothing comes any more."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
