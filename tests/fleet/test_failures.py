"""What fails, and who stops: promises 7, 9, 11 and 14 on real agents, a real etcd and a real dpkg."""

from __future__ import annotations

import itertools
import time

from reconciler.core.state import ABORTED, PHASES
from reconciler.store.transaction import under
from tests import etcd_users
from tests.fleet.daemon import ask
from tests.fleet.fleet import TTL, Servers, with_shell
from tests.fleet.test_leader import reached

FAILS = (("postinst", '#!/bin/sh\necho "cannot reach the database" >&2\nexit 3\n'),)


def test_one_server_cannot_fetch_and_nobody_has_changed_anything(servers: Servers) -> None:
    """A fixed revision goes through by itself."""
    servers.gather(3)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    # Server 2's host has no apt-get, so a package from APT cannot be fetched there and only there.
    odd = {"groups": ["odd"], "debs": [{"name": "extra", "version": "1.0"}]}
    groups = [{"name": "odd", "servers": [2]}]
    failed = servers.push({"tool": "2.0"}, sets=[odd], groups=groups)
    stopped = servers.wait_for_stop(failed)
    assert stopped.stopped_by == "leader" and "server 2" in stopped.message and "apt-get" in stopped.message
    servers.has("tool", "1.0")
    assert not [
        id for steps in servers.view().steps.values() for id in steps if of(stopped.id, steps, id, "debs")
    ]
    servers.wait_for_end(servers.push({"tool": "2.0"}))
    servers.has("tool", "2.0")


def test_status_says_why_a_rollout_cannot_be_opened(servers: Servers) -> None:
    """Whoever looks need not know which server leads, nor read its log."""
    servers.gather(2)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    servers.push(sets=[{"debs": [servers.deb("tool", "9.9")]}])
    shown = servers.wait("it is said", lambda: not_rolled_out(servers))
    assert "release v9.9 of acme/tool" in shown and "there is no such release" in shown
    servers.wait_for_end(servers.push({"tool": "2.0"}))
    assert not_rolled_out(servers) == ""
    assert servers.view().told.unopened is None


def not_rolled_out(servers: Servers) -> str:
    """What `status` says of the newest revision; empty where it says nothing."""
    shown = servers.command()("status").ok().out
    line = next((line for line in shown.splitlines() if line.startswith("Desired ")), "")
    return line.partition(", not rolled out: ")[2]


def of(rollout: str, steps: object, id: str, phase: str) -> bool:
    assert isinstance(steps, dict)
    return steps[id].rollout == rollout and id.startswith(f"{phase}:")


def test_a_failed_postinst_stops_the_rollout_and_a_fixed_revision_heals(servers: Servers) -> None:
    """Promise 11: its message says what failed; no step begins at a later etcd revision."""
    servers.gather(3)
    for machine in servers.machines.values():
        with_shell(machine)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    stopped = servers.wait_for_stop(servers.push({"tool": "2.0"}, scripts=FAILS))
    assert "deb/tool" in stopped.message and "cannot reach the database" in stopped.message
    records = [record for steps in servers.view().steps.values() for record in steps.values()]
    failed = min(record.mod_revision for record in records if record.state == "failed")
    begun = [record for record in records if record.rollout == stopped.id and record.mod_revision > failed]
    assert all(record.state != "running" for record in begun)
    assert all(servers.recorded(lrn) == {"deb/tool": "v1.0"} for lrn in range(3)), (
        "what is not there is not recorded"
    )
    servers.wait_for_end(servers.push({"tool": "3.0"}))
    servers.has("tool", "3.0")


def test_a_failed_install_followed_by_a_revert_puts_the_host_right(servers: Servers) -> None:
    """The half-installed package must not stay, though what is recorded equals what is desired."""
    servers.gather(2)
    for machine in servers.machines.values():
        with_shell(machine)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    servers.wait_for_stop(servers.push({"tool": "1.0", "broken": "1.0"}, scripts=FAILS))
    assert any(machine.deb("broken") for machine in servers.machines.values())
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    servers.has("tool", "1.0")
    servers.has_not("broken")
    servers.wait_for_stop(servers.push({"tool": "2.0"}, scripts=FAILS))
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    servers.has("tool", "1.0")


