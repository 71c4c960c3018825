"""What the figures were measured on, for `bench.json`. Not pure: looks at this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PARTS = ("click", "deepdiff", "etcd3", "GitPython", "grpcio", "jsonschema", "protobuf", "PyYAML")


def facts() -> dict[str, object]:
    return {
        "cpu": _first(r"model name\s*: (.*)", "/proc/cpuinfo") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": int(_first(r"MemTotal:\s*(\d+)", "/proc/meminfo") or 0) // 1024,
        "load_before": os.getloadavg()[0],
        "system": _first(r'PRETTY_NAME="(.*)"', "/etc/os-release") or platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "etcd": _version(["etcd", "--version"]),
        "git": _version(["git", "--version"]),
        "parts": {name: _installed(name) for name in PARTS},
        "commit": _version(["git", "rev-parse", "HEAD"]),
    }


def _first(pattern: str, path: str) -> str | None:
    file = Path(path)
    found = re.search(pattern, file.read_text(errors="replace")) if file.exists() else None
    return found[1] if found else None


def _version(argv: Sequence[str]) -> str | None:
    if not shutil.which(argv[0]):
        return None
    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout
    return said.splitlines()[0].strip() if said else None


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
