"""What an agent writes for its own server. Called by the agent's performer.

Intent is fenced: beginning a step compares the agent's own lease, its number, the open phase and, where the server is
down, its slot. Facts are not: what a step did is recorded in any case, compared with the step's own record only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from reconciler.core.artifact import Key
from reconciler.core.semaphore import Holder
from reconciler.core.state import Agent, Installed, Machine, OpenPhase, Rollout, ServerStatus, StepRecord
from reconciler.errors import HeldBack
from reconciler.store.client import Client
from reconciler.store.commit import Guard, commit, require
from reconciler.store.keys import DEFAULT_GROUP, Keys, number_in
from reconciler.store.session import AgentKey
from reconciler.store.transaction import (
    Operation,
    absent,
    create_is,
    delete,
    mod_is,
    put,
    unchanged_since,
    under,
)
from reconciler.wire.records import (
    decode_machine,
    encode_agent,
    encode_detail,
    encode_machine,
    encode_status,
    encode_step,
)

_REGISTERED_WITHIN = 8
"""Attempts to register while other servers do the same: a fleet's first start."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a step has left on the host: to be recorded as installed, or to be recorded no more."""

    installed: tuple[Installed, ...] = ()
    removed: tuple[Key, ...] = ()


NOTHING = Found()


def register(client: Client, keys: Keys, lrn: int, machine_id: str) -> Machine:
    """Make `lrn` this machine's number, if it is nobody's. Asking again is success.

    Raises `HeldBack` where the number is another machine's, this machine has another number, or it was removed.
    """
    for _ in range(_REGISTERED_WITHIN):
        snapshot = client.read((under(keys.machines), under(keys.servers, keys_only=True)))
        machines = {
            number: decode_machine(item.value, item.key, number, item.mod_revision)
            for item in snapshot.items[0]
            if (number := number_in(item.key.removeprefix(keys.machines))) is not None
        }
        mine = _number_of(machines, lrn, machine_id)
        if mine is not None and any(item.key == keys.server(lrn) for item in snapshot.items[1]):
            return mine
        machine = Machine(lrn, machine_id)
        write = put(keys.machine(lrn), encode_machine(machine))
        guard = unchanged_since(under(keys.machines), snapshot.revision)
        registered = Guard(
            mod_is(keys.machine(lrn), mine.mod_revision if mine else 0),
            f"the number {lrn} was taken meanwhile",
        )
        outcome = commit(
            client,
            [registered, Guard(guard, "another server registered meanwhile")],
            [write, put(keys.server(lrn), "")],
            witness=write,
        )
        if outcome.made:
            return replace(machine, mod_revision=outcome.revision)
    raise HeldBack(
        f"cannot register server {lrn}: too many others register at the same time; it is tried again"
    )


def _number_of(machines: Mapping[int, Machine], lrn: int, machine_id: str) -> Machine | None:
    """This machine's record under `lrn`, None where there is none yet. Two servers never share a number."""
    for other in machines.values():
        if other.machine_id == machine_id and other.lrn != lrn and not other.removed:
            raise HeldBack(
                f"cannot register server {lrn}: this machine ({machine_id}) is server {other.lrn}; "
                f"start it with --lrn {other.lrn}, or run `reconcile server remove {other.lrn}`"
            )
    mine = machines.get(lrn)
    if mine is None:
        return None
    if mine.machine_id != machine_id:
        raise HeldBack(
            f"cannot register server {lrn}: the number belongs to machine {mine.machine_id}, and this is {machine_id}; "
            f"if it was replaced run `reconcile server add {lrn} --replace`"
        )
    if mine.removed:
        raise HeldBack(
            f"server {lrn} was removed from the fleet; `reconcile server add {lrn}` brings it back"
        )
    return mine


