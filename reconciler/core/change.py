"""One artifact that differs between two states: what `difference` makes, and `make_plan` orders into steps. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reconciler.core.artifact import Artifact, Key, Known

Action = Literal["install", "upgrade", "downgrade", "replace", "record", "remove"]
Reason = Literal[
    "not_recorded",
    "version_changed",
    "source_changed",
    "digest_changed",
    "definition_changed",
    "found_on_host",
    "not_desired",
    "interrupted",
    "missing_on_host",
    "differs_on_host",
    "unexpected_on_host",
]


@dataclass(frozen=True, slots=True)
class Change:
    """One artifact that differs between two states. `fields` names what differs, `restart`/`reboot` what it takes."""

    key: Key
    action: Action
    before: Artifact | Known | None
    after: Artifact | Known | None
    reason: Reason
    fields: tuple[str, ...] = ()
    restart: bool = False
    reboot: bool = False
    pinned: bool = True
