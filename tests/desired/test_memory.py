"""What a host remembers, and what it refuses because of that."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.desired.memory import (
    Memory,
    check_etcd,
    check_forward,
    entered,
    memory_file,
    recall,
    saw_etcd,
)
from reconciler.desired.repository import Source, resolve
from reconciler.errors import Corrupt, HostError, Refused, Unavailable
from tests.desired.conftest import Repository, make_repository

STATE = {"desired-state/a.yaml": "a: 1\n"}


@pytest.fixture
def source(repository: Repository, state_dir: Path) -> Source:
    return Source(str(repository.path), state_dir=state_dir)


def enter(source: Source, revision: str) -> None:
    """What the agent does: look at the memory, then enter the rollout."""
    check_forward(source, revision, recall(source.state_dir))
    entered(source, revision, source.state_dir)


def rewind(repository: Repository) -> None:
    repository.git("reset", "--quiet", "--hard", "HEAD~1")


def test_nothing_is_remembered_at_first(source: Source) -> None:
    assert recall(source.state_dir) == Memory()
    assert not source.state_dir.exists()


def test_the_same_revision_and_its_descendants_are_accepted(repository: Repository, source: Source) -> None:
    for number in range(3):
        enter(source, repository.commit({"desired-state/a.yaml": str(number)}))
        enter(source, resolve(source).id)


def test_going_back_is_refused_with_both_revisions_and_the_way_out(
    repository: Repository, source: Source
) -> None:
    first = repository.commit(STATE)
    second = repository.commit({"desired-state/a.yaml": "2"})
    enter(source, second)
    with pytest.raises(Refused, match=rf"{first} .*does not come after {second}.*--allow-rewind {first}"):
        enter(source, first)


def test_rewritten_history_is_refused(repository: Repository, source: Source) -> None:
    repository.commit(STATE)
    enter(source, repository.commit({"desired-state/a.yaml": "2"}))
    rewind(repository)
    with pytest.raises(Refused, match=r"history was rewritten"):
        enter(source, repository.commit({"desired-state/a.yaml": "3"}))


def test_a_rewind_is_allowed_for_one_commit_once(repository: Repository, source: Source) -> None:
    first = repository.commit(STATE)
    second = repository.commit({"desired-state/a.yaml": "2"})
    enter(source, second)
    rewind(repository)
    other = repository.commit({"desired-state/a.yaml": "3"})
    allowing = replace(source, allow_rewind=other)
    with pytest.raises(Refused):
        enter(allowing, first)
    enter(allowing, other)
    enter(allowing, other)  # a restart with the same option
    last = repository.commit({"desired-state/a.yaml": "4"})
    enter(allowing, last)
    with pytest.raises(Refused, match=r"was used once"):
        enter(allowing, other)
    with pytest.raises(Refused):
        enter(allowing, second)
    enter(allowing, last)


def test_a_look_alone_uses_no_rewind_up(repository: Repository, source: Source) -> None:
    first = repository.commit(STATE)
    enter(source, repository.commit({"desired-state/a.yaml": "2"}))
    allowing = replace(source, allow_rewind=first)
    before = memory_file(source.state_dir).read_bytes()
    for _ in range(3):
        check_forward(allowing, first, recall(source.state_dir))
    assert memory_file(source.state_dir).read_bytes() == before


def test_each_source_has_its_own_memory(repository: Repository, source: Source, tmp_path: Path) -> None:
    enter(source, repository.commit(STATE))
    other = make_repository(tmp_path / "other")
    enter(replace(source, repo=str(other.path)), other.commit(STATE, "unrelated"))
    enter(source, repository.commit({"desired-state/a.yaml": "2"}))
    assert len(recall(source.state_dir).accepted) == 2


def test_a_path_is_the_same_source_however_it_is_written(
    repository: Repository, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = repository.commit(STATE)
    enter(source, repository.commit({"desired-state/a.yaml": "2"}))
    monkeypatch.chdir(repository.path)
    with pytest.raises(Refused):
        enter(replace(source, repo="."), first)


def test_a_plain_directory_goes_any_way(tmp_path: Path, state_dir: Path) -> None:
    file = tmp_path / "plain/desired-state/a.yaml"
    file.parent.mkdir(parents=True)
    source = Source(str(tmp_path / "plain"), state_dir=state_dir)
    for text in ("1", "2", "1"):
        file.write_text(text)
        enter(source, resolve(source).id)


def test_what_is_remembered_is_bounded(state_dir: Path, tmp_path: Path) -> None:
    for number in range(105):
        entered(Source(str(tmp_path / str(number)), state_dir=state_dir), f"{number:040x}", state_dir)
    accepted = recall(state_dir).accepted
    assert len(accepted) == 100
    assert accepted[-1][0] == str(tmp_path / "104")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"format": 2, "accepted": []}',
        b'{"format": 1, "accepted": 1}',
        b'{"format": 1, "accepted": [{"source": "x"}]}',
        b'{"format": 1, "accepted": [{"source": "x", "revision": "main", "rewinds": []}]}',
        b'{"format": 1, "accepted": [], "etcd": {"cluster": "a", "revision": "1"}}',
        b'{"format": 1, "accepted": [], "etcd": {"cluster": "a", "revision": true}}',
        b"[" * 100_000,
        b" " * (2 << 20),
    ],
)
def test_a_file_that_cannot_be_understood_is_named_and_kept(source: Source, content: bytes) -> None:
    source.state_dir.mkdir()
    path = memory_file(source.state_dir)
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=r"cannot use .*accepted\.json"):
        recall(source.state_dir)
    with pytest.raises(Corrupt):
        entered(source, "0" * 40, source.state_dir)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_is_named(source: Source) -> None:
    memory_file(source.state_dir).mkdir(parents=True)
    with pytest.raises(HostError, match=r"cannot read .*accepted\.json"):
        recall(source.state_dir)


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"see --state-dir"):
        saw_etcd(tmp_path / "file", "a", 1)


def test_a_state_directory_that_this_user_may_not_write_is_named(source: Source) -> None:
    source.state_dir.mkdir()
    (source.state_dir / "accepted.lock").mkdir()
    with pytest.raises(Unavailable, match=r"cannot lock .*see --state-dir"):
        entered(source, "1" * 40, source.state_dir)


def test_a_half_written_file_counts_for_nothing(source: Source) -> None:
    entered(source, "1" * 40, source.state_dir)
    memory_file(source.state_dir).with_suffix(".new").write_text('{"form')
    entered(source, "2" * 40, source.state_dir)
    accepted = recall(source.state_dir).of(source)
    assert accepted is not None
    assert accepted.revision == "2" * 40


def test_etcd_goes_forward(state_dir: Path) -> None:
    for revision in (5, 5, 9):
        saw_etcd(state_dir, "cdf818194e3a8c32", revision)
    memory = recall(state_dir)
    assert (memory.etcd_cluster, memory.etcd_revision) == ("cdf818194e3a8c32", 9)
    check_etcd(state_dir, memory, "cdf818194e3a8c32", 9)


def test_another_etcd_is_refused(state_dir: Path) -> None:
    saw_etcd(state_dir, "a", 5)
    with pytest.raises(Refused, match=r"cluster id is b, and this host worked with a; .*accepted\.json"):
        saw_etcd(state_dir, "b", 6)
    assert recall(state_dir).etcd_cluster == "a"


def test_a_restored_etcd_is_refused_until_the_operator_says_so(state_dir: Path) -> None:
    saw_etcd(state_dir, "a", 5)
    with pytest.raises(Refused, match=r"at etcd revision 4, and this host has seen 5"):
        saw_etcd(state_dir, "a", 4)
    path = memory_file(state_dir)
    document = json.loads(path.read_text())
    del document["etcd"]
    path.write_text(json.dumps(document))
    saw_etcd(state_dir, "a", 4)
    assert recall(state_dir).etcd_revision == 4


def test_what_is_known_already_is_not_written_again(state_dir: Path) -> None:
    saw_etcd(state_dir, "a", 5)
    path = memory_file(state_dir)
    os.utime(path, (1, 1))
    saw_etcd(state_dir, "a", 5)
    assert path.stat().st_mtime == 1


def test_two_writers_lose_nothing_of_each_other(source: Source) -> None:
    def see() -> None:
        for number in range(1, 20):
            saw_etcd(source.state_dir, "a", number)

    thread = threading.Thread(target=see)
    thread.start()
    for number in range(20):
        entered(source, f"{number:040x}", source.state_dir)
    thread.join()
    memory = recall(source.state_dir)
    accepted = memory.of(source)
    assert accepted is not None
    assert (accepted.revision, memory.etcd_revision) == (f"{19:040x}", 19)
