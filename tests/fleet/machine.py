"""One server of a fleet under test: a host root in a directory, what is seen on it, and its agent's process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.core.artifact import Image, OsImage
from reconciler.core.state import Installed
from reconciler.host.driver import Host
from tests.debs import state
from tests.podman import podman

NETBOOT = "/var/lib/netboot"


@dataclass
class Machine:
    """One server of the test: its directory, and its agent's process while there is one."""

    lrn: int
    directory: Path
    machine_id: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    interval: str | None = "1h"
    """Of `--interval`; None leaves it to etcd's setting."""
    before: tuple[str, ...] = ()
    """What goes before the agent's command: where it runs."""
    stays_away: bool = False
    """After a reboot it does not come back by itself."""

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def boot_file(self) -> Path:
        return self.root / "proc/sys/kernel/random/boot_id"

    @property
    def reboots(self) -> list[tuple[float, str]]:
        """When its reboot command was run (Unix seconds), and what that did."""
        record = self.directory / "reboots"
        lines = record.read_text().splitlines() if record.exists() else []
        return [(float(line.split()[0]), line.split()[1]) for line in lines]

    def new_boot(self) -> None:
        self.boot_file.write_text(f"{uuid.uuid4()}\n")

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end. What it has started lives on, as it does on a real server."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def terminate(self) -> int:
        """SIGTERM; its exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        return self.wait_until_ended()

    def wait_until_ended(self) -> int:
        """Its exit status."""
        assert self.process is not None
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # its threads' stacks go into its log
            self.process.wait()
            raise AssertionError(f"the agent of server {self.lrn} does not end:\n{self.log}") from None
        self.process = None
        return status

    def deb(self, name: str) -> str:
        """What dpkg says of a package on it: `ii 1.0`."""
        return state(Host(self.root), name)

    @property
    def os(self) -> str:
        """The OS that runs, where its hooks are installed; else the one that others boot from here."""
        running = self.directory / "os"
        return running.read_text().strip() if running.exists() else str(self.netboot.readlink())

    @property
    def netboot(self) -> Path:
        """The link to the OS image that is published."""
        return self.root / NETBOOT.lstrip("/") / "current"

    def image(self, image: Image, digest: str) -> str:
        """The digest of what its container runs from; `digest` where one that is only kept is there; nothing if it is not."""
        if image.container:
            argv = ("container", "inspect", image.name, "--format", "{{.ImageDigest}}")
            return podman(self.environment, *argv).strip()
        listed = podman(self.environment, "images", "--digests", "--format", "{{.Digest}}", check=True)
        return digest if digest in listed.split() else ""

    def must_have(self, installed: Installed) -> None:
        """Promise 8: dpkg, podman or the files themselves show what etcd records as installed."""
        detail = installed.detail
        assert detail is not None
        match detail.desired:
            case Image() as image:
                recorded = detail.found.split()[0]
                found = self.image(image, recorded)
            case OsImage() as image:
                recorded, found = image.version, self.os
            case deb:
                recorded, found = f"ii {detail.found}", self.deb(deb.name)
        assert found == recorded, (
            f"server {self.lrn}: {installed.key.subject} is recorded as {recorded}, found {found or 'nothing'}"
        )

    def os_hooks(self, current: str) -> None:
        """The hooks of the `command` driver, over two files that the reboot command knows."""
        where = self.directory
        (where / "os").write_text(f"{current}\n")
        self.hook("os-current", f"cat {where}/os")
        self.hook("os-stage", f'echo "$1/$2" > {where}/staged')
        self.hook("os-rollback", f"rm -f {where}/staged")

    @property
    def gate(self) -> Path:
        return self.directory / "gate"

    def hold_dpkg(self) -> None:
        """From the agent's next start on, a dpkg that changes something waits until `let_dpkg_go`."""
        programs = self.directory / "bin"
        programs.mkdir(exist_ok=True)
        (programs / "dpkg").write_text(
            "#!/bin/sh\n"
            f'case "$*" in *--install*|*--unpack*|*--remove*) touch {self.directory}/in-dpkg;'
            f" while [ -e {self.gate} ]; do sleep 0.02; done;; esac\n"
            f'exec {shutil.which("dpkg")} "$@"\n'
        )
        (programs / "dpkg").chmod(0o755)
        self.gate.touch()
        self.environment = {"PATH": f"{programs}:{os.environ['PATH']}"}

    @property
    def in_dpkg(self) -> bool:
        return (self.directory / "in-dpkg").exists()

    def let_dpkg_go(self) -> None:
        self.gate.unlink()

    def hook(self, name: str, text: str) -> None:
        """Install a hook: a shell script of root's."""
        path = self.root / "etc/reconciler/hooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


def with_shell(machine: Machine) -> None:
    """Give a bare host what maintainer scripts need: a shell, and the programs of `touch` and `sleep`."""
    for program in ("/bin/sh", "/bin/sleep", "/usr/bin/touch"):
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        libraries = [word for word in listed.split() if word.startswith("/")]
        for file in (program, *libraries):
            target = machine.root / file.lstrip("/")
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
