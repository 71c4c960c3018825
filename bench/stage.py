"""What the subjects measure against: an etcd, a repository, documents and recorded servers, made for one run.

Fills etcd through its own JSON gateway, not through the program that is measured, which stays out of this process.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.measure import Command, NotMeasured

ROOT = Path(__file__).parent.parent
RECONCILE = Path(sys.executable).with_name("reconcile")
OPERATIONS = 128
"""How many etcd takes in one transaction."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One run's directory, and the etcd in it. `quick`: no size over 1,000 and no wait over some seconds."""

    directory: Path
    endpoint: str
    quick: bool = False

    def reconcile(self, *argv: str, status: int = 0, cwd: Path | None = None) -> Command:
        """The command, told of this etcd and a state directory here."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RECONCILER_")},
            "RECONCILER_ETCD": self.endpoint,
            "RECONCILER_STATE_DIR": str(self.directory / "state"),
        }
        return Command([RECONCILE, *argv], cwd=cwd or self.directory, env=environment, status=status)

    def put(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Write keys into etcd, many at a time."""
        batch: list[dict[str, object]] = []
        for key, value in pairs:
            batch.append({"requestPut": {"key": _encoded(key), "value": _encoded(value)}})
            if len(batch) == OPERATIONS:
                self._call("kv/txn", {"success": batch})
                batch = []
        if batch:
            self._call("kv/txn", {"success": batch})

    def clear(self) -> None:
        """Delete all keys."""
        everything = _encoded("\0")
        self._call("kv/deleterange", {"key": everything, "range_end": everything})

    def keys(self, folder: str) -> list[tuple[str, str, int]]:
        """Key, value and create revision of what is below `folder`."""
        end = folder[:-1] + chr(ord(folder[-1]) + 1)
        answer = self._call("kv/range", {"key": _encoded(folder), "rangeEnd": _encoded(end)})
        return [
            (_decoded(kv["key"]), _decoded(kv.get("value", "")), int(kv["create_revision"]))
            for kv in answer.get("kvs", ())
        ]

    def get(self, key: str) -> str | None:
        found = self._call("kv/range", {"key": _encoded(key)}).get("kvs")
        return _decoded(found[0].get("value", "")) if found else None

    @contextlib.contextmanager
    def watch(self, start: str) -> Iterator[Watch]:
        """What happens from now on to keys that begin with `start`."""
        end = start[:-1] + chr(ord(start[-1]) + 1)
        asked = {"create_request": {"key": _encoded(start), "range_end": _encoded(end)}}
        with urllib.request.urlopen(self._request("watch", asked), timeout=120) as answer:
            answer.readline()
            yield Watch(answer)

    def requests(self) -> int:
        """How many calls etcd has been asked for through gRPC, this process's own among them."""
        with urllib.request.urlopen(f"{self.endpoint}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        started = re.findall(r"^grpc_server_started_total\{(.*)\} (\S+)$", text, re.MULTILINE)
        return sum(int(float(number)) for labels, number in started if '"Health"' not in labels)

    def _call(self, method: str, body: object) -> dict[str, Any]:
        with urllib.request.urlopen(self._request(method, body), timeout=30) as answer:
            said: dict[str, Any] = json.loads(answer.read())
        return said

    def _request(self, method: str, body: object) -> urllib.request.Request:
        return urllib.request.Request(
            f"{self.endpoint}/v3/{method}", json.dumps(body).encode(), method="POST"
        )


@dataclass(frozen=True, slots=True)
class Watch:
    """A watch's answer as it comes."""

    answer: IO[bytes]

    def wait(self, within: float) -> None:
        """Until something has happened."""
        ready, _, _ = select.select([self.answer.fileno()], [], [], within)
        if not ready or not self.answer.readline():
            raise NotMeasured(f"nothing that was waited for has happened in etcd within {within:g} s")


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


@contextlib.contextmanager
def stage(directory: Path, quick: bool = False) -> Iterator[Stage]:
    """An etcd of one member in `directory`, ended with the block."""
    program = shutil.which("etcd")
    if not program:
        raise NotMeasured("etcd is not installed (Debian: etcd-server)")
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    argv = [program, "--data-dir", str(directory / "etcd"), "--name", "bench", "--logger", "zap"]
    argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
    argv += [
        "--listen-peer-urls",
        peer,
        "--initial-advertise-peer-urls",
        peer,
        "--initial-cluster",
        f"bench={peer}",
    ]
    with (directory / "etcd.log").open("wb") as log:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(f"{client}/health", child)
        yield Stage(directory, client, quick)
    finally:
        child.terminate()
        child.wait(20)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(address: str, child: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
            if b"true" in answer.read():
                return
        if child.poll() is not None:
            break
        time.sleep(0.1)
    raise NotMeasured("etcd did not start")


def repository(directory: Path, documents: Path) -> Path:
    """A repository whose `desired-state` is a copy of `documents`, at one commit."""
    shutil.copytree(documents, directory / "desired-state")
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.invalid"]
    for argv in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "-m", "bench"],
    ):
        subprocess.run(["git", *argv], cwd=directory, check=True, timeout=60, stdin=subprocess.DEVNULL)
    return directory


def real_set(stage: Stage) -> Path:
    """A repository with the desired state of this one."""
    return repository(stage.directory / "real", ROOT / "desired-state")


def planned(stage: Stage, repo: Path) -> list[dict[str, Any]]:
    """What a server with nothing on it would be given, as the plan has it."""
    command = stage.reconcile("--dry-run", "--repo", str(repo), "--output", "json")
    done = subprocess.run(
        [*command.argv],
        cwd=command.cwd,
        env=command.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise NotMeasured(f"reconcile --dry-run ended with {done.returncode}: {done.stderr.strip()}")
    changes: list[dict[str, Any]] = json.loads(done.stdout)["servers"][0]["changes"]
    return changes


def documents(directory: Path, count: int) -> Path:
    """`count` documents, one a file, each with two images (one of them a container) and a package."""
    target = directory / "desired-state"
    target.mkdir(parents=True)
    for number in range(count):
        (target / f"{number:05}.yaml").write_text(_DOCUMENT.replace("@", f"{number:05}"))
    return target


_DOCUMENT = """\
apiVersion: reconciler/v1
kind: ArtifactSet
images:
  - {name: kept-@, repository: registry.example.invalid/kept-@, tag: 1.2.3}
  - name: run-@
    repository: registry.example.invalid/run-@
    tag: 3.5.4.1
    container:
      args: [--name, "boot-$(lrn)", --config-file, /etc/run/config.yml]
      binds: [{name: data, source: /var/lib/run-@, dest: /var/lib/run, readOnly: false}]
      environment: {MODE: boot}
      update: rolling
      health: {http: "http://127.0.0.1:2379/health", timeout: 60s}
debs:
  - {name: package-@, owner: example, repository: package-@, release: v1.4.0}
"""
