"""A podman of a test's own: its storage below a temporary directory, told by the environment as on a real host.

Used by the tests of containers and of whole agents. The limits are what rootful podman needs in a small virtual machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

MISSING = [name for name in ("podman", "runc", "docker-registry", "busybox") if not shutil.which(name)]


def configure(directory: Path) -> dict[str, str]:
    """The environment that makes podman keep everything below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    storage, engine, registries = (
        directory / name for name in ("storage.conf", "containers.conf", "registries.conf")
    )
    storage.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{directory}/graph"\nrunroot = "{directory}/run"\n'
    )
    engine.write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'tmp_dir = "{directory}/tmp"\n'
    )
    # For the service that stands in for docker's daemon: podman itself is told on its command line.
    registries.write_text('[[registry]]\nprefix = "*.loopback"\nlocation = "127.0.0.1"\ninsecure = true\n')
    return {
        "CONTAINERS_STORAGE_CONF": str(storage),
        "CONTAINERS_CONF": str(engine),
    }


@contextlib.contextmanager
def podman_below(directory: Path) -> Iterator[Mapping[str, str]]:
    """The environment of a podman below `directory`; its containers and images are removed at the end."""
    environment = configure(directory)
    try:
        yield environment
    finally:
        podman(environment, "rm", "--all", "--force", "--time", "0")
        podman(environment, "rmi", "--all", "--force")
        shutil.rmtree(directory, ignore_errors=True)


def podman(environment: Mapping[str, str], *argv: str, check: bool = False) -> str:
    """What `podman argv…` prints."""
    done = subprocess.run(
        ["podman", *argv],
        env={"PATH": os.environ["PATH"], "HOME": "/root", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"podman {' '.join(argv)}: {done.stderr}")
    return done.stdout
