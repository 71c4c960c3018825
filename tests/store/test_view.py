"""Views on a real etcd: one etcd revision, foreign keys passed over, corrupt values named, Neco recognised."""

from __future__ import annotations

import json

import pytest

from reconciler.core.artifact import OS_IMAGE, Key
from reconciler.core.state import Agent, Fleet, Installed, Lock
from reconciler.errors import Corrupt
from reconciler.store.serving import Found, recording
from reconciler.store.session import Session, register_agent
from reconciler.store.transaction import put
from reconciler.store.view import read_fleet, read_server
from reconciler.wire.records import encode_detail
from tests.conftest import Etcd
from tests.store.fleet import CHANGE, ETCD, STARTED, image, lead

STEP = json.dumps({"rollout": STARTED, "state": "done"})


def test_an_empty_store(etcd: Etcd) -> None:
    fleet = read_fleet(etcd.client, etcd.keys)
    assert fleet == Fleet(etcd_revision=fleet.etcd_revision, locks={"default": Lock("default")})
    server = read_server(etcd.client, etcd.keys, 0, "m0", "b1", reboot_required=True)
    assert (server.machine, server.recorded, server.steps, server.rollout) == (None, {}, {}, None)
    assert (server.boot_id, server.lock, server.reboot_required) == ("b1", Lock("default"), True)


def test_strangers_keys_are_passed_over(etcd: Etcd) -> None:
    keys = etcd.keys
    for key in (
        f"{keys.servers}x",
        f"{keys.servers}1/more",
        f"{keys.machines}01",
        f"{keys.installed}1/snaps/a",
        f"{keys.installed}x/containers/a",
        f"{keys.all_steps}x/a",
        f"{keys.server_statuses}x",
        f"{keys.status}other",
        f"{keys.agents}1",
        f"{keys.lock}other",
        f"{keys.prefix}vault-root-token",
    ):
        etcd.client.txn([], [put(key, b"\xff")])
    fleet = read_fleet(etcd.client, keys)
    assert fleet == Fleet(etcd_revision=fleet.etcd_revision, locks={"default": Lock("default")})


def test_a_detail_counts_only_where_it_agrees_with_the_short_key(etcd: Etcd) -> None:
    keys = etcd.keys
    whole = image("3.5")
    assert whole.detail is not None
    etcd.client.txn([], recording(keys, 1, Found((whole,))))
    etcd.client.txn(
        [], [put(keys.version(2, ETCD), "3.6"), put(keys.detail(2, ETCD), encode_detail(whole.detail))]
    )
    etcd.client.txn([], [put(keys.detail(3, ETCD), encode_detail(whole.detail))])
    etcd.client.txn(
        [], [put(keys.version(10, OS_IMAGE), "stable/1"), put(keys.version(10, Key("deb", "a")), "1")]
    )
    assert read_fleet(etcd.client, keys).recorded == {
        1: {ETCD: whole},
        2: {ETCD: Installed(ETCD, "3.6")},
        10: {Key("deb", "a"): Installed(Key("deb", "a"), "1"), OS_IMAGE: Installed(OS_IMAGE, "stable/1")},
    }
    assert read_server(etcd.client, keys, 1, "m1", "b").recorded == {ETCD: whole}
    assert read_fleet(etcd.client, keys, recorded=False).recorded == {}


def test_one_server_sees_its_own_keys_alone(etcd: Etcd) -> None:
    for lrn in (1, 10):
        etcd.client.txn(
            [], [put(etcd.keys.step(lrn, CHANGE), STEP), put(etcd.keys.version(lrn, ETCD), str(lrn))]
        )
    server = read_server(etcd.client, etcd.keys, 1, "m1", "b")
    assert list(server.steps) == [CHANGE]
    assert server.recorded == {ETCD: Installed(ETCD, "1")}
    assert list(read_fleet(etcd.client, etcd.keys, steps=False).steps) == []


def test_an_older_etcd_revision(etcd: Etcd) -> None:
    first = etcd.client.txn([], [put(etcd.keys.server(1), "")]).revision
    etcd.client.txn([], [put(etcd.keys.server(2), ""), put(etcd.keys.noted, "c1")])
    assert (read_fleet(etcd.client, etcd.keys).servers, read_fleet(etcd.client, etcd.keys).noted) == (
        frozenset({1, 2}),
        "c1",
    )
    older = read_fleet(etcd.client, etcd.keys, revision=first)
    assert (older.servers, older.noted, older.etcd_revision) == (frozenset({1}), None, first)


def test_leader_and_agents(etcd: Etcd) -> None:
    with Session(etcd.client, 30) as session:
        leader = lead(etcd, session, "boot-3").leader
        register_agent(etcd.client, etcd.keys, session, 3, "boot-3", "m3")
        fleet = read_fleet(etcd.client, etcd.keys)
        assert fleet.leader == leader
        assert leader.host == "boot-3"
        (agent,) = fleet.agents
        assert agent == Agent(3, "boot-3", "m3", f"{session.lease:x}", agent.create_revision)


@pytest.mark.parametrize("name", ["rollout", "phase", "pins", "pause"])
def test_a_value_that_cannot_be_read_is_named(etcd: Etcd, name: str) -> None:
    key: str = getattr(etcd.keys, name)
    etcd.client.txn([], [put(key, "{]")])
    for read in (
        lambda: read_fleet(etcd.client, etcd.keys),
        lambda: read_server(etcd.client, etcd.keys, 0, "m0", "b1"),
    ):
        with pytest.raises(Corrupt, match=key):
            read()


def test_neco_at_work(etcd: Etcd) -> None:
    worker = f"{etcd.keys.neco_workers}0/694d7"
    etcd.client.txn([], [put(worker, "")])
    assert read_fleet(etcd.client, etcd.keys).neco_at_work == worker
    assert read_server(etcd.client, etcd.keys, 0, "m0", "b1").neco_at_work == worker
    neco = {"version": "1.2.3", "servers": [0], "stop": False, "started_at": STARTED}
    etcd.client.txn([], [put(etcd.keys.rollout, json.dumps(neco))])
    assert read_fleet(etcd.client, etcd.keys).neco_at_work == etcd.keys.rollout
