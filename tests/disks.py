"""Disks that can be full: a tmpfs of a few bytes. For tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own at `place`, of `size` as `mount` takes it. The test is skipped where nothing can be mounted."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(place)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount anything, so no disk can be full")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
