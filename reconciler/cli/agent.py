"""`reconcile agent`: builds one agent's parts from the options and runs it."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from reconciler import __version__
from reconciler.cli import compose, stay
from reconciler.cli.options import Options, must_be_given
from reconciler.cli.program import Call, Verb
from reconciler.errors import UsageError
from reconciler.ground.telemetry import Log, set_up
from reconciler.host.alone import hold
from reconciler.host.policy import EVERYTHING
from reconciler.store.client import Client
from reconciler.store.embedded import Embedded, find_program

if TYPE_CHECKING:
    from reconciler.agent.loop import Asked
    from reconciler.cli.configured import Configured

log = logging.getLogger(__name__)


@click.command("agent", cls=Verb)
@click.option("--no-lead", is_flag=True, help="Never lead: only work for this server.")
@click.pass_obj
def agent(call: Call, no_lead: bool) -> int:
    """Follow git, lead when elected, work for this server, serve HTTP: until SIGTERM.

    Runs on every server of the fleet, as a systemd service or as a container beside the server's services.
    """
    from reconciler.agent.loop import Asked
    from reconciler.cli.configured import Configured

    stay()
    asked = Asked()
    with asked.signals():
        options = call.options
        must_be_given(options)
        configured = Configured(call, set_up_log(options))
        with _etcd(options) as client:
            return _run(configured, client, no_lead, asked)


def set_up_log(options: Options) -> Log:
    form = options.log_format or ("text" if sys.stderr.isatty() else "json")
    return set_up("json" if form == "json" else "text", options.log_level)


@contextlib.contextmanager
def _etcd(options: Options) -> Iterator[Client]:
    with contextlib.ExitStack() as stack:
        if options.endpoints:
            found = compose.etcd_options(options)
        else:
            if find_program().demo and not options.allow_demo_etcd:
                raise UsageError(
                    "the only etcd here is the Python package's, whose version can lose data: install etcd-server, "
                    "or say --allow-demo-etcd for a demonstration"
                )
            found = stack.enter_context(Embedded(options.state_dir)).options
        yield stack.enter_context(Client(found))


def _run(configured: Configured, client: Client, no_lead: bool, asked: Asked) -> int:
    from reconciler.agent.loop import Bells, Parts, Watching, run
    from reconciler.agent.publisher import Publisher
    from reconciler.cli.parts import host
    from reconciler.cli.served import Served
    from reconciler.cli.this_server import this_server
    from reconciler.core.published import Missing, Published
    from reconciler.core.state import Settings

    options = configured.now
    ending, bells = threading.Event(), Bells()
    where = host(options, hold(host(options)))

    def learn(before: Settings, now: Settings) -> None:
        configured.hide_secrets(now)
        if before.check_update_interval != now.check_update_interval:
            # It waits by the old one, which may have been long.
            bells.follow.ring()

    server = this_server(
        lambda: configured.now,
        where,
        client,
        bells.work.ring,
        ending,
        learn=learn,
        restart=asked.end,
    )
    if server.parts.hands.policy == EVERYTHING:
        log.warning(
            "this host has no policy (%s): everything that the schema allows is allowed", options.policy
        )
    publisher = Publisher(
        Published(options.lrn, where.hostname, __version__, missing=(Missing("git", "not read yet"),)),
        lambda: client.counts,
    )
    watching = Watching(client, server.keys, options.lrn, bells, ending)
    leading = None if no_lead else server.leading(bells.lead.ring)
    served = Served(options, publisher, bells.follow.ring)
    configured.takers += [served.take, lambda now: server.follower.configure(compose.source(now))]
    parts = Parts(
        options.repo,
        server.follower,
        server.worker(publisher),
        server.writing,
        server.conductor(leading, publisher, watching.lead) if leading is not None else None,
        leading,
        server.notifier,
        publisher,
        watching,
        bells,
        ending,
        lambda: configured.now.with_settings(server.settings.now).interval,
        lambda: configured.now.grace,
        configured,
    )
    try:
        return run(parts, asked)
    finally:
        served.close()
