"""A plain directory as the source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.desired.repository import Source, is_descendant, read, resolve
from reconciler.errors import Refused, Unavailable


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "desired-state" / "sub").mkdir(parents=True)
    (tmp_path / "desired-state" / "b.yaml").write_text("b")
    (tmp_path / "desired-state" / "sub" / "a.yml").write_text("a")
    (tmp_path / "desired-state" / "notes.txt").write_text("no")
    return tmp_path


def test_it_is_read_as_it_stands(base: Path) -> None:
    source = Source(str(base))
    revision = resolve(source)
    assert revision.id.startswith("sha256:")
    assert read(source, revision.id) == [("desired-state/b.yaml", b"b"), ("desired-state/sub/a.yml", b"a")]


def test_the_directory_itself_may_be_the_desired_state(base: Path) -> None:
    source = Source(str(base / "desired-state"), path=".")
    assert [name for name, _ in read(source, resolve(source).id)] == ["b.yaml", "sub/a.yml"]


def test_the_revision_is_names_and_contents_and_nothing_else(base: Path) -> None:
    source = Source(str(base))
    first = resolve(source).id
    os.utime(base / "desired-state" / "b.yaml", (0, 0))
    (base / "desired-state" / "notes.txt").write_text("other")
    assert resolve(source).id == first
    (base / "desired-state" / "b.yaml").rename(base / "desired-state" / "c.yaml")
    second = resolve(source).id
    (base / "desired-state" / "c.yaml").write_text("c")
    assert len({first, second, resolve(source).id}) == 3


def test_text_that_moves_from_name_to_content_is_another_revision(tmp_path: Path) -> None:
    revisions = set()
    for name, content in [("a.yaml", "b.yaml"), ("a.yamlb.yaml", "")]:
        directory = tmp_path / name / "desired-state"
        directory.mkdir(parents=True)
        (directory / name).write_text(content)
        revisions.add(resolve(Source(str(tmp_path / name))).id)
    assert len(revisions) == 2


def test_a_change_between_looking_and_reading_is_noticed(base: Path) -> None:
    source = Source(str(base))
    revision = resolve(source).id
    (base / "desired-state" / "b.yaml").write_text("changed")
    with pytest.raises(Unavailable, match=r"has changed since"):
        read(source, revision)


def test_links_and_special_files_are_refused_together(base: Path) -> None:
    (base / "desired-state" / "link.yaml").symlink_to("/etc/passwd")
    (base / "desired-state" / "sub" / "up").symlink_to("../..")
    os.mkfifo(base / "desired-state" / "pipe.yaml")
    with pytest.raises(Refused) as error:
        resolve(Source(str(base)))
    assert sorted(finding.file for finding in error.value.findings) == [
        "desired-state/link.yaml",
        "desired-state/pipe.yaml",
        "desired-state/sub/up",
    ]


def test_a_desired_state_that_is_a_link_is_refused(base: Path) -> None:
    (base / "link").symlink_to("desired-state")
    with pytest.raises(Refused, match=r"link:1:1: is a link"):
        resolve(Source(str(base), path="link"))


def test_a_missing_and_an_empty_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"desired-state:1:1: is not there"):
        resolve(Source(str(tmp_path)))
    (tmp_path / "desired-state").mkdir()
    with pytest.raises(Refused, match=r"no file that ends in"):
        resolve(Source(str(tmp_path)))


def test_a_file_that_is_too_large_is_refused(base: Path) -> None:
    with (base / "desired-state" / "huge.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Refused, match=r"huge.yaml.*more than 10,485,760 bytes"):
        resolve(Source(str(base)))


def test_one_file_too_many_is_refused(tmp_path: Path) -> None:
    (tmp_path / "desired-state").mkdir()
    for number in range(10_001):
        (tmp_path / "desired-state" / f"{number}.yaml").touch()
    with pytest.raises(Refused, match=r"more than 10,000 files"):
        resolve(Source(str(tmp_path)))


def test_a_chain_of_directories_ends(tmp_path: Path) -> None:
    deep = tmp_path / "desired-state" / "/".join(["d"] * 70)
    deep.mkdir(parents=True)
    with pytest.raises(Refused, match=r"64 directories deep"):
        resolve(Source(str(tmp_path)))


def test_a_name_that_is_no_text_is_refused(base: Path) -> None:
    (base / "desired-state" / os.fsdecode(b"\xff.yaml")).touch()
    with pytest.raises(Refused, match=r"has a name that cannot be shown"):
        resolve(Source(str(base)))


def test_it_has_no_refs(base: Path) -> None:
    with pytest.raises(Unavailable, match=r"plain directory and no git repository"):
        resolve(Source(str(base), ref="main"))


def test_any_content_follows_any_other(base: Path) -> None:
    source = Source(str(base))
    first = resolve(source).id
    assert is_descendant(source, first, f"sha256:{'0' * 64}")
    assert not is_descendant(source, first, "0" * 40)
