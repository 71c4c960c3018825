"""The agent: three loops side by side (follow git, lead, work for this server), what wakes them, and an orderly end.

Called by `reconcile agent` through `cli/compose`. Each loop has one heartbeat; what one cannot do for now (git away,
etcd away) it logs once, publishes, and tries again with back-off and jitter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, assert_never

from reconciler.agent.follow import Follower
from reconciler.agent.leader import Conductor
from reconciler.agent.leading import Leading
from reconciler.agent.notify import Notifier
from reconciler.agent.publisher import Publisher
from reconciler.agent.signals import Signals
from reconciler.agent.wake import SELDOM, Wake, local_paths, watch_paths
from reconciler.agent.worker import Worker
from reconciler.agent.writing import Writing
from reconciler.errors import NoEtcd, ReconcilerError, Unavailable
from reconciler.ground.telemetry import ANEW
from reconciler.store.client import Client
from reconciler.store.keys import Keys
from reconciler.store.transaction import Event, KeyRange, one, under
from reconciler.store.watch import Watch

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_AWAY = 0.5, 30.0, 5.0


def longest_pause(failures: int, error: BaseException) -> float:
    """The seconds that a loop waits at most after so many `failures` in a row, of which `error` is the last.

    For etcd, which everything waits for and a thousand clients that read once each do not hurt, never as long as for a
    registry or a release server, which may count who asks.
    """
    longest = _LONGEST_AWAY if isinstance(error, NoEtcd) else _LONGEST_PAUSE
    return min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 10), longest)


def _jittered(pause: float) -> float:
    return pause * (0.5 + 0.5 * random.random())  # noqa: S311 (jitter is no secret)


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
        trouble, count = "", 0
        while not self._ending.is_set():
            try:
                seconds = once()
                if trouble:
                    log.info("%s goes on after %d failed tries", name, count)
                trouble, count = "", 0
                self._publisher.miss(name, "")
            except ReconcilerError as error:
                log.warning("%s: %s", name, error, extra={} if trouble else ANEW)
                trouble, count = str(error), count + 1
                seconds = _jittered(longest_pause(count, error))
                self._publisher.miss(name, str(error), vital=is_vital(error))
            except Exception as error:
                # A fault of ours must not end the agent: it may be the only one that can bring its server back up.
                log.exception("%s: unexpected error", name)
                trouble, count = type(error).__name__, count + 1
                seconds = _jittered(longest_pause(count, error))
                self._publisher.miss(name, f"an unexpected {trouble}; the log has it", vital=True)
            bell.wait(seconds)


def is_vital(error: ReconcilerError) -> bool:
    """Whether a loop that fails like this can do nothing: etcd is away, is refused or refuses this agent, its number is
    another's, its host cannot be looked at. Where only git or a registry is away, the last revision stays in force.
    """
    return isinstance(error, NoEtcd) or not isinstance(error, Unavailable)


class Follow:
    """The loop that follows git; rings the others when what is in force, or what is wrong, has changed."""

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
        self._publisher.miss("git fetch", state.unavailable or "")
        wrong = (state.refused, state.refusal, state.unavailable is not None)
        if changed or wrong != (before.refused, before.refusal, before.unavailable is not None):
            # It changes nothing that is in force, but people are told of it, and this host's own key says it. Why git
            # cannot be read is no part of it: git's own words hold how long it took, and would ring at each try.
            self._bells.lead.ring()
            self._bells.work.ring()
        return seconds * (0.8 + 0.4 * random.random())  # noqa: S311 (jitter is no secret)


def _reap_orphans(ending: threading.Event, interval: float = 5.0) -> None:
    """As process 1: take the exit status of what others left behind. Our own programs are waited for by who ran them.

    Whoever is a zombie at two looks in a row is nobody's.
    """
    before: set[int] = set()
    while not ending.wait(interval):
        zombies = _zombies() if _has_zombies() else set()
        for pid in zombies & before:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        before = zombies


def _has_zombies() -> bool:
    """Whether a child has ended that nobody has waited for yet; it may still be waited for."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _zombies() -> set[int]:
    return {
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_zombie(entry)
    }


