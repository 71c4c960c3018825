"""What a person writes through the command line: stop, recover, pause, servers, settings, adoption. Called by `cli`.

Each reads what it is about, changes it by compare-and-swap, and tries again where somebody else was faster. Asking
again is success.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reconciler.core.state import Machine, Notice, Rollout
from reconciler.errors import HeldBack, ReconcilerError
from reconciler.store.client import Client
from reconciler.store.commit import Guard, Outcome, commit
from reconciler.store.keys import Keys
from reconciler.store.leading import write_history
from reconciler.store.serving import Found, recording
from reconciler.store.transaction import (
    Delete,
    Item,
    Operation,
    Put,
    delete,
    delete_under,
    mod_is,
    one,
    put,
    unchanged_since,
    under,
    value_is,
)
from reconciler.wire.records import (
    decode_machine,
    decode_notice,
    decode_rollout,
    encode_machine,
    encode_notice,
    encode_rollout,
)

_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Administration:
    """A person's writes."""

    client: Client
    keys: Keys

    # --- the rollout ------------------------------------------------------------------------------------------------

    def request_stop(self, who: str, message: str = "") -> Rollout:
        """Stop the rollout between steps: what runs finishes, and nothing but closing steps begins. Raises `HeldBack` without one."""
        for _ in range(_ATTEMPTS):
            rollout = self._rollout()
            if rollout is None or not rollout.unfinished:
                raise HeldBack("there is no rollout to stop")
            if rollout.stop:
                return rollout
            stopped = replace(rollout, stop=True, stopped_by=who, message=message or rollout.message)
            write = put(self.keys.rollout, encode_rollout(stopped))
            outcome = self._swap(write, rollout.mod_revision, [delete(self.keys.phase)])
            if outcome.made:
                return replace(stopped, mod_revision=outcome.revision)
        raise _crowded("stop the rollout")

    def recover(self, at: str) -> Rollout:
        """Clear a stopped rollout, with its history written, so that the same revision is tried again. `at` is now, RFC 3339."""
        for _ in range(_ATTEMPTS):
            rollout = self._rollout()
            if rollout is None:
                raise HeldBack("there is no rollout to recover from")
            if not rollout.stop:
                raise HeldBack(
                    "cannot clear the rollout: it has not been stopped; `reconcile stop` stops it first"
                )
            message = rollout.message or f"stopped by {rollout.stopped_by or 'somebody'}"
            ended = "failed" if rollout.stopped_by == "leader" else "stopped"
            history = write_history(self.client, self.keys, rollout, ended, message, at)
            gone = delete(self.keys.rollout)
            outcome = self._swap(gone, rollout.mod_revision, [*history, *self._rest_of_status()])
            if outcome.made:
                return rollout
        raise _crowded("clear the rollout")

    def clear_finished(self) -> Rollout | None:
        """Delete `status/` of a rollout that has ended, whose history was written then, so that its revision can be rolled
        out again. The rollout, or None where there is none or it has not ended.
        """
        for _ in range(_ATTEMPTS):
            rollout = self._rollout()
            if rollout is None or rollout.unfinished or rollout.plan_format is None:
                return None
            gone = delete(self.keys.rollout)
            if self._swap(gone, rollout.mod_revision, self._rest_of_status()).made:
                return rollout
        raise _crowded("clear the rollout that has ended")

    def _rest_of_status(self) -> list[Operation]:
        """What goes with a rollout that is cleared. Its pins stay: what some server has of it already, the others are to get
        too, though a tag has been moved meanwhile (promise 16).
        """
        return [delete(self.keys.phase), delete_under(self.keys.server_statuses)]

    def adopt_status(self, at: str) -> Rollout | None:
        """Archive what a stopped Neco left under `status/` into the history, and delete it. None where there is nothing."""
        for _ in range(_ATTEMPTS):
            rollout = self._rollout()
            if rollout is None:
                return None
            if rollout.plan_format is not None:
                raise HeldBack(
                    f"cannot take over {self.keys.rollout}: it is a rollout of this program, not Neco's"
                )
            (workers,) = self.client.read((under(self.keys.neco_workers, keys_only=True),)).items
            if workers:
                raise HeldBack(
                    f"cannot take over the fleet: a Neco worker is at work ({workers[0].key}); stop every one first"
                )
            message = "Neco's last update, when its fleet was taken over"
            history = write_history(self.client, self.keys, rollout, "adopted", message, at)
            gone = delete(self.keys.rollout)
            outcome = self._swap(gone, rollout.mod_revision, [*history, delete_under(self.keys.status)])
            if outcome.made:
                return rollout
        raise _crowded("take over Neco's status")

    def adopt_installed(self, lrn: int, found: Found) -> None:
        """Record what a host has, beside short keys that stand already: they must say the same version, or be absent."""
        for installed in found.installed:
            key = self.keys.version(lrn, installed.key)
            write = put(key, installed.version)
            operations = [
                operation
                for operation in recording(self.keys, lrn, Found((installed,)))
                if installed.detail is not None or not isinstance(operation, Delete)
            ]
            same = Guard(value_is(key, installed.version), "another version is recorded")
            if commit(self.client, [same], operations, witness=write).made:
                continue
            new = Guard(mod_is(key, 0), "another version is recorded")
            if not commit(self.client, [new], operations, witness=write).made:
                raise HeldBack(
                    f"cannot take over {installed.key.subject} of server {lrn}: {key} does not say {installed.version}; "
                    "look at `reconcile drift` on that server"
                )

    # --- pause ------------------------------------------------------------------------------------------------------

    def pause(self, notice: Notice) -> Notice:
        """Hold new rollouts. A pause that stands already is replaced."""
        for _ in range(_ATTEMPTS):
            write = put(self.keys.pause, encode_notice(notice))
            outcome = self._swap(write, self._mod_revision(self.keys.pause))
            if outcome.made:
                return replace(notice, mod_revision=outcome.revision)
        raise _crowded("pause")

    def resume(self) -> Notice | None:
        """Let rollouts open again. The pause that was, or None."""
        for _ in range(_ATTEMPTS):
            item = self._item(self.keys.pause)
            if item is None:
                return None
            was = decode_notice(item.value, item.key, item.mod_revision)
            if self._swap(delete(self.keys.pause), item.mod_revision).made:
                return was
        raise _crowded("resume")

    # --- servers ----------------------------------------------------------------------------------------------------

    def add_server(self, lrn: int, *, replace_machine: bool = False) -> bool:
        """Register a number, or bring a removed one back. With `replace_machine`, for a machine that takes another's place:
        the old one's record goes, and all that `remove_server` deletes. False where nothing was to do.
        """
        replaced = False
        for _ in range(_ATTEMPTS):
            snapshot = self.client.read((one(self.keys.machine(lrn)), one(self.keys.server(lrn))))
            machine = self._machine(lrn, snapshot.items[0])
            there = bool(snapshot.items[1])
            if replace_machine and not replaced and (machine or there):
                # The number is registered anew, and not only written again: a rollout under way sees that it is another server.
                gone = delete(self.keys.machine(lrn))
                revision = machine.mod_revision if machine else 0
                replaced = self._swap(gone, revision, self._deletions(lrn)).made
            elif there and not (machine and machine.removed):
                return replaced
            elif self._bring_back(lrn, machine).made:
                return True
        raise _crowded(f"add server {lrn}")

    def _bring_back(self, lrn: int, machine: Machine | None) -> Outcome:
        server = put(self.keys.server(lrn), "")
        if machine is None:
            guard = Guard(mod_is(self.keys.machine(lrn), 0), "the server has registered itself")
            return commit(self.client, [guard], [server], witness=server)
        write = put(self.keys.machine(lrn), encode_machine(replace(machine, removed=False)))
        return self._swap(write, machine.mod_revision, [server])

    def remove_server(self, lrn: int) -> bool:
        """Take a server out of the fleet, with all that is recorded of it; whose number it was stays known. False where it was not in it."""
        for _ in range(_ATTEMPTS):
            snapshot = self.client.read((one(self.keys.machine(lrn)), one(self.keys.server(lrn))))
            machine = self._machine(lrn, snapshot.items[0])
            there = bool(snapshot.items[1])
            if not there and (machine is None or machine.removed):
                return False
            deletions = self._deletions(lrn)
            if machine is None:
                registered = Guard(mod_is(self.keys.machine(lrn), 0), "the server has registered itself")
                unchanged = Guard(
                    unchanged_since(under(self.keys.servers), snapshot.revision), "it was added again"
                )
                outcome = commit(
                    self.client, [registered, unchanged], deletions, witness=delete(self.keys.server(lrn))
                )
            else:
                write = put(self.keys.machine(lrn), encode_machine(replace(machine, removed=True)))
                outcome = self._swap(write, machine.mod_revision, deletions)
            if outcome.made:
                return True
        raise _crowded(f"remove server {lrn}")

    def _deletions(self, lrn: int) -> list[Operation]:
        return [
            delete(self.keys.server(lrn)),
            delete_under(self.keys.installed_on(lrn)),
            delete_under(self.keys.steps_of(lrn)),
            delete(self.keys.server_status(lrn)),
        ]

    def disable_server(self, lrn: int, notice: Notice) -> None:
        """Leave a server out of rollouts; its records stay. Raises `ReconcilerError` for one that is not in the fleet."""
        if self._item(self.keys.server(lrn)) is None:
            raise ReconcilerError(
                f"cannot disable server {lrn}: it is not registered; see `reconcile server list`"
            )
        for _ in range(_ATTEMPTS):
            write = put(self.keys.disabled(lrn), encode_notice(notice))
            if self._swap(write, self._mod_revision(self.keys.disabled(lrn))).made:
                return
        raise _crowded(f"disable server {lrn}")

    def enable_server(self, lrn: int) -> bool:
        """Let a server into rollouts again. False where it was not disabled."""
        return self._delete(self.keys.disabled(lrn), f"enable server {lrn}")

    # --- settings ---------------------------------------------------------------------------------------------------

    def set_config(self, name: str, text: str) -> None:
        """Write one setting, as it is stored (`wire/settings.stored_setting`)."""
        key = self.keys.setting(name)
        for _ in range(_ATTEMPTS):
            if self._swap(put(key, text), self._mod_revision(key)).made:
                return
        raise _crowded(f"set {name}")

    def unset_config(self, name: str) -> bool:
        """Delete one setting. False where it was not set."""
        return self._delete(self.keys.setting(name), f"unset {name}")

    # --- parts ------------------------------------------------------------------------------------------------------

    def _item(self, key: str) -> Item | None:
        (found,) = self.client.read((one(key),)).items
        return found[0] if found else None

    def _mod_revision(self, key: str) -> int:
        item = self._item(key)
        return item.mod_revision if item else 0

    def _rollout(self) -> Rollout | None:
        item = self._item(self.keys.rollout)
        return decode_rollout(item.value, item.key, item.mod_revision) if item else None

    def _machine(self, lrn: int, found: Sequence[Item]) -> Machine | None:
        return decode_machine(found[0].value, found[0].key, lrn, found[0].mod_revision) if found else None

    def _swap(self, write: Put | Delete, revision: int, also: Sequence[Operation] = ()) -> Outcome:
        """Write or delete one key where its etcd revision is still `revision`, and `also` with it."""
        key = write.key if isinstance(write, Put) else write.keys.key
        guard = Guard(mod_is(key, revision), f"{key} has changed meanwhile")
        return commit(self.client, [guard], [write, *also], witness=write)

    def _delete(self, key: str, what: str) -> bool:
        for _ in range(_ATTEMPTS):
            item = self._item(key)
            if item is None:
                return False
            if self._swap(delete(key), item.mod_revision).made:
                return True
        raise _crowded(what)


def _crowded(what: str) -> HeldBack:
    return HeldBack(f"cannot {what}: others change it at the same time; try again")
