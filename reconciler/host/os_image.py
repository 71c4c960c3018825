"""The OS image's drivers: `netboot` publishes Flatcar's files for other machines to boot, `command` lets hooks stage the host's own OS.

`OsImages` is the `Driver` that the performer, the drift check and the leader (`resolve`) call. Not pure.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from reconciler.core.artifact import OS_IMAGE, Artifact, Key, Known, OsImage, Pin
from reconciler.core.state import OsDriver
from reconciler.errors import HostError, Unfetchable
from reconciler.host import place
from reconciler.host.driver import Host, Progress, silent
from reconciler.host.flatcar import FILES, PUBLIC, Checksums, Flatcar, file_sha512
from reconciler.host.hooks import run_hook
from reconciler.host.ledger import Entry, Ledger
from reconciler.host.reboot import boot_id

KEY = "/etc/reconciler/os-image-key.asc"
"""The host's file with the key that releases are signed with; where it is there, an unsigned release is refused."""

HOOKS = "/etc/reconciler/hooks"
_NOTE = ".reconciler.json"
_INCOMING = ".incoming"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*(/[A-Za-z0-9][A-Za-z0-9._+~-]*)?")


class OsImages:
    """The driver of one host's OS image, by the way that its server group names."""

    def __init__(
        self,
        host: Host,
        ledger: Ledger,
        driver: OsDriver,
        *,
        flatcar_url: str = PUBLIC,
        key: str = KEY,
        proxy: str | None = None,
    ) -> None:
        found = place.inside(host, key)
        flatcar = Flatcar(flatcar_url, found if found.exists() else None, proxy)
        self._way: _Way = (
            Netboot(host, ledger, driver.directory, flatcar)
            if driver.driver == "netboot"
            else Command(host, ledger)
        )

    def resolve(self, artifact: Artifact) -> Pin | None:
        """What the release is pinned to; None where the version says it all (`command`)."""
        return self._way.resolve(_os_image(artifact))

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        """`<channel>/<version>` of what is published or runs, and what is wrong with it, if anything is."""
        if not any(artifact.key == OS_IMAGE for artifact in artifacts):
            return {}
        found = self._way.observed()
        return {OS_IMAGE: found} if found else {}

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        return _os_image(artifact).version

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        self._way.fetch(_os_image(artifact), pin, progress)

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        self._way.apply(_os_image(artifact), pin)

    def remove(self, key: Key) -> None:
        self._way.remove()

    def staged(self, artifact: Artifact) -> bool:
        """Whether `apply` has staged this image in the boot that runs now, so that the next boot brings it."""
        return self._way.staged(_os_image(artifact))

    def rollback(self) -> None:
        """Back to the image before: the next boot, here or on the machines that boot from here, brings it."""
        self._way.rollback()

    def tidy(self) -> None:
        """Throw away what was fetched and never published: called while no rollout is open."""
        self._way.tidy()


class _Way(Protocol):
    """One way to install an OS image; the methods are `OsImages`'."""

    def resolve(self, image: OsImage) -> Pin | None: ...
    def observed(self) -> str | None: ...
    def fetch(self, image: OsImage, pin: Pin | None, progress: Progress) -> None: ...
    def apply(self, image: OsImage, pin: Pin | None) -> None: ...
    def remove(self) -> None: ...
    def staged(self, image: OsImage) -> bool: ...
    def rollback(self) -> None: ...
    def tidy(self) -> None: ...


