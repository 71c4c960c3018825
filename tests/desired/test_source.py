"""What may be given as a repository, ref, tag pattern and path."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.desired.source import Source, masked
from reconciler.errors import UsageError


@pytest.mark.parametrize(
    ("repo", "local"),
    [
        (".", True),
        ("/srv/desired.git", True),
        ("./host:path", True),
        ("../desired", True),
        ("https://git.example.org/ops/desired.git", False),
        ("https://ops@git.example.org:8443/desired", False),
        ("https://[2001:db8::1]/desired", False),
        ("ssh://git@git.example.org:2222/ops/desired.git", False),
        ("git@git.example.org:ops/desired.git", False),
        ("git.example.org:desired", False),
        (f"git.example.org:{'x' * 5000}", False),
        ("file:///srv/desired.git", False),
    ],
)
def test_paths_and_urls_are_told_apart(repo: str, local: bool) -> None:
    source = Source(repo)
    assert (source.local is not None) == local
    assert source.wanted == ("HEAD" if local else "main")


def test_a_path_with_a_colon_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "host:path").mkdir()
    assert Source("host:path").local == tmp_path / "host:path"


@pytest.mark.parametrize(
    "repo",
    [
        "",
        "-upload-pack",
        "--upload-pack=touch /tmp/x",
        "ext::sh -c touch% /tmp/x",
        "ext://sh",
        "fd::17",
        "::x",
        "http://git.example.org/desired",
        "git://git.example.org/desired",
        "ftp://git.example.org/desired",
        "HTTPS://git.example.org/desired",
        "ssh://-oProxyCommand=touch/x",
        "ssh://git@-oProxyCommand=touch/x",
        "-oProxyCommand=touch:x",
        "git@-oProxyCommand=touch:x",
        "git@git.example.org:-upload-pack",
        "https://git.example.org",
        "https:///desired",
        "file://other-host/desired",
        "https://git.example.org/a\nb",
        "/srv/a\x1b[31m",
    ],
)
def test_what_git_could_take_for_more_than_an_address_is_refused(repo: str) -> None:
    with pytest.raises(UsageError, match=r"cannot use") as error:
        Source(repo)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "repo",
    ["https://ops:hunter2@git.example.org/x", "https://:hunter2@git.example.org/x", "ssh://u:hunter2@h/x"],
)
def test_a_password_in_a_url_is_refused_and_not_shown(repo: str) -> None:
    with pytest.raises(UsageError, match=r"--git-password-file") as error:
        Source(repo)
    assert "hunter2" not in str(error.value)
    assert "***@" in str(error.value)


@pytest.mark.parametrize(
    "ref", ["main", "release/2022-05", "v1.2.3", "HEAD", "HEAD~3", "main^", "a" * 40, "refs/tags/v1", "ü"]
)
def test_branches_tags_and_commits_are_taken(ref: str) -> None:
    assert Source(".", ref=ref).wanted == ref


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "-x",
        "--help",
        "a..b",
        "a b",
        "a:b",
        "main@{1}",
        "a\nb",
        "*",
        ":/text",
        "^main",
        "a//b",
        "main.lock",
        "a\\b",
    ],
)
def test_what_is_no_ref_is_refused(ref: str) -> None:
    with pytest.raises(UsageError, match=r"as a ref"):
        Source(".", ref=ref)


def test_head_of_a_remote_is_refused() -> None:
    with pytest.raises(UsageError, match=r"name the branch"):
        Source("https://git.example.org/x", ref="HEAD")


@pytest.mark.parametrize("pattern", ["-x", "", "a b", "release-*\n"])
def test_what_is_no_tag_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"tag pattern"):
        Source(".", tag_pattern=pattern)


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../../x", "a\0b"])
def test_a_path_out_of_the_repository_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"--path"):
        Source(".", path=path)


@pytest.mark.parametrize(
    ("path", "directory"), [("desired-state/", ("desired-state",)), (".", ()), ("./a/b", ("a", "b"))]
)
def test_the_directory_in_the_repository(path: str, directory: tuple[str, ...]) -> None:
    assert Source(".", path=path).directory == directory


def test_going_back_needs_a_whole_commit_id() -> None:
    with pytest.raises(UsageError, match=r"--allow-rewind"):
        Source(".", allow_rewind="1a2b3c4")


def test_two_urls_have_two_mirrors() -> None:
    assert Source("https://h/a").mirror != Source("https://h/b").mirror


def test_masking_leaves_what_is_no_password() -> None:
    assert masked("see https://u:p@h/x and ssh://git@h:22/y") == "see https://u:***@h/x and ssh://git@h:22/y"
