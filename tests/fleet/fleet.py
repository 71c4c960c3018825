"""A fleet for tests: real agents as processes, each with a host root of its own, on a real etcd, following a bare git repository.

What is simulated is only the reboot: `--reboot-command` is a script that changes the boot id below the host's root and kills
the agent, and `tend` starts it again, as a boot would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from reconciler.core.state import COMPLETE, Fleet, Rollout
from reconciler.store.administration import Administration
from reconciler.store.view import read_fleet
from tests.cli.command import Command, of
from tests.conftest import Etcd
from tests.debs import DebSpec, bare_host, build
from tests.etcd_users import OPERATOR, agent
from tests.fleet.checker import prove
from tests.fleet.machine import Machine, with_shell
from tests.podman import podman_below
from tests.release_server import ReleaseServer

__all__ = ["TTL", "WITHIN", "Machine", "Servers", "running", "with_shell"]

ROOT = Path(__file__).parents[2]
WITHIN = 25.0
"""Seconds within which a fleet of a few servers must have got anywhere that a test waits for."""
TTL = 1.0

T = TypeVar("T")
Scripts = tuple[tuple[str, str], ...]


@dataclass
class Servers:
    """The fleet under test."""

    etcd: Etcd
    directory: Path
    releases: ReleaseServer
    machines: dict[int, Machine] = field(default_factory=dict)
    built: set[tuple[str, str]] = field(default_factory=set)
    reboot_required: str = "/var/run/reboot-required"
    wrapper: tuple[str, ...] = ()
    """A command that the agents are started by."""
    planted: list[range] = field(default_factory=list)
    """The etcd revisions between which a test had broken the lock by hand."""
    podmans: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        _git(self.directory, "init", "--quiet", "--bare", "--initial-branch=main", str(self.repository))
        _git(self.directory, "clone", "--quiet", str(self.repository), str(self.work))
        self.operators = self.etcd.new_client(user=OPERATOR)
        self.administration = Administration(self.operators, self.etcd.keys)

    @property
    def repository(self) -> Path:
        return self.directory / "fleet.git"

    @property
    def work(self) -> Path:
        return self.directory / "work"

    def command(self, user: str = OPERATOR) -> Command:
        """`reconcile` as a person runs it, with that user's rights in etcd."""
        return Command(self.directory, of(self.etcd, user))

    def command_on(self, machine: Machine, user: str = "") -> Command:
        """`reconcile` on this server, as its agent runs it: with the agent's rights unless another user is named."""
        variables = {
            "lrn": str(machine.lrn),
            "repo": f"file://{self.repository}",
            "host_root": str(machine.root),
            "host_exec": "direct",
            "github_api": self.releases.url,
            "reboot_required_file": self.reboot_required,
        }
        return Command(machine.directory, {**of(self.etcd, user or agent(machine.lrn)), **variables})

    # --- git --------------------------------------------------------------------------------------------------------

    def push(
        self,
        debs: Mapping[str, str] | None = None,
        *,
        policy: Mapping[str, Any] | None = None,
        groups: Sequence[Mapping[str, Any]] = (),
        sets: Sequence[Mapping[str, Any]] = (),
        text: str | None = None,
        scripts: Scripts = (),
    ) -> str:
        """Push a revision: `debs` by name and version for every server, more `sets`; its id.

        Packages that are not released yet are built, with these maintainer `scripts`, and released.
        """
        for name, version in (debs or {}).items():
            self.release(name, version, scripts)
        wanted = [self.deb(name, version) for name, version in (debs or {}).items()]
        documents: list[Mapping[str, Any]] = [{"kind": "ArtifactSet", "debs": wanted}]
        documents += [{"kind": "ArtifactSet", **artifacts} for artifacts in sets]
        documents += [{"kind": "ServerGroup", **group} for group in groups]
        if policy is not None:
            documents.append({"kind": "RolloutPolicy", **policy})
        place = self.work / "desired-state"
        place.mkdir(exist_ok=True)
        said = "\n---\n".join(json.dumps({"apiVersion": "reconciler/v1", **each}) for each in documents)
        (place / "fleet.yaml").write_text((text if text is not None else said) + "\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "a revision")
        self.git("push", "--quiet", "origin", "HEAD:main")
        return self.git("rev-parse", "HEAD").strip()

    def git(self, *words: str) -> str:
        """What git says in the work tree from which revisions are pushed."""
        return _git(self.work, *words)

    def deb(self, name: str, version: str) -> dict[str, str]:
        return {"name": name, "owner": "acme", "repository": name, "release": f"v{version}"}

    def release(self, name: str, version: str, scripts: Scripts = ()) -> None:
        """Build a package and put it into a release."""
        if (name, version) not in self.built:
            self.release_package(DebSpec(name, version, scripts=scripts))

    def release_package(self, package: DebSpec) -> None:
        place = self.directory / "built"
        place.mkdir(exist_ok=True)
        self.releases.add("acme", package.name, f"v{package.version}", build(package, place))
        self.built.add((package.name, package.version))

    # --- agents -----------------------------------------------------------------------------------------------------

    def add(self, lrn: int, *arguments: str, machine_id: str | None = None, name: str = "") -> Machine:
        """A server with nothing on it, whose agent does not run yet. `name`: a second one of a number, and its host name."""
        machine_id = machine_id or f"{lrn:032x}"
        name = name or f"boot-{lrn}"
        directory = self.directory / name
        directory.mkdir()
        bare_host(directory)
        machine = Machine(lrn, directory, machine_id, arguments)
        (machine.root / "etc/machine-id").write_text(f"{machine_id}\n")
        (machine.root / "etc/hostname").write_text(f"{name}\n")
        machine.boot_file.parent.mkdir(parents=True)
        machine.new_boot()
        self._reboot_script(machine, new_boot=True)
        self.machines.setdefault(lrn, machine)
        return machine

    def give_podman(self, *servers: int | Machine) -> None:
        """Each has a podman of its own from its agent's next start on, for as long as the fleet is there."""
        for server in servers:
            machine = self.machines[server] if isinstance(server, int) else server
            environment = self.podmans.enter_context(podman_below(machine.directory / "podman"))
            machine.environment = {**machine.environment, **environment}

    def start(self, *servers: int | Machine) -> None:
        """Start the agents of these servers, or of all."""
        for server in servers or tuple(self.machines):
            self._start(self.machines[server] if isinstance(server, int) else server)

    def gather(self, number: int, *arguments: str) -> None:
        """Add servers 0 to `number`, start their agents, and wait until all are registered."""
        for lrn in range(number):
            self.add(lrn, *arguments)
        self.start()
        self.wait_for_registered(*range(number))

    def wait_for_registered(self, *servers: int) -> None:
        self.wait("all servers are registered", lambda: self.view().servers >= set(servers))

    def _start(self, machine: Machine) -> None:
        where = machine.directory
        argv = [sys.executable, "-m", "reconciler", "agent", "--lrn", str(machine.lrn)]
        argv += ["--etcd", self.etcd.endpoint, "--prefix", self.etcd.prefix]
        argv += self.etcd.flags(agent(machine.lrn))
        argv += ["--lock-prefix", self.etcd.lock_prefix, "--lease-ttl", f"{TTL:g}s"]
        argv += ["--repo", f"file://{self.repository}"]
        argv += ["--interval", machine.interval] if machine.interval else []
        argv += [
            "--host-root",
            str(machine.root),
            "--host-exec",
            "direct",
            "--state-dir",
            str(where / "state"),
        ]
        argv += ["--reboot-command", str(where / "reboot"), "--alarm-after", "3s"]
        argv += ["--reboot-required-file", self.reboot_required]
        argv += ["--github-api", self.releases.url, "--listen", "127.0.0.1:0", "--log-format", "text"]
        with (where / "log").open("ab") as log:
            machine.process = subprocess.Popen(
                # However the tests end, no agent outlives them.
                ["setpriv", "--pdeathsig", "KILL", *self.wrapper, *machine.before, *argv, *machine.arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **machine.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        (where / "pid").write_text(str(machine.process.pid))

    def _reboot_script(self, machine: Machine, new_boot: bool) -> None:
        """What `systemctl reboot` is here: the boot id changes (or does not), and the agent is killed."""
        where = machine.directory
        script = where / "reboot"
        boot = "cat /proc/sys/kernel/random/uuid" if new_boot else f"cat {machine.boot_file}"
        script.write_text(
            "#!/bin/sh\n"
            f'echo "$(date +%s.%N) {"boots" if new_boot else "hangs"}" >> {where}/reboots\n'
            f"id=$({boot}); echo $id > {machine.boot_file}\n"
            f"rm -f {machine.root}{self.reboot_required}\n"
            f"if [ -e {where}/staged ]; then mv {where}/staged {where}/os; fi\n"
            f"kill -9 $(cat {where}/pid)\n"
        )
        script.chmod(0o755)

    def boots_with_the_same_id(self, lrn: int, same: bool = True) -> None:
        """From now on server `lrn`'s reboot command ends its agent without a boot."""
        self._reboot_script(self.machines[lrn], new_boot=not same)

    def wants_reboot(self, *servers: int) -> None:
        for lrn in servers:
            sentinel = self.machines[lrn].root / self.reboot_required.lstrip("/")
            sentinel.parent.mkdir(parents=True, exist_ok=True)
            sentinel.touch()

    def tend(self) -> None:
        """Start the agents of those that have rebooted, and those that came too early, as systemd would."""
        for machine in self.machines.values():
            ended = machine.process is not None and machine.process.poll() is not None
            if ended and machine.process and machine.process.returncode in (-signal.SIGKILL, 3):
                machine.process = None
                if not machine.stays_away:
                    self._start(machine)

    def end(self) -> None:
        """End every agent at once."""
        for machine in self.machines.values():
            machine.gate.unlink(missing_ok=True)
            machine.signal(signal.SIGCONT)
            machine.kill()
        self.operators.close()

    # --- what etcd says ---------------------------------------------------------------------------------------------

    def view(self) -> Fleet:
        return read_fleet(self.etcd.client, self.etcd.keys)

    def recorded(self, lrn: int) -> dict[str, str]:
        """The recorded versions of a server by subject: `deb/tool` → `v1.0`."""
        found = self.view().recorded.get(lrn, {})
        return {key.subject: installed.version for key, installed in found.items()}

    def leader(self) -> Machine:
        """The server whose agent leads, once there is one."""

        def leads() -> Machine | None:
            leader = self.view().leader
            return self.machines.get(int(leader.host.removeprefix("boot-"))) if leader else None

        return self.wait("a leader", leads)

    def wait(self, what: str, condition: Callable[[], T | None], within: float = WITHIN) -> T:
        """What `condition` says once it is true of anything."""
        end = time.monotonic() + within
        while True:
            self.tend()
            found = condition()
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"not within {within:g} s: {what}\n{self.report()}")
            time.sleep(0.02)

    def wait_on_hosts(self, what: str, condition: Callable[[], bool], within: float = WITHIN) -> None:
        """Wait for what shows on the hosts alone: etcd may be away."""
        end = time.monotonic() + within
        while not condition():
            self.tend()
            assert time.monotonic() < end, f"not within {within:g} s: {what}"
            time.sleep(0.02)

    def wait_for_end(self, revision: str, outcome: str = "complete", within: float = WITHIN) -> Rollout:
        """Wait until the rollout of `revision` has its outcome."""

        def ended() -> Rollout | None:
            rollout = self.view().rollout
            return rollout if rollout and rollout.version == revision and rollout.outcome == outcome else None

        return self.wait(f"the rollout of {revision[:8]} is {outcome}", ended, within)

    def wait_for_stop(self, revision: str, within: float = WITHIN) -> Rollout:
        def stopped() -> Rollout | None:
            rollout = self.view().rollout
            return rollout if rollout and rollout.version == revision and rollout.stop else None

        return self.wait(f"the rollout of {revision[:8]} has stopped", stopped, within)

    def wait_for_phase(self, name: str, wave: int | None = None) -> None:
        def opened() -> bool:
            fleet = self.view()
            phase, rollout = fleet.phase, fleet.rollout
            here = phase and rollout and rollout.phases[phase.phase - 1] == name
            return bool(here and phase and (wave is None or phase.wave == wave))

        self.wait(f"phase {name}", opened)

    def has(self, name: str, version: str, *servers: int) -> None:
        """These servers (all, if none is named) have the package, and etcd says so."""
        for lrn in servers or tuple(self.machines):
            assert self.machines[lrn].deb(name) == f"ii {version}", self.machines[lrn].log
            assert self.recorded(lrn).get(f"deb/{name}") == f"v{version}"

    def has_still(self, name: str, version: str) -> None:
        """All hosts have the package, whatever etcd says."""
        assert {machine.deb(name) for machine in self.machines.values()} == {f"ii {version}"}

    def has_not(self, name: str, *servers: int) -> None:
        for lrn in servers or tuple(self.machines):
            assert self.machines[lrn].deb(name) == ""
            assert f"deb/{name}" not in self.recorded(lrn)

    def prove(self) -> None:
        """Promises 1 and 8, by the history of the reboot lock and by the hosts."""
        prove(self.etcd.client, self.etcd.keys, self.etcd.since, self.planted)
        self.prove_recorded()

    def compact(self, revision: int) -> None:
        """Have etcd forget all that was before an etcd revision. What is forgotten was judged before."""
        prove(self.etcd.client, self.etcd.keys, self.etcd.since, self.planted)
        self.etcd.server.etcdctl("compact", "--physical", str(revision))
        self.etcd = replace(self.etcd, since=revision)

    def prove_recorded(self) -> None:
        """Promise 8: what etcd records as installed is on the host, unless a step is under way that changes just that."""
        fleet = self.view()
        for lrn, recorded in fleet.recorded.items():
            changing = {
                id.split(":")[1]
                for id, record in fleet.steps.get(lrn, {}).items()
                if record.state != "done" and ":change" in id
            }
            for key, installed in recorded.items():
                if installed.detail and key.subject not in changing:
                    self.machines[lrn].must_have(installed)

    def complete(self, lrn: int) -> bool:
        fleet = self.view()
        status = fleet.statuses.get(lrn)
        here = status and fleet.rollout and status.rollout == fleet.rollout.id
        return bool(here and status and status.cond == COMPLETE)

    def report(self) -> str:
        """What a failed test wants to know: the rollout and the ends of the logs."""
        fleet = self.view()
        lines = [f"{fleet.rollout}", f"{fleet.phase}"]
        lines += [f"{lrn}: {status}" for lrn, status in fleet.statuses.items()]
        lines += [f"lock {name}: {lock}" for name, lock in fleet.locks.items()]
        for lrn, machine in self.machines.items():
            with contextlib.suppress(FileNotFoundError):
                lines += [f"--- server {lrn}", *machine.log.splitlines()[-25:]]
        return "\n".join(lines)


@contextlib.contextmanager
def running(etcd: Etcd, directory: Path, host: str = "127.0.0.1") -> Iterator[Servers]:
    """A fleet without servers yet, which fetches from `host`. At the end its agents are ended, and promises 1 and 8 must have been kept.

    Every fleet of the tests is made here, so none goes unproven.
    """
    with ReleaseServer(directory / "releases", host=host).serving() as releases:
        servers = Servers(etcd, directory, releases)
        with servers.podmans:
            try:
                yield servers
            finally:
                servers.end()
            servers.prove()


def _git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=directory, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, f"git {' '.join(words)}: {done.stderr}"
    return done.stdout
