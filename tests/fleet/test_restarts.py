"""What restarts when: containers while another server is down for its reboot, `stop-all`, and the etcd that the agents use. Promise 1."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from reconciler.core.artifact import Container, Image
from reconciler.core.state import ArtifactSet, Desired, Notice, Revision
from reconciler.store.view import read_fleet
from tests.conftest import Etcd
from tests.fleet.checker import history, most_down
from tests.fleet.fleet import Servers
from tests.fleet.simulated import SimulatedFleet
from tests.ports import free_port
from tests.registry import registry

SERVERS = (0, 1)


def says(port: int) -> str:
    """What the web server says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=5) as reply:
        return str(reply.read().decode())


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
def test_a_container_restarts_only_when_another_server_is_back_from_its_reboot(
    servers: Servers, tmp_path: Path
) -> None:
    """One slot for both, and never two down, counted by what each server did and not by what the lock says."""
    port = free_port()
    container = {
        "args": ["httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", "/www"],
        "health": {"http": f"http://127.0.0.1:{port}/index.html", "timeout": "20s"},
    }
    rules = {"slots": 1, "lockGroup": "rack"}
    groups = [{"name": name, "servers": [lrn], "reboot": rules} for name, lrn in (("web", 0), ("other", 1))]

    def push(tag: str, tool: str) -> str:
        servers.release("tool", tool)
        web = {"name": "web", "repository": images.repository("web"), "tag": tag, "container": container}
        sets = [
            {"groups": ["web"], "images": [web]},
            {"groups": ["other"], "debs": [servers.deb("tool", tool)]},
        ]
        return servers.push(sets=sets, groups=groups)

    with registry(tmp_path / "registry") as images:
        for tag in ("1", "2"):
            images.push("web", tag)
        servers.give_podman(servers.add(0))
        away = servers.add(1)
        servers.start()
        servers.wait_for_registered(0, 1)
        servers.wait_for_end(push("1", "1.0"), within=60)

        since = servers.view().etcd_revision
        servers.wants_reboot(1)
        away.stays_away = True
        push("1", "1.1")
        servers.wait("it is down", lambda: away.reboots and away.process is None)
        servers.administration.request_stop("ann")
        servers.administration.disable_server(1, Notice("ann", "stays away", "2026-01-01T00:00:00Z"))
        servers.administration.recover("2026-01-01T00:00:01Z")
        revision = push("2", "1.1")
        servers.wait(
            "the restart waits for the slot",
            lambda: (status := servers.view().statuses.get(0)) and status.waiting == "slot",
            within=60,
        )
        assert servers.view().locks["rack"].semaphore.holders == (away.machine_id,)
        assert says(port) == "1"

        # It comes back, and gives its slot back without any rollout.
        away.stays_away = False
        servers.start(away)
        servers.wait_for_end(revision, within=60)
        assert says(port) == "2"
        assert servers.view().locks["rack"].semaphore.holders == ()
        assert len(away.reboots) == 1
        assert most_down(history(servers.etcd.client, servers.etcd.keys, since), servers.etcd.keys) == 1


def test_all_stop_before_one_starts_and_the_agents_etcd_comes_last(etcd: Etcd, tmp_path: Path) -> None:
    def images(tag: str) -> tuple[Image, ...]:
        updates = {"etcd": "rolling", "reconciler": "rolling", "zoo": "stop-all"}
        return tuple(
            Image(name, f"registry.example/{name}", tag, container=Container(update=update))  # type: ignore[arg-type]  # one of its literals
            for name, update in updates.items()
        )

    desired = Desired(Revision("2" * 40), (ArtifactSet(images("2")),))
    fleet = SimulatedFleet(etcd, tmp_path, revisions=[desired])
    for lrn in SERVERS:
        fleet.add(lrn, images("1"))
    for lrn in SERVERS:
        fleet.start(lrn).worker.work()
    for _ in range(60):
        fleet.step()
        rollout = read_fleet(etcd.client, etcd.keys).rollout
        if rollout and rollout.outcome == "complete":
            break
    fleet.end()
    fleet.prove()
    first: dict[tuple[int, str], int] = {}
    last: dict[tuple[int, str], int] = {}
    for change in history(etcd.client, etcd.keys, etcd.since):
        for key, text in change.keys.items():
            if key.startswith(etcd.keys.all_steps) and text is not None:
                server, _, id = key.removeprefix(etcd.keys.all_steps).partition("/")
                first.setdefault((int(server), id), change.revision)
                if json.loads(text)["state"] == "done":
                    last[int(server), id] = change.revision
    stopped = max(last[lrn, "stop:image/zoo:stop"] for lrn in SERVERS)
    assert stopped < min(first[lrn, "containers:image/zoo:change"] for lrn in SERVERS)
    for lrn in SERVERS:
        for before, after in (("zoo:health", "etcd:acquire"), ("etcd:release", "reconciler:acquire")):
            assert last[lrn, f"containers:image/{before}"] < first[lrn, f"containers:image/{after}"]
