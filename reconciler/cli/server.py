"""`reconcile server`: the fleet's servers."""

from __future__ import annotations

from typing import Any

import click

from reconciler.cli import compose
from reconciler.cli.program import Call, Noun, Number
from reconciler.core.state import Fleet, Notice

_NUMBER = Number()


@click.group("server", cls=Noun)
def server() -> None:
    """The fleet's servers. An agent registers its server when it first starts: `add` is for one that was removed or replaced."""


@server.command("add")
@click.argument("lrn", metavar="N", type=_NUMBER)
@click.option(
    "--replace",
    is_flag=True,
    help="Another machine takes this number: what is recorded of the old one is deleted.",
)
@click.pass_obj
def add(call: Call, lrn: int, replace: bool) -> int:
    """Register server N, or bring a removed one back."""
    with compose.store_to_write(call.options) as store:
        changed = store.administration.add_server(lrn, replace_machine=replace)
    return _say(
        call, lrn, changed, f"Server {lrn} is in the fleet.", f"Server {lrn} was in the fleet already."
    )


@server.command("remove")
@click.argument("lrn", metavar="N", type=_NUMBER)
@click.pass_obj
def remove(call: Call, lrn: int) -> int:
    """Take server N out of the fleet, with all that is recorded of it; its host is left as it is."""
    with compose.store_to_write(call.options) as store:
        changed = store.administration.remove_server(lrn)
    return _say(call, lrn, changed, f"Server {lrn} is removed.", f"Server {lrn} was not in the fleet.")


@server.command("disable")
@click.argument("lrn", metavar="N", type=_NUMBER)
@click.option("--reason", required=True, help="Why; everybody who looks at `reconcile status` reads it.")
@click.pass_obj
def disable(call: Call, lrn: int, reason: str) -> int:
    """Leave server N out of rollouts; its records are kept."""
    with compose.store_to_write(call.options) as store:
        store.administration.disable_server(lrn, Notice(compose.who(), reason, compose.timestamp()))
    return _say(
        call, lrn, True, f"Server {lrn} is left out of rollouts. `reconcile server enable {lrn}` ends it.", ""
    )


@server.command("enable")
@click.argument("lrn", metavar="N", type=_NUMBER)
@click.pass_obj
def enable(call: Call, lrn: int) -> int:
    """Let server N into rollouts again."""
    with compose.store_to_write(call.options) as store:
        changed = store.administration.enable_server(lrn)
    return _say(
        call, lrn, changed, f"Server {lrn} takes part in rollouts again.", f"Server {lrn} was not disabled."
    )


@server.command("list")
@click.pass_obj
def list_servers(call: Call) -> int:
    """List the servers: number, machine, agent, and what is recorded of each."""
    options = call.options
    with compose.store(options) as store:
        fleet = store.fleet() if store else Fleet()
    rows = [_row(fleet, lrn) for lrn in sorted(fleet.servers | fleet.machines.keys())]
    if options.output == "json":
        compose.print_json(rows)
        return 0
    if not rows:
        click.echo("No server is registered: an agent registers its server when it first starts.")
        return 0
    click.echo(f"{'SERVER':<8}{'MACHINE ID':<34}{'AGENT':<22}{'RECORDED':<10}STATE")
    for row in rows:
        click.echo(
            f"{row['lrn']:<8}{row['machine_id'] or '-':<34}{row['agent'] or '-':<22}{row['recorded']:<10}{row['state']}"
        )
    return 0


def _row(fleet: Fleet, lrn: int) -> dict[str, Any]:
    machine = fleet.machines.get(lrn)
    notice = fleet.disabled.get(lrn)
    state = "removed" if lrn not in fleet.servers else f"disabled: {notice.why}" if notice else "registered"
    return {
        "lrn": lrn,
        "machine_id": machine.machine_id if machine else None,
        "agent": next((agent.host for agent in fleet.agents if agent.lrn == lrn), None),
        "recorded": len(fleet.recorded.get(lrn, {})),
        "state": state,
    }


def _say(call: Call, lrn: int, changed: bool, done: str, already: str) -> int:
    if call.options.output == "json":
        compose.print_json({"lrn": lrn, "changed": changed})
    else:
        click.echo(done if changed else already)
    return 0
