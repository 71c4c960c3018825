"""`reconcile --dry-run`: the real set of this repository, beside the dry runs of pyinfra and Ansible for as many packages; and
a host with hundreds of packages, beside one `dpkg-query` of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from bench.measure import Command, Figure, NotMeasured, Target, measure
from bench.peers import peer, version
from bench.stage import Stage, planned, real_set, repository

PYINFRA = "pyinfra>=3,<4"
ANSIBLE = "ansible-core>=2.16,<3"
PACKAGES = 500
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
    yield _many_packages(stage, runs)


def _many_packages(stage: Stage, runs: int) -> Figure:
    """Packages that are all there already: what is measured is the look at the host."""
    directory, database = stage.directory / "many", stage.directory / "host" / "var/lib/dpkg"
    directory.mkdir()
    documents = "".join(f'  - {{name: p{number}, version: "1.{number}"}}\n' for number in range(PACKAGES))
    (directory / "debs.yaml").write_text(f"apiVersion: reconciler/v1\nkind: ArtifactSet\ndebs:\n{documents}")
    for folder in ("info", "updates"):
        (database / folder).mkdir(parents=True)
    (database / "status").write_text("".join(_INSTALLED.replace("@", str(n)) for n in range(PACKAGES)))
    host = ("--host-root", str(stage.directory / "host"), "--host-exec", "direct")
    mine, floor = measure(
        stage.reconcile("--dry-run", "--repo", str(repository(stage.directory / "repo", directory)), *host),
        Command(["dpkg-query", f"--admindir={database}", "--show"]),
        runs=runs,
    )
    return Figure(
        "dry-run", f"--dry-run on a host with {PACKAGES} packages", mine, "dpkg-query", floor, (Target(0.5),)
    )


_INSTALLED = """\
Package: p@
Status: install ok installed
Maintainer: Nobody <nobody@example.invalid>
Architecture: all
Version: 1.@
Description: one of many

"""


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
