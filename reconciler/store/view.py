"""What etcd holds, as values, read at one etcd revision. Called by the agent, the command line and the web part.

Each view is one transaction over named ranges and never the whole prefix: other products' secrets lie there. Keys
that nobody of ours wrote are passed over; a value that is not what it must be raises `Corrupt`, which names its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from reconciler.core.artifact import Key
from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import (
    Agent,
    Fleet,
    Installed,
    Leader,
    Lock,
    Notice,
    OpenPhase,
    Recorded,
    Rollout,
    Server,
    ServerStatus,
    Settings,
    StepRecord,
    Told,
    Waiter,
)
from reconciler.errors import Corrupt
from reconciler.store.client import Client
from reconciler.store.keys import DEFAULT_GROUP, Keys, artifact_in, number_in
from reconciler.store.transaction import Item, KeyRange, oldest_under, one, under
from reconciler.wire.document import corrupt
from reconciler.wire.lock import decode_holder, decode_semaphore, decode_waiter
from reconciler.wire.records import (
    FinishedRollout,
    decode_agent,
    decode_detail,
    decode_finished,
    decode_machine,
    decode_notice,
    decode_phase,
    decode_pins,
    decode_rollout,
    decode_status,
    decode_step,
    decode_told,
)
from reconciler.wire.settings import decode_settings


def read_fleet(
    client: Client, keys: Keys, *, recorded: bool = True, steps: bool = True, revision: int | None = None
) -> Fleet:
    """The whole fleet at one etcd revision: the newest, or `revision`.

    Without `recorded` or `steps`, what grows with servers times artifacts stays unread: for those who only want to
    know how far everybody is.
    """
    ranges: dict[str, KeyRange] = {
        "servers": under(keys.servers, keys_only=True),
        "machines": under(keys.machines),
        "disabled": under(keys.all_disabled),
        "noted": one(keys.noted),
        "status": under(keys.status),
        "election": oldest_under(keys.election, 1),
        "agents": under(keys.agents),
        "told": one(keys.told),
        "workers": oldest_under(keys.neco_workers, 1, keys_only=True),
        "pause": one(keys.pause),
        "lock": under(keys.lock),
    }
    if recorded:
        ranges["installed"] = under(keys.installed)
    if steps:
        ranges["steps"] = under(keys.all_steps)
    snapshot = client.read((*ranges.values(), *keys.settings), revision)
    found = dict(zip(ranges, snapshot.items, strict=False))
    status = {item.key: item for item in found["status"]}
    pins = status.get(keys.pins)
    rollout = _rollout(status.get(keys.rollout), pins)
    servers = _by_server(keys.servers, found["servers"])
    return Fleet(
        etcd_revision=snapshot.revision,
        servers=frozenset(servers),
        added={lrn: item.create_revision for lrn, item in servers.items()},
        machines={
            lrn: decode_machine(item.value, item.key, lrn, item.mod_revision)
            for lrn, item in _by_server(keys.machines, found["machines"]).items()
        },
        disabled={
            lrn: decode_notice(item.value, item.key, item.mod_revision)
            for lrn, item in _by_server(keys.all_disabled, found["disabled"]).items()
        },
        noted=_first_text(found["noted"]),
        recorded=_recorded(keys, found.get("installed", ())),
        rollout=rollout,
        phase=_phase(status.get(keys.phase)),
        pins=decode_pins(pins.value, pins.key) if pins else {},
        statuses={
            lrn: _status(item)
            for lrn, item in _by_server(
                keys.server_statuses,
                (item for item in found["status"] if item.key.startswith(keys.server_statuses)),
            ).items()
        },
        steps=_steps(keys, found.get("steps", ())),
        leader=_leader(found["election"]),
        agents=_agents(keys, found["agents"]),
        told=_told(_first(found["told"])),
        pause=_notice(found["pause"]),
        settings=_settings(keys, snapshot.items[len(ranges) :]),
        locks=_locks(keys, found["lock"]),
        neco_at_work=_neco_at_work(keys, rollout, found["workers"]),
    )


def read_server(
    client: Client,
    keys: Keys,
    lrn: int,
    machine_id: str,
    boot_id: str,
    lock_group: str = DEFAULT_GROUP,
    *,
    reboot_required: bool = False,
    revision: int | None = None,
) -> Server:
    """What server `lrn`'s agent acts on. Its cost does not grow with the fleet: so the lock comes without its waiting line."""
    ranges: dict[str, KeyRange] = {
        "server": one(keys.server(lrn)),
        "machine": one(keys.machine(lrn)),
        "disabled": one(keys.disabled(lrn)),
        "installed": under(keys.installed_on(lrn)),
        "rollout": one(keys.rollout),
        "phase": one(keys.phase),
        "pins": one(keys.pins),
        "status": one(keys.server_status(lrn)),
        "steps": under(keys.steps_of(lrn)),
        "workers": oldest_under(keys.neco_workers, 1, keys_only=True),
        "pause": one(keys.pause),
        "semaphore": one(keys.semaphore(lock_group)),
        "holders": under(keys.holders(lock_group)),
    }
    snapshot = client.read((*ranges.values(), *keys.settings), revision)
    found = dict(zip(ranges, snapshot.items, strict=False))
    pins = _first(found["pins"])
    rollout = _rollout(_first(found["rollout"]), pins)
    number, machine, status = _first(found["server"]), _first(found["machine"]), _first(found["status"])
    locks = _locks(keys, (*found["semaphore"], *found["holders"]))
    return Server(
        lrn=lrn,
        machine_id=machine_id,
        boot_id=boot_id,
        etcd_revision=snapshot.revision,
        added=number.create_revision if number else 0,
        machine=decode_machine(machine.value, machine.key, lrn, machine.mod_revision) if machine else None,
        disabled=_notice(found["disabled"]),
        recorded=_recorded(keys, found["installed"]).get(lrn, {}),
        rollout=rollout,
        phase=_phase(_first(found["phase"])),
        pins=decode_pins(pins.value, pins.key) if pins else {},
        status=_status(status) if status else None,
        steps=_steps(keys, found["steps"]).get(lrn, {}),
        lock=locks.get(lock_group, Lock(lock_group)),
        pause=_notice(found["pause"]),
        settings=_settings(keys, snapshot.items[len(ranges) :]),
        reboot_required=reboot_required,
        neco_at_work=_neco_at_work(keys, rollout, found["workers"]),
    )


