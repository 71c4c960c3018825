"""A bounded HTTP server in one thread of this process. Called by `app` and `fleetlock`.

uvicorn without what is the process's own: it installs no signal handler and touches no logging. It runs its loop once a
second, to hang up on slow clients, and not ten times; and not at all while nobody is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import re
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from reconciler.errors import ReconcilerError, UsageError
from reconciler.web.certificates import Certificates
from reconciler.web.connection import Config, Connection, Limits

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<host>[^:]*)):(?P<port>[0-9]{1,5})")
_PULSE = 1.0
_START_TIME = 10.0
_GOODBYE = 2
# What a name means that this machine has no address for: it is there without IPv6, say.
_NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen (`host:port`; port 0 is a free one), and the files for HTTPS, if it is to be HTTPS."""

    address: str
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    limits: Limits = Limits()


class Server:
    """A server on its address. `port` is where it listens; `close` ends it and waits for its thread."""

    def __init__(
        self, listen: Listen, sockets: list[socket.socket], certificates: Certificates | None
    ) -> None:
        self._listen, self._sockets, self._certificates = listen, sockets, certificates
        self.port: int = sockets[0].getsockname()[1]
        self.only_local = all(
            ipaddress.ip_address(str(bound.getsockname()[0]).partition("%")[0]).is_loopback
            for bound in sockets
        )
        self._server: _Uvicorn | None = None
        self._thread: threading.Thread | None = None

    def start(self, application: Starlette) -> None:
        """Serve `application` from now on."""
        config = Config(
            application,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,  # who asks is who is connected, whatever a header says
            server_header=False,
            date_header=False,  # uvicorn's is as old as its loop's last turn: the connection sets it
            headers=[("cache-control", "no-store"), ("x-content-type-options", "nosniff")],
            timeout_keep_alive=self._listen.limits.keep_alive,
            timeout_graceful_shutdown=_GOODBYE,
        )
        config.certificates, config.limits = self._certificates, self._listen.limits
        self._server = server = _Uvicorn(config)
        config.connected = server.connected
        self._thread = threading.Thread(target=self._serve, args=(server,), name="http", daemon=True)
        self._thread.start()
        if not server.listens.wait(_START_TIME):
            raise ReconcilerError(f"cannot serve HTTP on {self._listen.address}: the server did not start")
        scheme = "https" if config.certificates else "http"
        log.info("serves %s on %s, port %d", scheme, self._listen.address, self.port)

    def close(self) -> None:
        """End it: requests under way get a little time, slow clients none."""
        if self._server:
            self._server.end()
        if self._thread:
            self._thread.join(_GOODBYE + _START_TIME)
        for bound in self._sockets:
            bound.close()

    def _serve(self, server: _Uvicorn) -> None:
        try:
            asyncio.run(server.serve(sockets=self._sockets))
        except Exception:
            log.exception("the HTTP server has ended")


def bind(listen: Listen) -> Server:
    """Take the address, and say what stands against it. Raises `UsageError`; `start` on what is returned serves."""
    if bool(listen.tls_cert) != bool(listen.tls_key):
        raise UsageError(
            "cannot serve HTTPS: --tls-cert and --tls-key go together, and one of them is missing"
        )
    if listen.client_ca and not listen.tls_cert:
        raise UsageError("cannot check clients' certificates: --client-ca wants --tls-cert and --tls-key")
    found = _ADDRESS.fullmatch(listen.address)
    if not found or int(found["port"]) > 65535:
        raise UsageError(f"cannot listen on {listen.address!r}: host:port is wanted, as in 127.0.0.1:8470")
    certificates = (
        Certificates(listen.tls_cert, listen.tls_key, listen.client_ca)
        if listen.tls_cert and listen.tls_key
        else None
    )
    sockets = _bound(listen.address, found["six"] or found["host"], int(found["port"]))
    return Server(listen, sockets, certificates)


def _bound(address: str, host: str | None, port: int) -> list[socket.socket]:
    """One socket for each address that `host` means; without a host, for all of this machine's."""
    sockets: list[socket.socket] = []
    trouble: OSError | None = None
    try:
        meant = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in dict.fromkeys((entry[0], entry[4]) for entry in meant):
            # The other addresses of the same name get the port that the first one got.
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                sockets.append(_socket(family, (place[0], chosen, *place[2:])))
            except OSError as error:
                trouble = error
                if error.errno not in _NOT_HERE:
                    raise
    except OSError as error:
        trouble = error
        while sockets:
            sockets.pop().close()
    if not sockets:
        why = (trouble.strerror or str(trouble)) if trouble else "it has no address"
        raise UsageError(f"cannot listen on {address}: {why}; give another --listen")
    return sockets


def _socket(family: int, place: tuple[Any, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(place)
    except OSError:
        bound.close()
        raise
    return bound


class _Uvicorn(uvicorn.Server):
    """uvicorn's server with a slower pulse, and an eye on slow clients."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._called = asyncio.Event()

    def end(self) -> None:
        """End in order. May be called from any thread."""
        self.should_exit = True
        if self._loop:
            # Between the end of the loop and its being closed there is nothing left to wake.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._called.set)

    def connected(self) -> None:
        """One more is about to be: from the first one on there is somebody who may be slow."""
        if not self.server_state.connections:
            self._called.set()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.listens.set()
        while not await self.on_tick(0):
            now = self._loop.time()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, Connection) and connection.is_overdue(now):
                    connection.hang_up()
            self._called.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._called.wait(), _PULSE if self.server_state.connections else None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, Connection) and connection.is_waiting:
                connection.hang_up()
        await super().shutdown(sockets)
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.hang_up()
