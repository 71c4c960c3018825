"""Windows: Locksmith's grammar and its own cases, then days, ends of months and years, and both changes of clocks."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.window import (
    Window,
    closes_at,
    describe,
    is_open,
    next_opening,
    parse_timezone,
    parse_window,
)

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
HOUR, DAY = 3600.0, 86400.0


def at(text: str) -> float:
    """Unix seconds of a time that carries its offset: `2025-03-30T03:30:00+02:00`, `…Z`."""
    return datetime.fromisoformat(text).timestamp()


# --- the grammar ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "window"),
    [
        ("Thu 23:00", "1h30m", Window(3, 23, 0, 5400)),
        ("14:00", "1h", Window(None, 14, 0, 3600)),
        ("Mon 9:00", "1h", Window(0, 9, 0, 3600)),  # locksmith pkg/timeutil/periodic_test.go
        ("sat 14:00", "1h", Window(5, 14, 0, 3600)),
        ("SUN 00:00", "1h", Window(6, 0, 0, 3600)),
        ("wednesday 23:59", "1s", Window(2, 23, 59, 1)),
        ("  tue \t 07:05 ", "10m", Window(1, 7, 5, 600)),  # locksmith splits at any blanks
        ("00:15", "10s", Window(None, 0, 15, 10)),
        ("00:00", "23h59m59s", Window(None, 0, 0, DAY - 1)),
        ("Fri 00:00", "167h59m", Window(4, 0, 0, 7 * DAY - 60)),
    ],
)
def test_read(start: str, length: str, window: Window) -> None:
    assert parse_window(start, length) == window


@pytest.mark.parametrize(
    ("start", "length", "says"),
    [
        # Refused by locksmith too (pkg/timeutil/periodic_test.go, TestPeriodicParse).
        ("25:00", "1h", "'25:00' where a time of day belongs"),
        ("23:61", "1h", "'23:61' where a time of day belongs"),
        ("14", "1h", "'14' where a time of day belongs"),
        ("foo 14:00", "1h", "'foo', which is no day of the week"),
        ("sat 14:00", "1j", "'1j' is no duration"),
        ("sat 14:00", "-1h", "'-1h' is no duration"),
        ("sat 14:00 1234", "1h", "no start of a window"),
        ("sat", "1h", "'sat' where a time of day belongs"),
        # Taken by locksmith, and understood otherwise than it was meant.
        ("2:00pm", "1h", "without seconds, sign, am or pm"),
        ("14:00:30", "1h", "without seconds, sign, am or pm"),
        ("+9:05", "1h", "without seconds, sign, am or pm"),
        ("9:+5", "1h", "two digits of minutes"),
        ("9:5", "1h", "two digits of minutes"),
        ("009:05", "1h", "where a time of day belongs"),
        ("14:00", "0s", "never opens"),
        ("14:00", "24h", "every day never closes"),
        ("Thu 23:00", "168h", "every week never closes"),
        # And the rest.
        ("", "1h", "no start of a window"),
        ("24:00", "1h", "00:00 to 23:59"),
        ("-1:00", "1h", "where a time of day belongs"),
        ("١٤:٠٠", "1h", "where a time of day belongs"),
        ("14:00", "", "empty text is no duration"),
        ("Thu23:00", "1h", "where a time of day belongs"),
        ("Thurs 23:00", "1h", "write Mon, Tue, …, Sun"),
    ],
)
def test_refused_with_the_right_form(start: str, length: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_window(start, length)


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "Europe", "../../etc/passwd", "/etc/localtime", "CEST!", "a\0b"]
)
def test_a_time_zone_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        parse_timezone(name)


# --- Locksmith's own cases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "now", "to_start"),
    [
        ("00:15", "10s", "2015-05-21T00:00:00Z", 15 * 60),
        ("00:00", "1h", "2015-05-21T00:00:00Z", 0),
        ("00:00", "1h", "2015-05-21T00:00:01Z", -1),
        ("02:33", "10h", "2015-05-21T12:33:00Z", -10 * HOUR),
        ("02:33", "10h", "2015-05-21T12:33:01Z", 14 * HOUR - 1),
        ("23:05", "11h", "2015-05-21T09:33:01Z", -(10 * HOUR + 28 * 60 + 1)),
        ("Thu 00:15", "10s", "2015-05-21T00:00:00Z", 15 * 60),
        ("Thu 00:00", "1h", "2015-05-21T00:00:00Z", 0),
        ("Sun 00:00", "1h", "2015-05-17T00:00:01Z", -1),
        ("Sun 02:33", "10h", "2015-05-17T12:33:00Z", -10 * HOUR),
        ("Sat 23:05", "11h", "2015-05-17T09:33:01Z", -(10 * HOUR + 28 * 60 + 1)),
        ("Mon 9:00", "1h", "2015-05-30T23:00:00Z", 34 * HOUR),
    ],
)
def test_as_locksmith_has_it(start: str, length: str, now: str, to_start: float) -> None:
    """pkg/timeutil/periodic_test.go, TestToStart: 0 or less is inside, more is the way to the next one."""
    window, wall = parse_window(start, length), at(now)
    assert is_open([window], "UTC", wall) == (to_start <= 0)
    if to_start <= 0:
        assert closes_at([window], "UTC", wall) == wall + to_start + window.length
    else:
        assert next_opening([window], "UTC", wall) == wall + to_start


# --- one window, from its first instant to its last -----------------------------------------------------------------

ONCE = [
    # start, length, zone, first instant, last instant, why
    ("14:00", "1h", "UTC", "2025-06-10T14:00:00Z", "2025-06-10T15:00:00Z", "a day"),
    ("Thu 23:00", "1h30m", "UTC", "2025-06-12T23:00:00Z", "2025-06-13T00:30:00Z", "over midnight"),
    ("Sun 23:30", "1h", "UTC", "2025-06-15T23:30:00Z", "2025-06-16T00:30:00Z", "over the week's end"),
    ("Mon 00:00", "167h", "UTC", "2025-06-16T00:00:00Z", "2025-06-22T23:00:00Z", "almost a week"),
    ("00:00", "23h59m", "UTC", "2025-06-10T00:00:00Z", "2025-06-10T23:59:00Z", "almost a day"),
    ("Mon 23:30", "167h", "UTC", "2025-06-16T23:30:00Z", "2025-06-23T22:30:00Z", "until the next Monday"),
    ("23:30", "2h", "UTC", "2025-04-30T23:30:00Z", "2025-05-01T01:30:00Z", "a month's end"),
    ("23:30", "2h", "UTC", "2024-02-29T23:30:00Z", "2024-03-01T01:30:00Z", "a leap day"),
    ("23:30", "2h", "UTC", "2025-02-28T23:30:00Z", "2025-03-01T01:30:00Z", "no leap day"),
    ("23:30", "2h", "UTC", "2025-12-31T23:30:00Z", "2026-01-01T01:30:00Z", "a year's end"),
    ("Wed 22:00", "72h", "UTC", "2025-12-31T22:00:00Z", "2026-01-03T22:00:00Z", "days over a year's end"),
    ("14:00", "1h", BERLIN, "2025-06-10T14:00:00+02:00", "2025-06-10T15:00:00+02:00", "summer"),
    ("14:00", "1h", BERLIN, "2025-12-10T14:00:00+01:00", "2025-12-10T15:00:00+01:00", "winter"),
    ("Tue 01:00", "1h", BERLIN, "2025-06-10T01:00:00+02:00", "2025-06-10T02:00:00+02:00", "Monday in UTC"),
    ("Mon 23:00", "1h", NEW_YORK, "2025-06-09T23:00:00-04:00", "2025-06-10T00:00:00-04:00", "Tuesday in UTC"),
    # The clocks go forward: Berlin 30 March 2025 02:00 → 03:00, New York 9 March 2025 02:00 → 03:00.
    ("01:30", "1h", BERLIN, "2025-03-30T01:30:00+01:00", "2025-03-30T03:30:00+02:00", "elapsed over the gap"),
    ("02:30", "1h", BERLIN, "2025-03-30T03:30:00+02:00", "2025-03-30T04:30:00+02:00", "start in the gap"),
    ("02:00", "1h", BERLIN, "2025-03-30T03:00:00+02:00", "2025-03-30T04:00:00+02:00", "start at the gap"),
    ("Sun 02:59", "1m", BERLIN, "2025-03-30T03:59:00+02:00", "2025-03-30T04:00:00+02:00", "a week's gap"),
    ("Sat 20:00", "12h", BERLIN, "2025-03-29T20:00:00+01:00", "2025-03-30T09:00:00+02:00", "a night of 11 h"),
    ("01:30", "1h", NEW_YORK, "2025-03-09T01:30:00-05:00", "2025-03-09T03:30:00-04:00", "elapsed over it"),
    ("02:30", "1h", NEW_YORK, "2025-03-09T03:30:00-04:00", "2025-03-09T04:30:00-04:00", "start in the gap"),
    ("Sat 20:00", "12h", NEW_YORK, "2025-03-08T20:00:00-05:00", "2025-03-09T09:00:00-04:00", "a short night"),
    # The clocks go back: Berlin 26 October 2025 03:00 → 02:00, New York 2 November 2025 02:00 → 01:00.
    ("01:30", "1h", BERLIN, "2025-10-26T01:30:00+02:00", "2025-10-26T02:30:00+02:00", "ends the first time"),
    (
        "02:30",
        "1h",
        BERLIN,
        "2025-10-26T02:30:00+02:00",
        "2025-10-26T02:30:00+01:00",
        "the first 02:30 counts",
    ),
    ("02:30", "10m", BERLIN, "2025-10-26T02:30:00+02:00", "2025-10-26T02:40:00+02:00", "and only the first"),
    ("Sat 20:00", "12h", BERLIN, "2025-10-25T20:00:00+02:00", "2025-10-26T07:00:00+01:00", "a long night"),
    ("01:30", "1h", NEW_YORK, "2025-11-02T01:30:00-04:00", "2025-11-02T01:30:00-05:00", "the first 01:30"),
    ("Sun 01:00", "5m", NEW_YORK, "2025-11-02T01:00:00-04:00", "2025-11-02T01:05:00-04:00", "and only it"),
    ("Sat 20:00", "12h", NEW_YORK, "2025-11-01T20:00:00-04:00", "2025-11-02T07:00:00-05:00", "a long night"),
]


@pytest.mark.parametrize(("start", "length", "zone", "first", "last", "why"), ONCE)
def test_both_ends_belong_to_it(start: str, length: str, zone: str, first: str, last: str, why: str) -> None:
    windows, begin, end = [parse_window(start, length)], at(first), at(last)
    assert [is_open(windows, zone, wall) for wall in (begin - 1, begin, (begin + end) / 2, end, end + 1)] == [
        False,
        True,
        True,
        True,
        False,
    ], why
    assert next_opening(windows, zone, begin - 1) == begin
    assert [closes_at(windows, zone, wall) for wall in (begin - 1, begin, end, end + 1)] == [
        None,
        end,
        end,
        None,
    ]
    following = next_opening(windows, zone, begin)
    assert following is not None
    assert following > end


# --- several, and none ----------------------------------------------------------------------------------------------


def test_without_windows_it_is_always_open() -> None:
    assert is_open([], BERLIN, 0.0)
    assert next_opening([], BERLIN, 0.0) is None
    assert closes_at([], BERLIN, 0.0) is None


def test_several_windows_make_a_union() -> None:
    """Overlapping, meeting at one instant, and apart."""
    windows = [
        parse_window("10:00", "2h"),
        parse_window("11:00", "2h"),
        parse_window("13:00", "1h"),
        parse_window("Tue 15:00", "1h"),
    ]
    tuesday = at("2025-06-10T00:00:00Z")
    assert next_opening(windows, "UTC", tuesday) == tuesday + 10 * HOUR
    assert closes_at(windows, "UTC", tuesday + 10 * HOUR) == tuesday + 14 * HOUR
    assert closes_at(windows, "UTC", tuesday + 12.5 * HOUR) == tuesday + 14 * HOUR
    # 11:00 and 13:00 are no openings: it was open before.
    assert next_opening(windows, "UTC", tuesday + 10 * HOUR) == tuesday + 15 * HOUR
    assert not is_open(windows, "UTC", tuesday + 14.5 * HOUR)
    assert next_opening(windows, "UTC", tuesday + 16 * HOUR) == tuesday + DAY + 10 * HOUR


def test_windows_that_never_close_together() -> None:
    windows = [parse_window("00:00", "23h"), parse_window("22:00", "5h")]
    assert is_open(windows, "UTC", at("2025-06-10T23:30:00Z"))
    assert closes_at(windows, "UTC", at("2025-06-10T23:30:00Z")) is None
    assert next_opening(windows, "UTC", at("2025-06-10T23:30:00Z")) is None


def test_windows_that_close_only_in_the_hour_that_the_clocks_add() -> None:
    windows = [parse_window("00:00", "12h"), parse_window("12:00", "12h")]
    summer = at("2025-06-10T12:00:00+02:00")
    closes = at("2025-10-26T11:00:00+01:00")
    assert closes_at(windows, BERLIN, summer) == closes
    assert next_opening(windows, BERLIN, summer) == closes + HOUR
    assert not is_open(windows, BERLIN, closes + 1)
    assert closes_at(windows, "UTC", summer) is None


def test_a_whole_day_that_the_clocks_skip() -> None:
    """Samoa had no 30 December 2011, a Friday: its window comes a day later, and is open for its whole length."""
    windows, last = [parse_window("Fri 23:30", "150h")], at("2012-01-07T05:30:00+14:00")
    assert next_opening(windows, "Pacific/Apia", last - 200 * HOUR) == last - 150 * HOUR
    assert is_open(windows, "Pacific/Apia", last)


def test_shown() -> None:
    windows = [parse_window("Thu 23:00", "1h30m"), parse_window("4:05", "60m")]
    assert describe(windows, BERLIN) == "Thu 23:00 for 1h30m, daily 04:05 for 1h (Europe/Berlin)"
    assert describe([], "UTC") == "any time"


windows_at_will = st.lists(
    st.builds(
        Window,
        st.none() | st.integers(0, 6),
        st.integers(0, 23),
        st.integers(0, 59),
        st.integers(1, 86399).map(float),
    ),
    min_size=1,
    max_size=4,
)
moments = st.integers(int(at("2024-01-01T00:00:00Z")), int(at("2027-01-01T00:00:00Z"))).map(float)


@given(windows_at_will, st.sampled_from(["UTC", BERLIN, NEW_YORK, "Australia/Lord_Howe"]), moments)
@settings(deadline=None)
def test_the_three_answers_agree(windows: list[Window], zone: str, wall: float) -> None:
    now_open, opening, closing = (
        is_open(windows, zone, wall),
        next_opening(windows, zone, wall),
        closes_at(windows, zone, wall),
    )
    if opening is not None:
        assert opening > wall
        assert is_open(windows, zone, opening)
        assert not is_open(windows, zone, opening - 0.5)
    if closing is not None:
        assert now_open
        assert is_open(windows, zone, closing)
        assert not is_open(windows, zone, closing + 0.5)
    if not now_open:
        assert opening is not None
        assert closing is None
