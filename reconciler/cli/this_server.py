"""One server's agent in its pieces (follower, writes, reads, worker, leader), built from the options. Called by `agent` and by a pass.

What a daemon may be told anew while it runs, it asks `options` for each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from reconciler.agent.etcd_seen import EtcdSeen
from reconciler.agent.follow import Follower
from reconciler.agent.leader import Conductor
from reconciler.agent.leading import Leading
from reconciler.agent.notify import Addresses, Notifier
from reconciler.agent.publisher import Publisher
from reconciler.agent.worker import Worker
from reconciler.agent.writing import Identity, Writing, with_its_slot
from reconciler.cli import compose
from reconciler.cli.options import Options
from reconciler.cli.parts import ServerParts, server_parts
from reconciler.core.state import DEFAULT_GROUP, Server, ServerGroup, Settings
from reconciler.host import reboot
from reconciler.host.driver import Host, Progress, silent
from reconciler.store.client import Client
from reconciler.store.keys import Keys
from reconciler.store.view import read_server


class SettingsSeen:
    """The fleet's settings as they were last read; what they configure is told, with those before, when they change."""

    def __init__(self, configure: Callable[[Settings, Settings], None]) -> None:
        self.now, self._configure = Settings(), configure

    def take(self, found: Settings) -> None:
        before, self.now = self.now, found
        if found != before:
            self._configure(before, found)


@dataclass(frozen=True, slots=True)
class ThisServer:
    """The pieces of one server's agent. `host` is its name for people; `read` the server as etcd and the host have it now."""

    options: Callable[[], Options]
    client: Client
    keys: Keys
    host: str
    parts: ServerParts
    follower: Follower
    writing: Writing
    seen: EtcdSeen
    settings: SettingsSeen
    notifier: Notifier
    read: Callable[[], Server]

    def worker(self, publisher: Publisher, *, may_reboot: bool = True) -> Worker:
        return Worker(
            self.parts.hands,
            self.writing,
            self.follower,
            self.read,
            publisher,
            lambda: self.options().drift_interval,
            self.notifier.tell,
            may_reboot=may_reboot,
            at_rest=self.seen.note,
        )

    def leading(self, ring: Callable[[], None]) -> Leading:
        return Leading(self.client, self.keys, self.host, self.options().lease_ttl, ring, self.seen)

    def conductor(
        self, leading: Leading, publisher: Publisher, on_lead: Callable[[bool], None] = lambda leads: None
    ) -> Conductor:
        return Conductor(
            leading,
            self.follower,
            self.parts.resolvers,
            publisher,
            self.notifier,
            lambda: self.options().alarm_after,
            on_lead,
            self.settings.take,
        )


def this_server(
    options: Callable[[], Options],
    where: Host,
    client: Client,
    ring: Callable[[], None],
    ending: threading.Event,
    progress: Progress = silent,
    learn: Callable[[Settings, Settings], None] = lambda before, now: None,
    restart: Callable[[], None] | None = None,
) -> ThisServer:
    """The pieces of the server at `where`. `ring` wakes its worker; `learn` hears of the fleet's settings, before and now, when they change;
    `restart` ends an agent, to be started again.
    """
    first = options()
    machine_id, boot_id = reboot.machine_id(where), reboot.boot_id(where)
    keys = Keys(first.prefix, first.lock_prefix)

    def group() -> ServerGroup:
        newest = follower.state.newest
        return newest.group_of(first.lrn) if newest else DEFAULT_GROUP

    parts = server_parts(first, where, group, progress, ending, lambda: options().alarm_after, restart)
    follower = Follower(
        compose.source(first), compose.trust(first), parts.hands.policy, first.state_dir, first.lrn
    )
    seen = EtcdSeen(first.state_dir, lambda: client.cluster_id)

    def configure(before: Settings, now: Settings) -> None:
        parts.configure(now)
        learn(before, now)

    settings = SettingsSeen(configure)

    def look(lock_group: str) -> Server:
        return read_server(
            client,
            keys,
            first.lrn,
            machine_id,
            boot_id,
            lock_group,
            reboot_required=reboot.reboot_required(where, parts.hands.reboot_required_file),
        )

    def read() -> Server:
        server = seen.through(lambda: with_its_slot(look, group().reboot.lock_group))
        settings.take(server.settings)
        return server

    def addresses() -> Addresses:
        return Addresses(settings.now.slack, options().notify_webhook, settings.now.proxy)

    identity = Identity(first.lrn, where.hostname, machine_id, holds_host_lock=True)
    return ThisServer(
        options,
        client,
        keys,
        where.hostname or str(first.lrn),
        parts,
        follower,
        Writing(client, keys, identity, parts.hands.wall, ring),
        seen,
        settings,
        Notifier(addresses),
        read,
    )
