"""Tells people: Slack's webhook and a plain JSON one. Called by the leader's loop; a failure here is a log line and nothing else."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

log = logging.getLogger(__name__)

EventKind = Literal[
    "rollout_opened",
    "rollout_complete",
    "rollout_stopped",
    "rollout_failed",
    "revision_refused",
    "drift",
    "holder_overdue",
    "fetch_overdue",
]
_TRIES = 4
_TIMEOUT = 10.0
_QUEUE = 100


@dataclass(frozen=True, slots=True)
class Event:
    """One thing worth telling. `text` is a sentence for people."""

    event: EventKind
    text: str
    revision: str = ""
    rollout: str = ""
    server: int | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to; None for nowhere. `proxy` is used for both."""

    slack: str | None = None
    webhook: str | None = None
    proxy: str | None = None


class Notifier:
    """Sends events in their order, in a thread of its own. `addresses` is asked anew for each: settings change without a restart."""

    def __init__(self, addresses: Callable[[], Addresses]) -> None:
        self._addresses = addresses
        self._queue: queue.Queue[Event | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._send_all, name="notify", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Queue `event`; never waits. One too many is dropped, and the log says so."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            log.warning("a notification is dropped, the queue is full: %s", event.text)

    def close(self, timeout: float = 5.0) -> None:
        """Send what is queued, for at most `timeout` seconds."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _send_all(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                addresses = self._addresses()
                bodies: list[tuple[str | None, dict[str, object]]] = [
                    (addresses.slack, {"text": event.text}),
                    (addresses.webhook, _without_none(asdict(event))),
                ]
                for address, body in bodies:
                    if address:
                        _post(address, body, addresses.proxy)
            except Exception as error:  # whatever it is, telling people must not end the agent
                log.warning("cannot send a notification (%s): %s", type(error).__name__, event.text)


def _post(address: str, body: dict[str, object], proxy: str | None) -> None:
    if not address.startswith(("http://", "https://")):
        log.warning("cannot send a notification: its address is no http or https URL")
        return
    handlers = [urllib.request.ProxyHandler({"http": proxy, "https": proxy})] if proxy else []
    opener = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(  # noqa: S310 (the scheme is checked above)
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    for attempt in range(1, _TRIES + 1):
        try:
            with opener.open(request, timeout=_TIMEOUT) as reply:
                reply.read(1 << 16)
            return
        except (OSError, urllib.error.URLError) as error:
            # The address is a secret: the error's text may hold it, its type and status do not.
            what = (
                f"status {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
            )
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
                log.warning("a notification was refused (%s)", what)
                return
            if attempt == _TRIES:
                log.warning("cannot send a notification after %d tries (%s)", _TRIES, what)
                return
            time.sleep(min(0.5 * 2**attempt, 8))


def _without_none(body: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in body.items() if value is not None}
