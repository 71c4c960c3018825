"""Each server checks for itself: signatures, revoked keys, signed tags, and forward only, on whole agents. Promise 14; faults 35 and 36."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.core.state import ABORTED
from tests.etcd_users import FOLLOWERS
from tests.fleet.fleet import Machine, Servers
from tests.gpg_keys import gpg_keys
from tests.ssh_keys import SshKeys

pytestmark = pytest.mark.needs("ssh-keygen")
FOLLOWER = FOLLOWERS[0]


@pytest.fixture
def ssh(tmp_path: Path) -> SshKeys:
    return SshKeys(tmp_path / "ssh")


def verifying(ssh: SshKeys, *more: str) -> tuple[str, ...]:
    (ssh.directory / "revoked").touch()
    files = ("--allowed-signers", str(ssh.allowed), "--revoked-keys", str(ssh.directory / "revoked"))
    return ("--verify", "ssh", *files, *more)


def sign(servers: Servers, ssh: SshKeys, name: str) -> None:
    """From now on every revision is signed with that key."""
    ssh.sign_with(servers.work, name)
    servers.git("config", "commit.gpgSign", "true")


def all_refuse(servers: Servers, revision: str) -> None:
    servers.wait(
        "every host refuses it",
        lambda: all(
            f"revision {revision} is refused" in machine.log for machine in servers.machines.values()
        ),
    )


def test_a_follower_does_not_take_the_leaders_word(servers: Servers, ssh: SshKeys) -> None:
    """The leader asks for no signature and the follower for one: it refuses, says so in its status, and nothing has changed."""
    servers.add(0)
    strict = servers.add(FOLLOWER, "--no-lead", *verifying(ssh))
    servers.start()
    servers.wait_for_registered(0, FOLLOWER)
    stopped = servers.wait_for_stop(servers.push({"tool": "1.0"}))
    assert f"server {FOLLOWER}" in stopped.message and "no good signature by a trusted key" in stopped.message
    assert servers.view().statuses[FOLLOWER].cond == ABORTED
    assert "no good signature" in servers.command("reader")("status").ok().out
    servers.has_not("tool")
    sign(servers, ssh, "mallory")
    servers.wait_for_stop(servers.push({"tool": "1.0"}))
    servers.has_not("tool")
    sign(servers, ssh, "ops")
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    servers.has("tool", "1.0")
    # The key is revoked while the agent runs.
    (ssh.directory / "revoked").write_text(ssh.public("ops"))
    servers.wait_for_stop(servers.push({"tool": "2.0"}))
    servers.has("tool", "1.0")
    assert strict.process and strict.process.poll() is None


@pytest.mark.needs("gpg", "gpgconf")
def test_gpg_signatures(servers: Servers, tmp_path: Path) -> None:
    keyring = tmp_path / "keys.asc"
    with gpg_keys() as gpg:
        ops, mallory = gpg.make("ops"), gpg.make("mallory")
        keyring.write_text(gpg.export(ops, "--armor"))
        machine = servers.add(0, "--verify", "gpg", "--keyring", str(keyring))
        servers.git("config", "commit.gpgSign", "true")
        gpg.sign_with(servers.work, ops)
        servers.start()
        servers.wait_for_end(servers.push({"tool": "1.0"}))
        gpg.sign_with(servers.work, mallory)
        all_refuse(servers, servers.push({"tool": "2.0"}))
        assert machine.deb("tool") == "ii 1.0"
        gpg.sign_with(servers.work, ops)
        servers.wait_for_end(servers.push({"tool": "2.0"}))
        servers.has("tool", "2.0")


def test_a_tag_that_is_followed_must_be_signed_too(servers: Servers, ssh: SshKeys) -> None:
    """And after a restart, with git's newest tag refused, what was entered stays in force."""
    for lrn in range(2):
        servers.add(lrn, *verifying(ssh, "--tag-pattern", "release-*"))
    sign(servers, ssh, "ops")
    first = servers.push({"tool": "1.0"})
    servers.start()
    servers.wait_for_registered(0, 1)
    tag(servers, "release-1", "--sign")
    servers.wait_for_end(first)
    servers.has("tool", "1.0")
    second = servers.push({"tool": "2.0"})
    tag(servers, "release-2", "--annotate")
    all_refuse(servers, second)
    assert all(
        "tag release-2 is refused: it has no good signature" in m.log for m in servers.machines.values()
    )
    for machine in servers.machines.values():
        restart(servers, machine)
    servers.has("tool", "1.0")
    assert (rollout := servers.view().rollout) and rollout.version == first
    tag(servers, "release-3", "--sign")
    servers.wait_for_end(second)
    servers.has("tool", "2.0")


def tag(servers: Servers, name: str, how: str) -> None:
    servers.git("tag", how, "--message", "a release", name)
    servers.git("push", "--quiet", "origin", name)


def restart(servers: Servers, machine: Machine) -> None:
    machine.kill()
    servers.start(machine)


def test_each_host_goes_forward_by_its_own_memory_and_back_only_where_a_person_allows_it(
    servers: Servers,
) -> None:
    """Whatever stands in git and in etcd: a commit is gone back to once, and by those hosts that were told so."""
    for lrn in (0, FOLLOWER):
        servers.add(lrn)
    servers.machines[FOLLOWER].arguments = ("--no-lead",)
    servers.start()
    servers.wait_for_registered(0, FOLLOWER)
    first = servers.push({"tool": "1.0"})
    servers.wait_for_end(first)
    second = servers.push({"tool": "2.0"})
    servers.wait_for_end(second)
    servers.git("push", "--quiet", "--force", "origin", f"{first}:main")
    all_refuse(servers, first)
    # All that etcd knows of rollouts is gone, and the host that leads is allowed to go back: the other one is not.
    servers.administration.clear_finished()
    leader, other = servers.machines[0], servers.machines[FOLLOWER]
    leader.arguments = ("--allow-rewind", first)
    restart(servers, leader)
    stopped = servers.wait_for_stop(first)
    assert f"server {FOLLOWER}" in stopped.message and "does not come after" in stopped.message
    servers.has("tool", "2.0")
    other.arguments = ("--no-lead", "--allow-rewind", first)
    restart(servers, other)
    servers.administration.recover("2026-01-01T00:00:00Z")
    servers.wait_for_end(first)
    servers.has("tool", "1.0")
    # Forward again, and back again: that was once.
    servers.git("push", "--quiet", "origin", f"{second}:main")
    servers.wait_for_end(second)
    servers.git("push", "--quiet", "--force", "origin", f"{first}:main")
    servers.wait(
        "both say that it was used up",
        lambda: all(f"--allow-rewind {first} was used once" in m.log for m in (leader, other)),
    )
    servers.has("tool", "2.0")
