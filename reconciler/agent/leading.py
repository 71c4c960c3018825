"""A place in the leader's line, and the leader's look at the fleet and writes. Called by the leader's loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from reconciler.agent.etcd_seen import EtcdSeen
from reconciler.core.state import Fleet, Leader
from reconciler.store.client import Client
from reconciler.store.keys import Keys
from reconciler.store.leading import LeaderWrites
from reconciler.store.session import Candidate, Session
from reconciler.store.view import read_fleet

log = logging.getLogger(__name__)


class Leading:
    """One candidate: in the line as long as it has a lease, and there again after it has lost one."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        host: str,
        ttl: float,
        ring: Callable[[], None],
        seen: EtcdSeen | None = None,
    ) -> None:
        self._client, self._keys, self._host, self._ttl, self._ring = client, keys, host, ttl, ring
        self._seen = seen
        self._session: Session | None = None
        self._candidate: Candidate | None = None
        self._mutex = threading.Lock()
        self._under_way = False
        self._resigned = False

    def leads(self) -> Leader | None:
        """This server's own place if it is first in the line; None if another one leads.

        Joins the line if it is not in it, unless it has resigned, or Neco is at work: its updater stands in the same one.
        """
        candidate = self._standing()
        return candidate.leads() if candidate is not None else None

    def writes(self, leader: Leader) -> LeaderWrites:
        return LeaderWrites(self._client, self._keys, leader)

    def fleet(self) -> Fleet:
        """The fleet as the leader needs it: what is recorded only while no rollout is under way."""
        under_way = self._under_way
        fleet = self._read(not under_way)
        self._under_way = fleet.rollout is not None and fleet.rollout.unfinished
        return self.whole() if under_way and not self._under_way else fleet

    def whole(self) -> Fleet:
        """The fleet with all that is recorded, and every step."""
        return self._read(True)

    def _read(self, whole: bool) -> Fleet:
        def read() -> Fleet:
            return read_fleet(self._client, self._keys, recorded=whole, steps=whole)

        return self._seen.through(read) if self._seen is not None else read()

    @property
    def lease_left(self) -> float | None:
        """Seconds until this candidate counts itself out; None without a lease."""
        return self._session.remaining if self._session is not None else None

    def leave(self) -> None:
        """Leave the line at once: the next one leads without waiting for a lease to end."""
        with self._mutex:
            session, self._session, self._candidate = self._session, None, None
        if session is not None:
            session.close()

    def resign(self) -> None:
        """Leave the line for good: a pass that is under way does not join it again."""
        self._resigned = True
        self.leave()

    def _standing(self) -> Candidate | None:
        with self._mutex:
            if self._resigned:
                return None
            if self._candidate is None or self._session is None or not self._session.alive:
                self._candidate = None
                if self._session is not None:
                    self._session.close()
                    self._session = None
                if self._read(False).neco_at_work:
                    return None
                self._session = Session(self._client, self._ttl, self._lost)
                candidate = Candidate(self._client, self._keys, self._session, self._host)
                candidate.campaign()
                self._candidate = candidate
            return self._candidate

    def _lost(self, reason: str) -> None:
        log.warning("%s: this server stands in the leader's line anew", reason)
        self._ring()
