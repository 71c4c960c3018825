"""`reconcile etcd-roles`: the `etcdctl` commands that make users and roles. Prints; it connects to nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import click

from reconciler.cli.program import Call, Verb
from reconciler.errors import UsageError
from reconciler.store.keys import DEFAULT_GROUP, Keys, number_in

Grant = tuple[str, str]
"""A permission (`read`, `readwrite`) and a prefix, or a key where it does not end in a slash."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Whom the roles are for. `machines` has the machine ids that are known; without `groups` there may be any lock group.

    `name` goes before the names of its users, and into those of its roles, where another fleet has the same etcd.
    """

    servers: tuple[int, ...]
    machines: Mapping[int, str] = field(default_factory=dict)
    never_lead: frozenset[int] = frozenset()
    groups: tuple[str, ...] = ()
    name: str = ""

    def role(self, name: str) -> str:
        return f"reconciler-{self.name}-{name}" if self.name else f"reconciler-{name}"

    def user(self, name: str) -> str:
        return f"{self.name}-{name}" if self.name else name


@click.command("etcd-roles", cls=Verb)
@click.option(
    "--servers",
    metavar="N[=ID],…",
    help="Roles and users for these servers' agents, as 0,1,2; --lrn's alone unless given. With a machine id, as 0=3f0c…, "
    "an agent writes no other holder's record.",
)
@click.option(
    "--no-lead", "never_lead", metavar="N,…", help="Those of the servers whose agents get no right to lead."
)
@click.option(
    "--lock-groups",
    metavar="A,B",
    help="The lock groups that there are; any, unless given.",
)
@click.option(
    "--name",
    "fleet_name",
    default="",
    metavar="FLEET",
    help="For two fleets on one etcd: goes into the names of roles and users, which else would be the same ones.",
)
@click.pass_obj
def etcd_roles(
    call: Call, servers: str | None, never_lead: str | None, lock_groups: str | None, fleet_name: str
) -> int:
    """Print the etcdctl commands for roles and users: a server's agent, leading, operating, FleetLock, reading.

    An agent's credential writes only its own server's keys; one that may lead gets the role `reconciler-leader` too.
    Review them, then pipe them into a shell: `etcdctl` asks for each user's password.
    """
    options = call.options
    keys = Keys(options.prefix, options.lock_prefix)
    if fleet_name and not _NAME.fullmatch(fleet_name):
        raise UsageError(f"cannot use the name {fleet_name!r}: write letters, digits, '.', '_' and '-'")
    fleet = _fleet(servers or str(options.lrn), never_lead, lock_groups)
    lines = list(commands(keys, replace(fleet, name=fleet_name)))
    if options.output == "json":
        from reconciler.cli.compose import print_json

        print_json([shlex.split(line.removesuffix(" || true")) for line in lines if not line.startswith("#")])
    else:
        click.echo("\n".join(lines))
    return 0


def commands(keys: Keys, fleet: Fleet) -> Iterator[str]:
    """The commands, one a line, for `sh`."""
    yield "# Roles. Granting again changes nothing."
    yield from _role(fleet.role("reader"), readable(keys))
    for lrn in fleet.servers:
        yield from _role(fleet.role(f"agent-{lrn}"), agent(keys, lrn, fleet))
    yield from _role(fleet.role("leader"), leader(keys, fleet))
    yield from _role(fleet.role("operator"), operator(keys))
    yield from _role(fleet.role("fleetlock"), fleetlock(keys, fleet))
    yield "# Users. etcdctl asks for each password."
    for lrn in fleet.servers:
        leads = () if lrn in fleet.never_lead else ("leader",)
        yield from _user(fleet, f"agent-{lrn}", "reader", f"agent-{lrn}", *leads)
    yield from _user(fleet, "operator", "reader", "operator")
    yield from _user(fleet, "fleetlock", "fleetlock")
    yield from _user(fleet, "reader", "reader")
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
    ones = [keys.noted, keys.told, keys.pause, *(setting.key for setting in keys.settings)]
    return [("read", key) for key in (*folders, *ones)]


def agent(keys: Keys, lrn: int, fleet: Fleet) -> list[Grant]:
    """What server `lrn`'s agent writes: its own keys, its slot and place in the line, and closing the phase after a failed step."""
    own = [
        keys.server(lrn),
        keys.machine(lrn),
        keys.server_status(lrn),
        keys.installed_on(lrn),
        keys.steps_of(lrn),
        keys.agents_of(lrn),
        keys.phase,
    ]
    machine = fleet.machines.get(lrn)
    for group in _groups(fleet):
        own.append(keys.semaphore(group))
        own.append(keys.holder(group, machine) if machine else keys.holders(group))
        own.append(keys.waiters(group))
    return [("readwrite", key) for key in (*own, *_any_group(keys, fleet))]


