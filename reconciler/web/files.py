"""Small files that are changed while the agent runs (a token, a secret): read again when they change. Called by `app` and `webhook`.

What cannot be read is as if it were empty, and an empty secret lets nobody in.
"""

from __future__ import annotations

import hmac
import logging
import threading
from pathlib import Path

from reconciler.errors import UsageError

log = logging.getLogger(__name__)

_LIMIT = 16 << 10

Stamp = tuple[int, int, int] | None


def stamp(path: Path) -> Stamp:
    """What changes with a file's content: its time, size and inode; None where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Secret:
    """The secret in a file, without the line end. `option` is how the file was named: for messages."""

    def __init__(self, path: Path, option: str) -> None:
        self._path, self._option = path, option
        self._mutex = threading.Lock()
        self._stamp = stamp(path)
        try:
            self._value = self._read()
        except OSError as error:
            raise UsageError(
                f"cannot read {option} {path}: {error.strerror}; make it readable or leave the option out"
            ) from None
        if not self._value:
            raise UsageError(f"cannot use {option} {path}: it is empty; write the secret into it")

    def value(self) -> bytes:
        """The secret as it is in the file now; empty where there is none to read."""
        with self._mutex:
            found = stamp(self._path)
            if found != self._stamp:
                self._stamp = found
                self._value = self._reread()
            return self._value

    def matches(self, given: bytes) -> bool:
        """Whether `given` is the secret; takes as long for any that is as long."""
        value = self.value()
        return hmac.compare_digest(given, value) and bool(value)

    def _reread(self) -> bytes:
        try:
            value = self._read()
        except OSError as error:
            log.error("cannot read %s %s: %s; nobody is let in", self._option, self._path, error.strerror)
            return b""
        if value:
            log.info("%s has changed and was read again", self._option)
        else:
            log.error("%s %s is empty: nobody is let in", self._option, self._path)
        return value

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(_LIMIT).strip(b"\r\n")
