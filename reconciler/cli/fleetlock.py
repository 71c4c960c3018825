"""`reconcile fleetlock`: FleetLock over the reboot lock, a process of its own that needs no root."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from reconciler.cli import compose, stay
from reconciler.cli.program import Call, Verb
from reconciler.errors import UsageError


@click.command("fleetlock", cls=Verb)
@click.option(
    "--lock-groups",
    required=True,
    metavar="A,B",
    help="The lock groups that clients may use; `default` only if named.",
)
@click.option(
    "--client-ca",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Clients show a certificate that names their id.",
)
@click.pass_obj
def fleetlock(call: Call, lock_groups: str, client_ca: Path | None) -> int:
    """Serve FleetLock at --listen: hosts that speak it take and give back slots of the same lock."""
    from reconciler.agent.signals import Signals
    from reconciler.cli.agent import set_up_log
    from reconciler.web.fleetlock import FleetLockOptions, serve_fleetlock
    from reconciler.web.listener import Listen

    stay()
    options = call.options
    if options.listen is None:
        raise UsageError("cannot serve FleetLock: say where, with --listen HOST:PORT")
    set_up_log(options)
    ending = threading.Event()
    groups = tuple(group for group in lock_groups.split(",") if group)
    listen = Listen(options.listen, options.tls_cert, options.tls_key, client_ca)
    ends = Signals({signal.SIGTERM: ending.set, signal.SIGINT: ending.set})
    with ends, compose.store_to_write(options) as store:
        server = serve_fleetlock(FleetLockOptions(listen, groups), store.client, store.keys)
        click.echo(f"FleetLock at {options.listen}, port {server.port}, for {', '.join(groups)}", err=True)
        ending.wait()
        server.close()
    return 0
