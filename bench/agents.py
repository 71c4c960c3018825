"""Real agents on this machine for the subject `agent`: each with a host root of its own, following one bare repository.

What they install is an OS image by hooks that write a file, so that nothing is downloaded and nothing outside is changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import NotMeasured
from bench.stage import RECONCILE, Stage, free_port

DESIRED = """\
apiVersion: reconciler/v1
kind: ArtifactSet
osImage: {{channel: stable, version: {version}}}
---
apiVersion: reconciler/v1
kind: ServerGroup
name: bench
servers: ["0-9"]
osImage: {{driver: command, reboot: false}}
"""
HOOKS = {
    "os-current": 'echo "stable/$(cat {root}/os)"',
    "os-stage": 'echo "$2" > {root}/os',
    "os-rollback": "true",
}
IDENTITY = ("-c", "user.name=bench", "-c", "user.email=bench@example.invalid")


@dataclass
class Repository:
    """A bare repository, and the work tree from which revisions are pushed to it."""

    directory: Path
    number: int = 0

    def __post_init__(self) -> None:
        self.directory.mkdir()
        _git(self.directory, "init", "--quiet", "--bare", "--initial-branch=main", str(self.bare))
        _git(self.directory, "clone", "--quiet", str(self.bare), str(self.work))

    @property
    def bare(self) -> Path:
        return self.directory / "fleet.git"

    @property
    def work(self) -> Path:
        return self.directory / "work"

    def commit(self) -> str:
        """A new revision that is not pushed yet: its id."""
        self.number += 1
        place = self.work / "desired-state"
        place.mkdir(exist_ok=True)
        (place / "fleet.yaml").write_text(DESIRED.format(version=f"1.{self.number}.0"))
        _git(self.work, "add", "--all")
        _git(self.work, *IDENTITY, "commit", "--quiet", "-m", f"revision {self.number}")
        return _git(self.work, "rev-parse", "HEAD").strip()

    def push(self) -> float:
        """Push it: the seconds that took."""
        began = time.perf_counter()
        _git(self.work, "push", "--quiet", "origin", "HEAD:main")
        return time.perf_counter() - began


@dataclass
class Agent:
    """One server and its agent's process."""

    stage: Stage
    repository: Repository
    lrn: int
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        files = {
            "etc/machine-id": f"{self.lrn:032x}\n",
            "etc/hostname": f"boot-{self.lrn}\n",
            "proc/sys/kernel/random/boot_id": f"00000000-0000-4000-8000-{self.lrn:012x}\n",
            "os": "1.0.0\n",
        }
        for path, text in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
        for name, text in HOOKS.items():
            hook = self.root / "etc/reconciler/hooks" / name
            hook.parent.mkdir(parents=True, exist_ok=True)
            hook.write_text(f"#!/bin/sh\n{text.format(root=self.root)}\n")
            hook.chmod(0o755)

    @property
    def root(self) -> Path:
        return self.stage.directory / f"server-{self.lrn}" / "root"

    def start(self) -> None:
        argv = [str(RECONCILE), "agent", "--lrn", str(self.lrn), "--etcd", self.stage.endpoint]
        argv += ["--repo", f"file://{self.repository.bare}", "--verify", "none"]
        argv += ["--host-root", str(self.root), "--host-exec", "direct"]
        argv += ["--state-dir", str(self.root.parent / "state"), "--listen", f"127.0.0.1:{self.port}"]
        with (self.root.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, *self.arguments],
                env={name: value for name, value in os.environ.items() if not name.startswith("RECONCILER_")},
                cwd=self.stage.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        if self.process is None or self.process.poll() is not None:
            last = (self.root.parent / "log").read_text(errors="replace")[-1000:]
            raise NotMeasured(f"the agent of server {self.lrn} has ended: {last}")
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def cpu_seconds(self) -> float:
        """CPU that it has used so far, without its children that still run."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) * 1024 / 1e6 if found else 0.0

    def passes(self) -> Mapping[str, tuple[float, int]]:
        """Of each loop: the seconds of all its passes, and how many there were."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        name = r"^reconciler_loop_duration_seconds_(sum|count)\{loop=\"(\w+)\"\} (\S+)$"
        found = {(loop, part): float(number) for part, loop, number in re.findall(name, text, re.MULTILINE)}
        return {
            loop: (found[loop, "sum"], int(found[loop, "count"])) for loop, part in found if part == "sum"
        }


@contextlib.contextmanager
def running(agents: list[Agent]) -> Iterator[None]:
    """The agents run, until the block ends."""
    try:
        for agent in agents:
            agent.start()
        yield
    finally:
        for agent in agents:
            agent.end()


def wait_until_complete(stage: Stage, revision: str, agents: list[Agent], within: float = 60.0) -> None:
    """Until the rollout of `revision` is complete."""
    end = time.monotonic() + within
    while True:
        found = stage.get("/neco/status/current")
        rollout = json.loads(found) if found else {}
        if rollout.get("version") == revision and rollout.get("outcome") == "complete":
            return
        for agent in agents:
            _ = agent.pid
        if rollout.get("stop") or time.monotonic() > end:
            raise NotMeasured(f"the rollout of {revision[:12]} is not complete after {within:g} s: {found}")
        time.sleep(0.05)


def _git(directory: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=directory, check=True, capture_output=True, text=True, timeout=60
    ).stdout
