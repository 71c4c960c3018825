"""`reconcile --dry-run --all` for many recorded servers, beside etcdctl reading the same keys and deciding nothing.

Each server has the real set recorded whole, at other versions for a quarter of it: so there is a plan for each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.measure import Command, Figure, Target, measure
from bench.stage import Stage, planned, real_set

TARGETS: Mapping[int, tuple[Target, ...]] = {1_000: (Target(1.5),), 5_000: (Target(3.0), Target(300, "peak"))}
SERVERS = (1, 100, 1_000, 5_000)
FOLDERS = {"image": "containers", "deb": "debs"}


def figures(stage: Stage, runs: int) -> Iterator[Figure]:
    here = real_set(stage)
    artifacts = planned(stage, here)
    recorded = 0
    for count in (count for count in SERVERS if count <= 1_000 or not stage.quick):
        stage.put(pair for lrn in range(recorded, count) for pair in _server(lrn, artifacts))
        recorded = count
        ours = stage.reconcile("--dry-run", "--all", "--repo", str(here))
        what = f"--all, {count:,} server{'s' if count > 1 else ''} × {len(artifacts)}"
        targets = TARGETS.get(count, ())
        if etcdctl := shutil.which("etcdctl"):
            argv = [etcdctl, "--endpoints", stage.endpoint, "get", "--prefix", "/neco/install/"]
            mine, floor = measure(ours, Command(argv, env={"ETCDCTL_API": "3"}), runs=runs)
            yield Figure("plans", what, mine, "etcdctl get of the same keys", floor, targets)
        else:
            (mine,) = measure(ours, runs=runs)
            yield Figure("plans", what, mine, targets=targets)


def _server(lrn: int, artifacts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """One server's keys, as its agent writes them."""
    yield f"/neco/info/bootservers/{lrn}", ""
    yield f"/neco/info/machines/{lrn}", json.dumps({"machineID": f"{lrn:032x}", "removed": False})
    for number, change in enumerate(artifacts):
        kind, name, desired = change["kind"], change["name"], dict(change["after"])
        field = {"image": "tag", "deb": "release", "os-image": "version"}[kind]
        if number % 4 == 0:
            desired[field] = f"v0.1.{lrn % 3}" if kind == "deb" else f"0.1.{lrn % 3}"
        detail = {"desired": desired, "found": "", "revision": "", "installed_at": "2022-05-23T06:02:12Z"}
        short = f"{desired['channel']}/{desired['version']}" if kind == "os-image" else desired[field]
        yield f"/neco/install/{lrn}/{f'{FOLDERS[kind]}/{name}' if kind in FOLDERS else kind}", short
        yield f"/neco/install/{lrn}/details/{kind}/{name}", json.dumps(detail)
