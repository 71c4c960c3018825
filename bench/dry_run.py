"""`reconcile --dry-run` with the real set of this repository, beside pyinfra's dry run of as many packages."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Command, Figure, NotMeasured, Target, measure
from bench.peers import peer, version
from bench.stage import Stage, planned, real_set

PYINFRA = "pyinfra>=3,<4"
TARGETS = (Target(0.350), Target(90, "peak"), Target(0.5, "ratio"))


def figures(stage: Stage, runs: int) -> Iterator[Figure]:
    here = real_set(stage)
    names = [str(change["name"]) for change in planned(stage, here)]
    what = f"--dry-run, {len(names)} artifacts"
    ours = stage.reconcile("--dry-run", "--repo", str(here))
    try:
        theirs = _pyinfra(stage, names)
    except NotMeasured as reason:
        print(f"  without pyinfra: {reason}", flush=True)
        (mine,) = measure(ours, runs=runs)
        yield Figure("dry-run", what, mine, targets=TARGETS)
        return
    mine, other = measure(ours, theirs, runs=runs)
    beside = f"{version(theirs.program)} @local --dry"
    yield Figure("dry-run", what, mine, beside, other, TARGETS)


def _pyinfra(stage: Stage, names: list[str]) -> Command:
    """One operation a package, as a deploy is written; its dry run looks at the packages that are installed."""
    deploy = stage.directory / "deploy.py"
    operations = [f"apt.packages(name='Install {name}', packages=['{name}'])\n" for name in names]
    deploy.write_text("from pyinfra.operations import apt\n\n" + "".join(operations))
    return Command([peer(PYINFRA, "pyinfra"), "@local", deploy, "--dry"], cwd=stage.directory)
