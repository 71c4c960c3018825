"""Some modules of a package without all the others that its own code imports. Called where a library is first needed."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_one_at_a_time = threading.RLock()


def folder_of(package: str) -> Path | None:
    """Where a package's modules are; None where it is not installed. Does not import it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


@contextlib.contextmanager
def left_out(package: str, folder: Path | None = None) -> Iterator[None]:
    """Import what is inside the block without the own code of `package`; its modules are in `folder`, if any are wanted.

    Who imports the package later gets it whole. Nothing happens where it is imported already.
    """
    with _one_at_a_time:
        if package in sys.modules:
            yield
            return
        stand_in = sys.modules[package] = ModuleType(package)
        stand_in.__path__ = [str(folder)] if folder else []
        try:
            yield
        finally:
            parent, _, child = package.rpartition(".")
            del sys.modules[package]
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(child, None)
