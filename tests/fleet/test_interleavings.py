"""Events that come between two writes: each was once a slot kept, a record lost or a step that should not have begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.core.artifact import Artifact, Container, Image, OsImage, ReleaseDeb
from reconciler.core.semaphore import Holder
from reconciler.core.state import (
    ArtifactSet,
    Desired,
    Notice,
    OpenPhase,
    OsDriver,
    RebootPolicy,
    Revision,
    RolloutPolicy,
    ServerGroup,
    StepRecord,
)
from reconciler.core.window import Window
from reconciler.errors import Ambiguous, Fenced, HostError
from reconciler.store.administration import Administration
from reconciler.store.client import Client
from reconciler.store.lock import RebootLock
from reconciler.store.serving import AgentWrites, register
from reconciler.store.session import Session, register_agent
from reconciler.store.transaction import Compare, Delete, Operation, Put, Reply, delete, one, put
from reconciler.store.view import read_fleet, read_locks, read_server
from tests import etcd_users
from tests.conftest import Etcd
from tests.fleet.simulated import Killed, SimulatedDriver, SimulatedFleet

AT = "2026-01-01T00:00:00Z"


def deb(version: str, name: str = "tool") -> ReleaseDeb:
    return ReleaseDeb(name, "acme", name, version)


def app(tag: str, **how: object) -> Image:
    return Image("app", "registry.example/app", tag, container=Container(**how))  # type: ignore[arg-type]  # nobody else is registered


def revision(id: str, *artifacts: Artifact, group: str = "", **policy: object) -> Desired:
    groups = (ServerGroup("boot", frozenset({0}), reboot=RebootPolicy(lock_group=group)),) if group else ()
    return Desired(Revision((id * 40)[:40]), (ArtifactSet(artifacts),), groups, RolloutPolicy(**policy))  # type: ignore[arg-type]  # nobody else is registered


class Lossy(Client):
    """Loses one request, while `meanwhile` happens."""

    meanwhile: Callable[[], object] | None = None

    def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Reply:
        if self.meanwhile and any(isinstance(operation, Put | Delete) for operation in then):
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
            raise Ambiguous("lost")
        return super().txn(compares, then, otherwise)


@pytest.fixture
def fleet(etcd: Etcd, tmp_path: Path) -> Iterator[SimulatedFleet]:
    fleet = SimulatedFleet(etcd, tmp_path)
    yield fleet
    fleet.end()
    fleet.prove()


def gather(fleet: SimulatedFleet, first: Desired, *recorded: Artifact, servers: int = 1) -> Administration:
    fleet.revisions.append(first)
    for lrn in range(servers):
        fleet.add(lrn, recorded)
        fleet.start(lrn)
    return Administration(fleet.admin, fleet.keys)


def run(fleet: SimulatedFleet, passes: int = 40, until: str = "") -> None:
    """Passes of each agent; until server 0's step `until` is done."""
    for _ in range(passes):
        for agent in fleet.agents.values():
            agent.conductor._once()
            agent.worker._once()
        if (
            until
            and (record := read_fleet(fleet.admin, fleet.keys).steps.get(0, {}).get(until))
            and record.state == "done"
        ):
            return


def holders(fleet: SimulatedFleet) -> list[str]:
    return [held for lock in read_locks(fleet.admin, fleet.keys).values() for held in lock.semaphore.holders]


def test_a_lost_release_beside_another_change_of_the_lock_frees_the_slot(etcd: Etcd) -> None:
    lock = RebootLock(etcd.client, etcd.keys)
    lock.set_max(2)
    lossy = Lossy(etcd.options(etcd_users.OPERATOR))
    with lossy:
        RebootLock(lossy, etcd.keys).take(Holder("m1", "agent", 1, 5))
        held = RebootLock(lossy, etcd.keys).holder_of("m1")
        assert held
        lossy.meanwhile = lambda: lock.take(Holder("m2", "agent", 2, 5))
        assert RebootLock(lossy, etcd.keys).release(held)
    assert read_locks(etcd.client, etcd.keys)["default"].semaphore.holders == ("m2",)


