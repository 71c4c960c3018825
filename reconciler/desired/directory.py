"""The YAML files of a plain directory, read as it stands; its revision is a hash of names and contents. Called by `repository`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from reconciler.desired import allowance
from reconciler.desired.allowance import Allowance
from reconciler.errors import Finding, Refused, Unavailable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 1 << 20


def yaml_files(base: Path, directory: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Every YAML file below `base/directory`, sorted by name. Links are refused; none is followed, whatever happens meanwhile."""
    allowed = Allowance(f"of {base}")
    files: list[tuple[str, bytes]] = []
    try:
        descriptor = _enter(base, directory)
        _walk(descriptor, "/".join(directory), allowed, files)
    except OSError as error:
        raise Unavailable(f"cannot read {base}: {error.filename or ''}: {error.strerror}") from None
    allowed.check()
    if not files:
        raise Refused(
            f"{base.joinpath(*directory)} is refused: it has no file that ends in .yaml or .yml; "
            "an empty desired state would mean to remove everything"
        )
    return sorted(files)


def revision_of(files: Iterable[tuple[str, bytes]]) -> str:
    """`sha256:` and the hash over names and contents, each with its length before it."""
    digest = hashlib.sha256()
    for name, content in files:
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def _enter(base: Path, directory: tuple[str, ...]) -> int:
    """A descriptor of `base/directory`. `base` is the operator's word and may be a link; below it none is followed."""
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    path = ""
    for name in directory:
        path = f"{path}/{name}" if path else name
        try:
            below = os.open(name, _DIRECTORY, dir_fd=descriptor)
        except (FileNotFoundError, NotADirectoryError):
            problem = (
                "is a link or a file and no directory" if _is_there(name, descriptor) else "is not there"
            )
            raise Refused(
                f"{base} is refused:", [Finding(path, 1, 1, f"{problem}; --path names another")]
            ) from None
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _is_there(name: str, descriptor: int) -> bool:
    try:
        os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _walk(descriptor: int, path: str, allowed: Allowance, files: list[tuple[str, bytes]]) -> None:
    """Collect the files below an open directory, which is closed at the end."""
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = f"{path}/{entry.name}" if path else entry.name
                allowed.entry(name)
                if not entry.name.isprintable():
                    allowed.wrong(name, allowance.NAME)
                elif entry.is_symlink():
                    allowed.wrong(name, allowance.LINK)
                elif entry.is_dir(follow_symlinks=False):
                    _walk(os.open(entry.name, _DIRECTORY, dir_fd=descriptor), name, allowed, files)
                elif allowance.is_yaml(entry.name):
                    _read(descriptor, entry.name, name, allowed, files)
    finally:
        os.close(descriptor)


def _read(descriptor: int, entry: str, name: str, allowed: Allowance, files: list[tuple[str, bytes]]) -> None:
    file = os.open(entry, _FILE, dir_fd=descriptor)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            allowed.wrong(name, allowance.SPECIAL)
            return
        content = bytearray()
        while len(content) <= allowed.bytes_left and (chunk := os.read(file, _CHUNK)):
            content += chunk
    finally:
        os.close(file)
    allowed.content(name, len(content))
    files.append((name, bytes(content)))
