"""Reboot windows in Locksmith's grammar. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A weekly (`weekday` 0 = Monday) or daily (`weekday` None) window; `hour`:`minute` local time, `length` in seconds."""

    weekday: int | None
    hour: int
    minute: int
    length: float
