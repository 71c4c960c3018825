"""The fleet's settings in etcd take effect in agents that run: each of them, set by the command line as an operator would."""

from __future__ import annotations

import time
from pathlib import Path

from tests.fleet.fleet import Servers
from tests.fleet.test_http import door


def set_config(servers: Servers, name: str, text: str, tmp_path: Path) -> None:
    """`reconcile config set`; a secret comes from a file."""
    file = tmp_path / "value"
    file.write_text(text)
    secret = name in ("github-token", "notification/slack")
    servers.command()("config", "set", name, *(["--from-file", file] if secret else [text])).ok()


def test_the_release_time_and_its_zone_hold_rollouts_and_let_them_go(
    servers: Servers, tmp_path: Path
) -> None:
    servers.gather(2)
    set_config(servers, "release-time", "0 0 30 2 *", tmp_path)
    held = servers.push({"tool": "1.0"})
    servers.wait("it is noted", lambda: servers.view().noted == held)
    shown = servers.command()("status").ok()
    assert "not rolled out: outside the release time (config/release-time)" in shown.out
    hour = time.gmtime().tm_hour
    set_config(servers, "release-time", f"* {(hour + 9) % 24},{(hour + 10) % 24} * * *", tmp_path)
    assert servers.view().rollout is None
    set_config(servers, "release-timezone", "Asia/Tokyo", tmp_path)
    servers.wait_for_end(held)


def test_every_other_setting_in_one_agent_that_runs(servers: Servers, tmp_path: Path) -> None:
    servers.add(0).interval = None
    set_config(servers, "check-update-interval", "1h", tmp_path)
    servers.start()
    first = servers.wait_for_end(servers.push({"tool": "1.0"}))

    # The interval: also where the agent waits by the old, long one.
    agent = door(servers, servers.machines[0])
    before = agent.fetches()
    set_config(servers, "check-update-interval", "100ms", tmp_path)
    servers.wait("it polls", lambda: agent.fetches() > before + 5)
    servers.command()("config", "unset", "check-update-interval").ok()

    # The timeout is the next rollout's.
    set_config(servers, "worker-timeout", "7m", tmp_path)
    # The token: this release server wants one from now on.
    servers.releases.token = "s3cr3t-token"
    wanted = servers.push({"tool": "2.0"})
    cannot_open(servers, wanted)
    set_config(servers, "github-token", "s3cr3t-token", tmp_path)
    second = servers.wait_for_end(wanted)
    assert (first.timeout, second.timeout) == (3600.0, 420.0)
    assert "s3cr3t-token" not in servers.machines[0].log

    # The proxy: one that is not there, taken back.
    set_config(servers, "proxy", "http://127.0.0.1:1", tmp_path)
    wanted = servers.push({"tool": "3.0"})
    cannot_open(servers, wanted)
    servers.command()("config", "unset", "proxy").ok()
    servers.wait_for_end(wanted)


def cannot_open(servers: Servers, revision: str) -> None:
    text = f"cannot open a rollout of {revision[:12]}"
    servers.wait("the leader says so", lambda: text in servers.machines[0].log)