def leader(keys: Keys, fleet: Fleet) -> list[Grant]:
    """What a leader writes; an agent with `--no-lead` does not need it."""
    status = [keys.rollout, keys.phase, keys.pins, keys.noted, keys.told]
    written = [keys.election, *status, keys.pause, keys.history]
    written += [keys.semaphore(group) for group in _groups(fleet)]
    return [("readwrite", key) for key in (*written, *_any_group(keys, fleet))]


def operator(keys: Keys) -> list[Grant]:
    """What a person's commands write: `stop`, `recover`, `pause`, `server`, `lock`, `config` and `adopt`."""
    folders = [
        keys.servers,
        keys.machines,
        keys.all_disabled,
        keys.installed,
        keys.all_steps,
        keys.status,
        keys.history,
        keys.lock,
        keys.lock_history,
    ]
    ones = [keys.pause, *(setting.key for setting in keys.settings)]
    return [("readwrite", key) for key in (*folders, *ones)]


def fleetlock(keys: Keys, fleet: Fleet) -> list[Grant]:
    """What FleetLock writes: slots of any machine. It stands in no line, but looks whether somebody does."""
    written = [key for group in _groups(fleet) for key in (keys.semaphore(group), keys.holders(group))]
    return [("read", keys.lock), *(("readwrite", key) for key in (*written, *_any_group(keys, fleet)))]


def _groups(fleet: Fleet) -> tuple[str, ...]:
    return fleet.groups or (DEFAULT_GROUP,)


def _any_group(keys: Keys, fleet: Fleet) -> list[str]:
    """Where the lock groups are not known, all that any of them has."""
    return [] if fleet.groups else [keys.lock_groups]


def _role(name: str, grants: list[Grant]) -> Iterator[str]:
    yield f"etcdctl role add {name} || true"
    for permission, key in grants:
        flag = "--prefix=true " if key.endswith("/") else ""
        yield f"etcdctl role grant-permission {name} {flag}{permission} {shlex.quote(key)}"


def _user(fleet: Fleet, name: str, *roles: str) -> Iterator[str]:
    yield f"etcdctl user add {fleet.user(name)} || true"
    for role in roles:
        yield f"etcdctl user grant-role {fleet.user(name)} {fleet.role(role)}"


def _fleet(servers: str, never_lead: str | None, lock_groups: str | None) -> Fleet:
    machines: dict[int, str] = {}
    numbers = []
    for part in servers.split(","):
        number, _, machine = part.partition("=")
        numbers.append(_number("--servers", number))
        if machine and not _MACHINE_ID.fullmatch(machine):
            raise UsageError(
                f"cannot read --servers: {machine!r} is no machine id; it is what stands in the server's /etc/machine-id"
            )
        if machine:
            machines[numbers[-1]] = machine
    followers = frozenset(_number("--no-lead", part) for part in (never_lead or "").split(",") if part)
    if strangers := sorted(followers - set(numbers)):
        raise UsageError(f"cannot read --no-lead {never_lead}: server {strangers[0]} is none of --servers")
    groups = tuple(group for group in (lock_groups or "").split(",") if group)
    return Fleet(tuple(sorted(set(numbers))), machines, followers, groups)


def _number(option: str, text: str) -> int:
    found = number_in(text.strip())
    if found is None:
        raise UsageError(f"cannot read {option}: {text!r} is no server's number; write it as 0,1,2")
    return found
