"""Who is in a rollout and who is not, on real agents: removed and added again, disabled, a share of the fleet dead. Promise 7."""

from __future__ import annotations

from reconciler.core.state import Notice, Rollout
from reconciler.store.view import read_history
from tests.fleet.fleet import Servers

AT = "2026-01-01T00:00:00Z"


def rollout(servers: Servers) -> Rollout:
    found = servers.view().rollout
    assert found is not None
    return found


def held_up(servers: Servers, number: int, lrn: int, policy: dict[str, object]) -> str:
    """A fleet in whose rollout a dpkg of server `lrn` waits; the revision."""
    for each in range(number):
        servers.add(each)
    servers.machines[lrn].hold_dpkg()
    servers.start()
    servers.wait_for_registered(*range(number))
    revision = servers.push({"tool": "1.0"}, policy=policy)
    servers.wait("a dpkg runs", lambda: servers.machines[lrn].in_dpkg)
    return revision


def test_a_server_that_is_removed_and_added_again_waits_for_the_next_rollout(servers: Servers) -> None:
    """It is neither waited for, nor does it begin anything, nor does it count as failed: nothing may fail here."""
    revision = held_up(servers, 3, 1, {"timeout": "1h", "maxFailures": 0})
    first = rollout(servers)
    servers.wait("server 2 has changed", lambda: servers.recorded(2))
    # Between two looks of the leader, whose watch tells it only that something changed.
    servers.administration.remove_server(2)
    servers.administration.add_server(2)
    left = servers.wait("it is left out", lambda: rollout(servers).out.get(2))
    assert (left.kind, left.counts) == ("removed", False)
    assert rollout(servers).id == first.id and not rollout(servers).stop
    assert not servers.view().steps.get(2) and servers.recorded(2) == {}
    servers.machines[1].let_dpkg_go()
    second = servers.wait(
        "the next one takes it along",
        lambda: found if (found := rollout(servers)).id != first.id and found.outcome else None,
    )
    assert (second.version, second.outcome, dict(second.out)) == (revision, "complete", {})
    servers.has("tool", "1.0")
    (kept,) = [
        entry for entry in read_history(servers.etcd.client, servers.etcd.keys) if entry.started == first.id
    ]
    assert kept.outcome == "complete" and list(kept.failures) == [2]


def test_a_third_of_the_fleet_may_fail_and_no_more(servers: Servers) -> None:
    """`maxFailures: 34%` of three is one."""
    servers.gather(3)
    leader = servers.leader()
    first, second = (machine for machine in servers.machines.values() if machine is not leader)
    first.kill()
    budget = {"maxFailures": "34%", "timeout": "6s"}
    finished = servers.wait_for_end(servers.push({"tool": "1.0"}, policy=budget))
    assert [(lrn, left.kind) for lrn, left in finished.out.items()] == [(first.lrn, "silent")]
    assert finished.waves[0].max_failures == 1
    servers.has("tool", "1.0", leader.lrn, second.lrn)
    second.kill()
    stopped = servers.wait_for_stop(servers.push({"tool": "2.0"}, policy=budget))
    assert stopped.stopped_by == "leader"
    assert f"server {first.lrn}" in stopped.message and f"server {second.lrn}" in stopped.message
    servers.has("tool", "1.0", leader.lrn)
    # Two of a hundred are none of three.
    strict = servers.push({"tool": "3.0"}, policy={**budget, "maxFailures": "2%"})
    servers.wait("it is open", lambda: (r := servers.view().rollout) and r.version == strict)
    assert rollout(servers).waves[0].max_failures == 0
    servers.start(first, second)
    servers.wait_for_end(servers.push({"tool": "4.0"}, policy=budget))
    servers.has("tool", "4.0")


def test_who_is_disabled_meanwhile_is_left_out_and_comes_back_with_the_next(servers: Servers) -> None:
    revision = held_up(servers, 2, 1, {"timeout": "1h"})
    servers.administration.disable_server(1, Notice("ann", "its disk is being replaced", AT))
    finished = servers.wait_for_end(revision)
    assert finished.out[1].kind == "disabled" and "left out: server 1 disabled by ann" in finished.message
    servers.machines[1].let_dpkg_go()
    servers.wait("what it had begun is recorded", lambda: servers.recorded(1))
    servers.administration.enable_server(1)
    servers.wait(
        "it is taken along",
        lambda: (found := rollout(servers)).id != finished.id and found.outcome and not found.out,
    )
    servers.has("tool", "1.0")


def test_after_recover_a_rollout_opens_where_only_the_sentinel_asks_for_it(servers: Servers) -> None:
    """Everything is installed and recorded, the reboot has not come, and a person stops the rollout."""
    servers.gather(2)
    shut = {
        "name": "boot",
        "servers": ["0-1"],
        "reboot": {"windows": [{"start": "Thu 00:00", "length": "1s"}]},
    }
    servers.wants_reboot(0)
    revision = servers.push({"tool": "1.0"}, groups=[shut])
    servers.wait("server 0 waits", lambda: (s := servers.view().statuses.get(0)) and s.waiting == "window")
    servers.wait("the fleet knows", lambda: any(agent.reboot_required for agent in servers.view().agents))
    first = rollout(servers)
    servers.administration.request_stop("ann")
    servers.administration.recover(AT)
    servers.wait(
        "the same revision is tried again",
        lambda: (r := servers.view().rollout) and r.id != first.id and r.version == revision,
    )
    servers.wait("server 0 waits", lambda: (s := servers.view().statuses.get(0)) and s.waiting == "window")
    # A revision that opens the window gets through it, and the reboot comes.
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    assert [what for _, what in servers.machines[0].reboots] == ["boots"] and not servers.machines[1].reboots
