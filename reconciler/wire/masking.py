"""What may be a secret is not repeated in a message. Pure; called by `yaml`, `schema` and `settings`."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "(hidden)"

_SECRET_NAME = re.compile(
    r"(?i)passw|passphrase|secret|token|credential|private[-_]?key|api[-_]?key|slack|webhook"
)
_SECRET_IN_LINE = re.compile(
    r"(?i)((?:passw|passphrase|secret|token|credential|private[-_]?key|api[-_]?key|slack|webhook)[^:=]*[:=]\s*).+"
)
_PASSWORD_IN_URL = re.compile(r"(://[^/@:\s]*):[^/@\s]*@")
_FILES = re.compile(r"(?i)[-_]?files?$")
_SHOWN = 80


def is_secret(path: Sequence[str | int]) -> bool:
    """Whether a value at `path` may be a secret, by its names: `environment.DB_PASSWORD`, but not `password-file`."""
    return any(
        isinstance(part, str) and _SECRET_NAME.search(part) and not _FILES.search(part) for part in path
    )


def masked(text: str, path: Sequence[str | int] = ()) -> str:
    """`text` for a message: hidden where its path says so, without the password of a URL, and never long."""
    if is_secret(path):
        return HIDDEN
    safe = _PASSWORD_IN_URL.sub(r"\1:***@", text)
    return safe if len(safe) <= _SHOWN else safe[:_SHOWN] + "…"


def masked_line(line: str) -> str:
    """A line of an input for a message, without what stands after the name of a secret."""
    return masked(_SECRET_IN_LINE.sub(rf"\1{HIDDEN}", line.strip()))
