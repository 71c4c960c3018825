"""Whole agents and a person's commands in an etcd with users: each with its own rights, tokens that expire, passwords that change."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from reconciler.cli.program import run
from reconciler.store.client import Client
from reconciler.store.keys import Keys
from tests.cli.command import Command
from tests.conftest import Etcd, options
from tests.etcd_server import EtcdServer
from tests.etcd_users import FOLLOWERS, OPERATOR, ROOT, SERVERS, Users, agent
from tests.fleet import fleet
from tests.fleet.daemon import ask
from tests.fleet.fleet import Servers

FOLLOWER = FOLLOWERS[0]


def called(command: Command, *words: str) -> None:
    """The command in this process: with many of them, most of the time would be their start."""
    assert run(list(words), command.whole_environment({})) == 0, words


def test_a_persons_commands_need_an_operators_rights_and_no_more(servers: Servers) -> None:
    """Each verb that writes, beside agents of which one never leads; what they did is seen in etcd."""
    servers.add(0)
    servers.add(FOLLOWER, "--no-lead")
    servers.machines[0].hold_dpkg()
    servers.start()
    servers.wait_for_registered(0, FOLLOWER)
    operate = partial(called, servers.command())
    operate("config", "set", "release-timezone", "Europe/Berlin")
    assert servers.view().settings.release_timezone == "Europe/Berlin"
    operate("config", "unset", "release-timezone")
    operate("pause", "--reason", "a test")
    assert servers.view().pause
    operate("resume")
    revision = servers.push({"tool": "1.0"})
    servers.wait("a dpkg runs", lambda: servers.machines[0].in_dpkg)
    operate("stop")
    servers.wait_for_stop(revision)
    servers.machines[0].let_dpkg_go()
    operate("recover")
    servers.wait_for_end(servers.push({"tool": "2.0"}))
    servers.has("tool", "2.0")
    operate("lock", "set-max", "2")
    operate("lock", "acquire", "--machine-id", "f" * 32)
    operate("lock", "release", "--machine-id", "f" * 32)
    operate("server", "disable", "0", "--reason", "a test")
    operate("server", "enable", "0")
    servers.machines[FOLLOWER].kill()
    operate("server", "remove", str(FOLLOWER))
    assert servers.view().servers == {0}
    operate("server", "add", str(FOLLOWER))
    for words in (("status",), ("history",), ("snapshot",), ("server", "list"), ("lock", "status")):
        called(servers.command("reader"), *words)


@pytest.mark.parametrize(
    "words",
    [("pause", "--reason", "x"), ("server", "disable", "0", "--reason", "x"), ("config", "set", "proxy", "http://x")],
    ids=" ".join,
)  # fmt: skip
def test_what_a_user_may_not_do_names_the_roles(servers: Servers, words: tuple[str, ...]) -> None:
    """An agent's credential, on a server that never leads, is no operator's."""
    servers.administration.add_server(0)
    refused = servers.command(agent(FOLLOWER))(*words)
    assert refused.status == 1 and "permission denied; `reconcile etcd-roles` shows" in refused.err
    fleet = servers.view()
    assert (fleet.pause, fleet.disabled, fleet.settings.proxy) == (None, {}, None)


def test_a_pass_by_hand_works_with_the_agents_rights_and_adopt_with_an_operators(servers: Servers) -> None:
    machine = servers.add(0)
    servers.push({"tool": "1.0"})
    here = servers.command_on(machine)
    here("--dry-run").ok()
    here("--yes").ok()
    servers.has("tool", "1.0", 0)
    here("drift").ok()
    here("lock", "acquire").ok()
    assert here("lock", "release").status == 1, "it is an operator's, with a note in a history that is theirs"
    servers.command_on(machine, OPERATOR)("adopt", "--yes").ok()


def granted(servers: Servers) -> str:
    """Change etcd's roles, as running the commands of `etcd-roles` again does; the revision of the rollout that is complete."""
    words = (
        "role",
        "grant-permission",
        "reconciler-reader",
        "--prefix=true",
        "read",
        servers.etcd.keys.history,
    )
    servers.etcd.server.etcdctl(*words)
    rollout = servers.view().rollout
    return rollout.version if rollout and rollout.outcome == "complete" else ""


def test_tokens_that_expire_at_rest_and_a_password_that_changes(etcd_users: Users, tmp_path: Path) -> None:
    """No agent is restarted; one whose password is another's for a while says so, and goes on once its file has the new one."""
    (tmp_path / "users").mkdir()
    users = etcd_users.copied(tmp_path / "users", ROOT, OPERATOR, *map(agent, SERVERS))
    with (
        EtcdServer(users=users, arguments=("--auth-token-ttl", "1")) as server,
        Client(options(server)) as client,
        fleet.running(Etcd(server, Keys(), client), tmp_path) as servers,
    ):
        servers.gather(3)
        servers.wait_for_end(servers.push({"tool": "1.0"}))
        time.sleep(2.5)  # every agent's token has expired, and none has been told
        revision = servers.push({"tool": "2.0"})
        servers.wait("it ends while rights are granted anew", lambda: granted(servers) == revision)
        servers.has("tool", "2.0")
        follower = next(machine for machine in servers.machines.values() if machine is not servers.leader())
        password = users.password_file(agent(follower.lrn))
        server.etcdctl("user", "passwd", agent(follower.lrn), "--interactive=false", stdin="another\n")
        revision = servers.push({"tool": "3.0"})
        servers.wait(
            "it says why it cannot go on", lambda: f"look at --etcd-user and {password}" in follower.log
        )
        servers.wait("and is not ready", lambda: ask(follower, "/readyz").status == 503)
        assert "look at --etcd-user" in ask(follower, "/readyz").text
        password.write_text("another\n")
        servers.wait_for_end(revision)
        servers.has("tool", "3.0")
        assert "another" not in follower.log