def _is_zombie(process: Path) -> bool:
    try:
        state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return False
    return state == "Z" and parent == str(os.getpid())


Request = Literal["end", "look", "debug"]
"""What is asked of a running agent: to end in order; to look at its configuration, at git and at etcd now; to log everything, or no more."""


class Asked:
    """What is asked, in its order, by signals and by a change of the configuration: SIGTERM and SIGINT end the agent in order,
    a second one at once; SIGHUP means "look now"; SIGUSR1 begins and ends logging at `debug`.
    """

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._ends = False

    def signals(self) -> Signals:
        """To be in force from the start: process 1 does not even hear a signal that it has no handler for."""
        return Signals(
            {
                signal.SIGTERM: partial(self._end, signal.SIGTERM),
                signal.SIGINT: partial(self._end, signal.SIGINT),
                signal.SIGHUP: self.look,
                signal.SIGUSR1: self._debug,
            }
        )

    def look(self) -> None:
        self._requests.put("look")

    def end(self) -> None:
        """As SIGTERM asks for it: whoever supervises the agent starts it again."""
        self._end(signal.SIGTERM)

    def next(self) -> Request:
        """Wait for it."""
        return self._requests.get()

    def _debug(self) -> None:
        self._requests.put("debug")

    def _end(self, number: int) -> None:
        if self._ends:
            os._exit(128 + number)
        self._ends = True
        self._requests.put("end")


class Configuration(Protocol):
    """The options as they are now; `files` are the directories in which a change of theirs shows."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    def look(self) -> None:
        """Take up what has changed. Never raises: what cannot be used is said, and what was in force stays."""

    def toggle_debug(self) -> None:
        """Log everything from now on, or no more."""


@dataclass(frozen=True, slots=True)
class Parts:
    """All that one agent is made of. `leading` is None for one that never leads; `serve` starts HTTP and returns what stops it."""

    source_repo: str
    follower: Follower
    worker: Worker
    writing: Writing
    conductor: Conductor | None
    leading: Leading | None
    notifier: Notifier
    publisher: Publisher
    watching: Watching
    bells: Bells
    ending: threading.Event
    interval: Callable[[], float]
    grace: Callable[[], float]
    configuration: Configuration


def run(parts: Parts, asked: Asked) -> int:
    """Run the agent until SIGTERM. The exit status: 0 after an orderly end, 1 where a step did not end within the grace."""
    loops = Loops(parts.publisher, parts.ending)
    follow = Follow(parts.follower, parts.publisher, parts.interval, parts.bells)
    _watch_files(parts, asked)
    if os.getpid() == 1:
        threading.Thread(target=_reap_orphans, args=(parts.ending,), name="reap", daemon=True).start()
    loops.start("git", follow.once, parts.bells.follow)
    loops.start("worker", parts.worker.work, parts.bells.work)
    if parts.conductor is not None:
        loops.start("leader", parts.conductor.conduct, parts.bells.lead)
    parts.watching.start(candidate=parts.conductor is not None)
    while (request := asked.next()) != "end":
        match request:
            case "look":
                parts.configuration.look()
                parts.bells.ring_all()
            case "debug":
                parts.configuration.toggle_debug()
            case _:
                assert_never(request)
    return _end(parts, loops)


def _watch_files(parts: Parts, asked: Asked) -> None:
    """A push or commit to a repository on this machine does not wait for the poll, nor does a change of the configuration."""
    repository = local_paths(parts.source_repo)
    if repository:
        watch_paths(repository, parts.bells.follow.ring, parts.ending)
    if parts.configuration.files:
        watch_paths(parts.configuration.files, asked.look, parts.ending, recursive=False, step=SELDOM)


def _end(parts: Parts, loops: Loops) -> int:
    """Finish what runs, for at most the grace; then give up the lead, this server's lease and what else is held."""
    grace = parts.grace()
    log.info("ends: the step in flight is finished, for at most %g s", grace)
    parts.ending.set()
    parts.bells.ring_all()
    if parts.leading is not None:
        parts.leading.resign()
    ended = loops.join(grace)
    parts.watching.close()
    parts.writing.close()
    parts.notifier.close()
    if not ended:
        log.error(
            "a step did not end within the grace: its record says that it is running, and the next start looks at the host"
        )
    return 0 if ended else 1


