"""Start-up: `reconcile --help`, beside the interpreter alone and click alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bench.measure import Command, Figure, Target, measure
from bench.stage import Stage


def figures(stage: Stage, runs: int) -> Iterator[Figure]:
    command, floor, click = measure(
        stage.reconcile("--help"),
        Command([sys.executable, "-c", "pass"]),
        Command([sys.executable, "-c", "import click"]),
        runs=runs,
    )
    yield Figure("start", "reconcile --help", command, "python and click", click, (Target(0.060),))
    yield Figure("start", "python and click", click, "python alone", floor)
