"""What the roles of `reconcile etcd-roles` allow and refuse, asked of etcd itself with each user's credential."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.core.artifact import Key
from reconciler.errors import ReconcilerError
from reconciler.store.client import Client
from reconciler.store.keys import Keys
from reconciler.store.transaction import Operation, delete, delete_under, get, one, put, under
from reconciler.store.view import read_fleet, read_history, read_locks, read_server
from reconciler.wire.settings import SETTINGS
from tests.conftest import Etcd
from tests.etcd_server import EtcdServer
from tests.etcd_users import FOLLOWERS, OPERATOR, agent, make_users
from tests.web.test_fleetlock import PRE_REBOOT, STEADY_STATE, call, fleetlock

KEYS = Keys()
FOLLOWER = FOLLOWERS[0]
MINE, OTHER, LIKE_MINE = 1, 0, 10
"""Server 10's keys begin as server 1's do."""
TOOL = Key("deb", "tool")


def machine(lrn: int) -> str:
    return f"{lrn:032x}"


def of_server(lrn: int) -> list[str]:
    """Every key that is one server's."""
    return [
        KEYS.server(lrn),
        KEYS.machine(lrn),
        KEYS.server_status(lrn),
        KEYS.version(lrn, TOOL),
        KEYS.detail(lrn, TOOL),
        KEYS.version(lrn, Key("os-image", "os-image")),
        KEYS.step(lrn, "debs:deb/tool:change"),
        KEYS.agent(lrn, 7),
        KEYS.holder("default", machine(lrn)),
    ]


LEADERS = [KEYS.candidate(7), KEYS.rollout, KEYS.pins, KEYS.noted, KEYS.pause, KEYS.finished("2026")]
PERSONS = [*(KEYS.setting(name) for name in SETTINGS), KEYS.disabled(MINE), KEYS.released("2026")]
STRANGERS = [
    "/neco/contents/x",
    "/neco/vault-unseal-key",
    "/neco/leader/worker/0//7",
    "/other",
    "/nec",
    "/neco/",
]
SHARED = [
    KEYS.phase,
    KEYS.semaphore("default"),
    KEYS.waiter("default", 7),
    KEYS.semaphore("a"),
    KEYS.holder("a", "x"),
]


@pytest.fixture
def users(secured_etcd: Etcd) -> Iterator[dict[str, Client]]:
    """A client of each user."""
    names = [agent(MINE), agent(FOLLOWER), OPERATOR, "reader", "fleetlock"]
    clients = {name: secured_etcd.new_client(user=name) for name in names}
    yield clients
    for client in clients.values():
        client.close()


def may(client: Client, *operations: Operation) -> bool:
    """Whether etcd lets `client` do it. Another refusal than for the lack of a right is an error."""
    try:
        client.txn([], operations)
    except ReconcilerError as error:
        assert "permission denied" in str(error), error
        return False
    return True


def writable(client: Client, keys: list[str]) -> list[str]:
    return [key for key in keys if may(client, put(key, "x")) or may(client, delete(key))]


def test_an_agent_writes_its_own_servers_keys_and_nobody_elses(users: dict[str, Client]) -> None:
    client = users[agent(MINE)]
    assert writable(client, of_server(MINE)) == of_server(MINE)
    for other in (OTHER, LIKE_MINE):
        assert writable(client, of_server(other)) == []
    assert writable(client, PERSONS) == []
    assert writable(client, STRANGERS) == []
    assert writable(client, SHARED) == SHARED


def test_one_that_may_lead_writes_the_leaders_keys_and_one_that_never_leads_does_not(
    users: dict[str, Client],
) -> None:
    assert writable(users[agent(MINE)], LEADERS) == LEADERS
    follower = users[agent(FOLLOWER)]
    assert writable(follower, LEADERS) == []
    assert writable(follower, of_server(FOLLOWER)) == of_server(FOLLOWER)
    for other in (MINE, OTHER):
        assert writable(follower, of_server(other)) == []
    assert writable(follower, [*PERSONS, *STRANGERS]) == []


