"""The Containerfile, really built on a base of this machine's own distribution, and the command run in the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMAGE = "localhost/reconciler:test"
BASE = "localhost/base:test"
BUNDLE = "etc/ssl/certs/ca-certificates.crt"
PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_DEFAULT_TIMEOUT")

pytestmark = pytest.mark.needs("buildah", "podman", "runc", "debootstrap", "apt-get")


def run(*argv: str | Path, timeout: float = 170) -> str:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, (
        f"{argv} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
    )
    return done.stdout


@dataclass(frozen=True, slots=True)
class Storage:
    """Images and containers below a directory of their own, run without control groups or systemd."""

    directory: Path

    @property
    def options(self) -> list[str]:
        places = ["--root", str(self.directory / "images"), "--runroot", str(self.directory / "run")]
        return [*places, "--storage-driver", "vfs"]

    def run(self, *argv: str, options: Sequence[str] = ()) -> str:
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
        flags = ["run", "--rm", "--network", "host", "--no-healthcheck", *limits, *options]
        return run("podman", *self.options, "--runtime", "/usr/sbin/runc", *flags, IMAGE, *argv)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    if os.geteuid() != 0:
        pytest.skip("debootstrap wants root")
    directory = tmp_path_factory.mktemp("container")
    try:
        made = Storage(directory)
        _import_base(made)
        _build(made)
        yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _import_base(storage: Storage) -> None:
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release["VERSION_CODENAME"]
    targets = run(
        "apt-get", "indextargets", "--format", "$(CODENAME) $(SITE) $(COMPONENT)", "Created-By: Packages"
    )
    archives = [line.split() for line in targets.splitlines() if line.startswith(f"{codename} ")]
    assert archives, f"apt-get names no archive of {codename}: {targets}"
    components = ",".join(sorted({component for _, _, component in archives} & {"main", "universe"}))
    base = storage.directory / "base"
    run(
        "debootstrap",
        "--variant=minbase",
        "--include=ca-certificates",
        f"--components={components}",
        codename,
        base,
        archives[0][1],
    )
    # A throw-away image need not reach the disk before the next package.
    (base / "etc" / "dpkg" / "dpkg.cfg.d" / "unsafe-io").write_text("force-unsafe-io\n")
    # Who may vouch for the package index is this machine's affair.
    shutil.copy(Path("/") / BUNDLE, base / BUNDLE)
    archive = storage.directory / "base.tar"
    run("tar", "--directory", base, "--create", "--file", archive, ".")
    run("podman", *storage.options, "import", archive, BASE)
    archive.unlink()
    shutil.rmtree(base)


def _build(storage: Storage) -> None:
    settings = [f"--build-arg={name}={os.environ[name]}" for name in PIP_SETTINGS if name in os.environ]
    run(
        "buildah",
        *storage.options,
        "bud",
        "--isolation=chroot",
        "--network=host",
        "--format=docker",
        "--pull=never",
        f"--build-arg=BASE={BASE}",
        f"--build-arg=PIP_CERT=/{BUNDLE}",
        "--build-arg=REVISION=0123abc",
        *settings,
        f"--tag={IMAGE}",
        ROOT,
    )


def test_the_command_is_the_entry_point(storage: Storage) -> None:
    assert "Usage: reconcile" in storage.run()


def test_dry_run_shows_the_real_set(storage: Storage) -> None:
    mount = ["--volume", f"{ROOT / 'desired-state'}:/fleet/desired-state:ro"]
    shown = storage.run(
        "--dry-run", "--repo", "/fleet", "--state-dir", "/tmp/state", "--output", "json", options=mount
    )
    assert json.loads(shown)["summary"]["install"] == 16


def test_the_image_says_what_it_is(storage: Storage) -> None:
    (image,) = json.loads(run("podman", *storage.options, "image", "inspect", IMAGE))
    config = image["Config"]
    assert config["Entrypoint"] == ["reconcile"]
    assert config["StopSignal"] == "SIGTERM"
    assert "/livez" in image["Healthcheck"]["Test"][-1]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Labels"]["org.opencontainers.image.revision"] == "0123abc"
    settings = [variable for variable in config["Env"] if variable.startswith("PIP_")]
    assert settings == [], "how packages were reached is not the image's affair"


def test_nothing_in_it_builds_and_everything_is_compiled(storage: Storage) -> None:
    look = (
        "import pathlib, shutil\n"
        "print(*filter(shutil.which, ('cc', 'gcc', 'c++', 'make', 'pip')))\n"
        "packages = pathlib.Path('/opt/reconciler/lib')\n"
        "sources = [p for p in packages.rglob('*.py')]\n"
        "compiled = [p for p in packages.rglob('*.pyc')]\n"
        "print(len(sources) - len(compiled), all(p.read_bytes()[4] == 1 for p in compiled))\n"
    )
    tools, compiled = storage.run("-c", look, options=["--entrypoint", "/opt/reconciler/bin/python"]).split(
        "\n"
    )[:2]
    assert tools == ""
    assert compiled == "0 True", (
        "each source has its byte code, which is believed without a look at the source"
    )
