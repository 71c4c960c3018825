"""The one way to run a program: an argument list, a clean environment, a time limit, bounded output, and no orphans.

Used by everything that runs `dpkg`, `apt-get`, `podman`, `systemctl` or a hook. Not pure, knows nothing of the domain.

A program writes into a file in memory and not into a pipe: a pipe breaks when this process is killed, and dpkg would die
of its next line in the middle of a package. The file needs no room on a disk and no directory that can be written to.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from reconciler.errors import HostError

OUTPUT_LIMIT = 8 << 20
"""Bytes of standard output kept of one program."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TAIL = 20
_GRACE = 2.0
_LOOK = 0.1
"""Seconds between two looks at what a program has said."""
_PIECE = 64 << 10


class ProcessFailed(HostError):
    """A program ended with another status than 0, was not found, or ran out of time. `status` is None in the last two cases."""

    def __init__(self, message: str, status: int | None = None, output: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.output = output


class ProcessTimeout(ProcessFailed):
    """A program was ended because its time was up."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program said. `status` is its exit status, negative for a signal."""

    status: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    input: str | None = None,
    pass_fds: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run `argv` for at most `timeout` seconds, in a session of its own; its whole process group ends with it.

    `env` is added to a minimal environment (PATH, HOME, LC_ALL=C.UTF-8). `on_line` hears each line of output as it
    comes. With `check`, another exit status than 0 raises `ProcessFailed` with the command and its last lines.
    """
    arguments = [os.fspath(word) for word in argv]
    name = " ".join(arguments)
    environment = {
        "PATH": os.environ.get("PATH", _PATH),
        "HOME": os.environ.get("HOME", "/root"),
        "LC_ALL": "C.UTF-8",
        **(env or {}),
    }
    with _Output(on_line) as out, _Output(on_line) as err:
        try:
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
                stdout=out.file,
                stderr=err.file,
                env=environment,
                cwd=cwd,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        except OSError as error:
            raise ProcessFailed(f"cannot run {name}: {error.strerror or error}") from None
        try:
            if input is not None:
                _writer(child.stdin, input.encode())
            status: int | None = _wait(child, timeout, out, err)
        except subprocess.TimeoutExpired:
            end_group(child)
            status = None
        except BaseException:
            end_group(child)
            raise
    if status is None:
        message = f"{name} did not end within {timeout:g} s{_last_lines(out, err)}"
        raise ProcessTimeout(message, None, err.text())
    if check and status != 0:
        how = f"was ended by signal {-status}" if status < 0 else f"failed with exit status {status}"
        raise ProcessFailed(f"{name} {how}{_last_lines(out, err)}", status, err.text() + out.text())
    return Completed(status, out.text(), err.text())


def launch(
    argv: Sequence[str | os.PathLike[str]],
    *,
    output: Path,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> None:
    """Start `argv` in a session of its own and leave it: it may outlive this process. What it says is added to `output`."""
    arguments = [os.fspath(word) for word in argv]
    try:
        with output.open("ab") as file:
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(env or {})},
                cwd="/",
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
    except OSError as error:
        raise ProcessFailed(f"cannot run {' '.join(arguments)}: {error.strerror or error}") from None
    # Its exit status is taken, should this process be the one that lives longer.
    threading.Thread(target=child.wait, name="launched", daemon=True).start()


def end_group(child: subprocess.Popen[bytes], grace: float = _GRACE) -> None:
    """End a program and all that it started: asked first, and killed after `grace` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
        # Whatever else is in the group has had its time as well.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def exists(program: str, root: Path = Path("/")) -> bool:
    """Whether `program` is in the usual directories below `root` (or in PATH where `root` is `/`)."""
    places = os.environ.get("PATH", _PATH) if root == Path("/") else _PATH
    found = (root / place.lstrip("/") / program for place in places.split(":"))
    # A link below another root is meant for that root: where it leads from here says nothing.
    return any(os.access(path, os.X_OK) or (root != Path("/") and path.is_symlink()) for path in found)


def proxy_environment(proxy: str | None) -> dict[str, str]:
    """What tells a program of the proxy: `proxy` for every address, else what this process's own environment says.

    Not as arguments: a proxy's address may hold a password, and arguments are in the process list.
    """
    names = ("http_proxy", "https_proxy", "no_proxy")
    found = {name: value for name in names if (value := os.environ.get(name) or os.environ.get(name.upper()))}
    return {**found, "http_proxy": proxy, "https_proxy": proxy} if proxy else found


class _Output:
    """What a program says, followed as it comes: the first `OUTPUT_LIMIT` bytes, and always the last lines.

    A script's `> /dev/stderr` empties the file, and what was not heard by then (a look's time at most) is lost. A seal
    against that would make the script's own `open` fail, and with it the package whose script it is.
    """

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self.file = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self.file, fcntl.F_SETFL, os.O_APPEND)
        self._read = 0
        self._given_back = False
        self._parts: list[bytes] = []
        self._kept = 0
        self._rest = b""
        self._on_line = on_line
        self.tail: deque[str] = deque(maxlen=_TAIL)

    def __enter__(self) -> _Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A daemon that the program left behind has the file for as long as it runs: it must not fill it.
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        self.take()
        if self._rest:
            self._line(self._rest)
        os.close(self.file)

    def take(self) -> None:
        """Hear what has come since the last look, and give its memory back. Of a flood, the end is heard."""
        end = os.fstat(self.file).st_size
        if end < self._read or self._begun_anew():
            self._read = 0
        while self._read < end:
            if self._kept == OUTPUT_LIMIT and end - self._read > OUTPUT_LIMIT:
                self._read, self._rest = end - OUTPUT_LIMIT, b""
            piece = os.pread(self.file, min(_PIECE, end - self._read), self._read)
            if not piece:
                break
            self._read += len(piece)
            self._hear(piece)
        self._given_back = _give_back(self.file, self._read)

    def _begun_anew(self) -> bool:
        """Whether the file was emptied and is longer again than it was: what was heard and given back reads as zeros."""
        return self._given_back and os.pread(self.file, 1, 0) != b"\0"

    def text(self) -> str:
        return b"".join(self._parts).decode(errors="replace")

    def _hear(self, piece: bytes) -> None:
        if kept := piece[: OUTPUT_LIMIT - self._kept]:
            self._parts.append(kept)
            self._kept += len(kept)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) >= _PIECE:
            self._line(self._rest)
            self._rest = b""

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        if text:
            self.tail.append(text[:500])
        if self._on_line:
            try:
                self._on_line(text)
            except Exception:
                # Who listens must not be able to stop the program.
                self._on_line = None
                logging.getLogger(__name__).exception("cannot hear a program's output any more")


