"""What was fetched for Debian packages and is not thrown away yet. Called by their driver; not pure.

Each fetch lies in a directory of its own, `debs/<name>/<what it is>/`: the package's own file and what it brings along, published
by `fetched.json`, and so there whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reconciler.core.artifact import AptDeb, ReleaseDeb
from reconciler.errors import HostError
from reconciler.host import place
from reconciler.host.driver import Host

Deb = ReleaseDeb | AptDeb

_MANIFEST = "fetched.json"
_MANIFEST_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Parcel:
    """What was fetched for one package: the directory, the package's own file in it, its version and checksum."""

    directory: Path
    file: Path
    version: str
    digest: str

    @property
    def files(self) -> list[Path]:
        """All of it: the package's own file, and what it brings along."""
        return sorted(self.directory.glob("*.deb"))


class Shelf:
    """The parcels of one host. `digest` is a release's checksum in hex, which tells its parcels apart; APT's go by version."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def _top(self) -> Path:
        return place.shared(self._host) / "debs"

    def _of(self, name: str) -> Path:
        return self._top / quote(name, safe="+")

    def directory(self, deb: Deb, digest: str) -> Path:
        """Where the parcel for this package is to be brought together."""
        which = digest if isinstance(deb, ReleaseDeb) else f"apt-{quote(deb.version, safe='+~')}"
        return self._of(deb.name) / which

    def publish(self, parcel: Parcel) -> None:
        """From now on it is there."""
        document = {"file": parcel.file.name, "version": parcel.version, "digest": parcel.digest}
        place.publish(parcel.directory / _MANIFEST, json.dumps(document))

    def parcel(self, deb: Deb, digest: str) -> Parcel | None:
        """What was fetched, whole, for this package; None where that was not done or is gone."""
        if isinstance(deb, ReleaseDeb) and not digest:
            return None
        return _read(self.directory(deb, digest))

    def verify(self, deb: Deb, parcel: Parcel) -> None:
        """See that the package's file is still what was fetched. Raises `HostError`, and throws it away, where it is not."""
        from reconciler.ground.download import file_sha256

        if file_sha256(parcel.file) != parcel.digest:
            shutil.rmtree(parcel.directory, ignore_errors=True)
            raise HostError(
                f"cannot install deb {deb.name} {parcel.version} on server {self._host.lrn}: what was fetched was damaged "
                "since; it is thrown away, and fetched again the next time"
            )

    def keep_only(self, parcel: Parcel) -> None:
        """Throw away what was fetched for other versions of this package."""
        for directory in _directories(parcel.directory.parent):
            if directory != parcel.directory:
                shutil.rmtree(directory, ignore_errors=True)

    def drop(self, name: str) -> None:
        """Throw away all that was fetched for a package."""
        shutil.rmtree(self._of(name), ignore_errors=True)

    def tidy(self, names: Iterable[str]) -> None:
        """Throw away what was fetched for other packages than these."""
        keep = {self._of(name).name for name in names}
        for directory in _directories(self._top):
            if directory.name not in keep:
                shutil.rmtree(directory, ignore_errors=True)


def _directories(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())


def _read(directory: Path) -> Parcel | None:
    try:
        with (directory / _MANIFEST).open("rb") as file:
            document: Any = json.loads(file.read(_MANIFEST_LIMIT))
        parcel = Parcel(
            directory,
            directory / Path(document["file"]).name,
            str(document["version"]),
            str(document["digest"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: it is fetched again
    return parcel if parcel.file.is_file() else None
