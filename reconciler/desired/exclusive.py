"""One writer at a time on a directory that several processes of this machine share. Called by `mirror` and `memory`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from reconciler.errors import Unavailable

_PAUSE = 0.05


@contextlib.contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock file `path`, waiting at most `timeout` seconds for it. The kernel gives it back when the process ends."""
    end = time.monotonic() + timeout
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Unavailable(f"cannot lock {path}: {error.strerror}; see --state-dir") from None
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Unavailable(
                        f"cannot lock {path}: another process of reconciler has held it for {timeout:g} s; try again when it has ended"
                    ) from None
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)
