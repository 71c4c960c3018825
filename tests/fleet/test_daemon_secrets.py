"""Secrets, passwords and certificates that are rotated under a running agent, each for real: what was good before is not any more.

One agent for all: etcd with TLS, client certificates and passwords, git over HTTPS with a password, HTTPS of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reconciler.cli.etcd_roles import Fleet, commands
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from tests.conftest import Etcd
from tests.etcd_server import EtcdServer, etcdctl
from tests.fleet import fleet
from tests.fleet.daemon import Answer, ask, port_of, wait_for_log
from tests.fleet.fleet import Machine, Servers
from tests.git_server import Server as GitServer
from tests.git_server import https_server
from tests.web.agent import Authority

pytestmark = pytest.mark.needs("etcd", "etcdctl", "git", "dpkg", "dpkg-deb", "openssl")
WITHIN = 60.0


@dataclass
class Secured:
    """The agent and all that lets it in somewhere. `files` are what it was told; `authority` is the one that etcd trusts now."""

    servers: Servers
    machine: Machine
    etcd: EtcdServer
    git: GitServer
    files: Path
    authority: Authority
    pushed: list[str] = field(default_factory=list)

    def put(self, name: str, content: bytes) -> None:
        """As a rotation does: another file in the place of the old one."""
        new = self.files / f"{name}.new"
        new.write_bytes(content)
        new.replace(self.files / name)

    def put_certificate(self, name: str, pair: tuple[Path, Path]) -> None:
        self.put(f"{name}.pem", pair[0].read_bytes())
        self.put(f"{name}.key", pair[1].read_bytes())

    def works(self) -> None:
        """A push reaches the host: git lets it in, and etcd."""
        version = f"1.{len(self.pushed)}"
        self.pushed.append(self.servers.push({"tool": version}))
        self.machine.signal(signal.SIGHUP)
        self.servers.wait(
            f"tool {version} is recorded",
            lambda: self.servers.recorded(0).get("deb/tool") == f"v{version}",
            within=WITHIN,
        )

    def ask(self, path: str, token: str = "", body: bytes | None = None, secret: str = "") -> Answer:
        headers = {"Authorization": f"Bearer {token}"}
        if body is not None:
            signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
            headers |= {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"}
        tls = Authority(self.files.parent / "ca").trusting()
        return ask(self.machine, path, headers=headers, body=body, tls=tls)


def arguments_of_etcd(authority: Authority) -> tuple[str, ...]:
    cert, key = authority.issue("etcd", "etcd")
    return (
        *("--cert-file", str(cert), "--key-file", str(key)),
        *("--trusted-ca-file", str(authority.ca), "--client-cert-auth"),
    )


def rights(keys: Keys, user: str) -> list[tuple[str, ...]]:
    """What `reconcile etcd-roles` prints of server 0's roles, and of who has them."""
    printed = [shlex.split(line) for line in commands(keys, Fleet((0,))) if line.startswith("etcdctl ")]
    ours = [words[1:] for words in printed if words[1] == "role" or words[2:4] == ["grant-role", user]]
    return [tuple(word for word in words if word not in ("||", "true")) for words in ours]


@pytest.fixture(scope="module")
def one_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    directory = tmp_path_factory.mktemp("secured")
    authority, files = Authority.make(directory / "ca"), directory / "files"
    files.mkdir()
    with EtcdServer(arguments=arguments_of_etcd(authority), scheme="https") as server:
        for name, pair in (
            ("etcd", authority.issue("agent", "agent")),
            ("tls", authority.issue("old", "old")),
        ):
            for source, target in zip(pair, (f"{name}.pem", f"{name}.key"), strict=True):
                shutil.copy(source, files / target)
        for name in ("ca.pem", "git-ca.pem"):
            shutil.copy(authority.ca, files / name)
        for name, text in (
            ("password", "one"),
            ("token", "token-one"),
            ("hook", "hook-one"),
            ("git", "git-one"),
        ):
            (files / name).write_text(f"{text}\n")
        (files / "root").write_text("rootpw")
        how = [f"{files}/ca.pem", f"{files}/etcd.pem", f"{files}/etcd.key"]
        operator = ("--cacert", how[0], "--cert", how[1], "--key", how[2])
        keys = Keys(f"/test/{secrets.token_hex(6)}/")
        for words in (
            ("user", "add", "root:rootpw"),
            ("user", "grant-role", "root", "root"),
            ("user", "add", "agent-0:one"),
            *rights(keys, "agent-0"),
            ("auth", "enable"),
        ):
            etcdctl(server.endpoint, *operator, *words)
        options = EtcdOptions(server.endpoints, how[0], how[1], how[2], "root", f"{files}/root")
        certificate, key = authority.issue("git", "git")
        with (
            Client(options) as client,
            https_server(directory, certificate, key) as git,
            fleet.running(Etcd(server, keys, client), directory) as servers,
        ):
            git.password = "git-one"
            machine = servers.add(0, *_arguments(files, git))
            servers.start()
            made = Secured(servers, machine, server, git, files, authority)
            wait_for_log(servers, machine, "serves https")
            made.works()
            yield made
            assert machine.terminate() == 0
            for secret in ("token-one", "token-two", "hook-one", "hook-two", "git-one", "git-two", "rootpw"):
                assert secret not in machine.log


