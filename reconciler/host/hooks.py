"""Runs a hook: a root-owned program on the host that the desired state names. Called by health checks, the OS driver and the loop; not pure.

No command line comes from git: the name is all that does. The program sees RECONCILER_LRN, RECONCILER_HOSTNAME and
RECONCILER_HOOK, and what its caller adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reconciler.errors import HostError
from reconciler.ground import process
from reconciler.ground.process import Completed, ProcessFailed
from reconciler.host import place
from reconciler.host.driver import Host
from reconciler.host.policy import hook_path

LIMIT = 1800.0
"""Seconds that a hook may take: draining a server of its work is slow."""


def run_hook(
    host: Host,
    name: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    timeout: float = LIMIT,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run the hook `name` on the host. Raises `HostError` where it is not installed safely, fails, or takes longer than `timeout` seconds."""
    found = hook_path(host, name)
    env = {
        "RECONCILER_HOOK": name,
        "RECONCILER_LRN": str(host.lrn),
        "RECONCILER_HOSTNAME": host.hostname,
        **(environment or {}),
    }
    try:
        return process.run(
            place.command(host, [place.seen(host, found), *arguments]),
            timeout=timeout,
            env=env,
            pass_fds=place.inherited(host),
            on_line=on_line,
        )
    except ProcessFailed as error:
        raise HostError(f"hook {name} failed on server {host.lrn}: {error}") from None
