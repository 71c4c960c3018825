"""The desired state's files at a revision. Called by the agent's loop and the commands; changes nothing but the mirror.

`fetch` brings a remote repository up to date, `resolve` says which revision is there now, `find` whether somebody else's is one of
those that are followed, `read` gives a revision's files.
A repository on this machine is read in place, from the commit's tree; a directory that is none is read as it stands.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from reconciler.core import version
from reconciler.core.state import Revision
from reconciler.desired import directory, mirror, tree
from reconciler.desired.calls import Calls, GitTimeout, Objects, Unreadable
from reconciler.desired.source import COMMIT, CONTENT, Source, check_ref
from reconciler.errors import Refused, Unavailable

__all__ = ["Source", "fetch", "fetched_at", "find", "is_descendant", "is_directory", "read", "resolve"]

_SHOWN = 10
_NAMES = 100_000
"""Refs that are looked at, of a repository that may have any number."""


def fetch(source: Source) -> None:
    """Bring what is known of a remote repository up to date; nothing to do for a path. Raises `Unavailable` in time."""
    if source.local is None:
        mirror.fetch(source)


def fetched_at(source: Source) -> float | None:
    """When the last fetch succeeded, in Unix seconds; None before the first, and for a path, which needs none."""
    return mirror.fetched_at(source.mirror) if source.local is None else None


def resolve(source: Source, ref: str | None = None) -> Revision:
    """The revision that `source` stands at now, or the one that `ref` (a branch, tag or commit) names in it.

    Raises `Unavailable` where there is no such; with a tag pattern it is the highest version among those tags.
    """
    plain = _plain_directory(source)
    if plain is not None:
        return _resolve_directory(source, plain, ref)
    if ref is not None:
        check_ref(ref)
        source = replace(source, ref=ref, tag_pattern=None)
    with _reading(source) as calls:
        if source.tag_pattern is not None:
            tag = _highest_tag(source, calls)
            names = [f"refs/tags/{tag}"]
        else:
            tag, names = source.wanted, _meanings(source.wanted)
        with calls.objects(source.timeout) as objects:
            found = (objects.header(f"{name}^{{commit}}") for name in names)
            header = next((header for header in found if header is not None), None)
        if header is None:
            raise _unknown(source, calls)
    return Revision(header.id, source.shown, tag)


def find(source: Source, commit: str) -> Revision:
    """The revision `commit` as `source` comes to it: the followed branch's, now or before, or that of a tag that is followed.

    Raises `Refused` for a commit that stands elsewhere in the repository, where others may push.
    """
    if _plain_directory(source) is not None or not COMMIT.fullmatch(commit):
        return resolve(source, commit)
    revision = resolve(source, commit)
    if source.tag_pattern is None:
        if not is_descendant(source, resolve(source).id, revision.id):
            raise Refused(
                f"revision {commit} of {source.shown} is refused: it is not on {source.wanted}, which this host follows"
            )
        return replace(revision, ref=source.wanted)
    with _reading(source) as calls:
        tags = _names(calls, source, "refs/tags", f"--points-at={revision.id}")
    matching = sorted(fnmatch.filter(tags, source.tag_pattern))
    if not matching:
        raise Refused(
            f"revision {commit} of {source.shown} is refused: no tag {source.tag_pattern!r}, which this host follows, is on it"
        )
    return replace(revision, ref=version.highest(matching) or matching[0])


def read(source: Source, revision: str) -> list[tuple[str, bytes]]:
    """All `.yaml` and `.yml` files of a revision (its id, from `resolve`), sorted by name.

    Names are from the repository's top. Raises `Refused` for links, submodules, too many or too large files, and where
    there is none; `Unavailable` where the revision is not there.
    """
    plain = _plain_directory(source)
    if plain is not None:
        files = directory.yaml_files(plain, source.directory)
        if directory.revision_of(files) != revision:
            raise Unavailable(
                f"cannot read {source.shown} at {revision}: the directory has changed since; look again"
            )
        return files
    if not COMMIT.fullmatch(revision):
        revision = resolve(source, revision).id
    with _reading(source) as calls, calls.objects(source.timeout) as objects:
        _present(source, objects, revision)
        return tree.yaml_files(objects, revision, source.directory)


def is_descendant(source: Source, commit: str, ancestor: str) -> bool:
    """Whether `commit` is `ancestor` or came after it. A plain directory has no history: any content follows any other.

    An `ancestor` that the repository does not have (history was rewritten) has no descendants. Raises `Unavailable` where
    a shallow clone leaves it open.
    """
    if commit == ancestor:
        return True
    if CONTENT.fullmatch(commit) or CONTENT.fullmatch(ancestor):
        return bool(CONTENT.fullmatch(commit) and CONTENT.fullmatch(ancestor))
    with _reading(source) as calls:
        with calls.objects(source.timeout) as objects:
            _present(source, objects, commit)
            known = objects.header(f"{ancestor}^{{commit}}") is not None
        if known:
            answer = calls.run("merge-base", "--is-ancestor", ancestor, commit, timeout=source.timeout)
            if answer.status not in (0, 1):
                raise Unreadable(answer.error.strip())
            if answer.status == 0:
                return True
        if calls.run("rev-parse", "--is-shallow-repository", timeout=source.timeout).lines == ["true"]:
            raise Unavailable(
                f"cannot tell whether {commit} comes after {ancestor}: {source.shown} is a shallow clone; "
                "run `git fetch --unshallow` there"
            )
    return False


def is_directory(source: Source) -> bool:
    """Whether the source is a plain directory and no repository: one server's own, with no history and no signatures."""
    return _plain_directory(source) is not None


