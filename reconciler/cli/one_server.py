"""This server's agent for the length of one command: its worker, a leader for a fleet of one, and an orderly end. Called by a pass and `drift --repair`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import click

from reconciler.agent.etcd_seen import EtcdSeen
from reconciler.agent.follow import Follower
from reconciler.agent.leader import Conductor
from reconciler.agent.leading import Leading
from reconciler.agent.notify import Addresses, Notifier
from reconciler.agent.publisher import Publisher
from reconciler.agent.worker import Worker
from reconciler.agent.writing import Identity, Writing, with_its_slot
from reconciler.cli import compose
from reconciler.cli.compose import Store
from reconciler.cli.options import Options
from reconciler.cli.parts import host, server_parts
from reconciler.core.published import Published
from reconciler.core.state import Desired, Server, Settings
from reconciler.host import reboot
from reconciler.host.alone import hold
from reconciler.host.driver import Progress, silent
from reconciler.store.view import read_server


@dataclass(frozen=True, slots=True)
class OneServer:
    """`ending` is set by SIGTERM and Ctrl-C, `bell` rung where something may have changed."""

    worker: Worker
    conductor: Conductor
    ending: threading.Event
    bell: threading.Event


@contextlib.contextmanager
def one_server(options: Options, store: Store, desired: Desired, settings: Settings) -> Iterator[OneServer]:
    """This server's parts, following `desired` and nothing else; it never reboots. Raises `HeldBack` where an agent holds the host."""
    ending, bell = threading.Event(), threading.Event()
    _log_plainly()
    lock = hold(host(options))
    where = host(options, lock)
    machine_id, boot_id = reboot.machine_id(where), reboot.boot_id(where)
    group = desired.group_of(options.lrn)
    parts = server_parts(options, where, lambda: group, _progress(), ending)
    parts.configure(settings)
    follower = Follower(
        compose.source(options), compose.trust(options), parts.hands.policy, options.state_dir, options.lrn
    )
    follower.take(desired)
    identity = Identity(options.lrn, where.hostname, machine_id, holds_host_lock=True)
    writing = Writing(store.client, store.keys, identity, parts.hands.wall, bell.set)

    seen = EtcdSeen(options.state_dir, lambda: store.client.cluster_id)

    def look(lock_group: str) -> Server:
        return read_server(
            store.client,
            store.keys,
            options.lrn,
            machine_id,
            boot_id,
            lock_group,
            reboot_required=reboot.reboot_required(where, parts.hands.reboot_required_file),
        )

    def read() -> Server:
        return seen.through(lambda: with_its_slot(look, group.reboot.lock_group))

    publisher = Publisher(Published(options.lrn))
    notifier = Notifier(lambda: Addresses(settings.slack, options.notify_webhook, settings.proxy))
    worker = Worker(parts.hands, writing, follower, read, publisher, may_reboot=False, at_rest=seen.note)
    leading = Leading(
        store.client, store.keys, where.hostname or str(options.lrn), options.lease_ttl, bell.set
    )
    conductor = Conductor(leading, follower, parts.resolvers, publisher, notifier, options.alarm_after)
    with _ended_by_signals(ending, bell):
        try:
            yield OneServer(worker, conductor, ending, bell)
        finally:
            leading.resign()
            writing.close()
            notifier.close()
            os.close(lock)


@contextlib.contextmanager
def _ended_by_signals(ending: threading.Event, bell: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C let the step in flight come to its end: a dpkg is never cut off."""

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()
        bell.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_plainly() -> None:
    """Each step as a line on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("reconciler")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _progress() -> Progress:
    if not sys.stderr.isatty():
        return silent
    shown = [0.0]

    def show(subject: str, done: int, total: int | None) -> None:
        if time.monotonic() - shown[0] < 0.1 and done != total:
            return
        shown[0] = time.monotonic()
        of = f" of {total / 1e6:.1f}" if total else ""
        click.echo(f"\r  {subject}: {done / 1e6:.1f}{of} MB\x1b[K", err=True, nl=done == total)

    return show