def test_a_failure_whose_answer_is_lost_while_the_rollout_is_stopped_is_recorded(etcd: Etcd) -> None:
    lossy = Lossy(etcd.options(etcd_users.agent(0)))
    with lossy, Session(lossy, 30) as session:
        machine, keys = register(lossy, etcd.keys, 0, "m0"), etcd.keys
        place = register_agent(lossy, keys, session, 0, "h", "m0")
        writes = AgentWrites(lossy, keys, place, machine)  # type: ignore[arg-type]  # nobody else is registered
        etcd.client.txn([], [put(keys.phase, '{"rollout":"r","wave":1,"phase":2}')])
        phase = OpenPhase("r", 1, 2, etcd.client.read((one(keys.phase),)).items[0][0].mod_revision)
        begun = writes.begin(StepRecord("debs:deb/tool:change", "r", "running"), phase)
        lossy.meanwhile = lambda: etcd.client.txn([], [delete(keys.phase)])
        writes.fail(replace(begun, state="failed"), close=phase)
        assert read_server(etcd.client, keys, 0, "m0", "b").steps[begun.id].state == "failed"


def test_a_server_that_is_removed_and_added_again_goes_on(fleet: SimulatedFleet) -> None:
    administration = gather(fleet, revision("1", deb("v1")), deb("v0"), servers=2)
    run(fleet)
    administration.remove_server(1)
    administration.add_server(1)
    for agent in fleet.agents.values():
        agent.follower.push(revision("2", deb("v2")))
    run(fleet)
    rollout = read_fleet(fleet.admin, fleet.keys).rollout
    assert rollout and rollout.version.startswith("2") and rollout.outcome == "complete"


def test_a_slot_of_the_old_lock_group_is_not_forgotten_by_the_next_chain(fleet: SimulatedFleet) -> None:
    gather(fleet, revision("1", app("2"), group="a"), app("1"))
    run(fleet, until="containers:image/app:change")
    place = fleet.places[0]
    place.stopped.add(app("2").key)
    place.before.clear()
    run(fleet, 6)
    fleet.agents[0].follower.push(revision("2", app("3"), group="b"))
    run(fleet)
    assert place.has[app("3").key] == "3" and holders(fleet) == []


def test_a_server_that_is_down_comes_back_up_though_the_newest_revision_cannot_be_planned(
    fleet: SimulatedFleet,
) -> None:
    others = (deb("v1", "x"), deb("v1", "y"))
    administration = gather(fleet, revision("1", app("2"), *others), app("1"), *others)
    run(fleet, until="containers:image/app:change")
    administration.request_stop("ann")
    administration.pause(Notice("ann", "", AT))
    administration.recover(AT)
    fleet.agents[0].follower.push(revision("2", app("2"), max_removals=1))
    run(fleet, 10)
    assert holders(fleet) == []


def test_what_was_found_and_is_gone_is_started_with_a_slot_and_its_hook(fleet: SimulatedFleet) -> None:
    gather(fleet, revision("1", app("2", started=("unseal",))), app("1"))
    place, key = fleet.places[0], app("2").key
    fleet.hook(0, "unseal")
    place.has[key] = "2"
    place.fetched.add((key, "2"))
    run(fleet, until="prefetch:image/app:fetch", passes=4)
    place.stopped.add(key)
    run(fleet)
    assert "containers:image/app:release" in read_fleet(fleet.admin, fleet.keys).steps[0]


def test_what_is_only_recorded_runs_no_hook(fleet: SimulatedFleet) -> None:
    gather(fleet, revision("1", app("2", started=("unseal",))), app("1"))
    fleet.hook(0, "unseal")
    fleet.places[0].has[app("2").key] = "2"
    run(fleet)
    assert not (fleet.places[0].host.root / "hooks").exists()


def test_who_was_paused_past_its_lease_turns_nothing_back(fleet: SimulatedFleet) -> None:
    administration = gather(fleet, revision("1", deb("v1")))
    agent, step = fleet.agents[0], "reboot:host:acquire"
    agent.writing.ensure()
    seen = read_server(agent.client, fleet.keys, 0, f"{0:032x}", "boot")
    fleet.admin.revoke(agent.client.leases[0])
    administration.add_server(0, replace_machine=True)
    fleet.admin.txn([], [put(fleet.keys.step(0, step), '{"rollout": "r", "state": "done", "attempt": 1}')])
    with pytest.raises(Fenced):
        agent.writing.turn_back(seen, (step,))
    assert step in read_fleet(fleet.admin, fleet.keys).steps[0]


