"""`reconcile lock`: the reboot lock by hand, as `locksmithctl`'s status, lock, unlock and set-max."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from reconciler.cli import compose
from reconciler.cli.options import Options
from reconciler.cli.program import Call, Noun, Number
from reconciler.core.duration import parse_duration
from reconciler.core.report import LockReport, lock_report
from reconciler.core.semaphore import Holder
from reconciler.errors import HeldBack, HostError, UsageError
from reconciler.store.keys import DEFAULT_GROUP

_GROUP = click.option(
    "--lock-group",
    "group",
    default=DEFAULT_GROUP,
    show_default=True,
    metavar="GROUP",
    help="Which lock group.",
)
_MACHINE = click.option(
    "--machine-id", metavar="ID", help="Whose slot; this host's own machine id unless it is given."
)


@click.group("lock", cls=Noun)
def lock() -> None:
    """The reboot lock: who holds a slot, taking one and giving it back by hand, how many there are."""


@lock.command("status")
@_GROUP
@click.pass_obj
def status(call: Call, group: str) -> int:
    """Show how many slots are free, how many there are, and the machines that hold one."""
    found = _report(call.options, group)
    if call.options.output == "json":
        from reconciler.wire.status import lock_json

        compose.print_json(lock_json(found))
        return 0
    click.echo(f"Available: {found.free}\nMax: {found.max}")
    if found.holders:
        click.echo("\nMACHINE ID")
        for holder in found.holders:
            click.echo(holder.machine_id)
    return 0


@lock.command("acquire")
@_GROUP
@_MACHINE
@click.option(
    "--wait",
    metavar="TIME",
    help="Stand in the line for so long (10m); without it, a lock that is full refuses at once.",
)
@click.option("--reason", default="", help="Why; `reconcile status` shows it.")
@click.pass_obj
def acquire(call: Call, group: str, machine_id: str | None, wait: str | None, reason: str) -> int:
    """Take a slot, as an operator. Asking again for one that is held succeeds and changes nothing."""
    from reconciler.store.line import Line
    from reconciler.store.lock import RebootLock
    from reconciler.store.lock_view import Refused

    options = call.options
    seconds = _seconds(wait)
    machine = _machine(options, machine_id)
    reason = reason or f"acquired by {compose.who()}"
    holder = Holder(machine, "operator", None, int(time.time()), _boot(options, machine_id), reason)
    with compose.store_to_write(options) as store:
        answer = Line(RebootLock(store.client, store.keys, group)).acquire(holder, seconds)
    if isinstance(answer, Refused):
        raise HeldBack(f"cannot take a slot for machine {machine}: {answer.reason}")
    if options.output == "json":
        compose.print_json({"machine_id": machine, "lock_group": group, "again": answer.again})
    else:
        click.echo(f"Machine {machine} {'held a slot already' if answer.again else 'holds a slot'}.")
    return 0


@lock.command("release")
@_GROUP
@_MACHINE
@click.option("--reason", default="", help="Why; it is noted in lock-history.")
@click.option(
    "--hold",
    metavar="REVISION",
    type=Number(1),
    help="Only if the holder's record is still the one of this etcd revision.",
)
@click.pass_obj
def release(call: Call, group: str, machine_id: str | None, reason: str, hold: int | None) -> int:
    """Give a slot back, whoever holds it: a dead server's, for instance. A machine that holds none is no error."""
    from reconciler.store.lock import RebootLock

    options = call.options
    machine = _machine(options, machine_id)
    with compose.store_to_write(options) as store:
        held = RebootLock(store.client, store.keys, group).release_of(
            machine, compose.who(), reason, compose.timestamp(), hold
        )
    if options.output == "json":
        compose.print_json({"machine_id": machine, "lock_group": group, "released": held is not None})
    elif held is None:
        click.echo(f"Machine {machine} held no slot.")
    else:
        whose = f"server {held.lrn}'s ({held.source})" if held.lrn is not None else f"the {held.source}'s"
        click.echo(f"Released {whose} slot of machine {machine}{f': {held.reason}' if held.reason else ''}.")
    return 0


@lock.command("set-max")
@_GROUP
@click.argument("slots", metavar="N", type=Number())
@click.pass_obj
def set_max(call: Call, group: str, slots: int) -> int:
    """Set the number of slots. 0 closes the lock; below the number of holders nobody enters until enough have left."""
    from reconciler.store.lock import RebootLock

    options = call.options
    with compose.store_to_write(options) as store:
        old = RebootLock(store.client, store.keys, group).set_max(slots)
    if options.output == "json":
        compose.print_json({"lock_group": group, "old_max": old, "max": slots})
    else:
        click.echo(f"Old-Max: {old}\nMax: {slots}")
    return 0


@lock.command("history")
@click.option("--most", metavar="N", type=Number(1), default=20, show_default=True, help="How many to show.")
@click.pass_obj
def history(call: Call, most: int) -> int:
    """Show the slots that operators gave back for their holders, of all lock groups, newest first: whose, who did it and why."""
    from reconciler.cli.status_text import released_text
    from reconciler.store.lock import read_released
    from reconciler.wire.lock import lock_history_json

    with compose.store(call.options) as store:
        found = read_released(store.client, store.keys)[:most] if store else ()
    if call.options.output == "json":
        compose.print_json(lock_history_json(found))
        return 0
    if not found:
        click.echo("No slot has been released by an operator.")
    for released in found:
        click.echo(released_text(released))
    return 0


def _report(options: Options, group: str) -> LockReport:
    from reconciler.core.state import Lock
    from reconciler.store.view import read_locks

    with compose.store(options) as store:
        locks: dict[str, Any] = read_locks(store.client, store.keys) if store else {}
    return lock_report(locks.get(group, Lock(group)), compose.now(), alarm_after=options.alarm_after)


def _machine(options: Options, given: str | None) -> str:
    if given is not None:
        if not given.strip():
            raise UsageError("an empty machine id cannot hold a slot")
        return given
    from reconciler.cli.parts import host
    from reconciler.host.reboot import machine_id

    return machine_id(host(options))


def _boot(options: Options, given: str | None) -> str:
    """The boot that this host is in, for people to read: another machine's is not known here, and without it the slot is as good."""
    if given is not None:
        return ""
    from reconciler.cli.parts import host
    from reconciler.host.reboot import boot_id

    with contextlib.suppress(HostError):
        return boot_id(host(options))
    return ""


def _seconds(wait: str | None) -> float:
    try:
        return parse_duration(wait) if wait else 0.0
    except ValueError as error:
        raise UsageError(f"--wait: {error}") from None
