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


@contextlib.contextmanager
def left_out(package: str, *, whole: bool = False) -> Iterator[Path]:
    """Import what is inside the block without the own code of `package` (`whole`: and none of its modules). Gives its folder.

    Raises `ModuleNotFoundError` where it is not installed. Who imports the package later runs its own code then, though
    what was imported here is no attribute of it; who imports it in another thread during the block gets nothing of it.
    """
    with _one_at_a_time:
        there = sys.modules.get(package)
        if there is not None:
            yield Path(there.__file__ or "").parent
            return
        folder = Path() if whole else _folder(package)
        stand_in = sys.modules[package] = ModuleType(package)
        stand_in.__path__ = [] if whole else [str(folder)]
        try:
            yield folder
        finally:
            parent, _, child = package.rpartition(".")
            del sys.modules[package]
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(child, None)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.origin).parent
