"""The keys as the keyspace has them: text by text, and read back."""

from __future__ import annotations

import pytest

from reconciler.core.artifact import OS_IMAGE, Key
from reconciler.errors import UsageError
from reconciler.store.keys import Keys, artifact_in, number_in

KEYS = Keys()
ETCD, CHRONY = Key("image", "etcd"), Key("deb", "chrony")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (KEYS.rollout, "/neco/status/current"),
        (KEYS.phase, "/neco/status/phase"),
        (KEYS.pins, "/neco/status/pins"),
        (KEYS.server_status(3), "/neco/status/bootservers/3"),
        (KEYS.candidate(0x694D7), "/neco/leader/updater//694d7"),
        (KEYS.agent(3, 0x694D7), "/neco/leader/agents/3//694d7"),
        (KEYS.server(3), "/neco/info/bootservers/3"),
        (KEYS.machine(3), "/neco/info/machines/3"),
        (KEYS.disabled(3), "/neco/info/disabled/3"),
        (KEYS.noted, "/neco/info/neco-release"),
        (KEYS.version(3, ETCD), "/neco/install/3/containers/etcd"),
        (KEYS.version(3, CHRONY), "/neco/install/3/debs/chrony"),
        (KEYS.version(3, OS_IMAGE), "/neco/install/3/os-image"),
        (KEYS.detail(3, ETCD), "/neco/install/3/details/image/etcd"),
        (KEYS.detail(3, OS_IMAGE), "/neco/install/3/details/os-image/os-image"),
        (KEYS.step(3, "containers:image/etcd:change"), "/neco/steps/3/containers:image/etcd:change"),
        (KEYS.pause, "/neco/pause"),
        (KEYS.finished("2026-01-02T03:04:05.000000006Z"), "/neco/history/2026-01-02T03:04:05.000000006Z"),
        (KEYS.released("t"), "/neco/lock-history/t"),
        (KEYS.setting("notification/slack"), "/neco/config/notification/slack"),
        (KEYS.semaphore("default"), "coreos.com/updateengine/rebootlock/semaphore"),
        (KEYS.semaphore("rack 1/a"), "coreos.com/updateengine/rebootlock/groups/rack+1%2Fa/semaphore"),
        (KEYS.holder("default", "m1"), "coreos.com/updateengine/rebootlock/holders/m1"),
        (KEYS.holder("db", "m1"), "coreos.com/updateengine/rebootlock/groups/db/holders/m1"),
        (KEYS.waiter("db", 255), "coreos.com/updateengine/rebootlock/groups/db/waiters/ff"),
    ],
)
def test_keys(key: str, expected: str) -> None:
    assert key == expected


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("containers/etcd", (ETCD, False)),
        ("debs/chrony", (CHRONY, False)),
        ("os-image", (OS_IMAGE, False)),
        ("details/image/etcd", (ETCD, True)),
        ("details/deb/chrony", (CHRONY, True)),
        ("details/os-image/os-image", (OS_IMAGE, True)),
        ("details/image/", None),
        ("details/snap/a", None),
        ("containers/", None),
        ("containers/a/b", None),
        ("snaps/a", None),
        ("", None),
    ],
)
def test_an_artifacts_key_is_read_back(rest: str, expected: tuple[Key, bool] | None) -> None:
    assert artifact_in(rest) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("17", 17), ("01", None), ("-1", None), ("", None), ("1a", None), ("٣", None)],
)
def test_a_servers_number_is_read_back(text: str, expected: int | None) -> None:
    assert number_in(text) == expected


@pytest.mark.parametrize("group", ["default", "db", "rack 1/a", "a+b", "groups", "ü"])
def test_a_locks_key_is_read_back(group: str) -> None:
    assert KEYS.lock_key(KEYS.semaphore(group)) == (group, "semaphore", "")
    assert KEYS.lock_key(KEYS.holder(group, "a/b")) == (group, "holders", "a/b")
    assert KEYS.lock_key(KEYS.waiter(group, 255)) == (group, "waiters", "ff")


def test_a_strangers_key_of_the_lock() -> None:
    for rest in ("semaphore/more", "holders/", "other", "groups/x", "groups/x/other/a"):
        assert KEYS.lock_key(f"{KEYS.lock}{rest}") is None


def test_an_agents_key_is_read_back() -> None:
    assert KEYS.agent_in(KEYS.agent(3, 255)) == (3, "ff")
    assert KEYS.agent_in(f"{KEYS.agents}x//ff") is None
    assert KEYS.agent_in(f"{KEYS.agents}3") is None


def test_prefixes_that_would_mix_keys() -> None:
    with pytest.raises(UsageError, match="end in a slash"):
        Keys("/neco")
    with pytest.raises(UsageError, match="not end in a slash"):
        Keys("/neco/", "lock/")
