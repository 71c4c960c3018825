"""The plan of one server: from changes to ordered steps. Pure; called by the agent, the command and the web's plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from reconciler.core.artifact import OS_IMAGE, Artifact, Image, Key
from reconciler.core.change import Change
from reconciler.core.difference import difference
from reconciler.core.state import Desired, RebootPolicy, Recorded, ServerGroup
from reconciler.errors import Refused

Effect = Literal["fetch", "acquire", "hook", "warn", "stop", "change", "reboot", "health", "release"]


@dataclass(frozen=True, slots=True)
class Step:
    """One effect. `subject` None means the host itself. `list` and `index` place a hook: `before`, `after` or `started`, from 0."""

    phase: str
    subject: Key | None
    effect: Effect
    list: str | None = None
    index: int | None = None
    needs: tuple[str, ...] = ()
    change: Change | None = None
    hook: str | None = None

    @property
    def id(self) -> str:
        subject = self.subject.subject if self.subject else "host"
        tail = f":{self.list}:{self.index}" if self.list is not None else ""
        return f"{self.phase}:{subject}:{self.effect}{tail}"


def effect_of(id: str) -> str:
    """The effect of the step that a record's `id` names."""
    return id.split(":")[2]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one server does, in the order of execution. Equal inputs give equal plans. `reboot` holds the rules of its group.

    `os` is the version of the OS that a boot of this server has to bring; empty where none is desired, or only one for others.
    """

    lrn: int
    group: str
    wave: int
    changes: tuple[Change, ...] = ()
    steps: tuple[Step, ...] = ()
    reboot: RebootPolicy = RebootPolicy()
    os: str = ""

    def steps_of(self, phase: str) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.phase == phase)


OWN = "reconciler"
"""The name of the agent's own image or package."""
LAST = ("etcd", OWN)
"""Names that come last in their phase: the etcd that the agents use, and after it the agent itself."""


def make_plan(
    desired: Desired,
    recorded: Recorded,
    lrn: int,
    *,
    observed: frozenset[Key] = frozenset(),
    interrupted: frozenset[Key] = frozenset(),
    begun: frozenset[str] = frozenset(),
    users: Mapping[Key, frozenset[Key]] | None = None,
    wave: int = 1,
) -> Plan:
    """The plan that takes server `lrn` from what is recorded to what is desired.

    `observed` are the artifacts that the host already has as desired (they are only recorded), `interrupted` those
    whose last change was begun and not settled, `begun` the ids of the steps that have a record in the rollout that
    the plan is for: what has begun stays in the plan until its last step, though it is recorded by then. `users` are,
    by package, those of the packages to be removed that need it on this host, and so go before it.

    Raises `Refused` where more would be removed than the revision's `maxRemovals`.
    """
    group = desired.group_of(lrn)
    before = {key: installed.artifact for key, installed in recorded.items()}
    after = desired.artifacts_of(lrn)
    found = [
        _as_found(change, observed, begun) for change in difference(before, after, interrupted=interrupted)
    ]
    changes = [
        _with_reboot(change, group) for change in found if desired.policy.prune or change.action != "remove"
    ]
    removals = [change.key.subject for change in changes if change.action == "remove"]
    if len(removals) > desired.policy.max_removals:
        raise Refused(
            f"cannot plan server {lrn} for {desired.revision.id[:12]}: it would remove {len(removals)} artifacts "
            f"({', '.join(removals)}), and maxRemovals is {desired.policy.max_removals}: raise it in the "
            "RolloutPolicy if this is meant"
        )
    planned = {change.key for change in changes}
    resumed = [
        Change(
            key, "record", artifact, artifact, "interrupted", reboot=key == OS_IMAGE and group.os_image.reboot
        )
        for key, artifact in after.items()
        if key not in planned and any(_subject_of(step) == key.subject for step in begun)
    ]
    steps = _steps([*changes, *resumed], begun, group, users or {})
    own = after.get(OS_IMAGE) if group.os_image.driver == "command" else None
    return Plan(lrn, group.name, wave, tuple(changes), steps, group.reboot, own.version if own else "")


