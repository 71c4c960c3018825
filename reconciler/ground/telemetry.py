"""The log: one line an event, as text or JSON, with its fields, secrets hidden, and the same failure counted and not repeated.

Called once by the command, with what to hide; everybody else takes `logging.getLogger(__name__)` and gives the fields
with `extra`. Not pure, knows nothing of the domain but the names of the fields.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

FIELDS = ("revision", "rollout", "server", "step")
"""What an event may be about: these are shown where `extra` gives them."""
ANEW = {"anew": True}
"""For `extra`: what was wrong has been right meanwhile, so this failure is shown though it was shown not long ago."""

HIDDEN = "***"
QUIET = 60.0
"""Seconds for which a failure that was logged is only counted when it comes again; twice as long after each time that it is shown."""
LONGEST_QUIET = 3600.0
"""Seconds after which it is shown in any case; who stays away for so long is shown at once, as something new."""

_REMEMBERED = 1000
_SHORTEST_SECRET = 4
_SECRETS = (
    re.compile(r"(://[^/@:\s]*:)[^/@\s]+(?=@)"),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"),
    re.compile(r"(?i)([?&](?:access_token|token|signature|sig|key|x-amz-[a-z-]+)=)[^&\s\"']+"),
    re.compile(r"(https://hooks\.slack\.com/services/)[^\s\"']+"),
)
_OURS = "reconciler"
_DURATION = re.compile(r"\b[0-9.]+ ?(?:ms|s)\b")
"""What makes two messages of one failure differ: how long it took this time."""

Clock = Callable[[], float]


class Log:
    """How this process logs. `level` may be changed while it runs; what is to be hidden may be added."""

    def __init__(self, handler: logging.Handler, mask: _Mask) -> None:
        self._handler = handler
        self._mask = mask

    def set_level(self, level: str) -> None:
        """From here on, events of at least this level (`debug`, `info`, `warning`, `error`)."""
        number = logging.getLevelNamesMapping()[level.upper()]
        logging.getLogger(_OURS).setLevel(number)
        # What other packages say below a warning tells something about them, and not about the fleet.
        logging.getLogger().setLevel(max(number, logging.WARNING))

    def hide(self, *secrets: str | None) -> None:
        """Never show these texts: a token, a password, a webhook's address."""
        self._mask.add(secrets)

    def close(self) -> None:
        """Log nothing any more."""
        logging.getLogger().removeHandler(self._handler)


def set_up(
    form: Literal["text", "json"],
    level: str = "info",
    *,
    stream: TextIO | None = None,
    secrets: Iterable[str | None] = (),
    quiet: float = QUIET,
    clock: Clock = time.monotonic,
) -> Log:
    """Log to `stream`, standard error unless given, in place of what was set up before."""
    mask = _Mask()
    mask.add(secrets)
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(_Json(mask) if form == "json" else _Text(mask))
    handler.addFilter(_Repeated(quiet, clock))
    root = logging.getLogger()
    for old in [known for known in root.handlers if isinstance(known, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    log = Log(handler, mask)
    log.set_level(level)
    return log


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that it can be told from what others put there. A log that cannot be written ends nothing."""

    def handleError(self, record: logging.LogRecord) -> None:
        """A closed pipe or a full disk is no reason to stop the agent, nor to print a traceback."""


class _Mask:
    """Hides what is known to be secret, and what looks like it."""

    def __init__(self) -> None:
        self._known: tuple[str, ...] = ()

    def add(self, secrets: Iterable[str | None]) -> None:
        found = {secret.strip() for secret in secrets if secret and len(secret.strip()) >= _SHORTEST_SECRET}
        # The longest first: one secret may begin with another.
        self._known = tuple(sorted({*self._known, *found}, key=lambda secret: (-len(secret), secret)))

    def __call__(self, text: str) -> str:
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        for pattern in _SECRETS:
            text = pattern.sub(rf"\g<1>{HIDDEN}", text)
        return text


@dataclass(slots=True)
class _Seen:
    """A failure that was shown: when, for how long it is only counted, when it came last, and how often since it was shown."""

    shown_at: float
    quiet: float
    last: float
    count: int = 0


class _Repeated(logging.Filter):
    """Lets a failure through once, and then at growing intervals (`quiet` seconds at first) with how often it came meanwhile."""

    def __init__(self, quiet: float, clock: Clock) -> None:
        super().__init__()
        self._quiet = quiet
        self._clock = clock
        self._seen: OrderedDict[tuple[Any, ...], _Seen] = OrderedDict()
        self._mutex = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key = (
            record.name,
            record.levelno,
            _DURATION.sub("", record.getMessage()),
            *(getattr(record, field, None) for field in FIELDS),
        )
        now = self._clock()
        with self._mutex:
            seen = self._seen.get(key)
            if (
                seen is None
                or getattr(record, "anew", False)
                or now - seen.last >= max(LONGEST_QUIET, self._quiet)
            ):
                seen = _Seen(now, self._quiet, now)
            elif now - seen.shown_at < seen.quiet:
                seen.last, seen.count = now, seen.count + 1
                return False
            else:
                record.repeated = seen.count
                longer = max(self._quiet, min(2 * seen.quiet, LONGEST_QUIET))
                seen = _Seen(now, longer, now)
            self._seen[key] = seen
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return True


class _Form(logging.Formatter):
    def __init__(self, mask: _Mask) -> None:
        super().__init__()
        self._mask = mask

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """The fields that the event has, and how often it was not shown."""
        found = {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if repeated := getattr(record, "repeated", 0):
            found["repeated"] = repeated
        return {
            name: value if isinstance(value, int) else self._mask(str(value)) for name, value in found.items()
        }

    def message(self, record: logging.LogRecord) -> str:
        return self._mask(record.getMessage())

    def traceback(self, record: logging.LogRecord) -> str:
        return self._mask(self.formatException(record.exc_info)) if record.exc_info else ""


class _Text(_Form):
    """For people: `2026-01-02T03:04:05Z info    rollout opened  revision=1a2b server=3`."""

    def format(self, record: logging.LogRecord) -> str:
        time_text = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines = [*self.message(record).splitlines(), *self.traceback(record).splitlines()]
        said = " | ".join(line.strip() for line in lines if line.strip())
        fields = " ".join(f"{name}={value}" for name, value in self.fields(record).items())
        line = f"{time_text} {record.levelname.lower():<7} {said}" + (f"  {fields}" if fields else "")
        # What a program printed may move a terminal's cursor, or colour what follows.
        return "".join(letter if letter.isprintable() else "?" for letter in line)


class _Json(_Form):
    """For machines: one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": self.message(record),
            **self.fields(record),
            "logger": record.name,
        }
        if traceback := self.traceback(record):
            document["traceback"] = traceback
        return json.dumps(document, ensure_ascii=True)
