"""`reconcile snapshot`: the recorded state as JSON, for `--dry-run --recorded` where etcd cannot be reached, as in CI."""

from __future__ import annotations

import click

from reconciler.cli import compose
from reconciler.cli.program import Call, Verb
from reconciler.core.state import Fleet


@click.command("snapshot", cls=Verb)
@click.pass_obj
def snapshot(call: Call) -> int:
    """Print what is recorded of every server as JSON. No secret is in it."""
    from reconciler.wire.records import encode_snapshot

    with compose.store(call.options) as store:
        fleet = store.fleet() if store else Fleet()
    recorded = {lrn: fleet.recorded.get(lrn, {}) for lrn in sorted(fleet.servers | fleet.recorded.keys())}
    click.echo(encode_snapshot(recorded, fleet.etcd_revision))
    return 0
