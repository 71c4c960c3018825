"""The HTTP interface of real agents: metrics that Prometheus takes, webhooks that fetch, and a crowd that means no good."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.store.transaction import under
from reconciler.wire.schema import violations
from tests.fleet.fleet import Machine, Servers

SECRET = b"correct horse battery staple"
SECOND = 1.0
"""Within which legitimate requests are answered, whoever else asks for what."""


@dataclass(frozen=True, slots=True)
class Door:
    """An agent's HTTP interface, from outside."""

    port: int

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()

    def deliver(self, document: object, secret: bytes = SECRET) -> tuple[int, bytes]:
        """A push webhook as GitHub sends it."""
        body = json.dumps(document).encode()
        signature = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
        headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": signature}
        return self.ask("/hooks/git", "POST", body, {"Content-Type": "application/json", **headers})

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        status, text = self.ask("/metrics")
        assert status == 200
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics().get((name, frozenset(labels.items())))

    def fetches(self) -> float:
        return self.value("reconciler_git_fetches_total") or 0


def door(servers: Servers, machine: Machine) -> Door:
    port = servers.wait("it serves", lambda: re.search(r"serves http on \S+, port (\d+)", machine.log))
    return Door(int(port[1]))


def push(ref: str = "refs/heads/main", path: str = "ops/fleet") -> dict[str, object]:
    return {
        "ref": ref,
        "repository": {"full_name": path, "clone_url": f"https://git.example.com/{path}.git"},
    }


@pytest.fixture
def fleet(servers: Servers) -> Servers:
    """One server at its first revision, whose agent takes webhooks."""
    secret = servers.directory / "secret"
    secret.write_bytes(SECRET + b"\n")
    servers.add(0, "--webhook-secret-file", str(secret), "--ref", "main")
    servers.start()
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    # The last that is written of its own accord.
    servers.wait("its end is told", lambda: any("complete" in name for name in servers.view().told.names))
    return servers


# --- metrics --------------------------------------------------------------------------------------------------------

TOLD = """
reconciler_build_info reconciler_leader reconciler_lease_remaining_seconds reconciler_missing_parts
reconciler_loop_duration_seconds_count
reconciler_loop_heartbeat_age_seconds reconciler_loop_heartbeat_limit_seconds
reconciler_revision_info reconciler_revision_refused reconciler_git_fetch_age_seconds
reconciler_git_fetches_total reconciler_git_fetch_errors_total
reconciler_changes_pending reconciler_artifacts_unpinned reconciler_artifacts_drifted
reconciler_drift_check_age_seconds reconciler_reboot_required
reconciler_rollout_state reconciler_rollout_phase
reconciler_rollout_start_timestamp_seconds reconciler_rollout_finish_timestamp_seconds
reconciler_step_duration_seconds_count reconciler_servers reconciler_servers_waiting
reconciler_servers_left_out reconciler_servers_silent reconciler_paused
reconciler_lock_slots reconciler_lock_slots_free reconciler_lock_holders reconciler_lock_waiters
reconciler_lock_oldest_holder_age_seconds
reconciler_etcd_requests_total reconciler_webhook_deliveries_total process_resident_memory_bytes
"""
"""What an agent has to tell after a rollout that ended well and a revision that it refused."""


@pytest.mark.needs("promtool")
def test_what_an_agent_tells_is_complete_and_prometheus_takes_it(fleet: Servers) -> None:
    agent = door(fleet, fleet.machines[0])
    applied = fleet.view().rollout
    refused = fleet.push(text="apiVersion: reconciler/v1\nkind: Nonsense")
    fleet.machines[0].signal(1)
    fleet.wait("it is refused", lambda: agent.value("reconciler_revision_refused"))
    told = agent.metrics()
    assert not set(TOLD.split()) - {name for name, _ in told}
    assert applied and agent.value("reconciler_revision_info", state="applied", revision=applied.version) == 1
    assert agent.value("reconciler_revision_info", state="desired", revision=applied.version) == 1
    assert agent.value("reconciler_revision_info", state="refused", revision=refused) == 1
    assert agent.value("reconciler_rollout_state", state="complete") == 1
    assert (agent.value("reconciler_step_duration_seconds_count", effect="change", outcome="done") or 0) >= 1
    assert agent.value("reconciler_leader") == 1
    assert agent.value("reconciler_artifacts_unpinned") == 1
    assert (agent.value("reconciler_etcd_requests_total", request="Txn") or 0) > 3
    _, text = agent.ask("/metrics")
    linter = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
    )
    assert (linter.returncode, linter.stdout, linter.stderr) == (0, b"", b"")
    for name in ("status", "plan"):
        status, body = agent.ask(f"/api/v1/{name}")
        assert status == 200 and violations(json.loads(body), name) == []


# --- webhooks -------------------------------------------------------------------------------------------------------


