"""Desired, recorded and the rollout: the values that decisions are made from. Pure; built by `wire` and `store`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reconciler.core.artifact import Artifact, Check, Key, Known, Pin
from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.window import Window

Strategy = Literal["etcd-lock", "reboot", "off"]

PLAN_FORMAT = 1
"""The format of plans and phases that this program can plan; an agent that meets a higher one waits and says so."""

PHASES: tuple[str, ...] = ("prefetch", "debs", "stop", "containers", "os-image", "reboot", "verify")
PREFETCH_WAVE = 0
"""The wave number under which *prefetch* is open, for all waves at once; the others count from 1."""


@dataclass(frozen=True, slots=True)
class Now:
    """The time as decisions may see it: `wall` in Unix seconds for windows only, `monotonic` in seconds for the rest."""

    wall: float
    monotonic: float


# --- desired: what git asks for -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit of the desired state (`id`), where it was read, and who signed it. A plain directory's id is `sha256:…`."""

    id: str
    repo: str = ""
    ref: str = ""
    signer: str | None = None


@dataclass(frozen=True, slots=True)
class ArtifactSet:
    """One document's artifacts, for the server groups named, or for every server where none is."""

    artifacts: tuple[Artifact, ...]
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class OsDriver:
    """How a group's OS image is installed. `reboot` says whether a new one runs only after a boot."""

    driver: Literal["netboot", "command"] = "netboot"
    directory: str = "/var/lib/netboot"
    reboot: bool = False


@dataclass(frozen=True, slots=True)
class RebootPolicy:
    """How a group's servers may be taken down. `warn` in seconds; `slots` None leaves etcd's value alone."""

    strategy: Strategy = "etcd-lock"
    lock_group: str = "default"
    slots: int | None = None
    windows: tuple[Window, ...] = ()
    timezone: str = "UTC"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    warn: float = 0.0
    health: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerGroup:
    name: str
    servers: frozenset[int]
    os_image: OsDriver = OsDriver()
    reboot: RebootPolicy = RebootPolicy()


DEFAULT_GROUP = ServerGroup("default", frozenset())


@dataclass(frozen=True, slots=True)
class WavePolicy:
    """A wave as git names it; `soak` in seconds after it is complete, before the next one begins."""

    servers: frozenset[int] = frozenset()
    groups: frozenset[str] = frozenset()
    soak: float = 0.0


@dataclass(frozen=True, slots=True)
class Budget:
    """How many servers of a wave may fail: a number, or a percentage of the wave, rounded down."""

    amount: int = 0
    percent: bool = False

    def of(self, servers: int) -> int:
        return servers * self.amount // 100 if self.percent else self.amount


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """`timeout` in seconds, None for the fleet's setting (`config/worker-timeout`) or its default."""

    waves: tuple[WavePolicy, ...] = ()
    timeout: float | None = None
    max_failures: Budget = Budget()
    prune: bool = True
    max_removals: int = 3
    require_pins: bool = False
    drift: Literal["report", "repair"] = "report"


@dataclass(frozen=True, slots=True)
class Desired:
    """A whole valid revision. Names are unique on each server and each server is in one group: `wire/desired` saw to it."""

    revision: Revision
    sets: tuple[ArtifactSet, ...] = ()
    groups: tuple[ServerGroup, ...] = ()
    policy: RolloutPolicy = RolloutPolicy()

    def group_of(self, lrn: int) -> ServerGroup:
        return next((group for group in self.groups if lrn in group.servers), DEFAULT_GROUP)

    def artifacts_of(self, lrn: int) -> dict[Key, Artifact]:
        """What server `lrn` should have, by key, sorted."""
        name = self.group_of(lrn).name
        found = {
            artifact.key: artifact
            for artifact_set in self.sets
            if not artifact_set.groups or name in artifact_set.groups
            for artifact in artifact_set.artifacts
        }
        return dict(sorted(found.items()))


# --- recorded: what etcd says is installed --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Detail:
    """`install/<lrn>/details/…`: the artifact as it was asked for, and what the host had then (digest, package version)."""

    desired: Artifact
    found: str
    revision: str
    installed_at: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Installed:
    """One recorded artifact. `detail` is None where Neco wrote it, or where the detail disagrees with the short key."""

    key: Key
    version: str
    detail: Detail | None = None

    @property
    def artifact(self) -> Artifact | Known:
        return self.detail.desired if self.detail else Known(self.key, self.version)


Recorded = Mapping[Key, Installed]


# --- the rollout ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wave:
    """A wave of one rollout: its servers in order, `soak` in seconds, and how many of them may fail."""

    servers: tuple[int, ...]
    soak: float = 0.0
    max_failures: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


