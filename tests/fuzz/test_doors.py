"""Each door under hypothesis: good input bent a little, JSON of the wrong shapes, and bytes. `doors` has the table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.cli.options import TABLE
from tests.fuzz.doors import DOORS, Door

ODD = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", "\u2028".encode(), "١٢".encode(), b"-1", b"1e999", b"9" * 400, b"NaN", b"null",
    b"{}", b"[]", b'""', b"[" * 200, b"{a: " * 80, b"&a *a", b"!!python/object", b"<<: {}", b"../..", b"--", b"$(x)", b"\n---\n",
    b"0x1f", b"1_000", b"2001-01-01", b"~", b"~nobody-of-this-name/x", b"%zz", b"[::", b":99999", b"\r\n", b"\t", b"'", b'"', b"\\u0000", b"\\ud800",
)  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=8),
    st.sampled_from(["", "0", "a", "r", "1m", "\ud800", "x" * 5000]),
)  # fmt: skip
shapes = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@st.composite
def bent(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Good input with a few places changed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, min(12, len(data) - start)))
        data[start : start + length] = draw(st.one_of(st.sampled_from(ODD), st.binary(max_size=4)))
    return bytes(data)


@st.composite
def reshaped(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A good JSON document in which something is of another shape; where none is JSON, any JSON."""
    documents = [document for seed in seeds if isinstance(document := _json(seed), dict)]
    if not documents:
        return _bytes(draw(shapes))
    document = draw(st.sampled_from(documents))
    place: Any = document
    while True:
        names = list(place) if isinstance(place, dict) else list(range(len(place)))
        name = draw(st.sampled_from(names)) if names else None
        if name is None:
            break
        if isinstance(place[name], dict | list) and draw(st.booleans()):
            place = place[name]
            continue
        if isinstance(place, dict) and draw(st.integers(0, 3)) == 0:
            del place[name]
        else:
            place[name] = draw(shapes)
        break
    return _bytes(document)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _bytes(document: Any) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("door", DOORS, ids=[door.name for door in DOORS])
def test_only_a_typed_error_comes_of_it(door: Door) -> None:
    _throw(door, 60)


@pytest.mark.parametrize("name", TABLE)
def test_odd_values_of_an_option(name: str) -> None:
    """Chance finds an option and its odd value together too seldom."""
    door = next(door for door in DOORS if door.name == "options")
    for odd in ODD:
        door.opened(name.encode() + b"\n" + odd)


@pytest.mark.soak
@pytest.mark.parametrize("door", DOORS, ids=[door.name for door in DOORS])
def test_only_a_typed_error_comes_of_much_more(door: Door) -> None:
    _throw(door, 20_000)


@pytest.mark.parametrize("door", DOORS, ids=[door.name for door in DOORS])
def test_good_input_comes_through(door: Door) -> None:
    """A door that refuses its own seeds would be tried from the outside only."""
    read = 0
    for seed in door.seeds:
        try:
            door.read(seed)
        except Exception as error:
            if not door.refuses(error):
                raise
            continue
        read += 1
    assert read, f"{door.name} takes none of its seeds"


def _throw(door: Door, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(bent(door.seeds), bent(door.seeds), reshaped(door.seeds), st.binary(max_size=200)))
    def thrown(data: bytes) -> None:
        door.opened(data)

    thrown()
