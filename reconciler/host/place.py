"""Where things are on the host: paths that no link leads out of its root, writes that are whole or not there, and how commands run.

Called by the drivers, the hooks and the reboot. Not pure. A path is walked directory by directory, each opened without
following links; a link is read and walked as the host would see it, so that `..` and absolute targets end at its root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import HostError
from reconciler.host.driver import Host

READ_LIMIT = 8 << 20
"""Bytes that `read` accepts unless told otherwise."""

_LINKS = 40
_DIRECTORY = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


# --- commands -------------------------------------------------------------------------------------------------------


def command(host: Host, argv: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The argument list that runs `argv` on the host: as it stands, in a chroot, or in the namespaces of process 1.

    Raises `HostError` where process 1 is plainly not the host's, as in a container with processes of its own.
    """
    words = [os.fspath(word) for word in argv]
    match host.exec:
        case "direct":
            return words
        case "chroot":
            return ["chroot", str(host.root), *words]
        case "nsenter":
            _check_process_1(host)
            return ["nsenter", "--target=1", "--mount", "--uts", "--ipc", "--net", "--pid", "--", *words]


def _check_process_1(host: Host) -> None:
    """What is meant for the host must not change the container: the root of process 1 has to be the host's own."""
    try:
        found, wanted = Path("/proc/1/root").stat(), host.root.stat()
    except OSError:
        return  # who may not look may not enter either, and nsenter says so
    if not os.path.samestat(found, wanted):
        raise HostError(
            f"cannot run anything on the host by nsenter: the root of process 1 is not {host.root}; "
            "give the container the host's process namespace (hostPID, pid: host), or say --host-exec chroot"
        )


def inherited(host: Host) -> tuple[int, ...]:
    """The descriptors that every child which changes the host inherits, so that its work keeps another agent off."""
    return () if host.lock_fd is None else (host.lock_fd,)


def shared(host: Host) -> Path:
    """The state directory that commands on the host can read as well: below the host's root where they run inside it.

    There it is where the host has it: a link on its way means what it means to the host.
    """
    if host.exec == "direct":
        return host.state_dir
    below = host.state_dir.is_relative_to(host.root)
    return inside(host, host.state_dir.relative_to(host.root) if below else host.state_dir)


def seen(host: Host, path: Path) -> str:
    """`path`, as this process sees it, in the words of a command on the host."""
    if host.exec == "direct":
        return str(path)
    try:
        return "/" + str(path.relative_to(host.root))
    except ValueError:
        raise HostError(
            f"cannot show {path} to a command on the host: it is not below the host's root {host.root}"
        ) from None


# --- paths ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spot:
    """A directory that is held open, the name in it that was asked for, and both as a path without links."""

    directory: int
    name: str
    path: Path


class _Walk:
    """One walk from the host's root; holds a descriptor for each directory that `..` may return to."""

    def __init__(self, host: Host, path: str | os.PathLike[str], *, create: bool, follow: bool) -> None:
        self._root = host.root
        self._create = create
        self._follow = follow
        self._left = deque(_parts(os.fspath(path)))
        self._open: list[int] = []
        self._names: list[str] = []
        self._links = 0

    def run(self) -> _Spot | None:
        """Go to the last part; None where a directory on the way is missing: `missing` then says where it would be."""
        self._open.append(os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        while self._left:
            part = self._left.popleft()
            if part == "..":
                self._up()
            elif not self._left:
                if not (self._follow and self._read_link(part)):
                    return _Spot(self._open[-1], part, self._root.joinpath(*self._names, part))
            elif not self._enter(part):
                self._left.appendleft(part)
                return None
        return _Spot(self._open[-1], ".", self._root.joinpath(*self._names))

    def missing(self) -> Path:
        """Where the path leads if nothing of what is left exists."""
        names = list(self._names)
        for part in self._left:
            if part == "..":
                del names[-1:]
            else:
                names.append(part)
        return self._root.joinpath(*names)

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def _up(self) -> None:
        if self._names:
            self._names.pop()
            os.close(self._open.pop())

    def _enter(self, part: str) -> bool:
        for attempt in range(2):
            try:
                self._open.append(os.open(part, _DIRECTORY, dir_fd=self._open[-1]))
            except FileNotFoundError:
                if not self._create or attempt:
                    return False
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=self._open[-1])
            except NotADirectoryError:
                if self._read_link(part):
                    return True
                raise
            else:
                self._names.append(part)
                return True
        return False

    def _read_link(self, part: str) -> bool:
        """Put a link's target in its place; False where `part` is none."""
        try:
            target = os.readlink(part, dir_fd=self._open[-1])
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return False
            raise
        self._links += 1
        if self._links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith("/"):
            while self._names:
                self._up()
        self._left.extendleft(reversed(_parts(target)))
        return True


def _parts(path: str) -> list[str]:
    if "\0" in path:
        raise OSError(errno.EINVAL, "a zero byte in it")
    return [part for part in path.split("/") if part not in ("", ".")]


