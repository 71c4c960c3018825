#!/usr/bin/env python3
"""Three boot servers on one machine follow a git repository. Run by `make demo`; takes less than two minutes.

Everything is real and small: an etcd, a bare git repository, a release server, a registry, and three agents, each with
a root directory for dpkg and a storage for podman of its own. Every command that is shown is run. All of it lives in
one temporary directory and ends with the demo, also on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts import build_package, push_image, static_busybox
from machines import (
    Server,
    container_settings_that_work,
    etcd,
    free_port,
    free_ports_that_end_in,
    interruption,
    outside,
    registry,
    running,
)
from release_server import release_server

HERE = Path(__file__).resolve().parent
RECONCILE = Path(sys.executable).with_name("reconcile")
SERVERS = (0, 1, 2)
PACKAGES = (("boot-clock", "2.1.0"), ("boot-clock", "2.2.0"), ("boot-motd", "0.3.0"), ("boot-users", "1.4.0"))
PATIENCE = 60.0
"""Seconds that one rollout may take before the demo gives up and shows the agents' logs."""


class DemoFailed(Exception):
    """The demo cannot go on; says why."""


# --- telling ----------------------------------------------------------------------------------------------------------


def say(text: str, *, bold: bool = False) -> None:
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\033[1m{text}\033[0m" if bold and coloured else text, flush=True)


def chapter(title: str) -> None:
    say(f"\n── {title} {'─' * max(3, 96 - len(title))}", bold=True)


# --- the fleet --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything that runs, and how the commands of the demo reach it."""

    directory: Path
    servers: tuple[Server, ...]
    environment: Mapping[str, str]
    words: Mapping[str, str]
    """What stands between @ signs in the revisions, and what it is here."""
    images: bool

    @property
    def work_tree(self) -> Path:
        return self.directory / "fleet"

    def command(self, *argv: str, expected: tuple[int, ...] = (0,)) -> None:
        """Show a command, run it in the work tree, and show what it prints."""
        say(f"\n$ {shlex.join(argv)}", bold=True)
        # In a session of its own, as all that the demo starts: Ctrl-C is for the demo.
        status = subprocess.run(
            self._found(argv),
            start_new_session=True,
            cwd=self.work_tree,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        ).returncode
        if status not in expected:
            raise DemoFailed(f"{argv[0]} ended with exit status {status}, and {expected} was expected")

    def status(self) -> dict[str, object]:
        """What `reconcile status` says, as JSON; nothing while etcd has nothing to tell."""
        argv = self._found(("reconcile", "status", "--output", "json"))
        ended = subprocess.run(
            argv,
            cwd=self.work_tree,
            env=self.environment,
            start_new_session=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        try:
            found: dict[str, object] = json.loads(ended.stdout)
        except ValueError:
            raise DemoFailed(f"reconcile status does not answer: {ended.stderr.strip()}") from None
        return found

    def write(self, revision: str) -> None:
        """Put a revision's files over what is in the work tree."""
        target = self.work_tree / "desired-state"
        target.mkdir(exist_ok=True)
        for source in sorted((HERE / "revisions" / revision).glob("*.yaml")):
            if source.name == "images.yaml" and not self.images:
                continue
            (target / source.name).write_text(_filled(source.read_text(), self.words))

    def commit(self, message: str) -> str:
        """Commit the work tree; the commit."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", message)
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=self.work_tree,
            env=self.environment,
            start_new_session=True,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout

    @staticmethod
    def _found(argv: tuple[str, ...]) -> list[str]:
        return [str(RECONCILE) if argv[0] == "reconcile" else argv[0], *argv[1:]]


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, meaning in words.items():
        text = text.replace(f"@{word}@", meaning)
    return text


@contextlib.contextmanager
def fleet(directory: Path) -> Iterator[Fleet]:
    """Etcd, git, releases, registry and three agents, for as long as the block runs."""
    with contextlib.ExitStack() as stack:
        words = {"WEB": str(free_ports_that_end_in(SERVERS))}
        settings = _container_settings(directory)
        say("  starting etcd, and a git repository")
        endpoint = stack.enter_context(etcd(directory))
        say(f"  building {len(PACKAGES)} packages with dpkg-deb, and serving them as GitHub releases")
        releases = {
            ("example", name, f"v{version}"): build_package(directory, name, version)
            for name, version in PACKAGES
        }
        github = stack.enter_context(release_server(releases))
        if settings is not None:
            say("  starting a registry, and pushing two tags of two images to it")
            words["REGISTRY"] = stack.enter_context(registry(directory))
            for name, tag in (("tools", "1.0"), ("tools", "1.1"), ("web", "1.0"), ("web", "1.1")):
                push_image(words["REGISTRY"], name, tag, _busybox())
            words["BUSYBOX"] = str(_busybox())
        servers = tuple(Server(lrn, directory / f"server-{lrn}", settings is not None) for lrn in SERVERS)
        for server in servers:
            server.create(settings or "")
            server.allow(
                (HERE / "host" / "policy.yaml").read_text(),
                {"web-answers": _filled((HERE / "host" / "web-answers").read_text(), words)}
                if settings is not None
                else {},
            )
        environment = {
            **outside(),
            "PATH": f"{RECONCILE.parent}:{os.environ['PATH']}",
            "RECONCILER_ETCD": endpoint,
            "RECONCILER_REPO": str(directory / "fleet.git"),
            "RECONCILER_STATE_DIR": str(directory / "operator"),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            **{
                f"GIT_{who}_{what}": "demo@example.invalid"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        made = Fleet(directory, servers, environment, words, settings is not None)
        _make_repository(made)
        say("  starting three agents\n")
        for server in servers:
            stack.enter_context(server.without_leftovers())
            stack.enter_context(_agent(server, made, github))
        yield made


def _container_settings(directory: Path) -> str | None:
    """How podman works here; None, said aloud, where it does not."""
    missing = [program for program in ("podman", "docker-registry") if not shutil.which(program)]
    if static_busybox() is None:
        missing.append("a static busybox (busybox-static)")
    if missing:
        say(f"  {' and '.join(missing)} is not here: the images are left out, packages only")
        return None
    settings, said = container_settings_that_work(directory, _busybox())
    if settings is None:
        say(f"  podman cannot run a container here ({said}): the images are left out, packages only")
    return settings


def _busybox() -> Path:
    found = static_busybox()
    if found is None:
        raise DemoFailed("a static busybox was here a moment ago and is gone")
    return found


def _make_repository(fleet: Fleet) -> None:
    for argv in (
        ["git", "init", "--quiet", "--bare", "--initial-branch=main", "fleet.git"],
        ["git", "clone", "--quiet", "fleet.git", "fleet"],
        ["git", "-C", "fleet", "symbolic-ref", "HEAD", "refs/heads/main"],
    ):
        subprocess.run(
            argv, cwd=fleet.directory, env=fleet.environment, capture_output=True, timeout=30, check=True
        )


@contextlib.contextmanager
def _agent(server: Server, fleet: Fleet, github: str) -> Iterator[None]:
    argv = [str(RECONCILE), "agent", "--lrn", str(server.lrn), "--ref", "main", "--verify", "none"]
    argv += [
        "--host-root",
        str(server.root),
        "--host-exec",
        "direct",
        "--state-dir",
        str(server.directory / "state"),
    ]
    argv += ["--github-api", github]
    argv += [
        "--listen",
        f"127.0.0.1:{free_port()}",
        "--interval",
        "5s",
        "--log-format",
        "text",
        "--allow-demo-etcd",
    ]
    if fleet.images:
        argv += ["--runtime", "podman"]
    environment = {**server.environment, **fleet.environment}
    environment.pop("RECONCILER_STATE_DIR")
    with running(argv, server.log, grace=20.0, env=environment):
        yield


# --- the story --------------------------------------------------------------------------------------------------------


def wait_for_agents(fleet: Fleet) -> None:
    """Until each agent has registered its server in etcd."""
    deadline = time.monotonic() + 20
    while True:
        servers = fleet.status().get("servers")
        if isinstance(servers, list) and len(servers) == len(fleet.servers):
            return
        if time.monotonic() > deadline:
            raise DemoFailed("not every agent has registered its server within 20 s")
        time.sleep(0.2)


def wait_for_rollout(fleet: Fleet, revision: str) -> None:
    """Show what the fleet does until every server is at `revision`."""
    began, last = time.monotonic(), ""
    while True:
        status = fleet.status()
        rollout = status.get("rollout")
        opened = isinstance(rollout, dict) and rollout.get("revision") == revision
        message = (
            f"{status.get('state')}: {status.get('message')}"
            if opened
            else "the leader has not opened it yet"
        )
        if message != last:
            say(f"  {time.monotonic() - began:5.1f} s  {message}")
            last = message
        if opened and isinstance(rollout, dict) and rollout.get("outcome"):
            return
        if time.monotonic() - began > PATIENCE:
            raise DemoFailed(f"the fleet did not reach {revision[:12]} within {PATIENCE:g} s")
        time.sleep(0.3)


def show_servers(fleet: Fleet) -> None:
    """What dpkg, podman and the containers themselves say: the hosts and not etcd's word for it."""
    say("\nOn the servers themselves:")
    for server in fleet.servers:
        say(f"  server {server.lrn}   dpkg: {server.packages()}")
        if fleet.images:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{fleet.words['WEB']}{server.lrn}/", timeout=10
            ) as page:
                said = page.read().decode().strip()
            say(f"             podman: {server.images()}; its web server says: {said}")


def push(fleet: Fleet, message: str) -> str:
    revision = fleet.commit(message)
    fleet.command("git", "push", "--quiet", "origin", "HEAD:main")
    return revision


def show_refusal(fleet: Fleet, revision: str) -> None:
    """The agents' own words about a revision that they refused."""
    deadline = time.monotonic() + 20
    while True:
        for server in fleet.servers:
            lines = [
                line
                for line in server.log.read_text(errors="replace").splitlines()
                if "packages.yaml:" in line
            ]
            if lines:
                say(f"\nThe agent of server {server.lrn}, in its log:")
                for line in lines[:4]:
                    say(f"  {line}")
                return
        if time.monotonic() > deadline:
            raise DemoFailed(f"no agent refused {revision[:12]}")
        time.sleep(0.2)


def story(directory: Path) -> None:
    chapter("Three servers, with nothing on them")
    with fleet(directory) as made:
        wait_for_agents(made)
        chapter("1. A desired state: packages" + (" and images" if made.images else ""))
        made.write("1-first")
        made.command(
            "tail",
            "-n",
            "+1",
            *sorted(str(p.relative_to(made.work_tree)) for p in made.work_tree.glob("*/*.yaml")),
        )
        made.command("reconcile", "validate", "desired-state")
        revision = made.commit("What the servers start with")
        made.command("reconcile", "--repo", ".", "--dry-run", "--all")
        say("\nNothing has happened yet. The push starts it:")
        made.command("git", "push", "--quiet", "origin", "HEAD:main")
        say(
            "\nServer 0 goes first, then the other two; nobody enters a phase before its wave is through the last one:"
        )
        wait_for_rollout(made, revision)
        show_servers(made)

        chapter("2. An upgrade and a removal")
        made.write("2-upgrade")
        revision = made.commit("boot-clock 2.2.0 and the images' 1.1; boot-motd goes")
        made.command("reconcile", "--repo", ".", "diff", "HEAD~1", "HEAD")
        made.command("git", "push", "--quiet", "origin", "HEAD:main")
        wait_for_rollout(made, revision)
        show_servers(made)

        chapter("3. A mistake")
        made.write("3-mistake")
        made.command("git", "diff", "--unified=0", "--", "desired-state/packages.yaml")
        say("\nBefore a push, `reconcile validate` would say so (exit status 5):")
        made.command("reconcile", "validate", "desired-state", expected=(5,))
        say("\nPushed all the same, the whole revision is refused, and the last good one stays in force:")
        revision = push(made, "A release as a number, and a typing error")
        show_refusal(made, revision)
        show_servers(made)

        chapter("What the fleet says of itself")
        made.command("reconcile", "status")


def main() -> int:
    if not RECONCILE.exists():
        print(f"cannot run the demo: {RECONCILE} is not there; run it by `make demo`", file=sys.stderr)
        return 1
    if os.geteuid() != 0:
        # dpkg installs as root only; root of a user namespace is enough for directories of one's own.
        if os.environ.get("THREE_SERVERS_UNSHARED") or not shutil.which("unshare"):
            print("cannot run the demo: dpkg wants root; run it with sudo", file=sys.stderr)
            return 1
        os.environ["THREE_SERVERS_UNSHARED"] = "1"
        unshare = ["unshare", "--map-root-user", "--", sys.executable, *sys.argv]
        os.execvp("unshare", unshare)  # noqa: S606  (an argument list; replaces this process)
    # A hook that others than root could write is not run.
    os.umask(0o022)
    interruption.catch()
    directory: Path | None = None
    began = time.monotonic()
    try:
        with interruption.held():
            directory = Path(tempfile.mkdtemp(prefix="three-servers-"))
        story(directory)
    except KeyboardInterrupt:
        say("\ninterrupted: cleaned up")
        return 130
    except (DemoFailed, subprocess.SubprocessError, OSError, RuntimeError) as error:
        say(f"\nThe demo failed: {error}")
        if directory is not None:
            _show_logs(directory)
        return 1
    finally:
        if directory is not None:
            with interruption.held():
                shutil.rmtree(directory, ignore_errors=True)
    say(f"\nDone in {time.monotonic() - began:.0f} s; every process has ended and {directory} is removed.")
    return 0


def _show_logs(directory: Path) -> None:
    for log in sorted(directory.glob("*/agent.log")):
        lines = log.read_text(errors="replace").splitlines()[-15:]
        say(f"\n{log}:\n" + "\n".join(f"  {line}" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
