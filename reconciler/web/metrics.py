"""`/metrics`: what the agent has published, in Prometheus' words. Called by `app`. Every metric's name stands here and nowhere else.

Durations since something are measured by the process's own clock, so that a wall clock set back makes none negative;
only a holder's age and a rollout's times are the wall clock's.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from reconciler.core.artifact import pinned
from reconciler.core.published import BUCKETS, Durations, Published
from reconciler.core.report import CONDITIONS, LockReport, Status
from reconciler.core.state import Desired

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Outcome = Literal["accepted", "ignored", "forged", "malformed"]
"""What becomes of a webhook."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_ERROR = "error "
_STATES = ("none", "running", "complete", "stopped", "failed")


class Metrics:
    """The metrics of one agent: what it has published, its process, and the webhooks that came in."""

    def __init__(self, published: Callable[[], Published]) -> None:
        self._published = published
        self._deliveries = dict.fromkeys(OUTCOMES, 0)
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(self._families))
        ProcessCollector(registry=self._registry)

    def delivered(self, outcome: Outcome) -> None:
        """One more webhook. Called in the event loop only."""
        self._deliveries[outcome] += 1

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _families(self) -> Iterator[Metric]:
        yield from families(self._published(), time.monotonic(), time.time())
        yield _counter(
            "reconciler_webhook_deliveries",
            "Webhooks that came in, by what became of them.",
            ["outcome"],
            {(outcome,): count for outcome, count in self._deliveries.items()},
        )