def read_locks(client: Client, keys: Keys) -> dict[str, Lock]:
    """All lock groups, with their waiting lines, by name; the default group is there though nobody has used it."""
    (found,) = client.read((under(keys.lock),)).items
    return _locks(keys, found)


def read_history(client: Client, keys: Keys) -> tuple[FinishedRollout, ...]:
    """The finished rollouts, newest first."""
    (found,) = client.read((under(keys.history),)).items
    newest_first = sorted(found, key=lambda item: item.create_revision, reverse=True)
    return tuple(decode_finished(item.value, item.key) for item in newest_first)


def read_settings(client: Client, keys: Keys) -> tuple[Settings, Mapping[str, str]]:
    """The fleet's settings, and their texts by name as they are stored."""
    snapshot = client.read(keys.settings)
    items = tuple(item for items in snapshot.items for item in items)
    texts = {item.key.removeprefix(keys.setting("")): _text(item) for item in items}
    return _settings(keys, snapshot.items), texts


# --- parts ----------------------------------------------------------------------------------------------------------


def _first(items: tuple[Item, ...]) -> Item | None:
    return items[0] if items else None


def _text(item: Item) -> str:
    try:
        return item.value.decode()
    except UnicodeDecodeError:
        corrupt(item.key, "it is not UTF-8 text")


def _first_text(items: tuple[Item, ...]) -> str | None:
    return _text(items[0]) if items else None


def _by_server(folder: str, items: Iterable[Item]) -> dict[int, Item]:
    """Keys right under `folder` whose name is a server's number, in numeric order."""
    found = {lrn: item for item in items if (lrn := number_in(item.key[len(folder) :])) is not None}
    return dict(sorted(found.items()))


def _rollout(item: Item | None, pins: Item | None) -> Rollout | None:
    """The rollout. Its pins are written when it is opened and at no other time: that says when it was."""
    if item is None:
        return None
    found = decode_rollout(item.value, item.key, item.mod_revision)
    return replace(found, opened=pins.mod_revision if pins else 0)


def _phase(item: Item | None) -> OpenPhase | None:
    return decode_phase(item.value, item.key, item.mod_revision) if item else None


def _status(item: Item) -> ServerStatus:
    return decode_status(item.value, item.key, item.mod_revision)


