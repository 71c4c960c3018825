"""Promises 1, 2, 3, 6 and 8 in every state that a small fleet can reach, with a trouble at every point, and an end from each.

`test_it_catches` plants the fault that each promise is about: a search that finds none of them would show nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from reconciler.core import lead as leader
from reconciler.core import state
from reconciler.core.artifact import Artifact, Container, Image, Key, Known, OsImage
from reconciler.core.semaphore import Semaphore
from reconciler.core.state import ArtifactSet, Desired, Now, OsDriver, Revision, ServerGroup
from reconciler.store.keys import DEFAULT_GROUP
from reconciler.store.transaction import delete, put
from reconciler.wire.lock import encode_semaphore
from tests.model.rollout import KEYS, Driver, Fleet, Run, World
from tests.model.search import Broken, search


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A search fails steps by the thousand: their logs are not what it is about."""
    logger = logging.getLogger("reconciler")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


def _image(tag: str) -> Image:
    return Image("app", "registry.example/app", tag, container=Container())


IMAGES = (_image("1"), Desired(Revision("new"), (ArtifactSet((_image("2"),)),)))
"""A container that is restarted under the fleet's one slot."""

_BOOTS = ServerGroup("boot", frozenset(range(9)), OsDriver("command", reboot=True))
SYSTEMS = (
    OsImage("stable", "1"),
    Desired(Revision("new"), (ArtifactSet((OsImage("stable", "2"),)),), (_BOOTS,)),
)
"""An OS image that is staged, and a reboot under the fleet's one slot."""

LONG = 3600
"""Seconds for a search among millions of states, which takes up to 4 GB of memory."""
EACH = ("kill", "pause", "lose", "late", "release", "stop", "lie", "power")


def _searched(kind: tuple[Artifact, Desired], servers: int, troubles: int, names: Iterable[str]) -> None:
    fleet = Fleet(servers, *kind, frozenset(names))
    found = search(fleet.start(troubles), fleet.events, fleet.is_end)
    print(f"{found.states} states, {found.events} events, {found.ends} ends")
    assert found.ends


@pytest.mark.parametrize("trouble", EACH)
def test_two_servers_and_one_trouble(trouble: str) -> None:
    _searched(IMAGES, 2, 1, [trouble])


@pytest.mark.parametrize("trouble", ["kill", "pause", "lose", "release", "stop", "lie", "power"])
def test_two_servers_reboot_with_one_trouble(trouble: str) -> None:
    _searched(SYSTEMS, 2, 1, [trouble])


@pytest.mark.parametrize("trouble", ["kill", "release"])
def test_three_servers_and_one_trouble(trouble: str) -> None:
    _searched(IMAGES, 3, 1, [trouble])


def test_one_server_and_two_troubles() -> None:
    _searched(IMAGES, 1, 2, ["kill", "release", "stop", "power"])


@pytest.mark.soak
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("kind", [IMAGES, SYSTEMS], ids=["rolling", "booting"])
@pytest.mark.parametrize("trouble", EACH)
def test_three_servers_with_each_trouble(kind: tuple[Artifact, Desired], trouble: str) -> None:
    _searched(kind, 3, 1, [trouble])


@pytest.mark.soak
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("kind", [IMAGES, SYSTEMS], ids=["rolling", "booting"])
@pytest.mark.parametrize("other", EACH)
def test_two_servers_and_two_troubles(kind: tuple[Artifact, Desired], other: str) -> None:
    _searched(kind, 2, 2, ["kill", "pause", other])


# --- what it catches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FreedByTime(Fleet):
    """Whose leases run out loses its slot with them."""

    def events(self, world: World) -> Iterator[tuple[str, World]]:
        for name, after in super().events(world):
            holders = [lrn for lrn in range(self.servers) if name == f"{lrn}'s leases run out"]
            for lrn in holders:
                after = self._freed(after, lrn)
                self.check(after)
            yield name, after

    def _freed(self, world: World, lrn: int) -> World:
        free = put(KEYS.semaphore(DEFAULT_GROUP), encode_semaphore(Semaphore(1)))
        etcd = world.etcd.write(free, delete(KEYS.holder(DEFAULT_GROUP, f"m{lrn}")))
        return World(etcd, world.hosts, world.under_way, world.troubles)


@dataclass(frozen=True, eq=False)
class Impatient(Fleet):
    """Its leader opens the next phase when the first server is ready."""

    def order(self, fleet: state.Fleet, now: Now) -> leader.Order:
        order = super().order(fleet, now)
        rollout, phase = fleet.rollout, fleet.phase
        if not isinstance(order, leader.Wait) or rollout is None or phase is None or not rollout.unfinished:
            return order
        ready = any(
            status.rollout == rollout.id and status.step > phase.phase for status in fleet.statuses.values()
        )
        if not ready or phase.phase >= len(rollout.phases):
            return order
        return leader.OpenNext(rollout, phase, 1, phase.phase + 1)


class Credulous(Driver):
    """Says that the host has what was asked for."""

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        found = super().observe(artifacts)
        return {artifact.key: artifact.version for artifact in artifacts if artifact.key in found}


@dataclass(frozen=True, eq=False)
class Unseeing(Fleet):
    """Records what was asked for, and not what is there."""

    def driver(self, run: Run) -> Driver:
        return Credulous(run, self.staged)


class Hasty(Driver):
    """Takes any container for healthy."""

    def confirm(self, key: Key) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Careless(Fleet):
    """Gives its slot back without having looked whether it is healthy."""

    def driver(self, run: Run) -> Driver:
        return Hasty(run, self.staged)


@pytest.mark.parametrize(
    ("fleet", "promise"),
    [
        (Fleet(2, *IMAGES, frozenset({"pause"}), unguarded=KEYS.semaphore(DEFAULT_GROUP)), "promise 1"),
        (Fleet(2, *IMAGES, frozenset({"pause"}), unguarded=KEYS.election), "promise 2"),
        (Fleet(2, *IMAGES, frozenset({"pause"}), unguarded=KEYS.agents), "promise 2"),
        (Fleet(2, *IMAGES, frozenset({"pause", "lie"}), unguarded=KEYS.phase), "promise 2"),
        (
            Fleet(2, *IMAGES, frozenset({"late"}), unguarded=KEYS.all_steps),
            "function of what it was told|promise|no end",
        ),
        (FreedByTime(2, *IMAGES, frozenset({"kill"})), "promise 1"),
        (Careless(1, *IMAGES, frozenset()), "promise 3"),
        (Impatient(2, *IMAGES, frozenset()), "promise 6"),
        (Unseeing(1, *IMAGES, frozenset({"lie"})), "promise 8"),
    ],
    ids=[
        "semaphore-not-compared",
        "token-not-compared",
        "lease-not-compared",
        "phase-not-compared",
        "record-not-compared",
        "slot-freed-by-time",
        "slot-freed-before-healthy",
        "barrier-ignored",
        "recorded-without-a-look",
    ],
)
def test_it_catches(fleet: Fleet, promise: str) -> None:
    with pytest.raises(Broken, match=promise):
        search(fleet.start(max(1, len(fleet.troubles))), fleet.events, fleet.is_end)
