"""What people are told, of whole agents over real HTTP: each kind of event, once, and that nobody's silence fails a rollout."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from reconciler.core.semaphore import Holder
from reconciler.core.state import Told
from reconciler.store.lock import RebootLock
from tests.fleet.fleet import Servers, with_shell
from tests.fleet.test_failures import FAILS
from tests.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def told(servers: Servers, receiver: Receiver, kind: str, holds: str = "") -> str:
    """The text of the one event of this kind that holds these words, once it has come."""

    def found() -> list[str]:
        return [str(body["text"]) for body in receiver.events(kind) if holds in str(body["text"])]

    (text,) = servers.wait(f"{kind} is told", found)
    return text


def holder_named(told: Told) -> list[str]:
    """The notes that a slot is held for too long."""
    return [name for name in told.names if name.startswith("holder ")]


def test_each_kind_of_event_is_told_once_on_both_channels(servers: Servers, receiver: Receiver) -> None:
    for lrn in range(3):
        machine = servers.add(lrn, "--notify-webhook", receiver.url, "--drift-interval", "1s")
        with_shell(machine)
    # The address is read anew for each event: it is set while the agents run.
    servers.start()
    servers.wait_for_registered(0, 1, 2)
    servers.administration.set_config("notification/slack", receiver.url)

    first = servers.push({"tool": "1.0"})
    servers.wait_for_end(first)
    opened = told(servers, receiver, "rollout_opened")
    assert first[:12] in opened and "3 servers" in opened
    assert "3 of 3 servers complete" in told(servers, receiver, "rollout_complete")

    soaks = {"waves": [{"servers": [0], "soak": "1h"}, {"servers": [1, 2]}]}
    soaking = servers.push({"tool": "2.0"}, policy=soaks)
    servers.wait("it runs", lambda: (r := servers.view().rollout) and r.version == soaking)
    servers.wait("server 0 is complete", lambda: servers.complete(0))
    servers.administration.request_stop("ann", "the switch is being replaced")
    stopped = told(servers, receiver, "rollout_stopped")
    assert "by ann" in stopped and "the switch is being replaced" in stopped

    failing = servers.push({"tool": "3.0"}, scripts=FAILS)
    # Else the one that was stopped is tried again, and soaks for an hour.
    servers.wait("the leader has seen it", lambda: servers.view().noted == failing)
    servers.administration.recover("2026-01-01T00:00:00Z")
    servers.wait_for_stop(failing)
    assert "cannot reach the database" in told(servers, receiver, "rollout_failed")
    healed = servers.push({"tool": "4.0"})
    servers.wait_for_end(healed)
    assert "3 of 3" in told(servers, receiver, "rollout_complete", healed[:12])

    servers.push(text="kind: Nonsense")
    assert "Nonsense" in told(servers, receiver, "revision_refused")

    subprocess.run(
        ["dpkg", "--root", servers.machines[1].root, "--remove", "tool"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    assert "server 1 drifted: deb/tool" in told(servers, receiver, "drift", "found nothing")

    lost = Holder("f" * 32, "agent", 7, int(time.time()) - 3600, "b", "reboot")
    RebootLock(servers.etcd.client, servers.etcd.keys).take(lost)
    servers.administration.set_config("worker-timeout", "600000000000")
    overdue = told(servers, receiver, "holder_overdue")
    assert "server 7" in overdue and "f" * 32 in overdue

    # Each channel is told by a thread of its own.
    for text in (opened, overdue):
        servers.wait("Slack is told too", lambda text=text: {"text": text} in receiver.bodies)  # type: ignore[misc]  # bound now
    # Whoever leads next tells what is new, and nothing that stood before.
    noted = servers.wait("it is noted", lambda: found if holder_named(found := servers.view().told) else None)
    former = servers.leader()
    former.kill()
    last = servers.push({"tool": "5.0"})
    servers.wait("another one leads", lambda: servers.leader() is not former)
    servers.start(former)
    servers.wait_for_end(last)
    assert "3 of 3" in told(servers, receiver, "rollout_complete", last[:12])
    assert holder_named(servers.view().told) == holder_named(noted)
    # How long the slot has been held is another text each time; a server's drift is its own agent's to tell.
    events = [
        (body["event"], body.get("revision"), body.get("rollout"))
        for body in receiver.events()
        if body["event"] != "drift"
    ]
    assert len(set(events)) == len(events), "each once"
    held = RebootLock(servers.etcd.client, servers.etcd.keys).holder_of(lost.machine_id)
    assert held and RebootLock(servers.etcd.client, servers.etcd.keys).release(held)


def test_where_nobody_listens_a_rollout_goes_through(servers: Servers, receiver: Receiver) -> None:
    receiver.statuses = [500, 403] * 50
    servers.gather(2, "--notify-webhook", receiver.url)
    servers.administration.set_config("notification/slack", "http://127.0.0.1:1/nobody")
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    servers.has("tool", "1.0")
    assert not receiver.bodies
