"""The log, as it is written."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest

from reconciler.ground import telemetry
from reconciler.ground.telemetry import Log

log = logging.getLogger("reconciler.test")


class Written:
    """What was logged, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.now = 0.0
        self.log: Log | None = None

    def set_up(self, form: Literal["text", "json"] = "json", level: str = "info", *secrets: str) -> Log:
        self.log = telemetry.set_up(
            form, level, stream=self.stream, secrets=secrets, quiet=60, clock=lambda: self.now
        )
        return self.log

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def written() -> Iterator[Written]:
    made = Written()
    yield made
    if made.log:
        made.log.close()


def test_an_event_is_one_object_with_its_fields(written: Written) -> None:
    written.set_up()
    log.info("begins %s", "debs", extra={"server": 0, "step": "debs:deb/a:change", "other": "not shown"})
    (event,) = written.objects()
    assert event["message"] == "begins debs"
    assert (event["server"], event["step"], event["level"]) == (0, "debs:deb/a:change", "info")
    assert "other" not in event
    assert "rollout" not in event
    assert str(event["time"]).endswith("+00:00")


def test_an_event_is_one_line_of_text(written: Written) -> None:
    written.set_up("text")
    log.error("dpkg failed:\n    first\n    \x1b[31msecond", extra={"revision": "1a2b", "server": 3})
    (line,) = written.lines()
    assert line[20:] == " error   dpkg failed: | first | ?[31msecond  revision=1a2b server=3"


def test_a_failure_that_comes_again_is_counted_and_not_repeated(written: Written) -> None:
    written.set_up()
    for _ in range(5):
        log.warning("cannot reach %s", "git")
    for milliseconds in range(3):
        log.warning("cannot reach a registry after %d ms", milliseconds)
    log.warning("cannot reach %s", "etcd")
    log.warning("cannot reach %s", "git", extra={"server": 1})
    written.now = 61.0
    log.warning("cannot reach %s", "git")
    assert [
        (event["message"], event.get("server"), event.get("repeated")) for event in written.objects()
    ] == [
        ("cannot reach git", None, None),
        ("cannot reach a registry after 0 ms", None, None),
        ("cannot reach etcd", None, None),
        ("cannot reach git", 1, None),
        ("cannot reach git", None, 4),
    ]


def test_it_is_shown_at_growing_intervals_with_its_count(written: Written) -> None:
    written.set_up()
    shown = []
    for second in range(2 * 3600):
        written.now, lines = float(second), len(written.lines())
        log.warning("cannot reach git")
        if len(written.lines()) > lines:
            shown.append(second)
    assert shown == [0, 60, 180, 420, 900, 1860, 3780]
    assert [event.get("repeated") for event in written.objects()] == [None, 59, 119, 239, 479, 959, 1919]


def test_a_failure_is_new_once_it_stayed_away_for_long_or_was_put_right(written: Written) -> None:
    written.set_up()
    log.error("the disk is full")
    written.now = 30.0
    log.error("the disk is full", extra=telemetry.ANEW)
    written.now += telemetry.LONGEST_QUIET
    log.error("the disk is full")
    assert [event.get("repeated") for event in written.objects()] == [None, None, None]


def test_what_is_no_failure_is_never_kept_back(written: Written) -> None:
    written.set_up()
    for _ in range(3):
        log.info("is healthy")
    assert len(written.lines()) == 3


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("token ghp_verysecret sent", "token *** sent"),
        ("proxy http://me:pa55word@proxy:3128", "proxy http://me:***@proxy:3128"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer ***"),
        ("GET /x?signature=abc%2Fdef&a=b", "GET /x?signature=***&a=b"),
        (
            "https://hooks.slack.com/services/T0/B0/xyz says 500",
            "https://hooks.slack.com/services/*** says 500",
        ),
        ("nothing secret here", "nothing secret here"),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_hidden(
    written: Written, form: Literal["text", "json"], message: str, shown: str
) -> None:
    written.set_up(form, "info", "ghp_verysecret", "", "abc")
    log.info(message)
    log.info("in a field", extra={"step": message})
    try:
        raise RuntimeError(message)
    except RuntimeError:
        log.exception("failed")
    everything = written.stream.getvalue()
    assert everything.count(shown) >= 3
    assert message == shown or message not in everything


def test_a_secret_may_be_learnt_later(written: Written) -> None:
    made = written.set_up()
    made.hide(None, "learnt-later")
    log.info("it is learnt-later")
    assert written.objects()[0]["message"] == "it is ***"


def test_the_level_may_be_changed_and_others_are_heard_when_they_warn(written: Written) -> None:
    made = written.set_up()
    other = logging.getLogger("another.package")
    log.debug("one")
    made.set_level("debug")
    log.debug("two")
    other.info("three")
    other.warning("four")
    made.set_level("error")
    log.warning("five")
    assert [event["message"] for event in written.objects()] == ["two", "four"]


def test_setting_up_again_replaces_what_was_there(written: Written) -> None:
    written.set_up()
    written.set_up()
    log.info("once")
    assert len(written.lines()) == 1


def test_a_log_that_cannot_be_written_stops_nothing(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    written.set_up()
    written.stream.close()
    log.error("to nobody")
    assert capsys.readouterr().err == ""
