"""The ledger: what this agent put on its host, or took over there. Only what stands in it is ever removed.

Called by the drivers, by `adopt` and by what decides which removals are allowed. Not pure: one JSON file in the state
directory, read anew when it has changed, written whole under a lock file. An entry is written before the host is
changed (`found` still empty) and again after it was looked at, so that a kill in between loses nothing that is ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from reconciler.core.artifact import KINDS, Artifact, Key, Kind, Known
from reconciler.errors import HostError
from reconciler.host import place
from reconciler.host.driver import Host
from reconciler.wire.artifact import artifact_from_fields, artifact_json
from reconciler.wire.document import Fields, corrupt, decode, shown

FORMAT = 1
LIMIT = 16 << 20
"""Bytes that the ledger may have."""

Origin = Literal["installed", "adopted"]
_ORIGINS: tuple[Origin, ...] = ("installed", "adopted")


@dataclass(frozen=True, slots=True)
class Entry:
    """One artifact of ours: how it was asked for, and what the host had then (`found` empty: not looked at yet).

    `digest` is what it was resolved to, `file` what was fetched for it and is kept; `previous` are the images that it
    had before, newest first, themselves without `previous`. `altered` are a package's files that differed from the
    package as soon as it was installed (or when it was taken over): its own doing, and no drift.
    """

    artifact: Artifact | Known
    found: str = ""
    digest: str = ""
    file: str = ""
    origin: Origin = "installed"
    previous: tuple[Entry, ...] = ()
    altered: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.artifact.key


class Ledger:
    """The ledger of one host. May be used by several threads, and opened several times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.RLock()
        self._stamp: tuple[int, int, int] | None = None
        self._entries: dict[Key, Entry] = {}

    @classmethod
    def open(cls, host: Host) -> Ledger:
        """The ledger of `host`; nothing is written by opening it."""
        return cls(host.state_dir / "ledger.json")

    def entries(self) -> dict[Key, Entry]:
        """All entries, sorted by key. Raises `Corrupt`."""
        with self._mutex:
            return dict(self._read())

    def get(self, key: Key) -> Entry | None:
        with self._mutex:
            return self._read().get(key)

    def has(self, key: Key) -> bool:
        """Whether the artifact is ours: installed or adopted by this agent, and so may be removed by it."""
        return self.get(key) is not None

    def put(self, entry: Entry) -> None:
        """Enter an artifact, or enter it anew; on disk when this returns."""
        with self._writing() as entries:
            if entries.get(entry.key) != entry:
                self._write({**entries, entry.key: entry})

    def drop(self, key: Key) -> None:
        """Take an artifact out; nothing to do where it is not in."""
        with self._writing() as entries:
            if key in entries:
                self._write({other: entry for other, entry in entries.items() if other != key})

    def _read(self) -> dict[Key, Entry]:
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
                if stamp == self._stamp:
                    return self._entries
                if found.st_size > LIMIT:
                    corrupt(str(self.path), f"it has {found.st_size} bytes, and at most {LIMIT} are read")
                data = file.read(LIMIT)
        except FileNotFoundError:
            self._stamp, self._entries = None, {}
            return self._entries
        except OSError as error:
            raise HostError(f"cannot read the ledger {self.path}: {error.strerror or error}") from None
        self._entries = _decode(data, str(self.path))
        self._stamp = stamp
        return self._entries

    @contextlib.contextmanager
    def _writing(self) -> Iterator[dict[Key, Entry]]:
        """The entries as they stand, while no other process may write them."""
        with self._mutex:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise HostError(f"cannot write the ledger {self.path}: {error.strerror or error}") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield self._read()
            finally:
                os.close(lock)

    def _write(self, entries: dict[Key, Entry]) -> None:
        text = _encode(entries)
        if len(text) > LIMIT:
            raise HostError(f"cannot write the ledger {self.path}: it would have more than {LIMIT} bytes")
        place.publish(self.path, text)
        self._stamp = None


# --- the document ---------------------------------------------------------------------------------------------------


def _encode(entries: dict[Key, Entry]) -> str:
    document = {"format": FORMAT, "entries": [_entry_json(entries[key]) for key in sorted(entries)]}
    return json.dumps(document, ensure_ascii=True, indent=1) + "\n"


def _entry_json(entry: Entry) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": entry.key.kind, "artifact": artifact_json(entry.artifact)}
    if isinstance(entry.artifact, Known):
        document["known"] = True
    document |= {"found": entry.found, "digest": entry.digest, "file": entry.file, "origin": entry.origin}
    if entry.altered:
        document["altered"] = list(entry.altered)
    if entry.previous:
        document["previous"] = [_entry_json(replace(older, previous=())) for older in entry.previous]
    return document


def _decode(data: bytes, path: str) -> dict[Key, Entry]:
    fields = Fields(decode(data, path), path)
    if (found := fields.integer("format")) != FORMAT:
        fields.wrong("format", f"is {shown(found)}, and this program reads {FORMAT}")
    entries = [_entry_with_previous(item) for item in fields.objects("entries")]
    return {entry.key: entry for entry in sorted(entries, key=lambda entry: entry.key)}


def _entry_with_previous(fields: Fields) -> Entry:
    return replace(_entry(fields), previous=tuple(_entry(older) for older in fields.objects("previous")))


def _entry(fields: Fields) -> Entry:
    kind = _kind(fields.one_of("kind", KINDS))
    artifact = fields.object("artifact")
    if artifact is None:
        fields.wrong("artifact", "is missing, and must be an object")
    return Entry(
        artifact=Known(Key(kind, artifact.text("name")), artifact.text("version"))
        if fields.boolean("known", False)
        else artifact_from_fields(kind, artifact),
        found=fields.text("found", ""),
        digest=fields.text("digest", ""),
        file=fields.text("file", ""),
        origin=_origin(fields.one_of("origin", _ORIGINS, "installed")),
        altered=fields.texts("altered"),
    )


def _kind(word: str) -> Kind:
    return next(kind for kind in KINDS if kind == word)


def _origin(word: str) -> Origin:
    return next(origin for origin in _ORIGINS if origin == word)