def to_look_for(
    desired: Desired, recorded: Recorded, lrn: int, interrupted: frozenset[Key]
) -> tuple[tuple[Artifact, ...], tuple[Key, ...]]:
    """What a plan would bring to server `lrn`, and what it would remove: worth a look at the host before the plan is made."""
    before = {key: installed.artifact for key, installed in recorded.items()}
    after = desired.artifacts_of(lrn)
    changes = difference(before, after, interrupted=interrupted)
    gone = [change.key for change in changes if change.action == "remove" and desired.policy.prune]
    return tuple(after[change.key] for change in changes if change.key in after), tuple(gone)


def make_repair(recorded: Recorded, differs: Iterable[Change], lrn: int, group: ServerGroup) -> Plan:
    """The plan that puts right what `differs` on server `lrn` (the changes of `difference.drift`) from what is recorded.

    Its steps are those of any change, with the same slots; it reboots nothing, and what is in no record is left alone.
    """
    changes = []
    for differing in differs:
        entry = recorded.get(differing.key)
        if entry is not None and entry.detail is not None and differing.reason != "unexpected_on_host":
            wanted = entry.detail.desired
            runs = isinstance(wanted, Image) and wanted.container is not None
            reason = differing.reason
            changes.append(Change(differing.key, "replace", differing.after, wanted, reason, restart=runs))
    steps = [
        step for step in _steps(changes, frozenset(), group, {}) if step.phase not in ("reboot", "verify")
    ]
    return Plan(lrn, group.name, 0, tuple(changes), tuple(steps), group.reboot)


def make_bare_plan(lrn: int, group: ServerGroup) -> Plan:
    """A plan of no change: enough to bring back up, by `group`'s rules, a server whose revision cannot be planned."""
    return Plan(lrn, group.name, 0, (), _chain_of_reboot(group.reboot), group.reboot)


def _chain_of_reboot(rules: RebootPolicy) -> tuple[Step, ...]:
    return tuple(_chain(_reboot_steps(rules), ()))


def _as_found(change: Change, observed: frozenset[Key], begun: frozenset[str]) -> Change:
    """A change that the host shows as made already is only recorded; one that has begun goes its way to the end."""
    if change.key not in observed or change.action == "remove":
        return change
    if change.key == OS_IMAGE and change.reason == "interrupted":
        # It runs, and yet another one may be staged, which the next boot would bring.
        return change
    if any(_subject_of(step) == change.key.subject and not step.startswith("prefetch:") for step in begun):
        return change
    return replace(change, action="record", reason="found_on_host", restart=False)


def _with_reboot(change: Change, group: ServerGroup) -> Change:
    if change.key != OS_IMAGE or change.action in ("record", "remove"):
        return change
    return replace(change, reboot=group.os_image.reboot)


def _steps(
    changes: Iterable[Change],
    begun: frozenset[str],
    group: ServerGroup,
    users: Mapping[Key, frozenset[Key]],
) -> tuple[Step, ...]:
    changes = list(changes)
    images = _in_order([change for change in changes if change.key.kind == "image"])
    debs = _debs_in_order([change for change in changes if change.key.kind == "deb"], users)
    os_images = [change for change in changes if change.key.kind == "os-image"]
    steps = [
        Step("prefetch", change.key, "fetch", change=change) for change in changes if _needs_fetch(change)
    ]
    fetched = {step.subject: step.id for step in steps}

    def needs(change: Change) -> tuple[str, ...]:
        return (fetched[change.key],) if change.key in fetched else ()

    steps += [Step("debs", change.key, "change", needs=needs(change), change=change) for change in debs]
    stops = [
        Step("stop", change.key, "stop", needs=needs(change), change=change)
        for change in images
        if _stops(change, begun)
    ]
    steps += stops
    stopped = {step.subject: step.id for step in stops}
    last: dict[str, str] = {}
    for change in images:
        before = [*needs(change), *([stopped[change.key]] if change.key in stopped else [])]
        before += [last[name] for name in _after(change) if name in last]
        chain = _chain(_container_steps(change, begun), tuple(before))
        last[change.key.name] = chain[-1].id
        steps += chain
    steps += [
        Step("os-image", change.key, "change", needs=needs(change), change=change) for change in os_images
    ]
    steps += _chain(_reboot_steps(group.reboot), ())
    steps.append(Step("verify", None, "health"))
    return tuple(steps)


