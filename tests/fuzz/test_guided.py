"""The doors with a grammar, fuzzed by coverage: skipped, by name, where `atheris` is not installed (`pip install atheris`)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.doors import DOORS, Door

GUIDED = (
    "desired",
    "yaml",
    "versions",
    "schedule",
    "windows",
    "sources",
    "webhooks",
    "rollout",
    "snapshot",
    "ledger",
)
RUNS = 50_000

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris"),
]


@pytest.mark.parametrize("door", [door for door in DOORS if door.name in GUIDED], ids=lambda door: door.name)
def test_only_a_typed_error_comes_of_what_reaches_new_lines(door: Door, tmp_path: Path) -> None:
    for number, seed in enumerate(door.seeds):
        (tmp_path / str(number)).write_bytes(seed)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", door.name, str(RUNS), str(tmp_path)],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:].decode(errors="replace")
