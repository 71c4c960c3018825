"""The one way to fetch over HTTP: bounded in time and bytes, resumed, checked, and published by a rename.

Called by the drivers and by what resolves releases and tags. Not pure, knows nothing of the domain. On urllib: what
matters here (one deadline over everything, a cap, no secret sent to another host) is not in the larger libraries
either, and this costs no dependency. Messages show an address without its user, password and query.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from reconciler.errors import HostError, ReconcilerError, Unavailable, Unfetchable

AGENT = "reconciler"
STALL = 30.0
"""Seconds without a byte after which a connection is given up, unless told otherwise."""

_ATTEMPTS = 4
_CHUNK = 1 << 18
_REDIRECTS = 8
_SPARE = 16 << 20
_SECRET_HEADERS = ("authorization", "cookie", "private-token", "proxy-authorization")

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the bytes in all (None while unknown)."""


class NotThere(Unfetchable):
    """The server says that there is no such thing."""


class NotAllowed(Unavailable):
    """The server wants a token, or another one: nothing wrong with what was asked for."""


class RateLimited(NotAllowed):
    """Too many requests: `wait` is how many seconds the server wants to be left alone, if it said so."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. `headers` have their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def download(
    url: str,
    to: Path,
    *,
    timeout: float,
    max_bytes: int,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    proxy: str | None = None,
    stall: float = STALL,
    progress: Progress | None = None,
) -> Path:
    """Fetch `url` into the file `to`, within `timeout` seconds in all and `max_bytes`; `to` is whole and on disk, or not there.

    `sha256` is 64 hex digits, `sha256:` before them allowed. With it a file that is there already and right is left,
    and what an interrupted download left in `<to>.part` is gone on with. `proxy` None: as the environment says.
    Raises `Unfetchable` (not there, too large, not what the checksum says), `Unavailable` (try again later) or
    `HostError` (the disk).
    """
    wanted = None if sha256 is None else digest_hex(sha256)
    if wanted and to.is_file() and file_sha256(to) == wanted:
        return to
    deadline = time.monotonic() + timeout
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with _part(to) as part:
            if wanted is None:
                part.file.truncate(0)
            request = _Request(
                url, dict(headers or {}), proxy, stall, max_bytes, progress, deadline, wanted is not None
            )
            resumed = _fetch_all(request, part.file)
            found = _digest(part.file)
            if wanted and found != wanted and resumed:
                # What was left by an earlier attempt may have been of something else: once more, from the beginning.
                part.file.truncate(0)
                _fetch_all(request, part.file)
                found = _digest(part.file)
            if wanted and found != wanted:
                raise Unfetchable(
                    f"cannot use {shown(url)}: its SHA-256 is {found}, and must be {wanted}; "
                    "either the file was changed after it was pinned, or it was damaged on its way"
                )
            part.publish(to)
    except OSError as error:
        raise _disk(error, to) from None
    return to


def fetch_json(
    url: str,
    *,
    timeout: float,
    max_bytes: int = 8 << 20,
    headers: Mapping[str, str] | None = None,
    proxy: str | None = None,
) -> Any:
    """The JSON document at `url`. Raises as `download` does; what is no JSON is `Unavailable` (a portal or proxy in between)."""
    wanted = {"Accept": "application/json", **(headers or {})}
    deadline = time.monotonic() + timeout
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            answer = ask(
                url,
                headers=wanted,
                timeout=max(0.1, deadline - time.monotonic()),
                max_bytes=max_bytes,
                proxy=proxy,
            )
            raise_for_status(url, answer.status, answer.headers)
            return json.loads(answer.body)
        except (ValueError, RecursionError):
            raise Unavailable(f"cannot read {shown(url)}: the answer is no JSON") from None
        except NotAllowed:
            raise
        except Unavailable:
            if attempt == _ATTEMPTS or not _pause(attempt, deadline):
                raise
    raise AssertionError("the last attempt returns or raises")


def ask(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    sent: bytes | None = None,
    timeout: float,
    max_bytes: int = 8 << 20,
    proxy: str | None = None,
    cut: bool = False,
) -> Answer:
    """One request and its answer, whatever its status; redirects are followed, but where something is `sent`. With `cut` only the first `max_bytes` are
    read of a longer body, else that is `Unfetchable`. Raises `Unavailable` where there is no whole answer.
    """
    request = _Request(
        url, dict(headers or {}), proxy, timeout, max_bytes, None, time.monotonic() + timeout, sent=sent
    )
    with request.answer(method) as (status, found, body):
        data = b""
        while len(data) <= max_bytes and (chunk := request.read(body, max_bytes + 1 - len(data))):
            data += chunk
        if len(data) > max_bytes and not cut:
            raise Unfetchable(f"cannot read {shown(url)}: it has more than {max_bytes} bytes")
        length = _length(found)
        if length is not None and len(data) < min(length, max_bytes) and method != "HEAD":
            raise Unavailable(f"cannot read {shown(url)}: it ended after {len(data)} of {length} bytes")
        return Answer(status, found, data[:max_bytes])


def raise_for_status(url: str, status: int, headers: Mapping[str, str]) -> None:
    """Turn a status that is no success into the error that says what to do about it."""
    if status < 400:
        return
    what = f"cannot fetch {shown(url)}: the server answered {status}"
    reason = http.client.responses.get(status)
    what += f" {reason}" if reason else ""
    if status == 429 or (
        status == 403 and (headers.get("x-ratelimit-remaining") == "0" or "retry-after" in headers)
    ):
        wait = _wait(headers)
        later = f" for {wait:.0f} s" if wait else ""
        raise RateLimited(
            f"{what}: too many requests, it wants to be left alone{later}; a token raises the limit", wait
        )
    if status in (401, 403, 407):
        raise NotAllowed(f"{what}: it wants a token, or one that may read this")
    if status in (404, 410):
        raise NotThere(f"{what}: check the name and the version, and, if it is private, the token")
    if status >= 500 or status in (408, 425):
        raise Unavailable(what)
    raise Unfetchable(what)


def shown(url: str) -> str:
    """`url` as a message may show it: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(no valid address)"
    host = f"[{host}]" if ":" in host else host
    return _printable(f"{parts.scheme}://{host}{port}{parts.path}")[:300]


