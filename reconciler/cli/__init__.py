"""The command line. `main` is the entry point `reconcile`; all else is imported when it runs."""

from __future__ import annotations

import gc
from collections.abc import Sequence

_COLLECT_AFTER = 10_000
"""Objects made between two looks for garbage, where Python has 700: a large desired state stays, and was walked again and again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `reconcile` with `arguments` (the process's own where None) and return its exit status."""
    from reconciler.cli.program import run

    gc.set_threshold(_COLLECT_AFTER)
    return run(arguments)
