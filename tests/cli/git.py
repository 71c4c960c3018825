"""A git repository with a desired state in it, for the tests of `cli`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SET = "apiVersion: reconciler/v1\nkind: ArtifactSet\n"
FILE = "desired-state/fleet.yaml"

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "somebody",
    "GIT_AUTHOR_EMAIL": "somebody@example.com",
    "GIT_COMMITTER_NAME": "somebody",
    "GIT_COMMITTER_EMAIL": "somebody@example.com",
}


def documents(*said: Mapping[str, Any]) -> str:
    """YAML documents (JSON is YAML) of these kinds."""
    return "\n---\n".join(json.dumps({"apiVersion": "reconciler/v1", **each}) for each in said) + "\n"


def artifacts(**said: Any) -> str:
    """One ArtifactSet."""
    return documents({"kind": "ArtifactSet", **said})


@dataclass
class Repository:
    """A work tree on branch main."""

    path: Path

    def __post_init__(self) -> None:
        self.git("init", "--quiet", "--initial-branch=main", str(self.path))

    def commit(self, text: str, file: str = FILE) -> str:
        """Commit `file` with this text; the commit's id."""
        return self.commit_files({file: text})

    def commit_files(self, files: Mapping[str, str]) -> str:
        for name, text in files.items():
            place = self.path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return self.commit_all()

    def commit_all(self) -> str:
        """Commit the work tree as it stands."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a revision")
        return self.git("rev-parse", "HEAD").strip()

    def git(self, *words: str) -> str:
        self.path.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["git", *words],
            cwd=self.path,
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
