"""`reconcile` without a verb: one pass for this server. With `--dry-run` it shows the plan and changes nothing."""

from __future__ import annotations

import sys
from typing import Final

import click

from reconciler.cli import compose
from reconciler.cli.options import Options
from reconciler.cli.planning import Asked, Planned, planned
from reconciler.cli.program import Call
from reconciler.errors import UnexpectedPlan, UsageError

PENDING: Final = 2


def one_pass(call: Call, asked: Asked) -> int:
    """Show what there is to do for this server (or for those asked for), and do it unless it is a dry run."""
    _check(asked)
    options = call.options
    plan = planned(options, asked)
    document = plan.document() if asked.expect or options.output == "json" else None
    if document is not None and asked.expect not in (None, document["digest"]):
        raise UnexpectedPlan(
            f"the plan is not the one expected: it is {document['digest']} and not {asked.expect}; "
            "something was pushed, recorded or installed since: look at it with --dry-run"
        )
    if options.output == "json":
        compose.print_json(document)
    else:
        click.echo(_text(options, plan))
    if asked.dry_run:
        return PENDING if asked.detailed_exitcode and plan.changes else 0
    return _apply(options, asked, plan)


def _check(asked: Asked) -> None:
    """Combinations that mean nothing, or would plan for one server and change another."""
    if asked.server is not None and asked.all_servers:
        raise UsageError("--server and --all: one server, or all of them")
    only_shown = {
        "--server": asked.server is not None,
        "--all": asked.all_servers,
        "--recorded": asked.recorded is not None,
        "--detailed-exitcode": asked.detailed_exitcode,
    }
    misplaced = [flag for flag, given in only_shown.items() if given]
    if misplaced and not asked.dry_run:
        raise UsageError(f"{', '.join(misplaced)}: only with --dry-run; a pass is for this server")
    if asked.yes and asked.dry_run:
        raise UsageError("--yes and --dry-run: a dry run applies nothing")


def _text(options: Options, plan: Planned) -> str:
    from reconciler.cli.render import plan_text, reboot_text

    paint = compose.paint(options)
    text = plan_text(plan.plans, plan.desired.revision, plan.recorded, plan.slots, paint)
    if plan.asks_for_reboot is None:
        return text
    return f"{text}\n{paint(reboot_text(plan.asks_for_reboot, plan.plans[0].reboot), 'yellow')}"


def _apply(options: Options, asked: Asked, plan: Planned) -> int:
    """Apply the plan that was shown, once somebody said so."""
    from reconciler.cli.carry_out import carry_out, is_needed

    if not is_needed(options, plan):
        return 0
    if not asked.yes and not asked.expect:
        if not sys.stdin.isatty():
            raise UsageError(
                "cannot ask whether to apply this plan: standard input is no terminal; give --yes or --expect DIGEST"
            )
        if not click.confirm("Apply?", default=False):
            click.echo("Nothing was changed.", err=True)
            return 0
    return carry_out(options, plan)