@dataclass(frozen=True, slots=True)
class AgentWrites:
    """The writes of one agent: `agent` is its key with its lease, `machine` its number as it was registered."""

    client: Client
    keys: Keys
    agent: AgentKey
    machine: Machine
    lock_group: str = DEFAULT_GROUP

    @property
    def lrn(self) -> int:
        return self.machine.lrn

    def post_status(self, status: ServerStatus) -> ServerStatus:
        """Post how far this server is. `mod_revision` is that of the status that it replaces, 0 for the first."""
        key = self.keys.server_status(self.lrn)
        write = put(key, encode_status(status))
        guards = [self._lease(), Guard(mod_is(key, status.mod_revision), "this server's status has changed")]
        outcome = commit(self.client, guards, [write], witness=write)
        return replace(status, mod_revision=require("post this server's status", outcome))

    def post_agent(self, agent: Agent) -> None:
        """Write anew what this agent's own key says of its server; its create revision, which guards the others, stays."""
        write = put(self.agent.key, encode_agent(agent), self.agent.lease)
        require("say how this server is", commit(self.client, [self._lease()], [write], witness=write))

    # --- intent: fenced ---------------------------------------------------------------------------------------------

    def begin(
        self,
        record: StepRecord,
        phase: OpenPhase,
        *,
        holder: Holder | None = None,
        status: ServerStatus | None = None,
        rollout: Rollout | None = None,
    ) -> StepRecord:
        """Begin a step of the open phase. `record` says `running`, with the `mod_revision` of the record that it replaces (or 0).

        `holder` is this server's slot where the step stands between `acquire` and `release`. `status` is posted with it.
        """
        opened = Guard(mod_is(self.keys.phase, phase.mod_revision), "the phase is not open any more")
        guards = [self._number(), opened, *self._rollout(rollout), *self._slot(holder)]
        return self._begin(record, guards, status)

    def begin_closing(
        self, record: StepRecord, holder: Holder | None, *, status: ServerStatus | None = None
    ) -> StepRecord:
        """Begin a step that brings a server back up: its slot is compared and no phase, so it may begin after a stop."""
        return self._begin(record, self._slot(holder), status)

    def begin_repair(
        self, record: StepRecord, *, holder: Holder | None = None, rollout: Rollout | None = None
    ) -> StepRecord:
        """Begin a repair of drift: only while no rollout is under way and nothing is paused."""
        guards = [
            self._number(),
            Guard(absent(self.keys.phase), "a rollout has begun"),
            Guard(absent(self.keys.pause), "changes are paused"),
            Guard(mod_is(self.keys.rollout, rollout.mod_revision if rollout else 0), "a rollout has begun"),
            *self._slot(holder),
        ]
        return self._begin(record, guards, None)

    def _begin(self, record: StepRecord, guards: Sequence[Guard], status: ServerStatus | None) -> StepRecord:
        write = put(self.keys.step(self.lrn, record.id), encode_step(record))
        operations: list[Operation] = [write]
        if status is not None:
            operations.append(put(self.keys.server_status(self.lrn), encode_status(status)))
        outcome = commit(
            self.client, [self._lease(), self._record(record), *guards], operations, witness=write
        )
        return replace(record, mod_revision=require(f"begin {record.id}", outcome))

    # --- facts: recorded in any case --------------------------------------------------------------------------------

    def complete(self, record: StepRecord, found: Found = NOTHING) -> StepRecord:
        """Record that a step is done (or, with another `state` in `record`, what became of it) and what it left on the host."""
        write = put(self.keys.step(self.lrn, record.id), encode_step(record))
        outcome = commit(self.client, [self._record(record)], [write, *self.recording(found)], witness=write)
        return replace(record, mod_revision=require(f"record {record.id}", outcome))

    settle = complete

    def fail(
        self,
        record: StepRecord,
        found: Found = NOTHING,
        *,
        close: OpenPhase | None = None,
        status: ServerStatus | None = None,
    ) -> StepRecord:
        """Record that a step failed, with the server's `status`. `close`, the phase that it began under, is closed with it:
        no step begins at a later etcd revision. Where another phase is open by now, it stays open.
        """
        write = put(self.keys.step(self.lrn, record.id), encode_step(record))
        operations: list[Operation] = [write, *self.recording(found)]
        if status is not None:
            operations.append(put(self.keys.server_status(self.lrn), encode_status(status)))
        own = self._record(record)
        if close is not None:
            opened = Guard(mod_is(self.keys.phase, close.mod_revision), "another phase is open")
            counted = Guard(absent(self.keys.disabled(self.lrn)), "this server does not count")
            outcome = commit(
                self.client, [own, opened, counted], [*operations, delete(self.keys.phase)], witness=write
            )
            if outcome.made or own in outcome.failed:
                return replace(record, mod_revision=require(f"record {record.id}", outcome))
        outcome = commit(self.client, [own], operations, witness=write)
        return replace(record, mod_revision=require(f"record {record.id}", outcome))

    # --- operations that others join to theirs ----------------------------------------------------------------------

    def recording(self, found: Found) -> list[Operation]:
        """The short key and the detail of what is installed, one key an artifact, and no key of what is removed."""
        return recording(self.keys, self.lrn, found)

    def recorded_as(self, record: StepRecord) -> tuple[list[Guard], list[Operation]]:
        """What joins a step's record to a write of the lock: taking a slot and completing `acquire` are one transaction."""
        return [self._record(record)], [put(self.keys.step(self.lrn, record.id), encode_step(record))]

    def forgetting(self, ids: Iterable[str]) -> list[Operation]:
        """What deletes step records together with giving the slot back, on turning back."""
        return [delete(self.keys.step(self.lrn, id)) for id in ids]

    # --- guards -----------------------------------------------------------------------------------------------------

    @property
    def lease_guard(self) -> Guard:
        return self._lease()

    def _lease(self) -> Guard:
        return Guard(create_is(self.agent.key, self.agent.create_revision), "this agent's lease is gone")

    def _number(self) -> Guard:
        return Guard(
            mod_is(self.keys.machine(self.lrn), self.machine.mod_revision),
            f"server {self.lrn} was removed or registered anew",
        )

    def _record(self, record: StepRecord) -> Guard:
        return Guard(
            mod_is(self.keys.step(self.lrn, record.id), record.mod_revision),
            "the step's record has changed",
        )

    def _rollout(self, rollout: Rollout | None) -> list[Guard]:
        if rollout is None:
            return []
        return [
            Guard(
                mod_is(self.keys.rollout, rollout.mod_revision),
                "the rollout has changed: who is in it is looked at again",
            )
        ]

    def _slot(self, holder: Holder | None) -> list[Guard]:
        if holder is None:
            return []
        key = self.keys.holder(self.lock_group, holder.machine_id)
        return [Guard(mod_is(key, holder.mod_revision), "this server's slot was released")]


def recording(keys: Keys, lrn: int, found: Found) -> list[Operation]:
    """The operations that record `found` for server `lrn`."""
    operations: list[Operation] = []
    for installed in found.installed:
        operations.append(put(keys.version(lrn, installed.key), installed.version))
        if installed.detail is not None:
            operations.append(put(keys.detail(lrn, installed.key), encode_detail(installed.detail)))
        else:
            operations.append(delete(keys.detail(lrn, installed.key)))
    for artifact in found.removed:
        operations += [delete(keys.version(lrn, artifact)), delete(keys.detail(lrn, artifact))]
    return operations
