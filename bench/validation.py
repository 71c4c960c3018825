"""`reconcile validate` of many documents, beside PyYAML's C parser reading the same files and checking nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bench.measure import Command, Figure, Target, measure
from bench.stage import Stage, documents

TARGETS = {1_000: (Target(1.0),)}
READ = (
    "import pathlib, sys, yaml\n"
    "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.yaml')):\n"
    "    yaml.load(path.read_bytes(), yaml.CSafeLoader)\n"
)


def figures(stage: Stage, runs: int) -> Iterator[Figure]:
    for count in (10, 1_000) if stage.quick else (10, 1_000, 5_000):
        here = documents(stage.directory / f"documents-{count}", count)
        mine, floor = measure(
            stage.reconcile("validate", str(here)), Command([sys.executable, "-c", READ, here]), runs=runs
        )
        what = f"validate, {count:,} documents"
        yield Figure("validate", what, mine, "PyYAML's C parser alone", floor, TARGETS.get(count, ()))
