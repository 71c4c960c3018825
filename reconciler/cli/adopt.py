"""`reconcile adopt`: take over what a stopped Neco, or a person, installed: show it, ask, record it, enter it in the ledger."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

import click

from reconciler.cli import compose
from reconciler.cli.compose import Store
from reconciler.cli.options import Options
from reconciler.cli.program import Call, Verb
from reconciler.core.artifact import Artifact, Key, Known
from reconciler.core.state import Desired, Detail, Fleet, Installed
from reconciler.errors import HeldBack, UsageError


@click.command("adopt", cls=Verb)
@click.option("--yes", is_flag=True, help="Take over without asking.")
@click.pass_obj
def adopt(call: Call, yes: bool) -> int:
    """Take over this server: what is recorded of it, or desired, and is really there becomes ours, to upgrade and to remove.

    Stop every Neco process first. What Neco left under `status/` is archived in the history. Run it on each host.
    """
    options = call.options
    desired = compose.desired(options)
    with compose.store_to_write(options) as store:
        fleet = store.fleet_of_one(options.lrn)
        _refuse_if_at_work(options, fleet)
        found = _owned(options, fleet, desired)
        _show(options, fleet, found)
        neco = fleet.rollout is not None and fleet.rollout.plan_format is None
        if not found and not neco:
            return 0
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(
                    "cannot ask whether to take this over: standard input is no terminal; give --yes"
                )
            if not click.confirm("Take it over?", default=False):
                click.echo("Nothing was changed.", err=True)
                return 0
        with _held(options):
            # It refuses where a Neco process is at work, and so comes first.
            archived = store.administration.adopt_status(compose.timestamp()) if neco else None
            _enter(options, found)
            _record(options, store, desired, found)
    if options.output != "json":
        click.echo(
            f"Server {options.lrn}: {len(found)} artifacts are ours"
            + (f"; Neco's update of {archived.version} is in the history" if archived else "")
            + "."
        )
    return 0


@contextlib.contextmanager
def _held(options: Options) -> Iterator[None]:
    """While no agent can work on this host."""
    from reconciler.cli.parts import host
    from reconciler.host.alone import hold

    lock = hold(host(options))
    try:
        yield
    finally:
        os.close(lock)


def _enter(options: Options, found: Mapping[Key, tuple[Artifact | Known, str]]) -> None:
    """The ledger before etcd: what is in etcd and not in the ledger could never be removed, and is found again by another `adopt`."""
    from reconciler.cli.parts import host
    from reconciler.host.ledger import Entry, Ledger

    ledger = Ledger.open(host(options))
    for artifact, said in found.values():
        if not ledger.has(artifact.key):
            digest = said.split()[0] if said.startswith("sha256:") else ""
            ledger.put(Entry(artifact, said, digest, origin="adopted"))


def _record(
    options: Options, store: Store, desired: Desired, found: Mapping[Key, tuple[Artifact | Known, str]]
) -> None:
    from reconciler.store.serving import Found

    for artifact, said in found.values():
        if not isinstance(artifact, Known):
            detail = Detail(artifact, said, desired.revision.id, compose.timestamp())
            installed = Installed(artifact.key, artifact.version, detail)
            store.administration.adopt_installed(options.lrn, Found((installed,)))


def _refuse_if_at_work(options: Options, fleet: Fleet) -> None:
    worker = fleet.neco_at_work
    if worker is not None and worker != "" and "leader/worker" in worker:
        raise HeldBack(
            f"cannot take over: a Neco worker is at work ({worker}); stop neco-updater and neco-worker everywhere"
        )
    running = next((agent for agent in fleet.agents if agent.lrn == options.lrn), None)
    if running is not None:
        raise HeldBack(
            f"cannot take over server {options.lrn}: its agent runs on {running.host}; stop it first"
        )


def _owned(options: Options, fleet: Fleet, desired: Desired) -> dict[Key, tuple[Artifact | Known, str]]:
    """What the host has of what is recorded without our details, or desired: as it is desired (or only known), and as it is found."""
    from reconciler.cli.parts import host, server_parts

    group = desired.group_of(options.lrn)
    hands = server_parts(options, host(options), lambda: group).hands
    recorded = fleet.recorded.get(options.lrn, {})
    asked = desired.artifacts_of(options.lrn)
    wanted: dict[Key, Artifact | Known] = {
        key: artifact for key, artifact in asked.items() if key not in recorded
    }
    for key, installed in recorded.items():
        artifact = asked.get(key)
        same = artifact is not None and artifact.version == installed.version
        if hands.ledger.has(key) and (installed.detail is not None or not same):
            continue
        wanted[key] = artifact if artifact is not None and same else Known(key, installed.version)
    there = hands.look(wanted.values())
    return {
        key: (artifact, there[key])
        for key, artifact in wanted.items()
        if key in there and (key in recorded or _says(there[key], artifact))
    }


def _says(found: str, artifact: Artifact | Known) -> bool:
    """Whether what the host says is the desired version: nothing is recorded that could vouch for it."""
    return found.split()[0] in (artifact.version, artifact.version.removeprefix("v"))


def _show(options: Options, fleet: Fleet, found: dict[Key, tuple[Artifact | Known, str]]) -> None:
    neco = fleet.rollout if fleet.rollout is not None and fleet.rollout.plan_format is None else None
    if options.output == "json":
        artifacts = [
            {"kind": key.kind, "name": key.name, "version": artifact.version, "found": said}
            for key, (artifact, said) in sorted(found.items())
        ]
        archived = {"version": neco.version, "started_at": neco.started_at} if neco else None
        compose.print_json({"server": options.lrn, "artifacts": artifacts, "neco_update": archived})
        return
    for key, (artifact, said) in sorted(found.items()):
        click.echo(f" = {key.subject:<28} {artifact.version:<20} found {said}")
    if not found:
        click.echo(f"Server {options.lrn}: nothing to take over.")
    if neco:
        click.echo(f"Neco's update of {neco.version} is archived, and status/ is deleted.")
