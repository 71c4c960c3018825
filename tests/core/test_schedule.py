"""Release times: the grammar of Neco's cron lines, cron's rule for days, time zones, and the next time."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.schedule import may_open, next_time, parse_schedule

BERLIN = "Europe/Berlin"


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# 2025-06-10 is a Tuesday, the 13th a Friday.
@pytest.mark.parametrize(
    ("lines", "now", "expected"),
    [
        ("* * * * *", "2025-06-10T12:34:56Z", True),
        ("34 12 * * *", "2025-06-10T12:34:00Z", True),
        ("34 12 * * *", "2025-06-10T12:34:59.9Z", True),
        ("34 12 * * *", "2025-06-10T12:35:00Z", False),
        ("34 12 * * *", "2025-06-10T12:33:59Z", False),
        ("* 9-17 * * mon-fri", "2025-06-10T17:59:00Z", True),
        ("* 9-17 * * mon-fri", "2025-06-10T18:00:00Z", False),
        ("* 9-17 * * MON-Fri", "2025-06-14T12:00:00Z", False),
        ("*/15 * * * *", "2025-06-10T12:45:10Z", True),
        ("*/15 * * * *", "2025-06-10T12:46:10Z", False),
        ("5/20 * * * *", "2025-06-10T12:45:00Z", True),
        ("5/20 * * * *", "2025-06-10T12:40:00Z", False),
        ("10-30/10 * * * *", "2025-06-10T12:30:00Z", True),
        ("10-30/10 * * * *", "2025-06-10T12:40:00Z", False),
        ("0,30 22-23,0-5 * * *", "2025-06-10T03:30:00Z", True),
        ("0,30 22-23,0-5 * * *", "2025-06-10T06:30:00Z", False),
        ("* * * jun *", "2025-06-10T00:00:00Z", True),
        ("* * * 1-5,jul-dec *", "2025-06-10T00:00:00Z", False),
        ("* * * * 0", "2025-06-15T00:00:00Z", True),
        ("* * * * 7", "2025-06-15T00:00:00Z", True),
        ("* * * * 5-7", "2025-06-15T00:00:00Z", True),
        ("* * * * 5-7", "2025-06-14T00:00:00Z", True),
        ("* * * * 5-7", "2025-06-16T00:00:00Z", False),
        ("* * * * */2", "2025-06-15T00:00:00Z", True),
        ("* * * * 5/2", "2025-06-15T00:00:00Z", False),
        # Both days restricted: either will do. One of them any: the other decides.
        ("* * 13 * fri", "2025-06-13T00:00:00Z", True),
        ("* * 13 * fri", "2025-06-20T00:00:00Z", True),
        ("* * 13 * fri", "2025-07-13T00:00:00Z", True),
        ("* * 13 * fri", "2025-06-12T00:00:00Z", False),
        ("* * * * fri", "2025-06-12T00:00:00Z", False),
        ("* * 13 * *", "2025-06-20T00:00:00Z", False),
        ("* * ? * fri", "2025-06-12T00:00:00Z", False),
        ("* * 13 * ?", "2025-06-20T00:00:00Z", False),
        ("* * */2 * fri", "2025-06-20T00:00:00Z", True),
        ("* * */1 * fri", "2025-06-19T00:00:00Z", False),
        ("* * 1,* * fri", "2025-06-19T00:00:00Z", False),
        # Several lines are a union; blank ones are none.
        ("0 1 * * *\n\n  0 2 * * *\n", "2025-06-10T02:00:00Z", True),
        ("0 1 * * *\n\n  0 2 * * *\n", "2025-06-10T03:00:00Z", False),
    ],
)
def test_whether_a_minute_matches(lines: str, now: str, expected: bool) -> None:
    assert may_open(lines, None, at(now)) == expected


def test_the_time_zone() -> None:
    assert may_open("0 9 * * tue", "Asia/Tokyo", at("2025-06-10T00:00:00Z"))
    assert not may_open("0 9 * * tue", None, at("2025-06-10T00:00:00Z"))
    assert may_open("0 0 * * tue", "UTC", at("2025-06-10T00:00:00Z"))
    with pytest.raises(ValueError, match="IANA"):
        may_open("* * * * *", "Asia/Nowhere", 0.0)


def test_without_lines_any_time_will_do() -> None:
    assert may_open(None, None, 5.0)
    assert next_time(None, None, 5.0) == 5.0


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "no cron line"),
        (" \n\n", "no cron line"),
        ("* * * *", "has 4 fields"),
        ("0 * * * * *", "has 6 fields"),
        ("@daily", "has 1 fields"),
        ("* * * * *\n60 * * * *", "'60 \\* \\* \\* \\*' is wrong: '60' is no minute: write 0 to 59"),
        ("* 24 * * *", "'24' is no hour: write 0 to 23"),
        ("* * 0 * *", "'0' is no day of the month: write 1 to 31"),
        ("* * 32 * *", "'32' is no day of the month"),
        ("* * * 13 *", "'13' is no month: write 1 to 12, or jan to dec"),
        ("* * * juni *", "'juni' is no month"),
        ("* * * * 8", "'8' is no day of the week: write 0 to 7, or sun to sat"),
        ("mon * * * *", "'mon' is no minute"),
        ("-1 * * * *", "'-1' is no minute"),
        ("1.5 * * * *", "'1.5' is no minute"),
        ("5-1 * * * *", "ends before it begins"),
        ("* 22-5 * * *", "ends before it begins"),
        ("* * * * sat-sun", "ends before it begins"),
        ("*/0 * * * *", "steps by 0"),
        ("*/x * * * *", "'\\*/x' is no minute"),
        ("1,,2 * * * *", "'' is no minute"),
        ("*-5 * * * *", "'\\*-5' is no minute"),
        ("٣ * * * *", "is no minute"),
        ("99999 * * * *", "'99999' is no minute"),
    ],
)
def test_refused_with_the_right_form(lines: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_schedule(lines)


@pytest.mark.parametrize(
    ("lines", "zone", "now", "expected"),
    [
        ("* * * * *", "UTC", "2025-06-10T12:34:56Z", "2025-06-10T12:34:56Z"),
        ("34 12 * * *", "UTC", "2025-06-10T12:34:30Z", "2025-06-10T12:34:30Z"),
        ("34 12 * * *", "UTC", "2025-06-10T12:35:00Z", "2025-06-11T12:34:00Z"),
        ("0 9 * * mon", "UTC", "2025-06-10T12:34:56Z", "2025-06-16T09:00:00Z"),
        ("0 0 1 1 *", "UTC", "2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z"),
        ("0 0 29 2 *", "UTC", "2025-06-10T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", "2104-02-29T00:00:00Z"),
        ("0 9 * * *\n0 8 * * *", "UTC", "2025-06-10T07:00:00Z", "2025-06-10T08:00:00Z"),
        ("0 9 * * *", "Asia/Tokyo", "2025-06-10T00:01:00Z", "2025-06-11T00:00:00Z"),
        # A minute that the clocks skip does not come that day; one that they repeat comes twice.
        ("30 2 * * *", BERLIN, "2025-03-29T12:00:00+01:00", "2025-03-31T02:30:00+02:00"),
        ("30 2 * * *", BERLIN, "2025-10-25T12:00:00+02:00", "2025-10-26T02:30:00+02:00"),
        ("30 2 * * *", BERLIN, "2025-10-26T02:31:00+02:00", "2025-10-26T02:30:00+01:00"),
        ("30 2 * * *", BERLIN, "2025-10-26T02:31:00+01:00", "2025-10-27T02:30:00+01:00"),
    ],
)
def test_the_next_time(lines: str, zone: str, now: str, expected: str) -> None:
    assert next_time(lines, zone, at(now)) == at(expected)


def test_a_day_that_never_comes() -> None:
    assert next_time("0 0 30 2 *", "UTC", at("2025-06-10T00:00:00Z")) is None


line = st.builds(
    lambda minute, hour, day, weekday: f"{minute} {hour} {day} * {weekday}",
    st.sampled_from(["*", "0", "*/7", "30,45", "59"]),
    st.sampled_from(["*", "1-3", "0", "23", "2,14"]),
    st.sampled_from(["*", "1", "*/10", "31"]),
    st.sampled_from(["*", "0", "mon-fri", "6"]),
)


@given(line, st.sampled_from(["UTC", BERLIN, "Australia/Lord_Howe"]), st.integers(1735686000, 1767222000))
@settings(deadline=None)
def test_the_next_time_matches_and_nothing_before_it_does(lines: str, zone: str, wall: int) -> None:
    following = next_time(lines, zone, float(wall))
    assert following is not None
    assert may_open(lines, zone, following)
    if following > wall:
        assert not any(
            may_open(lines, zone, wall + share * (following - 1 - wall) / 20) for share in range(21)
        )
