"""`reconcile stop` and `reconcile recover`: a person's hand on the rollout."""

from __future__ import annotations

import click

from reconciler.cli import compose
from reconciler.cli.program import Call, Verb
from reconciler.core.lead import held_back


@click.command("stop", cls=Verb)
@click.option("--reason", default="", help="Why: it stands in the rollout's message.")
@click.pass_obj
def stop(call: Call, reason: str) -> int:
    """Stop the running rollout between steps: what runs is finished and recorded, and nothing else begins but what brings servers back up."""
    options = call.options
    with compose.store_to_write(options) as store:
        rollout = store.administration.request_stop(compose.who(), reason)
    if options.output == "json":
        compose.print_json(
            {"rollout": rollout.id, "revision": rollout.version, "stopped_by": rollout.stopped_by}
        )
    else:
        click.echo(
            f"The rollout of {rollout.version[:12]} is stopped. `reconcile recover` clears it, so that it is tried again."
        )
    return 0


@click.command("recover", cls=Verb)
@click.pass_obj
def recover(call: Call) -> int:
    """Clear a stopped rollout, so that the same revision is tried again. What a slot holds and what steps left is kept."""
    options = call.options
    with compose.store_to_write(options) as store:
        rollout = store.administration.recover(compose.timestamp())
        held = held_back(store.fleet(recorded=False), compose.now())
    if options.output == "json":
        compose.print_json(
            {"rollout": rollout.id, "revision": rollout.version, "held": held.reason if held else None}
        )
    else:
        then = f"none opens now: {held.reason}" if held else "the leader opens one anew"
        click.echo(f"The stopped rollout of {rollout.version[:12]} is cleared; {then}.")
    return 0
