"""One agent a host: a lock file that every child which changes the host inherits. Called when an agent starts.

The kernel drops the lock when the last of them has ended: an agent that was killed in the middle of a dpkg is followed
by another one only after that dpkg has ended too.
"""

from __future__ import annotations

import fcntl
import os

from reconciler.errors import HeldBack, HostError
from reconciler.host import place
from reconciler.host.driver import Host

LOCK = "/run/reconciler.lock"


def hold(host: Host) -> int:
    """The descriptor of the host's lock file, held. Raises `HeldBack` while another agent, or a child of a dead one, holds it."""
    path = place.inside(host, LOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(
            f"cannot open {path}, which keeps two agents off one host: {error.strerror}"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise HeldBack(
            f"another agent works on this host, or a program that one started is still running: {path} is locked "
            f"(`fuser -v {path}` shows by whom)"
        ) from None
    return descriptor
