"""The options of a running agent: its configuration file is read again when it changes, and what is safe to change is taken up.

Built by `agent`; `agent/loop` calls `look` when the file has changed and at SIGHUP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.cli.options import TABLE, Options, configuration_file, must_be_given, resolve, shown
from reconciler.cli.program import Call
from reconciler.core.state import Settings
from reconciler.errors import UsageError
from reconciler.ground.telemetry import ANEW, Log

log = logging.getLogger(__name__)


class Configured:
    """`now` has the options in force: what a restart is needed for stays as it was at the start. `takers` hear of each change."""

    def __init__(self, call: Call, written: Log) -> None:
        self._call, self._log = call, written
        self._file = configuration_file(call.given, call.environment)
        self._there = self._file.exists()
        self._debugging = self._failing = False
        self._wanting: tuple[str, ...] = ()
        self.now: Options = call.options
        self.takers: list[Callable[[Options], None]] = []

    @property
    def files(self) -> tuple[Path, ...]:
        """The directory of the file, and where it is a link that leads elsewhere, the directory of what it leads to.

        Directories, because a file is changed by putting another one in its place; Kubernetes does so to a link above it.
        """
        named, real = self._file.absolute().parent, self._file.resolve().parent
        elsewhere = not real.is_relative_to(named.resolve())
        return tuple(place for place in (named, *((real,) if elsewhere else ())) if place.is_dir())

    def look(self) -> None:
        """Take up what has changed and may be; say what wants a restart. A file that cannot be used changes nothing."""
        try:
            found = self._read()
        except UsageError as error:
            anew = {} if self._failing else ANEW
            log.error("the configuration is not taken up, what was in force stays: %s", error, extra=anew)
            self._failing = True
            return
        self._failing = False
        changed = [row for row in TABLE.values() if _value(found, row.name) != _value(self.now, row.name)]
        self._say_wanting(tuple(row.name for row in changed if not row.live), found)
        taken = [row.name for row in changed if row.live]
        if taken:
            self._take(taken, found)

    def toggle_debug(self) -> None:
        """Log at `debug` whatever the options say, or as they say again."""
        self._debugging = not self._debugging
        self._set_level()
        log.info("logs at level %s now, as SIGUSR1 asked", self._level)

    def hide_secrets(self, settings: Settings) -> None:
        """Keep what the fleet's settings have of secrets out of the log."""
        self._log.hide(settings.slack, settings.github_token)

    def _read(self) -> Options:
        there = self._file.exists()
        if self._there and not there:
            raise UsageError(f"{self._file} is gone")
        self._there = there
        found = resolve(self._call.given, self._call.environment)
        must_be_given(found)
        return found

    def _take(self, names: list[str], found: Options) -> None:
        values: dict[str, Any] = {TABLE[name].attribute: _value(found, name) for name in names}
        origins = {name: origin for name, origin in self.now.origins.items() if name not in names}
        origins |= {name: origin for name, origin in found.origins.items() if name in names}
        self.now = replace(self.now, **values, origins=origins)
        self._set_level()
        for name in names:
            log.info("%s is %s now (%s)", name, shown(name, self.now), self.now.origin(name))
        for take in self.takers:
            take(self.now)

    def _say_wanting(self, names: tuple[str, ...], found: Options) -> None:
        if names and names != self._wanting:
            changed = ", ".join(f"{name} ({found.origin(name)})" for name in names)
            log.warning("a restart is needed to take up what has changed of %s", changed)
        self._wanting = names

    def _set_level(self) -> None:
        self._log.set_level(self._level)

    @property
    def _level(self) -> str:
        return "debug" if self._debugging else self.now.log_level


def _value(options: Options, name: str) -> object:
    return getattr(options, TABLE[name].attribute)
