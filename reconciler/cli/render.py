"""What people read: a plan, a difference, a table. Pure: values in, text out. Called by the verbs of `cli/`.

`deepdiff` is imported here only, and only where something inside an artifact differs: it takes 0.1 s to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, Final

import click

from reconciler.core.artifact import OS_IMAGE, Artifact, Image, Key, Known
from reconciler.core.change import Action, Change
from reconciler.core.plan import Plan
from reconciler.core.state import RebootPolicy, Revision

SIGNS: Final[Mapping[Action, str]] = {
    "install": "+",
    "upgrade": "~",
    "downgrade": "~",
    "replace": "~",
    "record": "=",
    "remove": "-",
}
_COLOURS: Final = {"+": "green", "~": "yellow", "=": "cyan", "-": "red"}
_VERSION_FIELDS: Final = frozenset({"tag", "release", "version", "channel"})
_SHORT = 7
_SHOWN_VALUE = 100

Paint = Callable[[str, str], str]
"""Text and a colour (or `bold`, `dim`) to what is printed."""


def plain(text: str, _colour: str) -> str:
    return text


def coloured(text: str, colour: str) -> str:
    if colour in ("bold", "dim"):
        return click.style(text, bold=colour == "bold" or None, dim=colour == "dim" or None)
    return click.style(text, fg=colour)


def revision_text(revision: Revision) -> str:
    """`main@1a2b3c4 (signed by ops)`; a plain directory by its path."""
    short = short_id(revision.id)
    name = f"{revision.ref}@{short}" if revision.ref else f"{revision.repo}@{short}"
    return f"{name} (signed by {revision.signer})" if revision.signer else name


def short_id(revision: str) -> str:
    """A commit's first digits; those of a directory's digest keep their `sha256:`."""
    scheme, colon, digits = revision.rpartition(":")
    return f"{scheme}{colon}{digits[:_SHORT]}"


def plan_text(
    plans: Sequence[Plan],
    revision: Revision,
    recorded: str,
    slots: Mapping[str, int],
    paint: Paint = plain,
) -> str:
    """The plan of one server or of several, servers with equal changes together, and what it comes to."""
    lines = [f"Desired   {revision_text(revision):<33}  Recorded  {recorded}"]
    together = _together(plans)
    for (group, wave, changes, rules), servers in together:
        if len(plans) > 1:
            lines += ["", paint(_servers_text(servers, group, wave), "bold")]
        if not changes and len(plans) > 1:
            lines.append(" nothing to do")
        lines += change_lines(changes, rules, paint)
    return "\n".join([*lines, _summary(plans, slots, revision)])


def reboot_text(sentinel: str, rules: RebootPolicy) -> str:
    """What becomes of a reboot that a file on the host asks for."""
    lock = f" (lock {rules.lock_group})" if rules.strategy == "etcd-lock" else ""
    what = (
        "its server group's strategy is off, and nothing here reboots it"
        if rules.strategy == "off"
        else f"its agent reboots it in the next rollout's reboot phase{lock}"
    )
    return f"Reboot required: {sentinel} asks for one; {what}."


def change_lines(changes: Sequence[Change], rules: RebootPolicy, paint: Paint = plain) -> list[str]:
    """A line for each change, in columns, and under it what differs inside the artifact."""
    rows = [_row(change, rules) for change in changes]
    name = max((len(row[2]) for row in rows), default=0) + 2
    version = max((len(row[3]) for row in rows), default=0)
    reason = max((len(row[5]) for row in rows), default=0)
    lines: list[str] = []
    for change, (sign, kind, *rest) in zip(changes, rows, strict=True):
        text = (
            f"{kind:<5} {rest[0]:<{name}}{rest[1]:<{max(version, 41) + 2}}"
            f"{rest[2]:<11}{rest[3]:<{max(reason, 16) + 2}}{rest[4]}"
        )
        lines.append(paint(f" {sign} {text}".rstrip(), _COLOURS[sign]))
        lines += [paint(f"     {line}", "dim") for line in inside(change)]
    return lines


def inside(change: Change) -> list[str]:
    """What differs inside an artifact beside its version, one line a place; nothing for one that is new or goes."""
    if change.action not in ("upgrade", "downgrade", "replace"):
        return []
    if not set(change.fields) - _VERSION_FIELDS:
        return []
    return differing(artifact_fields(change.before), artifact_fields(change.after))


def artifact_fields(artifact: Artifact | Known | None) -> Mapping[str, Any]:
    from reconciler.wire.artifact import artifact_json

    return {} if artifact is None else artifact_json(artifact)


def differing(before: Any, after: Any) -> list[str]:
    """`container.args[1]: "a" → "b"` for each place where two values (or frozen dataclasses) differ, in order of place."""
    from deepdiff import DeepDiff

    tree = DeepDiff(_plain_value(before), _plain_value(after), view="tree", threshold_to_diff_deeper=0)
    found: list[tuple[str, str]] = []
    for kind, entries in tree.items():
        for entry in entries:
            place = _place_text(entry.path(output_format="list"))
            if kind.endswith("_added"):
                found.append((place, f"+ {place}: {_value_text(entry.t2)}"))
            elif kind.endswith("_removed"):
                found.append((place, f"- {place}: {_value_text(entry.t1)}"))
            else:
                found.append((place, f"{place}: {_value_text(entry.t1)} → {_value_text(entry.t2)}"))
    return [line for _, line in sorted(found)]


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    """Rows in aligned columns under a header."""
    all_rows = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in all_rows
    )


def numbers_text(numbers: Iterable[int]) -> str:
    """Server numbers as people write them: `0-4, 7`."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 server`, `2 servers`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _row(change: Change, rules: RebootPolicy) -> tuple[str, str, str, str, str, str, str]:
    """Sign, kind, name, versions, action, reason, notes."""
    return (
        SIGNS[change.action],
        "os" if change.key == OS_IMAGE else change.key.kind,
        _name(change),
        _versions(change),
        change.action,
        change.reason,
        _notes(change, rules),
    )


