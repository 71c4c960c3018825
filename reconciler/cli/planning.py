"""The plans of one server or of all, as `--dry-run` shows them and a pass applies them: read once, then decide.

Called by `apply`. Reads git, etcd (or a snapshot) and, for this server, the host; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.cli.here import check_removals, check_revision
from reconciler.cli.options import Options
from reconciler.core.artifact import Key
from reconciler.core.interrupted import interrupted
from reconciler.core.plan import Plan, to_look_for
from reconciler.core.plans import plans_of
from reconciler.core.state import Desired, Fleet, Server
from reconciler.errors import UsageError

_SNAPSHOT_LIMIT = 256 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of a pass."""

    dry_run: bool = False
    detailed_exitcode: bool = False
    server: int | None = None
    all_servers: bool = False
    recorded: str | None = None
    expect: str | None = None
    yes: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """Plans, and what they were made from. `recorded` says in words where the recorded state comes from.

    `asks_for_reboot` is the file by which this host asks for a reboot, where the plan is for it and the file is there.
    """

    desired: Desired
    fleet: Fleet
    plans: tuple[Plan, ...]
    recorded: str
    asks_for_reboot: str | None = None

    @property
    def slots(self) -> dict[str, int]:
        return {group: lock.semaphore.max for group, lock in self.fleet.locks.items()}

    @property
    def changes(self) -> int:
        return sum(len(plan.changes) for plan in self.plans)

    def document(self) -> dict[str, Any]:
        """The plan's JSON; `digest` in it is what `--expect` names."""
        from reconciler.wire.plan import plan_json

        return plan_json(self.plans, self.desired, self.fleet.etcd_revision, self.asks_for_reboot)


def planned(options: Options, asked: Asked) -> Planned:
    """Plan for the servers asked for. Raises `Refused` where the revision, the policy or a plan is not acceptable."""
    from reconciler.cli import compose

    desired = compose.desired(options)
    if _is_here(options, asked):
        check_revision(options, desired)
    fleet, recorded = _recorded(options, asked)
    servers = _servers(options, asked, fleet)
    plans = plans_for(options, asked, desired, fleet, servers)
    if _is_here(options, asked):
        check_removals(options, [change.key for change in plans[0].changes if change.action == "remove"])
    return Planned(desired, fleet, plans, recorded, _sentinel(options, asked))


def plans_for(
    options: Options, asked: Asked, desired: Desired, fleet: Fleet, servers: tuple[int, ...]
) -> tuple[Plan, ...]:
    """A plan a server. On this server itself the host is looked at too, unless the recorded state is a snapshot."""
    if not _is_here(options, asked):
        return plans_of(desired, fleet, servers)
    observed, users = _looked(options, desired, fleet)
    return plans_of(desired, fleet, servers, {options.lrn: observed}, {options.lrn: users})


def _is_here(options: Options, asked: Asked) -> bool:
    """Whether the plan is for this server itself, as it is now."""
    return asked.recorded is None and not asked.all_servers and _one_server(options, asked) == options.lrn


def _sentinel(options: Options, asked: Asked) -> str | None:
    """The file that asks for a reboot, where the plan is for this host and it is there."""
    from reconciler.cli.parts import host
    from reconciler.host.reboot import reboot_required

    if not _is_here(options, asked):
        return None
    file = str(options.reboot_required_file)
    return file if reboot_required(host(options), file) else None


def _unsettled(fleet: Fleet, lrn: int) -> frozenset[Key]:
    """The server's artifacts whose last change was begun and did not end."""
    return interrupted(
        Server(
            lrn,
            "",
            "",
            recorded=fleet.recorded.get(lrn, {}),
            rollout=fleet.rollout,
            steps=fleet.steps.get(lrn, {}),
        ),
    )


def _recorded(options: Options, asked: Asked) -> tuple[Fleet, str]:
    """What is recorded, and where that was read, in words."""
    from reconciler.cli import compose

    if asked.recorded is not None:
        return _snapshot(Path(asked.recorded)), f"snapshot {asked.recorded}"
    wanted = None if asked.all_servers else _one_server(options, asked)
    fleet = compose.fleet(options, server=wanted)
    if fleet is None:
        return Fleet(), f"nothing (no embedded etcd in {options.state_dir} yet)"
    return fleet, f"etcd revision {fleet.etcd_revision}"


def _snapshot(file: Path) -> Fleet:
    from reconciler.wire.records import decode_snapshot

    try:
        with file.open("rb") as stream:
            data = stream.read(_SNAPSHOT_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read the snapshot {file}: {error.strerror}") from None
    if len(data) > _SNAPSHOT_LIMIT:
        raise UsageError(f"cannot read the snapshot {file}: it is larger than {_SNAPSHOT_LIMIT >> 20} MiB")
    recorded = decode_snapshot(data, str(file))
    return Fleet(servers=frozenset(recorded), recorded=recorded)


def _one_server(options: Options, asked: Asked) -> int:
    return options.lrn if asked.server is None else asked.server


def _servers(options: Options, asked: Asked, fleet: Fleet) -> tuple[int, ...]:
    if not asked.all_servers:
        return (_one_server(options, asked),)
    if not fleet.servers:
        where = f"in {asked.recorded}" if asked.recorded else "in etcd"
        raise UsageError(f"cannot plan for all servers: none is registered {where}; --server N plans for one")
    return tuple(sorted(fleet.servers))


def _looked(
    options: Options, desired: Desired, fleet: Fleet
) -> tuple[frozenset[Key], Mapping[Key, frozenset[Key]]]:
    """What this host already has as desired, of what is not recorded so, and which packages that go need which.

    One look a kind, and none where nothing is asked.
    """
    from reconciler.cli import compose

    recorded = fleet.recorded.get(options.lrn, {})
    wanted, gone = to_look_for(desired, recorded, options.lrn, _unsettled(fleet, options.lrn))
    observed = compose.observed_as_desired(options, desired, wanted, fleet.pins)
    return observed, compose.users_among(options, gone)
