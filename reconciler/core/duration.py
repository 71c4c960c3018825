"""Durations as people write them (`1h30m`, `10m`, `500ms`), and moments as they are recorded. Pure; used by every room."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from fractions import Fraction

_NANOSECONDS = {
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ns": 1,
}
_LONGEST = (1 << 63) - 1
_TEXT_LIMIT = 100
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|s|us|µs|μs|ns)")
_FORM = "write numbers with units, the largest first, each once: 1h30m, 10m, 60s or 500ms"


def parse_duration(text: str) -> float:
    """The seconds that `text` says, never negative.

    Go's grammar (`time.ParseDuration`) without its traps: no sign, no bare `.5h`, and each unit once and in order, so that
    `30m1h` or `5m5m` is asked about rather than added up. Raises ValueError, saying what would be right.
    """
    if text == "0":
        return 0.0
    if len(text) > _TEXT_LIMIT:
        raise ValueError(f"a text of {len(text)} characters is no duration: {_FORM}")
    nanoseconds, smallest, position = Fraction(0), _LONGEST, 0
    while position < len(text):
        part = _PART.match(text, position)
        if not part:
            raise ValueError(f"{text!r} is no duration: {_FORM}")
        unit = _NANOSECONDS[part[2]]
        if unit >= smallest:
            raise ValueError(f"{text!r} has its units twice or out of order: {_FORM}")
        nanoseconds += Fraction(part[1]) * unit
        smallest, position = unit, part.end()
    if not position:
        raise ValueError(f"an empty text is no duration: {_FORM}")
    if nanoseconds > _LONGEST:
        raise ValueError(f"{text!r} is longer than 292 years")
    return float(nanoseconds / _NANOSECONDS["s"])


def format_duration(seconds: float) -> str:
    """`seconds` to the nanosecond, as `parse_duration` reads it, without parts that are zero: `1h30m`, `5s`, `1.5s`, `0s`."""
    nanoseconds = round(Fraction(seconds) * _NANOSECONDS["s"])
    if nanoseconds < 0:
        return f"-{format_duration(-seconds)}"
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < _NANOSECONDS["s"]:
        unit = next(unit for unit in ("ms", "us", "ns") if nanoseconds >= _NANOSECONDS[unit])
        return _decimal(nanoseconds, unit)
    hours, rest = divmod(nanoseconds, _NANOSECONDS["h"])
    minutes, rest = divmod(rest, _NANOSECONDS["m"])
    return (
        (f"{hours}h" if hours else "")
        + (f"{minutes}m" if minutes else "")
        + (_decimal(rest, "s") if rest else "")
    )


def timestamp(wall: float) -> str:
    """Unix seconds as RFC 3339 in UTC with nine digits of nanoseconds, so that texts sort as times do."""
    seconds, micros = divmod(round(wall * 1_000_000), 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}000Z"


def _decimal(nanoseconds: int, unit: str) -> str:
    whole, rest = divmod(nanoseconds, _NANOSECONDS[unit])
    digits = len(str(_NANOSECONDS[unit])) - 1
    fraction = f"{rest:0{digits}d}".rstrip("0") if rest else ""
    return f"{whole}.{fraction}{unit}" if fraction else f"{whole}{unit}"
