"""Tells people: Slack's webhook and a plain JSON one. Called by the leader's loop; a failure here is a log line and nothing else."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
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
Channel = Literal["slack", "webhook"]
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


Body = Callable[[Event], dict[str, object]]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to; None for nowhere. `proxy` is used for both."""

    slack: str | None = None
    webhook: str | None = None
    proxy: str | None = None

    def of(self, channel: Channel) -> str | None:
        return self.slack if channel == "slack" else self.webhook


class Telling:
    """One event on its way to each of the channels."""

    def __init__(self) -> None:
        self._left = set(_BODIES)

    @property
    def done(self) -> bool:
        """Whether each channel has sent it, has given it up, or has nowhere to send it to."""
        return not self._left

    def end(self, channel: Channel) -> None:
        self._left.discard(channel)


class Notifier:
    """Sends events in their order. `addresses` is asked anew for each: settings change without a restart.

    Slack and the webhook are told side by side: one that does not answer holds up only itself. `timeout` is of one try,
    `pause` before the second one, in seconds.
    """

    def __init__(
        self, addresses: Callable[[], Addresses], timeout: float = _TIMEOUT, pause: float = _PAUSE
    ) -> None:
        self._addresses, self._timeout, self._pause = addresses, timeout, pause
        self._ending = threading.Event()
        self._lines = {name: self._line(name, body) for name, body in _BODIES.items()}

    def tell(self, event: Event) -> Telling:
        """Queue `event` for the channels that have an address; never waits. One too many is dropped, and the log says so."""
        telling = Telling()
        for name, (waiting, _) in self._lines.items():
            if self._leads_nowhere(name):
                telling.end(name)
                continue
            try:
                waiting.put_nowait((event, telling))
            except queue.Full:
                log.warning("a notification is dropped, the queue is full: %s", event.text)
                telling.end(name)
        return telling

    def _leads_nowhere(self, channel: Channel) -> bool:
        # What is wrong with an address is said where it is used.
        with contextlib.suppress(Exception):
            return self._addresses().of(channel) is None
        return False

    def close(self, timeout: float = 5.0) -> None:
        """Send what is queued, for at most `timeout` seconds; from now on no retry is waited for."""
        self._ending.set()
        deadline = time.monotonic() + timeout
        for waiting, thread in self._lines.values():
            with contextlib.suppress(queue.Full):
                waiting.put(None, timeout=max(0.0, deadline - time.monotonic()))
                thread.join(max(0.0, deadline - time.monotonic()))

    def _line(self, name: Channel, body: Body) -> tuple[Line, threading.Thread]:
        """A channel's queue, and the thread that sends what is in it."""
        waiting: Line = queue.Queue(_QUEUE)
        thread = threading.Thread(
            target=self._send_all, args=(name, body, waiting), name=f"notify-{name}", daemon=True
        )
        thread.start()
        return waiting, thread

    def _send_all(self, name: Channel, body: Body, waiting: Line) -> None:
        while (queued := waiting.get()) is not None:
            event, telling = queued
            try:
                addresses = self._addresses()
                if address := addresses.of(name):
                    self._post(address, body(event), addresses.proxy)
            except Exception as error:  # whatever it is, telling people must not end the agent
                log.warning("cannot send a notification (%s): %s", type(error).__name__, event.text)
            telling.end(name)

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


Line = queue.Queue[tuple[Event, Telling] | None]


def _as_it_is(event: Event) -> dict[str, object]:
    return {name: value for name, value in asdict(event).items() if value is not None}


_BODIES: dict[Channel, Body] = {"slack": lambda event: {"text": event.text}, "webhook": _as_it_is}
