"""How much a revision may hold, and what in it is refused. Pure; called by `tree` and `directory` as they read."""

from __future__ import annotations

from reconciler.errors import Finding, Refused

FILES = 10_000
"""Files and directories below the desired state's directory, whatever their names."""

BYTES = 10 << 20
"""Bytes of all YAML files together."""

DEPTH = 64
"""Directories within directories."""

_SHOWN = 20


class Allowance:
    """Counts what one revision holds while it is read, and collects what is wrong with its entries, to show it at once."""

    def __init__(self, revision: str) -> None:
        self._revision = revision
        self._entries = 0
        self.bytes_left = BYTES
        self._findings: list[Finding] = []

    def entry(self, name: str) -> None:
        """One more file or directory. Raises `Refused` at one too many."""
        self._entries += 1
        if self._entries > FILES:
            raise self.refusal(
                Finding(name, 1, 1, f"more than {FILES:,} files; move what is no desired state elsewhere")
            )
        if name.count("/") > DEPTH:
            raise self.refusal(Finding(name, 1, 1, f"stands more than {DEPTH} directories deep"))

    def content(self, name: str, size: int) -> None:
        """A file of `size` bytes is about to be read. Raises `Refused` if that is too much."""
        if size > self.bytes_left:
            raise self.refusal(
                Finding(name, 1, 1, f"with its {size:,} bytes the YAML files hold more than {BYTES:,} bytes")
            )
        self.bytes_left -= size

    def wrong(self, name: str, problem: str) -> None:
        """Note what is wrong with an entry; raised by `check`, together with the others."""
        self._findings.append(Finding(name if name.isprintable() else ascii(name), 1, 1, problem))

    def check(self) -> None:
        """Raise `Refused` if anything was wrong."""
        if self._findings:
            raise self.refusal()

    def refusal(self, *more: Finding) -> Refused:
        """The error that names all that was found, and `more`."""
        findings = [*self._findings, *more]
        rest = f" (the first {_SHOWN} of {len(findings)} reasons)" if len(findings) > _SHOWN else ""
        return Refused(f"revision {self._revision} is refused{rest}:", findings[:_SHOWN])


def is_yaml(name: str) -> bool:
    """Whether a file of this name is a part of the desired state."""
    return name.endswith((".yaml", ".yml"))


LINK = "is a symbolic link; put the file itself there"
SUBMODULE = "is a submodule; put its files into this repository"
NAME = "has a name that cannot be shown; use letters, digits, '.', '_' and '-'"
SPECIAL = "is neither a file nor a directory"
