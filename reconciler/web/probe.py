"""Whether the agent beside it lives: asks its `/livez`. Run as `python3 -m reconciler.web.probe`, by the image's health check and the pod's.

It knows what the agent was told by variables (RECONCILER_LISTEN, RECONCILER_TLS_CERT), and not what by file or flag: a
configuration file that is wrong for a moment must not end an agent that works. A word of its own, because not every
container engine keeps a longer command's quotes.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

_TIMEOUT = 4.0
_DEFAULT = "127.0.0.1:8470"
# An address that means all of this machine's is asked by loopback.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (nothing is bound here)


def problem(environment: Mapping[str, str]) -> str | None:
    """Why the agent does not live; None where it does."""
    address = environment.get("RECONCILER_LISTEN") or _DEFAULT
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        connection = _connection(_LOOPBACK.get(host, host), int(port), "RECONCILER_TLS_CERT" in environment)
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        said = answer.read(4096).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{address} does not answer: {error}"
    return None if answer.status == 200 else said


def _connection(host: str, port: int, secured: bool) -> http.client.HTTPConnection:
    if not secured:
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    # It is asked on this machine, by whatever name its certificate does not have, and told nothing.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=context)


if __name__ == "__main__":
    sys.exit(problem(os.environ))
