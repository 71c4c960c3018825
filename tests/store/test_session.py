"""Sessions, the leader's line and one agent a server, on a real etcd."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from reconciler.errors import Fenced, Unavailable
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.library import etcd_and_grpc
from reconciler.store.session import (
    AgentKey,
    Candidate,
    Occupied,
    Session,
    is_agent_alive,
    read_leader,
    register_agent,
)
from reconciler.store.transaction import one, put, under
from tests.conftest import Etcd
from tests.etcd_server import EtcdServer


@contextlib.contextmanager
def ends_refreshes(refreshed: list[bool]) -> Iterator[str]:
    """An etcd of which nothing but leases works, and which ends the first two refreshes with neither an answer nor an error."""
    rpc, grpc = etcd_and_grpc()

    def keep_alive(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            refreshed.append(len(refreshed) >= 2)
            if not refreshed[-1]:
                return
            yield rpc.LeaseKeepAliveResponse(ID=request.ID, TTL=2)

    def handler(kind: Any, function: Any, request: Any, reply: Any) -> Any:
        return kind(
            function, request_deserializer=request.FromString, response_serializer=reply.SerializeToString
        )

    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    methods = {
        "LeaseGrant": handler(
            unary,
            lambda request, context: rpc.LeaseGrantResponse(ID=7, TTL=2),
            rpc.LeaseGrantRequest,
            rpc.LeaseGrantResponse,
        ),
        "LeaseRevoke": handler(
            unary,
            lambda request, context: rpc.LeaseRevokeResponse(),
            rpc.LeaseRevokeRequest,
            rpc.LeaseRevokeResponse,
        ),
        "LeaseKeepAlive": handler(stream, keep_alive, rpc.LeaseKeepAliveRequest, rpc.LeaseKeepAliveResponse),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("etcdserverpb.Lease", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait(5)


class TestSession:
    def test_it_outlives_its_ttl_and_ends_when_closed(self, etcd: Etcd) -> None:
        with Session(etcd.client, 1) as session:
            key = f"{etcd.prefix}k"
            etcd.client.txn([], [put(key, "v", session.lease)])
            time.sleep(session.ttl + 1.2)
            assert session.alive
            assert 0 < session.remaining <= session.ttl
            assert etcd.client.read([one(key)]).items[0]
        assert not session.alive
        assert etcd.client.read([one(key)]).items == ((),)

    def test_a_lease_that_is_revoked_behind_its_back_is_noticed(self, etcd: Etcd) -> None:
        lost: queue.Queue[str] = queue.Queue()
        with Session(etcd.client, 3, lost.put) as session:
            etcd.client.revoke(session.lease)
            assert "does not know it" in lost.get(timeout=3)
            assert not session.alive

    def test_a_refresh_that_ends_without_an_answer_is_tried_again(self) -> None:
        """As where a proxy stands between: etcd itself always answers or says what is wrong."""
        refreshed: list[bool] = []
        lost: queue.Queue[str] = queue.Queue()
        with ends_refreshes(refreshed) as endpoint, Client(EtcdOptions((endpoint,))) as client:
            with pytest.raises(Unavailable, match=r"LeaseKeepAlive.* ended the call without an answer"):
                client.refresh(7)
            with Session(client, 2, lost.put) as session:
                time.sleep(session.ttl + 1)
                assert session.alive and lost.empty()
        assert refreshed.count(False) == 2 and True in refreshed

    def test_it_counts_itself_out_when_etcd_is_frozen(self, etcd_cluster: EtcdServer) -> None:
        lost: queue.Queue[str] = queue.Queue()
        with Client(EtcdOptions((etcd_cluster.endpoint,)), timeout=1) as client:
            session = Session(client, 2, lost.put)
            started = time.monotonic()
            for member in etcd_cluster.members:
                member.pause()
            try:
                assert "has not confirmed it for 2 s" in lost.get(timeout=5)
                assert 1 < time.monotonic() - started < 3.5
                assert not session.alive
            finally:
                for member in etcd_cluster.members:
                    member.resume()
            session.close()

    def test_it_survives_the_end_of_etcds_leader(self, etcd_cluster: EtcdServer) -> None:
        with Client(EtcdOptions(etcd_cluster.endpoints)) as client, Session(client, 5) as session:
            etcd_cluster.leader().kill()
            time.sleep(6)
            assert session.alive
            assert client.refresh(session.lease) > 0, "etcd knows it too"


class TestElection:
    def test_the_first_in_line_leads_and_the_next_follows(self, etcd: Etcd) -> None:
        with Session(etcd.client, 10) as one_session, Session(etcd.client, 10) as two_session:
            first = Candidate(etcd.client, etcd.keys, one_session, "boot-0")
            second = Candidate(etcd.client, etcd.keys, two_session, "boot-1")
            assert first.leader() is None
            first.campaign()
            second.campaign()
            first.campaign()  # asking again keeps one's place
            leader = first.leads()
            assert leader is not None
            assert (leader.host, leader.key) == (
                "boot-0",
                f"{etcd.prefix}leader/updater//{one_session.lease:x}",
            )
            assert second.leads() is None
            assert second.leader() == leader
            first.resign()
            first.resign()
            following = second.leads()
            assert following is not None
            assert following.token > leader.token

    def test_a_session_that_is_closed_gives_way(self, etcd: Etcd) -> None:
        with Session(etcd.client, 10) as second_session:
            with Session(etcd.client, 10) as first_session:
                Candidate(etcd.client, etcd.keys, first_session, "boot-0").campaign()
                second = Candidate(etcd.client, etcd.keys, second_session, "boot-1")
                second.campaign()
                assert second.leads() is None
            assert second.leads() is not None

    def test_a_lost_lease_cannot_stand(self, etcd: Etcd) -> None:
        with Session(etcd.client, 10) as session:
            etcd.client.revoke(session.lease)
            with pytest.raises(Fenced):
                Candidate(etcd.client, etcd.keys, session, "boot-0").campaign()

    def test_etcdctl_takes_its_turn_with_ours(self, etcd: Etcd) -> None:
        words = [
            "etcdctl",
            "--endpoints",
            etcd.endpoint,
            "elect",
            f"{etcd.prefix}leader/updater/",
            "somebody",
        ]
        with Session(etcd.client, 10) as session:
            ours = Candidate(etcd.client, etcd.keys, session, "boot-0")
            ours.campaign()
            theirs = subprocess.Popen(
                words, stdout=subprocess.PIPE, env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"}
            )
            try:
                wait_for_line(etcd, 2)
                assert ours.leads()
                ours.resign()
                assert theirs.stdout is not None
                assert theirs.stdout.readline().decode().strip().startswith(f"{etcd.prefix}leader/updater//")
                leader = ours.leader()
                assert leader is not None
                assert leader.host == "somebody"
                ours.campaign()
                assert ours.leads() is None
            finally:
                theirs.terminate()
                theirs.wait()
            end = time.monotonic() + 10
            while ours.leads() is None and time.monotonic() < end:
                time.sleep(0.05)
            assert ours.leads()


def wait_for_line(etcd: Etcd, number: int) -> None:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if len(etcd.client.read([under(etcd.keys.election)]).items[0]) == number:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {number} in the leader's line")


class TestOneAgentAServer:
    def register(
        self, etcd: Etcd, session: Session, lrn: int, machine: str, lock: bool = False
    ) -> AgentKey | Occupied:
        return register_agent(etcd.client, etcd.keys, session, lrn, "host", machine, holds_host_lock=lock)

    def test_another_agent_of_the_server_waits(self, etcd: Etcd) -> None:
        with Session(etcd.client, 10) as one_session, Session(etcd.client, 10) as two_session:
            first = self.register(etcd, one_session, 1, "m1")
            assert isinstance(first, AgentKey)
            assert self.register(etcd, one_session, 1, "m1") == first
            second = self.register(etcd, two_session, 1, "m2")
            assert isinstance(second, Occupied)
            assert (second.agent.host, second.agent.machine_id) == ("host", "m1")
            assert isinstance(self.register(etcd, two_session, 10, "m2"), AgentKey)
            one_session.close()
            assert not is_agent_alive(etcd.client, first)
            assert isinstance(self.register(etcd, two_session, 1, "m2"), AgentKey)

    def test_who_holds_the_hosts_lock_deletes_its_own_dead_agents_key(self, etcd: Etcd) -> None:
        with Session(etcd.client, 60) as dead, Session(etcd.client, 60) as session:
            assert isinstance(self.register(etcd, dead, 1, "m1"), AgentKey)
            assert isinstance(self.register(etcd, session, 1, "m1"), Occupied)
            assert isinstance(self.register(etcd, session, 1, "other", lock=True), Occupied)
            mine = self.register(etcd, session, 1, "m1", lock=True)
            assert isinstance(mine, AgentKey)
            assert [item.key for item in etcd.client.read([under(etcd.keys.agents)]).items[0]] == [mine.key]


def test_who_leads_an_empty_fleet(etcd: Etcd) -> None:
    assert read_leader(etcd.client, Keys(etcd.prefix)) is None
