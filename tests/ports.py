"""TCP ports of 127.0.0.1 for servers that a test starts, and may start again at the same address.

They are below those that the kernel gives to connections: none of these can take one while its server is away.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

_FIRST = 10_000
_GIVEN: set[int] = set()


def free_ports(number: int) -> list[int]:
    """Ports on which nothing listens now, and which this process has not got from here before."""
    return [free_port() for _ in range(number)]


def free_port() -> int:
    beyond = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # Tests run side by side in several processes: what they find must not be in one order.
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(_FIRST, beyond)
        if port not in _GIVEN and _is_free(port):
            _GIVEN.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
