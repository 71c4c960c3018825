"""Repositories that the tests of `desired` read: made with the real git, in the test's own directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.ground import process

_IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(directory: Path, *arguments: str | Path, input: str | None = None) -> str:
    """What the real git says, run in `directory`."""
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    return process.run(command, timeout=60, cwd=directory, env=_IDENTITY, input=input).stdout.strip()


@dataclass(frozen=True, slots=True)
class Repository:
    """A work tree whose commits a test makes."""

    path: Path

    def git(self, *arguments: str | Path, input: str | None = None) -> str:
        return git(self.path, *arguments, input=input)

    def write(self, files: Mapping[str, str | bytes]) -> None:
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(
        self, files: Mapping[str, str | bytes] | None = None, message: str = "change", *options: str
    ) -> str:
        """Commit everything in the work tree, with `files` written first; the commit's id."""
        self.write(files or {})
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message, *options)
        return self.git("rev-parse", "HEAD")


def make_repository(path: Path) -> Repository:
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--initial-branch=main")
    return Repository(path)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty repository with a branch `main`."""
    return make_repository(tmp_path / "repository")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"
