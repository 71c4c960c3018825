"""podman and docker behind one role: what is there, pull, create, start, stop, remove. Called by `host/containers`; not pure.

Both are spoken to by their command line. Every method is one bounded command or two; what to do when is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from reconciler.errors import HostError
from reconciler.ground import process
from reconciler.ground.process import Completed, ProcessFailed
from reconciler.host import place
from reconciler.host.definition import Definition, run_options
from reconciler.host.driver import Host
from reconciler.host.registry import repository_of

_LOOK = 60.0
_CHANGE = 300.0

PASSED_ON = (
    "CONTAINERS_CONF",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "DOCKER_HOST",
    "XDG_RUNTIME_DIR",
)
"""Variables of the agent's environment that tell podman and docker where their things are."""


def storage_environment() -> dict[str, str]:
    """Those of `PASSED_ON` that are set."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


@dataclass(frozen=True, slots=True)
class Running:
    """A container that is there. `state` is `running`, `stopped`, `restarting` or `paused`; `pid` its first process's, 0 for none."""

    name: str
    state: str
    image_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """An image that is there: its id, its names (`repository:tag`), what it was pulled by (`repository@digest`), and all its digests."""

    id: str
    tags: frozenset[str]
    sources: frozenset[str]
    digests: frozenset[str]


class Runtime(Protocol):
    """What runs containers on the host."""

    program: str

    def containers(self) -> Mapping[str, Running]:
        """All containers, by name, in one look."""

    def images(self) -> Sequence[Stored]:
        """All images, in one look."""

    def pull(
        self, source: str, scratch: Path, credentials: str | None, proxy: str | None, timeout: float
    ) -> None:
        """Pull `repository@digest`. `credentials` is a host's path; what is half downloaded is below `scratch`, the caller's to remove."""

    def tag(self, source: str, name: str) -> None:
        """Give the image `source` the name `repository:tag` as well; another image loses it."""

    def create(self, definition: Definition) -> None:
        """Make the container, not started, from an image that is there. The runtime starts it anew when it ends."""

    def start(self, name: str) -> None:
        """Start a container that was created or stopped; one that runs is left alone."""

    def stop(self, name: str, timeout: int) -> None:
        """Ask the container to end and kill it after `timeout` seconds; one that is not there is no error."""

    def remove(self, name: str) -> None:
        """Remove a container, running or not; one that is not there is no error."""

    def logs(self, name: str) -> str:
        """The last lines that a container has said, as far as they can be had."""

    def forget(self, names: Sequence[str]) -> bool:
        """Take names from an image, and the image with the last one; False where a container still uses it."""

    def run_command(self, definition: Definition) -> list[str]:
        """The command that a systemd service runs: the container, removed when it ends."""

    def storage(self) -> str:
        """The host's directory that images are unpacked in."""

    def seen(self, path: str) -> str:
        """A host's path in a command's words."""


def runtime_of(host: Host, wanted: Literal["auto", "podman", "docker"] = "auto") -> Runtime:
    """The runtime of this host: the one asked for, else podman, else docker. Raises `HostError` where there is none."""
    names = ("podman", "docker") if wanted == "auto" else (wanted,)
    root = Path("/") if host.exec == "direct" else host.root
    for name in names:
        if process.exists(name, root):
            return Podman(host) if name == "podman" else Docker(host)
    raise HostError(
        f"cannot run containers on server {host.lrn}: {' or '.join(names)} is not installed; install one of them, "
        "or name the other with --runtime"
    )


@dataclass(frozen=True)
class _CommandLine:
    """What the command lines of podman and docker have in common."""

    host: Host

    program = ""

    def _run(
        self,
        *argv: str,
        timeout: float = _LOOK,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        changes: bool = False,
    ) -> Completed:
        return process.run(
            place.command(self.host, [self.program, *argv]),
            timeout=timeout,
            check=check,
            env={**storage_environment(), **(env or {})},
            pass_fds=place.inherited(self.host) if changes else (),
        )

    def tag(self, source: str, name: str) -> None:
        self._run("tag", source, name, changes=True)

    def create(self, definition: Definition) -> None:
        options = ["--name", definition.name, "--restart", "always", *run_options(definition, self.seen)]
        self._run(
            "create",
            "--pull",
            "never",
            *options,
            definition.image,
            *definition.args,
            timeout=_CHANGE,
            changes=True,
        )

    def start(self, name: str) -> None:
        # Without the lock's descriptor: the container's monitor would inherit it, and hold the lock for as long as it runs.
        self._run("start", "--", name, timeout=_CHANGE)

    def stop(self, name: str, timeout: int) -> None:
        done = self._run(
            "stop", "--time", str(timeout), "--", name, timeout=timeout + _CHANGE, check=False, changes=True
        )
        self._unless_absent(done, "stop", name)

    def remove(self, name: str) -> None:
        done = self._run("rm", "--force", "--", name, timeout=_CHANGE, check=False, changes=True)
        self._unless_absent(done, "remove", name)

    def logs(self, name: str) -> str:
        done = self._run("logs", "--tail", "20", "--", name, check=False)
        return _last(done) if done.status == 0 else ""

    def forget(self, names: Sequence[str]) -> bool:
        for name in names:
            done = self._run("rmi", "--", name, timeout=_CHANGE, check=False, changes=True)
            if done.status == 2 or "in use" in done.stderr or "is using" in done.stderr:
                return False
            self._unless_absent(done, "remove image", name)
        return True

    def run_command(self, definition: Definition) -> list[str]:
        root = Path("/") if self.host.exec == "direct" else self.host.root
        found = shutil.which(self.program) if root == Path("/") else None
        program = found or f"/usr/bin/{self.program}"
        options = run_options(definition, self.seen)
        return [program, "run", "--name", definition.name, "--rm", "--pull", "never", *options]

    def seen(self, path: str) -> str:
        """A host's path in a command's words: as it stands where commands run in the host's root, below that root elsewhere."""
        return str(place.inside(self.host, path)) if self.host.exec == "direct" else path

    def _unless_absent(self, done: Completed, what: str, name: str) -> None:
        """Raise for a command that failed for another reason than that its object is not there."""
        said = done.stderr.lower()
        if done.status != 0 and "no such" not in said and "not known" not in said:
            raise ProcessFailed(
                f"cannot {what} {name} on server {self.host.lrn}: {self.program} ended with {done.status}"
                f"{_last(done)}",
                done.status,
            )


