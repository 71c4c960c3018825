"""What this agent pulled: which images, for which name, and how far a pull is. Called by `containers` only; not pure."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from reconciler.core.artifact import Image
from reconciler.errors import Corrupt
from reconciler.host import place
from reconciler.host.driver import Progress
from reconciler.host.registry import repository_of


class Pulled:
    """Which images this agent pulled, and for which name: only these are ever removed. One small file in the state directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()

    def add(self, source: str, image: Image) -> None:
        with self._mutex:
            found = self._read()
            entry = {"name": image.name, "tag": f"{repository_of(image.repository)}:{image.tag}"}
            if found.get(source) != entry:
                self._write({**found, source: entry})

    def drop(self, source: str) -> None:
        with self._mutex:
            found = self._read()
            if found.pop(source, None) is not None:
                self._write(found)

    def names(self) -> frozenset[str]:
        with self._mutex:
            return frozenset(entry["name"] for entry in self._read().values())

    def of(self, name: str) -> list[tuple[str, str]]:
        """What was pulled for `name`: its source (`repository@digest`) and its name here (`repository:tag`)."""
        with self._mutex:
            return [
                (source, entry["tag"])
                for source, entry in sorted(self._read().items())
                if entry["name"] == name
            ]

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            document = json.loads(self._path.read_bytes())
            return {
                str(source): {"name": str(entry["name"]), "tag": str(entry["tag"])}
                for source, entry in document["pulled"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(
                f"cannot read {self._path}, which lists the images that were pulled: {error}; if it is beyond repair, "
                "remove it: no image that it named will be removed then"
            ) from None

    def _write(self, pulled: Mapping[str, Mapping[str, str]]) -> None:
        place.publish(
            self._path, json.dumps({"format": 1, "pulled": pulled}, indent=1, sort_keys=True) + "\n"
        )


@contextlib.contextmanager
def measured(directory: Path, subject: str, total: int, progress: Progress) -> Iterator[None]:
    """Tell `progress` how much has come: runtimes say nothing of it without a terminal, but it grows in their directory."""
    progress(subject, 0, total)
    done = threading.Event()

    def watch() -> None:
        told = 0
        while not done.wait(0.5):
            size = min(total, _size(directory))
            if size > told:
                told = size
                progress(subject, size, total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        progress(subject, total, total)
    finally:
        done.set()
        thread.join()


def _size(directory: Path) -> int:
    size = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(OSError):
            size += file.lstat().st_size
    return size
