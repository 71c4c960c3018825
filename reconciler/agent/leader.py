"""The loop of the one agent that leads: look at the fleet, let `lead` decide, write. Runs in a thread of the agent.

Every write carries the leader's token in its transaction: one that was paused past its lease is refused, and steps down.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import assert_never

from reconciler.agent.follow import Follower
from reconciler.agent.leading import Leading
from reconciler.agent.notify import Notifier, Telling
from reconciler.agent.publisher import Publisher
from reconciler.agent.resolve import Resolver, resolve
from reconciler.agent.telling import standing, still_told
from reconciler.core.artifact import Kind
from reconciler.core.duration import timestamp
from reconciler.core.lead import (
    Finish,
    LeaveOut,
    Open,
    OpenNext,
    Order,
    Seen,
    Stop,
    Wait,
    held_back,
    lead,
    watch,
)
from reconciler.core.pins import wanted_pins
from reconciler.core.report import report
from reconciler.core.state import Desired, Fleet, Now, Rollout, Settings, Unopened
from reconciler.errors import Fenced, ReconcilerError, Unfetchable
from reconciler.store.leading import LeaderWrites

log = logging.getLogger(__name__)

IDLE = 60.0
_LOOP = "leader"
_RETRY = 10.0
_WHY = 2000
"""Characters of why a rollout cannot be opened that are kept: an error may name each artifact."""
_SENDING = 1.0
"""Seconds between two looks while a notification is on its way: once it is sent, that is noted."""
_RESTS, _LONGEST_REST = 2.0, 0.5
"""A large fleet reports all the time: the leader rests for so many times what its look took, so that it does not look all the time."""


class Conductor:
    """Leads while it is elected. `leading` is its place in the line and its writes."""

    def __init__(
        self,
        leading: Leading,
        follower: Follower,
        resolvers: Mapping[Kind, Resolver],
        publisher: Publisher,
        notifier: Notifier,
        alarm_after: Callable[[], float],
        on_lead: Callable[[bool], None] = lambda leads: None,
        configure: Callable[[Settings], None] = lambda settings: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._leading, self._follower, self._resolvers = leading, follower, resolvers
        self._publisher, self._notifier, self._wall = publisher, notifier, wall
        self._alarm_after, self._on_lead, self._configure = alarm_after, on_lead, configure
        self._looked_on: float | None = None
        self._seen = Seen()
        self._token = 0
        self._telling: dict[str, Telling] = {}
        self._rests_until = 0.0

    @property
    def problem(self) -> str | None:
        """Why a rollout could not be opened; None where nothing speaks against it."""
        return self._unopened.why if self._unopened else None

    @property
    def _unopened(self) -> Unopened | None:
        return self._publisher().unopened

    @property
    def _is_telling(self) -> bool:
        return not all(telling.done for telling in self._telling.values())

    def conduct(self) -> float:
        """Look, and give orders until there is nothing to order; the seconds after which to look again."""
        time.sleep(max(0.0, self._rests_until - time.monotonic()))
        while True:
            self._publisher.beat(_LOOP, 3 * IDLE)
            began = time.monotonic()
            with self._publisher.timing(_LOOP):
                pause = self._once()
            if pause is not None:
                ended = time.monotonic()
                self._rests_until = ended + min(_LONGEST_REST, _RESTS * (ended - began))
                return min(pause, _SENDING) if self._is_telling else pause

    def note(self) -> None:
        """Note what has been sent since the last look: the last word of one that will not look again."""
        leader = self._leading.leads() if self._telling else None
        if leader is not None:
            fleet, now = self._leading.fleet(), Now(self._wall(), time.monotonic())
            self._note(self._leading.writes(leader), fleet, self._tell(fleet, now))

    def _once(self) -> float | None:
        leader = self._leading.leads()
        if leader is None:
            if self._token:
                log.warning("leads no more")
                self._on_lead(False)
            self._token, self._seen = 0, Seen()
            self._publisher.update(leads=False, lease_left=self._leading.lease_left, unopened=None)
            self._look_on()
            return IDLE
        if leader.token != self._token:
            log.info("leads, token %d", leader.token)
            self._on_lead(True)
            self._token, self._seen = leader.token, Seen()
        writes = self._leading.writes(leader)
        fleet = self._leading.fleet()
        # Before it acts: the proxy and the token are what it resolves with.
        self._configure(fleet.settings)
        if fleet.neco_at_work:
            # Its updater stands in the same line, and could not lead while this one does.
            self._leading.leave()
        now = Now(self._wall(), time.monotonic())
        desired = self._follower.state.newest
        self._publisher.update(
            leads=True,
            lease_left=self._leading.lease_left,
            fleet=fleet,
            status=report(fleet, desired, now, self._alarm_after()),
        )
        self._seen = watch(self._seen, fleet, now)
        order = lead(desired, fleet, self._seen, now)
        unopened, newest = self._unopened, desired.revision.id if desired else None
        if unopened and (
            unopened.revision != newest or not (isinstance(order, Open) or held_back(fleet, now))
        ):
            self._publisher.update(unopened=None)  # it is not to be opened any more
        try:
            self._note(writes, fleet, self._tell(fleet, now))
            if desired and fleet.noted != desired.revision.id and not fleet.neco_at_work:
                writes.note_revision(fleet.noted, desired.revision.id)
            return self._give(order, writes, desired, fleet)
        except Fenced as error:
            # Something has changed since the look: the next one shows what, and who leads.
            log.info("%s", error)
            return None

    def _look_on(self) -> None:
        """What HTTP shows of the fleet while another one leads: looked at now and then, and not at each of its changes."""
        now = time.monotonic()
        if self._looked_on is None or now - self._looked_on >= IDLE:
            self._looked_on = now
            fleet = self._leading.fleet()
            status = report(fleet, self._follower.state.newest, Now(self._wall(), now), self._alarm_after())
            self._publisher.update(fleet=fleet, status=status)

    def _give(
        self, order: Order, writes: LeaderWrites, desired: Desired | None, fleet: Fleet
    ) -> float | None:
        match order:
            case Wait(reason, seconds):
                log.debug("waits: %s", reason)
                return IDLE if seconds is None else min(max(seconds, 0.05), IDLE)
            case Open(rollout, replaces):
                # While a rollout is under way, the leader's look leaves out what is recorded.
                known = fleet if replaces is None else self._leading.whole()
                return self._open(rollout, writes, desired, fleet, known)
            case OpenNext(rollout, current, wave, phase):
                log.info(
                    "opens %s for wave %d",
                    rollout.phases[phase - 1],
                    wave,
                    extra={"rollout": rollout.id, "revision": rollout.version},
                )
                writes.open_phase(rollout, current, wave, phase)
            case LeaveOut(rollout, servers):
                for lrn, left in servers.items():
                    log.warning("leaves out server %d: %s", lrn, left, extra={"rollout": rollout.id})
                writes.leave_out(replace(rollout, out={**rollout.out, **servers}))
            case Stop(rollout, message):
                log.error("stops the rollout: %s", message, extra={"rollout": rollout.id})
                writes.stop(rollout, message)
            case Finish(rollout, message):
                log.info("finishes the rollout: %s", message, extra={"rollout": rollout.id})
                writes.finish(rollout, message, timestamp(self._wall()))
            case _:
                assert_never(order)
        return None

    def _open(
        self, rollout: Rollout, writes: LeaderWrites, desired: Desired | None, fleet: Fleet, known: Fleet
    ) -> float | None:
        if desired is None:
            return IDLE
        try:
            wanted = wanted_pins(desired, known, rollout.servers)
            pins = resolve(wanted, rollout.version, self._resolvers)
        except ReconcilerError as error:
            before, refused = self._unopened, isinstance(error, Unfetchable)
            was_refused = before is not None and before.revision == rollout.version and before.refused
            unopened = Unopened(rollout.version, str(error)[:_WHY], refused or was_refused)
            self._publisher.update(unopened=unopened)
            self._note(writes, fleet, self._tell(fleet, Now(self._wall(), time.monotonic())))
            if not refused:
                raise  # nothing is wrong with the revision: what is missing is said, and it is tried again
            is_new = before is None or before.why != unopened.why
            log.error("%s", error, extra={"revision": rollout.version, "anew": is_new})
            return _RETRY
        self._publisher.update(unopened=None)
        log.info(
            "opens a rollout on servers %s",
            ", ".join(map(str, rollout.servers)),
            extra={"revision": rollout.version},
        )
        slots = {
            group.reboot.lock_group: group.reboot.slots
            for group in desired.groups
            if group.reboot.slots is not None
        }
        writes.open_rollout(fleet, rollout, pins, slots, timestamp(self._wall()))
        return None

    def _tell(self, fleet: Fleet, now: Now) -> Set[str]:
        """Tell people what stands and they have not been told of; the names of all that stands."""
        events = standing(fleet, self._follower.state, self._unopened, now, self._alarm_after())
        for name in [name for name, telling in self._telling.items() if telling.done]:
            if name in fleet.told.names or name not in events:
                del self._telling[name]
        for name, event in events.items():
            if name not in fleet.told.names and name not in self._telling:
                self._telling[name] = self._notifier.tell(event)
        return events.keys()

    def _note(self, writes: LeaderWrites, fleet: Fleet, current: Set[str]) -> None:
        """Note what has been sent, only then is it told, whoever asks later; and why nothing is opened, for who asks `status`."""
        sent = {name for name, telling in self._telling.items() if telling.done}
        names = still_told(fleet.told.names | sent, current, fleet, self._follower.state)
        told = replace(fleet.told, names=names, unopened=self._unopened)
        if told != fleet.told and not fleet.neco_at_work:
            writes.note_told(told)
