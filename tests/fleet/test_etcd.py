"""etcd is killed, comes back, comes back older, or is another one. Promise 10; fault 14."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.core.state import Notice
from reconciler.store.client import Client
from reconciler.store.keys import Keys
from reconciler.store.transaction import put, under
from tests.conftest import Etcd, options
from tests.etcd_server import EtcdServer
from tests.etcd_users import Users
from tests.fleet import fleet
from tests.fleet.daemon import ask
from tests.fleet.fleet import Machine, Servers


@pytest.fixture
def own(tmp_path: Path, etcd_users: Users) -> Iterator[Servers]:
    """A fleet on an etcd that a test may harm."""
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("needs etcd and etcdctl")
    with (
        EtcdServer(users=etcd_users) as server,
        Client(options(server)) as client,
        fleet.running(Etcd(server, Keys(), client), tmp_path) as servers,
    ):
        yield servers


def test_etcd_is_killed_in_the_middle_and_when_it_is_back_the_agents_go_on(own: Servers) -> None:
    """What runs finishes, nothing new begins, and no agent has to be restarted."""
    for lrn in range(3):
        own.add(lrn)
    held = own.machines[1]
    held.hold_dpkg()
    own.start()
    own.wait_for_registered(0, 1, 2)
    revision = own.push({"tool": "1.0"})
    own.wait("a dpkg runs", lambda: held.in_dpkg)
    own.etcd.server.members[0].kill()
    held.let_dpkg_go()
    own.wait("dpkg finishes without etcd", lambda: held.deb("tool") == "ii 1.0")
    time.sleep(1.5)
    own.etcd.server.members[0].start()
    own.wait_for_end(revision)
    own.has("tool", "1.0")
    assert all(machine.process and machine.process.poll() is None for machine in own.machines.values())


def test_an_etcd_restored_from_an_old_snapshot_is_refused_by_every_agent(
    own: Servers, tmp_path: Path
) -> None:
    """Fault 14: nothing is written to it until a person says, on each host, that it is meant."""
    own.gather(2)
    own.wait_for_end(own.push({"tool": "1.0"}))
    (member,) = own.etcd.server.members
    snapshot = tmp_path / "snapshot.db"
    own.etcd.server.etcdctl("snapshot", "save", str(snapshot))
    own.wait_for_end(own.push({"tool": "2.0"}))
    for machine in own.machines.values():
        assert machine.terminate() == 0
    member.kill()
    shutil.rmtree(member.directory)
    own.etcd.server.restore(member, snapshot)
    member.start()
    own.etcd.server.wait_until_it_serves()
    restored = own.view().etcd_revision
    own.start()
    refused = "this etcd is refused"
    own.wait("each says so", lambda: all(refused in machine.log for machine in own.machines.values()))
    own.wait(
        "none is ready", lambda: {ask(each, "/readyz").status for each in own.machines.values()} == {503}
    )
    assert "was restored from a snapshot" in ask(own.machines[0], "/readyz").text
    assert ask(own.machines[0], "/livez").status == 200, "a restart would not help"
    time.sleep(0.5)
    # Leases that ran out have deleted keys; nobody has written one.
    (found,) = own.etcd.client.read([under(own.etcd.keys.prefix)]).items
    assert max(item.mod_revision for item in found) <= restored
    own.has_still("tool", "2.0")
    for machine in own.machines.values():
        it_is_meant(machine)
    own.wait(
        "they look at their hosts and go on",
        lambda: own.recorded(0) == own.recorded(1) == {"deb/tool": "v2.0"},
    )


def it_is_meant(machine: Machine) -> None:
    """What a person does on a host whose etcd is another one on purpose."""
    memory = machine.directory / "state/accepted.json"
    remembered = json.loads(memory.read_text())
    del remembered["etcd"]
    memory.write_text(json.dumps(remembered))


def test_another_etcd_is_refused_by_every_agent(own: Servers, etcd_users: Users) -> None:
    """Fault 14: one that is newer than anything they have seen, and has nothing of theirs in it."""
    own.gather(2)
    own.wait_for_end(own.push({"tool": "1.0"}))
    seen = own.view().etcd_revision
    for machine in own.machines.values():
        assert machine.terminate() == 0
    with EtcdServer(users=etcd_users) as other, Client(options(other)) as client:
        known, own.etcd = own.etcd, Etcd(other, Keys(), client)
        while client.txn([], [put("elsewhere/key", "")]).revision < seen + 10:
            pass
        own.start()
        refused = "this etcd is refused"
        own.wait("each says so", lambda: all(refused in machine.log for machine in own.machines.values()))
        assert client.read([under(own.etcd.keys.prefix)]).items == ((),)
        own.has_still("tool", "1.0")
        own.etcd = known


def test_agents_that_were_away_catch_up_though_the_history_was_compacted(own: Servers) -> None:
    """One was off, one hung with its watches open; what happened meanwhile is gone from etcd's history."""
    own.gather(3)
    own.wait_for_end(own.push({"tool": "1.0"}))
    leader = own.leader()
    off, hung = (machine for machine in own.machines.values() if machine is not leader)
    assert off.terminate() == 0
    hung.signal(signal.SIGSTOP)
    for machine in (off, hung):
        own.administration.disable_server(machine.lrn, Notice("ann", "away", "2026-01-01T00:00:00Z"))
    for version in ("2.0", "3.0"):
        own.wait_for_end(own.push({"tool": version}))
    own.compact(own.view().etcd_revision)
    for machine in (off, hung):
        own.administration.enable_server(machine.lrn)
    hung.signal(signal.SIGCONT)
    own.start(off)
    own.wait("both have caught up", lambda: {off.deb("tool"), hung.deb("tool")} == {"ii 3.0"})
    own.wait("and say so", lambda: (r := own.view().rollout) and r.outcome and not r.out)
    own.has("tool", "3.0")
    own.wait_for_end(own.push({"tool": "4.0"}))
    own.has("tool", "4.0")
