"""Plans as JSON, as `schemas/plan.json` says, with their digest. Pure; called by the command and the web.

Equal inputs give byte-equal JSON: everything is sorted where it is made, and the digest is taken over the canonical text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from reconciler.core.artifact import Artifact, Known
from reconciler.core.change import Change
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Desired
from reconciler.wire.artifact import artifact_json

FORMAT_VERSION = 1


def plan_json(
    plans: Iterable[Plan], desired: Desired, etcd_revision: int, reboot_required: str | None = None
) -> dict[str, Any]:
    """The plans of some servers, by number, with summary and digest. `reboot_required`: the file by which their host asks for a reboot."""
    ordered = sorted(plans, key=lambda plan: plan.lrn)
    writer = _Writer()
    servers = [writer.server(plan) for plan in ordered]
    summary = _summary(ordered, desired)
    revision = desired.revision
    return {
        "format_version": FORMAT_VERSION,
        "desired": {
            "repo": revision.repo,
            "ref": revision.ref,
            "revision": revision.id,
            "signer": revision.signer,
        },
        "etcd_revision": etcd_revision,
        "digest": _digest(revision.id, reboot_required, summary, servers),
        "reboot_required": reboot_required,
        "summary": summary,
        "servers": servers,
    }


class _Writer:
    """Writes an artifact, and equal servers' changes and steps, once, though thousands of plans share them."""

    def __init__(self) -> None:
        self._written: dict[int, dict[str, Any]] = {}
        self._shared: dict[tuple[int, int], tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}

    def server(self, plan: Plan) -> dict[str, Any]:
        # By identity, as the artifacts below: plans that were made together share their tuples.
        same = (id(plan.changes), id(plan.steps))
        if same not in self._shared:
            changes = [self.change(change) for change in plan.changes]
            self._shared[same] = (changes, [_step_json(step) for step in plan.steps])
        changes, steps = self._shared[same]
        return {"lrn": plan.lrn, "group": plan.group, "wave": plan.wave, "changes": changes, "steps": steps}

    def change(self, change: Change) -> dict[str, Any]:
        return {
            "kind": change.key.kind,
            "name": change.key.name,
            "action": change.action,
            "before": self._artifact(change.before),
            "after": self._artifact(change.after),
            "fields": list(change.fields),
            "reason": change.reason,
            "restart": change.restart,
            "reboot": change.reboot,
            "pinned": change.pinned,
        }

    def _artifact(self, artifact: Artifact | Known | None) -> dict[str, Any] | None:
        if artifact is None:
            return None
        # By identity: comparing them by value would cost as much as writing them. The plans keep them alive meanwhile.
        written = self._written.get(id(artifact))
        if written is None:
            written = self._written[id(artifact)] = artifact_json(artifact)
        return written


def change_json(change: Change) -> dict[str, Any]:
    """One change, as a plan has it."""
    return _Writer().change(change)


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "id": step.id,
        "phase": step.phase,
        "step": step.effect,
        "subject": step.subject.subject if step.subject else "host",
        "needs": list(step.needs),
    }


def _summary(plans: Sequence[Plan], desired: Desired) -> dict[str, int]:
    counted = {"install": 0, "change": 0, "record": 0, "remove": 0}
    wanted: dict[str, int] = {}
    unchanged = restarts = reboots = 0
    for plan in plans:
        if plan.group not in wanted:
            wanted[plan.group] = len(_keys(desired, plan.group))
        unchanged += wanted[plan.group] - sum(change.action != "remove" for change in plan.changes)
        for change in plan.changes:
            counted[change.action if change.action in counted else "change"] += 1
            restarts += change.restart
        reboots += any(change.reboot for change in plan.changes)
    return {
        **counted,
        "unchanged": unchanged,
        "restarts": restarts,
        "reboots": reboots,
        "servers": len(plans),
    }


def _keys(desired: Desired, group: str) -> set[tuple[str, str]]:
    return {
        artifact.key
        for artifact_set in desired.sets
        if not artifact_set.groups or group in artifact_set.groups
        for artifact in artifact_set.artifacts
    }


def _digest(
    revision: str, reboot_required: str | None, summary: dict[str, int], servers: Sequence[dict[str, Any]]
) -> str:
    """SHA-256 of the canonical JSON without what says where it came from: `etcd_revision`, `repo`, `ref` and `signer`."""
    digest = hashlib.sha256()
    for part in _canonical(revision, reboot_required, summary, servers):
        digest.update(part.encode())
    return f"sha256:{digest.hexdigest()}"


def _canonical(
    revision: str, reboot_required: str | None, summary: dict[str, int], servers: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """The canonical text in parts, so that a fleet's plan is never one string in memory."""
    head = {
        "desired": {"revision": revision},
        "format_version": FORMAT_VERSION,
        "reboot_required": reboot_required,
    }
    yield _text(head)[:-1] + ',"servers":['
    for index, server in enumerate(servers):
        yield ("," if index else "") + _text(server)
    yield f'],"summary":{_text(summary)}}}'


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
