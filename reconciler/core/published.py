"""What one agent shows of itself: a frozen value that its loops publish, and that HTTP, metrics and nobody else read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from reconciler.core.change import Change
from reconciler.core.plan import Effect
from reconciler.core.report import Status
from reconciler.core.state import Desired, Fleet, Unopened

BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)
"""Upper bounds, in seconds, of the buckets in which durations are counted."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One loop's sign of life: `at` in monotonic seconds, and how many seconds later it is overdue (in a step: the step's limit)."""

    loop: str
    at: float
    limit: float


@dataclass(frozen=True, slots=True)
class Missing:
    """What a loop needs and cannot have now, as a sentence. `vital`: without it (etcd, its own number) the agent can begin nothing."""

    loop: str
    problem: str
    vital: bool = False

    def __str__(self) -> str:
        return f"{self.loop}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram: `counts` by bucket as in `BUCKETS`, one more for what is longer, and the sum in seconds."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)
    total: float = 0.0

    def add(self, seconds: float) -> Durations:
        index = next((i for i, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
        counts = tuple(count + (i == index) for i, count in enumerate(self.counts))
        return replace(self, counts=counts, total=self.total + seconds)


@dataclass(frozen=True, slots=True)
class Published:
    """An agent's state. Times are monotonic seconds of its process; `fetched`, `refused` and `unavailable` are of git.

    `passes` are the loops' durations, `errors` the failed passes by loop and type, `steps` the durations by effect and
    outcome (`done`, `failed`).
    """

    lrn: int = 0
    host: str = ""
    version: str = ""
    heartbeats: tuple[Heartbeat, ...] = ()
    missing: tuple[Missing, ...] = ()
    status: Status | None = None
    fleet: Fleet | None = None
    desired: Desired | None = None
    fetched: float | None = None
    fetches: int = 0
    failed_fetches: int = 0
    refused: str | None = None
    refusal: str | None = None
    unavailable: str | None = None
    leads: bool = False
    unopened: Unopened | None = None
    lease_left: float | None = None
    pending: int = 0
    drift: tuple[Change, ...] = ()
    drift_checked: float | None = None
    reboot_required: bool = False
    etcd_requests: Mapping[str, int] = field(default_factory=dict)
    passes: Mapping[str, Durations] = field(default_factory=dict)
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    steps: Mapping[tuple[Effect, str], Durations] = field(default_factory=dict)
