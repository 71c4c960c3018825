"""A small fleet in a real etcd, for the tests of views and writes."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.artifact import Image, Key, ReleaseDeb
from reconciler.core.state import Detail, Installed, Leader, Machine, Rollout, StepRecord, Wave
from reconciler.store.leading import LeaderWrites
from reconciler.store.serving import AgentWrites, register
from reconciler.store.session import AgentKey, Candidate, Session, register_agent
from reconciler.store.transaction import one
from tests.conftest import Etcd

STARTED = "2026-01-02T03:04:05.000000006Z"
LATER = "2026-01-02T04:00:00.000000000Z"
CHANGE = "containers:image/etcd:change"
ETCD = Key("image", "etcd")


def rollout(version: str = "c1", servers: tuple[int, ...] = (0, 1), started_at: str = STARTED) -> Rollout:
    return Rollout(version, servers, started_at, (Wave(servers),))


def image(tag: str) -> Installed:
    """An etcd image as it is recorded once it is there."""
    desired = Image("etcd", "quay.io/cybozu/etcd", tag)
    return Installed(ETCD, tag, Detail(desired, "sha256:" + "0" * 64, "c1", LATER))


def deb(release: str) -> Installed:
    desired = ReleaseDeb("etcdpasswd", "cybozu-go", "etcdpasswd", release)
    return Installed(desired.key, release, Detail(desired, release, "c1", LATER))


def running(id: str = CHANGE, mod_revision: int = 0) -> StepRecord:
    return StepRecord(id, STARTED, "running", boot_id="b1", at=LATER, mod_revision=mod_revision)


@dataclass
class Fleet:
    """A leader and the agents of the servers 0 and 1, with their sessions."""

    etcd: Etcd
    leader: LeaderWrites
    agents: tuple[AgentWrites, ...]
    sessions: tuple[Session, ...]

    def value(self, key: str) -> str | None:
        (found,) = self.etcd.client.read([one(key)]).items
        return found[0].value.decode() if found else None


def lead(etcd: Etcd, session: Session, host: str = "boot-0") -> LeaderWrites:
    candidate = Candidate(etcd.client, etcd.keys, session, host)
    candidate.campaign()
    leader: Leader | None = candidate.leader()
    assert leader is not None
    return LeaderWrites(etcd.client, etcd.keys, leader)


def serve(etcd: Etcd, session: Session, lrn: int) -> AgentWrites:
    machine: Machine = register(etcd.client, etcd.keys, lrn, f"m{lrn}")
    key = register_agent(etcd.client, etcd.keys, session, lrn, f"boot-{lrn}", f"m{lrn}")
    assert isinstance(key, AgentKey)
    return AgentWrites(etcd.client, etcd.keys, key, machine)
