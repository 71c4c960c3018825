"""Which version is later: dpkg is the judge of Debian's order, the history and a table of the order of tags."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.artifact import (
    OS_IMAGE,
    AptDeb,
    Artifact,
    Container,
    Image,
    Key,
    Known,
    OsImage,
    ReleaseDeb,
)
from reconciler.core.version import compare_debian, direction, highest, parse_tag
from reconciler.ground.process import run
from tests.core.odd_changes import ODD_CHANGES, Odd

# --- Debian ---------------------------------------------------------------------------------------------------------


def dpkg_order(a: str, b: str) -> int:
    """What dpkg itself says, as `compare_debian` says it."""
    said = [
        order
        for relation, order in (("lt", -1), ("eq", 0), ("gt", 1))
        if run(["dpkg", "--compare-versions", a, relation, b], timeout=20, check=False).status == 0
    ]
    assert len(said) == 1, f"dpkg takes {a} or {b} for no version"
    return said[0]


# Each row ascends.
DEBIAN = [
    ["1.0~~", "1.0~~a", "1.0~", "1.0", "1.0+", "1.0.1"],
    ["1.0~rc1-1", "1.0-1", "1.0-1+b1", "1.0-1+deb12u1", "1.0-1.1", "1.0-2", "1.0-10"],
    ["9.9", "10.0", "1:0.1", "2:0", "10:0"],
    ["1.0-a", "1.0a", "1.0b", "1.0z", "1.0+a", "1.0.a"],
    ["4.3-2~bpo11+1", "4.3-2", "4.3-2+deb12u1", "4.3-2+deb12u2", "4.3-3"],
    ["0", "0a", "0.0.1", "0.a"],
    ["1-2", "1-1-1", "1-1-2", "1-2-1"],
    ["2.7.4+reloaded2-13ubuntu1", "2.7.4+reloaded2-13ubuntu1.1", "2.7.4+reloaded3-13ubuntu1"],
    ["20190201-1", "20190201.1-1", "20200101-1"],
    ["1" + "0" * 40, "2" + "0" * 40],
]
LEVEL = [
    ("1.0", "1.0-0"),
    ("1.0", "0:1.0"),
    ("1.0", "1.00"),
    ("1.", "1.0"),
    ("a", "a0"),
    ("1.2-3", "01.02-03"),
]


@pytest.mark.needs("dpkg")
def test_the_table_is_what_dpkg_says() -> None:
    for row in DEBIAN:
        for a, b in pairwise(row):
            assert dpkg_order(a, b) == -1, (a, b)
    for a, b in LEVEL:
        assert dpkg_order(a, b) == 0, (a, b)


@pytest.mark.parametrize("row", DEBIAN)
def test_debian_order(row: list[str]) -> None:
    for lower, a in enumerate(row):
        for higher, b in enumerate(row):
            assert compare_debian(a, b) == (lower > higher) - (lower < higher), (a, b)


@pytest.mark.parametrize(("a", "b"), LEVEL)
def test_debian_level(a: str, b: str) -> None:
    assert compare_debian(a, b) == compare_debian(b, a) == 0


part = st.text("0019a~+.", max_size=6)
debian_version = st.builds(
    lambda epoch, upstream, revision: epoch + "1" + upstream + revision,
    st.sampled_from(["", "0:", "1:", "00:"]),
    part,
    st.just("") | part.map(lambda text: f"-{text or '0'}"),
)


@pytest.mark.needs("dpkg")
@given(debian_version, debian_version)
@settings(max_examples=150, deadline=None)
def test_debian_order_is_dpkg_s(a: str, b: str) -> None:
    assert compare_debian(a, b) == dpkg_order(a, b)


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
@settings(deadline=None)
def test_debian_order_takes_any_text(a: str, b: str, c: str) -> None:
    """What etcd holds may be no version at all: the order is still one."""
    assert compare_debian(a, b) == -compare_debian(b, a)
    if compare_debian(a, b) <= 0 and compare_debian(b, c) <= 0:
        assert compare_debian(a, c) <= 0


# --- tags -----------------------------------------------------------------------------------------------------------

# Each row ascends.
TAGS = [
    ["0.9", "0.10", "0.11", "0.11.0-1", "0.11.0.2", "1"],
    ["3.3.9-4", "3.3.10", "3.3.10-1", "3.3.10.2", "3.3.11-1"],
    ["1.14.0-alpha", "1.14.0-alpha.1", "1.14.0-beta", "1.14.0-rc1", "1.14.0-rc.2", "1.14.0-rc10", "1.14.0"],
    ["2.0.1.1", "2.1.0-rc.1.1", "2.1.0-rc.1.2", "2.1.0", "2.1.0.2"],
    ["v0.5", "v1.0.0-rc.1", "v1.0.0", "v1.0.1"],
    ["release-2019.01.17-1", "release-2019.09.27-6738", "release-2022.05.01-1"],
    ["20190201-1", "20190201.2", "20190202", "20200101.1"],
    ["1." + "9" * 30, "2." + "0" * 30 + "1"],
]
REPLACED = [
    ("0.8.1-5", "0.8.1.5", "level, other text"),
    ("0.11", "0.11.0", "level, other text"),
    ("1.0", "01.0", "level, other text"),
    ("1.0-rc1", "1.0-rc.1.0", "level, other text"),
    ("v1.0", "1.1", "another prefix"),
    ("v1.0", "V1.1", "another prefix"),
    ("release-1.0", "v1.1", "another prefix"),
    ("20190201.1", "1.0.0", "a date, and none"),
    ("1.0.0", "20190201.1", "a date, and none"),
    ("v20190201", "v2", "a date, and none"),
    ("latest", "1.0", "no version"),
    ("1.0", "latest", "no version"),
    ("latest", "stable", "no version"),
    ("1.0", "1.1-alpine", "a word that is none of the three"),
    ("1.0", "1.1rc1", "a candidate without its dash"),
    ("1.0", "1.1+build", "a build"),
    ("1.0", "1.1.", "nothing after the dot"),
    ("1.0", "1..1", "nothing between the dots"),
    ("1.0", "1.1-rc.", "nothing after the dot"),
    ("1.0", "", "nothing"),
    ("sha256:0a", "sha256:0b", "digests"),
]


def image(tag: str, repository: str = "quay.io/cybozu/etcd", digest: str | None = None) -> Image:
    return Image("etcd", repository, tag, digest)


def release(tag: str) -> ReleaseDeb:
    return ReleaseDeb("etcdpasswd", "cybozu-go", "etcdpasswd", tag)


@pytest.mark.parametrize("row", TAGS)
def test_tags_in_order(row: list[str]) -> None:
    for lower, before in enumerate(row):
        for after in row[lower + 1 :]:
            assert direction(image(before), image(after)) == "upgrade", (before, after)
            assert direction(release(after), release(before)) == "downgrade", (before, after)


@pytest.mark.parametrize(("before", "after", "why"), REPLACED)
def test_tags_without_an_order(before: str, after: str, why: str) -> None:
    assert direction(image(before), image(after)) == "replace", why
    assert direction(release(after), release(before)) == "replace", why


@pytest.mark.parametrize(
    ("text", "dated"),
    [
        ("20190201-1", True),
        ("v20191231.4", True),
        ("12345678", False),
        ("20191301", False),
        ("201902011", False),
    ],
)
def test_only_a_real_date_is_one(text: str, dated: bool) -> None:
    tag = parse_tag(text)
    assert tag
    assert tag.dated == dated


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (image("1.0"), image("1.0", repository="ghcr.io/cybozu-go/etcd"), "replace"),
        (image("1.0"), image("1.1", repository="ghcr.io/cybozu-go/etcd"), "upgrade"),
        (image("1.0"), image("1.0", digest="sha256:" + "0" * 64), "replace"),
        (image("1.0"), Image("etcd", "quay.io/cybozu/etcd", "1.0", container=Container()), "replace"),
        (Known(Key("image", "etcd"), "1.0"), image("1.1"), "upgrade"),
        (OsImage("stable", "3139.2.1"), OsImage("stable", "3227.2.0"), "upgrade"),
        (OsImage("stable", "2605.9.0"), OsImage("stable", "2605.10.0"), "upgrade"),
        (OsImage("stable", "2765.2.4"), OsImage("stable", "2765.2.3"), "downgrade"),
        (OsImage("stable", "3139.2.1"), OsImage("beta", "3227.2.0"), "replace"),
        (OsImage("stable", "3139.2.1"), OsImage("beta", "3139.2.1"), "replace"),
        (OsImage("stable", "latest"), OsImage("stable", "3139.2.1"), "replace"),
        (Known(OS_IMAGE, "stable/3139.2.1"), OsImage("stable", "3139.2.2"), "upgrade"),
        (Known(OS_IMAGE, "3139.2.1"), OsImage("stable", "3139.2.2"), "replace"),
        # Debian's order and that of tags differ: `~`, letters, epochs, and `-` in the middle.
        (AptDeb("chrony", "4.3-2"), AptDeb("chrony", "4.3-2+deb12u1"), "upgrade"),
        (AptDeb("chrony", "4.3-2"), AptDeb("chrony", "4.3-2~bpo11+1"), "downgrade"),
        (AptDeb("chrony", "9.0-1"), AptDeb("chrony", "1:1.0-1"), "upgrade"),
        (AptDeb("chrony", "1.0"), AptDeb("chrony", "1.0-0"), "replace"),
        (AptDeb("chrony", "1.0"), AptDeb("chrony", "1.0-rc1"), "upgrade"),
        (release("v1.0"), release("v1.0-rc1"), "downgrade"),
        # A release that became an APT version, and the reverse.
        (release("1.0"), AptDeb("etcdpasswd", "1.1"), "replace"),
        (AptDeb("etcdpasswd", "1.0"), release("1.1"), "replace"),
        # Only the version is known: it is of the other's kind.
        (Known(Key("deb", "chrony"), "1.0"), AptDeb("chrony", "1.0-rc1"), "upgrade"),
        (Known(Key("deb", "etcdpasswd"), "v1.0"), release("v1.0-rc1"), "downgrade"),
        (Known(Key("deb", "chrony"), "1.0"), Known(Key("deb", "chrony"), "1.0-rc1"), "upgrade"),
    ],
)
def test_direction(before: Artifact | Known, after: Artifact | Known, expected: str) -> None:
    assert direction(before, after) == expected


def odd_artifact(odd: Odd, version: str) -> Artifact:
    match odd.kind:
        case "image":
            return Image(odd.name, f"quay.io/cybozu/{odd.name}", version)
        case "deb":
            return ReleaseDeb(odd.name, "cybozu-go", odd.name, version)
        case "os-image":
            return OsImage(*version.split("/"))


@pytest.mark.parametrize("odd", [odd for odd in ODD_CHANGES if odd.before and odd.after], ids=str)
def test_the_odd_changes_of_the_real_history(odd: Odd) -> None:
    before, after = odd_artifact(odd, odd.before or ""), odd_artifact(odd, odd.after or "")
    assert direction(before, after) == odd.action, odd.why
    assert direction(Known(before.key, before.version), after) == odd.action, odd.why


numbered = st.lists(st.integers(0, 30), min_size=1, max_size=4)
tag = st.builds(
    lambda numbers, joint, stage: joint.join(map(str, numbers)) + stage,
    numbered,
    st.sampled_from(".-"),
    st.sampled_from(["", "", "-rc1", "-rc.2", "-alpha", "-beta.1.1"]),
)


@given(tag, tag)
@settings(deadline=None)
def test_there_and_back(before: str, after: str) -> None:
    back = {"upgrade": "downgrade", "downgrade": "upgrade", "replace": "replace"}
    assert direction(image(after), image(before)) == back[direction(image(before), image(after))]


# --- the highest of many --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], None),
        (["latest", "release-old"], None),
        (["release-9", "release-10", "release-2"], "release-10"),
        (["v1.0.0-rc.1", "v0.9"], "v1.0.0-rc.1"),
        (["v1.0.0-rc.1", "v1.0.0"], "v1.0.0"),
        (["release-2022.01.31-1", "release-2022.02.01-1", "release-latest"], "release-2022.02.01-1"),
        (["0.8.1-5", "0.8.1.5"], "0.8.1.5"),
        (["0.8.1.5", "0.8.1-5"], "0.8.1.5"),
    ],
)
def test_highest(tags: list[str], expected: str | None) -> None:
    assert highest(tags) == expected