def test_a_later_wave_changes_nothing_before_the_first_is_complete_and_has_soaked(servers: Servers) -> None:
    servers.gather(3)
    waves = {"waves": [{"servers": [0], "soak": "1s"}, {"servers": [1, 2]}]}
    revision = servers.push({"tool": "1.0"}, policy=waves)
    servers.wait("server 0 is complete", lambda: servers.complete(0))
    complete = time.monotonic()
    servers.wait_for_phase("debs", 2)
    assert time.monotonic() - complete > 0.9
    servers.wait_for_end(revision)
    servers.has("tool", "1.0")
    begun = servers.etcd.client.read([under(servers.etcd.keys.all_steps)]).items[0]
    changed = {item.key: item.create_revision for item in begun}
    verified = servers.etcd.keys.step(0, "verify:host:health")
    for lrn in (1, 2):
        assert changed[servers.etcd.keys.step(lrn, "debs:deb/tool:change")] > changed[verified]


def test_where_the_first_wave_fails_the_later_ones_never_change(servers: Servers) -> None:
    servers.gather(3)
    for machine in servers.machines.values():
        with_shell(machine)
    waves = {"waves": [{"servers": [0]}, {"servers": [1, 2]}]}
    servers.wait_for_stop(servers.push({"tool": "1.0"}, policy=waves, scripts=FAILS))
    time.sleep(0.3)
    assert [servers.machines[lrn].deb("tool") for lrn in (1, 2)] == ["", ""]
    servers.wait_for_end(servers.push({"tool": "1.1"}, policy=waves))
    servers.has("tool", "1.1")


def test_within_the_budget_a_dead_server_is_left_out_and_named(servers: Servers) -> None:
    """Promise 7; it catches up with the next rollout."""
    servers.gather(3)
    dead = next(machine for machine in servers.machines.values() if machine is not servers.leader())
    dead.kill()
    budget = {"maxFailures": 1, "timeout": "4s"}
    finished = servers.wait_for_end(servers.push({"tool": "1.0"}, policy=budget))
    assert list(finished.out) == [dead.lrn] and finished.out[dead.lrn].kind == "silent"
    assert f"server {dead.lrn}" in finished.message
    servers.has("tool", "1.0", *(lrn for lrn in range(3) if lrn != dead.lrn))
    servers.has_not("tool", dead.lrn)
    servers.start(dead)
    # Its start is no part of what it may be silent for.
    servers.wait(
        "it is back", lambda: any(agent.host == f"boot-{dead.lrn}" for agent in servers.view().agents)
    )
    servers.wait_for_end(servers.push({"tool": "2.0"}, policy=budget))
    servers.has("tool", "2.0")


def test_a_stop_in_the_middle_of_a_dpkg_lets_it_finish_and_nothing_else_begins(servers: Servers) -> None:
    """Promise 8: what it did is recorded although the rollout was stopped meanwhile."""
    for lrn in range(2):
        servers.add(lrn)
    held = servers.machines[1]
    held.hold_dpkg()
    servers.start()
    servers.wait_for_registered(0, 1)
    revision = servers.push({"tool": "1.0", "tool2": "1.0"})
    servers.wait("a dpkg runs", lambda: held.in_dpkg)
    servers.wait("server 0 has done its part", lambda: len(servers.recorded(0)) == 2)
    stopped = servers.administration.request_stop("admin")
    held.let_dpkg_go()
    servers.wait("it is recorded", lambda: servers.recorded(1))
    time.sleep(0.5)
    assert servers.recorded(1) == {"deb/tool": "v1.0"} and held.deb("tool") == "ii 1.0"
    assert "debs:deb/tool2:change" not in servers.view().steps[1] and held.deb("tool2") == ""
    running = [
        r
        for steps in servers.view().steps.values()
        for r in steps.values()
        if r.mod_revision > stopped.mod_revision
    ]
    assert [record.id for record in running] == ["debs:deb/tool:change"]
    servers.administration.recover("2026-01-01T00:00:00Z")
    servers.wait_for_end(revision)
    servers.has("tool2", "1.0")


def test_an_agent_is_killed_in_each_phase(servers: Servers) -> None:
    """Promise 9, of one that does not lead."""
    servers.gather(3)
    servers.wait_for_end(servers.push({"tool": "0"}))
    versions = map(str, itertools.count(1))
    for number, phase in enumerate(PHASES, 1):
        # A machine that is busy may be too late for a phase of some milliseconds.
        assert any(follower_killed_in(servers, number, next(versions)) for _ in range(5)), phase


def follower_killed_in(servers: Servers, number: int, version: str) -> bool:
    """Kill an agent once phase `number` is open, and see its rollout through; whether it had not ended by then."""
    servers.release("tool", version)
    leader = servers.leader()
    victim = next(machine for machine in servers.machines.values() if machine is not leader)
    revision = servers.push({"tool": version})
    servers.wait(f"phase {number}", lambda: reached(servers, revision, number))
    victim.kill()
    rollout = servers.view().rollout
    servers.start(victim)
    servers.wait_for_end(revision)
    servers.has("tool", version)
    return rollout is not None and rollout.unfinished