def test_a_disabled_servers_failure_stops_nobody(
    fleet: SimulatedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    administration = gather(fleet, revision("1", deb("v1")), deb("v0"), servers=2)
    apply = SimulatedDriver.apply

    def fails(driver: SimulatedDriver, artifact: Artifact, pin: object) -> None:
        if driver._place.lrn == 1:
            administration.disable_server(1, Notice("ann", "", AT))
            raise HostError("broken")
        apply(driver, artifact, None)

    monkeypatch.setattr(SimulatedDriver, "apply", fails)
    run(fleet)
    rollout = read_fleet(fleet.admin, fleet.keys).rollout
    assert rollout and rollout.outcome == "complete"


def test_a_server_that_is_left_out_between_look_and_begin_begins_nothing(fleet: SimulatedFleet) -> None:
    administration = gather(fleet, revision("1", deb("v1")), deb("v0"), servers=2)
    first, second = fleet.agents[0], fleet.agents[1]
    read = second.worker._read

    def look() -> object:
        server = read()
        if (
            server.phase
            and server.phase.phase == 2
            and server.status
            and server.status.step == 2
            and not server.steps.get("debs:deb/tool:change")
        ):
            administration.disable_server(1, Notice("ann", "", AT))
            first.conductor._once()
        return server

    second.worker._read = look  # type: ignore[assignment]  # what happens just after the look
    run(fleet, 12)
    assert fleet.places[1].has[deb("v0").key] == "v0"


def test_a_repair_does_not_go_on_in_a_stopped_rollout(
    fleet: SimulatedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = (deb("v1", "x"), deb("v1", "y"))
    administration = gather(fleet, revision("1", *two, drift="repair"), *two, servers=2)
    place, later, apply = (
        fleet.places[1],
        revision("2", deb("v1", "x"), deb("v2", "y")),
        SimulatedDriver.apply,
    )
    place.loses(*place.has)

    def slowly(driver: SimulatedDriver, artifact: Artifact, pin: object) -> None:
        if driver._place is place and artifact.key.name == "x":
            fleet.agents[0].follower.push(later)
            fleet.agents[1].follower._revisions.append(later)
            fleet.agents[0].conductor._once()
            administration.request_stop("ann")
        apply(driver, artifact, None)

    monkeypatch.setattr(SimulatedDriver, "apply", slowly)
    run(fleet, 8)
    assert deb("v1", "y").key not in place.has


def test_a_revert_starts_what_was_stopped(fleet: SimulatedFleet) -> None:
    old = app("1", update="stop-all")
    administration = gather(fleet, revision("2", app("2", update="stop-all")), old)
    run(fleet, until="stop:image/app:stop")
    administration.request_stop("ann")
    administration.recover(AT)
    fleet.agents[0].follower.push(revision("3", old))
    run(fleet)
    assert not fleet.places[0].stopped


def hooks_of(fleet: SimulatedFleet, lrn: int = 0) -> list[str]:
    file = fleet.places[lrn].host.root / "hooks"
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize("update", ["rolling", "parallel"])
def test_a_stop_between_change_and_started_hook_loses_no_hook(fleet: SimulatedFleet, update: str) -> None:
    new = app("2", update=update, started=("unseal",))
    administration = gather(fleet, revision("1", new), app("1", update=update))
    fleet.hook(0, "unseal")
    run(fleet, until="containers:image/app:change")
    assert hooks_of(fleet) == []
    administration.request_stop("ann")
    run(fleet, 8)
    assert (hooks_of(fleet), holders(fleet)) == (["unseal"], [])
    administration.recover(AT)
    run(fleet, until="verify:host:health")
    assert hooks_of(fleet) == ["unseal"], "once is enough"


def test_a_repair_that_is_killed_loses_no_hook_and_fails_no_rollout(fleet: SimulatedFleet) -> None:
    """At each of its points: what it has begun is brought back up; what it has not come to is drift, and no rollout's failure."""
    had = (app("1", started=("unseal",)), deb("v1", "other"))
    gather(fleet, revision("0", *had, drift="repair"), *had)
    fleet.hook(0, "unseal")
    run(fleet, 12)
    place, killed = fleet.places[0], 0
    for number in range(1, 60):
        before = len(hooks_of(fleet))
        place.loses(*place.has)
        place.fetched.clear()
        place.wall += 60  # each repair has its own name
        agent = fleet.agents[0]
        agent.worker._drift_checked = None
        agent.fate.chosen = len(agent.fate.points) + number
        try:
            run(fleet, 12)
        except Killed:
            killed += 1
        else:
            break
        fleet.restart(0)
        newer = revision(f"{number:02}" * 20, *had, deb(f"v{number}", "third"), drift="repair")
        fleet.agents[0].follower.push(newer)
        at = agent.fate.points[agent.fate.chosen - 1]
        for _ in range(12):
            run(fleet, 5)
            rollout = read_fleet(fleet.admin, fleet.keys).rollout
            if rollout and (rollout.version, rollout.outcome) == (newer.revision.id, "complete"):
                break
        else:
            raise AssertionError(f"{at}: the rollout does not end: {rollout}")
        place.wall += 60
        run(fleet, 12)
        assert place.has.keys() >= {artifact.key for artifact in had} and holders(fleet) == [], at
        assert len(hooks_of(fleet)) > before, f"the container was started anew and its hook was not run: {at}"
    assert killed >= 15


KEPT = Image("kept", "registry.example/kept", "1")


@pytest.mark.parametrize(
    ("lost", "reboots", "says"),
    [
        ("deb/tool", False, "the host does not have what was recorded: deb/tool: recorded v2, found nothing"),
        ("deb/other", False, ""),
        ("deb/other", True, ""),
        ("image/app", False, ""),
        ("image/app", True, "the host does not have what was recorded: image/app: recorded 1, found nothing"),
        ("image/kept", True, ""),
    ],
)
def test_what_is_lost_before_verify_fails_the_rollout_where_it_is_its_own(
    fleet: SimulatedFleet, caplog: pytest.LogCaptureFixture, lost: str, reboots: bool, says: str
) -> None:
    """What it has changed, and after its reboot each container; other drift is logged, and is the drift check's."""
    beside = (deb("v1", "other"), app("1"), KEPT)
    new, old = [[OsImage("stable", version)] if reboots else [] for version in "21"]
    groups = (ServerGroup("boot", frozenset({0}), OsDriver("command", reboot=True)),)
    desired = replace(revision("1", deb("v2"), *new, *beside), groups=groups)
    gather(fleet, desired, deb("v1"), *old, *beside)
    place, is_lost = fleet.places[0], False
    for _ in range(200):
        fleet.agents[0].conductor._once()
        try:
            fleet.agents[0].worker._once()
        except Killed:
            fleet.restart(0)
        seen = read_fleet(fleet.admin, fleet.keys)
        status, rollout = seen.statuses.get(0), seen.rollout
        if status and rollout and not is_lost and status.step == len(rollout.phases):
            place.loses(next(key for key in place.has if key.subject == lost))
            is_lost = True
        if rollout and (rollout.stop or rollout.outcome):
            break
    assert rollout and is_lost and place.boots == reboots
    assert (rollout.stop, rollout.outcome) == ((True, None) if says else (False, "complete"))
    assert says in rollout.message
    assert ("drift beside the rollout" in caplog.text) == (not says)


@pytest.mark.parametrize("ends", ["stop", "window"])
def test_who_waits_for_a_slot_leaves_the_line_when_its_rollout_stops_or_its_window_closes(
    fleet: SimulatedFleet, ends: str
) -> None:
    RebootLock(fleet.admin, fleet.keys).take(Holder("f" * 32))
    rules = RebootPolicy(windows=(Window(None, 22, 0, 3600.0),))
    desired = replace(revision("1", app("2")), groups=(ServerGroup("boot", frozenset({0}), reboot=rules),))
    administration = gather(fleet, desired, app("1"))

    def line() -> list[int | None]:
        return [waiter.lrn for waiter in read_locks(fleet.admin, fleet.keys)["default"].waiters]

    run(fleet)
    assert line() == [0]
    if ends == "stop":
        administration.request_stop("ann")
    else:
        fleet.places[0].wall += 2 * 3600
    run(fleet, 12)
    assert (line(), holders(fleet)) == ([], ["f" * 32])
