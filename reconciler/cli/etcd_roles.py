"""`reconcile etcd-roles`: the `etcdctl` commands that make users and roles. Prints; it connects to nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click

from reconciler.cli.program import Call, Verb
from reconciler.store.keys import Keys

Grant = tuple[str, str]
"""A permission (`read`, `readwrite`) and a prefix, or a key where it does not end in a slash."""


@click.command("etcd-roles", cls=Verb)
@click.option(
    "--servers",
    metavar="N,N…",
    help="Roles and users for these servers' agents, as 0,1,2; --lrn's alone unless given.",
)
@click.pass_obj
def etcd_roles(call: Call, servers: str | None) -> int:
    """Print the etcdctl commands for roles and users: one a server's agent, one for leading, FleetLock and reading.

    An agent's credential can write only its own server's keys; one that may lead gets the role `reconciler-leader` too.
    Review them, then pipe them into a shell: `etcdctl` asks for each user's password.
    """
    options = call.options
    keys = Keys(options.prefix, options.lock_prefix)
    numbers = _numbers(servers) if servers else (options.lrn,)
    lines = list(commands(keys, numbers))
    if options.output == "json":
        from reconciler.cli.compose import print_json

        print_json([shlex.split(line.removesuffix(" || true")) for line in lines if not line.startswith("#")])
    else:
        click.echo("\n".join(lines))
    return 0


def commands(keys: Keys, servers: tuple[int, ...]) -> Iterator[str]:
    """The commands, one a line, for `sh`."""
    yield "# Roles. Granting again changes nothing."
    yield from _role("reconciler-reader", readable(keys))
    for lrn in servers:
        yield from _role(f"reconciler-agent-{lrn}", agent(keys, lrn))
    yield from _role("reconciler-leader", leader(keys))
    yield from _role("reconciler-fleetlock", [("readwrite", keys.lock)])
    yield "# Users. etcdctl asks for each password."
    for lrn in servers:
        yield from _user(
            f"agent-{lrn}", ["reconciler-reader", f"reconciler-agent-{lrn}", "reconciler-leader"]
        )
    yield from _user("fleetlock", ["reconciler-fleetlock"])
    yield from _user("reader", ["reconciler-reader"])
    yield "# Last of all, once a user root with the role root exists: etcdctl auth enable"


def readable(keys: Keys) -> list[Grant]:
    """What every agent reads: the named ranges and nothing else, for other products' secrets lie beside them."""
    folders = [
        keys.servers,
        keys.machines,
        keys.all_disabled,
        keys.installed,
        keys.status,
        keys.all_steps,
        keys.election,
        keys.agents,
        keys.neco_workers,
        keys.history,
        keys.lock,
        keys.lock_history,
    ]
    ones = [keys.noted, keys.pause, *(setting.key for setting in keys.settings)]
    return [("read", key) for key in (*folders, *ones)]


def agent(keys: Keys, lrn: int) -> list[Grant]:
    """What server `lrn`'s agent writes: its own keys, its slot and place in the line, and closing the phase after a failed step."""
    own = [
        keys.server(lrn),
        keys.machine(lrn),
        keys.server_status(lrn),
        keys.installed_on(lrn),
        keys.steps_of(lrn),
        keys.agents_of(lrn),
    ]
    return [("readwrite", key) for key in (*own, keys.phase, keys.lock)]


def leader(keys: Keys) -> list[Grant]:
    """What a leader writes; an agent with `--no-lead` does not need it."""
    written = [
        keys.election,
        keys.rollout,
        keys.phase,
        keys.pins,
        keys.noted,
        keys.pause,
        keys.history,
        keys.lock,
    ]
    return [("readwrite", key) for key in written]


def _role(name: str, grants: list[Grant]) -> Iterator[str]:
    yield f"etcdctl role add {name} || true"
    for permission, key in grants:
        flag = "--prefix=true " if key.endswith("/") else ""
        yield f"etcdctl role grant-permission {name} {flag}{permission} {shlex.quote(key)}"


def _user(name: str, roles: list[str]) -> Iterator[str]:
    yield f"etcdctl user add {name} || true"
    for role in roles:
        yield f"etcdctl user grant-role {name} {role}"


def _numbers(text: str) -> tuple[int, ...]:
    from reconciler.errors import UsageError

    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UsageError(f"cannot read --servers {text}: give numbers with commas, as 0,1,2") from None
