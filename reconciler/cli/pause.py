"""`reconcile pause` and `reconcile resume`: hold new rollouts, and let them open again."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import click

from reconciler.cli import compose
from reconciler.cli.program import Call, Verb
from reconciler.cli.status_text import moment
from reconciler.core.duration import parse_duration, timestamp
from reconciler.core.state import Notice
from reconciler.errors import UsageError


@click.command("pause", cls=Verb)
@click.option("--reason", required=True, help="Why; everybody who looks at `reconcile status` reads it.")
@click.option(
    "--until",
    metavar="TIME",
    help="When it ends: RFC 3339 (2026-05-01T08:00:00Z), or a length from now (2h).",
)
@click.pass_obj
def pause(call: Call, reason: str, until: str | None) -> int:
    """Hold new rollouts. One that runs goes on: `reconcile stop` stops it."""
    options = call.options
    end = _until(until, time.time()) if until else None
    notice = Notice(compose.who(), reason, compose.timestamp(), end)
    with compose.store_to_write(options) as store:
        store.administration.pause(notice)
    if options.output == "json":
        compose.print_json({"who": notice.who, "why": reason, "since": notice.since, "until": end})
    else:
        click.echo(
            f"No new rollout opens{f' until {moment(end)}' if end else ''}. `reconcile resume` ends it."
        )
    return 0


@click.command("resume", cls=Verb)
@click.pass_obj
def resume(call: Call) -> int:
    """Let new rollouts open again."""
    options = call.options
    with compose.store_to_write(options) as store:
        was = store.administration.resume()
    if options.output == "json":
        compose.print_json({"was_paused": was is not None})
    else:
        click.echo(
            f"Rollouts open again; {was.who} had paused them: {was.why}" if was else "Nothing was paused."
        )
    return 0


def _until(text: str, wall: float) -> str:
    try:
        return timestamp(wall + parse_duration(text))
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"cannot read --until {text}: give RFC 3339 (2026-05-01T08:00:00Z) or a length (2h)"
        ) from None
    moment = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    if moment <= wall:
        raise UsageError(f"cannot pause until {text}: that is over")
    return timestamp(moment)
