"""`python -m bench [--quick] [--runs N] [--output FILE] [--plot FILE] [--only SUBJECT…]`: one table, one JSON file, one plot. Run by `make bench`."""

from __future__ import annotations

import argparse
import compileall
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench import agent, dry_run, growth, lock, plans, rollout, start, validation
from bench.machine import facts
from bench.measure import Figure, NotMeasured, table
from bench.stage import RECONCILE, ROOT, Stage, stage

SUBJECTS: Mapping[str, Callable[[Stage, int], Iterator[Figure]]] = {
    "start": start.figures,
    "dry-run": dry_run.figures,
    "validate": validation.figures,
    "plans": plans.figures,
    "rollout": rollout.figures,
    "agent": agent.figures,
    "lock": lock.figures,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure reconcile beside peers and floors."
    )
    parser.add_argument("--runs", type=int, default=7, help="runs of each program, at least 5 (default: 7)")
    parser.add_argument("--output", type=Path, default=Path("bench.json"), help="default: bench.json")
    parser.add_argument("--plot", type=Path, help="an SVG of how cost grows; matplotlib is installed for it")
    parser.add_argument(
        "--quick", action="store_true", help="5 runs, small sizes and short waits: minutes less"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SUBJECTS,
        metavar="SUBJECT",
        help=f"of {', '.join(SUBJECTS)}; default: all",
    )
    called = parser.parse_args()
    runs = 5 if called.quick else called.runs
    if runs < 5:
        parser.error("--runs: a median of fewer than 5 says nothing")
    if not RECONCILE.exists():
        print(f"cannot measure: {RECONCILE} is not there; run `make bench`", file=sys.stderr)
        return 1

    # pip compiles what it installs, the peers too, but no editable package: done here, so that no run pays for it.
    compileall.compile_dir(ROOT / "reconciler", quiet=1)
    machine = facts()
    figures: list[Figure] = []
    failures: list[str] = []
    for name in called.only or SUBJECTS:
        print(f"{name} …", flush=True)
        try:
            # An etcd and a directory for each: no subject meets what another one left.
            with (
                tempfile.TemporaryDirectory(prefix="bench-") as directory,
                stage(Path(directory), called.quick) as made,
            ):
                figures.extend(SUBJECTS[name](made, runs))
        except NotMeasured as reason:
            failures.append(f"{name}: {reason}")
    print(f"\n{table(figures)}\n")
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}")
    curves = growth.curves(figures)
    print("\n".join(growth.lines(curves)))
    for failure in failures:
        print(f"not measured: {failure}", file=sys.stderr)
    written = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "figures": [figure.as_json() for figure in figures],
        "growth": curves,
        "exponents": {name: growth.exponent(points) for name, points in curves.items()},
        "not_measured": failures,
    }
    called.output.write_text(json.dumps(written, indent=2) + "\n")
    print(f"written to {called.output}")
    if called.plot:
        growth.draw(curves, called.plot)
        print(f"drawn to {called.plot}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