class _Collector(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def families(published: Published, now: float, wall: float) -> Iterator[Metric]:
    """Every metric of `published`, at `now` in monotonic and `wall` in Unix seconds."""
    yield from _process(published)
    yield from _loops(published, now)
    yield from _git(published, now)
    yield from _server(published, now)
    yield from _etcd(published)
    if published.status:
        yield from _rollout(published.status)
        yield from _locks(published.status.locks, wall)


# --- this agent -----------------------------------------------------------------------------------------------------


def _process(published: Published) -> Iterator[Metric]:
    yield _info(
        "reconciler_build",
        "The program that answers.",
        {"version": published.version, "python_version": platform.python_version()},
    )
    yield _gauge(
        "reconciler_leader",
        "Whether this agent leads: 1 or 0.",
        published.leads,
    )
    yield _optional(
        "reconciler_lease_remaining_seconds",
        "How long this agent's lease holds without another sign of life.",
        published.lease_left,
    )
    yield _gauge(
        "reconciler_missing_parts",
        "What the agent lacks now (etcd, git, a registry, its own number): how many things.",
        len(published.missing),
    )


def _loops(published: Published, now: float) -> Iterator[Metric]:
    yield _histogram(
        "reconciler_loop_duration_seconds",
        "How long each pass of a loop took.",
        ["loop"],
        {(loop,): durations for loop, durations in published.passes.items()},
    )
    yield _counter(
        "reconciler_loop_errors",
        "Passes of a loop that failed, by reason.",
        ["loop", "reason"],
        {(loop, reason): count for (loop, reason), count in published.errors.items()},
    )
    yield _labelled(
        "reconciler_loop_heartbeat_age_seconds",
        "How long ago each loop gave its last sign of life.",
        ["loop"],
        {(beat.loop,): now - beat.at for beat in published.heartbeats},
    )
    yield _labelled(
        "reconciler_loop_heartbeat_limit_seconds",
        "At which age of its sign of life a loop counts as stopped.",
        ["loop"],
        {(beat.loop,): beat.limit for beat in published.heartbeats},
    )
    yield _histogram(
        "reconciler_step_duration_seconds",
        "How long each step on this server took, by effect and outcome.",
        ["effect", "outcome"],
        {(effect, outcome): durations for (effect, outcome), durations in published.steps.items()},
    )


def _git(published: Published, now: float) -> Iterator[Metric]:
    yield _counter("reconciler_git_fetches", "Fetches of git.", [], {(): published.fetches})
    yield _counter(
        "reconciler_git_fetch_errors", "Fetches of git that failed.", [], {(): published.failed_fetches}
    )
    yield _optional(
        "reconciler_git_fetch_age_seconds",
        "How long ago git was last read to the end and its newest revision taken.",
        None if published.fetched is None else now - published.fetched,
    )
    yield _labelled(
        "reconciler_revision_info",
        "The revision that is desired, applied (by the last complete rollout) and refused, as a label of a constant 1.",
        ["state", "revision"],
        dict.fromkeys(_revisions(published), 1),
    )
    yield _gauge(
        "reconciler_revision_refused",
        "Whether the newest revision in git is refused: 1 or 0.",
        published.refusal is not None or _refused_to_open(published) is not None,
    )


def _revisions(published: Published) -> Iterator[tuple[str, str]]:
    rollout = published.status.rollout if published.status else None
    if published.desired:
        yield "desired", published.desired.revision.id
    if rollout and rollout.outcome == "complete":
        yield "applied", rollout.version
    if refused := published.refused or _refused_to_open(published):
        yield "refused", refused


def _refused_to_open(published: Published) -> str | None:
    return published.unopened.revision if published.unopened and published.unopened.refused else None


def _server(published: Published, now: float) -> Iterator[Metric]:
    yield _gauge(
        "reconciler_changes_pending",
        "Artifacts on this server that are not recorded as they are desired.",
        published.pending,
    )
    yield _gauge(
        "reconciler_artifacts_unpinned",
        "Artifacts desired on this server whose content git does not fix by a digest or a checksum.",
        _unpinned(published.desired, published.lrn),
    )
    drifted = Counter(change.key.kind for change in published.drift)
    yield _labelled(
        "reconciler_artifacts_drifted",
        "Artifacts on this server that are not as they are recorded, by kind.",
        ["kind"],
        {(kind,): drifted[kind] for kind in ("image", "deb", "os-image")},
    )
    yield _optional(
        "reconciler_drift_check_age_seconds",
        "How long ago this server was last compared with what is recorded.",
        None if published.drift_checked is None else now - published.drift_checked,
    )
    yield _gauge(
        "reconciler_reboot_required",
        "Whether this server asks for a reboot: 1 or 0.",
        published.reboot_required,
    )


def _unpinned(desired: Desired | None, lrn: int) -> int:
    return sum(not pinned(artifact) for artifact in desired.artifacts_of(lrn).values()) if desired else 0


def _etcd(published: Published) -> Iterator[Metric]:
    counts = published.etcd_requests
    yield _counter(
        "reconciler_etcd_requests",
        "Requests to etcd, by name.",
        ["request"],
        {(name,): count for name, count in counts.items() if not name.startswith(_ERROR)},
    )
    yield _counter(
        "reconciler_etcd_errors",
        "Requests to etcd that failed, by gRPC's code.",
        ["code"],
        {(name.removeprefix(_ERROR),): count for name, count in counts.items() if name.startswith(_ERROR)},
    )


# --- the fleet ------------------------------------------------------------------------------------------------------


def _rollout(status: Status) -> Iterator[Metric]:
    yield _labelled(
        "reconciler_rollout_state",
        "1 for the state that the newest rollout is in, 0 for the others.",
        ["state"],
        {(state,): state == status.state for state in dict.fromkeys((*_STATES, status.state))},
    )
    rollout, phase = status.rollout, status.phase
    names = rollout.phases if rollout else ()
    opened = names[phase.phase - 1] if phase and 0 < phase.phase <= len(names) else None
    yield _labelled(
        "reconciler_rollout_phase",
        "1 for the phase that is open, 0 for the others.",
        ["phase"],
        {(name,): name == opened for name in names},
    )
    yield _optional(
        "reconciler_rollout_wave", "The wave that is open; 0 is prefetch.", phase.wave if phase else None
    )
    yield _optional(
        "reconciler_rollout_start_timestamp_seconds",
        "When the newest rollout was opened, in Unix seconds.",
        _unix(rollout.started_at if rollout else None),
    )
    yield _optional(
        "reconciler_rollout_finish_timestamp_seconds",
        "When the newest rollout finished, in Unix seconds.",
        _unix(rollout.finished_at if rollout else None),
    )
    yield from _fleet(status)


def _fleet(status: Status) -> Iterator[Metric]:
    conditions = Counter(server.condition for server in status.servers)
    yield _labelled(
        "reconciler_servers",
        "Servers of the fleet, by their condition in the rollout.",
        ["condition"],
        {(condition,): conditions[condition] for condition in CONDITIONS},
    )
    waiting = Counter(server.waiting for server in status.servers)
    yield _labelled(
        "reconciler_servers_waiting",
        "Servers that wait for a window or for a slot.",
        ["for"],
        {(what,): waiting[what] for what in ("window", "slot")},
    )
    yield _gauge(
        "reconciler_servers_left_out",
        "Servers that the rollout has left out.",
        sum(server.out is not None for server in status.servers),
    )
    yield _gauge(
        "reconciler_servers_silent",
        "Registered servers whose agent is not running.",
        sum(server.agent is None and server.disabled is None for server in status.servers),
    )
    yield _gauge("reconciler_paused", "Whether new rollouts are held: 1 or 0.", status.pause is not None)


def _locks(locks: Iterable[LockReport], wall: float) -> Iterator[Metric]:
    slots = {"max": "Slots of a lock group.", "free": "Slots of a lock group that may be taken now."}
    by_group = {(lock.group,): lock for lock in locks}
    yield _labelled(
        "reconciler_lock_slots", slots["max"], ["group"], {key: lock.max for key, lock in by_group.items()}
    )
    yield _labelled(
        "reconciler_lock_slots_free",
        slots["free"],
        ["group"],
        {key: lock.free for key, lock in by_group.items()},
    )
    yield _labelled(
        "reconciler_lock_holders",
        "Who holds a slot of a lock group.",
        ["group"],
        {key: len(lock.holders) for key, lock in by_group.items()},
    )
    yield _labelled(
        "reconciler_lock_waiters",
        "Who waits for a slot of a lock group.",
        ["group"],
        {key: len(lock.waiters) for key, lock in by_group.items()},
    )
    yield _labelled(
        "reconciler_lock_oldest_holder_age_seconds",
        "For how long the oldest holder has held its slot; 0 where nobody holds one.",
        ["group"],
        {key: _oldest(lock, wall) for key, lock in by_group.items()},
    )
    yield _labelled(
        "reconciler_lock_holders_overdue",
        "Who has held a slot of a lock group for longer than --alarm-after.",
        ["group"],
        {key: sum(holder.overdue for holder in lock.holders) for key, lock in by_group.items()},
    )


def _oldest(lock: LockReport, wall: float) -> float:
    starts = [holder.record.start_time for holder in lock.holders if holder.record]
    return max((max(0.0, wall - start) for start in starts if start), default=0.0)


def _unix(time: str | None) -> float | None:
    """An RFC 3339 time in Unix seconds; its nanoseconds are more than Python's parser takes."""
    if not time:
        return None
    seconds, _, fraction = time.removesuffix("Z").partition(".")
    try:
        return datetime.fromisoformat(f"{seconds}+00:00").timestamp() + float(f"0.{fraction or 0}")
    except ValueError:
        return None


# --- families -------------------------------------------------------------------------------------------------------


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=float(value))


def _optional(name: str, words: str, value: float | None) -> Metric:
    """A gauge without a sample where there is nothing to tell: 0 would be a lie."""
    return _labelled(name, words, [], {} if value is None else {(): value})


def _labelled(name: str, words: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, float(value))
    return family


def _counter(name: str, words: str, labels: list[str], counts: Mapping[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for key, count in sorted(counts.items()):
        family.add_metric(key, count)
    return family


def _info(name: str, words: str, labels: dict[str, str]) -> Metric:
    family = InfoMetricFamily(name, words)
    family.add_metric([], labels)
    return family


def _histogram(
    name: str, words: str, labels: list[str], durations: Mapping[tuple[str, ...], Durations]
) -> Metric:
    family = HistogramMetricFamily(name, words, labels=labels)
    for key, found in sorted(durations.items()):
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip([*map(floatToGoString, BUCKETS), "+Inf"], found.counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(key, buckets, found.total)
    return family
