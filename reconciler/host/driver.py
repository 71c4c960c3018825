"""The role that installs one kind of artifact, and what every driver needs to know of its host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from reconciler.core.artifact import Artifact, Key, Known, Pin

Progress = Callable[[str, int, int | None], None]
"""Called with a subject, the bytes so far and the bytes in all (None while unknown)."""


def silent(subject: str, done: int, total: int | None) -> None:
    """A `Progress` that tells nobody."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where the server is: its file system at `root`, how commands run on it, and where this agent keeps its things."""

    root: Path = Path("/")
    exec: Literal["direct", "chroot", "nsenter"] = "direct"
    state_dir: Path = Path("/var/lib/reconciler")
    lrn: int = 0
    hostname: str = ""
    lock_fd: int | None = None
    """The descriptor of `run/reconciler.lock`, inherited by every child that changes the host."""


class Driver(Protocol):
    """Installs one kind of artifact. Every method may be called again, and after a kill at any point, without harm."""

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        """What the host really has of these, in one look: a short text that two equal states share; absent if it is not there.

        `closely`: what was put there is read as well, where a change to it by hand would not show otherwise.
        """

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        """What `observe` says once `artifact` is in place as asked for; None where that is known only after `fetch`."""

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        """Bring all that `apply` will need to this server and check it. Raises `Unfetchable` or `Unavailable`."""

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        """Make the host have `artifact`, from what was fetched and without the network. Raises `HostError`."""

    def remove(self, key: Key) -> None:
        """Take away what the ledger shows as ours; nothing that is not there is an error. Raises `HostError`."""
