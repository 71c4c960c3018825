"""Which references a rollout's opening resolves, and which pins it takes over, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from reconciler.core.artifact import AptDeb, Artifact, Container, Image, Known, Pin, ReleaseDeb
from reconciler.core.pins import wanted_pins
from reconciler.core.state import (
    ArtifactSet,
    Desired,
    Detail,
    Fleet,
    Installed,
    Recorded,
    Revision,
    Rollout,
    ServerGroup,
    StepRecord,
    Wave,
)

A = Image("a", "one.example/a", "1")
B = Image("b", "two.example/b", "1", container=Container())
TOOL = ReleaseDeb("tool", "acme", "tool", "v1")
A_1, B_1, TOOL_1 = "one.example/a:1", "two.example/b:1", "acme/tool/tool@v1"
PINS = {name: Pin(f"sha256:{name}", name) for name in (A_1, B_1, TOOL_1)}


def recorded(*artifacts: Artifact | Known) -> Recorded:
    return {
        artifact.key: Installed(
            artifact.key,
            artifact.version,
            None if isinstance(artifact, Known) else Detail(artifact, "", "", ""),
        )
        for artifact in artifacts
    }


def fleet(*servers: Sequence[Artifact | Known], pins: dict[str, Pin] = PINS) -> Fleet:
    """One server for each list of what is recorded of it."""
    return Fleet(
        servers=frozenset(range(len(servers))),
        recorded={lrn: recorded(*has) for lrn, has in enumerate(servers)},
        pins=pins,
    )


def wants(desired: Desired | Sequence[Artifact], fleet: Fleet) -> str:
    """`+` needed, `=` kept, `?` spare."""
    if not isinstance(desired, Desired):
        desired = Desired(Revision("1" * 40), (ArtifactSet(tuple(desired)),))
    found = wanted_pins(desired, fleet, sorted(fleet.servers))
    assert all(pin == fleet.pins[name] for name, pin in found.kept.items())
    texts = [
        *(f"+{name}" for name in found.needed),
        *(f"={name}" for name in found.kept),
        *(f"?{name}" for name in found.spare),
    ]
    return " ".join(sorted(texts, key=lambda text: text[1:]))


@pytest.mark.parametrize(
    ("case", "desired", "found", "expected"),
    [
        ("all is new", [A, B, TOOL], fleet([], pins={}), f"+{TOOL_1} +{A_1} +{B_1}"),
        ("an APT version needs none", [AptDeb("chrony", "4.3")], fleet([]), ""),
        ("nothing changes", [A, B], fleet([A, B]), f"={A_1} ={B_1}"),
        ("one changes", [replace(A, tag="2"), B], fleet([A, B]), f"+one.example/a:2 ={B_1}"),
        ("back to a tag that is still pinned and that nobody has", [A], fleet([replace(A, tag="2")]), f"+{A_1}"),
        ("a server is added", [A, B], fleet([A, B], []), f"={A_1} ={B_1}"),
        ("a server is added, and one has not got it either", [A], fleet([replace(A, tag="0")], []), f"+{A_1}"),
        ("how it is run changes", [replace(B, container=Container(args=("-v",)))], fleet([B]), f"={B_1}"),
        ("another digest under the tag", [replace(A, digest="sha256:2")], fleet([A]), f"+{A_1}"),
        ("the other twin of the repository", [replace(A, private=True)], fleet([A]), f"+{A_1}"),
        ("another checksum of the release", [replace(TOOL, sha256="2")], fleet([TOOL]), f"+{TOOL_1}"),
        ("nothing changes, and no pin is known", [A, B], fleet([A, B], pins={B_1: PINS[B_1]}), f"?{A_1} ={B_1}"),
        ("a server is added, and no pin is known", [A], fleet([A], [], pins={}), f"+{A_1}"),
        ("Neco recorded it", [A], fleet([Known(A.key, "1")]), f"?{A_1}"),
        ("Neco recorded another one", [A], fleet([Known(A.key, "0")]), f"+{A_1}"),
        ("what is removed needs none", [A], fleet([A, B]), f"={A_1}"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value and "/" not in value else "",
)  # fmt: skip
def test_what_is_resolved(case: str, desired: Sequence[Artifact], found: Fleet, expected: str) -> None:
    assert wants(desired, found) == expected


@pytest.mark.parametrize("rollout", ["older", "the one that gives way"])
def test_what_was_interrupted_is_needed(rollout: str) -> None:
    """A revert while a change runs: recorded equals desired, and the host may have anything."""
    half = StepRecord("containers:image/b:change", rollout, "running")
    found = replace(
        fleet([B], pins={}),
        steps={0: {half.id: half}},
        rollout=Rollout("2" * 40, (0,), "the one that gives way", (Wave((0,)),)),
    )
    assert wants([B], found) == f"+{B_1}"


def test_what_another_group_has_is_not_asked_for() -> None:
    desired = Desired(
        Revision("1" * 40),
        (ArtifactSet((A,), frozenset({"boot"})), ArtifactSet((TOOL,), frozenset({"default"}))),
        (ServerGroup("boot", frozenset({0})),),
    )
    both = fleet([], [], pins={})
    assert wants(desired, both) == f"+{TOOL_1} +{A_1}"
    assert wants(desired, replace(both, servers=frozenset({1}))) == f"+{TOOL_1}"
