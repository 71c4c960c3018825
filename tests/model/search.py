"""Breadth first through every state that can be reached, and back from the ends: what is never reached, and what never ends. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)


class Broken(AssertionError):
    """A promise does not hold; the message ends with the way there."""


@dataclass(frozen=True, slots=True)
class Searched(Generic[State]):
    """What a whole search has seen."""

    states: int
    events: int
    ends: int


def search(
    start: State,
    events: Callable[[State], Iterable[tuple[str, State]]],
    is_end: Callable[[State], bool],
    most: int = 2_000_000,
) -> Searched[State]:
    """Every state that can be reached from `start`; `events` raises `Broken` where one breaks a promise.

    Raises `Broken`, with the way to it, for that, and for a state from which no end can be reached any more.
    """
    numbers: dict[State, int] = {start: 0}
    origins: list[tuple[int, str]] = [(-1, "")]
    before: list[list[int]] = [[]]
    ends: list[int] = []
    waiting = deque([start])
    count = 0
    while waiting:
        state = waiting.popleft()
        number = numbers[state]
        if is_end(state):
            ends.append(number)
        try:
            for name, after in events(state):
                count += 1
                seen = numbers.get(after)
                if seen is None:
                    seen = numbers[after] = len(origins)
                    origins.append((number, name))
                    before.append([])
                    waiting.append(after)
                before[seen].append(number)
        except Broken as error:
            raise Broken(f"{error}\n{_way(origins, number)}") from None
        if len(numbers) > most:
            raise AssertionError(f"more than {most} states: bound the search")
    lost = _lost(before, ends)
    if lost is not None:
        raise Broken(f"no end can be reached any more\n{_way(origins, lost)}")
    return Searched(len(numbers), count, len(ends))


def _lost(before: list[list[int]], ends: list[int]) -> int | None:
    """The first state from which no end can be reached."""
    good = set(ends)
    waiting = deque(ends)
    while waiting:
        for number in before[waiting.popleft()]:
            if number not in good:
                good.add(number)
                waiting.append(number)
    return next((number for number in range(len(before)) if number not in good), None)


def _way(origins: list[tuple[int, str]], number: int) -> str:
    names: list[str] = []
    while number:
        number, name = origins[number]
        names.append(name)
    return "\n".join(f"  {place}. {name}" for place, name in enumerate(reversed(names), 1))