# --- netboot --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Netboot:
    """Flatcar's kernel and initrd under `<directory>/<channel>/<version>/`, and `<directory>/current`, a link to one of these."""

    host: Host
    ledger: Ledger
    directory: str
    flatcar: Flatcar

    def resolve(self, image: OsImage) -> Pin:
        return self.flatcar.resolve(image)

    def observed(self) -> str | None:
        version = self._current()
        if version is None:
            return None
        wrong = self._wrong(place.inside(self.host, f"{self.directory}/{version}"))
        return f"{version} ({wrong})" if wrong else version

    def fetch(self, image: OsImage, pin: Pin | None, progress: Progress) -> None:
        """Download both files beside where they will stand, unless they stand there, or lie there checked, already."""
        if pin and (
            self._is_whole(self._published(image), pin.digest)
            or self._is_whole(self._incoming(image), pin.digest)
        ):
            return
        address = pin.address if pin and pin.address else self.flatcar.address(image)
        checksums = self.flatcar.checksums(address)
        if pin and checksums.digest != pin.digest:
            raise Unfetchable(
                f"cannot use {image.version}: the checksums at {address} are not those that the rollout was opened with"
            )
        if pin is None and self._is_whole(self._published(image), checksums.digest):
            return
        incoming = self._incoming(image)
        self._clear_incoming()
        subject = OS_IMAGE.subject
        try:
            incoming.mkdir(parents=True)
            for name, sha512 in zip(FILES, checksums.sha512, strict=True):
                self.flatcar.fetch(
                    address,
                    name,
                    sha512,
                    incoming / name,
                    lambda done, total, name=name: progress(f"{subject} {name}", done, total),  # type: ignore[misc]
                )
            _note(incoming, checksums)
        except OSError as error:
            raise HostError(f"cannot write below {incoming}: {error.strerror or error}") from None

    def apply(self, image: OsImage, pin: Pin | None) -> None:
        """Publish both files with one rename and switch `current` last; the images before the last two go."""
        published, incoming = self._published(image), self._incoming(image)
        digest = pin.digest if pin else None
        before = self.ledger.get(OS_IMAGE)
        if not self._is_whole(published, digest):
            if not self._is_whole(incoming, digest):
                raise HostError(
                    f"cannot publish {image.version} on server {self.host.lrn}: its files are not below {incoming}; "
                    "the next attempt fetches them again"
                )
            self.ledger.put(_next(Entry(image, digest=digest or ""), before))
            _move(incoming, published)
        entry = _next(Entry(image, image.version, digest or ""), before)
        self.ledger.put(entry)
        place.point(self.host, f"{self.directory}/current", image.version)
        self._keep_two(entry)
        self._clear_incoming()

    def remove(self) -> None:
        """Take away the link, if it leads to what is ours, and the files that the ledger has."""
        entry = self.ledger.get(OS_IMAGE)
        if entry is None:
            return
        versions = {known.artifact.version for known in (entry, *entry.previous)}
        if self._current() in versions:
            place.remove(self.host, f"{self.directory}/current")
        for version in sorted(versions):
            self._delete(version)
        self._clear_incoming()
        self.ledger.drop(OS_IMAGE)

    def staged(self, image: OsImage) -> bool:
        return self.observed() == image.version

    def rollback(self) -> None:
        entry = self.ledger.get(OS_IMAGE)
        if entry is None or not entry.previous:
            raise HostError(
                f"cannot go back on server {self.host.lrn}: no OS image was published before this one"
            )
        older = entry.previous[0]
        if wrong := self._wrong(place.inside(self.host, f"{self.directory}/{older.artifact.version}")):
            raise HostError(f"cannot go back to {older.artifact.version} on server {self.host.lrn}: {wrong}")
        place.point(self.host, f"{self.directory}/current", older.artifact.version)
        self.ledger.put(replace(older, found=older.artifact.version, previous=(replace(entry, previous=()),)))

    def tidy(self) -> None:
        self._clear_incoming()

    def _current(self) -> str | None:
        """Where `current` leads, as `<channel>/<version>`; None where it is no such link."""
        link = place.inside(self.host, self.directory) / "current"
        try:
            target = str(link.readlink())
        except OSError:
            return None
        return target if _VERSION.fullmatch(target) else None

    def _published(self, image: OsImage) -> Path:
        return place.inside(self.host, f"{self.directory}/{image.version}")

    def _incoming(self, image: OsImage) -> Path:
        return place.inside(self.host, f"{self.directory}/{_INCOMING}/{image.version}")

    def _clear_incoming(self) -> None:
        shutil.rmtree(place.inside(self.host, f"{self.directory}/{_INCOMING}"), ignore_errors=True)

    def _is_whole(self, directory: Path, digest: str | None) -> bool:
        """Whether both files are there as they were checked, and are those that `digest` names."""
        note = _read_note(directory)
        return note is not None and digest in (None, note.get("digest")) and self._wrong(directory) is None

    def _wrong(self, directory: Path) -> str | None:
        """What is wrong with a published image; None where nothing is. A file is read again only if it was touched."""
        note = _read_note(directory)
        for name in FILES:
            file = directory / name
            try:
                found = file.stat()
            except OSError:
                return f"{name} is missing"
            known = note.get("files", {}).get(name) if note else None
            if known is None or (found.st_size, found.st_mtime_ns) == (known["size"], known["mtime_ns"]):
                continue
            if found.st_size != known["size"] or file_sha512(file) != known["sha512"]:
                return f"{name} was changed"
        return None

    def _keep_two(self, entry: Entry) -> None:
        kept = {known.artifact.version for known in (entry, *entry.previous[:1])}
        for older in entry.previous[1:]:
            if older.artifact.version not in kept:
                self._delete(older.artifact.version)
        self.ledger.put(replace(entry, previous=entry.previous[:1]))

    def _delete(self, version: str) -> None:
        if _VERSION.fullmatch(version) and "/" in version:
            directory = place.inside(self.host, f"{self.directory}/{version}")
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                directory.parent.rmdir()  # a channel without versions


def _next(entry: Entry, before: Entry | None) -> Entry:
    """`entry` with all that was published before it, newest first, itself left out."""
    if before is None:
        return entry
    older = (replace(before, previous=()), *before.previous)
    return replace(
        entry, previous=tuple(known for known in older if known.artifact.version != entry.artifact.version)
    )


def _move(incoming: Path, published: Path) -> None:
    """One rename, and on disk; what stood there, damaged, goes first."""
    try:
        if published.exists():
            shutil.rmtree(published)
        published.parent.mkdir(parents=True, exist_ok=True)
        incoming.rename(published)
        for directory in (published, published.parent):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise HostError(f"cannot publish {published}: {error.strerror or error}") from None


