"""Webhooks of GitHub, GitLab and Gitea: which are genuine, which are about what is followed, and what a burst makes."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from reconciler.errors import UsageError
from reconciler.web.webhook import (
    GAP,
    LONGEST,
    QUIET,
    Delivery,
    Followed,
    is_genuine,
    read_delivery,
    repository_path,
    ring_at,
    why_ignored,
)
from tests.web.agent import Answer, Behind, ask, serving

SECRET = b"correct horse battery staple"
FLEET = Followed("https://git.example.com/ops/fleet.git")


def github(ref: str = "refs/heads/main", path: str = "ops/fleet") -> dict[str, Any]:
    """A push as GitHub and Gitea send it, as far as it matters."""
    return {
        "ref": ref,
        "before": "0" * 40,
        "after": "1" * 40,
        "repository": {
            "full_name": path,
            "clone_url": f"https://git.example.com/{path}.git",
            "ssh_url": f"git@git.example.com:{path}.git",
            "html_url": f"https://git.example.com/{path}",
        },
    }


def gitlab(ref: str = "refs/heads/main", path: str = "ops/fleet") -> dict[str, Any]:
    """A push as GitLab sends it."""
    return {
        "object_kind": "push",
        "ref": ref,
        "project": {
            "path_with_namespace": path,
            "git_http_url": f"https://git.example.com/{path}.git",
            "git_ssh_url": f"git@git.example.com:{path}.git",
        },
        "repository": {"url": f"git@git.example.com:{path}.git", "homepage": "https://git.example.com/"},
    }


def mac(body: bytes, secret: bytes = SECRET) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def signed(body: bytes, secret: bytes = SECRET, event: str = "push") -> dict[str, str]:
    return {"X-GitHub-Event": event, "X-Hub-Signature-256": f"sha256={mac(body, secret)}"}


# --- genuine --------------------------------------------------------------------------------------------------------

BODY = json.dumps(github()).encode()


@pytest.mark.parametrize(
    ("headers", "genuine"),
    [
        ({"x-hub-signature-256": f"sha256={mac(BODY)}"}, True),
        ({"x-gitea-signature": mac(BODY)}, True),
        ({"x-gitlab-token": SECRET.decode()}, True),
        ({"x-gitea-signature": mac(BODY), "x-hub-signature-256": f"sha256={mac(BODY)}"}, True),
        ({}, False),
        ({"x-hub-signature-256": mac(BODY)}, False),
        ({"x-hub-signature-256": f"sha256={mac(BODY).upper()}"}, False),
        ({"x-hub-signature-256": f"sha256={mac(BODY, b'guess')}"}, False),
        ({"x-hub-signature-256": f"sha256={mac(BODY + b' ')}"}, False),
        ({"x-hub-signature-256": "sha256="}, False),
        ({"x-hub-signature": f"sha1={hmac.new(SECRET, BODY, hashlib.sha1).hexdigest()}"}, False),
        ({"x-gitea-signature": ""}, False),
        ({"x-gitea-signature": "é"}, False),
        ({"x-gitea-signature": "\u20ac" * 64}, False),
        ({"x-gitlab-token": "correct horse battery stapl"}, False),
        ({"x-gitlab-token": ""}, False),
    ],
)
def test_only_who_knows_the_secret_is_genuine(headers: Mapping[str, str], genuine: bool) -> None:
    assert is_genuine(SECRET, headers, BODY) is genuine


def test_an_empty_secret_is_nobodys() -> None:
    for headers in ({"x-gitlab-token": ""}, {"x-gitea-signature": mac(BODY, b"")}):
        assert not is_genuine(b"", headers, BODY)


# --- about what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://git.example.com/ops/fleet.git", "ops/fleet"),
        ("https://git.example.com:8443/Ops/Fleet/", "ops/fleet"),
        ("ssh://git@git.example.com:22/ops/fleet.git", "ops/fleet"),
        ("git@git.example.com:ops/fleet.git", "ops/fleet"),
        ("file:///srv/git/fleet.git", None),
        ("/srv/git/fleet.git", None),
        (".", None),
        ("./odd:name", None),
        ("https://[", None),
    ],
)
def test_a_repository_is_known_by_its_path(url: str, path: str | None) -> None:
    assert repository_path(url) == path


@pytest.mark.parametrize(
    ("followed", "document", "event", "reason"),
    [
        (FLEET, github(), "push", None),
        (FLEET, gitlab(), "Push Hook", None),
        (Followed("git@inside.example.com:ops/fleet.git"), github(), "push", None),
        (FLEET, github(path="ops/other"), "push", "it is about another repository"),
        (FLEET, gitlab(path="ops/fleet-2"), "Push Hook", "it is about another repository"),
        (FLEET, github("refs/heads/topic"), "push", "it is about another branch or tag"),
        (FLEET, github("refs/heads/mainline"), "push", "it is about another branch or tag"),
        (FLEET, github("refs/tags/v1"), "push", "it is about another branch or tag"),
        (FLEET, {"zen": "…", "repository": github()["repository"]}, "ping", "it is no push"),
        (FLEET, github(), "issues", "it is no push"),
        (Followed(FLEET.repo, "prod"), github("refs/heads/prod"), "push", None),
        (Followed(FLEET.repo, "prod"), github(), "push", "it is about another branch or tag"),
        (Followed(FLEET.repo, "refs/heads/prod"), github("refs/heads/prod"), "push", None),
        (Followed(FLEET.repo, "v1"), github("refs/tags/v1"), "push", None),
        (Followed(FLEET.repo, None, "release-*"), gitlab("refs/tags/release-3"), "Tag Push Hook", None),
        (
            Followed(FLEET.repo, None, "release-*"),
            github("refs/heads/release-3"),
            "push",
            "it is about another branch or tag",
        ),
        (Followed("/srv/git/fleet.git"), github("refs/heads/topic"), "push", None),
        (FLEET, {"ref": "refs/heads/main"}, "push", None),
        (FLEET, {"ref": ["refs/heads/main"], "repository": "ops/fleet"}, "push", "it is no push"),
    ],
)
def test_a_push_to_something_else_means_nothing(
    followed: Followed, document: dict[str, Any], event: str, reason: str | None
) -> None:
    delivery = read_delivery({"x-github-event": event}, json.dumps(document).encode())
    assert why_ignored(delivery, followed) == reason


def test_a_form_with_the_payload_is_read_too() -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = urlencode({"payload": json.dumps(github())}).encode()
    assert read_delivery(form, body) == Delivery("push", frozenset({"ops/fleet"}), "refs/heads/main")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b""),
        ("application/json", b"[1]"),
        ("application/json", b"\xff"),
        ("application/json", b"[" * 200_000),
        ("application/json", b'{"a":' * 200_000),
        ("application/x-www-form-urlencoded", b"payload="),
        ("application/x-www-form-urlencoded", b"a=b"),
        ("application/x-www-form-urlencoded", b"payload={}&payload={}"),
        ("application/x-www-form-urlencoded", b"&a=1" * 100),
    ],
)
def test_what_cannot_be_read_is_said(content_type: str, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_delivery({"content-type": content_type}, body)


@pytest.mark.parametrize(
    ("now", "first", "last", "at"),
    [
        (100.0, 100.0, None, 100.0 + QUIET),
        (101.0, 100.0, None, 101.0 + QUIET),
        (101.9, 100.0, None, 100.0 + LONGEST),
        (100.0, 100.0, 99.0, 99.0 + GAP),
        (100.0, 100.0, 10.0, 100.0 + QUIET),
    ],
)
def test_a_burst_rings_when_it_is_over_and_not_too_soon_after_the_last(
    now: float, first: float, last: float | None, at: float
) -> None:
    assert ring_at(now, first, last) == at


# --- by HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    return file


def post(server: Any, body: bytes, headers: Mapping[str, str]) -> Answer:
    return ask(server, "/hooks/git", "POST", body, {"content-type": "application/json", **headers})


def test_a_burst_of_a_hundred_makes_one_fetch(secret: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "reconciler.web.webhook")
    behind = Behind()
    with serving(behind, webhook_secret_file=secret) as server:
        answers: list[Answer] = []
        senders = [
            threading.Thread(target=lambda: answers.append(post(server, BODY, signed(BODY))))
            for _ in range(100)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert [answer.status for answer in answers] == [202] * 100
        assert all(answer.json == {"fetch": True, "reason": None} for answer in answers)
        assert behind.bell.wait(QUIET + LONGEST)
        assert behind.rung == 1
    assert "fetches for 100 webhooks" in caplog.text, "another fetch would have followed"


def test_a_replay_makes_one_more_fetch_and_not_at_once(secret: Path) -> None:
    behind = Behind()
    with serving(behind, webhook_secret_file=secret) as server:
        post(server, BODY, signed(BODY))
        assert behind.bell.wait(5)
        behind.bell.clear()
        again = time.monotonic()
        assert post(server, BODY, signed(BODY)).status == 202
        assert behind.bell.wait(GAP + 5)
        assert time.monotonic() - again > GAP - 1
        assert behind.rung == 2


def test_a_forged_one_is_refused_and_fetches_nothing(secret: Path, caplog: pytest.LogCaptureFixture) -> None:
    behind = Behind()
    with serving(behind, webhook_secret_file=secret) as server:
        assert post(server, BODY, signed(BODY, b"guess")).status == 401
        assert post(server, BODY, {"X-Gitlab-Token": "guess", "X-Gitlab-Event": "Push Hook"}).status == 401
        assert post(server, BODY, {}).status == 401
        assert post(server, b"[" * 100_000, {}).status == 401
        time.sleep(QUIET + 0.3)
        metrics = ask(server, "/metrics").body
    assert behind.rung == 0
    assert b'reconciler_webhook_deliveries_total{outcome="forged"} 4.0' in metrics
    assert "a webhook with a wrong signature or token came from 127.0.0.1" in caplog.text
    assert "guess" not in caplog.text


def test_another_branch_is_accepted_and_ignored(secret: Path) -> None:
    behind = Behind()
    topic = json.dumps(github("refs/heads/topic")).encode()
    with serving(behind, webhook_secret_file=secret) as server:
        answer = post(server, topic, signed(topic))
        time.sleep(QUIET + 0.3)
    assert (answer.status, answer.json["fetch"]) == (202, False)
    assert behind.rung == 0


def test_a_genuine_one_that_cannot_be_read_is_malformed(secret: Path) -> None:
    with serving(webhook_secret_file=secret) as server:
        for body in (b"{", b"[" * 100_000, b"\xff\xfe"):
            answer = post(server, body, signed(body))
            assert answer.status == 400
            assert answer.json["error"].startswith("cannot read the body: ")


def test_a_secret_that_is_rotated_holds_from_the_next_request(secret: Path) -> None:
    with serving(webhook_secret_file=secret) as server:
        assert post(server, BODY, signed(BODY)).status == 202
        new = secret.with_suffix(".new")
        new.write_bytes(b"another")
        new.rename(secret)
        assert post(server, BODY, signed(BODY)).status == 401
        assert post(server, BODY, signed(BODY, b"another")).status == 202
        secret.unlink()
        assert post(server, BODY, signed(BODY, b"another")).status == 401
        assert post(server, BODY, signed(BODY, b"")).status == 401


def test_without_a_secret_webhooks_are_off() -> None:
    behind = Behind()
    with serving(behind) as server:
        assert post(server, BODY, signed(BODY, b"")).status == 404
        time.sleep(QUIET + 0.3)
    assert behind.rung == 0


def test_an_empty_or_missing_secret_file_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for name, problem in (("empty", "it is empty"), ("missing", "No such file")):
        with pytest.raises(UsageError, match=problem), serving(webhook_secret_file=tmp_path / name):
            pass
