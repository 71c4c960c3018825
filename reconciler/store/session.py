"""A lease that is kept alive, and what hangs on it: a place in the leader's line, and one agent a server. Called by the agent.

A lease bounds nothing by itself: etcd starts its time anew when its own leader changes, and has revoked one that was
kept alive. So the session counts itself out by its own clock since the last refresh that etcd confirmed, and every
guarded write compares the key that hangs on the lease.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from reconciler.core.state import Agent, Leader
from reconciler.errors import ReconcilerError
from reconciler.store.client import Client
from reconciler.store.commit import Guard, commit
from reconciler.store.keys import Keys
from reconciler.store.transaction import (
    Compare,
    Operation,
    absent,
    create_is,
    delete,
    get,
    mod_is,
    none_under,
    oldest_under,
    put,
    under,
)
from reconciler.wire.records import decode_agent, encode_agent

_random = random.SystemRandom()
_REVOKED_WITHIN = 2.0


def boot_clock() -> float:
    """Seconds of a clock that nobody sets and that goes on while the machine sleeps: a lease does not sleep either."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Session:
    """A lease of `ttl` seconds, refreshed every third of them by a thread until it is lost or closed.

    `on_lost` is called once, from that thread, when the lease is gone or was not confirmed for `ttl` seconds. A
    session that is lost stays lost: make another one.
    """

    def __init__(self, client: Client, ttl: float, on_lost: Callable[[str], None] | None = None) -> None:
        self._client = client
        asked = boot_clock()
        self.lease, self.ttl = client.grant(ttl)
        self._until = asked + self.ttl
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="etcd-lease", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the lease surely still is: not lost, not closed, and confirmed less than its TTL ago."""
        return not self._lost.is_set() and not self._closed.is_set() and self.remaining > 0

    @property
    def remaining(self) -> float:
        """Seconds until the session counts itself out, unless etcd confirms it before."""
        return max(0.0, self._until - boot_clock())

    def close(self) -> None:
        """Give the lease back at once, and with it every key that hangs on it."""
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            self._client.revoke(self.lease, timeout=_REVOKED_WITHIN)
        except ReconcilerError:
            # It ends by itself. Whoever closes a session has nothing better to do about an etcd that is away.
            return
        finally:
            if threading.current_thread() is not self._thread:
                self._thread.join(1)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self) -> None:
        pause = self.ttl / 3
        while not self._closed.wait(min(pause, max(0.0, self.remaining))):
            if self.remaining <= 0:
                return self._lose(f"etcd has not confirmed it for {self.ttl:g} s")
            asked = boot_clock()
            try:
                granted = self._client.refresh(
                    self.lease, timeout=max(0.2, min(self.ttl / 3, self.remaining))
                )
            except ReconcilerError:
                # Its time runs on meanwhile; it is tried again soon, and counted out when that is over.
                pause = self.ttl / 10 * (0.5 + _random.random())
                continue
            if granted <= 0:
                return self._lose("etcd does not know it any more")
            self._until, pause = asked + granted, self.ttl / 3
        return None

    def _lose(self, reason: str) -> None:
        self._lost.set()
        if self._on_lost is not None and not self._closed.is_set():
            self._on_lost(f"the lease {self.lease:x} is lost: {reason}")


class Candidate:
    """A place in the line of those who would lead, by etcd's own recipe: the lowest create revision leads.

    `etcdctl elect <prefix>leader/updater/` stands in the same line.
    """

    def __init__(self, client: Client, keys: Keys, session: Session, host: str) -> None:
        self._client = client
        self._keys = keys
        self._session = session
        self._host = host
        self.key = keys.candidate(session.lease)

    def campaign(self) -> None:
        """Stand in line, at its end; once there, asking again changes nothing. Raises `Fenced` where the lease is gone."""
        write = put(self.key, self._host, self._session.lease)
        there = Guard(absent(self.key), "this server stands in line already")
        commit(self._client, [there], [write], witness=write)

    def leader(self) -> Leader | None:
        """Who is first in line now, and so leads."""
        return read_leader(self._client, self._keys)

    def leads(self) -> Leader | None:
        """This server's own place if it is first and its lease is alive; None if another one leads."""
        leader = self.leader()
        return leader if leader and leader.key == self.key and self._session.alive else None

    def resign(self) -> None:
        """Leave the line. Not being in it is no error."""
        self._client.txn([], [delete(self.key)])


def read_leader(client: Client, keys: Keys) -> Leader | None:
    """Who is first in line."""
    (found,) = client.read((oldest_under(keys.election, 1),)).items
    if not found:
        return None
    return Leader(found[0].value.decode(errors="replace"), found[0].key, found[0].create_revision)


@dataclass(frozen=True, slots=True)
class AgentKey:
    """This agent's own key, whose create revision its writes compare."""

    key: str
    create_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Occupied:
    """Another agent works for this server: wait, and say who it is."""

    agent: Agent


def register_agent(
    client: Client,
    keys: Keys,
    session: Session,
    lrn: int,
    host: str,
    machine_id: str,
    *,
    holds_host_lock: bool = False,
) -> AgentKey | Occupied:
    """Say that this is server `lrn`'s agent, unless another one is.

    Whoever holds the host's lock file knows that its own machine's older agent is dead (`holds_host_lock`): that
    one's key is deleted without waiting for its lease.
    """
    key = keys.agent(lrn, session.lease)
    write = put(key, encode_agent(Agent(lrn, host, machine_id, f"{session.lease:x}")), session.lease)
    folder = under(keys.agents_of(lrn))
    while True:
        snapshot = client.read((folder,))
        others: list[Agent] = []
        for item in snapshot.items[0]:
            if item.key == key:
                return AgentKey(key, item.create_revision, session.lease)
            agent = decode_agent(item.value, item.key, lrn, item.key.rsplit("/", 1)[1], item.create_revision)
            # A machine id alone can be a clone's, whose host has a lock file of its own.
            if not (holds_host_lock and (agent.machine_id, agent.host) == (machine_id, host)):
                others.append(agent)
        if others:
            return Occupied(min(others, key=lambda agent: agent.create_revision))
        if snapshot.items[0]:
            _delete_dead(client, [(item.key, item.mod_revision) for item in snapshot.items[0]])
            continue
        taken = "another agent registered for this server meanwhile"
        guards = [Guard(absent(key), taken), Guard(none_under(folder), taken)]
        outcome = commit(client, guards, [write], witness=write)
        if outcome.made:
            return AgentKey(key, outcome.revision, session.lease)


def _delete_dead(client: Client, dead: list[tuple[str, int]]) -> None:
    """Delete a dead agent's keys. One that changed meanwhile is somebody's, and is looked at again."""
    for key, revision in dead:
        guard = Guard(mod_is(key, revision), "another agent registered for this server meanwhile")
        deletion = delete(key)
        commit(client, [guard], [deletion], witness=deletion)


def is_agent_alive(client: Client, agent: AgentKey, *also: Compare) -> bool:
    """Whether the agent's key is still the one that it made, and `also` holds."""
    looked: list[Operation] = [get(agent.key)]
    return client.txn([create_is(agent.key, agent.create_revision), *also], looked).succeeded
