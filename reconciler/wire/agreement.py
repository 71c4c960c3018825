"""What the documents of one revision say about each other: names twice, names that nothing has, cycles. Pure; called by `desired`.

Every finding stands at the later place and names the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from reconciler.core.artifact import Artifact, Image, ReleaseDeb, pinned
from reconciler.core.plan import OWN
from reconciler.core.state import DEFAULT_GROUP, ArtifactSet, RolloutPolicy, ServerGroup
from reconciler.errors import Finding
from reconciler.wire.schema import nearest
from reconciler.wire.yaml import Document

T = TypeVar("T")
Path = tuple[str | int, ...]

_CIRCLES_SHOWN = 20
_OF_THE_UNIT = ("args", "binds", "environment", "environmentFile")


@dataclass(frozen=True, slots=True)
class Stated(Generic[T]):
    """A value, and the document that states it; for a set, where each of its artifacts stands."""

    value: T
    document: Document
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """The names of groups and images that stand anywhere in the revision, in refused documents too."""

    groups: set[str]
    images: set[str]


def disagreements(
    sets: Sequence[Stated[ArtifactSet]],
    groups: Sequence[Stated[ServerGroup]],
    policies: Sequence[Stated[RolloutPolicy]],
    named: Named,
) -> Iterator[Finding]:
    """All that does not agree."""
    placed = [
        _Placed(artifact, stated.value.groups, stated.document, path)
        for stated in sets
        for artifact, path in zip(stated.value.artifacts, stated.paths, strict=True)
    ]
    known = named.groups | {DEFAULT_GROUP.name}
    yield from _artifacts_twice(placed)
    yield from _units_twice(placed)
    yield from _agents_own(placed)
    yield from _unknown_images(placed, named.images)
    yield from _cycles(placed)
    for stated in sets:
        yield from _unknown_groups(stated.document, ("groups",), known)
    yield from _groups_twice(groups)
    yield from _servers_twice(groups)
    yield from _slots(groups)
    yield from _policies_twice(policies)
    for policy in policies:
        for index in range(len(policy.value.waves)):
            yield from _unknown_groups(policy.document, ("waves", index, "groups"), known)
        yield from _waves(policy, [stated.value for stated in groups])
        if policy.value.require_pins:
            yield from _unpinned(placed)


def _unknown_groups(document: Document, path: Path, known: set[str]) -> Iterator[Finding]:
    for index, name in enumerate(document.at(path) or ()):
        if name not in known:
            yield document.finding((*path, index), f"there is no server group {name}; {nearest(name, known)}")


# --- artifacts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Placed:
    """An artifact, where it stands, and for which server groups (none: for every server)."""

    artifact: Artifact
    groups: frozenset[str]
    document: Document
    path: Path

    def finding(self, path: Path, problem: str) -> Finding:
        return self.document.finding((*self.path, *path), problem)

    @property
    def after(self) -> tuple[str, ...]:
        container = self.artifact.container if isinstance(self.artifact, Image) else None
        return container.after if container else ()


class _Taken:
    """What is taken on every server, or on the servers of one group, and by whom first."""

    def __init__(self) -> None:
        self._by_group: dict[str | None, _Placed] = {}

    def first(self, placed: _Placed) -> tuple[_Placed, str] | None:
        """Who has it already on a server that `placed` is for, and on which; `placed` takes it where nobody has."""
        if not placed.groups:
            earlier = next(iter(self._by_group.values()), None)
        else:
            earlier = self._by_group.get(None) or next(
                (self._by_group[group] for group in sorted(placed.groups) if group in self._by_group), None
            )
        if earlier is None:
            self._by_group.update(dict.fromkeys(placed.groups or (None,), placed))
            return None
        shared = (
            placed.groups & earlier.groups
            if placed.groups and earlier.groups
            else (placed.groups or earlier.groups)
        )
        return earlier, f"servers of {', '.join(sorted(shared))}" if shared else "every server"


def _artifacts_twice(placed: Iterable[_Placed]) -> Iterator[Finding]:
    taken: dict[str, _Taken] = {}
    for entry in placed:
        subject = entry.artifact.key.subject
        if clash := taken.setdefault(subject, _Taken()).first(entry):
            earlier, servers = clash
            where = earlier.document.where(earlier.path)
            yield entry.finding((), f"{subject} is there twice for {servers}; first at {where}")


def _units_twice(placed: Iterable[_Placed]) -> Iterator[Finding]:
    taken: dict[str, _Taken] = {}
    for entry in placed:
        container = entry.artifact.container if isinstance(entry.artifact, Image) else None
        if not (container and container.unit):
            continue
        clash = taken.setdefault(container.unit.removesuffix(".service"), _Taken()).first(entry)
        if clash and clash[0].artifact.name != entry.artifact.name:
            earlier, servers = clash
            where = earlier.document.where((*earlier.path, "container", "unit"))
            problem = f"{container.unit} is the unit of {earlier.artifact.name} too, for {servers}; first at {where}"
            yield entry.finding(("container", "unit"), problem)


def _agents_own(placed: Iterable[_Placed]) -> Iterator[Finding]:
    """The agent's own service runs as its unit on the host says: git names the image in it and nothing else."""
    for entry in placed:
        container = entry.artifact.container if isinstance(entry.artifact, Image) else None
        if container is None or entry.artifact.name != OWN:
            continue
        if container.update == "stop-all":
            problem = "who stops the agent first has nobody who starts it: rolling or parallel"
            yield entry.finding(("container", "update"), problem)
        for name in _OF_THE_UNIT if container.unit else ():
            if (entry.document.at((*entry.path, "container")) or {}).get(name):
                problem = "it stands in the agent's own unit on the host, and not in git: here is only `unit`"
                yield entry.finding(("container", name), problem)


