"""What the leader writes: every write carries its token, so one that leads no more is refused. Called by the agent that leads.

Each function names what it does, compares what it acted on, and raises `Fenced` where that has changed: the leader
then reads again, and steps down if it is the token that failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from reconciler.core.artifact import Pin
from reconciler.core.state import PREFETCH_WAVE, Fleet, Leader, Lock, OpenPhase, Rollout, Told
from reconciler.store.client import Client
from reconciler.store.commit import Guard, commit, require
from reconciler.store.keys import Keys
from reconciler.store.transaction import (
    Operation,
    absent,
    create_is,
    delete,
    mod_is,
    none_under,
    oldest_under,
    put,
    under,
    value_is,
)
from reconciler.wire.lock import encode_semaphore
from reconciler.wire.records import (
    FinishedRollout,
    encode_finished,
    encode_phase,
    encode_pins,
    encode_rollout,
    encode_told,
)

HISTORY = 100
"""Finished rollouts that are kept, and released slots."""

_PRUNED_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class LeaderWrites:
    """The writes of one leader: `leader` is its key in the line, whose create revision is the token."""

    client: Client
    keys: Keys
    leader: Leader

    def note_revision(self, before: str | None, revision: str) -> None:
        """Note the newest valid revision; `before` is the one that stood there."""
        key = self.keys.noted
        compare = absent(key) if before is None else value_is(key, before)
        write = put(key, revision)
        guards = [self._token(), Guard(compare, "another revision has been noted meanwhile")]
        require("note the newest revision", commit(self.client, guards, [write], witness=write))

    def note_told(self, told: Told) -> None:
        """Note what people have been told of, and why no rollout is opened."""
        write = put(self.keys.told, encode_told(told))
        require("note what has been told", commit(self.client, [self._token()], [write], witness=write))

    def open_rollout(
        self, fleet: Fleet, rollout: Rollout, pins: Mapping[str, Pin], slots: Mapping[str, int], at: str
    ) -> Rollout:
        """Open `rollout` in the place of `fleet.rollout`, with its pins, its first phase, and git's `slots` of each lock group.

        One that is unfinished goes into the history as `replaced`. A pause that stands in `fleet` is past its `until`
        and is deleted; a newer one refuses. `at` is now, RFC 3339.
        """
        write = put(self.keys.rollout, encode_rollout(rollout))
        guards = [self._token(), self._rollout_is(fleet.rollout), self._pause_is_over(fleet)]
        operations: list[Operation] = [
            write,
            put(self.keys.phase, encode_phase(OpenPhase(rollout.id, PREFETCH_WAVE, 1))),
            put(self.keys.pins, encode_pins(pins)),
        ]
        if fleet.pause is not None:
            operations.append(delete(self.keys.pause))
        if fleet.rollout is not None and fleet.rollout.unfinished:
            operations += self._history(fleet.rollout, *_given_way(fleet.rollout, rollout), at)
        for group, number in sorted(slots.items()):
            guard, operation = self._slots(group, fleet.locks.get(group, Lock(group)), number)
            guards += guard
            operations += operation
        outcome = commit(self.client, guards, operations, witness=write)
        revision = require("open the rollout", outcome)
        return replace(rollout, mod_revision=revision, opened=revision)

    def open_phase(self, rollout: Rollout, current: OpenPhase, wave: int, phase: int) -> OpenPhase:
        """Open the next phase of `rollout`."""
        opened = replace(current, wave=wave, phase=phase)
        write = put(self.keys.phase, encode_phase(opened))
        closed = f"{rollout.phases[current.phase - 1]} is not open any more: a server closed it after a failed step"
        guards = [
            self._token(),
            Guard(mod_is(self.keys.phase, current.mod_revision), closed),
            self._rollout_is(rollout),
        ]
        outcome = commit(self.client, guards, [write], witness=write)
        return replace(opened, mod_revision=require(f"open {rollout.phases[phase - 1]}", outcome))

    def leave_out(self, rollout: Rollout) -> Rollout:
        """Write `rollout`, whose `out` has grown."""
        write = put(self.keys.rollout, encode_rollout(rollout))
        outcome = commit(self.client, [self._token(), self._rollout_is(rollout)], [write], witness=write)
        return replace(rollout, mod_revision=require("leave servers out of the rollout", outcome))

    def stop(self, rollout: Rollout, message: str) -> Rollout:
        """Stop `rollout` because of failures, and close its phase: no step begins at a later etcd revision."""
        stopped = replace(rollout, stop=True, stopped_by="leader", message=message)
        write = put(self.keys.rollout, encode_rollout(stopped))
        outcome = commit(
            self.client,
            [self._token(), self._rollout_is(rollout)],
            [write, delete(self.keys.phase)],
            witness=write,
        )
        return replace(stopped, mod_revision=require("stop the rollout", outcome))

    def finish(self, rollout: Rollout, message: str, at: str, outcome: str = "complete") -> Rollout:
        """Finish `rollout`: it stays, with its `outcome`, and goes into the history. `at` is now, RFC 3339."""
        finished = replace(rollout, outcome=outcome, message=message, finished_at=at)
        write = put(self.keys.rollout, encode_rollout(finished))
        made = commit(
            self.client,
            [self._token(), self._rollout_is(rollout)],
            [write, delete(self.keys.phase), *self._history(rollout, outcome, message, at)],
            witness=write,
        )
        return replace(finished, mod_revision=require("finish the rollout", made))

    # --- guards and parts -------------------------------------------------------------------------------------------

    def _token(self) -> Guard:
        return Guard(create_is(self.leader.key, self.leader.token), "this server does not lead any more")

    def _rollout_is(self, rollout: Rollout | None) -> Guard:
        revision = rollout.mod_revision if rollout else 0
        return Guard(
            mod_is(self.keys.rollout, revision), "the rollout has changed meanwhile: stopped or replaced"
        )

    def _pause_is_over(self, fleet: Fleet) -> Guard:
        if fleet.pause is None:
            return Guard(absent(self.keys.pause), "new rollouts are paused")
        return Guard(mod_is(self.keys.pause, fleet.pause.mod_revision), "new rollouts have been paused anew")

    def _history(self, rollout: Rollout, outcome: str, message: str, at: str) -> list[Operation]:
        return write_history(self.client, self.keys, rollout, outcome, message, at)

    def _slots(self, group: str, lock: Lock, slots: int) -> tuple[list[Guard], list[Operation]]:
        """Set a lock group's maximum; one that stands already, or a lost document with holders' records, is left alone."""
        if lock.mod_revision and lock.semaphore.max == slots:
            return [], []
        key = self.keys.semaphore(group)
        guards = [
            Guard(mod_is(key, lock.mod_revision), f"the lock group {group} has changed meanwhile"),
        ]
        if not lock.mod_revision:
            holders = none_under(under(self.keys.holders(group)))
            guards.append(
                Guard(holders, f"the semaphore of lock group {group} is missing but it has holders' records")
            )
        return guards, [put(key, encode_semaphore(lock.semaphore.with_max(slots)))]


def _given_way(old: Rollout, new: Rollout) -> tuple[str, str]:
    """How an unfinished rollout ended that a newer one replaces, in a word and a sentence."""
    message = f"gave way to {new.version[:12]}"
    return ("failed", f"{old.message}; {message}") if old.stop else ("replaced", message)


def write_history(
    client: Client, keys: Keys, rollout: Rollout, outcome: str, message: str, at: str
) -> list[Operation]:
    """The operations that put `rollout` into the history and take out what is older than the newest 100, by create revision."""
    finished = FinishedRollout(
        revision=rollout.version,
        servers=rollout.servers,
        failures={lrn: left.text for lrn, left in rollout.out.items()},
        outcome=outcome,
        message=message,
        started=rollout.started_at,
        finished=at,
    )
    write = put(keys.finished(rollout.started_at), encode_finished(finished))
    return [write, *prune(client, keys.history, write.key)]


def prune(client: Client, folder: str, written: str) -> list[Operation]:
    """The deletions that leave 100 keys under `folder`, `written` among them."""
    (found,) = client.read((oldest_under(folder, HISTORY + _PRUNED_AT_ONCE, keys_only=True),)).items
    others = [item.key for item in found if item.key != written]
    return [delete(key) for key in others[: max(0, len(others) - HISTORY + 1)]]
