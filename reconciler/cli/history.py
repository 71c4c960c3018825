"""`reconcile history`: the finished rollouts, newest first."""

from __future__ import annotations

from dataclasses import asdict

import click

from reconciler.cli import compose
from reconciler.cli.program import Call, Number, Verb
from reconciler.desired.source import COMMIT


@click.command("history", cls=Verb)
@click.option("--most", metavar="N", type=Number(1), default=20, show_default=True, help="How many to show.")
@click.pass_obj
def history(call: Call, most: int) -> int:
    """Show the finished rollouts: when, which revision, how it ended, and who was left out."""
    from reconciler.store.view import read_history

    options = call.options
    with compose.store(options) as store:
        finished = read_history(store.client, store.keys)[:most] if store else ()
    if options.output == "json":
        compose.print_json([asdict(rollout) for rollout in finished])
        return 0
    if not finished:
        click.echo("No rollout has finished yet.")
    for rollout in finished:
        servers = f"{len(rollout.servers)} server{'s' if len(rollout.servers) != 1 else ''}"
        click.echo(
            f"{rollout.started[:19]}Z  {_shown(rollout.revision):<12}  {rollout.outcome:<9} {servers:<12} {rollout.message}"
        )
    return 0


def _shown(revision: str) -> str:
    """A commit's first digits; what Neco called a release is shown whole."""
    return revision[:12] if COMMIT.fullmatch(revision) else revision
