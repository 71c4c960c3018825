"""Applies the plan that a pass has shown: leads a rollout of one server and works it off, in this process. Called by `apply`.

Only where nobody else could do it: where this server's agent runs, or other servers are registered, that is theirs.
"""

from __future__ import annotations

import click

from reconciler.cli import compose
from reconciler.cli.compose import Store
from reconciler.cli.one_server import OneServer, one_server
from reconciler.cli.options import Options
from reconciler.cli.planning import Planned
from reconciler.core.lead import Seen, Wait, lead
from reconciler.core.state import COMPLETE, Fleet, Rollout
from reconciler.errors import HeldBack, ReconcilerError


def carry_out(options: Options, plan: Planned) -> int:
    """Apply `plan` to this server. Raises `HeldBack` where that is another's to do, and before a reboot."""
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


def is_needed(options: Options, plan: Planned) -> bool:
    """Whether there is anything to do: a change, or a rollout that this server has not finished."""
    return bool(plan.changes) or _is_open_here(plan.fleet, options.lrn)


def _is_open_here(fleet: Fleet, lrn: int) -> bool:
    """Whether a rollout is under way that this server has not finished: there may be nothing to change, and a boot still owed."""
    rollout, status = fleet.rollout, fleet.statuses.get(lrn)
    if rollout is None or not rollout.unfinished or lrn not in rollout.servers:
        return False
    return status is None or status.rollout != rollout.id or status.cond != COMPLETE


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
    if rollout.unfinished and not rollout.stop and rollout.version != plan.desired.revision.id:
        raise HeldBack(
            f"cannot apply {plan.desired.revision.id[:12]}: the rollout of {rollout.version[:12]} is not finished, and it "
            f"would go on first; let it end (`reconcile --ref {rollout.version[:12]}`), or `reconcile stop` and `recover`"
        )
    if rollout.unfinished and rollout.stop:
        click.echo(f"Trying again what failed before: {rollout.message}", err=True)
        store.administration.recover(compose.timestamp())
    elif rollout.version == plan.desired.revision.id:
        # It was rolled out, and something has been lost since: a leader would not open it a second time.
        store.administration.clear_finished()


def _run(options: Options, store: Store, plan: Planned) -> Rollout:
    with one_server(options, store, plan.desired, plan.fleet.settings) as here:
        return _until_done(store, here, plan, options.lrn)


def _until_done(store: Store, here: OneServer, plan: Planned, lrn: int) -> Rollout:
    """Lead and work by turns until the rollout has ended, one way or the other; to wait only where no turn changes anything."""
    before: tuple[object, ...] = ()
    while not here.ending.is_set():
        here.conductor.conduct()
        pause = min(here.worker.work(), here.conductor.conduct())
        fleet = store.fleet(recorded=False)
        rollout = fleet.rollout
        ours = rollout is not None and rollout.version == plan.desired.revision.id
        if ours and rollout is not None and (rollout.outcome is not None or rollout.stop):
            return rollout
        problem = here.conductor.problem
        if problem is not None and (rollout is None or not rollout.unfinished):
            raise ReconcilerError(problem)
        reached = (rollout, fleet.phase, fleet.statuses)
        if reached == before:
            _refuse_if_held_back(fleet, plan, lrn)
            here.bell.wait(min(pause, 1.0))
            here.bell.clear()
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