def _told(item: Item | None) -> Told:
    """What nobody can read counts as nothing told: a notification must never hold up a rollout."""
    try:
        return decode_told(item.value, item.key) if item else Told()
    except Corrupt:
        return Told()


def _notice(items: tuple[Item, ...]) -> Notice | None:
    return decode_notice(items[0].value, items[0].key, items[0].mod_revision) if items else None


def _leader(items: tuple[Item, ...]) -> Leader | None:
    return Leader(_text(items[0]), items[0].key, items[0].create_revision) if items else None


def _agents(keys: Keys, items: Iterable[Item]) -> tuple[Agent, ...]:
    agents = [
        decode_agent(item.value, item.key, *place, item.create_revision)
        for item in items
        if (place := keys.agent_in(item.key))
    ]
    return tuple(sorted(agents, key=lambda agent: (agent.lrn, agent.create_revision)))


def _neco_at_work(keys: Keys, rollout: Rollout | None, workers: tuple[Item, ...]) -> str | None:
    if rollout is not None and rollout.plan_format is None:
        return keys.rollout
    return workers[0].key if workers else None


def _settings(keys: Keys, found: Iterable[tuple[Item, ...]]) -> Settings:
    folder = keys.setting("")
    texts = {item.key.removeprefix(folder): item.value for items in found for item in items}
    return decode_settings(texts, folder)


# --- install/ and steps/ --------------------------------------------------------------------------------------------


def _recorded(keys: Keys, items: Iterable[Item]) -> dict[int, Recorded]:
    """What is installed, by server. A detail counts only where it has a short key and agrees with it."""
    versions: dict[int, dict[Key, Item]] = {}
    details: dict[tuple[int, Key], Item] = {}
    start = len(keys.installed)
    for item in items:
        number, _, rest = item.key[start:].partition("/")
        place = artifact_in(rest)
        lrn = number_in(number)
        if place is None or lrn is None:
            continue
        artifact, is_detail = place
        if is_detail:
            details[(lrn, artifact)] = item
        else:
            versions.setdefault(lrn, {})[artifact] = item
    return {
        lrn: {
            artifact: _installed(artifact, item, details.get((lrn, artifact)))
            for artifact, item in sorted(found.items())
        }
        for lrn, found in sorted(versions.items())
    }


def _installed(artifact: Key, item: Item, detail_item: Item | None) -> Installed:
    version = _text(item)
    if detail_item is None:
        return Installed(artifact, version)
    detail = decode_detail(detail_item.value, detail_item.key, artifact)
    return Installed(artifact, version, detail if detail.desired.version == version else None)


def _steps(keys: Keys, items: Iterable[Item]) -> dict[int, dict[str, StepRecord]]:
    steps: dict[int, dict[str, StepRecord]] = {}
    start = len(keys.all_steps)
    for item in items:
        number, _, id = item.key[start:].partition("/")
        lrn = number_in(number)
        if lrn is not None and id:
            steps.setdefault(lrn, {})[id] = decode_step(item.value, item.key, id, item.mod_revision)
    return dict(sorted(steps.items()))


# --- the reboot lock ------------------------------------------------------------------------------------------------


def _locks(keys: Keys, items: Iterable[Item]) -> dict[str, Lock]:
    semaphores: dict[str, tuple[Semaphore, int]] = {DEFAULT_GROUP: (Semaphore(), 0)}
    holders: dict[str, list[Holder]] = {}
    waiters: dict[str, list[Waiter]] = {}
    for item in items:
        match keys.lock_key(item.key):
            case (group, "semaphore", _):
                semaphores[group] = decode_semaphore(item.value, item.key), item.mod_revision
            case (group, "holders", _):
                holders.setdefault(group, []).append(decode_holder(item.value, item.key, item.mod_revision))
            case (group, "waiters", _):
                waiter = decode_waiter(item.value, item.key, item.create_revision)
                waiters.setdefault(group, []).append(waiter)
    return {
        group: Lock(
            group,
            semaphore,
            # The document says who holds a slot; a record of somebody else is left over and shows nothing.
            tuple(holder for holder in holders.get(group, ()) if holder.machine_id in semaphore.holders),
            tuple(sorted(waiters.get(group, ()), key=lambda waiter: waiter.create_revision)),
            mod_revision,
        )
        for group, (semaphore, mod_revision) in sorted(semaphores.items())
    }