def _name(change: Change) -> str:
    if change.key != OS_IMAGE:
        return change.key.name
    version = _version(change.after) or _version(change.before)
    return version.rpartition("/")[0] or change.key.name


def _versions(change: Change) -> str:
    before, after = _shown_versions(change.key, change.before, change.after)
    if before and after and before != after and change.action not in ("install", "record", "remove"):
        return f"{before} → {after}"
    return after or before


def _shown_versions(
    key: Key, before: Artifact | Known | None, after: Artifact | Known | None
) -> tuple[str, str]:
    old, new = _version(before), _version(after)
    if key != OS_IMAGE:
        return old, new
    (old_channel, _, old_release), (new_channel, _, new_release) = old.rpartition("/"), new.rpartition("/")
    if old and new and old_channel != new_channel:
        return old, new
    return old_release, new_release


def _version(artifact: Artifact | Known | None) -> str:
    return artifact.version if artifact else ""


def _notes(change: Change, rules: RebootPolicy) -> str:
    notes = []
    if change.restart:
        notes.append(f"restart ({_restart_text(change, rules)})")
    if change.reboot:
        lock = {"etcd-lock": f"lock {rules.lock_group}", "reboot": "no lock", "off": "by hand"}
        notes.append(f"reboot ({lock[rules.strategy]})")
    if not change.pinned and change.action != "remove":
        notes.append("unpinned")
    return ", ".join(notes)


def _restart_text(change: Change, rules: RebootPolicy) -> str:
    update = _update(change)
    return f"lock {rules.lock_group}" if update == "rolling" else update


def _update(change: Change) -> str:
    artifact = change.after
    return artifact.container.update if isinstance(artifact, Image) and artifact.container else "rolling"


