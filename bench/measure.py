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


class NotMeasured(Exception):
    """A subject or a peer cannot be measured here; says why. The others go on."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Of several runs: seconds, and the largest peak of resident memory in MB (10^6 bytes)."""

    median: float
    best: float
    worst: float
    peak_mb: float
    runs: int


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `beside` is the peer or floor of the same run; targets are in seconds, MB and times `beside`."""

    subject: str
    what: str
    timing: Timing
    beside: str | None = None
    beside_timing: Timing | None = None
    target_seconds: float | None = None
    target_mb: float | None = None
    target_ratio: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.timing.median / self.beside_timing.median if self.beside_timing else None

    @property
    def met(self) -> bool | None:
        """Whether every target is met; None where there is none."""
        pairs = (
            (self.timing.median, self.target_seconds),
            (self.timing.peak_mb, self.target_mb),
            (self.ratio, self.target_ratio),
        )
        judged = [value <= target for value, target in pairs if value is not None and target is not None]
        return all(judged) if judged else None

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


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

    def run(self) -> tuple[float, float]:
        """Seconds from start to end, and the peak of resident memory in MB. Another exit status is not a measurement."""
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
        return seconds, used.ru_maxrss * 1024 / 1e6


def measure(*commands: Command, runs: int) -> list[Timing]:
    """Each command `runs` times, after one run that does not count, in turns: what disturbs one disturbs the others too."""
    for command in commands:
        command.run()
    taken: list[list[tuple[float, float]]] = [[] for _ in commands]
    for _ in range(runs):
        for results, command in zip(taken, commands, strict=True):
            results.append(command.run())
    return [timing(results) for results in taken]


def timing(results: Sequence[tuple[float, float]]) -> Timing:
    seconds = [second for second, _ in results]
    return Timing(
        statistics.median(seconds), min(seconds), max(seconds), max(peak for _, peak in results), len(results)
    )


def table(figures: Sequence[Figure]) -> str:
    rows: list[tuple[str, ...]] = [
        ("subject", "what", "median", "worst", "peak", "beside it", "median", "ratio", "target", "")
    ]
    rows += [_row(figure) for figure in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {2, 3, 4, 6, 7}
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _row(figure: Figure) -> tuple[str, ...]:
    beside = figure.beside_timing
    targets = [
        _seconds(figure.target_seconds) if figure.target_seconds is not None else "",
        f"{figure.target_mb:g} MB" if figure.target_mb is not None else "",
        f"{figure.target_ratio:g}×" if figure.target_ratio is not None else "",
    ]
    return (
        figure.subject,
        figure.what,
        _seconds(figure.timing.median),
        _seconds(figure.timing.worst),
        f"{figure.timing.peak_mb:.0f} MB",
        figure.beside or "",
        _seconds(beside.median) if beside else "",
        f"{figure.ratio:.2f}×" if figure.ratio is not None else "",
        ", ".join(f"≤ {target}" for target in targets if target),
        {None: "", True: "met", False: "missed"}[figure.met],
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
