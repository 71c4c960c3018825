"""How cost grows with the number of servers or documents: exponents of the figures, and the plot of them. Called by the bench; pure but for `draw`.

An exponent of 1 is linear. It is the slope between the two largest sizes, on logarithmic scales: what a fixed cost hides
at small sizes does not count.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measure import Figure
from bench.peers import peer

MATPLOTLIB = "matplotlib>=3.8,<4"
_SIZE = re.compile(r"^(?P<before>.*?)(?P<number>\d[\d,]*) (?P<unit>server|document)s?(?P<after>.*)$")

Points = Mapping[int, float]


def curves(figures: Sequence[Figure]) -> dict[str, dict[int, float]]:
    """The median by size, of each series of figures that differ in their size only; the peaks of memory of those of plans."""
    found: dict[str, dict[int, float]] = {}
    for figure in figures:
        size = _SIZE.match(figure.what)
        if not size:
            continue
        name = f"{figure.subject}: {size['before']}{size['unit']}s{size['after']}"
        number = int(size["number"].replace(",", ""))
        unit = figure.measured.unit
        found.setdefault(f"{name} ({unit})", {})[number] = figure.measured.median
        if figure.subject == "plans" and figure.measured.peak_mb is not None:
            found.setdefault(f"{name} (MB)", {})[number] = figure.measured.peak_mb
    return {name: dict(sorted(points.items())) for name, points in found.items() if len(points) > 1}


def exponent(points: Points) -> float:
    """The slope between the two largest sizes."""
    (one, less), (two, more) = sorted(points.items())[-2:]
    return math.log(more / less) / math.log(two / one) if less > 0 and more > 0 else math.nan


def lines(found: Mapping[str, Points]) -> list[str]:
    return [f"grows with exponent {exponent(points):.2f}: {name}" for name, points in found.items()]


def draw(found: Mapping[str, Points], to: Path) -> None:
    """The curves as an SVG. Raises `NotMeasured` where matplotlib cannot be installed into its own environment."""
    python = peer(MATPLOTLIB, "python")
    program = Path(__file__).with_name("inside") / "draw.py"
    subprocess.run([python, program, to], input=json.dumps(found).encode(), check=True, timeout=300)


def of_document(document: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """The curves of a `bench.json`."""
    return {
        name: {int(size): value for size, value in points.items()}
        for name, points in document["growth"].items()
    }


def main() -> int:
    """`python -m bench.growth bench.json FILE.svg`: the plot of an earlier run."""
    document, to = sys.argv[1:3]
    draw(of_document(json.loads(Path(document).read_text())), Path(to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
