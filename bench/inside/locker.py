"""One client of the reboot lock, in a process of its own. Tasks: `slots NUMBER`, `cycles SECONDS`, `floor SECONDS`,
`stand CLIENTS` and then `ring TURNS`, `end`.
"""

from __future__ import annotations

import sys
import time

from bench.inside import Answer, answering
from reconciler.core.semaphore import Holder
from reconciler.errors import ReconcilerError
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.line import Line
from reconciler.store.lock import RebootLock
from reconciler.store.lock_view import Taken
from reconciler.store.transaction import Operation, delete, one, put

PATIENCE = 30.0
"""Seconds that a client has for each slot: what is refused before is a failure."""


class Locker:
    """Takes a slot of one lock group and gives it back, again and again."""

    def __init__(self, endpoint: str, group: str, number: int) -> None:
        self._client, self._keys = Client(EtcdOptions((endpoint,))), Keys()
        self._group, self._number = group, number
        self._holder = Holder(f"{number:032x}", "agent", number, reason="bench")

    def slots(self, number: str) -> Answer:
        RebootLock(self._client, self._keys, self._group).set_max(int(number))
        return {}

    def cycles(self, seconds: str) -> Answer:
        """Take and give back for so long: how often, the longest wait, and the calls that failed though they had time left."""
        done, failed, longest = 0, 0, 0.0
        began = time.monotonic()
        lock, before = RebootLock(self._client, self._keys, self._group), self._client.counts
        with Line(lock) as line:
            while (asked := time.monotonic()) < began + float(seconds):
                try:
                    answer = line.acquire(self._holder, PATIENCE)
                    longest = max(longest, time.monotonic() - asked)
                    if isinstance(answer, Taken) and lock.release(answer.holder):
                        done += 1
                    else:
                        failed += 1
                except ReconcilerError:
                    failed += 1
        return {
            "done": done,
            "failed": failed,
            "longest": longest,
            "seconds": time.monotonic() - began,
            "asked": {name: number - before.get(name, 0) for name, number in self._client.counts.items()},
        }

    def floor(self, seconds: str) -> Answer:
        """Two transactions a cycle that write one key each, and nothing else."""
        done, key = 0, f"/floor/{self._holder.machine_id}"
        written: list[Operation] = [put(key, "x" * 100)]
        began = time.monotonic()
        while time.monotonic() < began + float(seconds):
            self._client.txn([], written)
            self._client.txn([], written)
            done += 1
        return {"done": done, "seconds": time.monotonic() - began}

    def stand(self, clients: str) -> Answer:
        """Take one's place in a ring of so many: from now on it is seen when the one before has had its turn."""
        self._stream = self._client.open_watch((), ())
        self._stream.add(one(_turn_of((self._number - 1) % int(clients))), 0, deletions_only=True)
        self._replies = iter(self._stream)
        next(self._replies)
        return {}

    def ring(self, turns: str) -> Answer:
        """What handing on costs: wait until the one before has deleted its key, write and delete one's own, and nothing else."""
        key = _turn_of(self._number)
        written: list[Operation] = [put(key, "x" * 100)]
        deleted: list[Operation] = [delete(key)]
        began = time.monotonic()
        for turn in range(int(turns)):
            while (self._number or turn) and not next(self._replies).events:  # the first client begins
                pass
            self._client.txn([], written)
            self._client.txn([], deleted)
        self._stream.cancel()
        return {"done": int(turns), "seconds": time.monotonic() - began}

    def end(self) -> Answer:
        self._client.close()
        return {}


def _turn_of(number: int) -> str:
    return f"/ring/{number}"


def main() -> None:
    locker = Locker(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    tasks = (locker.slots, locker.cycles, locker.floor, locker.stand, locker.ring, locker.end)
    answering({task.__name__: task for task in tasks})


if __name__ == "__main__":
    main()