def test_an_agent_killed_while_its_dpkg_runs_goes_on_when_that_has_ended(servers: Servers) -> None:
    """Faults 1 and 26: dpkg outlives its agent and keeps the host's lock file; the next agent comes after it."""
    for lrn in range(2):
        servers.add(lrn)
    held = servers.machines[1]
    held.hold_dpkg()
    servers.start()
    servers.wait_for_registered(0, 1)
    revision = servers.push({"tool": "1.0"})
    servers.wait("a dpkg runs", lambda: held.in_dpkg)
    held.kill()
    servers.start(held)
    servers.wait("the second agent says so", lambda: "is locked" in held.log)
    held.let_dpkg_go()
    servers.wait_for_end(revision)
    servers.has("tool", "1.0")
    assert servers.view().steps[1]["debs:deb/tool:change"].attempt == 2


def test_a_server_that_is_added_during_a_rollout_waits_for_the_next(servers: Servers) -> None:
    """Promise 7."""
    for lrn in range(2):
        servers.add(lrn)
    held = servers.machines[1]
    held.hold_dpkg()
    servers.start()
    servers.wait_for_registered(0, 1)
    revision = servers.push({"tool": "1.0"})
    servers.wait("a dpkg runs", lambda: held.in_dpkg)
    servers.add(2)
    servers.start(2)
    servers.wait_for_registered(2)
    time.sleep(0.5)
    first = servers.view().rollout
    assert first and first.servers == (0, 1) and not servers.view().steps.get(2)
    held.let_dpkg_go()
    servers.wait(
        "the new one is taken along next",
        lambda: (r := servers.view().rollout) and r.outcome and 2 in r.servers,
    )
    servers.has("tool", "1.0")
    last = servers.view().rollout
    assert last and last.version == revision and last.id != first.id


def test_two_agents_with_one_number(servers: Servers) -> None:
    """The second waits and says so, be it another machine's or the same one's; the first goes on."""
    servers.gather(2)
    stranger = servers.add(0, machine_id="f" * 32, name="stranger")
    servers.start(stranger)
    servers.wait("the stranger says so", lambda: "belongs to machine" in stranger.log)
    clone = servers.add(0, machine_id=f"{0:032x}", name="clone")
    servers.start(clone)
    try:
        servers.wait("the clone says so", lambda: "has another agent" in clone.log)
        servers.wait(
            "neither is ready", lambda: [ask(one, "/readyz").status for one in (stranger, clone)] == [503] * 2
        )
        servers.wait_for_end(servers.push({"tool": "1.0"}))
        servers.has("tool", "1.0")
        assert (stranger.deb("tool"), clone.deb("tool")) == ("", "")
    finally:
        stranger.kill()
        clone.kill()


def test_a_revision_that_one_host_does_not_allow_is_refused_there(servers: Servers) -> None:
    """The host's policy has the last word, whatever the leader says."""
    follower = etcd_users.FOLLOWERS[0]
    for lrn in (0, 1, follower):
        servers.add(lrn)
    strict = servers.machines[follower]
    policy = strict.root / "etc/reconciler/policy.yaml"
    policy.parent.mkdir(parents=True)
    policy.write_text("apiVersion: reconciler/v1\nkind: HostPolicy\nallow: {packages: [tool]}\n")
    strict.arguments = ("--no-lead",)
    servers.start()
    servers.wait_for_registered(0, 1, follower)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    stopped = servers.wait_for_stop(servers.push({"tool": "1.0", "other": "1.0"}))
    assert f"server {follower}" in stopped.message and "policy" in stopped.message
    servers.has_not("other")
    assert servers.view().statuses[follower].cond == ABORTED
    servers.wait_for_end(servers.push({"tool": "2.0"}))
    servers.has("tool", "2.0")


def test_failover_is_no_failure_of_a_server_that_only_lost_its_leader(servers: Servers) -> None:
    """A new leader counts every server's silence anew: within the timeout nobody is left out."""
    for lrn in range(3):
        servers.add(lrn)
    for machine in servers.machines.values():
        machine.hold_dpkg()
    servers.start()
    servers.wait_for_registered(0, 1, 2)
    revision = servers.push({"tool": "1.0"}, policy={"timeout": "6s"})
    leader = servers.leader()
    servers.wait("every dpkg runs", lambda: all(machine.in_dpkg for machine in servers.machines.values()))
    time.sleep(3.5)
    leader.kill()
    time.sleep(TTL + 2.5)
    for machine in servers.machines.values():
        machine.let_dpkg_go()
    servers.start(leader)
    finished = servers.wait_for_end(revision)
    assert not finished.out