class Watching:
    """etcd's watches, which only ring: each loop reads for itself. All are on one stream.

    Every agent watches its server's keys and the leader's line; only the one that leads watches the fleet, so that
    what a barrier costs does not grow with the square of the fleet.
    """

    def __init__(self, client: Client, keys: Keys, lrn: int, bells: Bells, ending: threading.Event) -> None:
        self._client, self._bells, self._ending = client, bells, ending
        self._of_worker, self._line, self._fleet = (
            _of_server(keys, lrn),
            (under(keys.election),),
            _of_fleet(keys),
        )
        self._of_leader: tuple[KeyRange, ...] = ()
        self._mutex = threading.Lock()
        self._watch: Watch | None = None

    def start(self, candidate: bool) -> None:
        """Begin in the background: an etcd that is away must not hold up the start."""
        self._of_leader = self._line if candidate else ()
        threading.Thread(target=self._start, name="etcd-watches", daemon=True).start()

    def lead(self, leads: bool) -> None:
        """Watch the fleet from now on, or no more."""
        with self._mutex:
            self._of_leader = (*self._line, *self._fleet) if leads else self._line
            if self._watch is not None:
                self._begin(self._revision())

    def close(self) -> None:
        with self._mutex:
            if self._watch is not None:
                self._watch.close()

    def _start(self) -> None:
        failures = 0
        while not self._ending.is_set():
            try:
                revision = self._revision()
            except ReconcilerError as error:
                failures += 1
                self._ending.wait(_jittered(longest_pause(failures, error)))
                continue
            with self._mutex:
                self._begin(revision)
            self._ring()
            return

    def _begin(self, revision: int) -> None:
        """Watch what concerns this agent now, from an etcd revision on, in place of what was watched."""
        if self._watch is not None:
            self._watch.close()
        ranges = (*self._of_worker, *self._of_leader)
        self._watch = Watch(self._client, ranges, revision + 1, self._heard, self._compacted, self._troubled)

    def _revision(self) -> int:
        return self._client.read(self._of_worker[:1]).revision

    def _heard(self, events: tuple[Event, ...], revision: int) -> None:
        if _concerns(self._of_worker, events):
            self._bells.work.ring()
        if _concerns(self._of_leader, events):
            self._bells.lead.ring()

    def _compacted(self) -> int:
        self._ring()
        return self._revision()

    def _troubled(self, error: ReconcilerError) -> None:
        log.debug("a watch is tried again, passes find what it would have told: %s", error)

    def _ring(self) -> None:
        self._bells.work.ring()
        self._bells.lead.ring()


def _concerns(ranges: tuple[KeyRange, ...], events: tuple[Event, ...]) -> bool:
    return any(keys.covers(event.item.key) for event in events for keys in ranges)


def _of_server(keys: Keys, lrn: int) -> tuple[KeyRange, ...]:
    """What tells a server that there is something to do; not what it writes itself."""
    return (
        one(keys.rollout),
        one(keys.phase),
        one(keys.pause),
        one(keys.machine(lrn)),
        one(keys.disabled(lrn)),
        *keys.settings,
    )


def _of_fleet(keys: Keys) -> tuple[KeyRange, ...]:
    """What tells the leader that there is something to decide: not each step of each server, whose statuses say enough."""
    folders = (keys.servers, keys.all_disabled, keys.status)
    return (*(under(folder) for folder in folders), one(keys.pause), *keys.settings)
