"""Every guarded write on a real etcd: what it changes, and that it changes nothing where its guard does not hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from reconciler.core.artifact import OS_IMAGE, Pin
from reconciler.core.semaphore import Holder
from reconciler.core.state import (
    ABORTED,
    Installed,
    LeftOut,
    Notice,
    OpenPhase,
    Rollout,
    ServerStatus,
    StepRecord,
)
from reconciler.errors import Fenced, HeldBack, ReconcilerError
from reconciler.store.administration import Administration
from reconciler.store.leading import HISTORY
from reconciler.store.lock import RebootLock
from reconciler.store.lock_view import Taken
from reconciler.store.serving import Found, register
from reconciler.store.session import Session
from reconciler.store.transaction import delete, put, under
from reconciler.store.view import read_fleet, read_history, read_server, read_settings
from tests.conftest import Etcd
from tests.store.fleet import (
    CHANGE,
    ETCD,
    LATER,
    STARTED,
    Fleet,
    deb,
    image,
    lead,
    rollout,
    running,
    serve,
)


@pytest.fixture
def fleet(etcd: Etcd) -> Iterator[Fleet]:
    with (
        Session(etcd.client, 30) as leading,
        Session(etcd.client, 30) as first,
        Session(etcd.client, 30) as second,
    ):
        agents = (serve(etcd, first, 0), serve(etcd, second, 1))
        yield Fleet(etcd, lead(etcd, leading), agents, (leading, first, second))


@pytest.fixture
def admin(etcd: Etcd) -> Administration:
    return Administration(etcd.client, etcd.keys)


def opened(
    fleet: Fleet,
    version: str = "c1",
    started_at: str = STARTED,
    pins: Mapping[str, Pin] = MappingProxyType({}),
) -> tuple[Rollout, OpenPhase]:
    etcd = fleet.etcd
    before = read_fleet(etcd.client, etcd.keys)
    made = fleet.leader.open_rollout(before, rollout(version, started_at=started_at), pins, {}, LATER)
    phase = read_fleet(etcd.client, etcd.keys).phase
    assert phase is not None
    return made, phase


def take(fleet: Fleet, lrn: int) -> Holder:
    answer = RebootLock(fleet.etcd.client, fleet.etcd.keys).take(Holder(f"m{lrn}", "agent", lrn))
    assert isinstance(answer, Taken)
    return answer.holder


class TestLeader:
    def test_it_opens_a_rollout_with_pins_phase_and_slots(self, fleet: Fleet) -> None:
        etcd = fleet.etcd
        before = read_fleet(etcd.client, etcd.keys)
        pins = {"quay.io/cybozu/etcd:3.5": Pin("sha256:ab", "quay.io/cybozu/etcd@sha256:ab")}
        made = fleet.leader.open_rollout(before, rollout(), pins, {"default": 3, "db": 2}, LATER)
        after = read_fleet(etcd.client, etcd.keys)
        assert after.rollout == made
        assert after.phase is not None
        assert (after.phase.rollout, after.phase.wave, after.phase.phase) == (STARTED, 0, 1)
        assert after.pins == pins
        assert {group: lock.semaphore.max for group, lock in after.locks.items()} == {"default": 3, "db": 2}

    def test_slots_keep_holders_and_are_left_alone_where_they_stand(self, fleet: Fleet) -> None:
        etcd = fleet.etcd
        take(fleet, 0)
        before = read_fleet(etcd.client, etcd.keys)
        fleet.leader.open_rollout(before, rollout(), {}, {"default": 1}, LATER)
        same = read_fleet(etcd.client, etcd.keys)
        assert same.locks["default"].mod_revision == before.locks["default"].mod_revision
        fleet.leader.open_rollout(same, rollout("c2", started_at=LATER), {}, {"default": 4}, LATER)
        lock = read_fleet(etcd.client, etcd.keys).locks["default"]
        assert (lock.semaphore.max, lock.semaphore.holders) == (4, ("m0",))

    def test_a_pause_forbids_opening_and_one_that_is_over_goes(
        self, fleet: Fleet, admin: Administration
    ) -> None:
        etcd = fleet.etcd
        before = read_fleet(etcd.client, etcd.keys)
        admin.pause(Notice("ann", "maintenance", LATER, until=LATER))
        with pytest.raises(Fenced, match="cannot open the rollout: new rollouts are paused"):
            fleet.leader.open_rollout(before, rollout(), {}, {}, LATER)
        seen = read_fleet(etcd.client, etcd.keys)
        fleet.leader.open_rollout(seen, rollout(), {}, {}, LATER)
        assert read_fleet(etcd.client, etcd.keys).pause is None

    def test_an_unfinished_rollout_that_is_replaced_goes_into_the_history(self, fleet: Fleet) -> None:
        opened(fleet, "c1")
        made, _ = opened(fleet, "c2", LATER)
        (old,) = read_history(fleet.etcd.client, fleet.etcd.keys)
        assert (old.revision, old.outcome, old.message) == ("c1", "replaced", "gave way to c2")
        fleet.leader.finish(made, "2 of 2 servers complete", LATER)
        opened(fleet, "c3", "2026-01-02T05:00:00.000000000Z")
        assert [old.outcome for old in read_history(fleet.etcd.client, fleet.etcd.keys)] == [
            "complete",
            "replaced",
        ]

    def test_one_that_failed_says_so_in_the_history_whoever_clears_it(
        self, fleet: Fleet, admin: Administration
    ) -> None:
        made, _ = opened(fleet, "c1")
        fleet.leader.stop(made, "server 1 failed: dpkg")
        opened(fleet, "c2", LATER)
        again = read_fleet(fleet.etcd.client, fleet.etcd.keys).rollout
        assert again
        fleet.leader.stop(again, "server 0 failed: apt")
        admin.recover(LATER)
        history = read_history(fleet.etcd.client, fleet.etcd.keys)
        assert [(old.outcome, old.message) for old in history] == [
            ("failed", "server 0 failed: apt"),
            ("failed", "server 1 failed: dpkg; gave way to c2"),
        ]

    def test_phases_leaving_out_and_finishing(self, fleet: Fleet) -> None:
        etcd = fleet.etcd
        made, phase = opened(fleet)
        following = fleet.leader.open_phase(made, phase, 1, 2)
        assert read_fleet(etcd.client, etcd.keys).phase == following
        less = fleet.leader.leave_out(replace(made, out={1: LeftOut("silent", "silent")}))
        assert read_fleet(etcd.client, etcd.keys).rollout == less
        done = fleet.leader.finish(less, "1 of 2 servers complete", LATER)
        after = read_fleet(etcd.client, etcd.keys)
        assert (after.rollout, after.phase) == (done, None)
        (old,) = read_history(etcd.client, etcd.keys)
        assert (old.failures, old.started, old.finished) == ({1: "silent"}, STARTED, LATER)

    def test_stopping_closes_the_phase(self, fleet: Fleet) -> None:
        made, _ = opened(fleet)
        stopped = fleet.leader.stop(made, "server 1 failed")
        after = read_fleet(fleet.etcd.client, fleet.etcd.keys)
        assert (after.rollout, after.phase) == (stopped, None)
        assert (stopped.stop, stopped.stopped_by) == (True, "leader")

    def test_noting_a_revision(self, fleet: Fleet) -> None:
        fleet.leader.note_revision(None, "c1")
        fleet.leader.note_revision("c1", "c2")
        assert fleet.value(fleet.etcd.keys.noted) == "c2"
        with pytest.raises(Fenced, match="another revision has been noted"):
            fleet.leader.note_revision("c1", "c3")

    def test_one_that_leads_no_more_writes_nothing(self, fleet: Fleet) -> None:
        etcd = fleet.etcd
        made, phase = opened(fleet)
        before = read_fleet(etcd.client, etcd.keys)
        fleet.sessions[0].close()
        attempts = (
            lambda: fleet.leader.note_revision(None, "c9"),
            lambda: fleet.leader.open_rollout(before, rollout("c9", started_at=LATER), {}, {}, LATER),
            lambda: fleet.leader.open_phase(made, phase, 1, 2),
            lambda: fleet.leader.leave_out(made),
            lambda: fleet.leader.stop(made, "no"),
            lambda: fleet.leader.finish(made, "no", LATER),
        )
        for attempt in attempts:
            with pytest.raises(Fenced, match="does not lead any more"):
                attempt()
        after = read_fleet(etcd.client, etcd.keys)
        assert replace(after, etcd_revision=0, leader=None) == replace(before, etcd_revision=0, leader=None)

    def test_a_stop_is_not_overwritten(self, fleet: Fleet, admin: Administration) -> None:
        made, phase = opened(fleet)
        admin.request_stop("ann")
        attempts = (
            lambda: fleet.leader.open_phase(made, phase, 1, 2),
            lambda: fleet.leader.leave_out(made),
            lambda: fleet.leader.finish(made, "no", LATER),
        )
        for attempt in attempts:
            with pytest.raises(Fenced, match="stopped or replaced"):
                attempt()
        after = read_fleet(fleet.etcd.client, fleet.etcd.keys)
        assert after.rollout is not None
        assert (after.rollout.stop, after.rollout.stopped_by, after.phase) == (True, "ann", None)

    def test_the_history_keeps_the_newest_hundred_by_age(self, fleet: Fleet) -> None:
        etcd = fleet.etcd
        document = json.dumps({"revision": "c", "servers": [], "outcome": "complete", "started": STARTED})
        # Named against their age: a clock that was set back must not decide which are the oldest.
        for number in range(HISTORY + 5):
            etcd.client.txn([], [put(etcd.keys.finished(f"{500 - number}"), document)])
        made, _ = opened(fleet)
        fleet.leader.finish(made, "done", LATER)
        (kept,) = etcd.client.read([under(etcd.keys.history)]).items
        names = {item.key.removeprefix(etcd.keys.history) for item in kept}
        assert len(names) == HISTORY
        assert STARTED in names
        assert {str(500 - number) for number in range(6)} & names == set()


class TestAgent:
    def test_registering(self, fleet: Fleet) -> None:
        etcd = fleet.etcd
        assert fleet.value(etcd.keys.server(0)) == ""
        assert register(etcd.client, etcd.keys, 0, "m0") == fleet.agents[0].machine
        with pytest.raises(HeldBack, match=r"belongs to machine m0.*--replace"):
            register(etcd.client, etcd.keys, 0, "new")
        with pytest.raises(HeldBack, match=r"this machine .m0. is server 0"):
            register(etcd.client, etcd.keys, 5, "m0")

    def test_a_server_of_necos_gets_its_machine(self, etcd: Etcd) -> None:
        etcd.client.txn([], [put(etcd.keys.server(4), "")])
        assert register(etcd.client, etcd.keys, 4, "m4").machine_id == "m4"

    def test_status(self, fleet: Fleet) -> None:
        agent = fleet.agents[1]
        posted = agent.post_status(ServerStatus("c1", STARTED, 1))
        again = agent.post_status(replace(posted, step=2, waiting="slot"))
        assert read_fleet(fleet.etcd.client, fleet.etcd.keys).statuses == {1: again}
        with pytest.raises(Fenced, match="status has changed"):
            agent.post_status(replace(posted, step=3))

    def test_a_step_from_begin_to_its_record(self, fleet: Fleet) -> None:
        etcd, agent = fleet.etcd, fleet.agents[0]
        _, phase = opened(fleet)
        status = ServerStatus("c1", STARTED, 4, message="etcd")
        begun = agent.begin(running(), phase, status=status)
        seen = read_server(etcd.client, etcd.keys, 0, "m0", "b1")
        assert seen.steps == {CHANGE: begun}
        assert seen.status is not None
        assert seen.status.message == "etcd"
        done = agent.complete(replace(begun, state="done"), Found((image("3.5"), deb("v1.4.0"))))
        seen = read_server(etcd.client, etcd.keys, 0, "m0", "b1")
        assert seen.steps == {CHANGE: done}
        assert dict(seen.recorded) == {deb("v1.4.0").key: deb("v1.4.0"), ETCD: image("3.5")}
        assert fleet.value(etcd.keys.version(0, ETCD)) == "3.5"
        agent.complete(done, Found(removed=(ETCD,)))
        assert list(read_server(etcd.client, etcd.keys, 0, "m0", "b1").recorded) == [deb("v1.4.0").key]
        assert read_fleet(etcd.client, etcd.keys).recorded[0].keys() == {deb("v1.4.0").key}

    def test_what_forbids_beginning(self, fleet: Fleet, admin: Administration) -> None:
        etcd, agent = fleet.etcd, fleet.agents[0]
        made, phase = opened(fleet)
        holder = take(fleet, 0)
        begun = agent.begin(running("a:host:warn"), phase, holder=holder)
        with pytest.raises(Fenced, match="record has changed"):
            agent.begin(running("a:host:warn"), phase)
        RebootLock(etcd.client, etcd.keys).release(holder)
        with pytest.raises(Fenced, match="slot was released"):
            agent.begin(running(), phase, holder=holder)
        following = fleet.leader.open_phase(made, phase, 1, 2)
        with pytest.raises(Fenced, match="phase is not open"):
            agent.begin(running(), phase)
        admin.request_stop("ann")
        with pytest.raises(Fenced, match="phase is not open"):
            agent.begin(running(), following)
        assert agent.complete(replace(begun, state="done")).state == "done"

    def test_one_without_a_lease_or_a_number_begins_nothing_and_records_all_the_same(
        self, fleet: Fleet, admin: Administration
    ) -> None:
        _, phase = opened(fleet)
        first, second = fleet.agents
        begun = first.begin(running(), phase)
        fleet.sessions[1].close()
        for attempt in (
            lambda: first.begin(running("b:host:warn"), phase),
            lambda: first.begin_closing(running("b:host:health"), None),
            lambda: first.post_status(ServerStatus("c1", STARTED, 1)),
        ):
            with pytest.raises(Fenced, match="this agent's lease is gone"):
                attempt()
        first.complete(replace(begun, state="done"), Found((image("3.5"),)))
        assert fleet.value(fleet.etcd.keys.version(0, ETCD)) == "3.5"
        admin.remove_server(1)
        with pytest.raises(Fenced, match="removed or registered anew"):
            second.begin(running(), phase)

    def test_a_closing_step_begins_after_a_stop_while_its_slot_is_held(
        self, fleet: Fleet, admin: Administration
    ) -> None:
        agent = fleet.agents[0]
        opened(fleet)
        holder = take(fleet, 0)
        admin.request_stop("ann")
        assert agent.begin_closing(running("reboot:host:health"), holder).mod_revision
        RebootLock(fleet.etcd.client, fleet.etcd.keys).release_of("m0", "ann", "stuck", LATER)
        with pytest.raises(Fenced, match="slot was released"):
            agent.begin_closing(running("reboot:host:release"), holder)

    def test_a_repair_begins_only_while_nothing_else_happens(
        self, fleet: Fleet, admin: Administration
    ) -> None:
        agent = fleet.agents[0]
        begun = agent.begin_repair(running())
        admin.pause(Notice("ann", "no", LATER))
        with pytest.raises(Fenced, match="changes are paused"):
            agent.begin_repair(begun)
        admin.resume()
        opened(fleet)
        with pytest.raises(Fenced, match="a rollout has begun"):
            agent.begin_repair(begun)

    def test_a_failed_step_closes_the_phase_that_it_began_under(self, fleet: Fleet) -> None:
        _, phase = opened(fleet)
        begun = fleet.agents[0].begin(running(), phase)
        aborted = ServerStatus("c1", STARTED, 4, ABORTED, "dpkg failed")
        failed = replace(begun, state="failed", message="dpkg failed")
        fleet.agents[0].fail(failed, close=phase, status=aborted)
        after = read_fleet(fleet.etcd.client, fleet.etcd.keys)
        assert after.phase is None
        assert after.steps[0][CHANGE].state == "failed"
        assert after.statuses[0].cond == ABORTED
        with pytest.raises(Fenced, match="phase is not open"):
            fleet.agents[1].begin(running(), phase)

    def test_a_failure_under_a_phase_that_has_passed_is_recorded_and_closes_nothing(
        self, fleet: Fleet
    ) -> None:
        made, phase = opened(fleet)
        begun = fleet.agents[0].begin(running(), phase)
        following = fleet.leader.open_phase(made, phase, 1, 2)
        fleet.agents[0].fail(replace(begun, state="failed"), close=phase)
        after = read_fleet(fleet.etcd.client, fleet.etcd.keys)
        assert (after.phase, after.steps[0][CHANGE].state) == (following, "failed")
        with pytest.raises(Fenced, match="record has changed"):
            fleet.agents[0].fail(replace(begun, state="failed"), close=following)

    def test_turning_back_gives_the_slot_and_the_records_back_together(self, fleet: Fleet) -> None:
        etcd, agent = fleet.etcd, fleet.agents[0]
        _, phase = opened(fleet)
        ids = ("reboot:host:acquire", "reboot:host:hook:before:0")
        acquire = agent.begin(running(ids[0]), phase)
        guards, also = agent.recorded_as(replace(acquire, state="done"))
        lock = RebootLock(etcd.client, etcd.keys)
        taken = lock.take(Holder("m0", "agent", 0), guards=guards, also=also)
        assert isinstance(taken, Taken)
        assert read_fleet(etcd.client, etcd.keys).steps[0][ids[0]].state == "done"
        agent.begin(running(ids[1]), phase, holder=taken.holder)
        assert lock.release(taken.holder, also=agent.forgetting(ids))
        after = read_fleet(etcd.client, etcd.keys)
        assert (after.steps, after.locks["default"].semaphore.holders) == ({}, ())
        # The slot is gone already: what is left of the records goes all the same.
        agent.begin(running(ids[0]), phase)
        assert not lock.release(taken.holder, also=agent.forgetting(ids))
        assert read_fleet(etcd.client, etcd.keys).steps == {}


class TestPerson:
    def test_stop_and_recover(self, fleet: Fleet, admin: Administration) -> None:
        etcd = fleet.etcd
        with pytest.raises(HeldBack, match="no rollout"):
            admin.recover(LATER)
        pins = {"one.example/a:1": Pin(f"sha256:{0:064x}", "one.example/a")}
        opened(fleet, pins=pins)
        fleet.agents[0].post_status(ServerStatus("c1", STARTED, 1))
        begun = fleet.agents[0].complete(StepRecord(CHANGE, STARTED, "failed"))
        with pytest.raises(HeldBack, match="reconcile stop"):
            admin.recover(LATER)
        stopped = admin.request_stop("ann", "looks wrong")
        assert admin.request_stop("bob") == stopped
        admin.recover(LATER)
        after = read_fleet(etcd.client, etcd.keys)
        assert (after.rollout, after.phase, after.statuses) == (None, None, {})
        assert after.pins == pins, "what some server has already, the others are to get too"
        assert after.steps == {0: {CHANGE: begun}}
        (old,) = read_history(etcd.client, etcd.keys)
        assert (old.outcome, old.message) == ("stopped", "looks wrong")
        with pytest.raises(HeldBack, match="no rollout to stop"):
            admin.request_stop("ann")

    def test_removing_a_server_takes_its_own_keys_and_no_other_servers(
        self, etcd: Etcd, admin: Administration
    ) -> None:
        others = (1, 10, 19)
        for lrn in others:
            register(etcd.client, etcd.keys, lrn, f"m{lrn}")
            etcd.client.txn(
                [],
                [
                    put(etcd.keys.version(lrn, ETCD), "3.5"),
                    put(etcd.keys.step(lrn, CHANGE), '{"rollout":"r","state":"done"}'),
                    put(etcd.keys.server_status(lrn), '{"version":"c1","step":1,"cond":3,"message":""}'),
                ],
            )
        assert admin.remove_server(1)
        assert not admin.remove_server(1)
        after = read_fleet(etcd.client, etcd.keys)
        assert (
            after.servers == after.recorded.keys() == after.steps.keys() == after.statuses.keys() == {10, 19}
        )
        assert (after.machines[1].machine_id, after.machines[1].removed) == ("m1", True)
        with pytest.raises(HeldBack, match="was removed"):
            register(etcd.client, etcd.keys, 1, "m1")
        assert admin.add_server(1)
        assert not admin.add_server(1)
        assert not register(etcd.client, etcd.keys, 1, "m1").removed

    def test_a_machine_that_takes_anothers_place(self, etcd: Etcd, admin: Administration) -> None:
        register(etcd.client, etcd.keys, 1, "old")
        etcd.client.txn([], [put(etcd.keys.version(1, ETCD), "3.5")])
        before = read_fleet(etcd.client, etcd.keys)
        assert admin.add_server(1, replace_machine=True)
        after = read_fleet(etcd.client, etcd.keys)
        assert not after.recorded and not after.machines and after.servers == {1}
        assert after.added[1] > before.etcd_revision, "a rollout under way sees that it is another server"
        assert register(etcd.client, etcd.keys, 1, "new").machine_id == "new"
        assert read_fleet(etcd.client, etcd.keys).servers == {1}
        admin.remove_server(1)
        assert admin.add_server(1, replace_machine=True)
        assert read_fleet(etcd.client, etcd.keys).machines == {}

    def test_disabling(self, etcd: Etcd, admin: Administration) -> None:
        with pytest.raises(ReconcilerError, match="not registered"):
            admin.disable_server(1, Notice("ann", "broken", LATER))
        admin.add_server(1)
        admin.disable_server(1, Notice("ann", "broken", LATER))
        admin.disable_server(1, Notice("bob", "still", LATER))
        assert read_fleet(etcd.client, etcd.keys).disabled[1].who == "bob"
        assert admin.enable_server(1)
        assert not admin.enable_server(1)

    def test_pausing(self, etcd: Etcd, admin: Administration) -> None:
        admin.pause(Notice("ann", "a", LATER))
        noticed = admin.pause(Notice("bob", "b", LATER))
        assert read_fleet(etcd.client, etcd.keys).pause == noticed
        assert admin.resume() == noticed
        assert admin.resume() is None

    def test_settings(self, etcd: Etcd, admin: Administration) -> None:
        admin.set_config("check-update-interval", "600000000000")
        admin.set_config("check-update-interval", "60000000000")
        settings, texts = read_settings(etcd.client, etcd.keys)
        assert settings.check_update_interval == 60
        assert texts == {"check-update-interval": "60000000000"}
        assert admin.unset_config("check-update-interval")
        assert not admin.unset_config("check-update-interval")

    def test_taking_over_from_neco(self, etcd: Etcd, admin: Administration) -> None:
        neco = {"version": "1.2.3", "servers": [0], "stop": False, "started_at": STARTED}
        etcd.client.txn(
            [],
            [
                put(etcd.keys.rollout, json.dumps(neco)),
                put(etcd.keys.server_status(0), '{"version":"1.2.3","step":9,"cond":3,"message":""}'),
                put(f"{etcd.keys.neco_workers}0", "x"),
                put(etcd.keys.version(0, ETCD), "3.5"),
            ],
        )
        assert read_fleet(etcd.client, etcd.keys).neco_at_work == etcd.keys.rollout
        with pytest.raises(HeldBack, match="worker is at work"):
            admin.adopt_status(LATER)
        etcd.client.txn([], [delete(f"{etcd.keys.neco_workers}0")])
        assert admin.adopt_status(LATER) is not None
        assert admin.adopt_status(LATER) is None
        after = read_fleet(etcd.client, etcd.keys)
        assert (after.rollout, after.statuses, after.neco_at_work) == (None, {}, None)
        (old,) = read_history(etcd.client, etcd.keys)
        assert (old.outcome, old.revision) == ("adopted", "1.2.3")
        os = Installed(OS_IMAGE, "stable/1", None)
        admin.adopt_installed(0, Found((image("3.5"), os)))
        assert read_fleet(etcd.client, etcd.keys).recorded[0] == {ETCD: image("3.5"), OS_IMAGE: os}
        with pytest.raises(HeldBack, match=r"does not say 3\.6"):
            admin.adopt_installed(0, Found((image("3.6"),)))
