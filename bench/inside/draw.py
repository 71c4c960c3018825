"""Draws the curves that come as JSON on standard input. Run by `bench/growth` in an environment that has matplotlib."""

import json
import sys

from matplotlib import pyplot, rcParams

UNITS = (("s", "seconds"), ("MB", "MB at the peak"), ("requests", "etcd requests"))


def main() -> None:
    # Text stays text, and equal curves give equal bytes.
    rcParams.update({"svg.hashsalt": "reconciler", "svg.fonttype": "none"})
    curves = json.load(sys.stdin)
    figure, axes = pyplot.subplots(1, len(UNITS), figsize=(13, 5.4))
    for axis, (unit, label) in zip(axes, UNITS, strict=True):
        for name, points in curves.items():
            title, _, its = name.rpartition(" (")
            if its.rstrip(")") == unit:
                axis.plot(
                    [int(size) for size in points],
                    list(points.values()),
                    marker="o",
                    markersize=3,
                    label=title,
                )
        axis.set(xscale="log", yscale="log", xlabel="servers or documents", ylabel=label)
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    figure.tight_layout()
    figure.savefig(sys.argv[1], format="svg", metadata={"Date": None})


main()
