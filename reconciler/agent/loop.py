"""The agent: three loops side by side (follow git, lead, work for this server), what wakes them, and an orderly end.

Called by `reconcile agent` through `cli/compose`. Each loop has one heartbeat; what one cannot do for now (git away,
etcd away) it logs once, publishes, and tries again with back-off and jitter.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from reconciler.agent.follow import Follower
from reconciler.agent.publisher import Publisher
from reconciler.agent.wake import Wake, local_paths, watch_paths
from reconciler.errors import ReconcilerError

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


@dataclass
class Bells:
    """What wakes each loop."""

    follow: Wake = field(default_factory=Wake)
    lead: Wake = field(default_factory=Wake)
    work: Wake = field(default_factory=Wake)

    def ring_all(self) -> None:
        for bell in (self.follow, self.lead, self.work):
            bell.ring()


class Loops:
    """Runs the loops in threads until `ending` is set. A loop is a function that makes a pass and says for how long to wait."""

    def __init__(self, publisher: Publisher, ending: threading.Event) -> None:
        self._publisher, self._ending = publisher, ending
        self._threads: list[threading.Thread] = []

    def start(self, name: str, once: Callable[[], float], bell: Wake) -> None:
        thread = threading.Thread(target=self._run, args=(name, once, bell), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, timeout: float) -> bool:
        """Wait for the loops to end, at most `timeout` seconds together; whether they have."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, name: str, once: Callable[[], float], bell: Wake) -> None:
        pause, trouble, count = _FIRST_PAUSE, "", 0
        while not self._ending.is_set():
            try:
                seconds = once()
                if trouble:
                    log.info("%s goes on after %d failed tries", name, count)
                pause, trouble, count = _FIRST_PAUSE, "", 0
                self._missing(name, "")
            except ReconcilerError as error:
                seconds = pause * (0.5 + random.random())  # noqa: S311 (jitter is no secret)
                pause = min(2 * pause, _LONGEST_PAUSE)
                if str(error) != trouble:
                    log.warning("%s: %s", name, error)
                trouble, count = str(error), count + 1
                self._missing(name, str(error))
            except Exception:
                # A fault of ours must not end the agent: it may be the only one that can bring its server back up.
                log.exception("%s: unexpected error", name)
                seconds, count = pause, count + 1
                pause = min(2 * pause, _LONGEST_PAUSE)
            bell.wait(seconds)

    def _missing(self, name: str, problem: str) -> None:
        others = tuple(text for text in self._publisher().missing if not text.startswith(f"{name}: "))
        found = (*others, f"{name}: {problem}") if problem else others
        if found != self._publisher().missing:
            self._publisher.update(missing=found)


class Follow:
    """The loop that follows git; rings the others when what is in force has changed."""

    def __init__(
        self, follower: Follower, publisher: Publisher, interval: Callable[[], float], bells: Bells
    ) -> None:
        self._follower, self._publisher, self._interval, self._bells = follower, publisher, interval, bells

    def once(self) -> float:
        seconds = self._interval()
        self._publisher.beat("git", 3 * seconds + 60)
        with self._publisher.timing("git"):
            changed = self._follower.look()
        state, before = self._follower.state, self._publisher()
        self._publisher.update(
            desired=state.newest,
            fetched=state.fetched,
            fetches=before.fetches + 1,
            failed_fetches=before.failed_fetches + (state.unavailable is not None),
            refused=state.refused,
            refusal=state.refusal,
            unavailable=state.unavailable,
        )
        if changed:
            self._bells.lead.ring()
            self._bells.work.ring()
        return seconds * (0.8 + 0.4 * random.random())  # noqa: S311 (jitter is no secret)


def watch_repository(repo: str, bells: Bells, ending: threading.Event) -> None:
    """A push or commit to a repository on this machine does not wait for the poll."""
    paths = local_paths(repo)
    if paths:
        watch_paths(paths, bells.follow, ending)


class Signals:
    """SIGTERM and SIGINT end the agent in order, a second one at once; SIGHUP means "look now"; children of process 1 are reaped."""

    def __init__(self, ending: threading.Event, bells: Bells) -> None:
        self._ending, self._bells = ending, bells
        self.woken = threading.Event()

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, lambda *_: self._bells.ring_all())
        if os.getpid() == 1:
            signal.signal(signal.SIGCHLD, lambda *_: None)

    def _end(self, number: int, _: object) -> None:
        if self._ending.is_set():
            os._exit(128 + number)
        self._ending.set()
        self._bells.ring_all()
        self.woken.set()