def _plain_directory(source: Source) -> Path | None:
    local = source.local
    if local is None or _is_repository(local):
        return None
    if not local.is_dir():
        what = "is a file" if local.exists() else "is not there"
        raise Unavailable(
            f"cannot read {local}: it {what}; --repo takes a git URL, a repository or a directory"
        )
    return local


def _is_repository(path: Path) -> bool:
    """Whether git would take `path` itself, and no directory above it, as a repository."""
    try:
        return (path / ".git").exists() or (
            (path / "HEAD").is_file() and (path / "objects").is_dir() and (path / "refs").is_dir()
        )
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from None


def _resolve_directory(source: Source, plain: Path, ref: str | None) -> Revision:
    revision = directory.revision_of(directory.yaml_files(plain, source.directory))
    asked = ref or source.ref or source.tag_pattern
    if asked not in (None, "HEAD", revision):
        raise Unavailable(f"cannot find {asked} in {plain}: it is a plain directory and no git repository")
    return Revision(revision, source.shown)


@contextlib.contextmanager
def _reading(source: Source) -> Iterator[Calls]:
    """Calls of git where the source's repository is, with errors in the words of the source."""
    place = source.local or source.mirror
    if source.local is None and not place.is_dir():
        raise Unavailable(f"cannot read {source.shown}: it has not been fetched yet")
    try:
        yield Calls(place)
    except GitTimeout as error:
        raise Unavailable(
            f"cannot read {source.shown}: {error}; see whether the disk of {place} answers"
        ) from None
    except Unreadable as error:
        if source.local is None:
            mirror.note_damage(place)
            remedy = "its mirror is made anew at the next fetch"
        else:
            remedy = f"see `git -C {place} fsck`"
        raise Unavailable(f"cannot read {source.shown}: {error}; {remedy}") from None


def _meanings(ref: str) -> list[str]:
    """What `ref` may mean, in order. A whole commit id means that commit, whatever a branch may be called."""
    if COMMIT.fullmatch(ref):
        return [ref]
    return [f"refs/heads/{ref}", f"refs/tags/{ref}", ref]


def _present(source: Source, objects: Objects, commit: str) -> None:
    header = objects.header(commit)
    if header is None or header.kind != "commit":
        raise Unavailable(
            f"cannot find commit {commit} in {source.shown}: it was never pushed there, or history was rewritten"
        )


def _highest_tag(source: Source, calls: Calls) -> str:
    pattern = source.tag_pattern or ""
    tags = _names(calls, source, "refs/tags")
    matching = fnmatch.filter(tags, pattern)
    highest = version.highest(matching)
    if highest is None:
        there = f"{', '.join(sorted(matching or tags)[:_SHOWN])}" if tags else "none"
        why = "of the tags that match none has a version" if matching else "no tag matches"
        raise Unavailable(f"cannot find a tag {pattern!r} in {source.shown}: {why}; there are: {there}")
    return highest


def _names(calls: Calls, source: Source, below: str, *which: str) -> list[str]:
    answer = calls.run(
        "for-each-ref", f"--count={_NAMES}", "--format=%(refname)", *which, below, timeout=source.timeout
    )
    if answer.status != 0:
        raise Unreadable(answer.error.strip())
    return [line.removeprefix(f"{below}/") for line in answer.lines]


def _unknown(source: Source, calls: Calls) -> Unavailable:
    """Why a ref cannot be found, with the names that are nearest to it."""
    ref = source.wanted
    what = f"cannot find {ref} in {source.shown}"
    if COMMIT.fullmatch(ref):
        return Unavailable(
            f"{what}: it has no such commit; it was never pushed there, or history was rewritten"
        )
    branches = _names(calls, source, "refs/heads")
    if not branches:
        return Unavailable(f"{what}: it has no commit yet; push one")
    names = [*branches, *_names(calls, source, "refs/tags")]
    near = difflib.get_close_matches(ref, names, 3) or branches[:_SHOWN]
    return Unavailable(f"{what}: no branch, tag or commit is called so; there are: {', '.join(near)}")
