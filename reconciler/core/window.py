"""Reboot windows in Locksmith's grammar: read, and asked whether a server may go down now. Pure.

`wire` reads them, `advance` asks, `report` shows the next one. A window opens at a local time of day and stays open for
its length of elapsed time, whatever the clocks do meanwhile; its first and its last instant belong to it. A start is read
with the offset in force before a change of clocks: one that the change skips comes as much later (02:30 becomes 03:30,
24 hours after the day before's), and of one that comes twice the first counts. So each window opens once on each of its days.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from reconciler.core.duration import format_duration, parse_duration


@dataclass(frozen=True, slots=True)
class Window:
    """A weekly (`weekday` 0 = Monday) or daily (`weekday` None) window; `hour`:`minute` local time, `length` in seconds."""

    weekday: int | None
    hour: int
    minute: int
    length: float


_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WEEKDAYS = {name: number for number, day in enumerate(_DAYS) for name in (day, day[:3])}
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})")
_DAY_LENGTH = 86400.0
_BACK = 8
"""Days to look back: a window is open for less than a week, and a start that a change of clocks skipped comes later."""
_AHEAD = (16, 800)
"""Days to look ahead: almost always two weeks tell all; windows that together are open all the time except in the hour
that a change of clocks adds need the next two years."""


def parse_window(start: str, length: str) -> Window:
    """The window that begins at `start` (`Thu 23:00`, or `14:00` for every day) and is open for `length` (`1h30m`).

    Raises ValueError with what is wrong and the right form: what Locksmith took and understood otherwise than it was meant
    (`2:00pm`, `14:00:30`, `+9:05`) and windows that would never close or never open.
    """
    weekday, hour, minute = _parse_start(start)
    seconds = parse_duration(length)
    if seconds <= 0:
        raise ValueError(f"a window of length {length!r} never opens: give it a length, such as 1h30m")
    if seconds >= (_DAY_LENGTH if weekday is None else 7 * _DAY_LENGTH):
        every, limit = ("day", "24h") if weekday is None else ("week", "168h")
        raise ValueError(
            f"a window of {length!r} every {every} never closes: make it shorter than {limit}, or leave the windows out to "
            "allow any time"
        )
    return Window(weekday, hour, minute, seconds)


def parse_timezone(name: str) -> tzinfo:
    """The time zone with this name of the IANA database. Raises ValueError; `UTC` needs no database."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is no time zone that is known here: write a name of the IANA database, such as UTC or Europe/Berlin"
        ) from None


def is_open(windows: Iterable[Window], timezone: str, wall: float) -> bool:
    """Whether one of `windows` is open at `wall`, in Unix seconds. Without any window it is always open."""
    windows = tuple(windows)
    zone = parse_timezone(timezone)
    return not windows or any(start <= wall <= end for start, end in _periods(windows, zone, wall, 1))


def next_opening(windows: Iterable[Window], timezone: str, wall: float) -> float | None:
    """When, after `wall`, they will next go from closed to open; None where that never happens."""
    windows = tuple(windows)
    zone = parse_timezone(timezone)
    for days in _AHEAD:
        for start, _ in _union(_periods(windows, zone, wall, days)):
            if start > wall:
                return start
    return None


def closes_at(windows: Iterable[Window], timezone: str, wall: float) -> float | None:
    """The last instant, from `wall` on, until which they stay open; None where they are closed, or never close.

    Windows that overlap or meet are one: this is the end of the last of them.
    """
    windows = tuple(windows)
    zone = parse_timezone(timezone)
    for days in _AHEAD:
        seen_until = wall + (days - 2) * _DAY_LENGTH
        for start, end in _union(_periods(windows, zone, wall, days)):
            if start <= wall <= end < seen_until:
                return end
    return None


def describe(windows: Sequence[Window], timezone: str) -> str:
    """For people: `Thu 23:00 for 1h30m, daily 14:00 for 1h (Europe/Berlin)`, or `any time`."""
    if not windows:
        return "any time"
    return f"{', '.join(_described(window) for window in windows)} ({timezone})"


def _described(window: Window) -> str:
    day = "daily" if window.weekday is None else _DAYS[window.weekday][:3].capitalize()
    return f"{day} {window.hour:02d}:{window.minute:02d} for {format_duration(window.length)}"


def _parse_start(start: str) -> tuple[int | None, int, int]:
    match start.split():
        case [clock]:
            return (None, *_parse_time(start, clock))
        case [day, clock] if day.lower() in _WEEKDAYS:
            return (_WEEKDAYS[day.lower()], *_parse_time(start, clock))
        case [day, _]:
            raise ValueError(
                f"{start!r} begins with {day!r}, which is no day of the week: write Mon, Tue, …, Sun"
            )
    raise ValueError(
        f"{start!r} is no start of a window: write a time, such as 14:00, or a day and a time: Thu 23:00"
    )


def _parse_time(start: str, clock: str) -> tuple[int, int]:
    found = _TIME.fullmatch(clock)
    hour, minute = (int(found[1]), int(found[2])) if found else (99, 99)
    if hour > 23 or minute > 59:
        raise ValueError(
            f"{start!r} has {clock!r} where a time of day belongs: write hours and two digits of minutes, 00:00 to 23:59, "
            "without seconds, sign, am or pm"
        )
    return hour, minute


def _periods(windows: Sequence[Window], zone: tzinfo, wall: float, days: int) -> list[tuple[float, float]]:
    """Each window's times around `wall`, first and last instant, in order."""
    today = datetime.fromtimestamp(wall, zone).date()
    dates = [today + timedelta(days=offset) for offset in range(-_BACK, days + 1)]
    starts = (
        (datetime.combine(date, time(window.hour, window.minute), zone).timestamp(), window.length)
        for date in dates
        for window in windows
        if window.weekday is None or window.weekday == date.weekday()
    )
    return sorted((start, start + length) for start, length in starts)


def _union(periods: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    union: list[tuple[float, float]] = []
    for start, end in periods:
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union
