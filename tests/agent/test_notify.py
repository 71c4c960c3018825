"""Notifications over real HTTP: what is sent, what is tried again, and that a failure is never anybody's."""

from __future__ import annotations

import contextlib
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.agent.notify import Addresses, Event, Notifier
from tests.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


EVENT = Event("rollout_opened", "rollout of 1a2b3c4 opened on 3 servers", "1a2b3c4", "r1")


def test_slack_gets_a_text_and_the_webhook_the_event(receiver: Receiver) -> None:
    notifier = Notifier(lambda: Addresses(receiver.url, receiver.url))
    notifier.tell(EVENT)
    notifier.close()
    told = {"event": "rollout_opened", "text": EVENT.text, "revision": "1a2b3c4", "rollout": "r1"}
    assert sorted(receiver.bodies, key=len) == [{"text": EVENT.text}, told]


def test_one_that_does_not_answer_holds_up_only_itself(receiver: Receiver) -> None:
    with dripping(b"") as slack:
        notifier = Notifier(lambda: Addresses(slack, receiver.url), pause=0.01)
        notifier.tell(EVENT)
        notifier.tell(Event("drift", "server 1 drifted", server=1))
        assert receiver.wait_for("rollout_opened", "drift")
        notifier.close(0.1)


def test_a_server_error_is_tried_again(receiver: Receiver) -> None:
    receiver.statuses = [503]
    notifier = Notifier(lambda: Addresses(webhook=receiver.url), pause=0.01)
    notifier.tell(EVENT)
    notifier.close()
    assert len(receiver.bodies) == 1


def test_a_refusal_is_final_and_the_next_one_is_sent(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [404]
    notifier = Notifier(lambda: Addresses(webhook=receiver.url))
    notifier.tell(EVENT)
    notifier.tell(Event("drift", "server 1 drifted", server=1))
    notifier.close()
    assert [body["event"] for body in receiver.bodies] == ["drift"]
    assert "404" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_receiver_that_fails_gets_so_many_tries_and_the_next_one_is_sent(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500, 429, 502, 503]
    notifier = Notifier(lambda: Addresses(webhook=receiver.url), pause=0.01)
    notifier.tell(EVENT)
    notifier.tell(Event("drift", "server 1 drifted", server=1))
    notifier.close()
    assert [body["event"] for body in receiver.bodies] == ["drift"]
    assert "status 503, try 4" in caplog.text and EVENT.text in caplog.text and "SECRET" not in caplog.text


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"]
)
def test_a_receiver_that_drips_has_a_limit(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A byte now and then passes every time-out of a single read."""
    with dripping(answer) as url:
        notifier = Notifier(lambda: Addresses(webhook=url), timeout=0.3, pause=0.01)
        began = time.monotonic()
        notifier.tell(EVENT)
        notifier.close(10)
        assert 1.2 <= time.monotonic() - began < 6
    assert "a notification was not taken (Unavailable, try 4)" in caplog.text and "SECRET" not in caplog.text


@contextlib.contextmanager
def dripping(answer: bytes) -> Iterator[str]:
    """The address of a server that says `answer`, and then one byte more every 50 ms."""
    over = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(answer)
                while not over.wait(0.05):
                    self.request.sendall(b"x")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads = True, True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/SECRET"
        finally:
            over.set()
            server.shutdown()


def test_nothing_is_sent_on_to_where_an_answer_points(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [307]
    notifier = Notifier(lambda: Addresses(webhook=receiver.url))
    notifier.tell(EVENT)
    notifier.close()
    assert receiver.bodies == [] and "status 307" in caplog.text


def test_an_address_of_another_kind_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(lambda: Addresses(webhook=f"file://{tmp_path}/SECRET"))
    notifier.tell(EVENT)
    notifier.close()
    assert "Unfetchable" in caplog.text and "SECRET" not in caplog.text


def test_an_end_waits_for_no_retry(receiver: Receiver) -> None:
    receiver.statuses = [500]
    notifier = Notifier(lambda: Addresses(webhook=receiver.url), pause=60)
    notifier.tell(EVENT)
    notifier.close(10)
    assert len(receiver.bodies) == 1


def test_an_address_that_cannot_be_had_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def addresses() -> Addresses:
        raise OSError("SECRET file is gone")

    notifier = Notifier(addresses)
    notifier.tell(EVENT)
    notifier.close()
    assert "cannot send a notification" in caplog.text


def test_without_an_address_nothing_is_sent(receiver: Receiver) -> None:
    notifier = Notifier(Addresses)
    notifier.tell(EVENT)
    notifier.close()
    assert receiver.bodies == []