class Podman(_CommandLine):
    """podman, without a daemon."""

    program = "podman"

    def containers(self) -> Mapping[str, Running]:
        rows = _documents(self._run("ps", "--all", "--format", "json").stdout)
        return {
            name: Running(
                name,
                _state(row.get("State", "")),
                _bare(row.get("ImageID", "")),
                row.get("Labels") or {},
                int(row.get("Pid") or 0),
            )
            for row in rows
            for name in row.get("Names") or ()
        }

    def images(self) -> Sequence[Stored]:
        rows = _documents(self._run("images", "--format", "json").stdout)
        # One image has a row for each of its names.
        found = {}
        for row in rows:
            names = row.get("Names") or ()
            found[row["Id"]] = Stored(
                _bare(row["Id"]),
                frozenset(name for name in names if "@" not in name),
                # `RepoDigests` combines every name with every digest; what it was pulled by is among the names.
                frozenset(name for name in names if "@" in name),
                _digests(row.get("RepoDigests")),
            )
        return tuple(found.values())

    def pull(
        self, source: str, scratch: Path, credentials: str | None, proxy: str | None, timeout: float
    ) -> None:
        options = ["--quiet"]
        if repository_of(source).loopback:
            options.append("--tls-verify=false")
        if credentials:
            options += ["--authfile", self.seen(credentials)]
        env = {"TMPDIR": place.seen(self.host, scratch), **process.proxy_environment(proxy)}
        self._run("pull", *options, source, timeout=timeout, env=env, changes=True)

    def storage(self) -> str:
        return self._run("info", "--format", "{{.Store.GraphRoot}}").stdout.strip()

    def run_command(self, definition: Definition) -> list[str]:
        options = ["--replace", "--detach", "--cgroups=no-conmon", "--sdnotify=conmon"]
        return [*super().run_command(definition), *options, definition.image, *definition.args]


class Docker(_CommandLine):
    """docker, whose daemon pulls and runs; it keeps its own half downloads, and is told of a proxy in its own configuration."""

    program = "docker"

    def containers(self) -> Mapping[str, Running]:
        ids = self._run("ps", "--all", "--quiet", "--no-trunc").stdout.split()
        rows = self._inspect("container", ids)
        return {
            (name := row["Name"].lstrip("/")): Running(
                name,
                _state(row["State"]["Status"]),
                _bare(row["Image"]),
                (row.get("Config") or {}).get("Labels") or {},
                int(row["State"].get("Pid") or 0),
            )
            for row in rows
        }

    def images(self) -> Sequence[Stored]:
        ids = sorted(set(self._run("images", "--quiet", "--no-trunc").stdout.split()))
        return tuple(
            Stored(
                _bare(row["Id"]),
                frozenset(_whole(name) for name in row.get("RepoTags") or ()),
                frozenset(_whole(name) for name in row.get("RepoDigests") or ()),
                _digests(row.get("RepoDigests")),
            )
            for row in self._inspect("image", ids)
        )

    def pull(
        self, source: str, scratch: Path, credentials: str | None, proxy: str | None, timeout: float
    ) -> None:
        options: list[str] = []
        if credentials:
            # docker wants a directory with this name in it.
            (scratch / "config.json").symlink_to(self.seen(credentials))
            options = ["--config", place.seen(self.host, scratch)]
        self._run(*options, "pull", "--quiet", source, timeout=timeout, changes=True)

    def storage(self) -> str:
        return self._run("info", "--format", "{{.DockerRootDir}}").stdout.strip()

    def run_command(self, definition: Definition) -> list[str]:
        return [*super().run_command(definition), definition.image, *definition.args]

    def _inspect(self, kind: str, ids: Sequence[str]) -> list[dict[str, Any]]:
        if not ids:
            return []
        # What went away since it was listed is missing in the answer, and the status says so.
        return _documents(self._run(kind, "inspect", *ids, check=False).stdout)


def _documents(text: str) -> list[dict[str, Any]]:
    with contextlib.suppress(ValueError):
        found = json.loads(text or "[]")
        if isinstance(found, list):
            return found
    raise HostError(f"cannot read the runtime's answer, which is no JSON list: {text[:200]!r}")


def _digests(sources: Sequence[str] | None) -> frozenset[str]:
    return frozenset(source.partition("@")[2] for source in sources or ())


def _state(said: str) -> str:
    return said if said in ("running", "restarting", "paused") else "stopped"


def _bare(identity: str) -> str:
    return identity.removeprefix("sha256:")


def _whole(name: str) -> str:
    """docker shortens the names of Docker Hub's images."""
    if "@" in name:
        repository, _, digest = name.partition("@")
        return f"{repository_of(repository)}@{digest}"
    repository, _, tag = name.rpartition(":")
    return f"{repository_of(repository)}:{tag}"


def _last(done: Completed) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()[-20:]
    return "".join(f"\n    {line[:500]}" for line in lines)
