"""What performing a step needs of the server: its drivers, its host, and what the operator configured. Built by `cli/compose`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from reconciler.core.artifact import Artifact, Image, Key, Kind, Known, Pin, reference
from reconciler.core.state import Installed
from reconciler.host.driver import Driver, Host, Progress, silent
from reconciler.host.ledger import Ledger
from reconciler.host.policy import HostPolicy


class ContainerDriver(Driver, Protocol):
    """What only the driver of images can: stop a container, and go back to the one before."""

    def stop(self, key: Key) -> None:
        """Stop the container; one that does not run is no error."""

    def confirm(self, key: Key) -> None:
        """What runs is healthy: from now on it is what `restore` goes back to."""

    def previous(self, key: Key) -> Image | None:
        """What `restore` would start; None where there is none."""

    def restore(self, key: Key) -> str | None:
        """Start the previous one again; what `observe` says of it then. None where there is none."""


@dataclass(frozen=True, slots=True)
class Hands:
    """One server's parts. `ending` is set when the agent is to end: what waits, stops waiting."""

    host: Host
    drivers: Mapping[Kind, Driver]
    containers: ContainerDriver
    ledger: Ledger
    policy: HostPolicy
    reboot_command: str = "systemctl reboot"
    reboot_required_file: str = "/var/run/reboot-required"
    alarm_after: Callable[[], float] = lambda: 600.0
    progress: Progress = silent
    ending: threading.Event = field(default_factory=threading.Event)
    wall: Callable[[], float] = lambda: 0.0
    begin_fetching: Callable[[], None] = lambda: None
    """Fetches begin: those of before count no more."""
    tidy: Callable[[Iterable[Key]], None] = lambda recorded: None
    """Drop what was fetched for others than these."""
    users: Callable[[Iterable[Key]], Mapping[Key, frozenset[Key]]] = lambda keys: {}
    """Which of these packages need which of them."""
    runtime: Literal["auto", "podman", "docker"] = "auto"
    restart: Callable[[], None] | None = None
    """Has this agent end in order, for its supervisor to start it again; None in a command, which nobody restarts."""

    def as_desired(self, wanted: Iterable[Artifact], pins: Mapping[str, Pin]) -> frozenset[Key]:
        """Those of `wanted` that the host has already as they are desired."""
        artifacts = {artifact.key: artifact for artifact in wanted}
        found = self.look(artifacts.values())
        return frozenset(
            key
            for key, artifact in artifacts.items()
            if key in found and found[key] == self.drivers[key.kind].target(artifact, pin_of(artifact, pins))
        )

    def look(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> dict[Key, str]:
        """What the host has of these: one look for each kind; `closely` at their files too."""
        found: dict[Key, str] = {}
        by_kind: dict[Kind, list[Artifact | Known]] = {}
        for artifact in artifacts:
            by_kind.setdefault(artifact.key.kind, []).append(artifact)
        for kind, some in by_kind.items():
            found |= self.drivers[kind].observe(some, closely=closely)
        return found


@dataclass(frozen=True, slots=True)
class Did:
    """What a step found on the host at its end, and the facts to record with it."""

    found: str = ""
    installs: tuple[Installed, ...] = ()
    removals: tuple[Key, ...] = ()


def pin_of(artifact: Artifact, pins: Mapping[str, Pin]) -> Pin | None:
    """What the rollout has resolved this artifact's reference to; None where it needs none."""
    name = reference(artifact)
    return pins.get(name) if name else None
