"""An agent's HTTP interface as the tests use it: served for real on loopback, over what a test publishes."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from reconciler.core.artifact import AptDeb, Image, Key
from reconciler.core.change import Change
from reconciler.core.published import Durations, Heartbeat, Published
from reconciler.core.report import report
from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import (
    Agent,
    ArtifactSet,
    Desired,
    Fleet,
    Installed,
    Leader,
    Lock,
    Now,
    OpenPhase,
    Revision,
    Rollout,
    ServerGroup,
    ServerStatus,
    Waiter,
    Wave,
)
from reconciler.web.app import ServeOptions, serve
from reconciler.web.connection import Limits
from reconciler.web.listener import Listen, Server
from reconciler.web.webhook import Followed

REVISION = "1a2b3c4d5e6f" + 28 * "0"
STARTED = "2026-01-02T03:04:05.000000006Z"

DESIRED = Desired(
    Revision(REVISION, "https://git.example.com/ops/fleet.git", "main"),
    (
        ArtifactSet(
            (Image("etcd", "quay.io/cybozu/etcd", "3.5.5.1"), AptDeb("chrony", "4.3-2+deb12u1")), frozenset()
        ),
    ),
    (ServerGroup("boot", frozenset({0, 1})),),
)

FLEET = Fleet(
    etcd_revision=88123,
    servers=frozenset({0, 1}),
    recorded={0: {Key("image", "etcd"): Installed(Key("image", "etcd"), "3.5.4.1")}},
    noted=REVISION,
    rollout=Rollout(REVISION, (0, 1), STARTED, (Wave((0, 1)),), mod_revision=7),
    phase=OpenPhase(STARTED, 1, 4),
    statuses={0: ServerStatus(REVISION, STARTED, 4, waiting="slot"), 1: ServerStatus(REVISION, STARTED, 5)},
    leader=Leader("boot-0", "/neco/leader/updater//1", 5),
    agents=(Agent(0, "boot-0", "m0", "a"),),
    locks={
        "default": Lock(
            "default",
            Semaphore(2, ("m1",)),
            (Holder("m1", "agent", 1, start_time=1_700_000_000),),
            (Waiter("w", "m0", 0),),
        )
    },
)


def published(fleet: Fleet = FLEET, desired: Desired | None = DESIRED, **changes: Any) -> Published:
    """An agent in the middle of a rollout, healthy; with `changes` by name."""
    now = Now(time.time(), time.monotonic())
    state = Published(
        lrn=0,
        host="boot-0",
        version="0.1.0",
        heartbeats=(Heartbeat("git", now.monotonic, 60.0), Heartbeat("worker", now.monotonic, 60.0)),
        status=report(fleet, desired, now),
        fleet=fleet,
        desired=desired,
        fetched=now.monotonic - 5,
        fetches=12,
        failed_fetches=2,
        leads=True,
        lease_left=8.5,
        pending=2,
        drift=(Change(Key("deb", "chrony"), "install", None, None, "missing_on_host"),),
        drift_checked=now.monotonic - 30,
        reboot_required=True,
        etcd_requests={"Txn": 17, "Range": 4, "error UNAVAILABLE": 3},
        passes={"git": Durations().add(0.2).add(4.0).add(9999.0)},
        errors={("git", "Unavailable"): 2},
        steps={("change", "done"): Durations().add(2.0), ("health", "failed"): Durations().add(60.0)},
    )
    return replace(state, **changes)


@dataclass
class Behind:
    """What an agent would be behind the server: what it publishes, and how often its bell was rung."""

    state: Published = field(default_factory=published)
    rung: int = 0
    bell: threading.Event = field(default_factory=threading.Event)

    def fetch_now(self) -> None:
        self.rung += 1
        self.bell.set()


@contextmanager
def serving(
    agent: Behind | None = None,
    *,
    address: str = "127.0.0.1:0",
    followed: Followed | None = None,
    token_file: Path | None = None,
    webhook_secret_file: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    limits: Limits | None = None,
) -> Iterator[Server]:
    """An agent's server on a free port, closed at the end."""
    behind = agent or Behind()
    options = ServeOptions(
        Listen(address, tls_cert, tls_key, limits=limits or Limits()),
        followed or Followed("https://git.example.com/ops/fleet.git"),
        token_file,
        webhook_secret_file,
    )
    server = serve(options, lambda: behind.state, behind.fetch_now)
    try:
        yield server
    finally:
        server.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Listening(Protocol):
    """Whoever serves HTTP on loopback, in this process or another."""

    @property
    def port(self) -> int: ...


def ask(
    server: Listening,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    timeout: float = 20.0,
) -> Answer:
    """One request, on a connection of its own."""
    connection = (
        http.client.HTTPSConnection("127.0.0.1", server.port, timeout=timeout, context=tls)
        if tls
        else http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    )
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a test, made by `openssl`."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Authority:
        directory.mkdir()
        authority = cls(directory)
        authority._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem",
        )  # fmt: skip
        return authority

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def issue(self, name: str, file: str) -> tuple[Path, Path]:
        """A certificate for `name` and for 127.0.0.1, and its key."""
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{file}.key", "-out", f"{file}.csr",
        )  # fmt: skip
        (self.directory / f"{file}.ext").write_text(f"subjectAltName=IP:127.0.0.1,DNS:{name}\n")
        self._openssl(
            "x509", "-req", "-in", f"{file}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{file}.ext", "-out", f"{file}.pem",
        )  # fmt: skip
        return self.directory / f"{file}.pem", self.directory / f"{file}.key"

    def trusting(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client of this authority's servers uses, with its own certificate if it has one."""
        context = ssl.create_default_context(cafile=self.ca)
        if client:
            context.load_cert_chain(*client)
        return context

    def encrypt(self, key: Path, to: Path) -> None:
        """The same key, with a password."""
        self._openssl("ec", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(to))

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.directory, check=True, capture_output=True, timeout=30)
