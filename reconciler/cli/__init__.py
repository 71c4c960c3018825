"""The command line. `main` is the entry point `reconcile`; all else is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `reconcile` with `arguments` (the process's own where None) and return its exit status."""
    from reconciler.cli.program import run

    return run(arguments)
