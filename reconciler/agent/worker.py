"""The loop that works for its own server: look, let `advance` decide, act, until there is nothing to do. Runs in a thread of the agent."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import assert_never

from reconciler.agent.drift import described, drifted
from reconciler.agent.fetching import Fetching
from reconciler.agent.follow import Follower
from reconciler.agent.hands import Hands
from reconciler.agent.notify import Event
from reconciler.agent.perform import Done, Failed, LeftOff, Outcome, perform, settle
from reconciler.agent.publisher import Publisher
from reconciler.agent.writing import Writing
from reconciler.core.advance import (
    Fetch,
    Move,
    Perform,
    Report,
    Settle,
    TurnBack,
    Wait,
    advance,
    bring_back,
    is_closing,
    records_of,
)
from reconciler.core.artifact import Key
from reconciler.core.change import Change
from reconciler.core.duration import timestamp
from reconciler.core.interrupted import interrupted
from reconciler.core.plan import Plan, make_bare_plan, make_plan, make_repair, to_look_for
from reconciler.core.state import (
    ABORTED,
    DEFAULT_GROUP,
    PLAN_FORMAT,
    RUNNING,
    Desired,
    Now,
    Rollout,
    Server,
    ServerStatus,
)
from reconciler.core.window import is_open
from reconciler.errors import Fenced, HeldBack, ReconcilerError, Refused
from reconciler.host.policy import check_removal

log = logging.getLogger(__name__)

IDLE = 60.0
"""Seconds after which a pass is made though nothing rang: what a watch would have told is found then."""
STEP_LIMIT = 7200.0
"""Seconds that one step may take before the heartbeat counts as stopped: no probe may kill a dpkg."""
_FETCHES = 4
_SAID = 400
_FENCED_PAUSE, _LONGEST_FENCED_PAUSE = 0.025, 5.0
_LOOP = "worker"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one look at the host before a rollout told: what is there as desired, and which packages that go need which."""

    rollout: str = ""
    as_desired: frozenset[Key] = frozenset()
    users: Mapping[Key, frozenset[Key]] = field(default_factory=dict)