def digest_hex(text: str) -> str:
    """The 64 lower-case hex digits of a SHA-256 with or without `sha256:` before it. Raises `Unfetchable` for anything else."""
    digits = text.removeprefix("sha256:").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise Unfetchable(f'cannot check anything against "{_printable(text)[:80]}": it is no SHA-256')
    return digits


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the file -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Part:
    """The file that a download grows in, ours alone as long as it is locked."""

    path: Path
    file: BufferedRandom

    def publish(self, to: Path) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.path.rename(to)
        directory = os.open(to.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def _part(to: Path) -> Iterator[_Part]:
    path = to.with_name(to.name + ".part")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o644), "r+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"cannot fetch {to.name}: it is being fetched already, into {path}") from None
        try:
            yield _Part(path, file)
        except Unfetchable:
            path.unlink(missing_ok=True)
            raise


def _digest(file: BufferedRandom) -> str:
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _disk(error: OSError, to: Path) -> ReconcilerError:
    hint = "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return HostError(f"cannot write {to}: {error.strerror or error}{hint}")


# --- the connection -------------------------------------------------------------------------------------------------


def _fetch_all(request: _Request, file: BufferedRandom) -> bool:
    """Fetch until the body is whole, going on where it broke off; whether bytes from before may be in it."""
    kept = file.seek(0, os.SEEK_END) > 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return request.append(file) and kept
        except NotAllowed:
            raise
        except Unavailable:
            if attempt == _ATTEMPTS or not _pause(attempt, request.deadline):
                raise
        if not request.resume:
            file.truncate(0)
    raise AssertionError("the last attempt returns or raises")


