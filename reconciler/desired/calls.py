"""Every call of git, through GitPython: the environment, the time limit, bounded output, and no orphans.

Called by the other modules of `desired`; nothing else imports `git`, and it is imported at the first call because it takes
a while. Not pure.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reconciler.desired.source import masked
from reconciler.errors import ReconcilerError, Refused, Unavailable
from reconciler.ground.imports import left_out

if TYPE_CHECKING:
    from git import Git
    from git.exc import CommandError

OUTPUT_LIMIT = 8 << 20
"""Bytes of standard output kept of one call."""

OBJECT_LIMIT = 16 << 20
"""Bytes of one object that is read into memory; what may be larger is asked for its size first."""

_LINES = 5
_GLANCE = 0.5
_ERROR_LIMIT = 64 << 10

# What the shell or the hook that started us may have set for another repository must not steer ours.
_KEPT = ("GIT_PYTHON_", "GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_EXEC_PATH")

_ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "https:ssh:file",
    "GIT_ASKPASS": "",  # empty: nor may SSH_ASKPASS ask
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_GRAFT_FILE": "/dev/null",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
}

_CONFIG = (
    # A repository's own configuration is not ours: what it could make git run is set here, which comes last.
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("advice.graftFileDeprecated", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("gpg.program", "false"),
    ("gpg.openpgp.program", "false"),
    ("gpg.x509.program", "false"),
    ("gpg.ssh.program", "false"),
)


class GitTimeout(ReconcilerError):
    """git was ended because its time was up."""


class Unreadable(ReconcilerError):
    """git cannot read its own object database: an object or a pack is damaged, or it is no repository that it knows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What git said. `error` is masked and has the last lines only."""

    status: int
    output: bytes
    error: str

    @property
    def lines(self) -> list[str]:
        return self.output.decode(errors="replace").splitlines()


@dataclass(frozen=True, slots=True)
class Header:
    """What an object is: its id, its kind (`commit`, `tree`, `blob`, `tag`) and its size in bytes."""

    id: str
    kind: str
    size: int


class Library(NamedTuple):
    """What is used of GitPython."""

    git: type[Git]
    not_run: type[CommandError]
    tree_entries: Callable[[bytes], list[tuple[bytes, int, str]]]


class Calls:
    """Calls of git in one directory. Not for several threads: each makes its own. `secret` is struck out of what git says."""

    def __init__(
        self,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        config: Iterable[tuple[str, str]] = (),
        secret: str | None = None,
    ) -> None:
        self._directory = directory.resolve()
        if not os.access(self._directory, os.R_OK | os.X_OK):
            # GitPython would run git where this process stands instead.
            raise Unavailable(f"cannot read {directory}: it is not there, or this user may not enter it")
        self._secret = secret
        _point_nowhere_else()
        self._git = _library().git(self._directory)
        # Whose repository it is does not matter: nothing that its owner wrote into it is run.
        own = [("safe.directory", str(self._directory)), ("safe.directory", str(self._directory / ".git"))]
        self._git.update_environment(
            **_ENVIRONMENT,
            GIT_CEILING_DIRECTORIES=str(self._directory.parent),
            **_numbered([*own, *_CONFIG, *config]),
            **(environment or {}),
        )

    def run(self, *arguments: str, timeout: float, file_limit: int | None = None) -> Answer:
        """Run `git arguments…` for at most `timeout` seconds; its whole process group ends with it. Raises `GitTimeout`.

        With `file_limit` no file that it writes grows over so many bytes: git is ended instead.
        """
        command = [self._git.GIT_PYTHON_GIT_EXECUTABLE or "git", *arguments]
        if file_limit is not None:
            # It limits itself and then becomes git. A limit that we set on a git that runs may come after the file.
            command = ["prlimit", f"--fsize={file_limit}", "--", *command]
        with self._startable(command[0]):
            started = self._git.execute(command, as_process=True, start_new_session=True)
        child = started.proc
        if child is None:
            raise Unavailable("cannot run git: it did not start")
        try:
            output, errors = _collect(child, timeout)
        except subprocess.TimeoutExpired:
            raise GitTimeout(f"git {arguments[0]} did not end within {timeout:g} s") from None
        finally:
            _end_group(child)
        return Answer(child.returncode, output, self._last_lines(errors))

    @contextlib.contextmanager
    def objects(self, timeout: float) -> Iterator[Objects]:
        """The object database, open for reading; one process for many objects. Raises `GitTimeout` and `Unreadable`."""
        reader = Objects(self._git, timeout)
        try:
            with self._startable("git"):
                yield reader
        finally:
            reader.close()

    @contextlib.contextmanager
    def _startable(self, program: str) -> Iterator[None]:
        try:
            yield
        except _library().not_run:
            raise Unavailable(f"cannot run {program}: install it, or put it into PATH") from None

    def _last_lines(self, errors: bytes) -> str:
        text = errors.decode(errors="replace")
        if self._secret:
            text = text.replace(self._secret, "***")
        return "\n".join(f"    {line}" for line in _lines(text))


class Objects:
    """Objects by name and by id, through GitPython's lasting `git cat-file` processes."""

    def __init__(self, git: Git, timeout: float) -> None:
        self._git = git
        self._late = False
        self._timeout = timeout
        self._watchdog = threading.Timer(timeout, self._end)
        self._watchdog.daemon = True
        self._watchdog.start()

    def header(self, name: str) -> Header | None:
        """What `name` (any way in which git names an object) is; None where there is no such, or more than one."""
        try:
            found, kind, size = self._git.get_object_header(name)
        except (ValueError, OSError) as error:
            # The process lives on after a name that it does not know; after a damaged object it does not.
            if "could not be resolved" in str(error) and not self._late:
                return None
            if "Failed to parse header" in str(error):
                raise Refused(
                    "a repository with SHA-256 object names cannot be read; use one with SHA-1 names"
                ) from None
            raise self._failure(name) from None
        return Header(_text(found), _text(kind), size)

    def content(self, header: Header) -> bytes:
        """An object's content, which is what its id says: the hash is taken again. At most `OBJECT_LIMIT` bytes."""
        if header.size > OBJECT_LIMIT:
            raise Unreadable(f"object {header.id} has {header.size} bytes, more than {OBJECT_LIMIT}")
        try:
            data: bytes = self._git.get_object_data(header.id)[3]
        except (ValueError, OSError):
            raise self._failure(header.id) from None
        digest = hashlib.sha1(f"{header.kind} {header.size}\0".encode(), usedforsecurity=False)  # git's own
        digest.update(data)
        if digest.hexdigest() != header.id:
            raise self._failure(header.id)
        return data

    def close(self) -> None:
        """End the processes."""
        self._watchdog.cancel()
        self._git.clear_cache()

    def _end(self) -> None:
        self._late = True
        for process in self._processes():
            process.kill()

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        lasting = (self._git.cat_file_all, self._git.cat_file_header)
        return [each.proc for each in lasting if each is not None and each.proc is not None]

    def _failure(self, name: str) -> ReconcilerError:
        if self._late:
            return GitTimeout(f"git cat-file did not answer within {self._timeout:g} s")
        said = b""
        for process in self._processes():
            process.kill()
            said += process.stderr.read(_ERROR_LIMIT) if process.stderr else b""
        return Unreadable(
            "; ".join(_lines(said.decode(errors="replace"))) or f"object {masked(name)} is damaged"
        )


