"""Hypothesis strategies for the values that are stored in etcd; used by this folder's tests."""

from __future__ import annotations

from hypothesis import strategies as st

from reconciler.core.artifact import (
    AptDeb,
    Artifact,
    Bind,
    Check,
    Container,
    Image,
    Key,
    OsImage,
    Pin,
    ReleaseDeb,
)
from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import (
    Agent,
    Detail,
    Installed,
    LeftOut,
    Machine,
    Notice,
    OpenPhase,
    Rollout,
    ServerStatus,
    StepRecord,
    Told,
    Unopened,
    Waiter,
    Wave,
)
from reconciler.wire.lock import ReleasedSlot
from reconciler.wire.records import FinishedRollout

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
words = st.text("abcxyz0123456789.-", min_size=1, max_size=8)
numbers = st.integers(0, 10_000)
servers = st.lists(numbers, max_size=4).map(tuple)
times = (
    st.datetimes()
    .map(lambda time: f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond:06d}789Z")
    .filter(lambda text: len(text) == 30)
)
durations = st.one_of(
    st.integers(0, 10**6).map(float), st.integers(0, 10**12).map(lambda nanoseconds: nanoseconds / 10**9)
)
# Names of fields that no document of ours has.
extras = st.dictionaries(
    words.map(lambda word: f"x-{word}"), st.one_of(texts, numbers, st.booleans()), max_size=2
)

checks = st.builds(Check, st.sampled_from(["http", "tcp", "hook"]), texts, durations)
containers = st.builds(
    Container,
    args=st.lists(texts, max_size=3).map(tuple),
    binds=st.lists(st.builds(Bind, words, words, words, st.booleans()), max_size=2).map(tuple),
    environment=st.dictionaries(words, texts, max_size=2).map(lambda found: tuple(sorted(found.items()))),
    environment_file=st.none() | words,
    unit=st.none() | words,
    update=st.sampled_from(["rolling", "parallel", "stop-all"]),
    after=st.lists(words, max_size=2).map(tuple),
    started=st.lists(words, max_size=2).map(tuple),
    health=st.none() | checks,
)
artifacts: st.SearchStrategy[Artifact] = st.one_of(
    st.builds(
        Image,
        name=words,
        repository=words,
        tag=words,
        digest=st.none() | words,
        private=st.booleans(),
        container=st.none() | containers,
    ),
    st.builds(ReleaseDeb, words, words, words, words, st.none() | words),
    st.builds(AptDeb, words, words),
    st.builds(OsImage, words, words),
)
details = st.builds(Detail, artifacts, texts, texts, times, extras)
pins = st.dictionaries(words, st.builds(Pin, words, words), max_size=3)
phases = st.builds(OpenPhase, times, numbers, st.integers(1, 9), numbers, extras)
statuses = st.builds(
    ServerStatus,
    texts,
    st.just("") | times,
    numbers,
    st.integers(0, 3),
    texts,
    st.sampled_from([None, "window", "slot"]),
    numbers,
    extras,
)
steps = st.builds(
    StepRecord,
    words,
    times,
    st.sampled_from(["running", "done", "failed"]),
    numbers,
    texts,
    texts,
    texts,
    texts,
    numbers,
    extras,
)
agents = st.builds(Agent, numbers, texts, words, words, numbers, texts, numbers, st.booleans())
tolds = st.builds(
    Told, st.frozensets(words), st.none() | st.builds(Unopened, words, texts, st.booleans()), extras
)
machines = st.builds(Machine, numbers, words, st.booleans(), numbers, extras)
notices = st.builds(Notice, texts, texts, texts, st.none() | times, numbers, extras)
rollouts = st.builds(
    Rollout,
    version=words,
    servers=servers,
    started_at=times,
    waves=st.lists(st.builds(Wave, servers, durations, numbers), max_size=3).map(tuple),
    phases=st.lists(words, max_size=3).map(tuple),
    plan_format=st.integers(1, 9),
    path=words,
    timeout=durations,
    stop=st.booleans(),
    stopped_by=st.none() | words,
    out=st.dictionaries(numbers, st.builds(LeftOut, text=texts), max_size=2),
    outcome=st.none() | words,
    message=texts,
    finished_at=st.none() | times,
    mod_revision=numbers,
    extra=extras,
)
finished = st.builds(
    FinishedRollout,
    words,
    servers,
    st.dictionaries(numbers, texts, max_size=2),
    words,
    texts,
    times,
    times,
    extras,
)
semaphores = st.builds(
    Semaphore, max=numbers, holders=st.lists(words, unique=True, max_size=4).map(tuple), extra=extras
)
holders = st.builds(
    Holder,
    words,
    st.sampled_from(["agent", "operator", "fleetlock"]),
    st.none() | numbers,
    numbers,
    texts,
    texts,
    texts,
    numbers,
    extras,
)
waiters = st.builds(Waiter, words, words, st.none() | numbers, texts, numbers)
released = st.builds(
    ReleasedSlot,
    words,
    holders.map(lambda holder: Holder(holder.machine_id, holder.source, holder.lrn, holder.start_time)),
    texts,
    texts,
    times,
    extras,
)


def _installed(artifact: Artifact, known_only: bool) -> Installed:
    detail = None if known_only else Detail(artifact, "found", "revision", "2026-01-02T03:04:05Z")
    return Installed(artifact.key, artifact.version, detail)


def _recorded(found: list[Installed]) -> dict[Key, Installed]:
    return dict(sorted({installed.key: installed for installed in found}.items()))


fleets = st.dictionaries(
    numbers, st.lists(st.builds(_installed, artifacts, st.booleans()), max_size=4).map(_recorded), max_size=3
)
