"""A whole fleet in memory: etcd's keys as values with their guards, hosts that can crash anywhere, and the real `lead` and `advance`.

Every transaction of `store/writes` stands here as a few lines with the same compares. A seed picks one event after the
other among those that can happen now. After every event the promises are checked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from reconciler.core import advance as agent
from reconciler.core import lead as leader
from reconciler.core.advance import advance, is_closing, records_of
from reconciler.core.artifact import OS_IMAGE, Artifact, Key, Known, OsImage
from reconciler.core.interrupted import interrupted
from reconciler.core.plan import Plan, Step, make_plan
from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import (
    ABORTED,
    COMPLETE,
    PREFETCH_WAVE,
    Agent,
    Desired,
    Detail,
    Fleet,
    Installed,
    Lock,
    Machine,
    Notice,
    Now,
    OpenPhase,
    Rollout,
    Server,
    ServerStatus,
    StepRecord,
)
from reconciler.core.window import is_open, next_opening


@dataclass
class Host:
    """What one server really has, and its agent's process: `doing` is the step in flight and how far it has got."""

    boot: int = 1
    has: dict[Key, str] = field(default_factory=dict)
    staged: str | None = None
    older_os: str | None = None
    """The OS before the one that runs: a boot may fall back to it."""
    down: set[str] = field(default_factory=set)
    alive: bool = True
    doing: tuple[agent.Perform, StepRecord, Plan, int] | None = None
    broken: bool = False
    sick: bool = False
    frozen: bool = False
    sentinel: bool = False
    drained: bool = False
    booted_by_chance: bool = False
    """It runs a staged OS that no reboot step has looked at yet."""
    unlocked: bool = False
    """An operator has released its slot while it was down: that is known, and no broken promise."""
    pending: tuple[agent.Move, Server, Plan, Now] | None = None


class Broken(AssertionError):
    """A promise does not hold."""


