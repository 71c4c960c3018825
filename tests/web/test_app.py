"""The agent's HTTP interface: probes, status and plan, the token, and that no request makes it fail."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.cli.options import Options
from reconciler.cli.planning import Asked, Planned, plans_for
from reconciler.core.artifact import Key
from reconciler.core.published import Heartbeat, Missing, Published
from reconciler.core.state import Fleet, Installed, RolloutPolicy, StepRecord
from reconciler.errors import UsageError
from reconciler.web import openapi, probe
from reconciler.web.listener import Listen, Server, bind
from reconciler.web.status import Plans, why_not_alive, why_not_ready
from reconciler.wire.schema import violations
from tests.web.agent import DESIRED, FLEET, Authority, Behind, ask, published, serving

ROOT = Path(__file__).parent.parent.parent
PATHS = ("/livez", "/readyz", "/metrics", "/hooks/git", "/api/v1/status", "/api/v1/plan", "/openapi.json")

# --- probes ---------------------------------------------------------------------------------------------------------

NOW = 1000.0
NO_ETCD = Missing("worker", "cannot reach etcd", vital=True)
FRESH = (Heartbeat("git", 990.0, 30.0), Heartbeat("worker", 500.0, 7200.0))
LATE = (Heartbeat("git", 900.0, 30.0), Heartbeat("worker", 999.0, 60.0))


@pytest.mark.parametrize(
    ("state", "alive", "reasons"),
    [
        (Published(desired=DESIRED, heartbeats=FRESH), True, ()),
        (Published(desired=DESIRED), True, ()),
        (
            Published(desired=DESIRED, heartbeats=LATE),
            False,
            ("the git loop has given no sign of life for 100 s",),
        ),
        (Published(heartbeats=FRESH), True, ("no revision has been read yet",)),
        (
            Published(unavailable="cannot reach git.example.com"),
            True,
            ("no revision has been read yet: cannot reach git.example.com",),
        ),
        (
            Published(refusal="a.yaml:1:1: unknown kind"),
            True,
            ("no revision has been read yet: a.yaml:1:1: unknown kind",),
        ),
        (
            Published(desired=DESIRED, missing=(NO_ETCD,)),
            True,
            ("worker: cannot reach etcd",),
        ),
        (Published(desired=DESIRED, missing=(Missing("worker", "cannot reach the registry"),)), True, ()),
        (Published(desired=DESIRED, refusal="a.yaml:1:1: unknown kind"), True, ()),
    ],
    ids=[
        "healthy",
        "starting",
        "late",
        "unread",
        "no git",
        "refused",
        "no etcd",
        "no registry",
        "an older one in force",
    ],
)
def test_alive_and_ready(state: Published, alive: bool, reasons: tuple[str, ...]) -> None:
    assert (not why_not_alive(state, NOW)) is alive
    assert why_not_ready(state, NOW) == reasons


def test_probes_answer_200_and_503() -> None:
    behind = Behind()
    with serving(behind) as server:
        for path in ("/livez", "/readyz"):
            answer = ask(server, path)
            assert (answer.status, answer.json) == (200, {"ok": True, "reasons": []})
        no_git = Missing("git", "cannot reach git.example.com")
        behind.state = published(missing=(no_git,))
        answer = ask(server, "/readyz")
        assert (answer.status, answer.json) == (200, {"ok": True, "reasons": [str(no_git)]})
        behind.state = published(missing=(no_git, NO_ETCD))
        assert ask(server, "/livez").status == 200
        answer = ask(server, "/readyz")
        assert (answer.status, answer.json) == (503, {"ok": False, "reasons": [str(NO_ETCD), str(no_git)]})
        behind.state = published(heartbeats=(Heartbeat("worker", time.monotonic() - 100, 60.0),))
        assert [ask(server, path).status for path in ("/livez", "/readyz")] == [503, 503]


def test_the_images_health_check_asks_livez_where_the_agent_listens(tmp_path: Path) -> None:
    behind = Behind()
    with serving(behind, address="0.0.0.0:0") as server:
        listens = {"RECONCILER_LISTEN": f"0.0.0.0:{server.port}"}
        assert probe.problem(listens) is None
        behind.state = published(heartbeats=(Heartbeat("worker", time.monotonic() - 100, 60.0),))
        assert "the worker loop has given no sign of life" in (probe.problem(listens) or "")
    assert "does not answer" in (probe.problem(listens) or "")
    done = subprocess.run(
        [sys.executable, "-m", "reconciler.web.probe"],
        env={"PYTHONPATH": str(ROOT), **listens}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith(f"0.0.0.0:{server.port} does not answer")
    cert, key = Authority.make(tmp_path / "ca").issue("boot-0", "server")
    with serving(tls_cert=cert, tls_key=key) as server:
        listens = {"RECONCILER_LISTEN": f"127.0.0.1:{server.port}", "RECONCILER_TLS_CERT": str(cert)}
        assert probe.problem(listens) is None
    assert probe.problem({"RECONCILER_LISTEN": "nonsense"}) is not None


# --- status and plan ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fleet", [FLEET, Fleet(), replace(FLEET, rollout=None, phase=None)])
def test_the_status_is_as_its_schema_says(fleet: Fleet) -> None:
    with serving(Behind(published(fleet))) as server:
        answer = ask(server, "/api/v1/status")
    assert answer.headers["content-type"] == "application/json"
    assert violations(answer.json, "status") == []
    assert answer.json["etcd_revision"] == fleet.etcd_revision


def test_the_plan_is_that_of_the_command() -> None:
    interrupted = StepRecord("debs:deb/chrony:change", "earlier", "failed")
    recorded = {
        0: FLEET.recorded[0],
        1: {Key("deb", "chrony"): Installed(Key("deb", "chrony"), "4.3-2+deb12u1")},
    }
    fleet = replace(FLEET, recorded=recorded, steps={1: {interrupted.id: interrupted}})
    asked = Asked(dry_run=True, all_servers=True)
    plans = plans_for(Options(), asked, DESIRED, fleet, (0, 1))
    with serving(Behind(published(fleet))) as server:
        answer = ask(server, "/api/v1/plan")
    assert violations(answer.json, "plan") == []
    assert answer.json == json.loads(json.dumps(Planned(DESIRED, fleet, plans, "").document()))
    assert "interrupted" in {change["reason"] for change in answer.json["servers"][1]["changes"]}


def test_a_plan_is_made_once_for_each_state() -> None:
    plans = Plans()
    state = published()
    first = plans.body(state)
    assert plans.body(published()) is first
    assert plans.body(published(replace(FLEET, etcd_revision=88124))) is not first


def test_what_is_not_known_yet_is_503_with_the_reason() -> None:
    behind = Behind(Published(missing=(NO_ETCD,), desired=DESIRED))
    with serving(behind) as server:
        for path in ("/api/v1/status", "/api/v1/plan"):
            answer = ask(server, path)
            assert answer.status == 503
            assert answer.json["error"].endswith("; worker: cannot reach etcd")
        behind.state = Published(unavailable="cannot reach git.example.com", fleet=FLEET)
        answer = ask(server, "/api/v1/plan")
        assert answer.json["error"] == "no revision has been read yet: cannot reach git.example.com"


def test_a_plan_that_is_refused_names_every_server() -> None:
    extra = {Key("deb", name): Installed(Key("deb", name), "1") for name in "abcd"}
    fleet = replace(FLEET, recorded={0: extra, 1: extra})
    desired = replace(DESIRED, policy=RolloutPolicy(max_removals=3))
    with serving(Behind(published(fleet, desired))) as server:
        answer = ask(server, "/api/v1/plan")
    assert answer.status == 409
    assert re.findall(r"cannot plan server (\d)", answer.json["error"]) == ["0", "1"]


# --- the token ------------------------------------------------------------------------------------------------------

OPEN = {"/livez": 200, "/readyz": 200, "/hooks/git": 405}
GUARDED = ("/metrics", "/api/v1/status", "/api/v1/plan", "/openapi.json")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_on_loopback_nothing_wants_a_token() -> None:
    for address in ("127.0.0.1:0", "localhost:0"):
        with serving(address=address) as server:
            assert server.only_local
            assert {path: ask(server, path).status for path in GUARDED} == dict.fromkeys(GUARDED, 200)


@pytest.mark.parametrize("address", ["0.0.0.0:0", ":0"])
def test_elsewhere_all_but_probes_and_hooks_want_it(tmp_path: Path, address: str) -> None:
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    with serving(address=address, token_file=token) as server:
        for path, status in OPEN.items():
            assert ask(server, path).status == status
        for path in GUARDED:
            assert ask(server, path, headers=bearer("t0ken")).status == 200
            for wrong in (
                {},
                bearer("guess"),
                bearer(""),
                bearer("t0ken2"),
                {"Authorization": "t0ken"},
                {"Authorization": "Basic t0ken"},
            ):
                answer = ask(server, path, headers=wrong)
                assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_token_is_wanted_on_loopback_too_where_one_is_given(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t0ken")
    with serving(token_file=token) as server:
        assert ask(server, "/metrics").status == 401
        assert ask(server, "/metrics", headers={"Authorization": "bearer t0ken"}).status == 200


def test_elsewhere_without_a_token_file_nobody_is_let_in(caplog: pytest.LogCaptureFixture) -> None:
    with serving(address="0.0.0.0:0") as server:
        assert not server.only_local
        assert ask(server, "/livez").status == 200
        for headers in ({}, bearer(""), bearer("None")):
            assert ask(server, "/metrics", headers=headers).status == 401
    assert "is not loopback and no --token-file is given" in caplog.text


def test_a_token_that_is_rotated_holds_from_the_next_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    with serving(token_file=token) as server:
        assert ask(server, "/metrics", headers=bearer("old")).status == 200
        new = tmp_path / "new"
        new.write_text("new")
        new.rename(token)
        assert ask(server, "/metrics", headers=bearer("old")).status == 401
        assert ask(server, "/metrics", headers=bearer("new")).status == 200
        token.write_text("")
        assert ask(server, "/metrics", headers=bearer("")).status == 401
        assert ask(server, "/metrics", headers=bearer("new")).status == 401


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        (Listen("127.0.0.1"), "host:port is wanted"),
        (Listen("127.0.0.1:99999"), "host:port is wanted"),
        (Listen("198.18.0.1:0"), "cannot listen on 198.18.0.1:0"),
        (Listen("no-such-host.invalid:0"), "cannot listen on no-such-host.invalid:0"),
        (Listen("127.0.0.1:0", tls_cert=Path("cert.pem")), "--tls-cert and --tls-key go together"),
        (Listen("127.0.0.1:0", client_ca=Path("ca.pem")), "--client-ca wants"),
        (Listen("127.0.0.1:0", Path("/nowhere/c"), Path("/nowhere/k")), "No such file"),
    ],
)
def test_an_address_or_file_that_is_wrong_is_said(listen: Listen, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        bind(listen)


def test_an_address_that_is_taken_is_said() -> None:
    with serving() as server, pytest.raises(UsageError, match="Address already in use"):
        bind(Listen(f"127.0.0.1:{server.port}"))


# --- whatever is asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET", "HEAD"])
def test_a_wrong_method_is_405_and_says_which_are_right(path: str, method: str) -> None:
    right = ("POST",) if path == "/hooks/git" else ("GET", "HEAD")
    with serving() as server:
        answer = ask(server, path, method)
        assert (answer.status == 405) is (method not in right)
        if answer.status == 405:
            assert set(answer.headers["allow"].split(", ")) == set(right)


@pytest.mark.parametrize("path", ["/", "/livez/", "/api/v1", "/../etc/passwd", "/api/v1/status/x", "//"])
def test_what_is_not_there_is_404_in_json(path: str) -> None:
    with serving() as server:
        answer = ask(server, path)
    assert (answer.status, answer.json) == (404, {"error": "not found"})


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    secret = tmp_path_factory.mktemp("hook") / "secret"
    secret.write_text("s3cret")
    with serving(webhook_secret_file=secret) as server:
        yield server


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "X-Hub-Signature-256",
            "X-Gitea-Signature",
            "X-Gitlab-Token",
            "X-GitHub-Event",
            "Content-Type",
            "Authorization",
            "Accept",
        ]
    ),
    TEXT | st.sampled_from(["s3cret", "application/json", "application/x-www-form-urlencoded", "push"]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.binary(max_size=200) | st.dictionaries(
    st.sampled_from(["ref", "repository", "project", "after"]),
    VALUES | st.dictionaries(st.sampled_from(["clone_url", "full_name", "git_http_url"]), VALUES),
).map(lambda value: json.dumps(value).encode())


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    path=st.sampled_from(PATHS) | st.text("abc/.%~?&=", max_size=20).map(lambda text: "/" + text),
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT"]),
    headers=HEADERS,
    body=BODIES,
)
def test_no_request_makes_it_fail(
    hooked: Server, path: str, method: str, headers: dict[str, str], body: bytes
) -> None:
    with contextlib.suppress(ValueError):  # what http.client itself would not send
        answer = ask(hooked, path, method, body, headers)
        assert answer.status in (200, 202, 400, 401, 404, 405), answer


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_openapi_page_in_docs_is_the_one_that_is_served() -> None:
    with serving() as server:
        assert ask(server, "/openapi.json").body == openapi.body()
    assert (ROOT / "docs" / "openapi.json").read_bytes() == openapi.body(), (
        "run: python -m reconciler.web.openapi > docs/openapi.json"
    )


def test_every_reference_in_the_page_is_there() -> None:
    text = openapi.body().decode()
    references = set(re.findall(r'"\$ref": "([^"]*)"', text))
    known = {f"#/components/schemas/{name}" for name in openapi.document()["components"]["schemas"]}
    assert references <= known


def test_every_path_is_on_the_page_with_its_statuses(hooked: Server) -> None:
    page = openapi.document()["paths"]
    assert set(page) == set(PATHS)
    for path, methods in page.items():
        for method, operation in methods.items():
            answer = ask(hooked, path, method.upper())
            assert str(answer.status) in operation["responses"], (path, answer.status)


# --- what it costs --------------------------------------------------------------------------------------------------


def test_who_serves_nothing_does_not_import_it() -> None:
    program = (
        "import sys, reconciler.cli, reconciler.cli.program; "
        "print([name for name in ('uvicorn', 'starlette', 'prometheus_client', 'httptools') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