class Worker:
    """One server's work. `read` gives the server as etcd and the host have it now; `at_rest` is called when it begins to wait."""

    def __init__(
        self,
        hands: Hands,
        writing: Writing,
        follower: Follower,
        read: Callable[[], Server],
        publisher: Publisher,
        drift_interval: Callable[[], float] = lambda: 600.0,
        tell: Callable[[Event], object] = lambda event: None,
        wall: Callable[[], float] = time.time,
        may_reboot: bool = True,
        at_rest: Callable[[], None] = lambda: None,
        tell_fetches_every: float = 15.0,
    ) -> None:
        self._may_reboot, self._at_rest = may_reboot, at_rest
        self._drift_interval, self._tell = drift_interval, tell
        self._drift_checked: float | None = None
        self._hands, self._writing, self._follower, self._read = hands, writing, follower, read
        self._publisher, self._wall = publisher, wall
        self._fetching, self._told_every = Fetching(hands.progress), tell_fetches_every
        self._seen = _Seen()
        self._neco_seen: str | None = None
        self._fenced = 0

    def work(self) -> float:
        """Make moves until there is nothing to do; the seconds after which to look again. Raises `ReconcilerError`."""
        while not self._hands.ending.is_set():
            self._publisher.beat(_LOOP, 3 * IDLE)
            with self._publisher.timing(_LOOP):
                pause = self._once()
            if pause is not None:
                return pause
        return 0.0

    def _once(self) -> float | None:
        """One move. The seconds to wait, or None to look again at once."""
        server = self._read()
        if self._stands_back(server):
            return IDLE
        if self._writing.ensure():
            server = self._read()
        desired = self._desired(server)
        if desired is None:
            return IDLE
        if isinstance(desired, ServerStatus):
            newest = self._follower.state.newest
            plan = make_bare_plan(server.lrn, newest.group_of(server.lrn) if newest else DEFAULT_GROUP)
            move = bring_back(plan, server) if newest else None
            if move is None:
                if server.status != desired:
                    self._writing.post(desired, server)
                return IDLE
        else:
            try:
                plan = self._plan(desired, server)
                move = advance(plan, server, Now(self._wall(), time.monotonic()))
            except Refused as error:
                # What it has taken down comes back up, whatever becomes of the revision.
                plan = make_bare_plan(server.lrn, desired.group_of(server.lrn))
                move = bring_back(plan, server)
                if move is None:
                    return self._refuse(server, str(error))
        self._publisher.update(pending=len(plan.changes), reboot_required=server.reboot_required)
        try:
            pause = self._act(move, plan, server)
        except Fenced as error:
            # Somebody was faster: the next look shows what holds now.
            log.info("%s", error, extra={"server": server.lrn})
            self._fenced += 1
            self._writing.check_place()
            longest = min(_FENCED_PAUSE * 2**self._fenced, _LONGEST_FENCED_PAUSE)
            self._hands.ending.wait(longest * random.random())  # noqa: S311 (jitter is no secret)
            return None
        self._fenced = 0
        return pause

    def _stands_back(self, server: Server) -> bool:
        """Where Neco's own programs are at work nothing is written, not even that this agent is there."""
        neco = server.neco_at_work
        if neco != self._neco_seen:
            if neco:
                log.warning(
                    "a Neco updater or worker is at work (%s): nothing is written; stop it, then `reconcile adopt`",
                    neco,
                )
            self._neco_seen = neco
        return neco is not None

    def _act(self, move: Move, plan: Plan, server: Server) -> float | None:
        match move:
            case Wait(reason, _, seconds):
                newer = _is_newer(server.rollout)
                level = logging.WARNING if newer else logging.DEBUG
                log.log(level, "waits: %s", reason, extra={"server": server.lrn})
                self._at_rest()
                self._check_drift(server)
                self._writing.say(
                    reason if newer else self._trouble(), len(self._publisher().drift), server.reboot_required
                )
                longest = min(IDLE, max(1.0, self._drift_interval()))
                return longest if seconds is None else min(max(seconds, 0.05), longest)
            case Report(status):
                return self._report(status, server)
            case Perform(step) if step.phase == "reboot" and not self._may_reboot:
                raise HeldBack(
                    f"server {server.lrn} has to reboot for this revision, and that is its agent's to do: "
                    "start `reconcile agent`, and it goes on from here"
                )
            case Perform():
                outcome = self._perform(move, plan, server)
                if isinstance(outcome, LeftOff) and outcome.queued:
                    self._say_queued(self._read(), outcome.reason)
                return self._performed(outcome)
            case Fetch(steps, rollout):
                outcomes = self._fetch([Perform(step, rollout) for step in steps], plan, server)
                return max((self._performed(outcome) or 0.0 for outcome in outcomes), default=0.0) or None
            case TurnBack(rollout, steps, reason):
                log.info("turns back: %s", reason, extra={"server": server.lrn, "rollout": rollout})
                self._writing.turn_back(server, steps)
                return None
            case Settle(record):
                settle(record, plan, server, self._hands, self._writing)
                return None
            case _:
                assert_never(move)

    def _fetch(self, moves: list[Perform], plan: Plan, server: Server) -> list[Outcome]:
        """Several fetches at once; as long as they take, how far they are is logged and stands in the server's status."""
        self._fetching.begin()
        self._hands.begin_fetching()
        with ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch") as pool:
            begun = {pool.submit(self._perform, move, plan, server): move for move in moves}
            left = wait(begun, self._told_every).not_done
            while left:
                self._say_fetching(
                    self._fetching.text(key for one in left if (key := begun[one].step.subject))
                )
                left = wait(left, self._told_every).not_done
        return [one.result() for one in begun]

    def _say_fetching(self, text: str) -> None:
        try:
            server = self._read()
            log.info("%s", text, extra={"server": server.lrn})
            status, rollout = server.status, server.rollout
            if status and rollout and status.rollout == rollout.id and status.cond == RUNNING:
                self._writing.post(replace(status, message=text), server)
        except ReconcilerError as error:
            log.debug("how far the fetches are is told the next time: %s", error)

    def _perform(self, move: Perform, plan: Plan, server: Server) -> Outcome:
        self._publisher.beat(_LOOP, STEP_LIMIT)
        hands = replace(self._hands, progress=self._fetching.take)
        outcome = perform(move, plan, server, hands, self._writing)
        match outcome:
            case Done(step, seconds):
                self._publisher.step(step.effect, "done", seconds)
            case Failed(step, seconds, _):
                self._publisher.step(step.effect, "failed", seconds)
            case LeftOff():
                pass
            case _:
                assert_never(outcome)
        return outcome

    def _trouble(self) -> str:
        """Why this host does not follow the newest revision, in a few words; empty where it does."""
        state = self._follower.state
        if state.refusal is not None:
            return f"refuses {(state.refused or '?')[:12]}: {_short(state.refusal)}"
        return f"git cannot be read: {_short(state.unavailable)}" if state.unavailable is not None else ""

    def _check_drift(self, server: Server) -> None:
        """Recorded against observed, while no rollout is open and when the last look is long enough ago."""
        now = time.monotonic()
        if _is_open(server):
            self._drift_checked = None
            return
        if self._drift_checked is not None and now - self._drift_checked < self._drift_interval():
            return
        self._drift_checked = now
        self._hands.tidy(server.recorded)
        found = self._drifted(server)
        if found != self._publisher().drift:
            texts = "; ".join(map(described, found))
            log.log(logging.WARNING if found else logging.INFO, "drift: %s", texts or "none any more")
            if found:
                self._tell(Event("drift", f"server {server.lrn} drifted: {texts}", server=server.lrn))
        self._publisher.update(drift=found, drift_checked=now)
        newest = self._follower.state.newest
        if found and newest is not None and newest.policy.drift == "repair" and server.pause is None:
            repaired = self._repair(
                make_repair(server.recorded, found, server.lrn, newest.group_of(server.lrn))
            )
            self._drift_checked = None if repaired else now

    def repair_drift(self) -> tuple[Change, ...]:
        """Put right what drifted now, and say what is left. Raises `HeldBack` under a pause, a rollout, or where another agent is."""
        server = self._read()
        if server.neco_at_work or _is_open(server):
            raise HeldBack("cannot repair now: a rollout is under way, and it looks at the host itself")
        if server.pause is not None:
            raise HeldBack(f"cannot repair now: paused by {server.pause.who}: {server.pause.why}")
        self._writing.ensure()
        newest = self._follower.state.newest
        found = self._drifted(server)
        if found and newest is not None:
            self._repair(make_repair(server.recorded, found, server.lrn, newest.group_of(server.lrn)))
        return self._drifted(self._read())

    def _drifted(self, server: Server) -> tuple[Change, ...]:
        """What differs from what is recorded; but what a step has left half done is the next rollout's."""
        unsettled = interrupted(server)
        found = drifted(server.recorded, self._hands, closely=True)
        return tuple(change for change in found if change.key not in unsettled)

    def _repair(self, plan: Plan) -> bool:
        """Put right what drifted: steps like any other, with their slots, each begun only while no rollout is open. Whether all was."""
        repair, rules = f"repair-{timestamp(self._wall())}", plan.reboot
        for step in plan.steps:
            server = self._read()
            if server.disabled or _is_open(server):
                return False
            if step.effect == "acquire" and not is_open(rules.windows, rules.timezone, self._wall()):
                log.info("a repair waits for the window", extra={"server": server.lrn})
                return False
            move = Perform(step, repair, is_closing(step, plan), repair=True)
            outcome = self._perform(move, plan, server)
            if isinstance(outcome, LeftOff) and step.effect == "acquire":
                self._writing.turn_back(self._read(), (step.id,))
            if not isinstance(outcome, Done):
                return False
        return bool(plan.steps)

    def _say_queued(self, server: Server, reason: str) -> None:
        status = server.status
        if status and server.rollout and status.rollout == server.rollout.id and status.waiting != "slot":
            self._writing.post(replace(status, message=reason, waiting="slot"), server)

    def _performed(self, outcome: Outcome) -> float | None:
        return IDLE if isinstance(outcome, LeftOff) else None

    def _report(self, status: ServerStatus, server: Server) -> float | None:
        """Post a status. Entering a rollout is remembered by this host first: it only goes forward from there."""
        entering = server.status is None or server.status.rollout != status.rollout
        if entering:
            try:
                self._follower.enter(status.version)
            except Refused as error:
                return self._refuse(server, str(error))
        self._writing.post(status, server)
        return None

    def _refuse(self, server: Server, why: str) -> float:
        """Say that this server cannot take part in the rollout, and why."""
        rollout = server.rollout
        if rollout and rollout.unfinished and server.lrn in rollout.servers:
            refusal = _refusal(rollout, server, why)
            if server.status != refusal:
                log.error("cannot take part in the rollout: %s", why, extra={"server": server.lrn})
                self._writing.post(refusal, server)
        return IDLE

    def _desired(self, server: Server) -> Desired | ServerStatus | None:
        """The desired state of the rollout, checked by this host for itself; the newest where there is no rollout."""
        rollout = server.rollout
        newest = self._follower.state.newest
        if rollout is None or (newest and newest.revision.id == rollout.version):
            return newest
        if rollout.outcome is not None and not records_of(server, rollout.id):
            return newest
        try:
            return self._follower.at(rollout.version)
        except Refused as error:
            if rollout.unfinished and server.lrn in rollout.servers:
                return _refusal(rollout, server, str(error))
            return newest

    def _plan(self, desired: Desired, server: Server) -> Plan:
        rollout, seen = server.rollout, self._looked(desired, server)
        plan = make_plan(
            desired,
            server.recorded,
            server.lrn,
            observed=seen.as_desired,
            interrupted=interrupted(server),
            begun=frozenset(records_of(server, rollout.id) if rollout else {}),
            users=seen.users,
            wave=rollout.wave_of(server.lrn) if rollout else 1,
        )
        removals = [change.key for change in plan.changes if change.action == "remove"]
        if forbidden := [text for key in removals for text in check_removal(self._hands.policy, key)]:
            raise Refused(f"cannot plan server {server.lrn}: " + "; ".join(forbidden))
        return plan

    def _looked(self, desired: Desired, server: Server) -> _Seen:
        """What the host shows of what the plan is about: one look for each rollout, and none while no rollout is under way."""
        rollout = server.rollout
        if rollout is None or not rollout.unfinished:
            return _Seen()
        if self._seen.rollout != rollout.id:
            wanted, gone = to_look_for(desired, server.recorded, server.lrn, interrupted(server))
            if not wanted and not gone:
                return _Seen()
            users = self._hands.users(gone) if sum(key.kind == "deb" for key in gone) > 1 else {}
            self._seen = _Seen(rollout.id, self._hands.as_desired(wanted, server.pins), users)
        return self._seen


def _is_newer(rollout: Rollout | None) -> bool:
    """Whether a rollout was opened by a later version, whose plans this one cannot make: it is to be updated."""
    return bool(rollout and rollout.unfinished and (rollout.plan_format or 0) > PLAN_FORMAT)


def _is_open(server: Server) -> bool:
    return server.rollout is not None and server.rollout.unfinished


def _short(text: str) -> str:
    """The first lines of an error, on one line."""
    joined = "; ".join(text.splitlines()[:4])
    return joined if len(joined) <= _SAID else f"{joined[:_SAID]}…"


def _refusal(rollout: Rollout, server: Server, why: str) -> ServerStatus:
    step = server.status.step if server.status and server.status.rollout == rollout.id else 1
    revision = server.status.mod_revision if server.status else 0
    return ServerStatus(rollout.version, rollout.id, step, ABORTED, why, None, revision)
