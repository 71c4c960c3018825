"""Which etcd this host works with, and how far it has seen it: a lost, restored or other etcd must not be taken for the old one.

Called by the loops, which read etcd through it. The state directory keeps what was seen (`desired/memory`); between two
writes there it is kept here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from reconciler.desired import memory


class _View(Protocol):
    @property
    def etcd_revision(self) -> int: ...


View = TypeVar("View", bound=_View)


class EtcdSeen:
    """What several threads have seen of one etcd. `cluster` asks the client for the cluster id of its last answer."""

    def __init__(self, state_dir: Path, cluster: Callable[[], str]) -> None:
        self._state_dir, self._cluster = state_dir, cluster
        self._mutex = threading.Lock()
        self._seen: tuple[str, int] | None = None

    def through(self, read: Callable[[], View]) -> View:
        """What `read` says. Raises `Refused` where it is not of the etcd that this host has seen, or of an older state of it."""
        before = self._seen
        found = read()
        with self._mutex:
            self._check(before, self._cluster(), found.etcd_revision)
        return found

    def note(self) -> None:
        """Write down how far etcd has been seen: called when there is nothing to do for now."""
        with self._mutex:
            if self._seen is not None:
                memory.saw_etcd(self._state_dir, *self._seen)

    def _check(self, before: tuple[str, int] | None, cluster: str, revision: int) -> None:
        """`before` was seen when the read began: what another thread has seen since may well be newer than its answer."""
        if before is None or self._seen is None or cluster != before[0] or revision < before[1]:
            # The file is asked anew: an operator says there that another etcd is meant.
            memory.saw_etcd(self._state_dir, cluster, revision)
            self._seen = (cluster, revision)
        elif revision > self._seen[1]:
            self._seen = (cluster, revision)
