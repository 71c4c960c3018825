"""When a rollout may open: the cron lines of `config/release-time`. Pure; asked by the leader, checked by `config set`.

The lines are what Neco's updater takes (robfig/cron's standard parser): five fields, and a day that matches where the
day of the month *or* the day of the week does once both are restricted. `*/2` restricts, `*` and `?` do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo

from reconciler.core.window import parse_timezone

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_PART = re.compile(r"(?:(?P<any>[*?])|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>[0-9]{1,4}))?", re.ASCII)
_DAYS_AHEAD = 9 * 366
"""A 29 February is at most eight years away; a line without a match until then (30 February) has none."""


@dataclass(frozen=True, slots=True)
class CronLine:
    """One line: the values that each field allows. Weekdays from 0 = Sunday; `either_day` is cron's rule for days."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def has_day(self, day: date) -> bool:
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (in_month or in_week if self.either_day else in_month and in_week)

    def has(self, local: datetime) -> bool:
        return local.minute in self.minutes and local.hour in self.hours and self.has_day(local.date())


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()
    extra: int | None = None
    """Another way to write the lowest value: 7 is Sunday as well."""


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 6, _WEEKDAYS, 7),
)


def parse_schedule(lines: str) -> tuple[CronLine, ...]:
    """The cron lines in `lines`, one a line. Raises ValueError with the line, what is wrong in it and the right form."""
    parsed = tuple(_parse_line(line) for line in lines.splitlines() if line.strip())
    if not parsed:
        raise ValueError(
            "there is no cron line: write five fields, such as `* 1-5 * * mon-fri`; `* * * * *` is any time"
        )
    return parsed


def may_open(lines: str | None, timezone: str | None, wall: float) -> bool:
    """Whether the minute of `wall` (Unix seconds) matches one of `lines`. None is any time; no time zone is UTC."""
    if lines is None:
        return True
    local = datetime.fromtimestamp(wall, parse_timezone(timezone or "UTC"))
    return any(line.has(local) for line in parse_schedule(lines))


def next_time(lines: str | None, timezone: str | None, wall: float) -> float | None:
    """The first moment, `wall` or later, when a rollout may open; None where no line ever matches."""
    if may_open(lines, timezone, wall):
        return wall
    zone = parse_timezone(timezone or "UTC")
    schedule = parse_schedule(lines or "")
    today = datetime.fromtimestamp(wall, zone).date()
    for offset in range(_DAYS_AHEAD):
        day = today + timedelta(days=offset)
        later = [moment for line in schedule for moment in _moments(line, day, zone) if moment > wall]
        if later:
            return min(later)
    return None


def _moments(line: CronLine, day: date, zone: tzinfo) -> list[float]:
    """The beginnings of all minutes of `day` that match: none in the hour that a change of clocks skips, twice in one that it repeats."""
    if not line.has_day(day):
        return []
    moments = {
        datetime.combine(day, time(hour, minute, fold=fold), zone).timestamp()
        for hour in line.hours
        for minute in line.minutes
        for fold in (0, 1)
    }
    return [moment for moment in moments if line.has(datetime.fromtimestamp(moment, zone))]


def _parse_line(line: str) -> CronLine:
    texts = line.split()
    if len(texts) != len(_FIELDS):
        raise ValueError(
            f"the cron line {line.strip()!r} has {len(texts)} fields: write five, minute, hour, day of the month, month, "
            "day of the week"
        )
    try:
        values = [_parse_field(field, text) for field, text in zip(_FIELDS, texts, strict=True)]
    except ValueError as error:
        raise ValueError(f"the cron line {line.strip()!r} is wrong: {error}") from None
    minutes, hours, days, months, weekdays = values
    restricted = [not any(part in ("*", "?", "*/1", "?/1") for part in texts[n].split(",")) for n in (2, 4)]
    return CronLine(minutes, hours, days, months, frozenset(day % 7 for day in weekdays), all(restricted))


def _parse_field(field: _Field, text: str) -> frozenset[int]:
    return frozenset(value for part in text.split(",") for value in _parse_part(field, part))


def _parse_part(field: _Field, part: str) -> range:
    """`*`, `5`, `1-5`, each with `/step`; `5/15` is from 5 on."""
    found = _PART.fullmatch(part)
    if not found:
        raise ValueError(
            f"{part!r} is no {field.name}: write *, a number, a range such as 1-5, or one with a step: */10"
        )
    step = int(found["step"] or 1)
    if step == 0:
        raise ValueError(f"{part!r} steps by 0: leave the step out, or write a larger one")
    if found["any"]:
        return range(field.lowest, field.highest + 1, step)
    first = _value(field, found["first"])
    alone = field.highest if found["step"] else first
    last = _value(field, found["last"]) if found["last"] else alone
    if last < first:
        raise ValueError(f"{part!r} ends before it begins: write two parts, such as 22-23,0-5")
    return range(first, last + 1, step)


def _value(field: _Field, text: str) -> int:
    if text.lower() in field.names:
        return field.names.index(text.lower()) + field.lowest
    allowed = range(field.lowest, (field.extra or field.highest) + 1)
    if not text.isdigit() or len(text) > 4 or int(text) not in allowed:
        names = f", or {field.names[0]} to {field.names[-1]}" if field.names else ""
        raise ValueError(f"{text!r} is no {field.name}: write {allowed[0]} to {allowed[-1]}{names}")
    return int(text)
