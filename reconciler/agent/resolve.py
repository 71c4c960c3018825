"""Resolves every tag and release of a revision once, so that all servers run the same content. Called by the leader before it opens a rollout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from reconciler.core.artifact import Artifact, Kind, Pin, reference
from reconciler.core.state import Desired
from reconciler.errors import ReconcilerError, Unavailable, Unfetchable

_AT_ONCE = 8


class Resolver(Protocol):
    """Says what one kind of artifact's reference stands for now; None where the reference is exact by itself."""

    def resolve(self, artifact: Artifact) -> Pin | None: ...


def resolve(desired: Desired, servers: Iterable[int], resolvers: Mapping[Kind, Resolver]) -> dict[str, Pin]:
    """The pins of all that these servers should have, by reference.

    Raises `Unfetchable` that names every reference that does not exist or is not what git asks for; `Unavailable` where
    the only trouble is that something cannot be reached now.
    """
    groups = {desired.group_of(lrn).name: lrn for lrn in servers}
    wanted: dict[str, Artifact] = {}
    for lrn in groups.values():
        for artifact in desired.artifacts_of(lrn).values():
            name = reference(artifact)
            if name is not None:
                wanted[name] = artifact
    errors: list[ReconcilerError] = []

    def one(artifact: Artifact) -> Pin | None:
        try:
            return resolvers[artifact.key.kind].resolve(artifact)
        except ReconcilerError as error:
            errors.append(error)
            return None

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="resolve") as pool:
        pins = dict(zip(wanted, pool.map(one, wanted.values()), strict=True))
    if errors:
        kind = Unavailable if all(isinstance(error, Unavailable) for error in errors) else Unfetchable
        texts = "\n".join(sorted(str(error) for error in errors))
        raise kind(f"cannot open a rollout of {desired.revision.id[:12]}:\n{texts}")
    return {name: pin for name, pin in pins.items() if pin}
