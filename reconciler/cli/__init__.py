"""The command line. `main` is the entry point `reconcile`; all else is imported when it runs."""

from __future__ import annotations

import gc
from collections.abc import Sequence

_A_COMMAND, _A_DAEMON = 200_000, 10_000
"""Objects made between two looks for garbage, where Python has 700 or 2,000: what is imported and read stays, and was walked again and again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `reconcile` with `arguments` (the process's own where None) and return its exit status."""
    from reconciler.cli.program import run

    gc.set_threshold(_A_COMMAND)
    status = run(arguments)
    if arguments is None:
        gc.freeze()  # the process ends: walking everything once more for garbage was a fifth of a dry run
    return status


def stay() -> None:
    """Look for garbage as a process that runs until it is ended."""
    gc.set_threshold(_A_DAEMON)
