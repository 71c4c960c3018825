"""Applies the plan that a pass has shown: leads a rollout of one server and works it off, in this process. Called by `apply`.

Only where nobody else could do it: where this server's agent runs, or other servers are registered, that is theirs.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import click

from reconciler.cli import compose
from reconciler.cli.compose import Store
from reconciler.cli.options import Options
from reconciler.cli.planning import Planned
from reconciler.core.lead import Seen, Wait, lead
from reconciler.core.state import Fleet, Rollout, Server
from reconciler.errors import HeldBack, ReconcilerError

if TYPE_CHECKING:
    from reconciler.agent.leader import Conductor
    from reconciler.agent.worker import Worker
    from reconciler.host.driver import Progress

_TTL = 30.0


def carry_out(options: Options, plan: Planned) -> int:
    """Apply `plan` to this server. Raises `HeldBack` where that is another's to do, and before a reboot."""
    if not plan.changes:
        return 0
    with compose.store_to_write(options) as store:
        fleet = store.fleet(recorded=False)
        _refuse_if_others(options, fleet)
        _clear_way(store, fleet, plan)
        rollout = _run(options, store, plan)
    if rollout.outcome != "complete":
        raise ReconcilerError(
            f"cannot apply revision {rollout.version[:12]} to server {options.lrn}: {rollout.message or 'it was stopped'}\n"
            "what was done is recorded: mend the cause and run `reconcile` again"
        )
    click.echo("Applied: " + (rollout.message or "complete") + ".", err=True)
    return 0


def _refuse_if_others(options: Options, fleet: Fleet) -> None:
    running = [f"server {agent.lrn} on {agent.host}" for agent in fleet.agents]
    if running:
        raise HeldBack(
            f"cannot apply here: agents are running ({', '.join(running)}); push, and they apply it"
        )
    others = sorted(fleet.servers - {options.lrn})
    if others:
        names = ", ".join(map(str, others))
        raise HeldBack(
            f"cannot apply here: other servers are registered ({names}), and this would not be in step with them; "
            "run `reconcile agent` on each, or `reconcile server remove`"
        )
    if fleet.leader is not None:
        raise HeldBack(f"cannot apply here: {fleet.leader.host} leads; push, and it is rolled out")
    if fleet.neco_at_work:
        raise HeldBack(f"cannot apply here: Neco is at work ({fleet.neco_at_work}); run `reconcile adopt`")
    rollout = fleet.rollout
    if rollout is not None and rollout.unfinished and rollout.stop and rollout.stopped_by != "leader":
        raise HeldBack(
            f"cannot apply: the rollout was stopped by {rollout.stopped_by}; `reconcile recover` clears it"
        )


def _clear_way(store: Store, fleet: Fleet, plan: Planned) -> None:
    """A pass is a person's word to do it now, again where need be: an agent waits for a new revision, or for `recover`."""
    rollout = fleet.rollout
    if rollout is None:
        return
    if rollout.unfinished and rollout.stop:
        click.echo(f"Trying again what failed before: {rollout.message}", err=True)
        store.administration.recover(compose.timestamp())
    elif rollout.version == plan.desired.revision.id:
        # It was rolled out, and something has been lost since: a leader would not open it a second time.
        store.administration.clear_finished()


def _run(options: Options, store: Store, plan: Planned) -> Rollout:
    from reconciler.agent.follow import Follower
    from reconciler.agent.leader import Conductor
    from reconciler.agent.leading import Leading
    from reconciler.agent.notify import Addresses, Notifier
    from reconciler.agent.publisher import Publisher
    from reconciler.agent.worker import Worker
    from reconciler.agent.writing import Identity, Writing
    from reconciler.cli.parts import host, server_parts
    from reconciler.core.published import Published
    from reconciler.host import reboot
    from reconciler.host.alone import hold
    from reconciler.store.view import read_server

    ending, bell = threading.Event(), threading.Event()
    _log_plainly()
    where = host(options, hold(host(options)))
    machine_id, boot_id = reboot.machine_id(where), reboot.boot_id(where)
    group = plan.desired.group_of(options.lrn)
    parts = server_parts(options, where, lambda: group, _progress(), ending)
    parts.configure(plan.fleet.settings)
    follower = Follower(
        compose.source(options), compose.trust(options), parts.hands.policy, options.state_dir, options.lrn
    )
    follower.take(plan.desired)
    identity = Identity(options.lrn, where.hostname, machine_id, holds_host_lock=True)
    writing = Writing(store.client, store.keys, identity, parts.hands.wall, bell.set)

    def read() -> Server:
        sentinel = parts.hands.reboot_required_file
        required = reboot.reboot_required(where, sentinel)
        return read_server(
            store.client,
            store.keys,
            options.lrn,
            machine_id,
            boot_id,
            group.reboot.lock_group,
            reboot_required=required,
        )

    publisher = Publisher(Published(options.lrn))
    settings = plan.fleet.settings
    notifier = Notifier(lambda: Addresses(settings.slack, options.notify_webhook, settings.proxy))
    worker = Worker(parts.hands, writing, follower, read, publisher, may_reboot=False)
    leading = Leading(store.client, store.keys, where.hostname or str(options.lrn), _TTL, bell.set)
    conductor = Conductor(leading, follower, parts.resolvers, publisher, notifier, options.alarm_after)
    with _ended_by_signals(ending, bell):
        try:
            return _until_done(store, worker, conductor, plan, options.lrn, ending, bell)
        finally:
            leading.resign()
            writing.close()
            notifier.close()


def _until_done(
    store: Store,
    worker: Worker,
    conductor: Conductor,
    plan: Planned,
    lrn: int,
    ending: threading.Event,
    bell: threading.Event,
) -> Rollout:
    """Lead and work by turns until the rollout has ended, one way or the other; to wait only where no turn changes anything."""
    before: tuple[object, ...] = ()
    while not ending.is_set():
        conductor.conduct()
        pause = min(worker.work(), conductor.conduct())
        fleet = store.fleet(recorded=False)
        rollout = fleet.rollout
        ours = rollout is not None and rollout.version == plan.desired.revision.id
        if ours and rollout is not None and (rollout.outcome is not None or rollout.stop):
            return rollout
        problem = conductor.problem
        if problem is not None and (rollout is None or not rollout.unfinished):
            raise ReconcilerError(problem)
        reached = (rollout, fleet.phase, fleet.statuses)
        if reached == before:
            _refuse_if_held_back(fleet, plan, lrn)
            bell.wait(min(pause, 1.0))
            bell.clear()
        before = reached
    raise HeldBack("interrupted: what was done is recorded, and the next pass or agent goes on from there")


def _refuse_if_held_back(fleet: Fleet, plan: Planned, lrn: int) -> None:
    """A pass does not stand and wait for a window, a slot, or for whoever paused: an agent does. Raises `HeldBack`."""
    rollout, status = fleet.rollout, fleet.statuses.get(lrn)
    if rollout is None or not rollout.unfinished:
        order = lead(plan.desired, fleet, Seen(), compose.now())
        if isinstance(order, Wait):
            raise HeldBack(f"cannot apply now: {order.reason}")
    elif status is not None and status.rollout == rollout.id and status.waiting is not None:
        raise HeldBack(
            f"cannot go on now: {status.message}\n"
            "what was done is recorded, and the next pass or agent goes on from there"
        )


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
    from reconciler.host.driver import silent

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
