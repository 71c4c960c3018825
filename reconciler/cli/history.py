"""`reconcile history`: the finished rollouts, newest first."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click

from reconciler.cli import compose
from reconciler.cli.program import Call, Number, Verb
from reconciler.core.duration import format_duration
from reconciler.desired.source import COMMIT
from reconciler.wire.records import FinishedRollout

_SAID = 300
"""Characters of a message that are shown; `--output json` has it whole."""


@click.command("history", cls=Verb)
@click.option("--most", metavar="N", type=Number(1), default=20, show_default=True, help="How many to show.")
@click.pass_obj
def history(call: Call, most: int) -> int:
    """Show the finished rollouts: when, which revision, how it ended, and who was left out."""
    from reconciler.cli.status_text import moment, one_line
    from reconciler.store.view import read_history

    options = call.options
    with compose.store(options) as store:
        finished = read_history(store.client, store.keys)[:most] if store else ()
    if options.output == "json":
        compose.print_json([_json(rollout) for rollout in finished])
        return 0
    if not finished:
        click.echo("No rollout has finished yet.")
    for rollout in finished:
        servers = f"{len(rollout.servers)} server{'s' if len(rollout.servers) != 1 else ''}"
        click.echo(
            f"{moment(rollout.started)}  {_shown(rollout.revision):<12}  {rollout.outcome:<9} {_took(rollout):<8} {servers:<12} "
            f"{one_line(rollout.message, _SAID)}"
        )
    return 0


def _json(rollout: FinishedRollout) -> dict[str, object]:
    """As `schemas/history.json` says: what a newer program knows more is its own."""
    return {name: value for name, value in asdict(rollout).items() if name != "extra"}


def _took(rollout: FinishedRollout) -> str:
    """How long it was under way; nothing where one of its times cannot be read, as in what Neco left."""
    try:
        began, ended = (datetime.fromisoformat(time) for time in (rollout.started, rollout.finished))
    except ValueError:
        return ""
    return format_duration(max(0, int((ended - began).total_seconds())))


def _shown(revision: str) -> str:
    """A commit's first digits; what Neco called a release is shown whole."""
    return revision[:12] if COMMIT.fullmatch(revision) else revision
