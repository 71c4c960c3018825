"""Waits until a health check passes: HTTP, TCP or a hook. Called by the performer of `health` steps; not pure, changes nothing.

Each try is bounded and all of them together by the check's own timeout; what was last seen is in the message.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import assert_never

from reconciler.core.artifact import Check
from reconciler.errors import HeldBack, HostError, UsageError
from reconciler.host.definition import substitute
from reconciler.host.driver import Host
from reconciler.host.hooks import run_hook

_TRY = 5.0
_BODY = 200


class Unhealthy(HostError):
    """A health check did not pass within its time."""


def check(host: Host, wanted: Check, *, ending: threading.Event | None = None, interval: float = 1.0) -> None:
    """Try `wanted` every `interval` seconds until it passes. Raises `Unhealthy` with the last answer once its timeout is over.

    Where `ending` is set meanwhile it raises `HeldBack`: nothing is known yet, and the check begins anew after a restart.
    """
    target = substitute(wanted.target, host)
    ending = ending or threading.Event()
    deadline = time.monotonic() + wanted.timeout
    while True:
        left = max(0.2, deadline - time.monotonic())
        problem = _try(host, wanted, target, min(_TRY, left) if wanted.kind != "hook" else left)
        if problem is None:
            return
        if time.monotonic() + interval >= deadline:
            raise Unhealthy(
                f"server {host.lrn} is not healthy: {wanted.kind} {target} did not pass within "
                f"{wanted.timeout:g} s; the last answer: {problem}"
            )
        if ending.wait(interval):
            raise HeldBack(
                f"the health check {wanted.kind} {target} of server {host.lrn} was left off: the agent ends"
            )


def look(host: Host, wanted: Check) -> str | None:
    """One try of a check: None where it passes, else what is wrong."""
    return _try(host, wanted, substitute(wanted.target, host), min(_TRY, wanted.timeout))


def _try(host: Host, wanted: Check, target: str, timeout: float) -> str | None:
    match wanted.kind:
        case "http":
            return _in_time(lambda: _http(target, timeout), timeout)
        case "tcp":
            return _tcp(target, timeout)
        case "hook":
            return _hook(host, target, timeout)
        case _:
            assert_never(wanted.kind)


def _http(url: str, timeout: float) -> str | None:
    # Never through a proxy: it is this server that is asked.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as reply:
            return None if 200 <= reply.status < 300 else f"status {reply.status}"
    except urllib.error.HTTPError as error:
        with error:
            return f"status {error.code} {_shown(error)}".rstrip()
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error) or type(error).__name__


def _shown(error: urllib.error.HTTPError) -> str:
    try:
        body = error.read(_BODY)
    except (OSError, http.client.HTTPException):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in body.decode(errors="replace")).split())


def _tcp(target: str, timeout: float) -> str | None:
    host, separator, port = target.rpartition(":")
    if not separator or not port.isdigit():
        raise UsageError(f"cannot check tcp {target}: it must be host:port")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout):
            return None
    except (OSError, OverflowError) as error:
        return str(error) or type(error).__name__


def _hook(host: Host, name: str, timeout: float) -> str | None:
    try:
        run_hook(host, name, timeout=timeout)
    except HostError as error:
        return str(error)
    return None


def _in_time(attempt: Callable[[], str | None], timeout: float) -> str | None:
    """A try that ends in `timeout` seconds even if the other side drips a byte at a time, each within the socket's own timeout."""
    outcome: list[str | None] = []
    thread = threading.Thread(target=lambda: outcome.append(attempt()), daemon=True)
    thread.start()
    thread.join(timeout + 0.5)
    return outcome[0] if outcome else f"no whole answer within {timeout:g} s"
