"""One HTTP connection with bounds: of its head, of its time, of how many there are. Made by uvicorn, for `listener`.

uvicorn itself waits for ever for a client that says nothing, and takes a head of any size. TLS is begun here and not by
the listening socket, so that a connection counts from its first packet on, and each gets the newest certificate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from reconciler.web.certificates import Certificates

_PIPELINED = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """How much, and how long, a client may make us wait: `request`, `response` and `keep_alive` in seconds.

    `head`: bytes of a request that are not its body (request line, headers, what frames chunks, trailers). `request`: to
    connect and send a whole request; `response`: for the answer to be made and taken; `keep_alive`: between two requests.
    `connections`: at a time; for one more, the one that has let us wait longest is closed.
    """

    head: int = 64 << 10
    request: float = 10.0
    response: float = 20.0
    keep_alive: int = 5
    connections: int = 400


class Config(uvicorn.Config):
    """uvicorn's configuration, with what it does not know."""

    certificates: Certificates | None = None
    limits: Limits = Limits()
    connected: Callable[[], None] = staticmethod(lambda: None)
    """Called for each new connection."""


class _TooMany(Exception):
    """More requests wait on this connection for the answers before them than may."""


class Connection(HttpToolsProtocol):
    """A connection that is closed when its client is slow, and never holds more than its bounds."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        ours = config if isinstance(config, Config) else Config
        self._certificates, self._limits, self._connected = ours.certificates, ours.limits, ours.connected
        self._socket: asyncio.Transport | None = None
        self._early = b""
        self._lost = False
        self._too_large = False
        self._begin()

    def _begin(self) -> None:
        """A new exchange: its time and its bytes count from here."""
        self._since = self.loop.time()
        self._received = self._body = 0

    # --- coming and going -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._socket = transport
        self._make_room()
        self._connected()
        if self._certificates is None:
            super().connection_made(transport)
            return
        transport.pause_reading()
        self.connections.add(self)
        task = self.loop.create_task(self._secure(transport, self._certificates))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _secure(self, transport: asyncio.Transport, certificates: Certificates) -> None:
        try:
            secured = await self.loop.start_tls(
                transport,
                self,
                certificates.context(),
                server_side=True,
                ssl_handshake_timeout=self._limits.request,
                ssl_shutdown_timeout=self._limits.request,
            )
        except OSError:  # no TLS, a wrong certificate, or gone: one of theirs
            self.connections.discard(self)
            transport.abort()
            return
        if self._lost or secured is None:
            return
        super().connection_made(secured)
        # What came with the end of the handshake was handed over before we were told that it has ended.
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self.transport is None:
            self.connections.discard(self)
            return
        super().connection_lost(exc)

    def _make_room(self) -> None:
        if len(self.connections) < self._limits.connections:
            return
        waiting = [other for other in self.connections if isinstance(other, Connection) and other.is_waiting]
        if waiting:
            min(waiting, key=lambda other: other._since).hang_up()

    @property
    def is_waiting(self) -> bool:
        """Whether it is the client's turn: to send its request, or the rest of it."""
        cycle = self._exchange
        if cycle is None or cycle.more_body:
            return True
        return cycle.response_complete and not self.transport.get_write_buffer_size()

    @property
    def _exchange(self) -> RequestResponseCycle | None:
        """The request that came last; None before the first."""
        return self.cycle

    def is_overdue(self, now: float) -> bool:
        """Whether the client has let us wait too long, at `now` by the loop's clock."""
        return now - self._since > (self._limits.request if self.is_waiting else self._limits.response)

    def hang_up(self) -> None:
        """Close at once, whatever is under way."""
        self.connections.discard(self)
        if self._socket is not None:
            self._socket.abort()

    # --- bytes ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._lost:
            return
        if self.transport is None:
            self._early += data
            return
        self._received += len(data)
        super().data_received(data)
        if self._received - self._body > self._limits.head and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _PIPELINED:
            raise _TooMany
        date = (b"date", formatdate(usegmt=True).encode())
        self.server_state.default_headers = [date, *self.config.encoded_headers]
        super().on_headers_complete()
        self.scope["state"]["client_names"] = _names(self.transport.get_extra_info("peercert"))

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._since = self.loop.time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._begin()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or too large a one, and close. In the middle of an answer there is nothing to say."""
        cycle = self._exchange
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.hang_up()
            return
        line = b"431 Request Header Fields Too Large" if self._too_large else b"400 Bad Request"
        self.transport.write(b"HTTP/1.1 " + line + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


def _names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The names that a client's certificate, already verified, says it has: DNS names, and the common name."""
    if not certificate:
        return ()
    alternative = [entry[1] for entry in certificate.get("subjectAltName", ()) if entry[0] == "DNS"]
    subject = [
        value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"
    ]
    return tuple(dict.fromkeys([*alternative, *subject]))
