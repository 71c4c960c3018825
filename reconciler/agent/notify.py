"""Tells people: Slack's webhook and a plain JSON one. Called by the leader's loop; a failure here is a log line and nothing else."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from reconciler.errors import ReconcilerError, Unavailable
from reconciler.ground.download import ask

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
"""Seconds for one try in all, however slowly the answer comes."""
_ANSWER = 1 << 16
_PAUSE = 1.0
"""Seconds before the second try; each further pause is twice as long."""
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
    """Sends events in their order, in a thread of its own. `addresses` is asked anew for each: settings change without a restart.

    `timeout` is of one try, `pause` before the second one, in seconds.
    """

    def __init__(
        self, addresses: Callable[[], Addresses], timeout: float = _TIMEOUT, pause: float = _PAUSE
    ) -> None:
        self._addresses, self._timeout, self._pause = addresses, timeout, pause
        self._queue: queue.Queue[Event | None] = queue.Queue(_QUEUE)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="notify", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Queue `event`; never waits. One too many is dropped, and the log says so."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            log.warning("a notification is dropped, the queue is full: %s", event.text)

    def close(self, timeout: float = 5.0) -> None:
        """Send what is queued, for at most `timeout` seconds; from now on no retry is waited for."""
        self._ending.set()
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
                        self._post(address, body, addresses.proxy)
            except Exception as error:  # whatever it is, telling people must not end the agent
                log.warning("cannot send a notification (%s): %s", type(error).__name__, event.text)

    def _post(self, address: str, body: dict[str, object], proxy: str | None) -> None:
        """Send one body, with retries where the failure may pass. `proxy` None: as the environment says."""
        for attempt in range(1, _TRIES + 1):
            try:
                status = ask(
                    address,
                    method="POST",
                    headers={"Content-Type": "application/json"},
                    sent=json.dumps(body).encode(),
                    timeout=self._timeout,
                    max_bytes=_ANSWER,
                    proxy=proxy,
                    cut=True,
                ).status
            except ReconcilerError as error:
                # The address is a secret: the error's text may hold it, its type does not.
                what, may_pass = type(error).__name__, isinstance(error, Unavailable)
            else:
                what, may_pass = f"status {status}", status >= 500 or status == 429
                if status < 300:
                    return
            if not may_pass or attempt == _TRIES:
                log.warning("a notification was not taken (%s, try %d): %s", what, attempt, body["text"])
                return
            self._ending.wait(self._pause * 2 ** (attempt - 1))


def _without_none(body: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in body.items() if value is not None}
