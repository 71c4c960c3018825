"""`reconcile drift`: what this server has against what etcd says it has; `--repair` puts it right."""

from __future__ import annotations

from typing import Any

import click

from reconciler.cli import compose
from reconciler.cli.options import Options
from reconciler.cli.program import Call, Verb
from reconciler.core.artifact import Key, Known
from reconciler.core.change import Change
from reconciler.core.state import Desired, Fleet
from reconciler.errors import HeldBack, ReconcilerError

DRIFTED = 2


@click.command("drift", cls=Verb)
@click.option("--repair", is_flag=True, help="Put right what differs, while no rollout is under way.")
@click.pass_obj
def drift(call: Call, repair: bool) -> int:
    """Show each difference between what is recorded and what this server has. Exit status 2 where there is one."""
    options = call.options
    with compose.store(options) as store:
        fleet = store.fleet_of_one(options.lrn) if store else Fleet()
    found = look(options, fleet)
    if repair and found:
        return _repair(call, fleet)
    if options.output == "json":
        compose.print_json([_json(change) for change in found])
    elif not found:
        click.echo(
            f"Server {options.lrn} has what is recorded ({len(fleet.recorded.get(options.lrn, {}))} artifacts)."
        )
    else:
        from reconciler.agent.drift import described

        for change in found:
            click.echo(f" ! {described(change)}  {change.reason}")
    return DRIFTED if found else 0


def look(options: Options, fleet: Fleet) -> tuple[Change, ...]:
    """The differences of this server."""
    from reconciler.agent.drift import drifted
    from reconciler.cli.parts import host, server_parts

    desired = _desired(options)
    parts = server_parts(options, host(options), lambda: _group(options, desired))
    return drifted(fleet.recorded.get(options.lrn, {}), parts.hands, closely=True)


def _repair(call: Call, fleet: Fleet) -> int:
    """Repairs are steps like any other, with their slots and records: the worker's, for the length of this command."""
    from reconciler.agent.drift import described
    from reconciler.cli.one_server import one_server

    options = call.options
    running = next((agent for agent in fleet.agents if agent.lrn == options.lrn), None)
    if running is not None:
        raise HeldBack(
            f"cannot repair server {options.lrn}: its agent runs on {running.host}; stop it for the repair, "
            "or say `drift: repair` in the RolloutPolicy"
        )
    desired = compose.desired(options)
    with (
        compose.store_to_write(options) as store,
        one_server(options, store, desired, fleet.settings) as here,
    ):
        left = here.worker.repair_drift()
    if options.output == "json":
        compose.print_json([_json(change) for change in left])
    if left:
        raise ReconcilerError("not repaired: " + "; ".join(described(change) for change in left))
    return 0


def _desired(options: Options) -> Desired | None:
    try:
        return compose.desired(options)
    except ReconcilerError:
        return None


def _group(options: Options, desired: Desired | None) -> Any:
    from reconciler.core.state import DEFAULT_GROUP

    return desired.group_of(options.lrn) if desired else DEFAULT_GROUP


def _json(change: Change) -> dict[str, Any]:
    def found(side: object) -> str | None:
        return side.version if isinstance(side, Known) else None

    key: Key = change.key
    return {
        "kind": key.kind,
        "name": key.name,
        "recorded": found(change.before),
        "found": found(change.after),
        "reason": change.reason,
    }
