"""This server's place in etcd (its number, its lease, its slot) and what its worker writes. Called by the worker and the performer.

A thin layer over `store/serving` and `store/lock`: it fills in what a step's record says and which guards go with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from reconciler.agent.hands import Did
from reconciler.core.advance import Perform
from reconciler.core.duration import timestamp
from reconciler.core.plan import Step
from reconciler.core.semaphore import Holder
from reconciler.core.state import ABORTED, Agent, Machine, OpenPhase, Server, ServerStatus, StepRecord, Waiter
from reconciler.errors import Fenced, HeldBack, ReconcilerError, Unavailable
from reconciler.store.client import Client
from reconciler.store.commit import Guard
from reconciler.store.keys import DEFAULT_GROUP, Keys
from reconciler.store.line import Line
from reconciler.store.lock import RebootLock
from reconciler.store.lock_view import Refused, Taken
from reconciler.store.serving import AgentWrites, Found, register
from reconciler.store.session import Occupied, Session, is_agent_alive, register_agent
from reconciler.store.transaction import mod_is

log = logging.getLogger(__name__)

AGENT_TTL = 60.0
"""Seconds without a sign of life after which a server's agent counts as gone."""
_MESSAGE = 4000
_TURN = 600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Which server this is. `holds_host_lock`: no other agent of this machine can be alive."""

    lrn: int
    host: str
    machine_id: str
    holds_host_lock: bool = False


def with_its_slot(read: Callable[[str], Server], lock_group: str) -> Server:
    """The server as `read` says, which is told a lock group: that of the slot which it has begun to take and not given back.

    `lock_group` is where it would take one now. A newer revision may name another group while a slot of the old one is held.
    """
    server = read(lock_group)
    for id, taken in sorted(server.steps.items()):
        if not id.endswith(":acquire") or not taken.target or taken.target == lock_group:
            continue
        given_back = server.steps.get(f"{id.removesuffix('acquire')}release")
        if given_back is None or given_back.rollout != taken.rollout or given_back.state != "done":
            return read(taken.target)
    return server


class Writing:
    """The writes of one server's agent. `ring` wakes the worker when its turn in the lock's line may have come."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        identity: Identity,
        wall: Callable[[], float],
        ring: Callable[[], None],
    ) -> None:
        self._client, self._keys, self._identity = client, keys, identity
        self._wall, self._ring = wall, ring
        self._session: Session | None = None
        self._writes: AgentWrites | None = None
        self._waiting: tuple[str, Waiter, threading.Event] | None = None
        self._said: tuple[str, int, bool] = ("", 0, False)

    def ensure(self) -> bool:
        """Have a lease, this server's number, and be its only agent; whether that had to be written.

        Raises `HeldBack` where another agent is there, or the server was removed.
        """
        if self._writes is not None and self._session is not None and self._session.alive:
            return False
        self.close()
        machine: Machine = register(self._client, self._keys, self._identity.lrn, self._identity.machine_id)
        session = Session(self._client, AGENT_TTL, lambda reason: self._lost(reason))
        who = self._identity
        found = register_agent(
            self._client,
            self._keys,
            session,
            who.lrn,
            who.host,
            who.machine_id,
            holds_host_lock=who.holds_host_lock,
        )
        if isinstance(found, Occupied):
            session.close()
            raise HeldBack(
                f"server {who.lrn} has another agent, on {found.agent.host}: this one waits until that one has ended"
            )
        self._session, self._writes = session, AgentWrites(self._client, self._keys, found, machine)
        self._said = ("", 0, False)
        return True

    def check_place(self) -> None:
        """After a write was refused: where this agent's key is gone, whoever deleted it, it has to take its place anew."""
        if self._writes is not None and not self._has_place(self._writes):
            log.warning("this agent's key is gone: it takes its place anew")
            self.close()

    def _has_place(self, writes: AgentWrites) -> bool:
        return is_agent_alive(
            self._client, writes.agent, mod_is(self._keys.machine(writes.lrn), writes.machine.mod_revision)
        )

    def close(self) -> None:
        """Give the lease back, and with it the place in any line."""
        self._stop_waiting()
        session, self._session, self._writes = self._session, None, None
        if session is not None:
            session.close()

    def say(self, trouble: str, drift: int, reboot_required: bool) -> None:
        """Let the fleet know what only this agent knows of its server; written only where it has changed."""
        said = (trouble, drift, reboot_required)
        if self._writes is None or said == self._said:
            return
        who, key = self._identity, self._writes.agent
        agent = Agent(who.lrn, who.host, who.machine_id, f"{key.lease:x}", key.create_revision, *said)
        self._writes.post_agent(agent)
        self._said = said

    # --- status and steps -------------------------------------------------------------------------------------------

    def post(self, status: ServerStatus, server: Server) -> None:
        revision = server.status.mod_revision if server.status else 0
        self._mine.post_status(replace(status, mod_revision=revision))

    def begin(self, step: Step, move: Perform, server: Server, target: str) -> StepRecord:
        """Begin a step, fenced. Raises `Fenced` where it may not begin."""
        old = server.steps.get(step.id)
        again = old is not None and old.rollout == move.rollout
        record = StepRecord(
            step.id,
            move.rollout,
            "running",
            old.attempt + 1 if old and again else 1,
            server.boot_id,
            target,
            at=timestamp(self._wall()),
            mod_revision=old.mod_revision if old else 0,
            extra=old.extra if old and again else {},
        )
        status = self._progress(step, move, server)
        holder = self._holder(step, move, server)
        mine = replace(self._mine, lock_group=server.lock.group) if server.lock else self._mine
        if move.closing:
            return mine.begin_closing(record, holder, status=status)
        if move.repair:
            return mine.begin_repair(record, holder=holder, rollout=server.rollout)
        if server.phase is None:
            raise Fenced(f"cannot begin {step.id}: no phase is open")
        return mine.begin(record, server.phase, holder=holder, status=status, rollout=server.rollout)

    def complete(self, record: StepRecord, server: Server, did: Did) -> None:
        """Record that a step is done, and what it left on the host."""
        done = replace(record, state="done", message=did.found[:_MESSAGE], at=timestamp(self._wall()))
        self._mine.complete(done, Found(did.installs, did.removals))

    def fail(self, record: StepRecord, server: Server, message: str, did: Did) -> None:
        """Record that a step failed; with it the server's status, and, where nothing may fail, the phase is closed."""
        text = message[:_MESSAGE]
        failed = replace(record, state="failed", message=text, at=timestamp(self._wall()))
        status, close = None, None
        rollout = server.rollout
        if rollout and rollout.unfinished and rollout.id == record.rollout and server.status:
            if server.status.rollout == rollout.id:
                status = replace(server.status, cond=ABORTED, message=f"{record.id}: {text}", waiting=None)
            wave = rollout.wave_of(server.lrn)
            counts = server.lrn not in rollout.out and server.disabled is None
            if wave and counts and rollout.waves[wave - 1].max_failures == 0:
                close = self._open_phase(server)
        self._mine.fail(failed, Found(did.installs, did.removals), close=close, status=status)

    def _progress(self, step: Step, move: Perform, server: Server) -> ServerStatus | None:
        """The server's status with this step in it: the leader's sign that it makes progress."""
        status = server.status
        if status is None or status.rollout != move.rollout or status.cond == ABORTED:
            return None
        return replace(status, message=step.id, waiting=None)

    def _open_phase(self, server: Server) -> OpenPhase | None:
        phase, rollout = server.phase, server.rollout
        return phase if phase and rollout and phase.rollout == rollout.id else None

    def slot_group(self, server: Server, group: str) -> str:
        """The lock group that an *acquire* is for: that of the slot which this server holds already, else `group`."""
        return server.lock.group if server.lock is not None and self._own(server) else group

    # --- the slot ---------------------------------------------------------------------------------------------------

    def take_slot(self, server: Server, group: str, reason: str) -> str | None:
        """Take a slot, or stand in the line: None where it is held, else what is in the way."""
        lock = RebootLock(self._client, self._keys, group)
        holder = Holder(
            server.machine_id,
            "agent",
            server.lrn,
            int(self._wall()),
            server.boot_id,
            reason,
            server.rollout.version if server.rollout else "",
        )
        guards = [self._mine.lease_guard]
        if server.phase is not None:
            opened = mod_is(self._keys.phase, server.phase.mod_revision)
            guards.append(Guard(opened, "the phase is not open any more"))
        waiter = self._waiting[1] if self._waiting and self._waiting[0] == group else None
        try:
            answer = lock.take(holder, waiter, guards=guards)
            if isinstance(answer, Refused) and answer.waits and waiter is None and self._session is not None:
                waiter, _ = lock.enqueue(self._session, holder)
                answer = lock.take(holder, waiter, guards=guards)
        except Fenced:
            self._stop_waiting()
            raise
        if isinstance(answer, Taken):
            self._stop_waiting()
            return None
        if not answer.waits:
            raise HeldBack(answer.reason)
        if waiter is not None:
            self._wait_in_line(group, waiter)
        return answer.reason

    def give_slot_back(self, server: Server) -> str:
        """Give the slot back that this server is seen to hold; its lock group, or nothing where it holds none."""
        lock = RebootLock(self._client, self._keys, server.lock.group if server.lock else DEFAULT_GROUP)
        holder = self._own(server)
        if holder is None:
            self._drop_record(lock, server)
            return ""
        lock.release(holder)
        return lock.group

    def turn_back(self, server: Server, steps: tuple[str, ...]) -> None:
        """Give the slot back and forget the steps from `acquire` on, in one transaction; leave the line."""
        lock = RebootLock(self._client, self._keys, server.lock.group if server.lock else DEFAULT_GROUP)
        self._leave_line()
        holder = self._own(server)
        if holder is None:
            self._drop_record(lock, server)
            holder = Holder(server.machine_id, "agent", server.lrn, mod_revision=-1)
        lock.release(holder, guards=[self._mine.lease_guard], also=self._mine.forgetting(steps))

    def _drop_record(self, lock: RebootLock, server: Server) -> None:
        """Somebody deleted the document, or took this server out of it: the record that stands alone would keep all others waiting."""
        if lock.drop_record(Holder(server.machine_id, "agent", server.lrn)):
            log.warning(
                "the slot of lock group %s was lost: %s was edited or deleted; its record is dropped",
                lock.group,
                lock.key,
            )

    def _own(self, server: Server) -> Holder | None:
        owner = (server.machine_id, "agent", server.lrn)
        held = server.lock.holders if server.lock else ()
        return next((holder for holder in held if holder.owner == owner), None)

    def _holder(self, step: Step, move: Perform, server: Server) -> Holder | None:
        """The slot to compare at a step between `acquire` and `release`; none for a step whose chain has no slot."""
        chain = step.id.rsplit(f":{step.effect}", 1)[0]
        taken = server.steps.get(f"{chain}:acquire")
        if step.effect == "acquire" or taken is None or taken.rollout != move.rollout:
            return None
        holder = self._own(server)
        if holder is None and not move.closing:
            raise Fenced(f"cannot begin {step.id}: this server's slot was released")
        return holder

    # --- the line ---------------------------------------------------------------------------------------------------

    def _wait_in_line(self, group: str, waiter: Waiter) -> None:
        if self._waiting is not None and self._waiting[1].key == waiter.key:
            if not self._waiting[2].is_set():
                return
            self._stop_waiting()
        stop = threading.Event()
        self._waiting = (group, waiter, stop)
        threading.Thread(
            target=self._watch_line, args=(group, waiter, stop), name="lock-line", daemon=True
        ).start()

    def _watch_line(self, group: str, waiter: Waiter, stop: threading.Event) -> None:
        line = Line(RebootLock(self._client, self._keys, group))
        while not stop.is_set():
            try:
                if line.wait_for_turn(waiter, _TURN, stop):
                    self._ring()
                    # The worker tries at once; should it be refused again, it is told again soon.
                    stop.wait(0.2)
            except ReconcilerError as error:
                log.debug("waiting in the line of lock group %s: %s", group, error)
                if not isinstance(error, Unavailable):
                    self._ring()  # the worker meets the same, and says so
                stop.wait(1.0)

    def _leave_line(self) -> None:
        if self._waiting is not None:
            group, waiter, _ = self._waiting
            RebootLock(self._client, self._keys, group).leave(waiter)
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting[2].set()
            self._waiting = None

    def _lost(self, reason: str) -> None:
        log.warning("%s: no step begins until there is a new one", reason)
        self._ring()

    @property
    def _mine(self) -> AgentWrites:
        if self._writes is None:
            raise Fenced("cannot write: this agent has no lease")
        return self._writes