def _unknown_images(placed: Iterable[_Placed], names: set[str]) -> Iterator[Finding]:
    for entry in placed:
        for index, name in enumerate(entry.after):
            if name not in names:
                problem = f"there is no image {name}; {nearest(name, names)}"
                yield entry.finding(("container", "after", index), problem)


def _cycles(placed: Iterable[_Placed]) -> Iterator[Finding]:
    """The order must not depend on the server: `after` may not go in a circle over all sets together."""
    after: dict[str, dict[str, None]] = {}
    first: dict[str, _Placed] = {}
    for entry in placed:
        if entry.after:
            after.setdefault(entry.artifact.name, {}).update(dict.fromkeys(entry.after))
            first.setdefault(entry.artifact.name, entry)
    for circle in islice(_circles(after), _CIRCLES_SHOWN):
        problem = f"this goes in a circle: {' after '.join([*circle, circle[0]])}"
        yield first[circle[0]].finding(("container", "after"), problem)


def _circles(after: Mapping[str, Iterable[str]]) -> Iterator[list[str]]:
    """Each circle that a walk in depth meets. Iterative: a chain may be longer than the interpreter's stack."""
    done: set[str] = set()
    for start in after:
        walk: dict[str, Iterator[str]] = {} if start in done else {start: iter(after[start])}
        while walk:
            name, names = next(reversed(walk.items()))
            following = next(names, None)
            if following is None:
                done.add(name)
                del walk[name]
            elif following in walk:
                names_so_far = list(walk)
                yield names_so_far[names_so_far.index(following) :]
            elif following not in done:
                walk[following] = iter(after.get(following, ()))


def _unpinned(placed: Iterable[_Placed]) -> Iterator[Finding]:
    for entry in placed:
        if not pinned(entry.artifact):
            wanted = "a sha256" if isinstance(entry.artifact, ReleaseDeb) else "a digest"
            subject = entry.artifact.key.subject
            yield entry.finding((), f"{subject} needs {wanted}: the RolloutPolicy has requirePins")


# --- groups ---------------------------------------------------------------------------------------------------------


def _groups_twice(groups: Iterable[Stated[ServerGroup]]) -> Iterator[Finding]:
    first: dict[str, Stated[ServerGroup]] = {}
    for group in groups:
        earlier = first.setdefault(group.value.name, group)
        if earlier is not group:
            problem = f"{group.value.name} is there twice; first at {earlier.document.where(('name',))}"
            yield group.document.finding(("name",), problem)


