"""`/metrics`: accepted by Prometheus' own linter, and each value where it belongs."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.core.published import Published
from reconciler.core.report import report
from reconciler.core.state import Fleet, Now, Rollout, Settings, Wave
from reconciler.web.metrics import Metrics
from tests.web.agent import DESIRED, FLEET, REVISION, STARTED, Behind, ask, published, serving


def samples(state: Published) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = Metrics(lambda: state).text().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(state: Published, name: str, /, **labels: str) -> float | None:
    return samples(state).get((name, frozenset(labels.items())))


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("state", [published(), Published(), published(Fleet(), None)])
def test_prometheus_own_linter_accepts_them(state: Published) -> None:
    with serving(Behind(state)) as server:
        answer = ask(server, "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = subprocess.run(
        ["promtool", "check", "metrics"], input=answer.body, capture_output=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("name", "labels", "wanted"),
    [
        ("reconciler_leader", {}, 1),
        ("reconciler_lease_remaining_seconds", {}, 8.5),
        ("reconciler_git_fetches_total", {}, 12),
        ("reconciler_git_fetch_errors_total", {}, 2),
        ("reconciler_revision_info", {"state": "desired", "revision": REVISION}, 1),
        ("reconciler_revision_refused", {}, 0),
        ("reconciler_changes_pending", {}, 2),
        ("reconciler_artifacts_unpinned", {}, 1),
        ("reconciler_artifacts_drifted", {"kind": "deb"}, 1),
        ("reconciler_artifacts_drifted", {"kind": "image"}, 0),
        ("reconciler_reboot_required", {}, 1),
        ("reconciler_rollout_state", {"state": "running"}, 1),
        ("reconciler_rollout_state", {"state": "failed"}, 0),
        ("reconciler_rollout_phase", {"phase": "containers"}, 1),
        ("reconciler_rollout_phase", {"phase": "reboot"}, 0),
        ("reconciler_rollout_wave", {}, 1),
        ("reconciler_rollout_start_timestamp_seconds", {}, 1767323045.000000006),
        ("reconciler_servers", {"condition": "running"}, 2),
        ("reconciler_servers_waiting", {"for": "slot"}, 1),
        ("reconciler_servers_silent", {}, 1),
        ("reconciler_paused", {}, 0),
        ("reconciler_lock_slots", {"group": "default"}, 2),
        ("reconciler_lock_slots_free", {"group": "default"}, 1),
        ("reconciler_lock_holders", {"group": "default"}, 1),
        ("reconciler_lock_waiters", {"group": "default"}, 1),
        ("reconciler_lock_holders_overdue", {"group": "default"}, 1),
        ("reconciler_etcd_requests_total", {"request": "Txn"}, 17),
        ("reconciler_etcd_errors_total", {"code": "UNAVAILABLE"}, 3),
        ("reconciler_loop_errors_total", {"loop": "git", "reason": "Unavailable"}, 2),
        ("reconciler_loop_duration_seconds_bucket", {"loop": "git", "le": "0.5"}, 1),
        ("reconciler_loop_duration_seconds_bucket", {"loop": "git", "le": "5.0"}, 2),
        ("reconciler_loop_duration_seconds_bucket", {"loop": "git", "le": "+Inf"}, 3),
        ("reconciler_loop_duration_seconds_count", {"loop": "git"}, 3),
        ("reconciler_loop_duration_seconds_sum", {"loop": "git"}, 10003.2),
        ("reconciler_step_duration_seconds_count", {"effect": "health", "outcome": "failed"}, 1),
        ("reconciler_webhook_deliveries_total", {"outcome": "forged"}, 0),
    ],
)
def test_each_says_what_was_published(name: str, labels: dict[str, str], wanted: float) -> None:
    assert value(published(), name, **labels) == wanted


def test_ages_are_counted_from_when_it_happened() -> None:
    state = published()
    assert 5 <= (value(state, "reconciler_git_fetch_age_seconds") or 0) < 10
    assert 30 <= (value(state, "reconciler_drift_check_age_seconds") or 0) < 35
    held = value(state, "reconciler_lock_oldest_holder_age_seconds", group="default") or 0
    assert held == pytest.approx(time.time() - 1_700_000_000, abs=5)


@pytest.mark.parametrize(
    "name",
    [
        "reconciler_lease_remaining_seconds",
        "reconciler_git_fetch_age_seconds",
        "reconciler_drift_check_age_seconds",
        "reconciler_rollout_wave",
    ],
)
def test_what_is_not_known_has_no_sample(name: str) -> None:
    assert value(Published(), name) is None


def test_an_applied_and_a_refused_revision_are_named() -> None:
    rollout = Rollout("a" * 40, (0,), STARTED, (Wave((0,)),), outcome="complete", finished_at=STARTED)
    fleet = replace(FLEET, rollout=rollout, phase=None)
    state = published(fleet, refused="b" * 40, refusal="its signature is wrong")
    assert value(state, "reconciler_revision_info", state="applied", revision="a" * 40) == 1
    assert value(state, "reconciler_revision_info", state="refused", revision="b" * 40) == 1
    assert value(state, "reconciler_revision_refused") == 1
    assert value(state, "reconciler_rollout_state", state="complete") == 1
    assert value(state, "reconciler_rollout_finish_timestamp_seconds") is not None


def test_a_state_that_is_not_foreseen_is_still_said() -> None:
    fleet = replace(FLEET, neco_at_work="/neco/status/current")
    assert value(published(fleet), "reconciler_rollout_state", state="neco") == 1


def test_no_setting_of_the_fleet_is_shown() -> None:
    settings = Settings(slack="https://hooks.example.com/T0/s3cret", github_token="ghp_s3cret")
    fleet = replace(FLEET, settings=settings)
    state = published(fleet, status=report(fleet, DESIRED, Now(time.time(), time.monotonic())))
    with serving(Behind(state)) as server:
        for path in ("/metrics", "/api/v1/status", "/api/v1/plan", "/readyz", "/livez"):
            assert b"s3cret" not in ask(server, path).body