def test_a_burst_of_webhooks_is_one_fetch_and_a_replay_one_more(fleet: Servers) -> None:
    agent = door(fleet, fleet.machines[0])
    before, there = agent.fetches(), _keys(fleet)
    senders = [threading.Thread(target=agent.deliver, args=(push(),)) for _ in range(100)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert agent.value("reconciler_webhook_deliveries_total", outcome="accepted") == 100
    fleet.wait("the burst is heard", lambda: sum(rings(fleet)) == 100)
    fetched = before + len(rings(fleet))
    assert len(rings(fleet)) <= 3, "one ring for all that came together; on a busy machine not all do"
    fleet.wait("the burst is fetched for", lambda: agent.fetches() >= fetched)

    # Sent again, a day later perhaps: it fetches what is there, which is what it has.
    assert agent.deliver(push())[0] == 202
    fleet.wait("the replay is fetched for", lambda: agent.fetches() > fetched)
    assert agent.fetches() == fetched + 1
    assert _keys(fleet) == there, "no fetch of what is known changes anything"


def rings(fleet: Servers) -> list[int]:
    """For how many webhooks it has fetched, each time."""
    return [int(number) for number in re.findall(r"fetches for (\d+) webhook", fleet.machines[0].log)]


def test_what_is_about_something_else_or_forged_fetches_nothing(fleet: Servers) -> None:
    agent = door(fleet, fleet.machines[0])
    before = agent.fetches()
    about = {
        "another branch or tag": (push("refs/tags/v1"), push("refs/heads/next")),
        "no push": ({"zen": "a ping"},),
    }
    for reason, documents in about.items():
        for document in documents:
            status, body = agent.deliver(document)
            assert (status, json.loads(body)["fetch"]) == (202, False)
            assert reason in json.loads(body)["reason"]
    assert agent.deliver(push(), b"a guess")[0] == 401
    # It would have been fetched for by the time that the next one is.
    assert agent.deliver(push())[0] == 202
    fleet.wait("the one that is right is fetched for", lambda: agent.fetches() > before)
    assert agent.fetches() == before + 1
    assert "fetches for 1 webhook" in fleet.machines[0].log


# --- abuse ----------------------------------------------------------------------------------------------------------


def test_legitimate_requests_are_answered_while_three_hundred_do_their_worst(fleet: Servers) -> None:
    agent = door(fleet, fleet.machines[0])
    before, fetched = _keys(fleet), agent.fetches()
    with _crowd(agent):
        slow = []
        for _ in range(5):
            for path in ("/livez", "/readyz", "/metrics", "/api/v1/status", "/api/v1/plan"):
                begun = time.monotonic()
                assert agent.ask(path)[0] == 200
                slow += [path] if time.monotonic() - begun > SECOND else []
        assert len(slow) <= 1, (
            f"not answered within a second, more often than a busy machine explains: {slow}"
        )
        assert agent.fetches() == fetched, "nothing that they sent was believed"
        begun = time.monotonic()
        assert agent.deliver(push())[0] == 202
        assert time.monotonic() - begun < 2 * SECOND
        fleet.wait("a push is taken up meanwhile", lambda: agent.fetches() > fetched)
    assert _keys(fleet) == before, "nothing has changed"
    assert (agent.value("reconciler_webhook_deliveries_total", outcome="forged") or 0) > 0
    assert "Traceback" not in fleet.machines[0].log


SLOW = (
    b"",
    b"GET /livez HTTP/1.1\r\n",
    b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n{",
    b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhe",
)
BODY = json.dumps(push()).encode()
WRONG: tuple[tuple[str, str, bytes, Mapping[str, str]], ...] = (
    ("POST", "/hooks/git", b"x" * (2 << 20), {}),
    ("POST", "/hooks/git", b"{" * 100_000, {"X-Gitlab-Token": "guess"}),
    ("POST", "/hooks/git", b"{", {"X-Gitlab-Token": SECRET.decode()}),
    ("POST", "/hooks/git", BODY, {"X-Hub-Signature-256": "sha256=" + "0" * 64}),
    ("POST", "/hooks/git", BODY, {"X-Gitea-Signature": ""}),
    ("GET", "/hooks/git", b"", {}),
    ("DELETE", "/api/v1/status", b"", {}),
    ("PUT", "/api/v1/plan", b"{}", {}),
    ("PATCH", "/metrics", b"", {}),
    ("POST", "/livez", b"", {}),
)


@contextlib.contextmanager
def _crowd(agent: Door) -> Iterator[None]:
    """300 clients that never come to an end, and one that sends what is wrong without a pause."""
    over = threading.Event()
    faults: list[object] = []

    def wrong() -> None:
        while not over.is_set():
            for method, path, body, headers in WRONG:
                with contextlib.suppress(
                    OSError, http.client.HTTPException
                ):  # hung up on in the middle of a large body
                    status, _ = agent.ask(path, method, body, headers)
                    if status not in (400, 401, 405, 413):
                        faults.append((status, method, path))
                over.wait(0.01)

    with contextlib.ExitStack() as connections:
        for index in range(300):
            client = connections.enter_context(
                socket.create_connection(("127.0.0.1", agent.port), timeout=10)
            )
            client.sendall(SLOW[index % len(SLOW)])
        sender = threading.Thread(target=wrong)
        sender.start()
        try:
            yield
        finally:
            over.set()
            sender.join()
    assert not faults


def _keys(fleet: Servers) -> dict[str, int]:
    """Everything that the fleet has in etcd, with the etcd revision of its last change."""
    keys = fleet.etcd.keys
    found = fleet.etcd.client.read([under(keys.prefix), under(f"{keys.lock_prefix}/")])
    return {item.key: item.mod_revision for items in found.items for item in items}
