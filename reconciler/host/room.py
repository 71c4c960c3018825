"""Room for all that is fetched together, and not for each by itself. Called by `containers`; looks at the disk, changes nothing.

What is claimed on a file system is held against what was free there when the first of them was claimed: some of it may lie
there by now, and nobody can tell how much.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from reconciler.errors import HostError
from reconciler.host import place


class Room:
    """The claims since `begin`. Used by several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._free: dict[int, int] = {}
        self._claims: dict[int, dict[str, int]] = {}

    def begin(self) -> None:
        """Fetches begin: those of before are done, or given up."""
        with self._mutex:
            self._free.clear()
            self._claims.clear()

    @contextlib.contextmanager
    def taken(self, what: str, *, stays: tuple[Path, int], passes: tuple[Path, int]) -> Iterator[None]:
        """Claim room for `what` while it is fetched: bytes that stay in a directory, and others that are gone afterwards.

        Raises `HostError` where they do not fit, alone or with all that is claimed. If the fetch fails, nothing stays.
        """
        passing = f"the download of {what}"
        self._claim(what, *stays)
        try:
            self._claim(passing, *passes)
            yield
        except BaseException:
            self._drop(what)
            raise
        finally:
            self._drop(passing)

    def _claim(self, what: str, directory: Path, needed: int) -> None:
        place.require_space(directory, needed, what)
        there = place.nearest(directory)
        with self._mutex:
            device = there.stat().st_dev
            found = os.statvfs(there)
            free = self._free.setdefault(device, found.f_bavail * found.f_frsize)
            claims = self._claims.setdefault(device, {})
            others = {name: size for name, size in claims.items() if name != what}
            total = needed + sum(others.values())
            if total > free:
                raise HostError(
                    f"cannot put {what} and {len(others)} more into {directory}: together they take {place.size(total)}, and "
                    f"{place.size(free)} were free; make room there"
                )
            claims[what] = needed

    def _drop(self, what: str) -> None:
        with self._mutex:
            for claims in self._claims.values():
                claims.pop(what, None)
