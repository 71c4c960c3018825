"""The plan of one server: from changes to ordered steps. Pure; called by the agent, the command and the web's plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reconciler.core.artifact import Artifact, Key, Known

Action = Literal["install", "upgrade", "downgrade", "replace", "record", "remove"]
Effect = Literal["fetch", "acquire", "hook", "warn", "stop", "change", "reboot", "health", "release"]
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


@dataclass(frozen=True, slots=True)
class Step:
    """One effect. `subject` None means the host itself. `list` and `index` place a hook: `before`, `after` or `started`, from 0."""

    phase: str
    subject: Key | None
    effect: Effect
    list: str | None = None
    index: int | None = None
    needs: tuple[str, ...] = ()
    change: Change | None = None
    hook: str | None = None

    @property
    def id(self) -> str:
        subject = self.subject.subject if self.subject else "host"
        tail = f":{self.list}:{self.index}" if self.list is not None else ""
        return f"{self.phase}:{subject}:{self.effect}{tail}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one server does, in the order of execution. Equal inputs give equal plans."""

    lrn: int
    group: str
    wave: int
    changes: tuple[Change, ...] = ()
    steps: tuple[Step, ...] = ()
