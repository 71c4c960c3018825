"""A podman of a test's own: its storage below a temporary directory, told by the environment as on a real host.

Used by the tests of containers and of whole agents. The limits are what rootful podman needs in a small virtual machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path


def configure(directory: Path, driver: str = "vfs") -> dict[str, str]:
    """The environment that makes podman (and buildah) keep everything below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    storage, engine = directory / "storage.conf", directory / "containers.conf"
    storage.write_text(
        f'[storage]\ndriver = "{driver}"\ngraphroot = "{directory}/graph"\nrunroot = "{directory}/run"\n'
    )
    engine.write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'tmp_dir = "{directory}/tmp"\n'
    )
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


@contextlib.contextmanager
def docker_daemon(environment: Mapping[str, str], directory: Path, registry: str) -> Iterator[str]:
    """What stands in for docker's daemon: podman's service, which speaks its API. Gives the value of DOCKER_HOST."""
    # docker itself speaks plain HTTP to loopback registries; this service has to be told.
    (directory / "registries.conf").write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    address = f"unix://{directory}/docker.sock"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", address],
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not (directory / "docker.sock").exists():
            if time.monotonic() > deadline or service.poll() is not None:
                raise RuntimeError("podman's service did not start")
            time.sleep(0.02)
        yield address
    finally:
        service.terminate()
        service.wait(10)


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