def test_a_right_to_one_key_is_none_to_the_range_around_it(users: dict[str, Client]) -> None:
    """A transaction of several writes is refused whole for one of them, and so is a range that reaches too far."""
    client = users[agent(MINE)]
    assert may(client, delete_under(KEYS.installed_on(MINE)))
    for folder in (
        KEYS.installed,
        KEYS.all_steps,
        KEYS.server_statuses,
        KEYS.machines,
        KEYS.holders("default"),
    ):
        assert not may(client, delete_under(folder))
    assert not may(client, put(KEYS.server_status(MINE), "x"), put(KEYS.server_status(OTHER), "x"))
    assert client.read([one(KEYS.server_status(MINE))]).items == ((),)


def test_who_only_reads_writes_nothing_and_reads_no_other_products_secrets(
    users: dict[str, Client], secured_etcd: Etcd
) -> None:
    everything = [*of_server(MINE), *LEADERS, *PERSONS, *STRANGERS, *SHARED]
    assert writable(users["reader"], everything) == []
    for name, client in users.items():
        assert not any(may(client, get(key)) for key in STRANGERS if "worker" not in key), name
        for folder in ("/neco/", "/neco/config/", "/"):
            with pytest.raises(ReconcilerError, match="permission denied"):
                client.read([under(folder)])
    for client in (users["reader"], users[OPERATOR], users[agent(FOLLOWER)]):
        read_fleet(client, KEYS)
        read_server(client, KEYS, MINE, machine(MINE), "boot")
        read_history(client, KEYS)
        read_locks(client, KEYS)


def test_an_operator_writes_what_commands_write_and_neither_leads_nor_is_an_agent(
    users: dict[str, Client],
) -> None:
    client = users[OPERATOR]
    wanted = [*PERSONS, KEYS.rollout, KEYS.pause, KEYS.finished("2026"), *SHARED]
    assert writable(client, wanted) == wanted
    assert writable(client, [KEYS.candidate(7), KEYS.noted, KEYS.agent(MINE, 7), *STRANGERS]) == []


def test_fleetlock_writes_slots_and_nothing_else(users: dict[str, Client]) -> None:
    client = users["fleetlock"]
    slots = [
        KEYS.semaphore("default"),
        KEYS.holder("default", "x"),
        KEYS.semaphore("a"),
        KEYS.holder("a", "x"),
    ]
    assert writable(client, slots) == slots
    others = [KEYS.waiter("default", 7), KEYS.phase, KEYS.released("2026")]
    assert writable(client, [*of_server(MINE)[:-1], *LEADERS, *PERSONS, *STRANGERS, *others]) == []


def test_fleetlock_serves_with_its_own_rights(users: dict[str, Client]) -> None:
    with fleetlock(users["fleetlock"], KEYS, "default") as server:
        assert call(server, PRE_REBOOT, group="default").status == 200
        assert read_locks(users["reader"], KEYS)["default"].semaphore.holders == ("m1",)
        assert call(server, STEADY_STATE, group="default").status == 200


def test_roles_for_named_lock_groups_and_machines_are_as_narrow_as_that(tmp_path: Path) -> None:
    """What is left is what etcd cannot divide: a group's document, and its line."""
    words = [
        "--name",
        "east",
        "--servers",
        f"0={machine(0)},1={machine(1)}",
        "--lock-groups",
        "default,rack 1",
    ]
    keys = Keys("/fleet/", "locks")
    with EtcdServer(arguments=("--bcrypt-cost", "4")) as server:
        users = make_users(server.endpoint, tmp_path, keys, words)
        with (
            Client(users.options(server.endpoints, f"east-{agent(1)}")) as one_agent,
            Client(users.options(server.endpoints, "east-fleetlock")) as fleetlock,
        ):
            for group in ("default", "rack 1"):
                own = [keys.semaphore(group), keys.holder(group, machine(1)), keys.waiter(group, 7)]
                others = [keys.holder(group, machine(0)), keys.holder(group, "x")]
                assert writable(one_agent, [*own, *others]) == own
                assert writable(fleetlock, [*own, *others]) == [own[0], own[1], *others]
            another = [keys.semaphore("rack"), keys.holder("rack", machine(1)), keys.waiter("rack", 7)]
            assert writable(one_agent, another) == []
            assert writable(fleetlock, another) == []
            assert writable(one_agent, ["/neco/status/bootservers/1", KEYS.semaphore("default")]) == []