def _wait(child: subprocess.Popen[bytes], timeout: float, *outputs: _Output) -> int:
    """The exit status. Raises `subprocess.TimeoutExpired`."""
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            return child.wait(max(0.0, min(_LOOK, left)))
        except subprocess.TimeoutExpired:
            if left <= 0:
                raise
        for output in outputs:
            output.take()


_LIBRARY = ctypes.CDLL(None, use_errno=True)
_PUNCH_HOLE, _KEEP_SIZE = 2, 1


def _give_back(file: int, end: int) -> bool:
    """Free the memory of a file's first `end` bytes; its size stays. Where that cannot be done, it is freed with the file."""
    mode = _PUNCH_HOLE | _KEEP_SIZE
    return end > 0 and _LIBRARY.fallocate(file, mode, ctypes.c_long(0), ctypes.c_long(end)) == 0


def _writer(stream: IO[bytes] | None, data: bytes) -> None:
    """Feed a program in a thread: one that does not read must not keep its time limit from running."""

    def write() -> None:
        if stream is None:
            return
        # The program may not want it all; its exit status tells the rest.
        with contextlib.suppress(BrokenPipeError), stream:
            stream.write(data)

    threading.Thread(target=write, daemon=True).start()


def _last_lines(out: _Output, err: _Output) -> str:
    lines = list(err.tail) or list(out.tail)
    return "".join(f"\n    {line}" for line in lines[-_TAIL:])