def _needs_fetch(change: Change) -> bool:
    match change.action:
        case "install" | "upgrade" | "downgrade":
            return True
        case "replace":
            return change.reason != "definition_changed"
        case "record" | "remove":
            return False
        case _:
            assert_never(change.action)


def _debs_in_order(changes: list[Change], users: Mapping[Key, frozenset[Key]]) -> list[Change]:
    """Removals last: while they are still to come, nothing that a new package takes over is missing.

    What needs another goes before it; of two that need each other the first by name, whose removal then says so.
    """
    waiting = sorted(
        changes, key=lambda change: (change.action == "remove", _last(change.key.name), change.key.name)
    )
    ordered: list[Change] = []
    while waiting:
        going = {change.key for change in waiting if change.action == "remove"}
        free = (c for c in waiting if c.action != "remove" or not going & users.get(c.key, frozenset()))
        chosen = next(free, waiting[0])
        waiting.remove(chosen)
        ordered.append(chosen)
    return ordered


def _last(name: str) -> int:
    return LAST.index(name) + 1 if name in LAST else 0


def _in_order(changes: list[Change]) -> list[Change]:
    """Images in the order in which they change: removals first (they may hold a port), `after` kept, `LAST` last, else by name."""
    waiting = sorted(
        changes, key=lambda change: (change.action != "remove", _last(change.key.name), change.key.name)
    )
    ordered: list[Change] = []
    while waiting:
        names = {change.key.name for change in waiting}
        # The names form no cycle (wire/desired refuses one), so there is always one that waits for nobody.
        chosen = next((c for c in waiting if not names & (set(_after(c)) - {c.key.name})), waiting[0])
        waiting.remove(chosen)
        ordered.append(chosen)
    return ordered


def _after(change: Change) -> tuple[str, ...]:
    artifact = change.after
    return artifact.container.after if isinstance(artifact, Image) and artifact.container else ()


def _stops(change: Change, begun: frozenset[str]) -> bool:
    artifact = change.after
    if not (isinstance(artifact, Image) and artifact.container and artifact.container.update == "stop-all"):
        return False
    return change.restart or f"stop:{change.key.subject}:stop" in begun


def _container_steps(change: Change, begun: frozenset[str]) -> list[Step]:
    phase, key, artifact = "containers", change.key, change.after
    made = Step(phase, key, "change", change=change)
    if change.action == "remove" or not (isinstance(artifact, Image) and artifact.container):
        return [made]
    if change.action == "record" and change.reason == "found_on_host":
        return [made]
    acquire = Step(phase, key, "acquire", change=change)
    real = {acquire.id, f"stop:{key.subject}:stop"} & begun
    if change.action == "record" and artifact.container.update != "parallel" and not real:
        return [made]  # found on the host, and only recorded
    hooks = [
        Step(phase, key, "hook", "started", index, change=change, hook=name)
        for index, name in enumerate(artifact.container.started)
    ]
    steps = [made, *hooks, Step(phase, key, "health", change=change)]
    if acquire.id in begun or (change.restart and artifact.container.update == "rolling"):
        return [acquire, *steps, Step(phase, key, "release", change=change)]
    return steps


def _reboot_steps(rules: RebootPolicy) -> list[Step]:
    """In every plan whose servers we may reboot; `advance` skips them where nothing asks for a reboot."""
    if rules.strategy == "off":
        return []
    before = [
        Step("reboot", None, "hook", "before", index, hook=name) for index, name in enumerate(rules.before)
    ]
    after = [
        Step("reboot", None, "hook", "after", index, hook=name) for index, name in enumerate(rules.after)
    ]
    warn = [Step("reboot", None, "warn")] if rules.warn else []
    steps = [*before, *warn, Step("reboot", None, "reboot"), *after, Step("reboot", None, "health")]
    if rules.strategy == "reboot":
        return steps
    return [Step("reboot", None, "acquire"), *steps, Step("reboot", None, "release")]


def _chain(steps: list[Step], first: tuple[str, ...]) -> list[Step]:
    """Each step needs the one before it; the first needs `first`."""
    needs = [first, *((step.id,) for step in steps)][: len(steps)]
    return [replace(step, needs=need) for step, need in zip(steps, needs, strict=True)]


def _subject_of(step_id: str) -> str:
    return step_id.split(":", 2)[1]
