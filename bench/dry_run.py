"""`reconcile --dry-run` with the real set of this repository, beside the dry runs of pyinfra and Ansible for as many packages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from bench.measure import Command, Figure, NotMeasured, Target, measure
from bench.peers import peer, version
from bench.stage import Stage, planned, real_set

PYINFRA = "pyinfra>=3,<4"
ANSIBLE = "ansible-core>=2.16,<3"
TARGETS = (Target(0.350), Target(90, "peak"), Target(0.5, "ratio"))


def figures(stage: Stage, runs: int) -> Iterator[Figure]:
    here = real_set(stage)
    names = [str(change["name"]) for change in planned(stage, here)]
    what = f"--dry-run, {len(names)} artifacts"
    ours = stage.reconcile("--dry-run", "--repo", str(here))
    others: list[tuple[str, Command]] = []
    for call, make in (("@local --dry", _pyinfra), ("--check", _ansible)):
        try:
            theirs = make(stage, names)
        except NotMeasured as reason:
            print(f"  without {make.__name__.strip('_')}: {reason}", flush=True)
        else:
            others.append((f"{version(theirs.program)} {call}", theirs))
    mine, *beside = measure(ours, *(theirs for _, theirs in others), runs=runs)
    if not beside:
        yield Figure("dry-run", what, mine, targets=TARGETS)
    for (name, _), other in zip(others, beside, strict=True):
        targets = TARGETS if "pyinfra" in name else ()
        yield Figure("dry-run", what, mine, name, other, targets)


def _pyinfra(stage: Stage, names: list[str]) -> Command:
    """One operation a package, as a deploy is written; its dry run looks at the packages that are installed."""
    deploy = stage.directory / "deploy.py"
    operations = [f"apt.packages(name='Install {name}', packages=['{name}'])\n" for name in names]
    deploy.write_text("from pyinfra.operations import apt\n\n" + "".join(operations))
    return Command([peer(PYINFRA, "pyinfra"), "@local", deploy, "--dry"], cwd=stage.directory)


def _ansible(stage: Stage, names: list[str]) -> Command:
    """One task a package, on this machine, no facts gathered. `dpkg` is asked: the `apt` module wants python-apt for its Python."""
    program = peer(ANSIBLE, "ansible-playbook")
    tasks = [
        {"name": f"Install {name}", "ansible.builtin.command": f"dpkg-query --show {name}", "check_mode": False, "changed_when": False, "failed_when": False}
        for name in names
    ]  # fmt: skip
    playbook = stage.directory / "playbook.json"
    playbook.write_text(
        json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}])
    )
    environment = {
        **os.environ,
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_NOCOWS": "1",
        "ANSIBLE_HOME": str(stage.directory / "ansible"),
    }
    return Command(
        [program, "--check", "--inventory", "localhost,", playbook], cwd=stage.directory, env=environment
    )
