"""Runs a program several times and keeps what it took; the figures as a table and as JSON. Used by every subject.

This process stays small and imports nothing but the standard library: Linux counts what a child's parent had in memory
before `exec` towards the child's peak.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


class NotMeasured(Exception):
    """A subject or a peer cannot be measured here; says why. The others go on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What each of several runs took or reached, in `unit`; over all runs, the median of CPU seconds and the largest peak of memory.

    CPU seconds are what is left to compare by where other programs run beside. MB are 10^6 bytes of resident memory.
    """

    values: tuple[float, ...]
    unit: str = "s"
    cpu: float | None = None
    peak_mb: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "median": self.median, "runs": len(self.values)}


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on the median, on the peak of memory (MB), or on the ratio of the median to what stands beside it."""

    limit: float
    of: Literal["median", "peak", "ratio"] = "median"
    at_least: bool = False

    def met(self, figure: Figure) -> bool | None:
        """None where it cannot be said: nothing stands beside it, or its memory is not known."""
        value = {"median": figure.measured.median, "peak": figure.measured.peak_mb, "ratio": figure.ratio}[
            self.of
        ]
        if value is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit

    def text(self, unit: str) -> str:
        value = {
            "median": shown(self.limit, unit),
            "peak": f"{self.limit:g} MB",
            "ratio": f"{self.limit:g}×",
        }[self.of]
        return f"{'≥' if self.at_least else '≤'} {value}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `beside` names the peer or floor of the same run, or is None where the target alone judges."""

    subject: str
    what: str
    measured: Measured
    beside: str | None = None
    beside_measured: Measured | None = None
    targets: tuple[Target, ...] = ()

    @property
    def ratio(self) -> float | None:
        if self.beside_measured is None or not self.beside_measured.median:
            return None
        return self.measured.median / self.beside_measured.median

    @property
    def met(self) -> bool | None:
        """Whether every target is met; None where there is none."""
        judged = [met for target in self.targets if (met := target.met(self)) is not None]
        return all(judged) if judged else None

    def as_json(self) -> dict[str, object]:
        return {
            "subject": self.subject,
            "what": self.what,
            "measured": self.measured.as_json(),
            "beside": self.beside,
            "beside_measured": self.beside_measured.as_json() if self.beside_measured else None,
            "targets": [asdict(target) for target in self.targets],
            "ratio": self.ratio,
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a program: seconds from start to end, seconds of CPU, and the peak of resident memory in MB."""

    seconds: float
    cpu: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Command:
    """A program to measure: whoever wants other variables than this process's says so."""

    argv: Sequence[str | Path]
    cwd: Path | None = None
    env: Mapping[str, str] | None = None
    status: int = 0

    @property
    def program(self) -> Path:
        return Path(self.argv[0])

    def run(self) -> Run:
        """Start it and wait for its end. Another exit status than the one expected is not a measurement."""
        with Path(os.devnull).open("rb") as nothing, tempfile.TemporaryFile() as said:
            began = time.perf_counter()
            child = subprocess.Popen(
                [*self.argv],
                cwd=self.cwd,
                env=self.env,
                stdin=nothing,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            # Instead of child.wait(): the only call that tells this one child's peak.
            _, ended, used = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(ended)
            if child.returncode != self.status:
                said.seek(0)
                last = said.read()[-500:].decode(errors="replace").strip()
                raise NotMeasured(f"{' '.join(map(str, self.argv))} ended with {child.returncode}: {last}")
        return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)


def measure(*commands: Command, runs: int) -> list[Measured]:
    """Each command `runs` times, after one run that does not count, in turns: what disturbs one disturbs the others too."""
    for command in commands:
        command.run()
    taken: list[list[Run]] = [[] for _ in commands]
    for _ in range(runs):
        for results, command in zip(taken, commands, strict=True):
            results.append(command.run())
    return [_of(results) for results in taken]


def _of(runs: Sequence[Run]) -> Measured:
    return Measured(
        tuple(run.seconds for run in runs),
        cpu=statistics.median(run.cpu for run in runs),
        peak_mb=max(run.peak_mb for run in runs),
    )


HEADINGS = ("subject", "what", "median", "best", "worst", "n", "CPU", "peak", "beside it", "median", "ratio")
RIGHT = {2, 3, 4, 5, 6, 7, 9, 10}


def table(figures: Sequence[Figure]) -> str:
    """The figures as text, one a line."""
    rows: list[tuple[str, ...]] = [(*HEADINGS, "target", ""), *map(_row, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column in RIGHT else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _row(figure: Figure) -> tuple[str, ...]:
    mine, beside = figure.measured, figure.beside_measured
    return (
        figure.subject,
        figure.what,
        shown(mine.median, mine.unit),
        shown(min(mine.values), mine.unit),
        shown(max(mine.values), mine.unit),
        str(len(mine.values)),
        shown(mine.cpu, "s") if mine.cpu is not None else "",
        f"{mine.peak_mb:.0f} MB" if mine.peak_mb is not None else "",
        figure.beside or "",
        shown(beside.median, beside.unit) if beside else "",
        f"{figure.ratio:.2f}×" if figure.ratio is not None else "",
        ", ".join(target.text(mine.unit) for target in figure.targets),
        {None: "", True: "met", False: "missed"}[figure.met],
    )


def shown(value: float, unit: str) -> str:
    """A number as a person reads it: `350 ms`, `1.30 s`, `412 cycles/s`."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number} {unit}".rstrip()
