"""Four years of a real data centre: 203 artifact sets as 203 commits, planned and recorded one after the other on a real etcd.

At each commit the plan must have exactly the changes that a plain comparison of neighbours has, judged as the hand-checked
list of the odd ones says; after what a rollout would record is recorded, no change is left.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli.options import resolve
from reconciler.cli.planning import Asked, Planned, planned
from reconciler.core.artifact import OS_IMAGE, Image, Known, OsImage, ReleaseDeb
from reconciler.core.change import Change
from reconciler.core.state import Detail, Installed, StepRecord
from reconciler.store.serving import AgentWrites, Found
from reconciler.store.session import Session
from tests.cli.command import of
from tests.cli.git import FILE, documents
from tests.conftest import Etcd
from tests.core.odd_changes import ODD_CHANGES
from tests.store.fleet import serve

DATA = Path(__file__).parents[1] / "data/neco-artifacts-2018-2022.jsonl"
SERVER = 3
POLICY = {"kind": "RolloutPolicy", "maxRemovals": 1000}

Raw = Mapping[str, Any]
"""An artifact as the data file has it."""


def history() -> list[Raw]:
    return [json.loads(line) for line in DATA.read_text().splitlines()]


def revision(entry: Raw) -> str:
    """The desired state of one line of the data file."""
    os_image = {name: entry["os_image"][name] for name in ("channel", "version")}
    artifacts = {"images": entry["images"], "debs": entry["debs"], "osImage": os_image}
    return documents({"kind": "ArtifactSet", **artifacts}, POLICY)


def repository_of(entries: list[Raw], path: Path) -> list[str]:
    """A bare repository with a commit for each of `entries`; the commits' ids, oldest first."""
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(path)], check=True)
    stream = []
    for number, entry in enumerate(entries):
        text = revision(entry)
        stream.append(
            f"commit refs/heads/main\nmark :{number + 1}\ncommitter neco <neco@example.com> {number} +0000\n"
            f"data 0\nM 100644 inline {FILE}\ndata {len(text.encode())}\n{text}\n"
        )
    git = ["git", "-C", str(path)]
    subprocess.run([*git, "fast-import", "--quiet"], input="".join(stream).encode(), check=True)
    listed = subprocess.run(
        [*git, "rev-list", "--reverse", "main"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


# --- the plain comparison -------------------------------------------------------------------------------------------


def by_key(entry: Raw) -> dict[tuple[str, str], dict[str, Any]]:
    """Each artifact by kind and name, as the plan's JSON writes it: what is unset is left out."""
    found = {("image", image["name"]): dict(image) for image in entry["images"]}
    for image in found.values():
        if not image["private"]:
            del image["private"]
    found |= {("deb", deb["name"]): dict(deb) for deb in entry["debs"]}
    found["os-image", "os-image"] = {name: entry["os_image"][name] for name in ("channel", "version")}
    return found


def compared(before: Raw | None, after: Raw) -> list[tuple[str, str, Any, Any]]:
    """Kind, name, before and after of whatever differs."""
    old, new = by_key(before) if before else {}, by_key(after)
    differing = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    return sorted((*key, old.get(key), new.get(key)) for key in differing)


def version(artifact: Raw) -> str:
    if "channel" in artifact:
        return f"{artifact['channel']}/{artifact['version']}"
    text: str = artifact.get("tag") or artifact["release"]
    return text


JUDGED = {(odd.commit, str(odd.kind), odd.name): odd for odd in ODD_CHANGES}


def judged(commit: str, kind: str, name: str, before: Raw | None, after: Raw | None) -> str:
    """The action by the hand-checked list; what does not stand there is a plain upgrade, or moved under the same version."""
    odd = JUDGED.get((commit[:8], kind, name))
    if odd is not None:
        assert (odd.before, odd.after) == (before and version(before), after and version(after))
        return odd.action
    if before is None or after is None:
        raise AssertionError(f"{commit[:8]} {kind}/{name}: installs and removals stand in the list")
    return "replace" if version(before) == version(after) else "upgrade"


# --- what a rollout would record ------------------------------------------------------------------------------------


class Recording:
    """Records a plan's changes as the agent's steps do, in one transaction a plan."""

    def __init__(self, agent: AgentWrites) -> None:
        self._agent = agent
        self._record = StepRecord("debs:deb/a:change", "", "done")

    def apply(self, changes: Iterable[Change], revision: str, *, as_neco: bool = False) -> None:
        """`as_neco`: the short keys alone."""
        installed, removed = [], []
        for change in changes:
            match change.after:
                case Image() | ReleaseDeb() | OsImage() as artifact:
                    detail = Detail(artifact, f"found {artifact.version}", revision, "2026-01-02T03:04:05Z")
                    installed.append(Installed(artifact.key, artifact.version, None if as_neco else detail))
                case None:
                    removed.append(change.key)
                case other:
                    raise AssertionError(f"nothing else is in the history: {other}")
        self._record = self._agent.complete(self._record, Found(tuple(installed), tuple(removed)))


@pytest.fixture
def recording(etcd: Etcd) -> Iterator[Recording]:
    session = Session(etcd.client, 30.0)
    try:
        yield Recording(serve(etcd, session, SERVER))
    finally:
        session.close()


# --- the tests ------------------------------------------------------------------------------------------------------


def plan_at(etcd: Etcd, repository: Path, tmp_path: Path, commit: str) -> Planned:
    """What `reconcile --dry-run --server 3 --ref COMMIT` plans."""
    given = {"repo": str(repository), "ref": commit, "state-dir": str(tmp_path / "state")}
    options = resolve(given | {name.replace("_", "-"): value for name, value in of(etcd).items()}, {})
    return planned(options, Asked(dry_run=True, server=SERVER))


def test_the_real_history(etcd: Etcd, recording: Recording, tmp_path: Path) -> None:
    entries = history()
    repository = tmp_path / "fleet.git"
    commits = repository_of(entries, repository)
    assert len(commits) == len(entries) == 203
    actions: list[str] = []
    for before, entry, commit in zip([None, *entries], entries, commits, strict=False):
        plan = plan_at(etcd, repository, tmp_path, commit)
        (server,) = plan.document()["servers"]
        found = [(each["kind"], each["name"], each["before"], each["after"]) for each in server["changes"]]
        expected = compared(before, entry)
        assert sorted(found) == expected
        if before is not None:
            wanted = {
                (kind, name): judged(entry["commit"], kind, name, a, b) for kind, name, a, b in expected
            }
            assert {(each["kind"], each["name"]): each["action"] for each in server["changes"]} == wanted
            actions += wanted.values()
        recording.apply(plan.plans[0].changes, commit)
        assert plan_at(etcd, repository, tmp_path, commit).changes == 0
    counted = {action: actions.count(action) for action in sorted(set(actions))}
    assert counted == {"downgrade": 5, "install": 13, "remove": 5, "replace": 6, "upgrade": 320}


def test_the_real_history_taken_over_from_neco(etcd: Etcd, recording: Recording, tmp_path: Path) -> None:
    """Only the keys that Neco writes are there: what they say, the versions, is enough to judge each change."""
    entries = history()
    repository = tmp_path / "fleet.git"
    for before, entry, commit in zip(
        [None, *entries], entries, repository_of(entries, repository), strict=False
    ):
        plan = plan_at(etcd, repository, tmp_path, commit)
        (server,) = plan.plans
        # Neco does not record which OS image it has published.
        os_image = [change for change in server.changes if change.key == OS_IMAGE]
        assert [(change.action, change.before) for change in os_image] == [("install", None)]
        others = [change for change in server.changes if change.key != OS_IMAGE]
        assert all(change.before is None or isinstance(change.before, Known) for change in others)
        found = [
            (
                change.key.kind,
                change.key.name,
                change.before.version if change.before else None,
                change.after.version if change.after else None,
                change.action,
            )
            for change in others
        ]
        assert sorted(found) == [
            (
                kind,
                name,
                old and version(old),
                new and version(new),
                judged(entry["commit"], kind, name, old, new) if before else "install",
            )
            for kind, name, old, new in compared(before, entry)
            if kind != "os-image"
        ]
        recording.apply(others, commit, as_neco=True)
