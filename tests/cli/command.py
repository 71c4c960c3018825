"""The command as a user runs it: a process of its own, an environment of its own, and what came of it. For the tests of `cli`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import Etcd
from tests.etcd_users import OPERATOR


@dataclass(frozen=True)
class Ran:
    """One call that has ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)

    def ok(self) -> Ran:
        assert self.status == 0, self.err
        return self


@dataclass
class Command:
    """`reconcile` in the directory `below`, with a state directory of its own. `variables` stand for its options, `environment` is for others."""

    below: Path
    variables: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float = 60,
    ) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "reconciler", *map(str, words)],
            cwd=self.below,
            env=self.whole_environment(env or {}),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "an error in reconcile itself" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    @property
    def state_dir(self) -> Path:
        return self.below / "state"

    def whole_environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Nothing of this process's environment but where programs and modules are."""
        given = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HOME": str(self.below),
            "LANG": "C.UTF-8",
            "RECONCILER_STATE_DIR": str(self.state_dir),
            **{f"RECONCILER_{name.upper()}": value for name, value in self.variables.items()},
            **self.environment,
            **more,
        }
        return {name: value for name, value in given.items() if value}


def of(etcd: Etcd, user: str = OPERATOR) -> dict[str, str]:
    """The variables that name a test's part of the real etcd, and who one is there where it has users."""
    found = {"etcd": etcd.endpoint, "prefix": etcd.prefix, "lock_prefix": etcd.lock_prefix}
    if etcd.users is not None:
        found |= {"etcd_user": user, "etcd_password_file": str(etcd.users.password_file(user))}
    return found
