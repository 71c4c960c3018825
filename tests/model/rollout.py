"""A small fleet in one value: etcd, and of each server what its host has and where its agent stands. Searched by `test_rollout`.

Nothing is decided or written here. `lead`, `make_plan` and `advance` decide, `agent/perform` performs, and `Writing`,
`LeaderWrites`, `RebootLock` and `commit` write: the real ones, over an etcd that is a value. They talk to a `Run`, which
notes what they ask, so that each act can be ended before any of its requests, have a reply lost, or a request held back.
Who was paused goes on by being run again with the answers it had: an act is a function of what it was told.

A trouble costs; a search has so many to spend, and tries each at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, assert_never

from reconciler.agent.hands import Hands
from reconciler.agent.perform import LeftOff, perform, settle
from reconciler.agent.perform.reboot import has_booted
from reconciler.agent.writing import Identity, Writing
from reconciler.core import lead as leader
from reconciler.core import state
from reconciler.core.advance import (
    Fetch,
    Move,
    Perform,
    Report,
    Settle,
    TurnBack,
    Wait,
    advance,
    records_of,
)
from reconciler.core.artifact import Artifact, Image, Key, Known, Pin
from reconciler.core.interrupted import interrupted
from reconciler.core.plan import Plan, make_plan
from reconciler.core.semaphore import Semaphore
from reconciler.core.state import (
    COMPLETE,
    PREFETCH_WAVE,
    Agent,
    Desired,
    Detail,
    Installed,
    Machine,
    Now,
    Rollout,
    Server,
)
from reconciler.errors import Ambiguous, Fenced
from reconciler.host.driver import Host as Where
from reconciler.host.driver import Progress, silent
from reconciler.host.ledger import Ledger
from reconciler.host.policy import EVERYTHING
from reconciler.store.administration import Administration
from reconciler.store.client import Client
from reconciler.store.keys import DEFAULT_GROUP, Keys
from reconciler.store.leading import LeaderWrites
from reconciler.store.lock import RebootLock
from reconciler.store.serving import AgentWrites, Found, recording
from reconciler.store.session import AgentKey, read_leader
from reconciler.store.transaction import (
    Compare,
    Delete,
    Item,
    KeyRange,
    Operation,
    Put,
    Reply,
    Snapshot,
    delete,
    put,
)
from reconciler.store.view import read_fleet, read_server
from reconciler.wire.lock import decode_semaphore, encode_semaphore
from reconciler.wire.records import (
    decode_phase,
    decode_rollout,
    decode_status,
    decode_step,
    encode_agent,
    encode_machine,
)
from tests.model.etcd import Etcd, Txn
from tests.model.search import Broken

KEYS = Keys("/n/", "lock")
WALL = 1_700_000_000.0
AT = "2026-01-01T00:00:00.000000000Z"
_TICK = 1_000

Role = Literal["worker", "leader"]


@dataclass(frozen=True, slots=True)
class Effect:
    """Something that is asked of the host and not of etcd."""

    what: Literal["look", "apply", "boot", "healthy"]
    version: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    ranges: tuple[KeyRange, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer: whether the request was made is not known."""


Request = Txn | Read | Effect
Answer = Reply | Snapshot | str | Lost


