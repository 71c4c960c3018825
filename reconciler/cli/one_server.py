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

import click

from reconciler.agent.leader import Conductor
from reconciler.agent.publisher import Publisher
from reconciler.agent.signals import Signals
from reconciler.agent.worker import Worker
from reconciler.cli.compose import Store
from reconciler.cli.options import Options
from reconciler.cli.parts import host
from reconciler.cli.this_server import this_server
from reconciler.core.published import Published
from reconciler.core.state import Desired, Settings
from reconciler.errors import ReconcilerError
from reconciler.host.alone import hold
from reconciler.host.driver import Progress, silent


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
    server = this_server(lambda: options, where, store.client, bell.set, ending, _progress())
    server.settings.take(settings)
    server.follower.take(desired)
    publisher = Publisher(Published(options.lrn))
    worker = server.worker(publisher, may_reboot=False)
    leading = server.leading(bell.set)
    conductor = server.conductor(leading, publisher)

    def end() -> None:
        """The step in flight comes to its end: a dpkg is never cut off."""
        ending.set()
        bell.set()

    with Signals({signal.SIGTERM: end, signal.SIGINT: end}):
        try:
            yield OneServer(worker, conductor, ending, bell)
        finally:
            server.notifier.close()
            with contextlib.suppress(ReconcilerError):  # else a leader after this one tells it once more
                conductor.note()
            leading.resign()
            server.writing.close()
            os.close(lock)


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
