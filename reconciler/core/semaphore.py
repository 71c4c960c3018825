"""The reboot lock's semaphore as a plain value. Pure; the documents are `wire/lock`'s, the writes `store/lock`'s.

The document is Locksmith's (`semaphore`, `max`, `holders`). The stored counter is written for other readers and
never believed: what is free is `max` less the number of holders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Source = Literal["agent", "operator", "fleetlock"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A holder's record. A slot belongs to a machine id, a source and an LRN together: only these may free it."""

    machine_id: str
    source: Source = "operator"
    lrn: int | None = None
    start_time: int = 0
    boot_id: str = ""
    reason: str = ""
    revision: str = ""
    mod_revision: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def owner(self) -> tuple[str, Source, int | None]:
        return (self.machine_id, self.source, self.lrn)


@dataclass(frozen=True, slots=True)
class Semaphore:
    """Who holds the slots of one lock group, sorted by machine id, and how many slots there are."""

    max: int = 1
    holders: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Slots that may be taken now; never negative, though `max` may stand below the number of holders."""
        return max(0, self.max - len(self.holders))

    def add(self, machine_id: str) -> Semaphore | None:
        """With `machine_id` among the holders; itself if it is there already; None while no slot is free."""
        if not machine_id:
            raise ValueError("an empty machine id cannot hold a slot")
        if machine_id in self.holders:
            return self
        if not self.free:
            return None
        return replace(self, holders=tuple(sorted({*self.holders, machine_id})))

    def remove(self, machine_id: str) -> Semaphore:
        """Without `machine_id`; itself if it holds nothing."""
        if machine_id not in self.holders:
            return self
        return replace(self, holders=tuple(held for held in self.holders if held != machine_id))

    def with_max(self, slots: int) -> Semaphore:
        """With another number of slots. Below the number of holders nobody enters until enough have left; 0 closes the lock."""
        if slots < 0:
            raise ValueError(f"a lock cannot have {slots} slots: 0 closes it")
        return replace(self, max=slots)
