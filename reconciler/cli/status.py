"""`reconcile status`: what the fleet does and waits for; `--watch` follows it."""

from __future__ import annotations

import time

import click

from reconciler.cli.options import Options
from reconciler.cli.program import Call, Verb
from reconciler.core.report import Status, report
from reconciler.core.state import Desired, Fleet
from reconciler.errors import ReconcilerError, UsageError

_BETWEEN = 1.0
"""Seconds between two looks of `--watch`."""


@click.command("status", cls=Verb)
@click.option("--watch", is_flag=True, help="Show it again whenever it changes, until interrupted.")
@click.pass_obj
def status(call: Call, watch: bool) -> int:
    """Show the leader, the rollout and its open phase, each server's step, what is waited for, and the lock holders."""
    options = call.options
    if not watch:
        _show(options, current(options))
        return 0
    from reconciler.cli import compose, stay

    stay()
    with compose.store(options) as store:
        if store is None:
            raise UsageError(f"cannot watch: there is no embedded etcd in {options.state_dir} yet")
        known = _desired(options)
        shown: Status | None = None
        while True:
            found = report(store.fleet(recorded=False), known, compose.now(), options.alarm_after)
            if shown is None or _without_revision(found) != _without_revision(shown):
                _show(options, found, again=shown is not None)
                shown = found
            time.sleep(_BETWEEN)


def current(options: Options) -> Status:
    """The fleet's status now; that of an empty one where the embedded etcd has no data yet."""
    from reconciler.cli import compose

    with compose.store(options) as store:
        fleet = store.fleet(recorded=False) if store else Fleet()
    return report(fleet, _desired(options), compose.now(), options.alarm_after)


def _desired(options: Options) -> Desired | None:
    """The desired state where it can be had at once, for groups and windows: status works without git."""
    from reconciler.cli import compose

    if options.remote:
        return None
    try:
        return compose.desired(options)
    except ReconcilerError:
        return None


def _without_revision(found: Status) -> tuple[object, ...]:
    locks = [
        (
            lock.group,
            lock.max,
            tuple((holder.record, holder.overdue) for holder in lock.holders),
            lock.waiters,
        )
        for lock in found.locks
    ]
    return (
        found.leader,
        found.state,
        found.message,
        found.phase,
        found.servers,
        found.pause,
        found.noted,
        *locks,
    )


def _show(options: Options, found: Status, *, again: bool = False) -> None:
    from reconciler.cli import compose

    if options.output == "json":
        from reconciler.wire.status import status_json

        compose.print_json(status_json(found))
        return
    from reconciler.cli.status_text import status_text

    if again:
        click.clear() if compose.on_terminal() else click.echo()
    click.echo(status_text(found, compose.paint(options)))
