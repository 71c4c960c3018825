"""A proxy between a gRPC client and its server that knows HTTP/2's frames, so that a fault hits one request at its exact moment.

A `Road` is one client's way to several servers: a proxy for each. What goes to the servers is looked at request by
request; where all the texts of a `Moment` stand in one, the moment's `do` is called before the request goes on, and
says what becomes of it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

_PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_DATA, _HEADERS, _END_STREAM = 0, 1, 1
_TICK = 0.05


class Fate(Enum):
    """What becomes of a request."""

    GOES_ON = 0
    IS_HELD = 1
    """It arrives only at `let_go`, however long its client has given it up."""
    LOSES_ITS_REPLY = 2
    """It arrives, and its connection ends when the answer comes back."""
    IS_DROPPED = 3
    """Its connection ends before it has arrived."""


@dataclass
class Moment:
    """A request that holds all of `texts`, the first on any of its roads. `come` is set when it has come, and `do` has returned."""

    texts: tuple[bytes, ...]
    do: Callable[[], Fate | None]
    come: threading.Event = field(default_factory=threading.Event)
    _first: threading.Lock = field(default_factory=threading.Lock)

    def judge(self, request: bytes) -> Fate | None:
        """What becomes of `request`; None where it is not the one."""
        if not all(text in request for text in self.texts) or not self._first.acquire(blocking=False):
            return None
        fate = self.do() or Fate.GOES_ON
        self.come.set()
        return fate


class Road:
    """One client's way to the servers on `ports` of 127.0.0.1 and what happens on it."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.delay = 0.0
        """Seconds for each direction."""
        self.closed = False
        """Nothing gets through, in either direction, and no connection ends: what was sent arrives when it opens again."""
        self.moments: tuple[Moment, ...] = ()
        self.answered_late = 0
        """Requests that were held, let go and answered."""
        self._proxies = [_Proxy(self, port) for port in ports]

    @property
    def endpoints(self) -> str:
        return ",".join(proxy.endpoint for proxy in self._proxies)

    def judge(self, request: bytes) -> Fate:
        fates = [fate for moment in self.moments if (fate := moment.judge(request))]
        return fates[-1] if fates else Fate.GOES_ON

    def let_go(self) -> None:
        """Deliver every request that is held."""
        for proxy in self._proxies:
            for link in proxy.links:
                link.let_go()

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        for proxy in self._proxies:
            proxy.cut()

    def clear(self) -> None:
        """No fault any more: no delay, no moment; what was held goes on."""
        self.moments = ()
        self.delay, self.closed = 0.0, False
        self.let_go()

    def end(self) -> None:
        self.clear()
        for proxy in self._proxies:
            proxy.end()


class _Proxy:
    """Takes connections on a port of its own and makes one to `port` for each."""

    def __init__(self, road: Road, port: int) -> None:
        self._road, self._port = road, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.links: list[_Link] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port), 5)
                except OSError:
                    client.close()
                    continue
                self.links = [link for link in self.links if not link.ended]
                self.links.append(_Link(self._road, client, server))

    def cut(self) -> None:
        for link in self.links:
            link.end()

    def end(self) -> None:
        # Closing alone would not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


class _Link:
    """One connection through a proxy."""

    def __init__(self, road: Road, client: socket.socket, server: socket.socket) -> None:
        self._road, self._client, self._server = road, client, server
        self.ended = False
        self._mutex = threading.Lock()
        self._held = b""
        """A request that waits for `let_go`. What its client sends after it is lost: the server must not hear that it was given up."""
        self._owed: set[int] = set()
        """Streams whose request is or was held, and not answered yet."""
        self._awaited: set[int] = set()
        """Streams whose answer must not come back."""
        for way in ((client, server, self._request, _PREFACE), (server, client, self._reply, 0)):
            threading.Thread(target=self._carry, args=way, daemon=True).start()

    def let_go(self) -> None:
        with self._mutex, contextlib.suppress(OSError):
            self._server.sendall(self._held)
            self._held = b""

    def end(self) -> None:
        """Also where another thread is reading: closing alone would leave a connection open until that has read."""
        self.ended = True
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _carry(
        self,
        source: socket.socket,
        target: socket.socket,
        judge: Callable[[bytes], bool],
        preface: int,
    ) -> None:
        """Carry piece by piece, each after the road's delay, as far as `judge` lets it pass."""
        waiting: deque[tuple[float, bytes]] = deque()
        rest, over = b"", False
        with contextlib.suppress(OSError, ValueError):
            while not self.ended and not (over and not waiting):
                busy = waiting or self._road.closed
                if not over and select.select([source], [], [], _TICK if busy else 1.0)[0]:
                    data = source.recv(1 << 16)
                    over = not data
                    pieces, rest, preface = _pieces(rest + data, preface)
                    waiting.extend((time.monotonic() + self._road.delay, piece) for piece in pieces)
                elif over:
                    time.sleep(_TICK)
                while waiting and not self._road.closed and waiting[0][0] <= time.monotonic():
                    _, piece = waiting.popleft()
                    if judge(piece):
                        self._send(target, piece)
        # A request that is held arrives although its client has gone: the server must not hear of that.
        if not (source is self._client and self._owed):
            self.end()

    def _send(self, target: socket.socket, piece: bytes) -> None:
        try:
            with self._mutex:
                target.sendall(piece)
        except OSError:
            if not (target is self._client and self._owed):
                raise

    def _request(self, piece: bytes) -> bool:
        if self._owed:
            return False
        match self._road.judge(piece):
            case Fate.IS_HELD:
                with self._mutex:
                    self._held = piece
                    self._owed.add(_stream(piece))
                return False
            case Fate.LOSES_ITS_REPLY:
                self._awaited.add(_stream(piece))
            case Fate.IS_DROPPED:
                self.end()
                return False
            case Fate.GOES_ON:
                pass
        return True

    def _reply(self, piece: bytes) -> bool:
        stream = _stream(piece)
        if stream in self._owed and piece[3] in (_HEADERS, _DATA) and not piece[4] & _END_STREAM:
            self._owed.discard(stream)
            self._road.answered_late += 1
        if stream in self._awaited:
            self.end()
            return False
        return True


def _pieces(data: bytes, preface: int) -> tuple[list[bytes], bytes, int]:
    """What can be carried on of `data`, what is left, and how much of the preface is still to come.

    A piece is a frame, or a request whole: its headers with its message. Headers wait for what follows them.
    """
    pieces: list[bytes] = []
    if preface:
        if len(data) < preface:
            return pieces, data, preface
        pieces.append(data[:preface])
        data = data[preface:]
    opened = b""
    while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3], "big")):
        frame, data = data[:size], data[size:]
        kind, of_the_same = frame[3], opened and _stream(frame) == _stream(opened)
        if kind == _HEADERS and not frame[4] & _END_STREAM:
            # Headers are compressed by what came before them, so these must not pass the others.
            pieces += [opened] if opened else []
            opened = frame
        elif of_the_same and kind != _DATA:
            opened += frame
        elif of_the_same:
            pieces.append(opened + frame)
            opened = b""
        else:
            pieces.append(frame)
    return pieces, opened + data, 0


def _stream(frame: bytes) -> int:
    """The stream of a frame."""
    return int.from_bytes(frame[5:9], "big") & 0x7FFFFFFF


def when(roads: Iterable[Road], texts: Iterable[str], do: Callable[[], Fate | None]) -> Moment:
    """Call `do` when a request with all of `texts` comes on one of `roads`, once."""
    moment = Moment(tuple(text.encode() for text in texts), do)
    for road in roads:
        road.moments += (moment,)
    return moment
