"""Follows git: fetches, verifies, reads and checks the newest revision, and any other by its id. Called by the loops of one agent.

A revision that is refused, or a git that does not answer, changes nothing: the last good one stays in force, and the
condition says what is wrong and since when.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.core.state import Desired, Revision
from reconciler.desired import memory, repository
from reconciler.desired.source import Source
from reconciler.desired.trust import Trust, verify
from reconciler.errors import Corrupt, ReconcilerError, Refused
from reconciler.ground.telemetry import ANEW
from reconciler.host.policy import HostPolicy, problems
from reconciler.wire.desired import read as parse

log = logging.getLogger(__name__)

_KEPT = 4
"""Revisions that are kept in memory: the newest, the rollout's, and what `recover` and a revert come back to."""


@dataclass(frozen=True, slots=True)
class Following:
    """What is known of git now. Times are this process's monotonic seconds; None: not yet, or nothing is wrong."""

    newest: Desired | None = None
    fetched: float | None = None
    refused: str | None = None
    refusal: str | None = None
    unavailable: str | None = None
    since: float | None = None


class Follower:
    """One source, followed by several threads: git is asked by one at a time."""

    def __init__(self, source: Source, trust: Trust, policy: HostPolicy, state_dir: Path, lrn: int) -> None:
        self._source, self._trust, self._policy, self._state_dir = source, trust, policy, state_dir
        self._lrn = lrn
        self._mutex = threading.RLock()
        self._read: dict[str, Desired] = {}
        self.state = Following()

    def configure(self, source: Source) -> None:
        """Follow the same source with other credentials from the next look on."""
        with self._mutex:
            self._source = source

    def take(self, desired: Desired) -> None:
        """Follow this one revision, which the caller has checked."""
        with self._mutex:
            self._read[desired.revision.id] = desired
            self.state = Following(newest=desired, fetched=time.monotonic())

    def look(self) -> bool:
        """Fetch, and take the newest revision if it is good. Whether what is in force has changed. Raises nothing of ours."""
        with self._mutex:
            before = self.state.newest
            revision = None
            try:
                repository.fetch(self._source)
                revision = repository.resolve(self._source)
                if not before or before.revision.id != revision.id:
                    self._take(revision)
                self.state = replace(self.state, refused=None, refusal=None, unavailable=None, since=None)
                self.state = replace(self.state, fetched=time.monotonic())
            except (Refused, Corrupt) as error:
                self._refuse(revision.id if revision else "", str(error))
            except ReconcilerError as error:
                self._unavailable(str(error))
            if self.state.newest is None:
                self._go_on_from_memory()
            return self.state.newest is not before

    def at(self, id: str) -> Desired:
        """The desired state at revision `id`, which somebody else named, checked by this host for itself.

        Raises `Refused` where it is not among those that this host follows or accepts, `Unavailable` where it is not there.
        """
        with self._mutex:
            if id not in self._read:
                try:
                    revision = self._trusted(self._source, repository.find(self._source, id))
                except ReconcilerError:
                    # Branches and tags may have moved since the last fetch.
                    repository.fetch(self._source)
                    revision = self._trusted(self._source, repository.find(self._source, id))
                self._read_checked(self._source, replace(revision, id=id))
            return self._read[id]

    def enter(self, id: str) -> None:
        """Remember that this host entered a rollout of revision `id`: from now on it only goes forward from there.

        Raises `Refused` where `id` is neither the newest that was entered nor its descendant.
        """
        with self._mutex:
            memory.check_forward(self._source, id, memory.recall(self._state_dir))
            memory.entered(self._source, id, self._state_dir)

    def _take(self, revision: Revision) -> None:
        desired = self._read.get(revision.id) or self._read_checked(
            self._source, self._trusted(self._source, revision)
        )
        memory.check_forward(self._source, revision.id, memory.recall(self._state_dir))
        log.info("revision %s is valid", revision.id, extra={"revision": revision.id})
        self.state = replace(self.state, newest=desired)

    def _go_on_from_memory(self) -> None:
        """After a restart: what this host entered last stays in force until a newer revision is good.

        The branch may have left it, or the tag be gone: it was on the line when it was entered. Its commit's signature must
        be good still.
        """
        accepted = memory.recall(self._state_dir).of(self._source)
        if accepted is None:
            return
        source = replace(self._source, tag_pattern=None)
        try:
            revision = self._trusted(source, repository.resolve(source, accepted.revision))
            self.state = replace(self.state, newest=self._read_checked(source, revision))
        except ReconcilerError as error:
            log.debug(
                "revision %s, which this host entered last, cannot be read: %s", accepted.revision, error
            )

    def _trusted(self, source: Source, revision: Revision) -> Revision:
        """The revision with the name of who signed it. Raises `Refused` where that is nobody whom this host trusts."""
        return replace(revision, signer=verify(source, revision, self._trust))

    def _read_checked(self, source: Source, revision: Revision) -> Desired:
        """The desired state at a trusted revision. Raises `Refused` where it is wrong, or not allowed on this host."""
        desired = parse(repository.read(source, revision.id), revision)
        wrong = problems(self._policy, desired, self._lrn)
        if wrong:
            raise Refused(
                f"this host's policy does not allow revision {revision.id[:12]}:\n" + "\n".join(wrong)
            )
        self._read[revision.id] = desired
        while len(self._read) > _KEPT:
            del self._read[next(iter(self._read))]
        return desired

    def _refuse(self, id: str, why: str) -> None:
        anew = {} if self.state.refusal else ANEW
        log.error("revision %s is refused: %s", id or "?", why, extra={"revision": id, **anew})
        since = self.state.since if self.state.refused == id else time.monotonic()
        self.state = replace(
            self.state, refused=id, refusal=why, unavailable=None, since=since, fetched=time.monotonic()
        )

    def _unavailable(self, why: str) -> None:
        anew = {} if self.state.unavailable else ANEW
        log.warning("git cannot be read, the last good revision stays in force: %s", why, extra=anew)
        since = self.state.since if self.state.unavailable else time.monotonic()
        self.state = replace(self.state, unavailable=why, since=since)
