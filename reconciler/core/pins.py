"""Which references must be resolved when a rollout opens, and which pins are taken over. Pure; called by the leader.

Only what the plan of some server needs has to be resolved: a registry that is away must not hold up a rollout that
changes nothing there. And what some server has already keeps its pin, so that all servers run the same content though a
tag has been moved meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from reconciler.core.artifact import Artifact, Image, Key, Known, Pin, reference
from reconciler.core.difference import difference
from reconciler.core.interrupted import interrupted
from reconciler.core.state import Desired, Fleet, Server


@dataclass(frozen=True, slots=True)
class Wanted:
    """References by how they get their pins. `kept`: as they were. `needed`: some server's plan cannot do without.

    `spare`: nobody changes them and no pin is known. They are resolved where that can be done, for a repair of drift.
    """

    kept: Mapping[str, Pin]
    needed: Mapping[str, Artifact]
    spare: Mapping[str, Artifact]


def wanted_pins(desired: Desired, fleet: Fleet, servers: Iterable[int]) -> Wanted:
    """What a rollout of `desired` on `servers` has to resolve. `fleet` with all that is recorded, and all step records."""
    artifacts: dict[str, Mapping[Key, Artifact]] = {}
    changed: dict[str, Artifact] = {}
    asked: dict[str, Artifact] = {}
    for lrn in servers:
        group = desired.group_of(lrn).name
        if group not in artifacts:
            artifacts[group] = desired.artifacts_of(lrn)
            asked |= _by_reference(artifacts[group].values())
        recorded = fleet.recorded.get(lrn, {})
        before = {key: installed.artifact for key, installed in recorded.items()}
        server = Server(lrn, "", "", recorded=recorded, steps=fleet.steps.get(lrn, {}))
        changes = difference(before, artifacts[group], interrupted=interrupted(server))
        changed |= _by_reference(
            change.after for change in changes if change.after and not isinstance(change.after, Known)
        )
    there = {
        _content(installed.detail.desired)
        for recorded in fleet.recorded.values()
        for installed in recorded.values()
        if installed.detail
    }
    kept = {
        name: fleet.pins[name]
        for name, artifact in asked.items()
        if name in fleet.pins and _content(artifact) in there
    }
    left = {name: artifact for name, artifact in asked.items() if name not in kept}
    return Wanted(
        kept,
        {name: artifact for name, artifact in left.items() if name in changed},
        {name: artifact for name, artifact in left.items() if name not in changed},
    )


def _by_reference(artifacts: Iterable[Artifact]) -> dict[str, Artifact]:
    return {name: artifact for artifact in artifacts if (name := reference(artifact)) is not None}


def _content(artifact: Artifact) -> Artifact:
    """What decides which bytes are fetched: how an image is run does not."""
    return replace(artifact, name="", container=None) if isinstance(artifact, Image) else artifact
