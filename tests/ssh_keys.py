"""SSH key pairs for signatures, made by the real ssh-keygen."""

from __future__ import annotations

from pathlib import Path

from reconciler.ground import process


class SshKeys:
    """Two key pairs, and the file in which only `ops` is allowed."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        for name in ("ops", "mallory"):
            process.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", directory / name],
                timeout=30,
            )
        self.allowed = directory / "allowed signers"
        self.allow("ops@example.org", "ops")

    def public(self, name: str) -> str:
        return (self.directory / f"{name}.pub").read_text()

    def allow(self, principal: str, name: str, options: str = "") -> None:
        self.allowed.write_text(f"{principal} {options} {self.public(name)}")

    def sign_with(self, repository: Path, name: str) -> None:
        """From now on `commit -S` and `tag --sign` in that work tree sign with this key."""
        for setting, value in (("gpg.format", "ssh"), ("user.signingKey", str(self.directory / name))):
            process.run(["git", "config", setting, value], timeout=30, cwd=repository)