@contextlib.contextmanager
def _at(
    host: Host, path: str | os.PathLike[str], doing: str, *, create: bool = False, follow: bool = True
) -> Iterator[_Spot | None]:
    walk = _Walk(host, path, create=create, follow=follow)
    try:
        yield walk.run()
    except OSError as error:
        raise HostError(
            f"cannot {doing} {os.fspath(path)} below {host.root}: {error.strerror or error}"
        ) from None
    finally:
        walk.close()


def inside(host: Host, path: str | os.PathLike[str]) -> Path:
    """The host's `path` as this process finds it, without links and never outside the host's root. It need not exist.

    To look at; what writes goes through `write`, `point` and `remove`, which hold the directory open meanwhile.
    """
    walk = _Walk(host, path, create=False, follow=True)
    try:
        spot = walk.run()
        return spot.path if spot else walk.missing()
    except OSError as error:
        raise HostError(
            f"cannot find {os.fspath(path)} below {host.root}: {error.strerror or error}"
        ) from None
    finally:
        walk.close()


def leads_out(host: Host, path: str | os.PathLike[str]) -> bool:
    """Whether a program of this machine that is sent to `path` below the host's root ends in a directory outside of it."""
    root = host.root.resolve()
    below = os.fspath(path).strip("/")
    return bool(below) and not (root / below).parent.resolve().is_relative_to(root)


def status(host: Host, path: str | os.PathLike[str]) -> os.stat_result | None:
    """What `stat` says of the host's `path`; None where nothing is there."""
    with _at(host, path, "look at") as spot:
        if spot is None:
            return None
        try:
            return os.stat(spot.name, dir_fd=spot.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None


def read(host: Host, path: str | os.PathLike[str], limit: int = READ_LIMIT) -> bytes | None:
    """The content of the host's regular file `path`; None where there is none. More than `limit` bytes are an error."""
    with _at(host, path, "read") as spot:
        if spot is None:
            return None
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(spot.name, flags, dir_fd=spot.directory)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            data = file.read(limit + 1)
            if len(data) > limit:
                raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
            return data


def text(host: Host, path: str | os.PathLike[str], limit: int = READ_LIMIT) -> str | None:
    """The same as text, without the white space around it."""
    data = read(host, path, limit)
    return None if data is None else data.decode(errors="replace").strip()


def write(host: Host, path: str | os.PathLike[str], data: bytes | str, mode: int = 0o644) -> bool:
    """Give the host's `path` this content, whole or not at all; the directories are made. False where it had it already."""
    content = data.encode() if isinstance(data, str) else data
    with _at(host, path, "write", create=True) as spot:
        if spot is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if _has(spot, content, mode):
            return False
        _publish(spot.directory, spot.name, content, mode)
        return True


def point(host: Host, link: str | os.PathLike[str], target: str) -> bool:
    """Make the host's `link` a symbolic link to `target`, in one step. False where it was so already."""
    with _at(host, link, "switch", create=True, follow=False) as spot:
        if spot is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        with contextlib.suppress(OSError):
            if os.readlink(spot.name, dir_fd=spot.directory) == target:
                return False
        name = _temporary(spot.name)
        os.symlink(target, name, dir_fd=spot.directory)
        _switch(spot.directory, name, spot.name)
        return True


def remove(host: Host, path: str | os.PathLike[str]) -> bool:
    """Remove the host's file or link `path` itself. False where nothing was there."""
    with _at(host, path, "remove", follow=False) as spot:
        if spot is None:
            return False
        try:
            os.unlink(spot.name, dir_fd=spot.directory)
        except FileNotFoundError:
            return False
        return True


def publish(path: Path, data: bytes | str, mode: int = 0o600) -> None:
    """Write a file of this agent's own (the state directory's), whole or not at all."""
    content = data.encode() if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _publish(directory, path.name, content, mode)
        finally:
            os.close(directory)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror or error}") from None


def require_space(directory: Path, needed: int, what: str) -> None:
    """Raise `HostError` where the file system of `directory` (or of its nearest parent that exists) has less than `needed` bytes."""
    found = os.statvfs(nearest(directory))
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise HostError(
            f"cannot put {what} into {directory}: it takes {size(needed)} and {size(free)} are free; make room there"
        )


def nearest(directory: Path) -> Path:
    """`directory`, or its nearest parent that exists."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


def size(count: int) -> str:
    """Bytes in people's words."""
    return f"{count / 1e6:.1f} MB"


def _has(spot: _Spot, content: bytes, mode: int) -> bool:
    try:
        descriptor = os.open(
            spot.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=spot.directory
        )
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        return (
            stat.S_ISREG(found.st_mode)
            and stat.S_IMODE(found.st_mode) == mode
            and found.st_size == len(content)
            and file.read() == content
        )


def _publish(directory: int, name: str, content: bytes, mode: int) -> None:
    temporary = _temporary(name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        _switch(directory, temporary, name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _switch(directory: int, temporary: str, name: str) -> None:
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    _sync(directory)


def _sync(directory: int) -> None:
    # A descriptor opened with O_PATH cannot be synced: it is opened once more to read.
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(name: str) -> str:
    return f".{name[:200]}.{os.urandom(6).hex()}"
