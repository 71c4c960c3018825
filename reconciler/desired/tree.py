"""The YAML files of one commit, read from its tree: no work tree, no checkout, nothing followed. Called by `repository`."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.desired import allowance
from reconciler.desired.allowance import Allowance
from reconciler.desired.calls import Objects, Unreadable, tree_entries
from reconciler.errors import Finding, Refused

_SUBMODULE = 0o160000
_SHOWN = 10
# A name has at most 255 bytes, and an entry some 30 more.
_TREE_LIMIT = 300 * allowance.FILES


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a tree. `path` is from the repository's top."""

    path: str
    mode: int
    id: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def problem(self) -> str | None:
        """Why this entry is refused; None for a file or directory that may be read."""
        if stat.S_ISLNK(self.mode):
            return allowance.LINK
        if stat.S_IFMT(self.mode) == _SUBMODULE:
            return allowance.SUBMODULE
        return None if self.name.isprintable() else allowance.NAME


def yaml_files(objects: Objects, commit: str, directory: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Every YAML file below `directory` at `commit`, sorted by name. Raises `Refused` and `Unreadable`."""
    allowed = Allowance(commit)
    top = _enter(objects, commit, directory)
    files = []
    for entry in sorted(_walk(objects, top, "/".join(directory), allowed), key=lambda entry: entry.path):
        header = objects.header(entry.id)
        if header is None or header.kind != "blob":
            raise Unreadable(
                f"{entry.path} is missing: object {entry.id} is not there (is this a partial clone?)"
            )
        allowed.content(entry.path, header.size)
        files.append((entry.path, objects.content(header)))
    if not files:
        raise Refused(
            f"revision {commit} is refused: {_shown(directory)} has no file that ends in .yaml or .yml; "
            "an empty desired state would mean to remove everything"
        )
    return files


def _enter(objects: Objects, commit: str, directory: tuple[str, ...]) -> str:
    """The tree id of `directory`, which no link leads to."""
    header = objects.header(f"{commit}^{{tree}}")
    if header is None:
        raise Unreadable(f"the tree of commit {commit} is missing")
    tree, path = header.id, ""
    for name in directory:
        entries = _entries(objects, tree, path)
        found = next((entry for entry in entries if entry.name == name), None)
        path = f"{path}/{name}" if path else name
        if found is None:
            near = [entry.path for entry in entries if entry.is_directory and entry.name.isprintable()]
            there = (
                f"the directories there are {', '.join(near[:_SHOWN])}" if near else "there is no directory"
            )
            raise Refused(
                f"revision {commit} is refused: it has no directory {path}; {there}; --path names another"
            )
        if found.problem or not found.is_directory:
            problem = found.problem or "is a file and no directory"
            raise Refused(f"revision {commit} is refused:", [Finding(path, 1, 1, problem)])
        tree = found.id
    return tree


def _walk(objects: Objects, tree: str, path: str, allowed: Allowance) -> list[Entry]:
    """The YAML files below a tree. Everything else is counted too, and looked at for links and submodules."""
    found: list[Entry] = []
    waiting = [(tree, path)]
    while waiting:
        for entry in _entries(objects, *waiting.pop(), allowed):
            allowed.entry(entry.path)
            if entry.problem:
                allowed.wrong(entry.path, entry.problem)
            elif entry.is_directory:
                waiting.append((entry.id, entry.path))
            elif allowance.is_yaml(entry.name):
                found.append(entry)
    allowed.check()
    return found


def _entries(objects: Objects, tree: str, path: str, allowed: Allowance | None = None) -> list[Entry]:
    header = objects.header(tree)
    if header is None or header.kind != "tree":
        raise Unreadable(f"{path or 'the top directory'} is missing: object {tree} is not there")
    if header.size > _TREE_LIMIT:
        raise Refused(f"{path or 'the top directory'} is refused: it has more than {allowance.FILES:,} files")
    return list(_parsed(objects.content(header), path))


def _parsed(data: bytes, path: str) -> Iterator[Entry]:
    """The entries of a tree object."""
    prefix = f"{path}/" if path else ""
    try:
        for binary, mode, name in tree_entries(data):
            yield Entry(prefix + name, mode, binary.hex())
    except ValueError as error:
        raise Refused(f"{path or 'the top directory'} is refused: {error}") from None


def _shown(directory: tuple[str, ...]) -> str:
    return "/".join(directory) or "the repository"