def _pause(attempt: int, deadline: float) -> bool:
    """Wait before the next attempt, longer each time; False, at once, where the time would be up by then."""
    wait = 0.25 * 2.0**attempt * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
    if time.monotonic() + wait >= deadline:
        return False
    time.sleep(wait)
    return True


@dataclass(slots=True)
class _Request:
    url: str
    headers: dict[str, str]
    proxy: str | None
    stall: float
    max_bytes: int
    progress: Progress | None
    deadline: float
    resume: bool = False
    sent: bytes | None = None

    def append(self, file: BufferedRandom) -> bool:
        """Fetch what is missing at the end of `file`; False where the server began anew, from the first byte."""
        have = file.seek(0, os.SEEK_END)
        extra = {"Range": f"bytes={have}-"} if have else {}
        with self.answer("GET", extra) as (status, headers, body):
            if status == 416:
                # Nothing is after what we have: it is whole, or it is of something else. The checksum tells.
                return True
            raise_for_status(self.url, status, headers)
            went_on = status == 206 and headers.get("content-range", "").startswith(f"bytes {have}-")
            if not went_on:
                have = 0
                file.seek(0)
                file.truncate(0)
            self._copy(file, have, _length(headers), body)
            return went_on

    def _copy(self, file: BufferedRandom, have: int, length: int | None, body: IO[bytes]) -> None:
        total = None if length is None else have + length
        if total is not None:
            self._room(file, total, total - have)
        while chunk := self.read(body, _CHUNK):
            have += len(chunk)
            if have > self.max_bytes:
                file.truncate(0)
                raise self._too_large()
            file.write(chunk)
            if self.progress:
                self.progress(have, total)
        if total is not None and have < total:
            raise Unavailable(f"cannot fetch {shown(self.url)}: it ended after {have} of {total} bytes")

    def _room(self, file: BufferedRandom, total: int, missing: int) -> None:
        if total > self.max_bytes:
            raise self._too_large()
        found = os.fstatvfs(file.fileno())
        free = found.f_bavail * found.f_frsize
        if missing + min(_SPARE, missing) > free:
            raise HostError(
                f"cannot fetch {shown(self.url)}: it takes {missing / 1e6:.1f} MB more and {free / 1e6:.1f} MB are "
                "free in the state directory; make room there"
            )

    def _too_large(self) -> Unfetchable:
        return Unfetchable(f"cannot fetch {shown(self.url)}: it has more than {self.max_bytes} bytes")

    def read(self, body: IO[bytes], count: int) -> bytes:
        """At most `count` bytes, as soon as some are there; empty at the end."""
        with self._explained():
            # read1 returns what one recv brings: a dripping body cannot keep us past the deadline.
            data: bytes = body.read1(min(count, _CHUNK))  # type: ignore[attr-defined]  # HTTPResponse has it
        if time.monotonic() > self.deadline:
            raise self._late()
        return data

    @contextlib.contextmanager
    def answer(
        self, method: str, extra: Mapping[str, str] | None = None
    ) -> Iterator[tuple[int, dict[str, str], IO[bytes]]]:
        """Send the request: the status, the headers by lower-case name, and the body to be read with `read`."""
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise Unfetchable(f"cannot fetch {shown(self.url)}: only http and https addresses are fetched")
        sockets: list[socket.socket] = []
        # A server that drips its headers defeats every time-out of a single recv: at the deadline the connection is cut.
        timer = threading.Timer(max(0.0, self.deadline - time.monotonic()), _cut, (sockets,))
        timer.daemon = True
        timer.start()
        try:
            with self._explained():
                url, login = _login(self.url)
                headers = {"User-Agent": AGENT, **login, **self.headers, **(extra or {})}
                request = urllib.request.Request(url, self.sent, headers, method=method)  # noqa: S310 - looked at above
                response = _opener(self.proxy, sockets).open(request, timeout=self._limit())
            with contextlib.closing(response):
                yield (
                    response.status,
                    {name.lower(): value for name, value in response.headers.items()},
                    response,
                )
        finally:
            timer.cancel()

    def _limit(self) -> float:
        return max(0.05, min(self.stall, self.deadline - time.monotonic()))

    def _late(self) -> Unavailable:
        return Unavailable(f"cannot fetch {shown(self.url)}: it was not there in the time that it may take")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What may go wrong on a connection, in words."""
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= self.deadline:
                raise self._late() from None
            raise Unavailable(f"cannot fetch {shown(self.url)}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    match cause:
        case TimeoutError():
            return "nothing came for too long"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {cause.verify_message}"
        case socket.gaierror():
            return f"the host's name is not known: {cause.strerror}"
        case http.client.IncompleteRead() | http.client.RemoteDisconnected():
            return "the connection was closed in the middle"
        case OSError():
            return cause.strerror or type(cause).__name__
        case http.client.HTTPException():
            return f"the answer is no HTTP ({type(cause).__name__})"
        case _:
            return _printable(str(cause))[:200]


def _cut(sockets: list[socket.socket]) -> None:
    for connected in list(sockets):
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)


def _opener(proxy: str | None, sockets: list[socket.socket]) -> urllib.request.OpenerDirector:
    proxies = None if proxy is None else ({"http": proxy, "https": proxy} if proxy else {})
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(proxies),
        _Http(sockets),
        _Https(sockets),
        _Redirect(),
    ):
        opener.add_handler(handler)
    return opener


class _Http(urllib.request.HTTPHandler):
    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._sockets = sockets

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        sockets = self._sockets

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return self.do_open(Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._sockets = sockets

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        sockets = self._sockets

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return self.do_open(Connection, req)


class _Redirect(urllib.request.BaseHandler):
    """Follows redirects: within http and https, never from https to http, and with no secret to another host."""

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        location = response.headers.get("Location")
        if response.status not in (301, 302, 303, 307, 308) or not location or request.data is not None:
            return response
        response.close()
        return self._follow(request, location)

    https_response = http_response

    def _follow(self, request: urllib.request.Request, location: str) -> http.client.HTTPResponse:
        url = urljoin(request.full_url, location)
        before, after = urlsplit(request.full_url), urlsplit(url)
        if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == ("https", "http"):
            raise OSError(errno.EPERM, f"it redirects to {shown(url)}, which is not followed")
        followed = getattr(request, "redirects", 0) + 1
        if followed > _REDIRECTS:
            raise OSError(errno.ELOOP, "it redirects too often")
        same = (before.scheme, before.hostname, before.port) == (after.scheme, after.hostname, after.port)
        headers = {
            name: value
            for name, value in {**request.headers, **request.unredirected_hdrs}.items()
            if name.lower() != "host" and (same or name.lower() not in _SECRET_HEADERS)
        }
        onward = urllib.request.Request(url, headers=headers, method=request.get_method())  # noqa: S310 - as above
        onward.redirects = followed  # type: ignore[attr-defined]  # the count travels with the request
        answer: http.client.HTTPResponse = self.parent.open(onward, timeout=request.timeout)
        return answer


def _login(url: str) -> tuple[str, dict[str, str]]:
    """The address without user and password, and the header that says them."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    coded = base64.b64encode(unquote(login).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {coded}"}


# --- headers --------------------------------------------------------------------------------------------------------


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds until the server wants to be asked again, from `Retry-After` or GitHub's reset time."""
    with contextlib.suppress(ValueError):
        if after := headers.get("retry-after"):
            return min(86400.0, max(0.0, float(after)))
        if reset := headers.get("x-ratelimit-reset"):
            return min(86400.0, max(0.0, float(reset) - time.time()))
    return None


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
