"""This server, from the options: where its file system is, and what it allows. Called by whatever looks at the host; `parts` has its drivers.

Small on purpose: a plan asks the host's policy, and must not pay for the drivers where nothing has to be looked at.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from reconciler.core.artifact import Key
from reconciler.core.state import Desired
from reconciler.errors import Refused, UsageError
from reconciler.host import place
from reconciler.host.driver import Host
from reconciler.host.policy import EVERYTHING, HostPolicy, check_removal, problems

if TYPE_CHECKING:
    from reconciler.cli.options import Options

_POLICY_LIMIT = 1 << 20


def host(options: Options, lock_fd: int | None = None) -> Host:
    """The server that this process works for."""
    return Host(
        options.host_root, _execution(options), options.state_dir, options.lrn, _hostname(options), lock_fd
    )


def policy(options: Options, where: Host) -> HostPolicy:
    """What the host allows; everything where it has no policy and none was asked for. Raises `Refused`."""
    from reconciler.wire.settings import read_policy

    data = place.read(where, options.policy, _POLICY_LIMIT)
    if data is None:
        if options.given("policy"):
            raise UsageError(f"cannot read the host's policy {options.policy}: it is not there")
        return EVERYTHING
    return read_policy(data, str(options.policy))


def check_revision(options: Options, desired: Desired) -> None:
    """Raise `Refused` where the host's policy does not allow what this server would get of a revision."""
    wrong = problems(policy(options, host(options)), desired, options.lrn)
    if wrong:
        raise Refused(
            f"cannot use revision {desired.revision.id[:12]} on server {options.lrn}: {options.policy} does not allow it\n"
            + "\n".join(wrong)
        )


def check_removals(options: Options, removals: Iterable[Key]) -> None:
    """Raise `Refused` where the host's policy never lets one of these be removed."""
    allowed = policy(options, host(options))
    wrong = [problem for key in removals for problem in check_removal(allowed, key)]
    if wrong:
        raise Refused(f"cannot plan server {options.lrn}: {options.policy} forbids it\n" + "\n".join(wrong))


def _execution(options: Options) -> Literal["direct", "chroot", "nsenter"]:
    """`auto`: directly where the server's file system is this process's own, else by chroot into it."""
    match options.host_exec:
        case "direct" | "chroot" | "nsenter" as asked:
            return asked
        case _:
            return "direct" if str(options.host_root) == "/" else "chroot"


def _hostname(options: Options) -> str:
    found = (
        place.text(Host(options.host_root), "/etc/hostname", 300) if str(options.host_root) != "/" else None
    )
    return found or socket.gethostname()
