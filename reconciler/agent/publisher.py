"""Holds what the agent publishes: its loops put frozen values in, HTTP takes the newest out. Shared by threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from reconciler.core.plan import Effect
from reconciler.core.published import Durations, Heartbeat, Missing, Published


class Publisher:
    """The newest `Published`, replaced whole by each update. `etcd_requests` is asked after every pass, of failed ones too."""

    def __init__(self, first: Published, etcd_requests: Callable[[], Mapping[str, int]] = dict) -> None:
        self._mutex = threading.Lock()
        self._now, self._etcd_requests = first, etcd_requests

    def __call__(self) -> Published:
        return self._now

    def update(self, **changes: Any) -> None:
        """Replace fields of `Published` by name."""
        with self._mutex:
            self._now = replace(self._now, **changes)

    def miss(self, loop: str, problem: str, vital: bool = False) -> None:
        """Say what `loop` cannot have; nothing where it lacks nothing any more."""
        with self._mutex:
            others = tuple(known for known in self._now.missing if known.loop != loop)
            missing = (*others, Missing(loop, problem, vital)) if problem else others
            self._now = replace(self._now, missing=missing)

    def beat(self, loop: str, limit: float) -> None:
        """`loop` lives, and is overdue if it does not beat again within `limit` seconds."""
        beat = Heartbeat(loop, time.monotonic(), limit)
        with self._mutex:
            others = tuple(other for other in self._now.heartbeats if other.loop != loop)
            self._now = replace(self._now, heartbeats=(*others, beat))

    @contextmanager
    def timing(self, loop: str) -> Iterator[None]:
        """Counts one pass of `loop`, how long it took, and how it failed."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            self._count_error(loop, type(error).__name__)
            raise
        finally:
            seconds = time.monotonic() - started
            with self._mutex:
                passes = dict(self._now.passes)
                passes[loop] = passes.get(loop, Durations()).add(seconds)
                self._now = replace(self._now, passes=passes, etcd_requests=self._etcd_requests())

    def step(self, effect: Effect, outcome: str, seconds: float) -> None:
        """Counts one step by its effect and outcome."""
        with self._mutex:
            steps = dict(self._now.steps)
            steps[effect, outcome] = steps.get((effect, outcome), Durations()).add(seconds)
            self._now = replace(self._now, steps=steps)

    def _count_error(self, loop: str, reason: str) -> None:
        with self._mutex:
            errors = dict(self._now.errors)
            errors[loop, reason] = errors.get((loop, reason), 0) + 1
            self._now = replace(self._now, errors=errors)