class Model:
    def __init__(self, revisions: list[Desired], servers: int, slots: int = 1) -> None:
        self.revisions = revisions
        self.newest = 0
        self.clock = 0.0
        self.revision = 1
        self.fleet = Fleet(servers=frozenset(range(servers)))
        self.hosts = {lrn: Host() for lrn in range(servers)}
        self.steps: dict[int, dict[str, StepRecord]] = {lrn: {} for lrn in range(servers)}
        self.recorded: dict[int, dict[Key, Installed]] = {lrn: {} for lrn in range(servers)}
        self.semaphore = Semaphore(slots)
        self.holders: dict[str, Holder] = {}
        self.seen: dict[int, leader.Seen] = {}
        self.leading = 0
        self.token = 1
        self.orders: dict[int, tuple[leader.Order, int]] = {}
        self.done_in: dict[tuple[int, str, str], int] = {}
        self.failed_at: dict[str, int] = {}
        self.log: list[str] = []
        self.falls = 0
        """So many reboots still bring the OS of before."""

    # --- views ------------------------------------------------------------------------------------------------------

    def bump(self) -> int:
        self.revision += 1
        return self.revision

    def view(self) -> Fleet:
        alive = [lrn for lrn, host in self.hosts.items() if host.alive and not host.frozen]
        return replace(
            self.fleet,
            recorded={k: dict(v) for k, v in self.recorded.items()},
            steps=self.copied(),
            agents=tuple(Agent(lrn, f"s{lrn}", f"m{lrn}", "1") for lrn in alive),
        )

    def copied(self) -> dict[int, dict[str, StepRecord]]:
        return {lrn: dict(steps) for lrn, steps in self.steps.items()}

    def server(self, lrn: int) -> Server:
        host = self.hosts[lrn]
        return Server(
            lrn=lrn,
            machine_id=f"m{lrn}",
            boot_id=f"b{host.boot}",
            etcd_revision=self.revision,
            added=self.fleet.added.get(lrn, 0),
            machine=Machine(lrn, f"m{lrn}", removed=lrn not in self.fleet.servers),
            disabled=self.fleet.disabled.get(lrn),
            recorded=dict(self.recorded[lrn]),
            rollout=self.fleet.rollout,
            phase=self.fleet.phase,
            status=self.fleet.statuses.get(lrn),
            steps=dict(self.steps[lrn]),
            lock=Lock("default", self.semaphore, tuple(self.holders.values())),
            reboot_required=host.sentinel,
        )

    def now(self) -> Now:
        return Now(1_700_000_000 + self.clock, self.clock)

    def desired_at(self, version: str) -> Desired:
        return next(desired for desired in self.revisions if desired.revision.id == version)

    # --- events -----------------------------------------------------------------------------------------------------

    def events(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for lrn, host in self.hosts.items():
            if host.frozen:
                continue
            if not host.alive:
                found.append(partial(self.restart, lrn))
                continue
            if host.doing:
                found.append(partial(self.work, lrn))
            elif host.pending:
                found.append(partial(self.act, lrn))
            else:
                found.append(partial(self.look, lrn))
        if self.hosts[self.leading].alive and not self.hosts[self.leading].frozen:
            found.append(lambda: self.lead_look(self.leading))
        found += [partial(self.lead_act, lrn) for lrn in self.orders if not self.hosts[lrn].frozen]
        return found or [self.thaw]

    def troubles(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = [self.elect, self.push, self.stop, self.recover]
        found += [self.tick, self.night, self.operator_releases, self.thaw]
        for lrn, host in self.hosts.items():
            found += [partial(self.kill, lrn), partial(self.power_cut, lrn)]
            found += [partial(self.breaks, lrn), partial(self.disable, lrn), partial(self.falls_sick, lrn)]
            found += [
                partial(self.freeze, lrn),
                partial(self.asks_for_reboot, lrn),
                partial(self.remove, lrn),
                partial(self.comes_again, lrn),
            ]
            if not host.alive:
                found.append(partial(self.restart, lrn))
        found.append(self.add)
        return found

    def run(self, seed: int, events: int, trouble: float) -> None:
        """`events` random events, with `trouble` between them now and then; then all is well, and the newest revision is reached."""
        chance = random.Random(seed)
        for _ in range(events):
            if chance.random() < trouble:
                chance.choice(self.troubles())()
                self.check()
            chance.choice(self.events())()
            self.check()
        self.newest, self.falls = len(self.revisions) - 1, 0
        self.come_to_an_end()

    def come_to_an_end(self) -> None:
        for host in self.hosts.values():
            host.broken = host.sick = host.frozen = False
        self.fleet = replace(self.fleet, disabled={})
        if self.fleet.rollout and self.fleet.rollout.stop and self.fleet.rollout.unfinished:
            self.recover()
        quiet = rounds = 0
        while quiet < 3:
            rounds += 1
            if rounds > 60:
                raise Broken("the fleet comes to no end")
            before = self.signature()
            for _ in range(12):
                for lrn, host in self.hosts.items():
                    if not host.alive:
                        self.restart(lrn)
                    self.lead_look(lrn)
                    self.lead_act(lrn)
                    for _ in range(6):
                        if host.doing:
                            self.work(lrn)
                        elif host.pending:
                            self.act(lrn)
                        elif host.alive:
                            self.look(lrn)
                        self.check()
            rollout = self.fleet.rollout
            if rollout and rollout.stop and rollout.unfinished:
                self.recover()
            quiet = quiet + 1 if before == self.signature() else 0
            self.clock += 1
            self.come_into_the_window()
        self.expect_the_end()

    def come_into_the_window(self) -> None:
        rules = self.revisions[self.newest].group_of(0).reboot
        wall = self.now().wall
        opening = next_opening(rules.windows, rules.timezone, wall)
        if not is_open(rules.windows, rules.timezone, wall) and opening:
            self.clock += opening - wall
            # Nobody has worked meanwhile, which is not what the timeout is for.
            self.seen = {}

    def signature(self) -> object:
        steps = {lrn: {id: (r.state, r.rollout) for id, r in s.items()} for lrn, s in self.steps.items()}
        return (
            self.fleet.rollout,
            self.fleet.phase,
            steps,
            self.recorded,
            self.semaphore,
            {k: h.boot for k, h in self.hosts.items()},
        )

    def expect_the_end(self) -> None:
        wanted = self.revisions[self.newest]
        for lrn in sorted(self.fleet.servers):
            has = {key: installed.version for key, installed in self.recorded[lrn].items()}
            want = {key: artifact.version for key, artifact in wanted.artifacts_of(lrn).items()}
            found = {**self.hosts[lrn].has}
            if wanted.group_of(lrn).reboot.strategy == "off":
                # The OS that is staged comes, and is recorded, when somebody boots the server.
                for state in (has, want, found):
                    state.pop(OS_IMAGE, None)
            if has != want:
                raise Broken(f"server {lrn} ended with {has} and not {want}")
            if found != want:
                raise Broken(f"server {lrn}'s host ended with {found} and not {want}")
            if self.hosts[lrn].down or self.hosts[lrn].drained:
                raise Broken(f"server {lrn} stayed down: {self.hosts[lrn].down or 'drained'}")
        if self.semaphore.holders:
            raise Broken(f"slots stayed taken: {self.semaphore.holders}")

    # --- the leader -------------------------------------------------------------------------------------------------

    def elect(self) -> None:
        alive = [lrn for lrn, host in self.hosts.items() if host.alive]
        if alive:
            self.leading = (
                alive[(alive.index(self.leading) + 1) % len(alive)] if self.leading in alive else alive[0]
            )
            self.token = self.bump()
            self.seen[self.leading] = leader.Seen()

    def lead_look(self, lrn: int) -> None:
        if lrn != self.leading or not self.hosts[lrn].alive:
            return
        fleet = self.view()
        self.seen[lrn] = leader.watch(self.seen.get(lrn, leader.Seen()), fleet, self.now())
        order = leader.lead(self.revisions[self.newest], fleet, self.seen[lrn], self.now())
        self.check_counts(order)
        self.orders[lrn] = (order, self.token)

    def lead_act(self, lrn: int) -> None:
        if lrn not in self.orders or not self.hosts[lrn].alive:
            return
        order, token = self.orders.pop(lrn)
        current = self.fleet.rollout
        if token != self.token:
            return  # fenced
        match order:
            case leader.Open(rollout, replaces):
                if (
                    replaces.mod_revision
                    if replaces
                    else (current.mod_revision if current and not current.unfinished else 0)
                ) != (current.mod_revision if current else 0):
                    return
                rollout = replace(rollout, started_at=f"r{self.bump():06d}")
                opened = replace(rollout, mod_revision=self.revision, opened=self.revision)
                phase = OpenPhase(rollout.id, PREFETCH_WAVE, 1, self.revision)
                self.fleet = replace(self.fleet, rollout=opened, phase=phase)
                self.say(f"open {rollout.version} as {rollout.id}")
            case leader.OpenNext(rollout, phase, wave, number):
                if self.same(rollout) and self.fleet.phase == phase:
                    self.fleet = replace(self.fleet, phase=OpenPhase(rollout.id, wave, number, self.bump()))
                    self.say(f"phase {wave}.{number}")
            case leader.LeaveOut(rollout, servers):
                if self.same(rollout):
                    self.write(replace(rollout, out={**rollout.out, **servers}))
            case leader.Stop(rollout, message):
                if self.same(rollout):
                    self.write(replace(rollout, stop=True, stopped_by="leader", message=message))
                    self.fleet = replace(self.fleet, phase=None)
                    self.say(f"stop {message}")
            case leader.Finish(rollout, message):
                if self.same(rollout):
                    self.write(replace(rollout, outcome="complete", message=message))
                    self.fleet = replace(self.fleet, phase=None)
                    self.say("finish")
            case leader.Wait():
                pass

    def same(self, rollout: Rollout) -> bool:
        return self.fleet.rollout is not None and self.fleet.rollout.mod_revision == rollout.mod_revision

    def write(self, rollout: Rollout) -> None:
        self.fleet = replace(self.fleet, rollout=replace(rollout, mod_revision=self.bump()))

    # --- a server ---------------------------------------------------------------------------------------------------

    def look(self, lrn: int) -> None:
        server = self.server(lrn)
        rollout = server.rollout
        version = rollout.version if rollout else self.revisions[self.newest].revision.id
        begun = frozenset(records_of(server, rollout.id)) if rollout else frozenset()
        plan = make_plan(
            self.desired_at(version), server.recorded, lrn, interrupted=interrupted(server), begun=begun
        )
        now = self.now()
        self.hosts[lrn].pending = (advance(plan, server, now), server, plan, now)

    def act(self, lrn: int) -> None:
        host = self.hosts[lrn]
        assert host.pending
        move, server, plan, now = host.pending
        host.pending = None
        match move:
            case agent.Report(status):
                held = self.fleet.statuses.get(lrn)
                if (held.mod_revision if held else 0) == (server.status.mod_revision if server.status else 0):
                    self.post(lrn, status)
            case agent.Perform():
                self.begin(lrn, move, server, plan, now)
            case agent.Fetch(steps, rollout):
                self.begin(lrn, agent.Perform(steps[0], rollout), server, plan, now)
            case agent.TurnBack(rollout, steps, _):
                if host.down & {"host"} or (host.down & {"app"} and "reboot:" not in steps[0]):
                    raise Broken(
                        f"promise 3: server {lrn} gives its slot back while it is down ({host.down})"
                    )
                if host.drained and "reboot:" in steps[0]:
                    raise Broken(f"promise 5: server {lrn} turns back and stays drained")
                holder = self.holders.get(f"m{lrn}")
                if (
                    holder
                    and server.lock
                    and any(h.mod_revision == holder.mod_revision for h in server.lock.holders)
                ):
                    self.free(lrn)
                if all(self.steps[lrn].get(id) == server.steps[id] for id in steps):
                    self.bump()
                    for id in steps:
                        del self.steps[lrn][id]
                    self.say(f"{lrn} turns back {steps[0]}")
            case agent.Settle(record):
                self.settle(lrn, record, plan)
            case agent.Wait():
                pass

    def post(self, lrn: int, status: ServerStatus) -> None:
        statuses = {**self.fleet.statuses, lrn: replace(status, mod_revision=self.bump())}
        self.fleet = replace(self.fleet, statuses=statuses)

    def begin(self, lrn: int, move: agent.Perform, server: Server, plan: Plan, now: Now) -> None:
        step = move.step
        old = self.steps[lrn].get(step.id)
        booted = (
            step.effect == "reboot"
            and old
            and old.rollout == move.rollout
            and old.boot_id != f"b{self.hosts[lrn].boot}"
        )
        if booted and old:
            self.hosts[lrn].doing = (move, old, plan, 1)
            return
        if step.effect == "acquire" and old and old.rollout == move.rollout and old.state == "running":
            self.hosts[lrn].doing = (move, old, plan, 0)
            return
        if (old.mod_revision if old else 0) != (
            server.steps[step.id].mod_revision if step.id in server.steps else 0
        ):
            return
        open_ = (
            self.fleet.phase is not None
            and server.phase is not None
            and self.fleet.phase.mod_revision == server.phase.mod_revision
        )
        holder = self.holders.get(f"m{lrn}")
        seen = next(
            (h for h in (server.lock.holders if server.lock else ()) if h.machine_id == f"m{lrn}"), None
        )
        same_slot = (holder.mod_revision if holder else 0) == (seen.mod_revision if seen else 0)
        if (move.closing or f"{step.phase}:host:acquire" in server.steps) and not same_slot:
            return
        same_number = lrn in self.fleet.servers and server.added == self.fleet.added.get(lrn, 0)
        if not move.closing and (not open_ or not same_number):
            return
        if not move.closing:
            self.check_barrier(lrn, step)
            self.check_failed(lrn, step, move.rollout)
            status = self.fleet.statuses.get(lrn)
            if status and status.rollout == move.rollout and status.waiting and step.effect != "acquire":
                raise Broken(f"server {lrn} begins {step.id} and says that it waits for a {status.waiting}")
        if step.effect == "reboot":
            self.check_reboot(lrn, server, plan, now)
        if (lrn, move.rollout, step.id) in self.done_in and not _repeats(step):
            raise Broken(f"server {lrn} does {step.id} again, which was recorded")
        target = step.change.after.version if step.change and step.change.after else ""
        target = plan.os if step.effect == "reboot" else target
        boot = f"b{self.hosts[lrn].boot}"
        record = StepRecord(
            step.id, move.rollout, "running", boot_id=boot, target=target, mod_revision=self.bump()
        )
        self.steps[lrn][step.id] = record
        self.hosts[lrn].doing = (move, record, plan, 0)
        self.say(f"{lrn} begins {step.id}{' (closing)' if move.closing else ''}")

    def work(self, lrn: int) -> None:
        """One more piece of the step in flight: the effect on the host (0), then the record that it is done (1) or failed (2)."""
        host = self.hosts[lrn]
        assert host.doing
        move, record, plan, stage = host.doing
        if stage == 0:
            failed = (host.broken and move.step.effect in ("change", "fetch")) or (
                host.sick and move.step.effect in ("health", "hook")
            )
            if not self.effect(lrn, move.step, plan):
                return
            if host.doing:
                host.doing = (move, record, plan, 2 if failed else 1)
            return
        host.doing = None
        if self.steps[lrn].get(record.id) != record:
            return
        key, change = move.step.subject, move.step.change
        if stage == 2:
            self.fail(lrn, record)
            return
        if move.step.effect == "change" and change and key:
            if key == OS_IMAGE and change.reboot:
                pass
            elif key in host.has:
                self.record(lrn, key, change.after, host.has[key])
            else:
                self.recorded[lrn].pop(key, None)
        if move.step.effect == "reboot" and record.target:
            if host.has.get(OS_IMAGE) != record.target:
                self.fail(lrn, record, boot_id=f"b{host.boot}")
                return
            self.record(lrn, OS_IMAGE, OsImage.of_version(record.target), record.target)
            host.booted_by_chance = False
        self.steps[lrn][record.id] = replace(record, state="done", mod_revision=self.bump())
        self.done_in[(lrn, record.rollout, record.id)] = self.revision
        self.say(f"{lrn} has done {record.id}")

    def record(self, lrn: int, key: Key, artifact: Artifact | Known | None, version: str) -> None:
        detail = Detail(artifact, version, "", "") if artifact and not isinstance(artifact, Known) else None
        self.recorded[lrn][key] = Installed(key, version, detail)

    def fail(self, lrn: int, record: StepRecord, boot_id: str = "") -> None:
        """`boot_id` where what has been looked at is this boot: only another one can show anything else."""
        boot_id = boot_id or record.boot_id
        self.steps[lrn][record.id] = replace(
            record, state="failed", message="broken", boot_id=boot_id, mod_revision=self.bump()
        )
        rollout = self.fleet.rollout
        if rollout and rollout.id == record.rollout:
            status = self.fleet.statuses.get(lrn)
            if status and status.rollout == rollout.id:
                self.post(lrn, replace(status, cond=ABORTED, message="broken"))
            wave = rollout.wave_of(lrn)
            if (
                wave
                and rollout.waves[wave - 1].max_failures == 0
                and self.fleet.phase
                and self.fleet.phase.rollout == rollout.id
            ):
                self.fleet = replace(self.fleet, phase=None)
                self.failed_at[rollout.id] = self.revision
        self.say(f"{lrn} failed {record.id}")

    def effect(self, lrn: int, step: Step, plan: Plan) -> bool:
        """What the step does to the host; whether the agent is still there afterwards."""
        host, key, change = self.hosts[lrn], step.subject, step.change
        match step.effect:
            case "acquire":
                added = self.semaphore.add(f"m{lrn}")
                if added is None:
                    self.hosts[lrn].doing = None
                    status = self.fleet.statuses.get(lrn)
                    if status and status.waiting != "slot":
                        self.post(lrn, replace(status, waiting="slot"))
                    return False
                host.unlocked = False
                if added is not self.semaphore:
                    self.semaphore = added
                    self.holders[f"m{lrn}"] = Holder(f"m{lrn}", "agent", lrn, mod_revision=self.bump())
            case "release":
                if host.drained and step.phase == "reboot":
                    raise Broken(f"promise 5: server {lrn} gives its slot back and stays drained")
                if host.down & {"host"} and step.phase == "reboot":
                    raise Broken(f"promise 3: server {lrn} gives its slot back before it is healthy")
                self.free(lrn)
            case "change" if change and key and not host.broken:
                if change.action == "remove":
                    host.has.pop(key, None)
                    host.down.discard(key.name)
                elif change.after and key == OS_IMAGE and change.reboot:
                    host.staged = change.after.version
                elif change.after:
                    if change.restart:
                        host.down.add(key.name)
                    host.has[key] = change.after.version
            case "stop" if key:
                host.down.add(key.name)
            case "hook" if not host.sick:
                host.drained = {"before": True, "after": False}.get(step.list or "", host.drained)
            case "health" if not host.sick:
                host.down.discard(key.name if key else "host")
            case "reboot":
                if plan.reboot.strategy == "etcd-lock":
                    self.check_slot(lrn)
                    host.down.add("host")
                self.power_cut(lrn)
                if self.falls and host.older_os:
                    self.falls -= 1
                    host.has[OS_IMAGE], host.booted_by_chance = host.older_os, True
                    self.say(f"{lrn} falls back to {host.older_os}")
                return False
            case _:
                pass
        return True

    def free(self, lrn: int) -> None:
        if f"m{lrn}" in self.holders:
            del self.holders[f"m{lrn}"]
            self.semaphore = self.semaphore.remove(f"m{lrn}")
            self.bump()

    def settle(self, lrn: int, record: StepRecord, plan: Plan) -> None:
        if self.steps[lrn].get(record.id) != record:
            return
        step = next((step for step in plan.steps if step.id == record.id), None)
        change = step.change if step else None
        key = Key.of_subject(record.id.split(":")[1])
        has = self.hosts[lrn].has.get(key) if key else None
        done = bool(
            change
            and record.id.endswith(":change")
            and (change.after.version if change.after else None) == has
        )
        if done and key and change and not (key == OS_IMAGE and change.reboot):
            if has is None:
                self.recorded[lrn].pop(key, None)
            else:
                self.record(lrn, key, change.after, has)
        self.steps[lrn][record.id] = replace(
            record, state="done" if done else "failed", mod_revision=self.bump()
        )
        self.say(f"{lrn} settles {record.id}: {'done' if done else 'failed'}")

    # --- trouble ----------------------------------------------------------------------------------------------------

    def crash(self, host: Host) -> None:
        host.alive, host.doing, host.pending = False, None, None

    def kill(self, lrn: int) -> None:
        self.crash(self.hosts[lrn])

    def power_cut(self, lrn: int) -> None:
        self.crash(self.hosts[lrn])
        self.hosts[lrn].boot += 1
        host = self.hosts[lrn]
        host.sentinel = False
        if host.staged:
            host.older_os = host.has.get(OS_IMAGE)
            host.has[OS_IMAGE], host.staged, host.booted_by_chance = host.staged, None, True

    def restart(self, lrn: int) -> None:
        self.hosts[lrn].alive = True

    def breaks(self, lrn: int) -> None:
        self.hosts[lrn].broken = not self.hosts[lrn].broken

    def push(self) -> None:
        """The next revision but the last, which is kept for the end: what was left out of a rollout gets the next one."""
        self.newest = min(self.newest + 1, len(self.revisions) - 2)
        self.say(f"push {self.revisions[self.newest].revision.id}")

    def tick(self) -> None:
        self.clock += 600

    def night(self) -> None:
        """The window closes, or opens again."""
        self.clock += 12 * 3600

    def freeze(self, lrn: int) -> None:
        self.hosts[lrn].frozen = not self.hosts[lrn].frozen

    def thaw(self) -> None:
        for host in self.hosts.values():
            host.frozen = False

    def falls_sick(self, lrn: int) -> None:
        self.hosts[lrn].sick = not self.hosts[lrn].sick

    def asks_for_reboot(self, lrn: int) -> None:
        self.hosts[lrn].sentinel = True

    def operator_releases(self) -> None:
        if self.holders:
            lrn = self.holders[min(self.holders)].lrn or 0
            self.hosts[lrn].unlocked = True
            self.free(lrn)
            self.say(f"ann releases the slot of {lrn}")

    def remove(self, lrn: int) -> None:
        """For good: its keys are deleted, and an operator releases its slot."""
        if len(self.fleet.servers) < 2 or lrn not in self.fleet.servers:
            return
        statuses = {other: status for other, status in self.fleet.statuses.items() if other != lrn}
        self.fleet = replace(self.fleet, servers=self.fleet.servers - {lrn}, statuses=statuses)
        self.steps[lrn], self.recorded[lrn] = {}, {}
        self.hosts[lrn].unlocked = True
        self.bump()
        self.free(lrn)
        self.say(f"{lrn} is removed")

    def comes_again(self, lrn: int) -> None:
        """One that was removed is added again, installed anew: what it had is recorded nowhere, so nobody would remove it."""
        host = self.hosts[lrn]
        if lrn in self.fleet.servers or host.doing:
            return
        host.has.clear()
        host.down.clear()
        host.staged, host.drained, host.booted_by_chance = None, False, False
        added = {**self.fleet.added, lrn: self.bump()}
        self.fleet = replace(self.fleet, servers=self.fleet.servers | {lrn}, added=added)
        self.say(f"{lrn} is added again")

    def stop(self) -> None:
        rollout = self.fleet.rollout
        if rollout and rollout.unfinished and not rollout.stop:
            self.write(replace(rollout, stop=True, stopped_by="ann"))
            self.fleet = replace(self.fleet, phase=None)
            self.say("ann stops")

    def recover(self) -> None:
        rollout = self.fleet.rollout
        if rollout and rollout.stop:
            self.bump()
            self.fleet = replace(self.fleet, rollout=None, phase=None, statuses={})
            self.say("recover")

    def disable(self, lrn: int) -> None:
        disabled = dict(self.fleet.disabled)
        if lrn not in disabled and len(disabled) + 1 < len(self.hosts):
            disabled[lrn] = Notice("ann", "mending", "")
        else:
            disabled.pop(lrn, None)
        self.fleet = replace(self.fleet, disabled=disabled)

    def add(self) -> None:
        if len(self.hosts) < 5:
            lrn = len(self.hosts)
            self.hosts[lrn], self.steps[lrn], self.recorded[lrn] = Host(), {}, {}
            added = {**self.fleet.added, lrn: self.bump()}
            self.fleet = replace(self.fleet, servers=self.fleet.servers | {lrn}, added=added)

    # --- the promises -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        if len(self.semaphore.holders) > self.semaphore.max:
            raise Broken(f"promise 1: {self.semaphore.holders} hold {self.semaphore.max} slots")
        if set(self.semaphore.holders) != set(self.holders):
            raise Broken("promise 1: a holder without its record")
        gone = self.hosts.keys() - self.fleet.servers
        rolling = [lrn for lrn, host in self.hosts.items() if host.down & {"host", "app"} and lrn not in gone]
        for lrn in rolling:
            self.check_slot(lrn)
        for lrn, recorded in self.recorded.items():
            for key, installed in recorded.items():
                if key == OS_IMAGE and self.hosts[lrn].booted_by_chance:
                    continue
                step = self.hosts[lrn].doing
                changing = step and step[0].step.subject == key
                open_ = any(
                    r.state != "done" and f":{key.subject}:change" in id for id, r in self.steps[lrn].items()
                )
                if not changing and not open_ and self.hosts[lrn].has.get(key) != installed.version:
                    raise Broken(
                        f"promise 8: server {lrn} is recorded with {installed.version} of {key}, has {self.hosts[lrn].has.get(key)}"
                    )

    def check_reboot(self, lrn: int, server: Server, plan: Plan, now: Now) -> None:
        """Promise 5: what was looked at before the reboot allowed it."""
        if not is_open(plan.reboot.windows, plan.reboot.timezone, now.wall):
            raise Broken(f"promise 5: server {lrn} reboots outside its window")
        if plan.reboot.before and not self.hosts[lrn].drained:
            raise Broken(f"promise 5: server {lrn} reboots, and is not drained")
        held = server.lock is not None and any(holder.lrn == lrn for holder in server.lock.holders)
        if plan.reboot.strategy == "etcd-lock" and not held:
            raise Broken(f"promise 5: server {lrn} reboots, and had no slot when it looked")

    def check_slot(self, lrn: int) -> None:
        if f"m{lrn}" not in self.holders and not self.hosts[lrn].unlocked:
            raise Broken(f"promise 1: server {lrn} is down ({self.hosts[lrn].down}) and holds no slot")

    def check_barrier(self, lrn: int, step: Step) -> None:
        rollout, phase = self.fleet.rollout, self.fleet.phase
        if rollout is None or phase is None:
            raise Broken(f"promise 2: server {lrn} begins {step.id} with nothing open")
        if lrn not in rollout.servers:
            raise Broken(f"promise 7: server {lrn} is not of this rollout")
        if self.is_new(lrn, rollout):
            raise Broken(f"promise 7: server {lrn} was added again after this rollout opened")
        number = rollout.phases.index(step.phase) + 1
        wave = PREFETCH_WAVE if number == 1 else rollout.wave_of(lrn)
        others = rollout.servers if number <= 2 else rollout.waves[wave - 1].servers
        for other in others:
            status = self.fleet.statuses.get(other)
            ready = (
                status and status.rollout == rollout.id and (status.step >= number or status.cond == COMPLETE)
            )
            gone = self.is_gone(other, rollout)
            if number > 1 and not ready and not gone:
                raise Broken(
                    f"promise 6: server {lrn} enters {step.phase}, and {other} has not done the phase before"
                )
        for earlier in rollout.waves[: max(0, wave - 1)]:
            for other in earlier.servers:
                status = self.fleet.statuses.get(other)
                gone = self.is_gone(other, rollout)
                if not gone and not (status and status.rollout == rollout.id and status.cond == COMPLETE):
                    raise Broken(f"promise 6: wave {wave} begins before server {other} is complete")

    def is_gone(self, lrn: int, rollout: Rollout) -> bool:
        return lrn in rollout.out or lrn not in self.fleet.servers or self.is_new(lrn, rollout)

    def is_new(self, lrn: int, rollout: Rollout) -> bool:
        return self.fleet.added.get(lrn, 0) > rollout.opened

    def check_counts(self, order: leader.Order) -> None:
        """Promise 7: who is new to the fleet has not failed in this rollout, whatever it did in it before it was removed."""
        if isinstance(order, leader.LeaveOut):
            named = {lrn for lrn, left in order.servers.items() if left.counts}
        elif isinstance(order, leader.Stop):
            said = order.message.split("; ")
            named = {
                lrn for lrn in order.rollout.servers if any(t.startswith(f"server {lrn} ") for t in said)
            }
            named -= order.rollout.out.keys()
        else:
            return
        for lrn in named:
            if self.is_new(lrn, order.rollout) and self.fleet.phase is not None:
                raise Broken(f"promise 7: server {lrn}, which was removed and added again, counts: {order}")

    def check_failed(self, lrn: int, step: Step, rollout: str) -> None:
        if rollout in self.failed_at:
            raise Broken(f"promise 11: server {lrn} begins {step.id} after the rollout has failed")

    def say(self, text: str) -> None:
        self.log.append(f"{self.revision}: {text}")


def _repeats(step: Step) -> bool:
    """Steps that a turned back or resumed chain rightly does again."""
    return step.phase == "reboot" or step.effect in ("acquire", "health", "release", "hook")


__all__ = ["Broken", "Model", "is_closing"]