Absence = Literal["failed", "silent", "removed", "disabled"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a server is left out of a rollout: `kind` is what decisions go by, `text` what people read."""

    kind: Absence
    text: str

    @property
    def counts(self) -> bool:
        """Whether it counts against `maxFailures`: a server that a person took out has not failed."""
        return self.kind in ("failed", "silent")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Rollout:
    """`status/current`. It carries its own rules (waves, budgets, `timeout` in seconds), so that any leader can lead it."""

    version: str
    servers: tuple[int, ...]
    started_at: str
    waves: tuple[Wave, ...]
    phases: tuple[str, ...] = PHASES
    plan_format: int | None = PLAN_FORMAT
    path: str = "desired-state"
    timeout: float = 3600.0
    stop: bool = False
    stopped_by: str | None = None
    out: Mapping[int, LeftOut] = field(default_factory=dict)
    outcome: str | None = None
    message: str = ""
    finished_at: str | None = None
    mod_revision: int = 0
    opened: int = 0
    """The etcd revision at which it was opened; 0 where that is not known."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a newer program: kept when the value is written again."""

    @property
    def id(self) -> str:
        return self.started_at

    @property
    def unfinished(self) -> bool:
        return self.outcome is None

    def is_older_than(self, added: int) -> bool:
        """Whether a server whose number was registered at etcd revision `added` came after this rollout was opened."""
        return 0 < self.opened < added

    def wave_of(self, lrn: int) -> int:
        """The number, from 1, of the wave that `lrn` is in; 0 if it is in none."""
        return next((number for number, wave in enumerate(self.waves, 1) if lrn in wave.servers), 0)


@dataclass(frozen=True, slots=True)
class OpenPhase:
    """`status/phase`: what is open now. `phase` counts from 1, as in `Rollout.phases`."""

    rollout: str
    wave: int
    phase: int
    mod_revision: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


NOT_RUNNING, RUNNING, ABORTED, COMPLETE = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """`status/bootservers/<lrn>`: `step` is the phase, from 1, for which the server is ready or in which it is."""

    version: str
    rollout: str
    step: int
    cond: int = RUNNING
    message: str = ""
    waiting: Literal["window", "slot"] | None = None
    mod_revision: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """`steps/<lrn>/<id>`: what a step was begun with and what became of it. `at` is RFC 3339."""

    id: str
    rollout: str
    state: Literal["running", "done", "failed"]
    attempt: int = 1
    boot_id: str = ""
    target: str = ""
    message: str = ""
    at: str = ""
    mod_revision: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Machine:
    """`info/machines/<lrn>`: whose number it is."""

    lrn: int
    machine_id: str
    removed: bool = False
    mod_revision: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Agent:
    """`leader/agents/<lrn>//<lease>`: one live agent, and what only it can know of its server.

    `trouble` says why it refuses the newest revision or cannot read git, `drift` counts what differs from the records.
    """

    lrn: int
    host: str
    machine_id: str
    lease: str
    create_revision: int = 0
    trouble: str = ""
    drift: int = 0
    reboot_required: bool = False


@dataclass(frozen=True, slots=True)
class Unopened:
    """Why the leader cannot open the rollout of `revision`. `refused`: for what is wrong with the revision itself, and not with the leader."""

    revision: str
    why: str
    refused: bool = True


@dataclass(frozen=True, slots=True)
class Told:
    """`leader/told`: the names of what stands and people have been told of, and what `status` says in the leader's place."""

    names: frozenset[str] = frozenset()
    unopened: Unopened | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leader:
    """The first in the line under `leader/updater//`; `token` is its key's create revision, which fences its writes."""

    host: str
    key: str
    token: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Who asked for something, why and when: a pause (with `until`, RFC 3339) or a disabled server."""

    who: str
    why: str
    since: str
    until: str | None = None
    mod_revision: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock group: its semaphore, each holder's record, and who waits, in order. `mod_revision` is the semaphore's, 0 if absent."""

    group: str
    semaphore: Semaphore = Semaphore()
    holders: tuple[Holder, ...] = ()
    waiters: tuple[Waiter, ...] = ()
    mod_revision: int = 0


@dataclass(frozen=True, slots=True)
class Waiter:
    """`…/waiters/<lease>`: the order is `create_revision`."""

    key: str
    machine_id: str
    lrn: int | None = None
    reason: str = ""
    create_revision: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """The `config/` keys, as they stand; None where a key is absent. Intervals in seconds."""

    slack: str | None = None
    proxy: str | None = None
    github_token: str | None = None
    check_update_interval: float | None = None
    worker_timeout: float | None = None
    release_time: str | None = None
    release_timezone: str | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that the leader, `status` and `--all` know of etcd, read at one etcd revision."""

    etcd_revision: int = 0
    servers: frozenset[int] = frozenset()
    added: Mapping[int, int] = field(default_factory=dict)
    """The etcd revision at which each of `servers` was registered, or added again after it had been removed."""
    machines: Mapping[int, Machine] = field(default_factory=dict)
    disabled: Mapping[int, Notice] = field(default_factory=dict)
    noted: str | None = None
    recorded: Mapping[int, Recorded] = field(default_factory=dict)
    rollout: Rollout | None = None
    phase: OpenPhase | None = None
    pins: Mapping[str, Pin] = field(default_factory=dict)
    statuses: Mapping[int, ServerStatus] = field(default_factory=dict)
    steps: Mapping[int, Mapping[str, StepRecord]] = field(default_factory=dict)
    leader: Leader | None = None
    agents: tuple[Agent, ...] = ()
    told: Told = Told()
    pause: Notice | None = None
    settings: Settings = Settings()
    locks: Mapping[str, Lock] = field(default_factory=dict)
    neco_at_work: str | None = None
    """Names the key by which a Neco updater or worker shows itself; None where none does."""


@dataclass(frozen=True, slots=True)
class Server:
    """What one agent acts on: its own keys, the rollout and what is open, read at one etcd revision, and two facts of the host."""

    lrn: int
    machine_id: str
    boot_id: str
    etcd_revision: int = 0
    added: int = 0
    """The etcd revision at which its number was registered, or added again; 0 where it is not in the fleet."""
    machine: Machine | None = None
    disabled: Notice | None = None
    recorded: Recorded = field(default_factory=dict)
    rollout: Rollout | None = None
    phase: OpenPhase | None = None
    pins: Mapping[str, Pin] = field(default_factory=dict)
    status: ServerStatus | None = None
    steps: Mapping[str, StepRecord] = field(default_factory=dict)
    lock: Lock | None = None
    pause: Notice | None = None
    settings: Settings = Settings()
    reboot_required: bool = False
    """The sentinel file is there."""
    neco_at_work: str | None = None

    @property
    def revision(self) -> str:
        """The revision that the newest rollout goes to; empty where there is none."""
        return self.rollout.version if self.rollout else ""
