"""The server's identity and its reboot: machine id, boot id, sentinel, who is logged in, warning them, the command itself.

Called by the loop and the performer of `warn` and `reboot` steps. Not pure. Everything is read below the host's root.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import HostError
from reconciler.ground import process
from reconciler.host import place
from reconciler.host.driver import Host

BOOT_ID = "/proc/sys/kernel/random/boot_id"
MACHINE_ID = "/etc/machine-id"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MACHINE = re.compile(r"[0-9a-f]{32}")
_QUICK = 30.0


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is logged in, and on which terminal."""

    name: str
    terminal: str


def boot_id(host: Host) -> str:
    """The kernel's boot id: another one after each boot. Raises `HostError` where it cannot be read."""
    found = place.text(host, BOOT_ID, 200)
    if found is None and host.exec != "direct":
        # A sidecar's mount of the host's root need not carry its /proc; the kernel is one for both.
        found = place.text(Host(), BOOT_ID, 200)
    if found is None or not _UUID.fullmatch(found):
        raise HostError(
            f"cannot tell which boot server {host.lrn} is in: {place.inside(host, BOOT_ID)} "
            f"{'is missing' if found is None else f'says {found!r}, which is no boot id'}; mount the host's /proc there"
        )
    return found


def machine_id(host: Host) -> str:
    """The host's machine id, 32 hex digits. Raises `HostError` where it has none."""
    found = place.text(host, MACHINE_ID, 200)
    if found is None or not _MACHINE.fullmatch(found):
        raise HostError(
            f"cannot tell which machine server {host.lrn} is: {place.inside(host, MACHINE_ID)} "
            f"{'is missing' if found is None else f'says {found!r}, which is no machine id'}; "
            "systemd-machine-id-setup makes one"
        )
    return found


def reboot_required(host: Host, sentinel: str) -> bool:
    """Whether the file that asks for a reboot (`--reboot-required-file`) is there."""
    return place.status(host, sentinel) is not None


def logged_in(host: Host) -> tuple[User, ...]:
    """Who is logged in; nobody where the host has no `who`."""
    if not process.exists("who", _commands(host)):
        return ()
    lines = process.run(place.command(host, ["who"]), timeout=_QUICK).stdout.splitlines()
    words = [line.split() for line in lines]
    return tuple(sorted({User(word[0], word[1]) for word in words if len(word) > 1}, key=_by_terminal))


def warn(host: Host, message: str) -> tuple[User, ...]:
    """Tell everybody who is logged in; whom was told. Nobody is told where nobody is there, or the host has no `wall`."""
    users = logged_in(host)
    if users and process.exists("wall", _commands(host)):
        process.run(place.command(host, ["wall"]), timeout=_QUICK, input=message.rstrip() + "\n")
    return users


def reboot(host: Host, command: str) -> None:
    """Ask for the reboot with `--reboot-command`. That it returns says only that it was asked for: the boot id says the rest."""
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise HostError(
            f"cannot reboot server {host.lrn}: the command {command!r} cannot be read: {error}"
        ) from None
    if not argv:
        raise HostError(f"cannot reboot server {host.lrn}: the reboot command is empty; set --reboot-command")
    process.run(place.command(host, argv), timeout=120.0)


def _commands(host: Host) -> Path:
    return Path("/") if host.exec == "direct" else host.root


def _by_terminal(user: User) -> tuple[str, str]:
    return (user.terminal, user.name)
