"""Durations: Go's grammar, strict, and back to text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("60s", 60.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("500ms", 0.5),
        ("1m0.25s", 60.25),
        ("2s3ms4us5ns", 2.003004005),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("168h", 604800.0),
        ("2562047h47m16.854775807s", 9223372036.854775807),
    ],
)
def test_what_go_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("10", "no duration"),
        ("-5s", "no duration"),
        ("+5s", "no duration"),
        (".5h", "no duration"),
        ("1.h", "no duration"),
        ("5 m", "no duration"),
        (" 5m", "no duration"),
        ("5m ", "no duration"),
        ("5M", "no duration"),
        ("1d", "no duration"),
        ("1h30", "no duration"),
        ("1e3s", "no duration"),
        ("٣s", "no duration"),
        ("inf", "no duration"),
        ("30m1h", "out of order"),
        ("5m5m", "twice"),
        ("2562048h", "292 years"),
        ("9" * 5000 + "s", "5001 characters"),
    ],
)
def test_what_is_refused_says_the_right_form(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (5, "5s"),
        (60, "1m"),
        (90, "1m30s"),
        (600, "10m"),
        (3600, "1h"),
        (3601, "1h1s"),
        (5400, "1h30m"),
        (90000, "25h"),
        (1.5, "1.5s"),
        (0.5, "500ms"),
        (0.0015, "1.5ms"),
        (0.000002, "2us"),
        (0.000000003, "3ns"),
        (59.9999999999, "1m"),
        (-90, "-1m30s"),
    ],
)
def test_shown(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**16))
@settings(deadline=None)
def test_what_is_shown_is_read_as_the_same(nanoseconds: int) -> None:
    seconds = nanoseconds / 10**9
    assert parse_duration(format_duration(seconds)) == seconds
