"""GPG key pairs for signatures, made by the real gpg."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reconciler.ground import process


class GpgKeys:
    """A GnuPG home in which keys are made and used, and never looked at by what is tested."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.program = home / "sign"
        self.program.write_text(
            f'#!/bin/sh\nGNUPGHOME={home} exec gpg --batch --pinentry-mode loopback --passphrase "" "$@"\n'
        )
        self.program.chmod(0o755)

    def run(self, *arguments: str, input: str | None = None) -> str:
        return process.run([self.program, *arguments], timeout=60, input=input).stdout

    def make(self, name: str) -> str:
        """A new key pair; its fingerprint."""
        self.run("--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", "never")
        return next(line.split(":")[9] for line in self.listed(name) if line.startswith("fpr"))

    def listed(self, name: str) -> list[str]:
        return self.run("--with-colons", "--list-keys", f"{name}@example.org").splitlines()

    def export(self, fingerprint: str, *options: str) -> str:
        return self.run(*options, "--export", fingerprint)

    def sign_with(self, repository: Path, fingerprint: str) -> None:
        """From now on `commit -S` and `tag --sign` in that work tree sign with this key."""
        settings = {"gpg.format": "openpgp", "gpg.program": str(self.program), "user.signingKey": fingerprint}
        for setting, value in settings.items():
            process.run(["git", "config", setting, value], timeout=30, cwd=repository)


@contextlib.contextmanager
def gpg_keys() -> Iterator[GpgKeys]:
    """A home that is removed, and its agent ended, afterwards."""
    # The agent's socket must fit into 108 bytes, so not in a test's own long path.
    with tempfile.TemporaryDirectory(prefix="gpg-", ignore_cleanup_errors=True) as home:
        try:
            yield GpgKeys(Path(home))
        finally:
            process.run(["gpgconf", "--homedir", home, "--kill", "all"], timeout=30)
