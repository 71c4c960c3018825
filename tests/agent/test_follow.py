"""Following git on one host: what is in force, and which revision that somebody else names is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.agent.follow import Follower
from reconciler.desired.source import Source
from reconciler.desired.trust import Trust
from reconciler.errors import Refused, Unavailable
from reconciler.host.policy import EVERYTHING
from tests.desired.conftest import Repository, make_repository
from tests.ssh_keys import SshKeys

EMPTY = "apiVersion: reconciler/v1\nkind: ArtifactSet\n"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def ssh(tmp_path: Path) -> SshKeys:
    return SshKeys(tmp_path / "ssh")


def push(repository: Repository, number: int, *options: str) -> str:
    return repository.commit({"desired-state/a.yaml": f"{EMPTY}# {number}\n"}, "a revision", *options)


def follower(repository: Repository, trust: Trust = Trust(), tags: str | None = None) -> Follower:  # frozen
    state_dir = repository.path.parent / "state"
    source = Source(f"file://{repository.path}", tag_pattern=tags, state_dir=state_dir)
    return Follower(source, trust, EVERYTHING, state_dir, 0)


def test_a_revision_that_the_leader_has_seen_first_is_fetched(repository: Repository) -> None:
    first = push(repository, 1)
    here = follower(repository)
    here.look()
    second = push(repository, 2)
    assert here.at(second).revision.id == second
    assert here.at(first).revision.ref == "main"


def test_a_commit_on_another_branch_is_refused_whoever_names_it(repository: Repository) -> None:
    """Who may write to etcd and push a branch of their own must not get past the branch that is followed."""
    push(repository, 1)
    here = follower(repository)
    here.look()
    repository.git("checkout", "--quiet", "-b", "feature")
    elsewhere = push(repository, 2)
    with pytest.raises(
        Refused, match=rf"{elsewhere} .* is refused: it is not on main, which this host follows"
    ):
        here.at(elsewhere)
    repository.git("checkout", "--quiet", "main")
    repository.git("merge", "--quiet", "--ff-only", "feature")
    assert here.at(elsewhere).revision.id == elsewhere, "it is on it now"


def test_a_commit_that_was_never_pushed_is_not_there(repository: Repository) -> None:
    push(repository, 1)
    here = follower(repository)
    with pytest.raises(Unavailable, match="it has no such commit"):
        here.at("5" * 40)


@pytest.mark.needs("ssh-keygen")
def test_with_tags_the_leaders_revision_needs_a_signed_tag_of_the_pattern(
    repository: Repository, ssh: SshKeys
) -> None:
    """Also one that this host has not seen yet, or not since its restart."""
    ssh.sign_with(repository.path, "ops")
    trust = Trust("ssh", allowed_signers=ssh.allowed)
    first = push(repository, 1, "-S")
    repository.git("tag", "--sign", "--message", "x", "release-1")
    here = follower(repository, trust, "release-*")
    here.look()
    second = push(repository, 2, "-S")
    with pytest.raises(Refused, match=r"no tag 'release-\*', which this host follows, is on it"):
        here.at(second)
    repository.git("tag", "--annotate", "--message", "x", "release-2")
    with pytest.raises(Refused, match=r"tag release-2 is refused: it has no good signature"):
        here.at(second)
    repository.git("tag", "--sign", "--force", "--message", "x", "release-2")
    assert here.at(second).revision.ref == "release-2"
    assert follower(repository, trust, "release-*").at(first).revision.ref == "release-1"


def test_after_a_restart_what_this_host_entered_stays_in_force(repository: Repository) -> None:
    """Though the branch has gone back behind it, and what stands there now is refused."""
    push(repository, 1)
    entered = push(repository, 2)
    before = follower(repository)
    before.look()
    before.enter(entered)
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    after = follower(repository)
    assert after.look()
    assert after.state.newest and after.state.newest.revision.id == entered
    assert after.state.refusal and "it does not come after" in after.state.refusal
    assert after.at(entered).revision.id == entered


@pytest.mark.needs("ssh-keygen")
def test_after_a_restart_it_stays_in_force_though_its_tag_is_gone(
    repository: Repository, ssh: SshKeys
) -> None:
    ssh.sign_with(repository.path, "ops")
    trust = Trust("ssh", allowed_signers=ssh.allowed)
    entered = push(repository, 1, "-S")
    repository.git("tag", "--sign", "--message", "x", "release-1")
    before = follower(repository, trust, "release-*")
    before.look()
    before.enter(entered)
    repository.git("tag", "--delete", "release-1")
    after = follower(repository, trust, "release-*")
    after.look()
    assert after.state.newest and after.state.newest.revision.signer == "ops@example.org"
    assert after.state.unavailable and "no tag matches" in after.state.unavailable
