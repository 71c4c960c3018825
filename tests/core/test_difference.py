"""What differs between two states: the actions, reasons and fields of each kind, interruptions, and drift."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.artifact import (
    OS_IMAGE,
    AptDeb,
    Artifact,
    Check,
    Container,
    Image,
    Key,
    Known,
    OsImage,
    ReleaseDeb,
)
from reconciler.core.change import Change
from reconciler.core.difference import difference, drift

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
ETCD = Image(
    "etcd", "quay.io/cybozu/etcd", "3.5.3.1", ONE, container=Container(args=("--name", "boot-$(lrn)"))
)
SQUID = Image("squid", "quay.io/cybozu/squid", "5.4.1.1")
PASSWD = ReleaseDeb("etcdpasswd", "cybozu-go", "etcdpasswd", "v1.3.0", "1" * 64)
CHRONY = AptDeb("chrony", "4.3-2")
OS = OsImage("stable", "3139.2.1")


def state(*artifacts: Artifact | Known) -> dict[Key, Artifact | Known]:
    return {artifact.key: artifact for artifact in artifacts}


def only(before: Artifact | Known | None, after: Artifact | Known | None) -> Change | None:
    """The one change between two states of one artifact, or None."""
    changes = difference(state(*[before] if before else []), state(*[after] if after else []))
    assert len(changes) <= 1
    return changes[0] if changes else None


CHANGED = [
    # before, after, action, reason, fields
    (None, ETCD, "install", "not_recorded", ()),
    (ETCD, None, "remove", "not_desired", ()),
    (Known(ETCD.key, "3.5.3.1"), None, "remove", "not_desired", ()),
    # images
    (SQUID, replace(SQUID, tag="5.5.1"), "upgrade", "version_changed", ("tag",)),
    (SQUID, replace(SQUID, tag="5.2.2"), "downgrade", "version_changed", ("tag",)),
    (SQUID, replace(SQUID, tag="latest"), "replace", "version_changed", ("tag",)),
    (
        SQUID,
        replace(SQUID, tag="5.5.1", repository="ghcr.io/cybozu-go/squid", digest=ONE),
        "upgrade",
        "version_changed",
        ("repository", "tag", "digest"),
    ),
    (
        SQUID,
        replace(SQUID, repository="ghcr.io/cybozu-go/squid"),
        "replace",
        "source_changed",
        ("repository",),
    ),
    (SQUID, replace(SQUID, private=True), "replace", "source_changed", ("private",)),
    (SQUID, replace(SQUID, digest=ONE), "replace", "digest_changed", ("digest",)),
    (ETCD, replace(ETCD, digest=TWO), "replace", "digest_changed", ("digest",)),
    (ETCD, replace(ETCD, digest=None), "replace", "digest_changed", ("digest",)),
    (SQUID, replace(SQUID, container=Container()), "replace", "definition_changed", ("container",)),
    (ETCD, replace(ETCD, container=None), "replace", "definition_changed", ("container",)),
    (
        ETCD,
        replace(ETCD, container=Container(health=Check("tcp", "127.0.0.1:2379"))),
        "replace",
        "definition_changed",
        ("container",),
    ),
    (
        ETCD,
        replace(ETCD, digest=TWO, container=Container()),
        "replace",
        "digest_changed",
        ("digest", "container"),
    ),
    # packages
    (PASSWD, replace(PASSWD, release="v1.4.0"), "upgrade", "version_changed", ("release",)),
    (
        PASSWD,
        replace(PASSWD, release="v1.2.0", sha256=None),
        "downgrade",
        "version_changed",
        ("release", "sha256"),
    ),
    (PASSWD, replace(PASSWD, owner="someone"), "replace", "source_changed", ("owner",)),
    (PASSWD, replace(PASSWD, repository="other"), "replace", "source_changed", ("repository",)),
    (PASSWD, replace(PASSWD, sha256="2" * 64), "replace", "digest_changed", ("sha256",)),
    (CHRONY, replace(CHRONY, version="4.3-2+deb12u1"), "upgrade", "version_changed", ("version",)),
    (CHRONY, replace(CHRONY, version="4.3-2~bpo11+1"), "downgrade", "version_changed", ("version",)),
    (
        ReleaseDeb("chrony", "o", "r", "4.3-2"),
        CHRONY,
        "replace",
        "source_changed",
        ("version", "owner", "repository", "release"),
    ),
    (
        CHRONY,
        ReleaseDeb("chrony", "o", "r", "4.4"),
        "replace",
        "version_changed",
        ("owner", "repository", "release", "version"),
    ),
    # the OS image
    (OS, OsImage("stable", "3227.2.0"), "upgrade", "version_changed", ("version",)),
    (OS, OsImage("stable", "3033.2.4"), "downgrade", "version_changed", ("version",)),
    (OS, OsImage("beta", "3227.2.0"), "replace", "version_changed", ("channel", "version")),
    (OS, OsImage("beta", "3139.2.1"), "replace", "version_changed", ("channel",)),
    # what Neco recorded: only the version says anything
    (Known(ETCD.key, "3.5.1.1"), ETCD, "upgrade", "version_changed", ("tag",)),
    (Known(ETCD.key, "3.5.4.1"), ETCD, "downgrade", "version_changed", ("tag",)),
    (Known(PASSWD.key, "v1.2.0"), PASSWD, "upgrade", "version_changed", ("release",)),
    (Known(CHRONY.key, "4.3-2~bpo11+1"), CHRONY, "upgrade", "version_changed", ("version",)),
    (Known(OS_IMAGE, "stable/3033.2.4"), OS, "upgrade", "version_changed", ("version",)),
    (Known(OS_IMAGE, "beta/3139.2.1"), OS, "replace", "version_changed", ("channel",)),
    (ETCD, Known(ETCD.key, "3.5.4.1"), "upgrade", "version_changed", ("tag",)),
]


@pytest.mark.parametrize(("before", "after", "action", "reason", "fields"), CHANGED)
def test_changed(
    before: Artifact | Known | None,
    after: Artifact | Known | None,
    action: str,
    reason: str,
    fields: tuple[str, ...],
) -> None:
    change = only(before, after)
    assert change
    assert (change.action, change.reason, change.fields) == (action, reason, fields)
    assert (change.before, change.after, change.reboot) == (before, after, False)


@pytest.mark.parametrize("artifact", [ETCD, SQUID, PASSWD, CHRONY, OS])
def test_what_is_equal_is_no_change(artifact: Artifact) -> None:
    assert only(artifact, artifact) is None
    assert only(Known(artifact.key, artifact.version), artifact) is None
    assert only(artifact, Known(artifact.key, artifact.version)) is None


@pytest.mark.parametrize(
    ("before", "after", "restart"),
    [
        (None, ETCD, False),  # there is nothing to take down
        (ETCD, replace(ETCD, tag="3.5.4.1"), True),
        (ETCD, replace(ETCD, tag="3.5.2.1"), True),
        (ETCD, replace(ETCD, digest=TWO), True),
        (ETCD, replace(ETCD, container=Container()), True),
        (Known(ETCD.key, "3.5.1.1"), ETCD, True),
        (ETCD, None, False),
        (ETCD, replace(ETCD, container=None), False),
        (SQUID, replace(SQUID, tag="5.5.1"), False),
        (PASSWD, replace(PASSWD, release="v1.4.0"), False),
        (OS, OsImage("stable", "3227.2.0"), False),
    ],
)
def test_a_container_that_changes_restarts(
    before: Artifact | Known | None, after: Artifact | None, restart: bool
) -> None:
    change = only(before, after)
    assert change
    assert change.restart == restart


@pytest.mark.parametrize(
    ("after", "is_pinned"),
    [
        (ETCD, True),
        (SQUID, False),
        (PASSWD, True),
        (replace(PASSWD, sha256=None), False),
        (CHRONY, True),
        (OS, True),
    ],
)
def test_pinned_is_what_git_fixes(after: Artifact, is_pinned: bool) -> None:
    installed = only(None, after)
    changed = only(Known(after.key, "0"), after)
    removed = only(after, None)
    assert installed
    assert changed
    assert removed
    assert (installed.pinned, changed.pinned, removed.pinned) == (is_pinned, is_pinned, True)


def test_images_come_first_then_packages_then_the_os_image_each_by_name() -> None:
    everything = state(OS, CHRONY, SQUID, PASSWD, ETCD)
    names = ["etcd", "squid", "chrony", "etcdpasswd", "os-image"]
    assert [change.key.name for change in difference({}, everything)] == names
    assert [change.key.name for change in difference(everything, {})] == names
    assert [change.key.name for change in difference({}, {}, interrupted=frozenset(everything))] == names


def test_an_image_and_a_package_of_one_name_are_two() -> None:
    package = AptDeb("etcd", "3.4.23-4+b4")
    changes = difference(state(ETCD), state(package))
    assert [(change.key.kind, change.action) for change in changes] == [
        ("image", "remove"),
        ("deb", "install"),
    ]


# --- interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "action", "reason", "shown_before"),
    [
        (PASSWD, PASSWD, "replace", "interrupted", PASSWD),
        (Known(PASSWD.key, "v1.3.0"), PASSWD, "replace", "interrupted", Known(PASSWD.key, "v1.3.0")),
        (PASSWD, replace(PASSWD, release="v1.4.0"), "upgrade", "version_changed", PASSWD),
        (None, PASSWD, "install", "not_recorded", None),
        (PASSWD, None, "remove", "not_desired", PASSWD),
        (None, None, "remove", "interrupted", Known(PASSWD.key, "")),
    ],
)
def test_interrupted_is_planned_whatever_is_recorded(
    before: Artifact | Known | None,
    after: Artifact | None,
    action: str,
    reason: str,
    shown_before: Artifact | Known | None,
) -> None:
    changes = difference(
        state(*[before] if before else []),
        state(*[after] if after else []),
        interrupted=frozenset({PASSWD.key}),
    )
    assert [(change.action, change.reason, change.before, change.after) for change in changes] == [
        (action, reason, shown_before, after)
    ]


def test_an_interrupted_container_restarts() -> None:
    (change,) = difference(state(ETCD), state(ETCD), interrupted=frozenset({ETCD.key}))
    assert (change.action, change.restart, change.fields) == ("replace", True, ())


# --- drift ----------------------------------------------------------------------------------------------------------


def test_drift_is_named_by_what_the_host_shows() -> None:
    squid, deb = SQUID.key, CHRONY.key
    changes = drift(
        {ETCD.key: ONE, squid: TWO, deb: "4.3-2", OS_IMAGE: "stable/3139.2.1"},
        {ETCD.key: TWO, deb: "4.3-2+deb12u1", OS_IMAGE: "stable/3139.2.1", PASSWD.key: "1.3.0"},
    )
    assert [(change.key, change.action, change.reason) for change in changes] == [
        (ETCD.key, "replace", "differs_on_host"),
        (squid, "remove", "missing_on_host"),
        (deb, "upgrade", "differs_on_host"),
        (PASSWD.key, "install", "unexpected_on_host"),
    ]
    assert changes[0].before == Known(ETCD.key, ONE)
    assert changes[0].after == Known(ETCD.key, TWO)
    assert not any(change.restart or change.reboot or change.fields for change in changes)
    assert drift({deb: "4.3-2"}, {deb: "4.3-2"}) == ()


# --- always ---------------------------------------------------------------------------------------------------------

images = st.builds(
    Image,
    st.sampled_from(["a", "b"]),
    st.sampled_from(["r/a", "r/b"]),
    st.sampled_from(["1.0", "1.0-1", "1.1", "latest"]),
    st.sampled_from([None, ONE, TWO]),
    st.booleans(),
    st.none() | st.builds(Container, args=st.sampled_from([(), ("-v",)])),
)
packages = st.builds(
    AptDeb, st.sampled_from(["a", "b"]), st.sampled_from(["1.0", "1.1", "1.0~rc1"])
) | st.builds(
    ReleaseDeb,
    st.sampled_from(["a", "b"]),
    st.just("o"),
    st.sampled_from(["r", "s"]),
    st.sampled_from(["1.0", "v1.0", "v1.1"]),
    st.sampled_from([None, "1" * 64]),
)
states = st.lists(images | packages | st.sampled_from([OS, OsImage("beta", "1.0")])).map(
    lambda artifacts: state(*artifacts)
)


@given(states, states)
@settings(deadline=None)
def test_only_what_differs_is_listed_and_all_of_it(
    before: dict[Key, Artifact | Known], after: dict[Key, Artifact | Known]
) -> None:
    changes = difference(before, after)
    assert {change.key for change in changes} == {
        key for key in {*before, *after} if before.get(key) != after.get(key)
    }
    assert all(change.fields for change in changes if change.before and change.after)
    # Going there leaves nothing to do, and the order of what is given is of no matter.
    assert difference(after, after) == ()
    assert difference(dict(reversed(before.items())), dict(reversed(after.items()))) == changes
