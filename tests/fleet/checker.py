"""Proves promise 1 from etcd's own history: the reboot lock's keys and the step records, etcd revision by etcd revision.

`prove` reads the history of one fleet's keys through a watch from the first etcd revision and hands it to `faults`, which is
pure: what it is given, it judges. It believes nothing that the program under test says of itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.store.client import Client
from reconciler.store.keys import Keys
from reconciler.store.transaction import Event, delete, put, under

_END = "end-of-history"


@dataclass(frozen=True, slots=True)
class Changed:
    """What one etcd revision changed: key → new text, None where it was deleted."""

    revision: int
    keys: Mapping[str, str | None]


@dataclass
class _Group:
    """One lock group as it stands: the document's fields, and the holders' records."""

    max: int = 1
    holders: list[str] = field(default_factory=list)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)


def prove(client: Client, keys: Keys, since: int = 1, planted: Sequence[range] = ()) -> None:
    """Raise an AssertionError that names every etcd revision at which promise 1 was broken, but those at which a test had broken it."""
    found = list(faults(history(client, keys, since), keys, planted))
    assert not found, "\n".join(found)


def history(client: Client, keys: Keys, since: int = 1) -> list[Changed]:
    """Every change of the lock's keys, the step records and the servers' numbers, in order."""
    ranges = [under(keys.lock), under(keys.prefix)]
    ends = [f"{keys.lock}{_END}", f"{keys.prefix}{_END}"]
    # Written last: where both have come, everything before has.
    client.txn([], [put(end, "") for end in ends])
    events: list[Event] = []
    stream = client.open_watch(ranges, [since, since])
    missing = set(ends)
    for reply in stream:
        assert not reply.compacted, "the history was compacted, so it proves nothing"
        events += [event for event in reply.events if event.item.key not in ends]
        missing -= {event.item.key for event in reply.events if not event.deleted}
        if not missing:
            break
    stream.cancel()
    client.txn([], [delete(end) for end in ends])
    changed: dict[int, dict[str, str | None]] = {}
    for event in events:
        text = None if event.deleted else event.item.value.decode()
        changed.setdefault(event.item.mod_revision, {})[event.item.key] = text
    return [Changed(revision, changed[revision]) for revision in sorted(changed)]


def most_down(changes: Iterable[Changed], keys: Keys) -> int:
    """How many servers were down at once: from a container's change or a reboot until health is known to be good.

    It looks at no slot. Every container that changes in `changes` has to have its health looked at after it.
    """
    down: set[tuple[str, str]] = set()
    most = 0
    for change in changes:
        for key, text in change.keys.items():
            if not key.startswith(keys.all_steps) or text is None:
                continue
            lrn, _, id = key.removeprefix(keys.all_steps).partition("/")
            phase, subject, effect = id.split(":")[:3]
            if (phase, effect) in (("containers", "change"), ("reboot", "reboot")):
                down.add((lrn, f"{phase}:{subject}"))
            elif effect == "health" and json.loads(text)["state"] == "done":
                down.discard((lrn, f"{phase}:{subject}"))
        most = max(most, len({lrn for lrn, _ in down}))
    return most


def faults(changes: Iterable[Changed], keys: Keys, planted: Sequence[range] = ()) -> Iterator[str]:
    """What was wrong, as sentences. What is wrong at the etcd revisions of `planted` was put there by a test."""
    for revision, problem in _faults(changes, keys):
        if not any(revision in revisions for revisions in planted):
            yield f"etcd revision {revision}: {problem}"


def _faults(changes: Iterable[Changed], keys: Keys) -> Iterator[tuple[int, str]]:
    """What was wrong, and at which etcd revision."""
    groups: dict[str, _Group] = {}
    machines: dict[str, str] = {}
    steps: dict[tuple[str, str], dict[str, Any]] = {}
    released: set[str] = set()
    for change in changes:
        before = {name: replace(group, records=dict(group.records)) for name, group in groups.items()}
        begun: list[tuple[str, str]] = []
        for key, text in change.keys.items():
            if (place := keys.lock_key(key)) is not None and key.startswith(keys.lock):
                problem = _put_lock(groups.setdefault(place[0], _Group()), place[1], place[2], text)
                if problem:
                    yield change.revision, f"{key}: {problem}"
            elif key.startswith(keys.machines) and text is not None:
                machines[key.removeprefix(keys.machines)] = json.loads(text)["machineID"]
            elif key.startswith(keys.all_steps):
                lrn, _, id = key.removeprefix(keys.all_steps).partition("/")
                if text is None:
                    steps.pop((lrn, id), None)
                else:
                    steps[lrn, id] = json.loads(text)
                    begun.append((lrn, id))
            elif key.startswith(keys.lock_history) and text is not None:
                released.add(json.loads(text)["holder"]["machineID"])
        for name, group in groups.items():
            for problem in _group_faults(
                before.get(name, _Group(max=group.max)), group, frozenset(machines.values())
            ):
                yield change.revision, f"lock group {name}: {problem}"
        # What an operator released excuses a machine until it takes a slot again.
        released -= {
            machine
            for name, group in groups.items()
            for machine in set(group.holders) - set(before[name].holders if name in before else ())
        }
        for lrn, id in begun:
            machine = machines.get(lrn, "")
            if machine not in released and not _holds(machine, lrn, id, steps, groups):
                yield change.revision, f"server {lrn} is in {id} and holds no slot"
        for problem in _given_back(before, groups, machines, steps, released):
            yield change.revision, problem


def _put_lock(group: _Group, part: str, name: str, text: str | None) -> str | None:
    match part:
        case "semaphore" if text is None:
            group.holders = []
            return "the document was deleted"
        case "semaphore":
            try:
                document = json.loads(text or "")
            except ValueError:
                return "it is no JSON"
            group.max, group.holders = document["max"], list(document["holders"] or [])
        case "holders" if text is None:
            group.records.pop(name, None)
        case "holders":
            group.records[name] = json.loads(text or "")
    return None


def _group_faults(before: _Group, now: _Group, ours: frozenset[str]) -> Iterator[str]:
    added = [machine for machine in now.holders if machine not in before.holders]
    if added and len(now.holders) > now.max:
        yield f"{', '.join(added)} was added beyond max {now.max}: {now.holders}"
    if len(set(now.holders)) != len(now.holders):
        yield f"a holder is there twice: {now.holders}"
    for machine in added:
        if machine in ours and machine not in now.records:
            yield f"{machine} was added without a record"
    for machine in now.holders:
        if machine in before.records and machine not in now.records:
            yield f"{machine} has lost its record and is still a holder"
    for machine in now.records:
        if machine not in now.holders:
            yield f"{machine} has a record and is no holder"


def _holds(
    machine: str,
    lrn: str,
    id: str,
    steps: Mapping[tuple[str, str], Mapping[str, Any]],
    groups: Mapping[str, _Group],
) -> bool:
    """Whether the machine holds the slot that its step needs, in the lock group that its chain's `acquire` names.

    A step needs one where it takes its server down, or follows one that did, in a chain that began with `acquire`. A
    reboot always needs one: no fleet here has the strategy `reboot`.
    """
    chain, effect = ":".join(id.split(":")[:2]), id.split(":")[2]
    record, taken = steps[lrn, id], steps.get((lrn, f"{chain}:acquire"))
    down = record["state"] == "running" and effect in ("hook", "warn", "change", "reboot", "health")
    if not down or chain == "verify:host":
        return True
    if taken is None or taken["rollout"] != record["rollout"]:
        return chain != "reboot:host"
    if taken.get("target"):
        return machine in groups.get(taken["target"], _Group()).holders
    return any(machine in group.holders for group in groups.values())


def _given_back(
    before: Mapping[str, _Group],
    groups: Mapping[str, _Group],
    machines: Mapping[str, str],
    steps: Mapping[tuple[str, str], Mapping[str, Any]],
    released: frozenset[str] | set[str],
) -> Iterator[str]:
    """Who gives a slot back must not be down: the chain's health is known to be good, or nothing took the server down."""
    for name, group in groups.items():
        gone = set(before[name].holders if name in before else ()) - set(group.holders)
        for lrn, machine in machines.items():
            if machine not in gone or machine in released:
                continue
            for (server, id), record in steps.items():
                chain, effect = ":".join(id.split(":")[:2]), id.split(":")[2]
                releases = steps.get((lrn, f"{chain}:release"))
                if server != lrn or effect not in ("change", "reboot") or releases is None:
                    continue
                health = steps.get((lrn, f"{chain}:health"))
                mine = releases["rollout"] == record["rollout"] and releases["state"] == "running"
                if mine and (
                    health is None or health["rollout"] != record["rollout"] or health["state"] != "done"
                ):
                    yield f"server {lrn} gave its slot of {name} back after {id} and before it was healthy"
