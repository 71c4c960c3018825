"""Rolling restarts of real containers while another server is down for its reboot, under one lock; who stops and starts when. Promise 1."""

from __future__ import annotations

import json
import random
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.state import ABORTED, Notice
from tests.fleet.checker import history
from tests.fleet.fleet import Servers
from tests.fleet.test_images import with_podman
from tests.registry import Registry, registry

pytestmark = pytest.mark.needs("podman", "runc", "docker-registry", "busybox")

SERVERS = (0, 1)
AWAY = 3


def tens_of_ports(number: int) -> list[int]:
    """So many ports but for their last digit, which is the server's number; none that the kernel gives to others meanwhile."""
    found: list[int] = []
    tens = list(range(1100, 3200))
    random.shuffle(tens)
    for ten in tens:
        if len(found) < number and all(is_free(int(f"{ten}{lrn}")) for lrn in SERVERS):
            found.append(ten)
    return found


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def image(images: Registry, name: str, tag: str, ten: int, **how: Any) -> dict[str, Any]:
    """A small web server that says its tag, on a port of its own on each server."""
    container = {
        "args": ["httpd", "-f", "-p", f"127.0.0.1:{ten}$(lrn)", "-h", "/www"],
        "health": {"http": f"http://127.0.0.1:{ten}$(lrn)/index.html", "timeout": "20s"},
        **how,
    }
    return {"name": name, "repository": images.repository("web"), "tag": tag, "container": container}


def says(ten: int, lrn: int) -> str | None:
    """What a server's web server says; None where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{ten}{lrn}/index.html", timeout=5) as reply:
            return str(reply.read().decode())
    except (urllib.error.URLError, OSError):
        return None


def begins(servers: Servers, revision: str) -> dict[tuple[int, str], tuple[int, int]]:
    """Each step of the rollout of `revision`: the etcd revisions at which it began and was done."""
    keys, rollout = servers.etcd.keys, servers.view().rollout
    assert rollout and rollout.version == revision
    found: dict[tuple[int, str], tuple[int, int]] = {}
    for change in history(servers.etcd.client, keys, servers.etcd.since):
        for key, text in change.keys.items():
            if not key.startswith(keys.all_steps) or text is None:
                continue
            record = json.loads(text)
            if record["rollout"] == rollout.id:
                lrn, _, id = key.removeprefix(keys.all_steps).partition("/")
                first, _ = found.get((int(lrn), id), (change.revision, 0))
                found[int(lrn), id] = (first, change.revision)
    return found


def test_containers_restart_while_another_server_is_down_for_its_reboot(
    servers: Servers, tmp_path: Path
) -> None:
    """Never more than the slots are down; all `stop-all` stop before one starts; etcd comes last."""
    tens = tens_of_ports(2)
    rules = {"slots": 2, "lockGroup": "rack"}
    groups = [
        {"name": "web", "servers": list(SERVERS), "reboot": rules},
        {"name": "other", "servers": [AWAY], "reboot": rules},
    ]

    def push(tag: str, tool: str, **policy: Any) -> str:
        containers = [
            image(images, "etcd", tag, tens[0]),
            image(images, "zoo", tag, tens[1], update="stop-all"),
        ]
        tools = {"groups": ["other"], "debs": [servers.deb("tool", tool)]}
        servers.release("tool", tool)
        sets = [{"groups": ["web"], "images": containers}, tools]
        return servers.push(sets=sets, groups=groups, policy=policy)

    def held() -> int:
        lock = servers.view().locks.get("rack")
        return len(lock.semaphore.holders) if lock else 0

    with registry(tmp_path / "registry") as images, with_podman(servers, *SERVERS):
        for tag in ("1", "2"):
            images.push("web", tag)
        away = servers.add(AWAY)
        servers.start()
        servers.wait_for_registered(*SERVERS, AWAY)
        servers.wait_for_end(push("1", "1.0"), within=60)
        assert [says(ten, lrn) for ten in tens for lrn in SERVERS] == ["1"] * 4

        # One goes down for its reboot and stays away: it keeps one of the two slots.
        servers.wants_reboot(AWAY)
        away.stays_away = True
        push("1", "1.1", timeout="6s")
        servers.wait("it is down", lambda: away.reboots)
        servers.wait("the rollout stops", lambda: (found := servers.view().rollout) and found.stop, 60)
        servers.administration.disable_server(AWAY, Notice("ann", "stays away", "2026-01-01T00:00:00Z"))
        servers.administration.recover("2026-01-01T00:00:01Z")

        servers.wants_reboot(*SERVERS)
        revision = push("2", "1.1")
        down, most = 0, 0

        def ended() -> bool:
            nonlocal down, most
            most = max(most, held())
            without = sum(says(tens[0], lrn) is None for lrn in SERVERS)
            down = max(down, without + (held() and away.process is None))
            status = servers.view().statuses.get(0)
            if away.stays_away and status and status.step > 4:
                # It comes back while the others restart or reboot, and gives its slot back without any rollout.
                away.stays_away = False
                servers.start(away)
            rollout = servers.view().rollout
            assert not any(found.cond == ABORTED for found in servers.view().statuses.values())
            return bool(rollout and rollout.version == revision and rollout.outcome == "complete")

        servers.wait("all have restarted and rebooted", ended, 120)
        servers.wait("all slots are free", lambda: held() == 0)
        assert most == 2, "both slots were used, one of them by the server that was away"
        assert down <= 2
        assert [says(ten, lrn) for ten in tens for lrn in SERVERS] == ["2"] * 4
        assert [len(servers.machines[lrn].reboots) for lrn in (*SERVERS, AWAY)] == [1, 1, 1]
        steps = begins(servers, revision)
        for lrn in SERVERS:
            assert (
                steps[lrn, "containers:image/zoo:health"][1] < steps[lrn, "containers:image/etcd:acquire"][0]
            )
        stopped = max(steps[lrn, "stop:image/zoo:stop"][1] for lrn in SERVERS)
        assert stopped < min(steps[lrn, "containers:image/zoo:change"][0] for lrn in SERVERS)
        servers.end()
