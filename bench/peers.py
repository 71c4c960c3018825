"""What people use today, from PyPI, each in an environment of its own below `build/peers`. Used by the subjects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.measure import NotMeasured

PEERS = Path(__file__).parent.parent / "build" / "peers"


def peer(requirement: str, program: str) -> Path:
    """The path of `program`, from an environment with `requirement` that is made once and kept until `make clean`."""
    name = requirement.partition("=")[0].strip("<>~")
    environment = PEERS / name
    found = environment / "bin" / program
    if not found.exists():
        print(f"  installing {requirement} to measure beside it", flush=True)
        steps: tuple[list[str | Path], ...] = (
            [sys.executable, "-m", "venv", "--clear", environment],
            [environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
        )
        for argv in steps:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode != 0:
                last = (done.stderr or done.stdout).strip().splitlines()[-1:]
                raise NotMeasured(f"cannot install {requirement}: {' '.join(last)}")
    return found


def version(program: Path) -> str:
    """What the peer says that it is."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip().splitlines()[0] if done.stdout else program.name