def _point_nowhere_else() -> None:
    """Take out of the environment what leads git to another repository than the one it is asked for."""
    for name in [name for name in os.environ if name.startswith("GIT_") and not name.startswith(_KEPT)]:
        del os.environ[name]


@cache
def _library() -> Library:
    """What is used of GitPython, imported at its first use.

    Its door to the program, and its parser of trees: its repositories, indexes and remotes are half of what importing it takes.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        with left_out("git"), left_out("git.objects"):
            from git.cmd import Git
            from git.exc import CommandError
            from git.objects.fun import tree_entries_from_data
    except ModuleNotFoundError as error:
        raise ReconcilerError(
            f"cannot read git: the Python package {error.name} is missing; install this program anew"
        ) from None
    Git.refresh()
    return Library(Git, CommandError, tree_entries_from_data)


def tree_entries(data: bytes) -> list[tuple[bytes, int, str]]:
    """The entries of a tree object: id, mode and name. Raises `ValueError` for names that are git's own (`.GIT`, `git~1`, `..`), and broken lines."""
    return _library().tree_entries(data)


def _text(word: str | bytes) -> str:
    """GitPython declares text here and gives what came through the pipe: bytes."""
    return word.decode() if isinstance(word, bytes) else word


def _lines(text: str) -> list[str]:
    """The last lines of what git said, fit to be shown."""
    return [masked(line.strip())[:500] for line in re.split(r"[\r\n]+", text) if line.strip()][-_LINES:]


def _numbered(settings: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Settings as git takes them from the environment, out of the process list's sight."""
    pairs = list(settings)
    numbered = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for index, (key, value) in enumerate(pairs):
        numbered[f"GIT_CONFIG_KEY_{index}"] = key
        numbered[f"GIT_CONFIG_VALUE_{index}"] = value
    return numbered


def _collect(child: subprocess.Popen[bytes], timeout: float) -> tuple[bytes, bytes]:
    """The first bytes of standard output and the last ones of standard error, until git ends. Raises `TimeoutExpired`."""
    end = time.monotonic() + timeout
    output, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, kept in ((child.stdout, output), (child.stderr, errors)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, kept)
        while selector.get_map():
            left = end - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(child.args, timeout)
            ready = selector.select(min(left, _GLANCE))
            if not ready and child.poll() is not None:
                break  # what git left running in the background may hold the pipe open for ever
            for key, _ in ready:
                chunk = os.read(key.fd, 64 << 10)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data is errors:
                    errors += chunk
                    del errors[:-_ERROR_LIMIT]
                else:
                    output += chunk[: OUTPUT_LIMIT - len(output)]
    child.wait(max(0.0, end - time.monotonic()))
    return bytes(output), bytes(errors)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End git and the programs that it started, if it has not ended by itself, and close its pipes."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