def _servers_twice(groups: Iterable[Stated[ServerGroup]]) -> Iterator[Finding]:
    """One finding for each two groups, whose servers may be many."""
    owner: dict[int, Stated[ServerGroup]] = {}
    for group in groups:
        shared: dict[str, list[int]] = {}
        for lrn in sorted(group.value.servers):
            earlier = owner.setdefault(lrn, group)
            if earlier is not group:
                shared.setdefault(earlier.value.name, []).append(lrn)
        for name, servers in shared.items():
            where = owner[servers[0]].document.where(("servers",))
            problem = f"{_servers(servers)} also in group {name}, at {where}; a server is in one group"
            yield group.document.finding(("servers",), problem)


def _servers(servers: Sequence[int]) -> str:
    if len(servers) == 1:
        return f"server {servers[0]} is"
    more = f" and {len(servers) - 5} more" if len(servers) > 5 else ""
    return f"servers {', '.join(map(str, servers[:5]))}{more} are"


def _slots(groups: Iterable[Stated[ServerGroup]]) -> Iterator[Finding]:
    path = ("reboot", "slots")
    first: dict[str, Stated[ServerGroup]] = {}
    for group in groups:
        rules = group.value.reboot
        if rules.slots is None:
            continue
        earlier = first.setdefault(rules.lock_group, group)
        if earlier.value.reboot.slots != rules.slots:
            problem = (
                f"lock group {rules.lock_group} has {rules.slots} slots here and {earlier.value.reboot.slots} "
                f"at {earlier.document.where(path)}"
            )
            yield group.document.finding(path, problem)


# --- the policy -----------------------------------------------------------------------------------------------------


def _policies_twice(policies: Sequence[Stated[RolloutPolicy]]) -> Iterator[Finding]:
    for policy in policies[1:]:
        problem = f"this is a second RolloutPolicy; the first is at {policies[0].document.where(())}"
        yield policy.document.finding((), problem)


def _waves(policy: Stated[RolloutPolicy], groups: Sequence[ServerGroup]) -> Iterator[Finding]:
    """A server in two waves, by its number or through its group; one finding for each two waves."""
    members = {group.name: group.servers for group in groups}
    grouped = frozenset().union(*members.values())
    owner: dict[int | str, int] = {}
    for index, wave in enumerate(policy.value.waves):
        servers = wave.servers.union(*(members.get(name, frozenset()) for name in wave.groups))
        shared: dict[int, list[int]] = {}
        for lrn in sorted(servers):
            earlier = owner.setdefault(lrn, index)
            if earlier == index and lrn not in grouped:
                earlier = owner.get(DEFAULT_GROUP.name, index)
            if earlier != index:
                shared.setdefault(earlier, []).append(lrn)
        for earlier, found in shared.items():
            problem = (
                f"{_servers(found)} in wave {earlier + 1} too, at {policy.document.where(('waves', earlier))}"
            )
            yield policy.document.finding(("waves", index), problem)
        if DEFAULT_GROUP.name in wave.groups:
            yield from _default_twice(policy, index, grouped, owner)


def _default_twice(
    policy: Stated[RolloutPolicy], index: int, grouped: frozenset[int], owner: dict[int | str, int]
) -> Iterator[Finding]:
    """The group `default` is the servers of no group: all that earlier waves have of these, and itself once."""
    earlier = owner.setdefault(DEFAULT_GROUP.name, index)
    if earlier != index:
        problem = (
            f"group default is in wave {earlier + 1} too, at {policy.document.where(('waves', earlier))}"
        )
        yield policy.document.finding(("waves", index), problem)
    found = sorted(
        lrn for lrn, wave in owner.items() if isinstance(lrn, int) and wave != index and lrn not in grouped
    )
    if found:
        wave = owner[found[0]]
        where = policy.document.where(("waves", wave))
        problem = f"{_servers(found)} in group default, and in wave {wave + 1} too, at {where}"
        yield policy.document.finding(("waves", index), problem)
