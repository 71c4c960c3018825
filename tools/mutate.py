"""Breaks the program on purpose, one way after the other, and runs the tests that have to notice. `make mutations`.

`tests/mutations.toml` lists the ways. Each is applied to a copy of this directory, whose tests run against the copy; what
was found is printed and, with `--write FILE`, becomes the table of a page. Exits 1 where a mutation survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "mutations.toml"
_COPIED = (
    "reconciler",
    "schemas",
    "tests",
    "desired-state",
    "examples",
    "docs",
    "tools",
    "bench",
    "pyproject.toml",
)
_TIMEOUT = 900
_HEAD = ("| promise | what was broken | where | caught by |", "| --- | --- | --- | --- |")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One patch: `old` in `file` becomes `new`, which breaks `promise`; `tests` are pytest's arguments."""

    promise: int
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """`text` with the patch. Raises ValueError where the place is not there once."""
        found = text.count(self.old)
        if found != 1:
            raise ValueError(
                f"{self.file}: {self.old!r} stands there {found} times, and must once ({self.breaks})"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Tried:
    """`caught` is the first test that failed; None where the mutation survived."""

    mutation: Mutation
    caught: str | None
    seconds: float


def mutations(path: Path = LIST) -> tuple[Mutation, ...]:
    listed = tomllib.loads(path.read_text())["mutation"]
    return tuple(Mutation(**{**entry, "tests": tuple(entry["tests"].split())}) for entry in listed)


def attempt(mutation: Mutation) -> Tried:
    """Apply it to a copy, and run its tests there until one fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        copy = Path(directory)
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                # With what Python has compiled already, which stays right: a copy keeps the time of each file.
                shutil.copytree(source, copy / name)
            else:
                shutil.copy2(source, copy / name)
        patched = copy / mutation.file
        patched.write_text(mutation.applied(patched.read_text()))
        argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not soak"]
        done = subprocess.run(
            [*argv, "--basetemp", str(copy / "temporary"), *mutation.tests],
            cwd=copy,
            # Before what is installed: the tests, and the programs that they start, are the copy's.
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(
            f"{mutation.breaks}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-500:]}"
        )
    failed = _FAILED.search(done.stdout)
    caught = (failed[1] if failed else "?") if done.returncode else None
    return Tried(mutation, caught, time.monotonic() - began)


def rows(tried: Sequence[Tried]) -> dict[str, str]:
    """The table's rows, by what was broken."""
    found = {}
    for one in tried:
        where = one.mutation.file.removeprefix("reconciler/").removesuffix(".py")
        caught = f"`{_short(one.caught)}`" if one.caught else "**survived**"
        found[one.mutation.breaks] = (
            f"| {one.mutation.promise} | {one.mutation.breaks} | `{where}` | {caught} |"
        )
    return found


def write(page: Path, tried: Sequence[Tried]) -> None:
    """Put the rows into the page, between its two marks; what was not tried now keeps the row that it has."""
    before, begin, rest = page.read_text().partition("<!-- table -->\n")
    middle, end, after = rest.partition("<!-- end -->")
    known = {line.split(" | ")[1]: line for line in middle.splitlines()[2:] if line.startswith("| ")}
    known |= rows(tried)
    order = sorted(mutations(), key=lambda one: (one.promise, one.breaks))
    table = [known[one.breaks] for one in order if one.breaks in known]
    page.write_text(before + begin + "\n".join([*_HEAD, *table]) + "\n\n" + end + after)


def _short(test: str) -> str:
    """The test's file and function, without its parameters."""
    path, _, name = test.partition("::")
    return f"{path.removeprefix('tests/')}::{name.partition('[')[0]}" if name else path


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the program on purpose, and see which test notices.")
    parser.add_argument("--only", metavar="TEXT", help="those whose description or file contains it")
    parser.add_argument("--jobs", type=int, default=2, help="at the same time (default: 2)")
    parser.add_argument("--write", type=Path, help="put the rows into this page's table")
    called = parser.parse_args()
    chosen = [one for one in mutations() if not called.only or called.only in f"{one.breaks} {one.file}"]
    tried: list[Tried] = []
    with ThreadPoolExecutor(called.jobs) as pool:
        for one in pool.map(attempt, chosen):
            tried.append(one)
            print(f"{one.seconds:5.0f} s  {one.mutation.breaks}: {one.caught or 'SURVIVED'}", flush=True)
    survived = [one for one in tried if one.caught is None]
    print(f"\n{len(tried) - len(survived)} of {len(tried)} were caught")
    if called.write:
        write(called.write, tried)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
