"""The driver for Debian packages, from GitHub releases and from the server's APT sources. Called by the performer; not pure.

What was fetched for a package (`shelf`) stays until the host was looked at: a dpkg that was killed in the middle is repaired from
there. Only a package that dpkg calls wholly installed counts. Nothing is removed but what stands in the ledger, and
nothing along with it.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.core.artifact import AptDeb, Artifact, Key, Known, Pin, ReleaseDeb
from reconciler.errors import HostError, Unfetchable
from reconciler.host import place
from reconciler.host.apt import Apt, archive_name
from reconciler.host.dpkg import DATABASE, Control, Dpkg, Package, contents, control
from reconciler.host.driver import Host, Progress, silent
from reconciler.host.ledger import Entry, Ledger
from reconciler.host.shelf import Deb, Parcel, Shelf

if TYPE_CHECKING:
    from reconciler.host.releases import Releases

GITHUB = "https://api.github.com"
LOCK_TIMEOUT = 120.0
"""Seconds that dpkg's lock is waited for."""


class Packages:
    """Packages of one host. `token` and `proxy` may be set anew at any time: they come from the fleet's settings."""

    def __init__(
        self,
        host: Host,
        ledger: Ledger,
        *,
        github_api: str = GITHUB,
        token: str | None = None,
        proxy: str | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> None:
        self._host = host
        self._ledger = ledger
        self._shelf = Shelf(host)
        self._dpkg = Dpkg(host, lock_timeout)
        self._apt = Apt(self._dpkg, proxy)
        self._github_api = github_api
        self._token = token
        self._coming: dict[str, Mapping[str, tuple[int, int]]] = {}
        self._counting = threading.Lock()
        self._changing = threading.Lock()
        self._cleaning = threading.Lock()
        self._cleaned = False

    def configure(self, token: str | None, proxy: str | None) -> None:
        """Take over the fleet's settings as they are now."""
        self._token = token
        self._apt.proxy = proxy

    # --- looking -----------------------------------------------------------------------------------------------------

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        """Each package's version as dpkg has it, with its state where it is not wholly installed; one `dpkg-query` for all.

        `closely`: their files are compared with the checksums that came with them, which reads them all.
        """
        wanted = [artifact for artifact in artifacts if artifact.key.kind == "deb"]
        if not wanted:
            return {}
        packages = self._dpkg.packages()
        found = {
            artifact.key: self._text(artifact, package)
            for artifact in wanted
            if (package := packages.get(artifact.name)) is not None and package.there
        }
        if closely:
            whole = [key for key in found if packages[key.name].installed]
            found |= {
                key: f"{found[key]} with {_listed(files)} altered"
                for key, files in self._altered(whole).items()
            }
        return found

    def _altered(self, keys: list[Key]) -> dict[Key, tuple[str, ...]]:
        """The altered files of those packages that have any: all are asked about at once, and each only if that finds one."""
        entries = self._ledger.entries()
        known = {file for key in keys if key in entries for file in entries[key].altered}
        if known.issuperset(self._dpkg.altered([key.name for key in keys])):
            return {}
        return {key: files for key in keys if (files := self._altered_since(key))}

    def _altered_since(self, key: Key) -> tuple[str, ...]:
        """The files of a package that were changed after it was installed; a package may change its own while it is."""
        entry = self._ledger.get(key)
        return tuple(
            file for file in self._dpkg.altered([key.name]) if entry is None or file not in entry.altered
        )

    def _text(self, artifact: Artifact | Known, package: Package) -> str:
        # dpkg keeps no checksum of a .deb: only the ledger knows that the same version came from another file.
        if isinstance(artifact, ReleaseDeb) and artifact.sha256 and package.installed:
            entry = self._ledger.get(artifact.key)
            adopted = entry is not None and entry.found and not entry.digest
            if entry is not None and not adopted and entry.digest != _digest(artifact.sha256):
                return f"{package.text} from another file"
        return package.text

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        """The version that dpkg will have: exact for APT; for a release what its .deb says, once that is known here."""
        match artifact:
            case AptDeb():
                return artifact.version
            case ReleaseDeb():
                digest = self._checksum(artifact, pin)
                if digest and (parcel := self._shelf.parcel(artifact, digest)):
                    return parcel.version
                entry = self._ledger.get(artifact.key)
                return entry.found or None if entry and _same(entry, artifact, digest) else None
            case _:
                return None

    def resolve(self, artifact: Artifact) -> Pin | None:
        """What the leader pins a release to: its file's checksum and address. None for what needs no pin."""
        if not isinstance(artifact, ReleaseDeb):
            return None
        return self._releases().resolve(artifact, self._dpkg.architecture)

    def users(self, keys: Iterable[Key]) -> dict[Key, frozenset[Key]]:
        """Which of these packages need which: those that have to go before each, where all are to go."""
        names = {key.name: key for key in keys if key.kind == "deb"}
        return {
            key: frozenset(names[user] for user in self._dpkg.needed_by(name) if user in names)
            for name, key in names.items()
        }

    def _releases(self) -> Releases:
        # Imported here: HTTP is not needed to look, and `--dry-run` is to be quick.
        from reconciler.host.releases import Releases

        self._clean()
        return Releases(self._scratch, self._github_api, self._token, self._apt.proxy)

    @property
    def _scratch(self) -> Path:
        return self._host.state_dir / "releases"

    def _clean(self) -> None:
        """Once: take away what an agent that was killed while it looked into a release has left."""
        with self._cleaning:
            if not self._cleaned:
                shutil.rmtree(self._scratch, ignore_errors=True)
                self._cleaned = True

    # --- fetching ----------------------------------------------------------------------------------------------------

    def begin_fetching(self) -> None:
        """What was fetched so far is not about to be installed, unless it is asked for again: its room is not counted."""
        with self._counting:
            self._coming.clear()

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        """Bring the package, and through apt what it depends on, into its directory. Nothing to do where it is there.

        Raises `HostError` for one that is on hold at another version, and where it does not fit on the host with all
        else that was fetched and is not installed yet: it is said before any server has changed.
        """
        match artifact:
            case ReleaseDeb():
                self._fetch_release(artifact, pin, progress)
            case AptDeb():
                self._fetch_apt(artifact)
            case _:
                raise TypeError(f"{artifact} is no package")
        parcel = self._shelf.parcel(artifact, self._checksum(artifact, pin) or "")
        packages = self._dpkg.packages()
        package = packages.get(artifact.name)
        if parcel is not None and not _is(package, parcel.version):
            self._refuse_held(artifact, package, parcel)
            self._require_room(artifact, parcel, packages)

    def _fetch_release(self, deb: ReleaseDeb, pin: Pin | None, progress: Progress) -> None:
        releases = self._releases()
        digest = self._checksum(deb, pin)
        if digest and self._shelf.parcel(deb, digest):
            return
        found = pin or releases.resolve(deb, self._dpkg.architecture)
        directory = self._shelf.directory(deb, _digest(found.digest))
        fetched = directory / "fetched"
        releases.fetch(replace(found, digest=digest or found.digest), fetched, deb.key.subject, progress)
        said = self._check(deb, fetched)
        # apt takes a package without the network only where it lies under the name that apt would give it.
        file = fetched.rename(directory / archive_name(said.package, said.version, said.architecture))
        if self._apt.there:
            self._apt.fetch(deb.name, place.seen(self._host, file), directory)
        self._shelf.publish(Parcel(directory, file, said.version, _digest(found.digest)))

    def _check(self, deb: ReleaseDeb, file: Path) -> Control:
        """What the file says of itself, if that is what was asked for; else it is not kept."""
        try:
            found = control(file)
            wanted = (self._dpkg.architecture, "all")
            if found.package != deb.name or found.architecture not in wanted:
                raise Unfetchable(
                    f"cannot use release {deb.release} of {deb.owner}/{deb.repository} for deb {deb.name}: its file is "
                    f"package {found.package} for {found.architecture}, and not {deb.name} for {' or '.join(wanted)}; a rollout "
                    "takes the file for its leader's architecture; give a server of another one the package from an APT source"
                )
        except Unfetchable:
            file.unlink(missing_ok=True)
            raise
        return found

    def _require_room(self, deb: Deb, parcel: Parcel, packages: Mapping[str, Package]) -> None:
        """Room for what came for this package and for the others, beside the largest of those that they replace: dpkg unpacks first."""
        sizes = {}
        for file in parcel.files:
            with contextlib.suppress(Unfetchable):  # damaged since: that is told when it is to be installed
                said = control(file)
                there = packages.get(said.package)
                sizes[said.package] = (said.size, there.size if there and there.there else 0)
        with self._counting:
            self._coming[deb.name] = sizes
            all_sizes = {name: both for some in self._coming.values() for name, both in some.items()}
            needed = sum(max(0, size - old) for size, old in all_sizes.values())
            needed += max((min(both) for both in all_sizes.values()), default=0)
            others = len(self._coming) - 1
            what = f"deb {deb.name} {parcel.version}" + (f" and {others} more" if others else "")
            try:
                place.require_space(place.inside(self._host, "/usr"), needed, what)
            except HostError:
                del self._coming[deb.name]
                raise

    def _fetch_apt(self, deb: AptDeb) -> None:
        if self._shelf.parcel(deb, ""):
            return
        if not self._apt.there:
            raise HostError(
                f"cannot fetch deb {deb.name} {deb.version} on server {self._host.lrn}: the host has no apt-get; "
                "name a release instead"
            )
        directory = self._shelf.directory(deb, "")
        installed = self._dpkg.packages().get(deb.name)
        self._apt.fetch(deb.name, f"{deb.name}={deb.version}", directory)
        file = self._own_file(deb, directory)
        if file is None and not (installed and installed.installed and installed.version == deb.version):
            raise Unfetchable(f"cannot fetch deb {deb.name} {deb.version}: apt brought no such file")
        if file is None:
            # It is installed already, so apt has nothing to bring; the host is left as it is.
            return
        from reconciler.ground.download import file_sha256

        self._shelf.publish(Parcel(directory, file, deb.version, file_sha256(file)))

    def _own_file(self, deb: AptDeb, directory: Path) -> Path | None:
        for file in sorted(directory.glob("*.deb")):
            found = control(file)
            if (found.package, found.version) == (deb.name, deb.version):
                return file
        return None

    # --- changing ----------------------------------------------------------------------------------------------------

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        """Make the host have the package at its version, from what was fetched. Waits for dpkg's lock, repairs first."""
        if not isinstance(artifact, AptDeb | ReleaseDeb):
            raise TypeError(f"{artifact} is no package")
        with self._changing:
            self._apply(artifact, self._shelf.parcel(artifact, self._checksum(artifact, pin) or ""))
        with self._counting:
            self._coming.pop(artifact.name, None)

    def _apply(self, deb: Deb, parcel: Parcel | None) -> None:
        packages = self._dpkg.packages()
        if parcel is None:
            self._dpkg.repair(packages, self._cached(deb.name, None))
            self._require(deb, self._dpkg.packages().get(deb.name), None)
            return
        entry = self._ledger.get(deb.key)
        same_file = entry is not None and entry.digest == parcel.digest
        as_wanted = same_file and _is(packages.get(deb.name), parcel.version)
        altered = entry.altered if entry else ()
        if not as_wanted or self._altered_since(deb.key):
            self._refuse_held(deb, packages.get(deb.name), parcel)
            self._shelf.verify(deb, parcel)
            self._refuse_links_out(deb, parcel)
            again = _is(packages.get(deb.name), parcel.version)
            # Where the version will not show that it was done, neither may the ledger before it is.
            self._ledger.put(replace(self._entry(deb, parcel, ""), digest="" if again else parcel.digest))
            self._dpkg.repair(packages, self._cached(deb.name, parcel))
            if again or not _is(self._dpkg.packages().get(deb.name), parcel.version):
                self._install(deb, parcel, again)
            self._require(deb, self._dpkg.packages().get(deb.name), parcel)
            altered = self._dpkg.altered([deb.name])
        self._ledger.put(replace(self._entry(deb, parcel, parcel.version), altered=altered))
        self._shelf.keep_only(parcel)

    def _refuse_held(self, deb: Deb, package: Package | None, parcel: Parcel) -> None:
        if package is not None and package.held and package.installed:
            raise HostError(
                f"cannot change deb {deb.name} on server {self._host.lrn} from {package.version} to {parcel.version}: "
                f"it is on hold there; release it with `apt-mark unhold {deb.name}`, or ask for {package.version}"
            )

    def _refuse_links_out(self, deb: Deb, parcel: Parcel) -> None:
        """On a bare directory dpkg follows the links in it as this machine's: none may lead it out of there.

        Everywhere else it runs inside the host, where a link means what it means there.
        """
        if not self._dpkg.bare:
            return
        paths = {f"{DATABASE}/status"}.union(*(contents(file) for file in {parcel.file, *parcel.files}))
        for path in sorted(paths):
            if place.leads_out(self._host, path):
                raise HostError(
                    f"cannot install deb {deb.name} {parcel.version} on server {self._host.lrn}: a link on the way to "
                    f"{path} leads out of {self._host.root}; make it a relative one, or run commands with --host-exec chroot"
                )

    def _install(self, deb: Deb, parcel: Parcel, again: bool) -> None:
        """Through apt, so that dependencies come along; by dpkg alone where there is no apt, or where apt refuses to help."""
        if not self._apt.there:
            self._dpkg.install([parcel.file])
            return
        what = (
            place.seen(self._host, parcel.file)
            if isinstance(deb, ReleaseDeb)
            else f"{deb.name}={deb.version}"
        )
        try:
            self._apt.install(what, parcel.directory, reinstall=again)
        except HostError:
            # apt does nothing at all while one package is broken or the version has left the archive; dpkg does.
            packages = self._dpkg.packages()
            now = packages.get(deb.name)
            if now is not None and now.state == "half-configured":
                raise  # its own script failed: once more would only run it twice
            if self._dpkg.install(self._with_what_is_missing(parcel, packages), check=False).status:
                raise

    def _with_what_is_missing(self, parcel: Parcel, packages: Mapping[str, Package]) -> list[Path]:
        """The package's file, and those that came with it of which the host has nothing: what it has may be newer by now."""
        found = [parcel.file]
        for file in parcel.files:
            package = packages.get(control(file).package)
            if file != parcel.file and (package is None or not package.there):
                found.append(file)
        return found

    def _require(self, deb: Deb, package: Package | None, parcel: Parcel | None) -> None:
        version = parcel.version if parcel else deb.version if isinstance(deb, AptDeb) else ""
        if not _is(package, version):
            found = package.text if package and package.there else "nothing"
            hint = "" if parcel else ", and nothing was fetched for it"
            raise HostError(
                f"cannot install deb {deb.name} {version or deb.version} on server {self._host.lrn}: dpkg has {found}{hint}"
            )

    def remove(self, key: Key) -> None:
        """Remove the package, configuration files kept, if it stands in the ledger and nothing else needs it."""
        with self._changing:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        entry = self._ledger.get(key)
        packages = self._dpkg.packages()
        package = packages.get(key.name)
        if package is not None and package.there:
            self._refuse_removal(key, package, entry)
            self._dpkg.repair(packages, self._cached(key.name, None))
            self._take_away(key.name)
        if entry is not None:
            self._ledger.drop(key)
        self._shelf.drop(key.name)

    def _refuse_removal(self, key: Key, package: Package, entry: Entry | None) -> None:
        what = f"cannot remove deb {key.name} {package.version} from server {self._host.lrn}"
        if entry is None:
            raise HostError(
                f"{what}: it is not in this host's ledger, so it was not installed from here; "
                "`reconcile adopt` takes it over, `prune: false` in the RolloutPolicy leaves it"
            )
        if package.essential:
            raise HostError(f"{what}: the package is essential, and the system may not work without it")
        if package.held:
            raise HostError(f"{what}: it is on hold there; release it with `apt-mark unhold {key.name}`")
        if users := self._dpkg.needed_by(key.name):
            raise HostError(f"{what}: {', '.join(users)} need{'s' if len(users) == 1 else ''} it")

    def _take_away(self, name: str) -> None:
        now = self._dpkg.packages().get(name)
        if now is None or not now.there:
            return
        if now.broken:
            self._dpkg.remove_broken(name)
        else:
            self._dpkg.remove(name)
        left = self._dpkg.packages().get(name)
        if left is not None and left.there:
            raise HostError(
                f"cannot remove deb {name} from server {self._host.lrn}: dpkg still has {left.text}"
            )

    # --- what was fetched --------------------------------------------------------------------------------------------

    def _checksum(self, artifact: Artifact, pin: Pin | None) -> str | None:
        """The checksum that a release must have, in hex: git's or the rollout's; where neither says it, that of what is here."""
        if not isinstance(artifact, ReleaseDeb):
            return None
        if wanted := _wanted(artifact, pin):
            return wanted
        entry = self._ledger.get(artifact.key)
        return entry.digest or None if entry and _same(entry, artifact, None) else None

    def _cached(self, name: str, parcel: Parcel | None) -> dict[str, Path]:
        """The .deb files that a broken package can be installed from: what came for `name`, and what the ledger's packages have."""
        found = {
            key.name: Path(entry.file)
            for key, entry in self._ledger.entries().items()
            if key.kind == "deb" and entry.file and Path(entry.file).is_file()
        }
        if parcel:
            for file in parcel.files:
                with contextlib.suppress(Unfetchable):
                    found[control(file).package] = file
            found[name] = parcel.file
        return found

    def _entry(self, deb: Deb, parcel: Parcel, found: str) -> Entry:
        return Entry(deb, found=found, digest=parcel.digest, file=str(parcel.file))

    def tidy(self, wanted: Iterable[Key]) -> None:
        """Throw away what was fetched for packages that are neither wanted nor ours: a revision that was never applied."""
        self._shelf.tidy(key.name for key in (*wanted, *self._ledger.entries()) if key.kind == "deb")

    def adopt(self, artifact: Artifact | Known) -> bool:
        """Enter a package that is on the host already in the ledger; False where it is not wholly there."""
        package = self._dpkg.packages().get(artifact.name)
        if package is None or not package.installed:
            return False
        if not self._ledger.has(artifact.key):
            altered = self._dpkg.altered([artifact.name])
            self._ledger.put(Entry(artifact, found=package.version, origin="adopted", altered=altered))
        return True


def _listed(files: tuple[str, ...]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _is(package: Package | None, version: str) -> bool:
    return package is not None and package.installed and package.version == version


def _digest(text: str) -> str:
    return text.removeprefix("sha256:").lower()


def _wanted(artifact: ReleaseDeb, pin: Pin | None) -> str | None:
    """The checksum that the package must have, in hex; None where neither git nor the rollout has fixed it."""
    asked = _digest(artifact.sha256) if artifact.sha256 else None
    fixed = _digest(pin.digest) if pin else None
    if asked and fixed and asked != fixed:
        raise Unfetchable(
            f"cannot use deb {artifact.name}, release {artifact.release}: the desired state says SHA-256 {asked}, and the "
            f"rollout pinned it to {fixed}"
        )
    return asked or fixed


def _same(entry: Entry, deb: ReleaseDeb, digest: str | None) -> bool:
    """Whether the ledger's entry is of this very release."""
    known = entry.artifact
    if not isinstance(known, ReleaseDeb) or replace(known, sha256=None) != replace(deb, sha256=None):
        return False
    return digest is None or entry.digest == digest
