"""`reconcile agent`: builds one agent's parts from the options and runs it."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator

import click

from reconciler import __version__
from reconciler.agent.publisher import Publisher
from reconciler.cli.compose import etcd_options
from reconciler.cli.options import Options, must_be_given
from reconciler.cli.program import Call, Verb
from reconciler.core.state import DEFAULT_GROUP, Server, ServerGroup, Settings
from reconciler.errors import UsageError
from reconciler.host.policy import EVERYTHING
from reconciler.store.client import Client
from reconciler.store.embedded import Embedded, find_program

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:8470"


@click.command("agent", cls=Verb)
@click.option("--no-lead", is_flag=True, help="Never lead: only work for this server.")
@click.pass_obj
def agent(call: Call, no_lead: bool) -> int:
    """Follow git, lead when elected, work for this server, serve HTTP: until SIGTERM.

    Runs on every server of the fleet, as a systemd service or as a container beside the server's services.
    """
    options = call.options
    must_be_given(options)
    set_up_log(options)
    with _etcd(options) as client:
        return _run(options, client, no_lead)


def set_up_log(options: Options) -> None:
    from reconciler.ground.telemetry import set_up

    form = options.log_format or ("text" if sys.stderr.isatty() else "json")
    set_up("json" if form == "json" else "text", options.log_level)


@contextlib.contextmanager
def _etcd(options: Options) -> Iterator[Client]:
    with contextlib.ExitStack() as stack:
        if options.endpoints:
            found = etcd_options(options)
        else:
            if find_program().demo and not options.allow_demo_etcd:
                raise UsageError(
                    "the only etcd here is the Python package's, whose version can lose data: install etcd-server, "
                    "or say --allow-demo-etcd for a demonstration"
                )
            found = stack.enter_context(Embedded(options.state_dir)).options
        yield stack.enter_context(Client(found))


def _run(options: Options, client: Client, no_lead: bool) -> int:
    from reconciler.agent.etcd_seen import EtcdSeen
    from reconciler.agent.follow import Follower
    from reconciler.agent.leader import Conductor
    from reconciler.agent.leading import Leading
    from reconciler.agent.loop import Bells, Parts, Watching, run
    from reconciler.agent.notify import Addresses, Notifier
    from reconciler.agent.worker import Worker
    from reconciler.agent.writing import Identity, Writing, with_its_slot
    from reconciler.cli import compose
    from reconciler.cli.parts import host, server_parts
    from reconciler.core.published import Published
    from reconciler.host import reboot
    from reconciler.host.alone import hold
    from reconciler.store.keys import Keys
    from reconciler.store.view import read_server

    ending, bells = threading.Event(), Bells()
    where = host(options, hold(host(options)))
    machine_id, boot_id = reboot.machine_id(where), reboot.boot_id(where)
    keys = Keys(options.prefix, options.lock_prefix)
    settings = SettingsSeen()
    follower: Follower

    def group() -> ServerGroup:
        newest = follower.state.newest
        return newest.group_of(options.lrn) if newest else DEFAULT_GROUP

    parts = server_parts(options, where, group, ending=ending)
    if parts.hands.policy == EVERYTHING:
        log.warning(
            "this host has no policy (%s): everything that the schema allows is allowed", options.policy
        )
    follower = Follower(
        compose.source(options), compose.trust(options), parts.hands.policy, options.state_dir, options.lrn
    )
    publisher = Publisher(Published(options.lrn, where.hostname, __version__, missing=("git: not read yet",)))
    identity = Identity(options.lrn, where.hostname, machine_id, holds_host_lock=True)
    writing = Writing(client, keys, identity, parts.hands.wall, bells.work.ring)

    seen = EtcdSeen(options.state_dir, lambda: client.cluster_id)

    def look(lock_group: str) -> Server:
        return read_server(
            client,
            keys,
            options.lrn,
            machine_id,
            boot_id,
            lock_group,
            reboot_required=reboot.reboot_required(where, parts.hands.reboot_required_file),
        )

    def read() -> Server:
        server = seen.through(lambda: with_its_slot(look, group().reboot.lock_group))
        settings.take(server.settings, parts.configure)
        publisher.update(etcd_requests=client.counts)
        return server

    notifier = Notifier(lambda: Addresses(settings.now.slack, options.notify_webhook, settings.now.proxy))
    worker = Worker(
        parts.hands,
        writing,
        follower,
        read,
        publisher,
        lambda: options.drift_interval,
        notifier.tell,
        at_rest=seen.note,
    )
    watching = Watching(client, keys, options.lrn, bells, ending)
    leading = conductor = None
    if not no_lead:
        leading = Leading(
            client, keys, where.hostname or str(options.lrn), options.lease_ttl, bells.lead.ring, seen
        )
        conductor = Conductor(
            leading, follower, parts.resolvers, publisher, notifier, options.alarm_after, watching.lead
        )
    return run(
        Parts(
            options.repo,
            follower,
            worker,
            writing,
            conductor,
            leading,
            notifier,
            publisher,
            watching,
            bells,
            ending,
            lambda: options.with_settings(settings.now).interval,
            options.grace,
            _server(options, publisher, bells.follow.ring),
        )
    )


def _server(
    options: Options, publisher: Publisher, fetch_now: Callable[[], None]
) -> Callable[[], Callable[[], None]]:
    """Starts HTTP when called; what it returns stops it."""

    def start() -> Callable[[], None]:
        from reconciler.web.app import ServeOptions, serve
        from reconciler.web.listener import Listen
        from reconciler.web.webhook import Followed

        address = options.listen or DEFAULT_LISTEN
        server = serve(
            ServeOptions(
                Listen(address, options.tls_cert, options.tls_key),
                Followed(options.repo, options.ref, options.tag_pattern),
                options.token_file,
                options.webhook_secret_file,
            ),
            publisher,
            fetch_now,
        )
        return server.close

    return start


class SettingsSeen:
    """The fleet's settings as they were last read; what they configure is told when they change."""

    def __init__(self) -> None:
        self.now = Settings()

    def take(self, found: Settings, configure: Callable[[Settings], None]) -> None:
        if found != self.now:
            self.now = found
            configure(found)