def _note(directory: Path, checksums: Checksums) -> None:
    """Note what was checked, so that looking again need not read hundreds of megabytes."""
    files = {}
    for name, sha512 in zip(FILES, checksums.sha512, strict=True):
        found = (directory / name).stat()
        files[name] = {"sha512": sha512, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
    place.publish(
        directory / _NOTE, json.dumps({"digest": checksums.digest, "files": files}, indent=1), 0o644
    )


def _read_note(directory: Path) -> dict[str, Any] | None:
    """None where there is none, or one that we did not write: then the image counts as not checked."""
    try:
        note = json.loads((directory / _NOTE).read_bytes()[: 1 << 16])
        for name in FILES:
            known = note["files"][name]
            if not (
                isinstance(known["size"], int) and isinstance(known["mtime_ns"], int) and known["sha512"]
            ):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(note)


# --- command --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """The host's own OS, by hooks: `os-current` says what runs, `os-stage` brings another for the next boot, `os-rollback` undoes that.

    `os-current` prints `<channel>/<version>`, or the version alone, on its first line. `os-stage` has both as arguments
    and as RECONCILER_OS_CHANNEL and RECONCILER_OS_VERSION, and may be called again with the same.
    """

    host: Host
    ledger: Ledger

    def resolve(self, image: OsImage) -> None:
        return None

    def observed(self) -> str | None:
        if self._has("os-current"):
            lines = run_hook(self.host, "os-current", timeout=60).stdout.split("\n", 1)
            said = lines[0].strip()
            if not _VERSION.fullmatch(said):
                raise HostError(
                    f"cannot tell which OS server {self.host.lrn} runs: the hook os-current printed {said[:100]!r}, "
                    "and must print <channel>/<version>"
                )
            return said if "/" in said else self._with_channel(said)
        version = _os_release(self.host).get("VERSION_ID")
        return self._with_channel(version) if version else None

    def fetch(self, image: OsImage, pin: Pin | None, progress: Progress) -> None:
        """Nothing to download here, but what `apply` needs must be there before anything changes."""
        for name in ("os-stage", "os-rollback"):
            if not self._has(name):
                raise HostError(
                    f"cannot install {image.version} on server {self.host.lrn}: {HOOKS}/{name} is not there; examples/os-hooks "
                    "has it for flatcar-update, bootc and rpm-ostree"
                )

    def apply(self, image: OsImage, pin: Pin | None) -> None:
        before = self.ledger.get(OS_IMAGE)
        entry = _next(Entry(image), before)
        entry = replace(entry, previous=entry.previous[:1])
        self.ledger.put(entry)
        run_hook(
            self.host,
            "os-stage",
            image.channel,
            image.release,
            environment={"RECONCILER_OS_CHANNEL": image.channel, "RECONCILER_OS_VERSION": image.release},
        )
        self.ledger.put(replace(entry, found=image.version, file=f"staged in {boot_id(self.host)}"))

    def remove(self) -> None:
        """An OS that is no longer asked for stays as it is: there is no machine without one."""
        self.ledger.drop(OS_IMAGE)

    def staged(self, image: OsImage) -> bool:
        entry = self.ledger.get(OS_IMAGE)
        return (
            entry is not None and entry.artifact == image and entry.file == f"staged in {boot_id(self.host)}"
        )

    def rollback(self) -> None:
        run_hook(self.host, "os-rollback")
        entry = self.ledger.get(OS_IMAGE)
        if entry and entry.previous:
            self.ledger.put(entry.previous[0])
        else:
            self.ledger.drop(OS_IMAGE)

    def tidy(self) -> None:
        """Nothing is fetched here."""

    def _has(self, hook: str) -> bool:
        return place.status(self.host, f"{HOOKS}/{hook}") is not None

    def _with_channel(self, version: str) -> str:
        """A version with its channel: the host's own word (Flatcar's GROUP, the image's before the next one's), else the one asked for."""
        for file in ("/usr/share/flatcar/update.conf", "/etc/flatcar/update.conf"):
            if channel := _settings(place.text(self.host, file) or "").get("GROUP"):
                return f"{channel}/{version}"
        entry = self.ledger.get(OS_IMAGE)
        for known in (entry, *entry.previous) if entry else ():
            if isinstance(known.artifact, OsImage) and known.artifact.release == version:
                return known.artifact.version
        return version


def _os_release(host: Host) -> dict[str, str]:
    """The host's os-release(5)."""
    for file in ("/etc/os-release", "/usr/lib/os-release"):
        if found := place.text(host, file):
            return _settings(found)
    return {}


def _settings(text: str) -> dict[str, str]:
    """`NAME=value` lines, the values with or without quotes."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, value in pairs}


def _os_image(artifact: Artifact) -> OsImage:
    if not isinstance(artifact, OsImage):
        raise TypeError(f"{artifact.key.subject} is no OS image")
    return artifact
