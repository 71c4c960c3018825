"""A real etcd for tests and benchmarks: one member or three, in a directory that is removed, on loopback ports that are free."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.etcd_users import ROOT, Users
from tests.ports import free_ports

READY_WITHIN = 20.0


def etcdctl(
    endpoint: str, *words: str, timeout: float = 10, stdin: str | None = None, login: str = ""
) -> str:
    """What `etcdctl` prints. `login` is `user:password`."""
    result = subprocess.run(
        ["etcdctl", "--endpoints", endpoint, *words],
        env={**os.environ, "ETCDCTL_API": "3", **({"ETCDCTL_USER": login} if login else {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if result.returncode != 0:
        raise AssertionError(f"etcdctl {' '.join(words)}: {result.stderr}")
    return result.stdout


@dataclass
class Member:
    """One etcd process. `arguments` are added to its command line."""

    name: str
    directory: Path
    client_port: int
    peer_port: int
    cluster: str = ""
    arguments: tuple[str, ...] = ()
    scheme: str = "http"
    host: str = "127.0.0.1"
    before: tuple[str, ...] = ()
    """What goes before its command: where it runs."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self.host}:{self.client_port}"

    @property
    def peer(self) -> str:
        return f"http://{self.host}:{self.peer_port}"

    def start(self, wait: bool = True) -> None:
        log = (self.directory.parent / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            [
                *self.before,
                "etcd",
                "--name", self.name,
                "--data-dir", str(self.directory),
                "--listen-client-urls", self.endpoint,
                "--advertise-client-urls", self.endpoint,
                "--listen-peer-urls", self.peer,
                "--initial-advertise-peer-urls", self.peer,
                "--initial-cluster", self.cluster or f"{self.name}={self.peer}",
                "--heartbeat-interval", "50",
                "--election-timeout", "500",
                *self.arguments,
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
        log.close()
        if wait:
            self.wait_until_it_listens()

    def wait_until_it_listens(self) -> None:
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            if self.process is not None and self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.client_port), 1):
                return
            time.sleep(0.02)
        log = (self.directory.parent / f"{self.name}.log").read_text(errors="replace")
        raise AssertionError(f"etcd {self.name} did not start:\n{log[-2000:]}")

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """SIGTERM: what it has done is on its disk, and not done again from its log at the next start. The data stays."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def kill(self) -> None:
        """SIGKILL, and wait for its end. The data stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class EtcdServer:
    """One or several members that form a cluster, and their directory. With `users`, authentication is on from the start."""

    def __init__(
        self,
        members: int = 1,
        arguments: Sequence[str] = (),
        scheme: str = "http",
        users: Users | None = None,
    ) -> None:
        self.users = users
        self.directory = Path(tempfile.mkdtemp(prefix="etcd-"))
        ports = free_ports(2 * members)
        self.members = [
            Member(
                f"m{index}",
                self.directory / f"m{index}",
                ports[2 * index],
                ports[2 * index + 1],
                arguments=tuple(arguments),
                scheme=scheme,
            )
            for index in range(members)
        ]

    def start(self) -> EtcdServer:
        cluster = ",".join(f"{member.name}={member.peer}" for member in self.members)
        for member in self.members:
            member.cluster = cluster
        if self.users is not None:
            for member in self.members:
                self.restore(member, self.users.snapshot)
        for member in self.members:
            member.start(wait=False)
        for member in self.members:
            member.wait_until_it_listens()
        if self.members[0].scheme == "http":
            self.wait_until_it_serves()
        return self

    def wait_until_it_serves(self) -> None:
        """Until a linearizable read is answered."""
        end = time.monotonic() + READY_WITHIN
        while True:
            try:
                self.etcdctl("get", "nothing", "--command-timeout", "1s")
                return
            except AssertionError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def etcdctl(self, *words: str, user: str = ROOT, stdin: str | None = None) -> str:
        """What `etcdctl` prints to `user` at the first member."""
        return etcdctl(self.endpoint, *words, stdin=stdin, login=self.login(user))

    def login(self, user: str) -> str:
        """What `etcdctl` is told; nothing where there are no users."""
        return self.users.login(user) if self.users is not None else ""

    def restore(self, member: Member, snapshot: Path) -> None:
        """Make the data of a member that does not run: what `snapshot` has, in a cluster of these members."""
        etcdctl(
            member.endpoint, "snapshot", "restore", str(snapshot), "--data-dir", str(member.directory),
            "--name", member.name, "--initial-cluster", member.cluster, "--initial-advertise-peer-urls", member.peer,
        )  # fmt: skip

    def stop(self) -> None:
        """End all members and remove their data."""
        for member in self.members:
            member.resume()
            member.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> EtcdServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    @property
    def endpoint(self) -> str:
        return self.members[0].endpoint

    def leader(self) -> Member:
        """The member that leads the cluster now."""
        for member in self.members:
            if member.process is None:
                continue
            words = ("endpoint", "status", "--write-out", "fields")
            text = etcdctl(member.endpoint, *words, login=self.login(ROOT))
            fields = dict(line.split(" : ", 1) for line in text.splitlines() if " : " in line)
            if fields['"MemberID"'] == fields['"Leader"']:
                return member
        raise AssertionError("no member leads")
