"""What differs between two states of one server. Pure.

One function makes the changes of a plan (recorded → desired), of `reconcile diff` (desired → desired) and, as `drift`,
of what a server lost or gained (recorded → observed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reconciler.core.artifact import (
    KINDS,
    AptDeb,
    Artifact,
    Image,
    Key,
    Known,
    OsImage,
    ReleaseDeb,
    pinned,
)
from reconciler.core.change import Change, Reason
from reconciler.core.version import direction

_VERSION = frozenset({"tag", "release", "version", "channel"})
_SOURCE = frozenset({"repository", "owner", "private"})
"""`private` too: the image then comes from the repository's other twin, and has to be fetched from there."""
_DIGEST = frozenset({"digest", "sha256"})


def difference(
    before: Mapping[Key, Artifact | Known],
    after: Mapping[Key, Artifact | Known],
    *,
    interrupted: frozenset[Key] = frozenset(),
) -> tuple[Change, ...]:
    """The changes that lead from `before` to `after`: images, then packages, then the OS image, each by name.

    Where one side is only `Known`, only the versions are compared: what Neco recorded says no more. `interrupted` are the
    keys whose last step is not known to have ended. They are changes whatever is recorded: *replace* where both sides
    are equal, and *remove* where neither has one; `before` is then `Known(key, "")`, since what the host has of it is
    not known.

    `reboot` is left False: only a plan, which knows the server's group, can tell.
    """
    keys = sorted({*before, *after, *interrupted}, key=lambda key: (KINDS.index(key.kind), key.name))
    found = (_change(key, before.get(key), after.get(key), key in interrupted) for key in keys)
    return tuple(change for change in found if change)


def drift(recorded: Mapping[Key, str], observed: Mapping[Key, str]) -> tuple[Change, ...]:
    """How the host differs from what etcd says it had (`Detail.found`), both as a driver's `observe` describes it.

    The changes read recorded → observed: *remove* is what the host has lost, *install* what it has and should not.
    """
    reasons: dict[str, Reason] = {"remove": "missing_on_host", "install": "unexpected_on_host"}
    changes = difference(
        {key: Known(key, found) for key, found in recorded.items()},
        {key: Known(key, found) for key, found in observed.items()},
    )
    return tuple(
        replace(change, reason=reasons.get(change.action, "differs_on_host"), fields=()) for change in changes
    )


def _change(
    key: Key, before: Artifact | Known | None, after: Artifact | Known | None, interrupted: bool
) -> Change | None:
    if after is None:
        reason: Reason = "not_desired" if before else "interrupted"
        return Change(key, "remove", before or Known(key, ""), None, reason)
    if before is None:
        return Change(key, "install", None, after, "not_recorded", pinned=_pinned(after))
    fields = _fields(before, after)
    if not fields and not interrupted:
        return None
    return Change(
        key,
        direction(before, after),
        before,
        after,
        _reason(fields, before.version == after.version),
        fields,
        restart=isinstance(after, Image) and after.container is not None,
        pinned=_pinned(after),
    )


def _reason(fields: tuple[str, ...], same_version: bool) -> Reason:
    if not fields:
        return "interrupted"
    if not same_version:
        return "version_changed"
    # A release that became an APT version of the same text comes from elsewhere, though a version's field differs too.
    if _VERSION.intersection(fields) or _SOURCE.intersection(fields):
        return "source_changed"
    return "digest_changed" if _DIGEST.intersection(fields) else "definition_changed"


def _fields(before: Artifact | Known, after: Artifact | Known) -> tuple[str, ...]:
    """The names, as the YAML has them, of the fields that differ; what only one side has counts, unless it is unset."""
    if isinstance(before, Known) or isinstance(after, Known):
        return () if before.version == after.version else _version_fields(before, after)
    if before == after:
        return ()
    old, new = _described(before), _described(after)
    return tuple(name for name in {**new, **old} if old.get(name) != new.get(name))


def _version_fields(before: Artifact | Known, after: Artifact | Known) -> tuple[str, ...]:
    match before if isinstance(after, Known) else after:
        case Image():
            return ("tag",)
        case ReleaseDeb():
            return ("release",)
        case OsImage(channel, release):
            known = before if isinstance(before, Known) else after
            old_channel, _, old_release = known.version.rpartition("/")
            differs = (("channel", channel != old_channel), ("version", release != old_release))
            return tuple(name for name, differ in differs if differ)
        case _:
            return ("version",)


def _described(artifact: Artifact) -> dict[str, object]:
    """An artifact's fields by the names, and in the order, that the YAML has; None is the same as unset."""
    match artifact:
        case Image():
            return {
                "repository": artifact.repository,
                "tag": artifact.tag,
                "digest": artifact.digest,
                "private": artifact.private,
                "container": artifact.container,
            }
        case ReleaseDeb():
            return {
                "owner": artifact.owner,
                "repository": artifact.repository,
                "release": artifact.release,
                "sha256": artifact.sha256,
            }
        case AptDeb():
            return {"version": artifact.version}
        case OsImage():
            return {"channel": artifact.channel, "version": artifact.release}


def _pinned(artifact: Artifact | Known) -> bool:
    return isinstance(artifact, Known) or pinned(artifact)
