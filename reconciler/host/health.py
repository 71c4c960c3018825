"""Waits until a health check passes: HTTP, TCP or a hook. Called by the performer of `health` steps; not pure, changes nothing.

Each try is bounded and all of them together by the check's own timeout; what was last seen is in the message.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import assert_never

from reconciler.core.artifact import Check
from reconciler.errors import HeldBack, HostError, Unavailable, Unfetchable, UsageError
from reconciler.ground.download import ask
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
            return _http(target, timeout)
        case "tcp":
            return _tcp(target, timeout)
        case "hook":
            return _hook(host, target, timeout)
        case _:
            assert_never(wanted.kind)


def _http(url: str, timeout: float) -> str | None:
    try:
        # Never through a proxy: it is this server that is asked.
        answer = ask(url, timeout=timeout, max_bytes=_BODY, proxy="", cut=True)
    except (Unavailable, Unfetchable) as error:
        return str(error)
    if 200 <= answer.status < 300:
        return None
    text = "".join(letter if letter.isprintable() else " " for letter in answer.body.decode(errors="replace"))
    return f"status {answer.status} {' '.join(text.split())}".rstrip()


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