Together = tuple[tuple[str, int, tuple[Change, ...], RebootPolicy], tuple[int, ...]]


def _together(plans: Sequence[Plan]) -> list[Together]:
    """Servers with equal changes, group and wave, in the order of their first server; those with nothing to do last."""
    found: dict[tuple[str, int, tuple[Change, ...], RebootPolicy], list[int]] = {}
    for plan in plans:
        found.setdefault((plan.group, plan.wave, plan.changes, plan.reboot), []).append(plan.lrn)
    ordered = sorted(found.items(), key=lambda entry: (not entry[0][2], min(entry[1])))
    return [(same, tuple(servers)) for same, servers in ordered]


def _servers_text(servers: Sequence[int], group: str, wave: int) -> str:
    word = "Server" if len(servers) == 1 else f"{len(servers)} servers:"
    return f"{word} {numbers_text(servers)} (group {group}, wave {wave})"


def _summary(plans: Sequence[Plan], slots: Mapping[str, int], revision: Revision) -> str:
    where = f"server {plans[0].lrn}" if len(plans) == 1 else counted(len(plans), "server")
    changes = [change for plan in plans for change in plan.changes]
    if not changes:
        verb = "is" if len(plans) == 1 else "are"
        return f"Nothing to do: {where} {verb} as {revision_text(revision)} asks."
    actions = [change.action for change in changes]
    counts = (
        (actions.count("install"), "to install"),
        (sum(action in ("upgrade", "downgrade", "replace") for action in actions), "to change"),
        (actions.count("record"), "to record"),
        (actions.count("remove"), "to remove"),
    )
    what = ", ".join(f"{number} {words}" for number, words in counts if number)
    return f"Plan: {what} on {where}; {_downtime(plans, slots)}."


def _downtime(plans: Sequence[Plan], slots: Mapping[str, int]) -> str:
    restarts = sum(change.restart for plan in plans for change in plan.changes)
    reboots = sum(change.reboot for plan in plans for change in plan.changes)
    if not restarts and not reboots:
        return "no restart and no reboot"
    parts = [text for number, text in ((restarts, "restart"), (reboots, "reboot")) if number]
    numbers = {"restart": restarts, "reboot": reboots}
    what = " and ".join(counted(numbers[part], part) for part in parts)
    return f"{what}, at most {counted(at_most_down(plans, slots), 'server')} down at once"


def at_most_down(plans: Sequence[Plan], slots: Mapping[str, int]) -> int:
    """How many servers these plans may take down at the same time: no more than a lock group's slots, or than a wave
    where nothing asks for a slot. `slots` has the lock groups' maximum as etcd has it; 1 where it has none."""
    locked: dict[str, int] = {}
    free: dict[int, int] = {}
    for plan in plans:
        if _goes_down_freely(plan):
            free[plan.wave] = free.get(plan.wave, 0) + 1
        elif any(
            change.restart or (change.reboot and plan.reboot.strategy != "off") for change in plan.changes
        ):
            locked[plan.reboot.lock_group] = locked.get(plan.reboot.lock_group, 0) + 1
    maxima = {plan.reboot.lock_group: plan.reboot.slots for plan in plans if plan.reboot.slots is not None}
    allowed = {**slots, **maxima}
    held = sum(min(number, allowed.get(group, 1)) for group, number in locked.items())
    return held + max(free.values(), default=0)


def _goes_down_freely(plan: Plan) -> bool:
    """Whether something in the plan is down without a slot: a reboot without the lock, a restart that is not rolling."""
    return any(
        (change.reboot and plan.reboot.strategy == "reboot")
        or (change.restart and _update(change) != "rolling")
        for change in plan.changes
    )


def _plain_value(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _place_text(place: Sequence[Any]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _value_text(value: Any) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text
    return text if len(text) <= _SHOWN_VALUE else text[:_SHOWN_VALUE] + "…"