@dataclass(frozen=True, slots=True)
class Act:
    """An act that has begun: what was seen when it was decided on, and what was asked and answered since."""

    view: Etcd
    told: tuple[tuple[Request, Answer], ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """One server. `session` and `place` are the create revisions of its agent's key and of its place in the leader's line."""

    has: str
    boot: int = 1
    staged: str = ""
    down: bool = False
    unlocked: bool = False
    """An operator has released its slot: that it is down without one is known, and no broken promise."""
    lies: bool = False
    """What is installed next does not get there, and says that it did."""
    alive: bool = True
    session: int = 0
    place: int = 0
    worker: Act | None = None
    leader: Act | None = None

    def at(self, role: Role) -> Act | None:
        return self.worker if role == "worker" else self.leader

    def with_act(self, role: Role, act: Act | None) -> Host:
        return replace(self, worker=act) if role == "worker" else replace(self, leader=act)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that is under way, from the agent that had this `session` and `place`."""

    lrn: int
    role: Role
    session: int
    place: int
    txn: Txn


@dataclass(frozen=True, slots=True)
class World:
    etcd: Etcd
    hosts: tuple[Host, ...]
    under_way: tuple[Sent, ...] = ()
    troubles: int = 0


class _Dead(BaseException):
    """The agent's process ends here: its host boots."""


class Run(Client):
    """A client that answers from what was told before, then from the world, and notes everything."""

    def __init__(
        self, etcd: Etcd, host: Host, told: Sequence[tuple[Request, Answer]] = (), unguarded: str = ""
    ) -> None:
        self.etcd, self.host = etcd, host
        self._told, self._unguarded = told, unguarded
        self.asked: list[tuple[Request, Answer]] = []

    def read(self, ranges: Sequence[KeyRange], revision: int | None = None) -> Snapshot:
        answer = self.ask(Read(tuple(ranges)))
        assert isinstance(answer, Snapshot)
        return answer

    def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Reply:
        kept = (one for one in compares if not (self._unguarded and one.key.startswith(self._unguarded)))
        answer = self.ask(Txn(tuple(kept), tuple(then), tuple(otherwise)))
        assert isinstance(answer, Reply)
        return answer

    def pause(self, seconds: float) -> None:
        """Time is no part of this."""

    def ask(self, request: Request) -> Answer:
        number = len(self.asked)
        if number < len(self._told):
            known, answer = self._told[number]
            assert known == request, f"not a function of what it was told: {known} and then {request}"
        else:
            self.etcd, self.host, answer = _answer(self.etcd, self.host, request)
        self.asked.append((request, answer))
        if isinstance(answer, Lost):
            raise Ambiguous("no answer came")
        if isinstance(request, Effect) and request.what == "boot":
            raise _Dead
        return answer


def _answer(etcd: Etcd, host: Host, request: Request) -> tuple[Etcd, Host, Answer]:
    match request:
        case Read(ranges):
            return etcd, host, etcd.read(ranges)
        case Txn():
            after, reply = etcd.txn(request)
            return after, host, reply
        case Effect("look"):
            return etcd, host, host.has
        case Effect("apply", version):
            if version.startswith("staged "):
                staged = host.staged if host.lies else version.removeprefix("staged ")
                return etcd, replace(host, staged=staged, lies=False), ""
            has = host.has if host.lies else version
            return etcd, replace(host, has=has, down=True, lies=False), ""
        case Effect("healthy"):
            return etcd, replace(host, down=False), ""
        case Effect("boot"):
            return etcd, _booted(replace(host, down=True)), ""
        case _:
            raise AssertionError(request)


def _booted(host: Host) -> Host:
    """Another boot: what was staged runs, and the agent is gone."""
    runs = host.staged or host.has
    return replace(host, boot=host.boot + 1, has=runs, staged="", alive=False, worker=None, leader=None)


class Driver:
    """The one artifact of this fleet, on the host of a run. The roles `Driver` and `ContainerDriver`."""

    def __init__(self, run: Run, staged: bool) -> None:
        self._run, self._staged = run, staged

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        found = str(self._run.ask(Effect("look")))
        return {artifact.key: found for artifact in artifacts}

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        return artifact.version

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        pass

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        self._run.ask(Effect("apply", f"staged {artifact.version}" if self._staged else artifact.version))

    def remove(self, key: Key) -> None:
        raise AssertionError("nothing is removed here")

    def stop(self, key: Key) -> None:
        raise AssertionError("nothing is stopped here")

    def confirm(self, key: Key) -> None:
        self._run.ask(Effect("healthy"))

    def previous(self, key: Key) -> Image | None:
        return None

    def restore(self, key: Key) -> str | None:
        return None


class _Placed(Writing):
    """The writes of an agent that has its place already."""

    def __init__(self, run: Run, lrn: int, session: int, machine: Machine) -> None:
        super().__init__(run, KEYS, Identity(lrn, f"s{lrn}", f"m{lrn}", True), lambda: WALL, lambda: None)
        self._writes = AgentWrites(run, KEYS, AgentKey(KEYS.agent(lrn, lrn + 1), session, lrn + 1), machine)


@dataclass(frozen=True, eq=False)
class Fleet:
    """What is searched: `servers` servers that have `before`, and a revision that wants `after`."""

    servers: int
    before: Artifact
    desired: Desired
    troubles: frozenset[str]
    unguarded: str = ""
    """A fault to plant: nothing that is compared under these keys counts."""
    reduced: bool = True
    """Whether of acts that cannot be told apart by their order one order is enough."""

    @property
    def after(self) -> Artifact:
        return self.desired.artifacts_of(0)[self.before.key]

    @property
    def staged(self) -> bool:
        return not isinstance(self.before, Image)

    def start(self, troubles: int) -> World:
        etcd = Etcd().write(
            put(KEYS.semaphore(DEFAULT_GROUP), encode_semaphore(Semaphore(1))),
            put(KEYS.noted, self.desired.revision.id),
        )
        hosts = []
        for lrn in range(self.servers):
            detail = Detail(self.before, self.before.version, "", AT)
            installed = recording(
                KEYS, lrn, Found((Installed(self.before.key, self.before.version, detail),))
            )
            machine = put(KEYS.machine(lrn), encode_machine(Machine(lrn, f"m{lrn}")))
            etcd = etcd.write(put(KEYS.server(lrn), ""), machine, *installed)
            hosts.append(Host(self.before.version))
        world = World(etcd, tuple(hosts), troubles=troubles)
        for lrn in range(self.servers):
            world = self._takes_its_place(world, lrn)
        return normal(world)

    def is_end(self, world: World) -> bool:
        """Everything desired is there and recorded, no slot is taken and nobody is down."""
        current = world.etcd.get(KEYS.rollout)
        if current is not None and _rollout(current.value).outcome != "complete":
            return False
        wanted = self.after.version
        return (
            all(
                (host.has, host.alive, host.down, host.worker, host.leader)
                == (wanted, True, False, None, None)
                and _recorded(world.etcd, lrn, self.after.key) == wanted
                for lrn, host in enumerate(world.hosts)
            )
            and not _semaphore(world.etcd).holders
        )

    # --- what can happen --------------------------------------------------------------------------------------------

    def events(self, world: World) -> Iterator[tuple[str, World]]:
        if self.is_end(world) and not world.under_way:
            return
        for name, after in self._happenings(world):
            after = normal(after)
            self.check(after)
            yield name, after

    def _happenings(self, world: World) -> Iterator[tuple[str, World]]:
        alone = self._alone(world)
        if alone is not None:
            yield from self._acts(world, alone, "worker")
            return
        for lrn, host in enumerate(world.hosts):
            if not host.alive:
                yield f"{lrn} starts", self._takes_its_place(_put(world, lrn, replace(host, alive=True)), lrn)
            else:
                yield from self._acts(world, lrn, "worker")
                yield from self._acts(world, lrn, "leader")
                if _session(world.etcd, lrn) != host.session and not host.worker and not host.leader:
                    yield f"{lrn} takes its place anew", self._takes_its_place(world, lrn)
            if (not host.alive or host.worker or host.leader) and _session(world.etcd, lrn):
                gone = world.etcd.write(delete(_agent_key(lrn)), delete(KEYS.candidate(lrn + 1)))
                yield f"{lrn}'s leases run out", replace(world, etcd=gone)
        for number, sent in enumerate(world.under_way):
            rest = world.under_way[:number] + world.under_way[number + 1 :]
            landed, _ = self._made(replace(world, under_way=rest), sent)
            yield f"{sent.lrn}'s request lands", landed
        current = world.etcd.get(KEYS.rollout)
        if current is not None and _rollout(current.value).stop:
            yield "recover", self._by_hand(world, "recover")
        if world.troubles:
            yield from self._troubles(replace(world, troubles=world.troubles - 1))

    def _alone(self, world: World) -> int | None:
        """A server whose act may go first, because whatever else can happen now leads to the same with it or before it.

        That is so where no trouble is left or under way, the leader waits, and the act touches nothing but what is the
        server's own: nobody reads that but the leader, who goes on waiting until this server has done its phase.
        """
        quiet = not world.troubles and not world.under_way and self.reduced
        if not quiet or not all(
            host.alive and not (host.worker or host.leader or host.lies) for host in world.hosts
        ):
            return None
        if any(_session(world.etcd, lrn) != host.session for lrn, host in enumerate(world.hosts)):
            return None
        opened = world.etcd.get(KEYS.phase) is not None
        if not opened or any(self._news(world, lrn, "leader") for lrn in range(self.servers)):
            return None
        for lrn in range(self.servers):
            news = self._news(world, lrn, "worker")
            if news and all(_is_own(request, lrn) for request, _ in news):
                return lrn
        return None

    def _news(self, world: World, lrn: int, role: Role) -> tuple[tuple[Request, Answer], ...]:
        """What an act of this agent would ask, if it changes anything."""
        view = _projection(world.etcd, lrn, role)
        asked = _asked(self, Act(view), view, _bare(world.hosts[lrn]), lrn, role)
        return asked if any(map(_changes, asked)) else ()

    def _troubles(self, world: World) -> Iterator[tuple[str, World]]:
        current = world.etcd.get(KEYS.rollout)
        for lrn, host in enumerate(world.hosts):
            if host.alive and "kill" in self.troubles:
                yield f"{lrn} is killed", _put(world, lrn, _killed(host))
            if "power" in self.troubles:
                yield f"{lrn} loses power", _put(world, lrn, _booted(host))
            if "lie" in self.troubles and not host.lies:
                yield f"{lrn}'s driver will lie", _put(world, lrn, replace(host, lies=True))
        if "release" in self.troubles:
            for machine in _semaphore(world.etcd).holders:
                lrn = int(machine[1:])
                freed = self._by_hand(world, "release", machine)
                yield (
                    f"a person frees {lrn}'s slot",
                    _put(freed, lrn, replace(world.hosts[lrn], unlocked=True)),
                )
        if "stop" in self.troubles and current is not None and _is_going(current.value):
            yield "a person stops the rollout", self._by_hand(world, "stop")

    def _acts(self, world: World, lrn: int, role: Role) -> Iterator[tuple[str, World]]:
        """One act of an agent: as a whole, and ended, paused or with a lost or late request at each of its points."""
        host = world.hosts[lrn]
        act = host.at(role)
        name = f"{lrn} {'goes on' if act else 'works' if role == 'worker' else 'leads'}"
        begun = act or Act(_projection(world.etcd, lrn, role))
        asked = _asked(self, begun, _projection(world.etcd, lrn, role), _bare(host), lrn, role)
        new = asked[len(begun.told) :]
        if act is None and not any(map(_changes, new)):
            return
        now = _put(world, lrn, host.with_act(role, None))
        for number, (request, answer) in enumerate(new):
            here = len(begun.told) + number
            if world.troubles and _changes((request, answer)):
                yield from self._cut_short(now, lrn, role, Act(begun.view, asked[:here]), request, act)
            now, found = self._does(now, lrn, role, request)
            assert found == answer, f"{name} reads what `_belongs` does not name: {_summary(request)}"
        summary = ", ".join(_summary(request) for request, _ in new)
        yield f"{name}: {summary}", now

    def _cut_short(
        self, world: World, lrn: int, role: Role, act: Act, request: Request, resumed: Act | None
    ) -> Iterator[tuple[str, World]]:
        world = replace(world, troubles=world.troubles - 1)
        host, what = world.hosts[lrn], _summary(request)
        if act != resumed and "pause" in self.troubles:
            yield f"{lrn} is paused before {what}", _put(world, lrn, host.with_act(role, act))
        if act.told and "kill" in self.troubles:
            yield f"{lrn} is killed before {what}", _put(world, lrn, _killed(host))
        if not isinstance(request, Txn):
            return
        unsure = replace(act, told=(*act.told, (request, Lost())))
        if "lose" in self.troubles:
            made, _ = self._does(world, lrn, role, request)
            lost = _put(made, lrn, made.hosts[lrn].with_act(role, unsure))
            yield f"{lrn}'s reply is lost: {what}", lost
        if "late" in self.troubles:
            sent = Sent(lrn, role, host.session, host.place, request)
            late = replace(world, under_way=(*world.under_way, sent))
            yield f"{lrn}'s request is late: {what}", _put(late, lrn, host.with_act(role, unsure))
            yield f"{lrn}'s request is late and it is killed: {what}", _put(late, lrn, _killed(host))

    def _takes_its_place(self, world: World, lrn: int) -> World:
        agent = encode_agent(Agent(lrn, f"s{lrn}", f"m{lrn}", f"{lrn + 1:x}"))
        etcd = world.etcd.write(delete(_agent_key(lrn)), delete(KEYS.candidate(lrn + 1)))
        etcd = etcd.write(put(_agent_key(lrn), agent), put(KEYS.candidate(lrn + 1), f"s{lrn}"))
        host = replace(world.hosts[lrn], session=etcd.revision, place=etcd.revision)
        return _put(replace(world, etcd=etcd), lrn, host)

    def _by_hand(self, world: World, what: Literal["stop", "recover", "release"], machine: str = "") -> World:
        run = Run(world.etcd, world.hosts[0])
        match what:
            case "stop":
                Administration(run, KEYS).request_stop("ann")
            case "recover":
                Administration(run, KEYS).recover(AT)
            case "release":
                RebootLock(run, KEYS).release_of(machine, "ann", "to see", AT)
            case _:
                assert_never(what)
        return replace(world, etcd=run.etcd)

    # --- the agents -------------------------------------------------------------------------------------------------

    def work(self, run: Run, view: Etcd, host: Host, lrn: int) -> None:
        """What `Worker` does with one look, from deciding on."""
        server, plan, move = _decided(self, view, lrn, host.boot)
        driver = self.driver(run)
        hands = Hands(
            Where(lrn=lrn), {self.before.key.kind: driver}, driver, _ledger(), EVERYTHING, wall=lambda: WALL
        )
        assert server.machine is not None
        writing = _Placed(run, lrn, host.session, server.machine)
        match move:
            case Wait():
                pass
            case Report(status):
                writing.post(status, server)
            case Perform(step, rollout) if step.effect == "reboot" and not has_booted(
                server.steps.get(step.id), rollout, server
            ):
                writing.begin(step, move, server, "")
                run.ask(Effect("boot"))
            case Perform(step):
                if step.effect == "health" and step.phase == "reboot":
                    run.ask(Effect("healthy"))
                outcome = perform(move, plan, server, hands, writing)
                if isinstance(outcome, LeftOff) and outcome.queued:
                    again = _server(run, lrn, host.boot)
                    if again.status and again.rollout and again.status.waiting != "slot":
                        writing.post(replace(again.status, message="queued", waiting="slot"), again)
            case Fetch(steps, rollout):
                for step in steps:
                    perform(Perform(step, rollout), plan, server, hands, writing)
            case TurnBack(_, steps, _):
                writing.turn_back(server, steps)
            case Settle(record):
                settle(record, plan, server, hands, writing)
            case _:
                assert_never(move)

    def driver(self, run: Run) -> Driver:
        return Driver(run, self.staged)

    def order(self, fleet: state.Fleet, now: Now) -> leader.Order:
        return leader.lead(self.desired, fleet, leader.watch(leader.Seen(), fleet, now), now)

    def lead(self, run: Run, view: Etcd, lrn: int) -> None:
        """What `Conductor` does with one look, from deciding on."""
        seen = Run(view, Host(""))
        first = read_leader(seen, KEYS)
        if first is None or first.key != KEYS.candidate(lrn + 1):
            return
        fleet = read_fleet(seen, KEYS)
        now = Now(WALL + sum(item.key.startswith(KEYS.history) for item in view.items), 0.0)
        writes = LeaderWrites(run, KEYS, first)
        order = self.order(fleet, now)
        match order:
            case leader.Open(rollout):
                writes.open_rollout(fleet, rollout, {}, {}, AT)
            case leader.OpenNext(rollout, current, wave, phase):
                writes.open_phase(rollout, current, wave, phase)
            case leader.LeaveOut(rollout, servers):
                writes.leave_out(replace(rollout, out={**rollout.out, **servers}))
            case leader.Stop(rollout, message):
                writes.stop(rollout, message)
            case leader.Finish(rollout, message):
                writes.finish(rollout, message, AT)
            case leader.Wait():
                pass
            case _:
                assert_never(order)

    # --- the promises -----------------------------------------------------------------------------------------------

    def _does(self, world: World, lrn: int, role: Role, request: Request) -> tuple[World, Answer]:
        """`request`, made now, after it was checked that no promise forbids it."""
        host = world.hosts[lrn]
        if isinstance(request, Txn):
            return self._made(world, Sent(lrn, role, host.session, host.place, request))
        if (
            isinstance(request, Effect)
            and request.what in ("apply", "boot")
            and not request.version.startswith("staged")
        ):
            self._check_slot(world.etcd, lrn, host, f"promise 1: server {lrn} goes down without a slot")
        etcd, host, answer = _answer(world.etcd, host, request)
        return _put(replace(world, etcd=etcd), lrn, host), answer

    def _made(self, world: World, sent: Sent) -> tuple[World, Reply]:
        etcd, reply = world.etcd.txn(sent.txn)
        operations = sent.txn.then if reply.succeeded else sent.txn.otherwise
        for operation in operations:
            if isinstance(operation, Put):
                world = self._check_put(world, sent, operation)
            elif isinstance(operation, Delete):
                self._check_delete(world, sent, operation.keys.key)
        return replace(world, etcd=etcd), reply

    def _check_put(self, world: World, sent: Sent, write: Put) -> World:
        host = world.hosts[sent.lrn]
        if write.key in (KEYS.rollout, KEYS.phase) and sent.role == "leader":
            self._check_leader(world.etcd, sent)
        elif write.key == KEYS.version(sent.lrn, self.before.key):
            if write.value.decode().rpartition("/")[2] != host.has.rpartition("/")[2]:
                raise Broken(
                    f"promise 8: {write.value.decode()} is recorded, and server {sent.lrn} has {host.has}"
                )
        elif write.key.startswith(KEYS.steps_of(sent.lrn)):
            self._check_begin(world.etcd, sent, write)
        elif write.key == KEYS.holder(DEFAULT_GROUP, f"m{sent.lrn}"):
            if write.lease:
                raise Broken("promise 3: a slot that hangs on a lease ends by itself")
            return _put(world, sent.lrn, replace(host, unlocked=False))
        return world

    def _check_delete(self, world: World, sent: Sent, key: str) -> None:
        if key == KEYS.phase and sent.role == "leader":
            self._check_leader(world.etcd, sent)
        for lrn, host in enumerate(world.hosts):
            if key == KEYS.holder(DEFAULT_GROUP, f"m{lrn}") and host.down and not host.unlocked:
                raise Broken(f"promise 3: server {lrn} gives its slot back before it is healthy")

    def _check_leader(self, etcd: Etcd, sent: Sent) -> None:
        line = sorted(
            etcd.range(KeyRange(KEYS.election, KEYS.election[:-1] + "0")),
            key=lambda item: item.create_revision,
        )
        if not line or (line[0].key, line[0].create_revision) != (KEYS.candidate(sent.lrn + 1), sent.place):
            raise Broken(f"promise 2: server {sent.lrn} writes as the leader, and does not lead")

    def _check_begin(self, etcd: Etcd, sent: Sent, write: Put) -> None:
        """Promises 2 and 6, of a step that begins now and brings nobody back up."""
        id = write.key.removeprefix(KEYS.steps_of(sent.lrn))
        record = decode_step(write.value, write.key, id, 0)
        name, _, effect = id.split(":")[:3]
        if record.state != "running" or effect == "release" or (effect == "health" and name != "verify"):
            return
        if _session(etcd, sent.lrn) != sent.session:
            raise Broken(f"promise 2: server {sent.lrn} begins {id} without its lease")
        opened, current = etcd.get(KEYS.phase), etcd.get(KEYS.rollout)
        if opened is None or current is None:
            raise Broken(f"promise 2: server {sent.lrn} begins {id} with nothing open")
        phase = decode_phase(opened.value, opened.key, 0)
        rollout = _rollout(current.value)
        if phase.rollout != record.rollout or rollout.phases[phase.phase - 1] != name:
            raise Broken(
                f"promise 2: server {sent.lrn} begins {id}, and {rollout.phases[phase.phase - 1]} is open"
            )
        if phase.wave == PREFETCH_WAVE:
            return
        for lrn in rollout.servers:
            item = etcd.get(KEYS.server_status(lrn))
            status = decode_status(item.value, item.key, 0) if item else None
            ready = (
                status
                and status.rollout == rollout.id
                and (status.step >= phase.phase or status.cond == COMPLETE)
            )
            if not ready:
                raise Broken(
                    f"promise 6: server {sent.lrn} enters {name}, and {lrn} has not done the phase before"
                )

    def _check_slot(self, etcd: Etcd, lrn: int, host: Host, what: str) -> None:
        if f"m{lrn}" not in _semaphore(etcd).holders and not host.unlocked:
            raise Broken(what)

    def check(self, world: World) -> None:
        semaphore = _semaphore(world.etcd)
        records = {item.key for item in world.etcd.range(KeyRange("lock/holders/", "lock/holders0"))}
        if len(semaphore.holders) > semaphore.max or len(set(semaphore.holders)) != len(semaphore.holders):
            raise Broken(f"promise 1: {semaphore.holders} hold {semaphore.max} slots")
        if records != {KEYS.holder(DEFAULT_GROUP, machine) for machine in semaphore.holders}:
            raise Broken(f"promise 1: the holders are {semaphore.holders}, and the records {sorted(records)}")
        for lrn, host in enumerate(world.hosts):
            if host.down:
                self._check_slot(world.etcd, lrn, host, f"promise 1: server {lrn} is down and holds no slot")


# --- parts ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 17)
def _asked(
    fleet: Fleet, act: Act, etcd: Etcd, host: Host, lrn: int, role: Role
) -> tuple[tuple[Request, Answer], ...]:
    """Everything that an act asks, with what was told already and the rest answered by `etcd` and `host`."""
    run = Run(etcd, host, act.told, fleet.unguarded)
    try:
        if role == "worker":
            fleet.work(run, act.view, host, lrn)
        else:
            fleet.lead(run, act.view, lrn)
    except (Fenced, _Dead):
        pass
    return tuple(run.asked)


@lru_cache(maxsize=1 << 16)
def _decided(fleet: Fleet, view: Etcd, lrn: int, boot: int) -> tuple[Server, Plan, Move]:
    server = _server(Run(view, Host("")), lrn, boot)
    rollout = server.rollout
    begun = frozenset(records_of(server, rollout.id)) if rollout else frozenset[str]()
    plan = make_plan(fleet.desired, server.recorded, lrn, interrupted=interrupted(server), begun=begun)
    return server, plan, advance(plan, server, Now(WALL, 0.0))


@lru_cache(maxsize=1)
def _ledger() -> Ledger:
    nowhere = Path("/nonexistent")
    return Ledger.open(Where(root=nowhere, state_dir=nowhere))


@lru_cache(maxsize=1 << 12)
def _belongs(key: str, lrn: int, role: Role, under_way: bool) -> bool:
    """Whether an agent's look, and what it writes then, depends on `key`."""
    if role == "leader":
        unread = (KEYS.lock, KEYS.agents, *((KEYS.installed, KEYS.all_steps) if under_way else ()))
        return not key.startswith(unread)
    mine = (KEYS.installed_on(lrn), KEYS.steps_of(lrn), KEYS.agents_of(lrn), KEYS.lock)
    one = (
        KEYS.rollout,
        KEYS.phase,
        KEYS.pins,
        KEYS.server(lrn),
        KEYS.machine(lrn),
        KEYS.server_status(lrn),
        KEYS.disabled(lrn),
    )
    return key.startswith(mine) or key in one


def _projection(etcd: Etcd, lrn: int, role: Role) -> Etcd:
    current = etcd.get(KEYS.rollout)
    under_way = current is not None and _rollout(current.value).unfinished
    return Etcd(etcd.revision, tuple(item for item in etcd.items if _belongs(item.key, lrn, role, under_way)))


def _server(client: Client, lrn: int, boot: int) -> Server:
    return read_server(client, KEYS, lrn, f"m{lrn}", f"b{boot}")


@lru_cache(maxsize=1 << 12)
def _decode_semaphore(value: bytes) -> Semaphore:
    return decode_semaphore(value, KEYS.semaphore(DEFAULT_GROUP))


@lru_cache(maxsize=1 << 10)
def _rollout(value: bytes) -> Rollout:
    return decode_rollout(value, KEYS.rollout, 0)


def _is_going(value: bytes) -> bool:
    rollout = _rollout(value)
    return rollout.unfinished and not rollout.stop


def _semaphore(etcd: Etcd) -> Semaphore:
    item = etcd.get(KEYS.semaphore(DEFAULT_GROUP))
    return _decode_semaphore(item.value) if item else Semaphore()


def _recorded(etcd: Etcd, lrn: int, key: Key) -> str:
    item = etcd.get(KEYS.version(lrn, key))
    return item.value.decode() if item else ""


def _agent_key(lrn: int) -> str:
    return KEYS.agent(lrn, lrn + 1)


def _session(etcd: Etcd, lrn: int) -> int:
    item = etcd.get(_agent_key(lrn))
    return item.create_revision if item else 0


def _put(world: World, lrn: int, host: Host) -> World:
    return replace(world, hosts=(*world.hosts[:lrn], host, *world.hosts[lrn + 1 :]))


def _bare(host: Host) -> Host:
    return replace(host, worker=None, leader=None, unlocked=False)


def _killed(host: Host) -> Host:
    return replace(host, alive=False, worker=None, leader=None)


def _changes(asked: tuple[Request, Answer]) -> bool:
    request, _ = asked
    return isinstance(request, Txn) or (isinstance(request, Effect) and request.what != "look")


def _is_own(request: Request, lrn: int) -> bool:
    """Whether `request` changes at most what is the server's own."""
    if isinstance(request, Read):
        return True
    if isinstance(request, Effect):
        return request.what != "boot"
    mine = (KEYS.installed_on(lrn), KEYS.steps_of(lrn))
    written = [
        op.key if isinstance(op, Put) else op.keys.key for op in request.then if isinstance(op, Put | Delete)
    ]
    return all(key.startswith(mine) or key == KEYS.server_status(lrn) for key in written)


def _summary(request: Request) -> str:
    match request:
        case Effect(what, version):
            return f"{what} {version}".rstrip()
        case Txn(_, then):
            first = next((op for op in then if isinstance(op, Put | Delete)), None)
            key = first.key if isinstance(first, Put) else first.keys.key if first else "nothing"
            state = next(
                (
                    s
                    for s in ("running", "done", "failed")
                    if isinstance(first, Put) and f'"{s}"'.encode() in first.value
                ),
                "",
            )
            return f"{'delete' if isinstance(first, Delete) else 'write'} {key} {state}".rstrip()
        case Read():
            return "read"
        case _:
            assert_never(request)


# --- revisions that mean the same -----------------------------------------------------------------------------------


def normal(world: World) -> World:
    """The world with etcd's revisions numbered anew, so that two that differ in nothing else are one.

    Revisions are compared for equality of one key, by order within a server's records and with the rollout's, and by
    order in a line. So each such group keeps its order, and its place among the rollouts' revisions; nothing else is kept.
    """
    if world.under_way:
        world = replace(
            world, under_way=tuple(sent for sent in world.under_way if _may_land(world.etcd, sent.txn))
        )
    numbers = _Numbers()
    _walk(world, numbers, numbers.meet)
    numbers.fix()
    return _walk(world, numbers, numbers.new)


def _may_land(etcd: Etcd, txn: Txn) -> bool:
    """Whether a request that is under way can still change anything: a key that was written since stays so."""
    for compare in txn.compares:
        if (
            compare.end is None
            and compare.target != "value"
            and compare.operand
            and compare.result == "equal"
        ):
            item = etcd.get(compare.key)
            if item is None or not compare.holds(item):
                return False
    return True


class _Numbers:
    def __init__(self) -> None:
        self._groups: dict[str, set[int]] = {}
        self._new: dict[tuple[str, int], int] = {}
        self.end = 0

    def meet(self, key: str, revision: int) -> int:
        if revision > 0:
            self._groups.setdefault(_group(key), set()).add(revision)
        return revision

    def fix(self) -> None:
        ticks = sorted(self._groups.get(KEYS.rollout, ()))
        for group, revisions in self._groups.items():
            rank, last = 0, -1
            for revision in sorted(revisions):
                bucket = sum(tick <= revision for tick in ticks)
                rank = rank + 1 if bucket == last else (0 if group == KEYS.rollout else 1)
                last = bucket
                self._new[(group, revision)] = bucket * _TICK + rank
        self.end = (len(ticks) + 1) * _TICK

    def new(self, key: str, revision: int) -> int:
        return self._new.get((_group(key), revision), revision)


@lru_cache(maxsize=1 << 12)
def _group(key: str) -> str:
    if key.startswith(KEYS.all_steps):
        return key[: key.index("/", len(KEYS.all_steps))]
    for folder in (KEYS.lock, KEYS.election):
        if key.startswith(folder):
            return folder
    return key


def _walk(world: World, numbers: _Numbers, number: Callable[[str, int], int]) -> World:
    """`world` with `number(key, revision)` in the place of each revision of each key."""

    def item(found: Item) -> Item:
        key, value, create, mod, lease = found
        new = number(key, mod)
        return Item(key, value, new if create == mod else number(key, create), new, lease)

    def etcd(found: Etcd, revision: int) -> Etcd:
        return Etcd(revision, tuple(map(item, found.items)))

    def compare(found: Compare) -> Compare:
        if not isinstance(found.operand, int):
            return found
        return replace(found, operand=number(found.key, found.operand))

    def txn(sent: Txn) -> Txn:
        return replace(sent, compares=tuple(map(compare, sent.compares)))

    def told(pair: tuple[Request, Answer]) -> tuple[Request, Answer]:
        request, answer = pair
        match answer:
            case Reply(succeeded, revision, responses) if isinstance(request, Txn):
                key = next((one.key for one in request.then if isinstance(one, Put)), None)
                made = number(key, revision) if succeeded and key else 0
                responses = tuple(tuple(map(item, items)) for items in responses)
                answer = Reply(succeeded, made, responses)
            case Snapshot(_, items):
                answer = Snapshot(0, tuple(tuple(map(item, found)) for found in items))
        return (txn(request) if isinstance(request, Txn) else request, answer)

    def act(begun: Act | None) -> Act | None:
        return begun and Act(etcd(begun.view, 0), tuple(map(told, begun.told)))

    def host(lrn: int, found: Host) -> Host:
        session, place = number(_agent_key(lrn), found.session), number(KEYS.candidate(lrn + 1), found.place)
        return replace(
            found, session=session, place=place, worker=act(found.worker), leader=act(found.leader)
        )

    def sent(found: Sent) -> Sent:
        session = number(_agent_key(found.lrn), found.session)
        place = number(KEYS.candidate(found.lrn + 1), found.place)
        return replace(found, session=session, place=place, txn=txn(found.txn))

    return World(
        etcd(world.etcd, numbers.end),
        tuple(host(lrn, found) for lrn, found in enumerate(world.hosts)),
        tuple(map(sent, world.under_way)),
        world.troubles,
    )
