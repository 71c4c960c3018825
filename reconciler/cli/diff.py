"""`reconcile diff [REV] [REV]`: what changes between two revisions' desired states. Needs no etcd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from reconciler.cli.program import Call, Verb
from reconciler.core.change import Change
from reconciler.core.difference import difference
from reconciler.core.state import DEFAULT_GROUP, ArtifactSet, Desired, ServerGroup


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """What changes for the servers of one group, as it is afterwards; `default` stands for servers in no group."""

    group: ServerGroup
    changes: tuple[Change, ...]


@click.command("diff", cls=Verb)
@click.argument("before", metavar="[REV]", required=False)
@click.argument("after", metavar="[REV]", required=False)
@click.pass_obj
def diff(call: Call, before: str | None, after: str | None) -> int:
    """Show what changes from the first revision to the second.

    With one REV the second is what --ref names; with none, the first is the commit before that.
    """
    from reconciler.cli import compose

    options = call.options
    new = compose.desired(options, after)
    old = compose.desired(options, before or f"{new.revision.id}~1")
    groups = group_differences(old, new)
    rules = _rules(old, new)
    if options.output == "json":
        compose.print_json(_document(old, new, groups))
    else:
        click.echo(_text(old, new, groups, rules, compose.paint(options)))
    return 0


def group_differences(old: Desired, new: Desired) -> list[GroupDifference]:
    """For each group of either revision what its servers' artifacts become; groups in which nothing changes are left out."""
    groups = {group.name: group for group in (DEFAULT_GROUP, *old.groups, *new.groups)}
    found = []
    for group in groups.values():
        changes = difference(_of_group(old, group.name), _of_group(new, group.name))
        if changes:
            found.append(GroupDifference(group, changes))
    return sorted(found, key=lambda entry: entry.group.name)


def _of_group(desired: Desired, name: str) -> dict[Any, Any]:
    def applies(part: ArtifactSet) -> bool:
        return not part.groups or name in part.groups

    return {entry.key: entry for part in desired.sets if applies(part) for entry in part.artifacts}


def _rules(old: Desired, new: Desired) -> list[str]:
    """What changes in server groups and in the rollout policy, a line a place."""
    before, after = _rules_document(old), _rules_document(new)
    if before == after:
        return []
    from reconciler.cli.render import differing

    return differing(before, after)


def _rules_document(desired: Desired) -> dict[str, Any]:
    groups = {group.name: _sorted_sets(asdict(group)) for group in desired.groups}
    return {"ServerGroup": groups, "RolloutPolicy": _sorted_sets(asdict(desired.policy))}


def _sorted_sets(value: Any) -> Any:
    """`value` with its sets as sorted lists, which compare and print alike every time."""
    match value:
        case dict():
            return {name: _sorted_sets(entry) for name, entry in value.items()}
        case frozenset():
            return sorted(value)
        case tuple() | list():
            return [_sorted_sets(entry) for entry in value]
        case _:
            return value


def _document(old: Desired, new: Desired, groups: Sequence[GroupDifference]) -> dict[str, Any]:
    from reconciler.wire.plan import change_json

    return {
        "format_version": 1,
        "before": old.revision.id,
        "after": new.revision.id,
        "groups": [
            {
                "group": entry.group.name,
                "changes": [change_json(change) for change in entry.changes],
            }
            for entry in groups
        ],
        "rules": {"before": _rules_document(old), "after": _rules_document(new)},
    }


def _text(
    old: Desired, new: Desired, groups: Sequence[GroupDifference], rules: Sequence[str], paint: Any
) -> str:
    from reconciler.cli.render import change_lines, revision_text, short_id

    lines = [f"{short_id(old.revision.id)} → {revision_text(new.revision)}"]
    same_for_all = len({entry.changes for entry in groups}) == 1 and len(groups) == 1 + len(
        {group.name for group in (*old.groups, *new.groups)} - {DEFAULT_GROUP.name}
    )
    for entry in groups[:1] if same_for_all else groups:
        if not same_for_all:
            lines += ["", paint(f"Group {entry.group.name}", "bold")]
        lines += change_lines(entry.changes, entry.group.reboot, paint)
    if rules:
        lines += ["", paint("Rules", "bold"), *(f" {line}" for line in rules)]
    if not groups and not rules:
        lines.append("Nothing changes.")
    return "\n".join(lines)
