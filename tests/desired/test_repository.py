"""Reading the desired state from repositories on this machine."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

import pytest

from reconciler.desired.repository import Source, fetch, is_descendant, is_directory, read, resolve
from reconciler.errors import Refused, Unavailable
from reconciler.ground import process
from tests.desired.conftest import Repository, git, make_repository

STATE = {"desired-state/a.yaml": "a: 1\n"}


def files_of(source: Source) -> list[tuple[str, bytes]]:
    return read(source, resolve(source).id)


def test_yaml_files_come_from_the_commit_in_name_order(repository: Repository) -> None:
    repository.commit(
        {
            "desired-state/b.yml": "b",
            "desired-state/a.yaml": "a",
            "desired-state/z/c.yaml": "c",
            "desired-state/README.md": "no",
            "desired-state/d.yaml.bak": "no",
            "other/e.yaml": "no",
        }
    )
    source = Source(str(repository.path))
    fetch(source)
    assert files_of(source) == [
        ("desired-state/a.yaml", b"a"),
        ("desired-state/b.yml", b"b"),
        ("desired-state/z/c.yaml", b"c"),
    ]


def test_the_revision_says_what_was_asked(repository: Repository) -> None:
    commit = repository.commit(STATE)
    revision = resolve(Source(str(repository.path)))
    assert (revision.id, revision.ref, revision.repo) == (commit, "HEAD", str(repository.path))


def test_a_work_trees_uncommitted_changes_are_not_read(repository: Repository) -> None:
    repository.commit(STATE)
    repository.write({"desired-state/a.yaml": "changed", "desired-state/new.yaml": "new"})
    repository.git("add", "--all")
    assert files_of(Source(str(repository.path))) == [("desired-state/a.yaml", b"a: 1\n")]


def test_attributes_and_line_ends_of_the_repository_change_nothing(repository: Repository) -> None:
    repository.git("config", "core.autocrlf", "true")
    repository.commit({**STATE, ".gitattributes": "*.yaml text eol=crlf ident filter=evil\n"})
    assert files_of(Source(str(repository.path))) == [("desired-state/a.yaml", b"a: 1\n")]


def test_a_bare_repository_is_read_in_place(repository: Repository, tmp_path: Path, state_dir: Path) -> None:
    commit = repository.commit(STATE)
    git(tmp_path, "clone", "--quiet", "--bare", repository.path, "bare.git")
    source = Source(str(tmp_path / "bare.git"), state_dir=state_dir)
    fetch(source)
    assert resolve(source).id == commit
    assert files_of(source) == [("desired-state/a.yaml", b"a: 1\n")]
    assert not state_dir.exists()


def test_a_shallow_clone_a_linked_work_tree_and_a_packed_repository_are_read(
    repository: Repository, tmp_path: Path
) -> None:
    repository.commit({"desired-state/a.yaml": "old"})
    repository.commit(STATE)
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository.path}", "shallow")
    repository.git("worktree", "add", "--quiet", "--detach", tmp_path / "linked")
    repository.git("gc", "--quiet")
    for place in ("shallow", "linked", "repository"):
        assert files_of(Source(str(tmp_path / place))) == [("desired-state/a.yaml", b"a: 1\n")]


def test_a_directory_inside_a_work_tree_is_no_repository(repository: Repository) -> None:
    repository.commit({"inner/desired-state/a.yaml": "a"})
    inner = Source(str(repository.path / "inner"))
    assert is_directory(inner)
    assert files_of(inner) == [("desired-state/a.yaml", b"a")]
    assert not is_directory(Source(str(repository.path)))


def test_a_linked_path_to_a_repository_is_the_operators_word(repository: Repository, tmp_path: Path) -> None:
    repository.commit(STATE)
    (tmp_path / "link").symlink_to(repository.path)
    assert files_of(Source(str(tmp_path / "link"))) == [("desired-state/a.yaml", b"a: 1\n")]


def test_branches_tags_and_commits_are_found(repository: Repository) -> None:
    first = repository.commit(STATE)
    repository.git("tag", "v1")
    repository.git("tag", "--annotate", "--message", "annotated", "v1-signed")
    repository.git("branch", "stable/2022")
    second = repository.commit({"desired-state/a.yaml": "2"})
    source = Source(str(repository.path))
    for name in (
        "v1",
        "v1-signed",
        "stable/2022",
        first,
        first[:10],
        "HEAD~1",
        "main^",
        "refs/heads/stable/2022",
    ):
        assert resolve(source, name).id == first
    assert resolve(source).id == resolve(source, "main").id == second
    assert read(source, first) == [("desired-state/a.yaml", b"a: 1\n")]


def test_a_branch_goes_before_a_tag_and_a_whole_id_before_both(repository: Repository) -> None:
    first = repository.commit(STATE)
    repository.git("tag", "name")
    repository.git("branch", first)
    second = repository.commit({"desired-state/a.yaml": "2"})
    repository.git("branch", "name")
    repository.git("update-ref", f"refs/heads/{first}", second)
    source = Source(str(repository.path))
    assert resolve(source, "name").id == second
    assert resolve(source, first).id == first


def test_the_highest_version_among_the_matching_tags_is_taken(repository: Repository) -> None:
    commits = {}
    for number, tag in enumerate(
        ["release-2022.05.9-1", "release-2022.05.10-1", "test-2030.01.01-1", "release-2022.05.2-1"]
    ):
        commits[tag] = repository.commit({"desired-state/a.yaml": str(number)})
        repository.git("tag", tag)
    revision = resolve(Source(str(repository.path), tag_pattern="release-*"))
    assert (revision.id, revision.ref) == (commits["release-2022.05.10-1"], "release-2022.05.10-1")


def test_no_matching_tag_names_those_that_are_there(repository: Repository) -> None:
    repository.commit(STATE)
    repository.git("tag", "v1")
    with pytest.raises(Unavailable, match=r"no tag matches; there are: v1"):
        resolve(Source(str(repository.path), tag_pattern="release-*"))


def test_an_unknown_ref_names_the_near_ones(repository: Repository) -> None:
    repository.commit(STATE)
    repository.git("branch", "release")
    with pytest.raises(Unavailable, match=r"cannot find relaese in .*there are: release"):
        resolve(Source(str(repository.path), ref="relaese"))


def test_a_commit_that_does_not_exist_is_named(repository: Repository) -> None:
    repository.commit(STATE)
    source = Source(str(repository.path), ref="0" * 40)
    with pytest.raises(Unavailable, match=r"cannot find 0{40} .*no such commit"):
        resolve(source)
    with pytest.raises(Unavailable, match=r"cannot find commit 0{40}"):
        read(source, "0" * 40)


def test_a_repository_without_a_commit_says_so(repository: Repository) -> None:
    with pytest.raises(Unavailable, match=r"no commit yet"):
        resolve(Source(str(repository.path)))


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_directory_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"it is (not there|a file)"):
        resolve(Source(str(tmp_path / name)))


def test_a_broken_repository_says_so(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(Unavailable, match=r"not a git repository"):
        resolve(Source(str(tmp_path)))


def test_a_missing_directory_names_those_that_are_there(repository: Repository) -> None:
    repository.commit({"state/a.yaml": "a"})
    with pytest.raises(Refused, match=r"no directory desired-state; the directories there are state"):
        files_of(Source(str(repository.path)))


def test_a_directory_without_yaml_is_refused(repository: Repository) -> None:
    repository.commit({"desired-state/README": "nothing"})
    with pytest.raises(Refused, match=r"no file that ends in"):
        files_of(Source(str(repository.path)))


def test_links_and_submodules_are_refused_together(repository: Repository, tmp_path: Path) -> None:
    other = make_repository(tmp_path / "other")
    other.commit({"x.yaml": "x"})
    repository.write(STATE)
    (repository.path / "desired-state/passwd.yaml").symlink_to("/etc/passwd")
    (repository.path / "desired-state/link").symlink_to("..")
    repository.git("submodule", "--quiet", "add", other.path, "desired-state/sub")
    repository.commit()
    with pytest.raises(Refused) as error:
        files_of(Source(str(repository.path)))
    assert [(finding.file, finding.problem.partition(";")[0]) for finding in error.value.findings] == [
        ("desired-state/link", "is a symbolic link"),
        ("desired-state/passwd.yaml", "is a symbolic link"),
        ("desired-state/sub", "is a submodule"),
    ]


def test_a_directory_that_is_a_link_is_refused(repository: Repository) -> None:
    repository.write({"real/a.yaml": "a"})
    (repository.path / "desired-state").symlink_to("real")
    repository.commit()
    with pytest.raises(Refused, match=r"desired-state:1:1: is a symbolic link"):
        files_of(Source(str(repository.path)))


@pytest.mark.parametrize("name", [".GIT", "git~1", "..", ".git\u200c"])
def test_names_that_mean_git_itself_are_refused(repository: Repository, name: str) -> None:
    repository.commit(STATE)
    blob = repository.git("hash-object", "-w", "desired-state/a.yaml")
    binary = bytes.fromhex(blob)
    tree = repository.path / "tree"
    tree.write_bytes(b"100644 " + name.encode() + b"\0" + binary)
    inner = repository.git("hash-object", "-t", "tree", "-w", "--literally", tree)
    top = repository.git("mktree", input=f"040000 tree {inner}\tdesired-state\n")
    commit = repository.git("commit-tree", "-m", "evil", top)
    with pytest.raises(Refused, match=r"desired-state is refused"):
        read(Source(str(repository.path)), commit)


def test_a_name_that_cannot_be_shown_is_refused(repository: Repository) -> None:
    repository.commit({**STATE, "desired-state/\x1b[2J.yaml": "a"})
    with pytest.raises(Refused, match=r"has a name that cannot be shown") as error:
        files_of(Source(str(repository.path)))
    assert "\x1b" not in str(error.value)


def test_one_byte_too_many_is_refused(repository: Repository) -> None:
    repository.commit({"desired-state/a.yaml": b"#" * (10 << 20)})
    assert len(files_of(Source(str(repository.path)))[0][1]) == 10 << 20
    repository.commit({"desired-state/b.yaml": b"#"})
    with pytest.raises(Refused, match=r"desired-state/b.yaml.*more than 10,485,760 bytes"):
        files_of(Source(str(repository.path)))


def test_a_huge_file_is_refused_without_being_read(repository: Repository) -> None:
    repository.commit({"desired-state/huge.yaml": b"#" * (200 << 20)})
    source = Source(str(repository.path))
    revision = resolve(source).id
    before = _peak_memory()
    with pytest.raises(Refused, match=r"huge.yaml"):
        read(source, revision)
    assert _peak_memory() - before < 50 << 20


def test_one_file_too_many_is_refused(repository: Repository) -> None:
    blob = repository.git("hash-object", "-w", "--stdin", input="a: 1\n")

    def commit_of(count: int) -> str:
        lines = "".join(f"100644 blob {blob}\t{number}.yaml\n" for number in range(count))
        inner = repository.git("mktree", input=lines)
        top = repository.git("mktree", input=f"040000 tree {inner}\tdesired-state\n")
        return repository.git("commit-tree", "-m", "many", top)

    source = Source(str(repository.path))
    assert len(read(source, commit_of(10_000))) == 10_000
    with pytest.raises(Refused, match=r"more than 10,000 files"):
        read(source, commit_of(10_001))


def test_a_tree_that_unfolds_into_billions_of_files_is_refused_at_once(repository: Repository) -> None:
    tree = repository.git(
        "mktree", input=f"100644 blob {repository.git('hash-object', '-w', '--stdin', input='x')}\tx\n"
    )
    for _ in range(12):
        tree = repository.git(
            "mktree", input="".join(f"040000 tree {tree}\td{number}\n" for number in range(10))
        )
    top = repository.git("mktree", input=f"040000 tree {tree}\tdesired-state\n")
    commit = repository.git("commit-tree", "-m", "bomb", top)
    start = time.monotonic()
    with pytest.raises(Refused, match=r"more than"):
        read(Source(str(repository.path)), commit)
    assert time.monotonic() - start < 10


def test_content_that_is_not_what_its_id_says_is_not_used(repository: Repository) -> None:
    commit = repository.commit(STATE)
    blob = repository.git("rev-parse", "HEAD:desired-state/a.yaml")
    file = repository.path / ".git/objects" / blob[:2] / blob[2:]
    file.chmod(0o644)
    file.write_bytes(zlib.compress(b"blob 5\0a: 2\n"))
    with pytest.raises(Unavailable, match=r"damaged|hash mismatch"):
        read(Source(str(repository.path)), commit)


def test_a_damaged_object_is_an_error_that_names_it(repository: Repository) -> None:
    commit = repository.commit(STATE)
    blob = repository.git("rev-parse", "HEAD:desired-state/a.yaml")
    file = repository.path / ".git/objects" / blob[:2] / blob[2:]
    file.chmod(0o644)
    file.write_bytes(b"garbage")
    with pytest.raises(Unavailable, match=rf"{blob}"):
        read(Source(str(repository.path)), commit)


def test_replaced_objects_are_not_followed(repository: Repository) -> None:
    commit = repository.commit(STATE)
    evil = repository.git("hash-object", "-w", "--stdin", input="evil: 1\n")
    repository.git("replace", "HEAD:desired-state/a.yaml", evil)
    assert read(Source(str(repository.path)), commit) == [("desired-state/a.yaml", b"a: 1\n")]


def test_nothing_that_a_repository_configures_is_run(repository: Repository, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {touched}\n")
    script.chmod(0o755)
    commit = repository.commit(STATE)
    for key in (
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "gpg.program",
        "gpg.ssh.program",
        "core.askPass",
    ):
        repository.git("config", key, str(script))
    hooks = repository.path / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / hook).write_text(script.read_text())
        (hooks / hook).chmod(0o755)
    source = Source(str(repository.path))
    fetch(source)
    assert read(source, resolve(source).id)
    assert is_descendant(source, commit, commit)
    assert not touched.exists()


def test_what_a_hook_has_set_for_another_repository_is_not_obeyed(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_repository(tmp_path / "other")
    other.commit({"desired-state/other.yaml": "other"})
    repository.commit(STATE)
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.path))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other.path / ".git/objects"))
    assert files_of(Source(str(repository.path))) == [("desired-state/a.yaml", b"a: 1\n")]


def test_another_users_repository_is_read(repository: Repository) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a repository to another user")
    repository.commit(STATE)
    process.run(["chown", "-R", "nobody", repository.path], timeout=30)
    source = Source(str(repository.path))
    assert files_of(source) == [("desired-state/a.yaml", b"a: 1\n")]
    commit = resolve(source).id
    assert is_descendant(source, commit, commit)


def test_history_goes_forward(repository: Repository) -> None:
    first = repository.commit(STATE)
    repository.git("checkout", "--quiet", "-b", "side")
    side = repository.commit({"desired-state/a.yaml": "side"})
    repository.git("checkout", "--quiet", "main")
    second = repository.commit({"desired-state/b.yaml": "b"})
    repository.git("merge", "--quiet", "--message", "merge", "side", "--strategy-option=theirs")
    merge = repository.git("rev-parse", "HEAD")
    source = Source(str(repository.path))
    assert is_descendant(source, first, first)
    assert is_descendant(source, second, first)
    assert is_descendant(source, merge, side)
    assert not is_descendant(source, first, second)
    assert not is_descendant(source, second, side)
    assert not is_descendant(source, second, "0" * 40)
    with pytest.raises(Unavailable, match=r"cannot find commit 0{40}"):
        is_descendant(source, "0" * 40, first)


def test_a_grafted_history_is_not_believed(repository: Repository) -> None:
    repository.commit(STATE)
    first = repository.commit({"desired-state/a.yaml": "1"})
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    other = repository.commit({"desired-state/a.yaml": "2"})
    (repository.path / ".git/info").mkdir(exist_ok=True)
    (repository.path / ".git/info/grafts").write_text(f"{other} {first}\n")
    repository.git("merge-base", "--is-ancestor", first, other)  # git itself believes it
    assert not is_descendant(Source(str(repository.path)), other, first)


def test_a_shallow_clone_does_not_pretend_to_know_history(repository: Repository, tmp_path: Path) -> None:
    first = repository.commit(STATE)
    second = repository.commit({"desired-state/a.yaml": "2"})
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository.path}", "shallow")
    source = Source(str(tmp_path / "shallow"))
    assert is_descendant(source, second, second)
    with pytest.raises(Unavailable, match=r"shallow clone.*--unshallow"):
        is_descendant(source, second, first)


def test_a_repository_with_sha256_names_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sha256"
    path.mkdir()
    git(path, "init", "--quiet", "--object-format=sha256", "--initial-branch=main")
    Repository(path).commit(STATE)
    with pytest.raises(Refused, match=r"SHA-256"):
        resolve(Source(str(path)))


def test_a_disk_that_does_not_answer_is_given_up_in_time(repository: Repository) -> None:
    commit = repository.commit(STATE)
    blob = repository.git("rev-parse", "HEAD:desired-state/a.yaml")
    file = repository.path / ".git/objects" / blob[:2] / blob[2:]
    file.unlink()
    os.mkfifo(file)  # opening it for reading waits for a writer, as a hung file system would make it wait
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"did not answer within 0.5 s"):
        read(Source(str(repository.path), timeout=0.5), commit)
    assert time.monotonic() - start < 5


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
