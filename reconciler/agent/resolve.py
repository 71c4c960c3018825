"""Resolves each tag and release that a rollout needs once, so that all servers run the same content. Called by the leader before it opens one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from reconciler.core.artifact import Artifact, Kind, Pin
from reconciler.core.pins import Wanted
from reconciler.errors import HostError, ReconcilerError, Unavailable, Unfetchable

log = logging.getLogger(__name__)

_AT_ONCE = 8


class Resolver(Protocol):
    """Says what one kind of artifact's reference stands for now; None where the reference is exact by itself."""

    def resolve(self, artifact: Artifact) -> Pin | None: ...


def resolve(wanted: Wanted, revision: str, resolvers: Mapping[Kind, Resolver]) -> dict[str, Pin]:
    """The pins of a rollout of `revision`, by reference.

    Raises `Unfetchable` that names every reference that is needed and does not exist or is not what git asks for: only
    that speaks against the revision. `Unavailable` where something cannot be reached now, and another `HostError` where
    it is this host that cannot look: its disk is full, its login does not do. What nobody needs may fail.
    """
    errors: list[ReconcilerError] = []

    def one(name: str, artifact: Artifact) -> Pin | None:
        try:
            return resolvers[artifact.key.kind].resolve(artifact)
        except ReconcilerError as error:
            if name in wanted.needed:
                errors.append(error)
            else:
                log.info("%s is not resolved now, and nothing needs it: %s", name, error)
            return None

    asked = {**wanted.needed, **wanted.spare}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="resolve") as pool:
        found = dict(zip(asked, pool.map(one, asked.keys(), asked.values()), strict=True))
    if errors:
        raise _together(f"cannot open a rollout of {revision[:12]}", errors)
    return {**wanted.kept, **{name: pin for name, pin in found.items() if pin}}


def _together(what: str, errors: list[ReconcilerError]) -> ReconcilerError:
    """All of them as one, by what they mean together for the revision."""
    texts = "\n".join(sorted(str(error) for error in errors))
    if any(isinstance(error, Unfetchable) for error in errors):
        return Unfetchable(f"{what}:\n{texts}")
    if all(isinstance(error, Unavailable) for error in errors):
        return Unavailable(f"{what}:\n{texts}")
    return HostError(
        f"{what}: the host that leads cannot look for itself. The revision is not refused for that: mend it there, or let "
        f"another server lead; it is tried again\n{texts}"
    )