@pytest.fixture
def secured(one_agent: Secured) -> Iterator[Secured]:
    yield one_agent
    one_agent.servers.prove()


def _arguments(files: Path, git: GitServer) -> list[str]:
    told = {
        "repo": f"{git.url}/fleet.git",
        "verify": "none",
        "git-ca": files / "git-ca.pem",
        "git-username": "ops",
        "git-password-file": files / "git",
        "etcd-ca": files / "ca.pem",
        "etcd-cert": files / "etcd.pem",
        "etcd-key": files / "etcd.key",
        "etcd-user": "agent-0",
        "etcd-password-file": files / "password",
        "tls-cert": files / "tls.pem",
        "tls-key": files / "tls.key",
        "token-file": files / "token",
        "webhook-secret-file": files / "hook",
    }
    return [word for name, value in told.items() for word in (f"--{name}", str(value))]


def test_the_bearer_token(secured: Secured) -> None:
    assert secured.ask("/metrics", "token-one").status == 200
    secured.put("token", b"token-two\n")
    assert secured.ask("/metrics", "token-one").status == 401
    assert secured.ask("/metrics", "token-two").status == 200


def test_the_webhooks_secret(secured: Secured) -> None:
    body = json.dumps({"ref": "refs/heads/main"}).encode()
    assert secured.ask("/hooks/git", body=body, secret="hook-one").status == 202
    secured.put("hook", b"hook-two\n")
    assert secured.ask("/hooks/git", body=body, secret="hook-one").status == 401
    assert secured.ask("/hooks/git", body=body, secret="hook-two").status == 202
    another = json.dumps({"ref": "refs/heads/main", "repository": {"full_name": "ops/another"}}).encode()
    ignored = secured.ask("/hooks/git", body=another, secret="hook-two")
    assert (ignored.status, json.loads(ignored.text)) == (
        202,
        {"fetch": False, "reason": "it is about another repository"},
    )


def test_the_certificate_of_its_own_http(secured: Secured) -> None:
    def served() -> str:
        port = port_of(secured.machine)
        tls = Authority(secured.files.parent / "ca").trusting()
        with (
            socket.create_connection(("127.0.0.1", port or 0), timeout=10) as raw,
            tls.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
        ):
            names = (connection.getpeercert() or {})["subjectAltName"]
        return next(str(name[1]) for name in names if name[0] == "DNS")

    assert served() == "old"
    secured.put_certificate("tls", Authority(secured.files.parent / "ca").issue("new", "new"))
    assert served() == "new"


def test_the_password_for_git(secured: Secured) -> None:
    secured.git.password = "git-two"
    secured.machine.signal(signal.SIGHUP)
    wait_for_log(secured.servers, secured.machine, "git cannot be read")
    secured.put("git", b"git-two\n")
    secured.works()


def test_the_password_for_etcd(secured: Secured) -> None:
    how = [str(secured.files / name) for name in ("ca.pem", "etcd.pem", "etcd.key")]
    operator = ("--cacert", how[0], "--cert", how[1], "--key", how[2], "--user", "root:rootpw")
    etcdctl(
        secured.etcd.endpoint,
        *operator,
        *("user", "passwd", "agent-0", "--interactive=false"),
        stdin="two\n",
    )
    secured.put("password", b"two\n")
    secured.works()


def test_the_certificates_for_etcd(secured: Secured) -> None:
    """Another authority: after etcd's restart neither knows what the other showed before."""
    other = Authority.make(secured.files.parent / "ca-2")
    member = secured.etcd.members[0]
    member.arguments = arguments_of_etcd(other)
    member.kill()
    member.start()
    secured.servers.wait("it misses etcd", lambda: "etcd" in secured.ask("/readyz").text, within=WITHIN)
    secured.put("ca.pem", other.ca.read_bytes())
    secured.put_certificate("etcd", other.issue("agent", "agent"))
    secured.servers.wait("it is ready again", lambda: secured.ask("/readyz").status == 200, within=WITHIN)
    secured.works()
