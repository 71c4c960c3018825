"""Every error that a caller may meet, by what it means for what happens next.

The type says what the loop does (try again, give up, step down) and what a command's exit status is; the
message says what cannot be done, to what, why, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class ReconcilerError(Exception):
    """The root: anything of ours that reaches a user is one of these, and never a traceback."""

    exit_status = 1


class Unavailable(ReconcilerError):
    """A part outside (etcd, git, a registry, a release server) cannot be reached now: try again later."""


class NoEtcd(Unavailable):
    """etcd is out of reach, or takes no writes: nothing begins until it is back."""


class Ambiguous(NoEtcd):
    """A write was sent and its answer lost: it may have happened, or may happen yet. Settle it by reading."""


class Fenced(ReconcilerError):
    """A guarded write's guard did not hold: somebody else leads, the phase is closed, the lease is gone."""


class Corrupt(ReconcilerError):
    """A stored value (an etcd key, the ledger) is not what it must be. Names it; it is never overwritten."""


class HostError(ReconcilerError):
    """The host could not be changed or looked at: the step fails, with the command and its last lines."""


class Unfetchable(HostError):
    """What was asked for does not exist or is not what it was pinned to: no retry will help."""


class HeldBack(ReconcilerError):
    """Nothing is wrong, but not now: a window, the lock, a pause or another agent."""

    exit_status = 3


class UnexpectedPlan(ReconcilerError):
    """The plan is not the one that `--expect` names."""

    exit_status = 4


class UsageError(ReconcilerError):
    """The call, an environment variable or the configuration file is wrong."""

    exit_status = 64


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing wrong in an input, where it stands, and what would be right."""

    file: str
    line: int
    column: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.problem}"


class Refused(ReconcilerError):
    """A revision (or another input) is refused whole. `findings` holds every reason, in the order of the input."""

    exit_status = 5

    def __init__(self, summary: str, findings: Iterable[Finding] = ()) -> None:
        self.summary = summary
        self.findings = tuple(findings)
        super().__init__("\n".join([summary, *(str(finding) for finding in self.findings)]))
