"""The README's first lines, as an ordinary user in a fresh directory: clone, install, plan. No etcd, no root, nothing prepared."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the ordinary user's, where that user can go: pytest's own directories are root's."""
    with tempfile.TemporaryDirectory(prefix="reconciler-user-") as directory:
        if os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
        yield Path(directory)


def as_user(home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    nobody = NOBODY if os.geteuid() == 0 else None
    kept = ("PATH", "LANG", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in kept or name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    return subprocess.run(
        [str(word) for word in words],
        cwd=home / "clone" if (home / "clone").exists() else home,
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        user=nobody,
        group=nobody,
        extra_groups=None if nobody is None else (),
    )


def python_for(home: Path) -> str:
    """A Python that the user may run: root's own may lie in root's home."""
    for program in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        check = "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))"
        try:
            if as_user(home, program, "-c", check).returncode == 0:
                return program
        except OSError:
            continue
    pytest.skip("needs a Python 3.11 to 3.13 with venv that an ordinary user may run")


@pytest.mark.needs("git")
def test_clone_install_plan(home: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs the project's git repository")
    python = python_for(home)
    subprocess.run(["git", "clone", "--quiet", ROOT, home / "clone"], check=True)
    if os.geteuid() == 0:
        for path in (home / "clone", *(home / "clone").rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    made = as_user(home, python, "-m", "venv", home / "venv")
    assert made.returncode == 0, made.stderr
    installed = as_user(home, home / "venv/bin/pip", "install", "--quiet", ".")
    if re.search(r"No matching distribution|ConnectionError|Temporary failure", installed.stderr):
        pytest.skip("needs a package index")
    assert installed.returncode == 0, installed.stderr
    shutil.rmtree(home / "clone/schemas")  # they come with the package

    ran = as_user(home, home / "venv/bin/reconcile", "--dry-run")
    # An ordinary user's podman does not run everywhere (in a chroot there are no user namespaces), and it is said.
    said = re.sub(r"this host is not looked at for image: .*\n", "", ran.stderr)
    assert (ran.returncode, said) == (0, "")
    lines = ran.stdout.splitlines()
    assert re.fullmatch(
        r"Desired +HEAD@[0-9a-f]{7} +Recorded +nothing \(no embedded etcd in .+ yet\)", lines[0]
    )
    assert lines[-1] == "Plan: 16 to install on server 0; no restart and no reboot."
    assert len(lines) == 18
    assert not (home / ".local/state").exists(), "a dry run writes nothing"
