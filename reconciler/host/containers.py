"""Container images and the containers that run from them: observe, fetch, apply, stop, restore, remove. A `Driver`; not pure.

Called by the performer, the drift check and `adopt`; the leader calls `resolve`. Images are pulled by digest only. What
runs carries labels with its digest and a hash of its definition, so that one look says whether it is what was asked for.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from reconciler.core.artifact import Artifact, Image, Key, Known, Pin
from reconciler.core.plan import OWN
from reconciler.errors import HostError, Unavailable, Unfetchable
from reconciler.ground.process import ProcessFailed, ProcessTimeout
from reconciler.host import place, units
from reconciler.host.definition import LABEL_DEFINITION, LABEL_DIGEST, LABEL_NAME, Definition, define
from reconciler.host.driver import Host, Progress, silent
from reconciler.host.ledger import Entry, Ledger
from reconciler.host.pulled import Pulled, measured
from reconciler.host.registry import Registry, repository_of
from reconciler.host.room import Room
from reconciler.host.runtime import Podman, Running, Runtime, Stored, runtime_of, storage_environment

CREDENTIALS = "/etc/reconciler/registry-auth.json"
"""The host's file with logins for registries, as `podman login --authfile` writes it."""

PULL_LIMIT = 1800.0
"""Seconds that one image may take to be pulled."""

_UNPACKED = 3
"""How much room an image takes in the store once it is unpacked, for each byte of its download."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
# A connection that broke off ("unexpected EOF") is not among these: the next attempt may bring the rest.
_CONTENT_IS_WRONG = (
    "did not match",
    "does not match",
    "invalid checksum",
    "verification failed",
    "corrupt",
    "checksum",
    "invalid tar header",
)

# What the host's own registries.conf or policy.json forbids stays forbidden.
_FORBIDDEN_HERE = ("is blocked in", "source image rejected")


class Containers:
    """The driver of one host's images. May be used by several threads for different images."""

    def __init__(
        self,
        host: Host,
        ledger: Ledger,
        *,
        runtime: Literal["auto", "podman", "docker"] = "auto",
        credentials: str = CREDENTIALS,
        proxy: str | None = None,
        pull_limit: float = PULL_LIMIT,
        stop_timeout: int = 10,
        settle: float = 1.0,
    ) -> None:
        self._host = host
        self._ledger = ledger
        self._wanted = runtime
        self._credentials = credentials
        self._proxy = proxy
        self._pull_limit = pull_limit
        self._stop_timeout = stop_timeout
        self._settle = settle
        self._pulled = Pulled(host.state_dir / "images.json")
        self._room = Room()
        self._mutex = threading.Lock()
        self._chosen: Runtime | None = None
        self._cleaned = False

    def configure(self, proxy: str | None) -> None:
        """Take over the fleet's settings as they are now."""
        self._proxy = proxy

    # --- what is asked for --------------------------------------------------------------------------------------------

    def resolve(self, artifact: Artifact) -> Pin:
        """The digest of an image's tag, and the repository that it is pulled from; a digest in git is checked to be there.

        A `private` image comes from its repository's `-secret` twin where this host has a login for it. Raises
        `Unfetchable`, `Unavailable`, or `HostError` where the login does not do.
        """
        image, registry = _image(artifact), self._registry()
        address = str(repository_of(image.repository))
        if image.private and registry.login(f"{address}-secret"):
            address = f"{address}-secret"
        return Pin(registry.digest(address, image.digest or image.tag), address)

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        """The digest, and for a container that it runs from its definition; None without a pin or a digest."""
        image = _image(artifact)
        try:
            address, digest = self._source(image, pin)
        except HostError:
            return None
        definition = define(image, address, digest, self._host)
        return definition.running if definition else digest

    # --- what is there ------------------------------------------------------------------------------------------------

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        """`sha256:… running 3f9c0a1b2c3d` for a container (or `stopped`, `restarting`), the digest for an image that is only kept.

        A name of which neither the desired state nor the ledger says more is not looked for: it is not ours.
        """
        wanted = [artifact for artifact in artifacts if artifact.key.kind == "image"]
        if not wanted:
            return {}
        runtime = self._runtime()
        with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
            pulled = pool.submit(runtime.images)
            containers, images = runtime.containers(), pulled.result()
        entries = self._ledger.entries()
        found = {}
        for artifact in wanted:
            entry = entries.get(artifact.key)
            image = artifact if isinstance(artifact, Image) else entry.artifact if entry else None
            if isinstance(image, Image):
                said = self._observed(image, entry, containers, images)
                if said:
                    found[artifact.key] = said
        return found

    def _observed(
        self,
        image: Image,
        entry: Entry | None,
        containers: Mapping[str, Running],
        images: Iterable[Stored],
    ) -> str | None:
        container = containers.get(image.name)
        if container and (image.container or _is_ours(container)):
            return self._observed_container(image, entry, container, images)
        if image.container:
            return None
        name = f"{repository_of(image.repository)}:{image.tag}"
        stored = next((stored for stored in images if name in stored.tags), None)
        return _digest_of(stored, entry, image) if stored else None

    def _observed_container(
        self, image: Image, entry: Entry | None, container: Running, images: Iterable[Stored]
    ) -> str:
        if self._is_agents(image) or not _is_ours(container):
            stored = next((stored for stored in images if stored.id == container.image_id), None)
            digest = _digest_of(stored, entry, image) if stored else "unknown"
            if self._is_agents(image):
                return self._observed_agent(image, digest, container)
            return f"{digest} {container.state}, started by another"
        digest = container.labels.get(LABEL_DIGEST, "unknown")
        said = f"{digest} {container.state} {container.labels.get(LABEL_DEFINITION, 'unknown')}"
        address = _address(entry.file) if entry and entry.digest == digest else image.repository
        definition = define(image, address, digest, self._host)
        if definition and said == definition.running and not self._unit_is_right(definition):
            return f"{said}, unit file changed"
        return said

    def _observed_agent(self, image: Image, digest: str, container: Running) -> str:
        """The agent's own container, whose unit a person wrote: only the image in it is looked at."""
        definition = define(image, image.repository, digest, self._host)
        said = f"{digest} {container.state} {definition.hash if definition else 'unknown'}"
        unit = _unit_of(image) or ""
        accepted = (
            f"{image.repository}@{digest}",
            f"{image.repository}-secret@{digest}",
            f"{image.repository}:{image.tag}",
        )
        if not any(units.names_image(self._host, unit, image.repository, name) for name in accepted):
            return f"{said}, unit file changed"
        return said

    def _is_agents(self, image: Image) -> bool:
        """Whether this is the agent itself, in a service: with the unit, and so the rights and mounts, that a person gave it."""
        return image.name == OWN and _unit_of(image) is not None and units.has_systemd(self._host)

    def _unit_is_right(self, definition: Definition) -> bool:
        if not (definition.unit and units.has_systemd(self._host)):
            return True
        return units.installed(self._host, self._unit(definition))

    # --- fetching -----------------------------------------------------------------------------------------------------

    def begin_fetching(self) -> None:
        """What was pulled so far lies there: its room is not counted any more."""
        self._room.begin()

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        """Pull the image by its digest, if it is not there.

        Raises `Unfetchable` for what is not there or is not what its digest says, `Unavailable` for a registry that
        cannot be reached or breaks off, `HostError` for a login that does not do, a full disk, and what this host forbids.
        """
        image = _image(artifact)
        address, digest = self._source(image, pin)
        source = f"{address}@{digest}"
        if self._is_agents(image):
            units.prepared(self._host, _unit_of(image) or "", image.repository, source)
        self._clean()
        if self._stored(source):
            self._pulled.add(source, image)
            return
        self._pull(image, address, digest, progress)

    def _pull(self, image: Image, address: str, digest: str, progress: Progress) -> None:
        registry, source = self._registry(), f"{address}@{digest}"
        size = registry.sizes(address, digest, self._architecture()).download
        runtime = self._runtime()
        credentials = self._credentials if registry.login(address) else None
        store = self._storage()
        # docker's daemon keeps its half downloads in its own store.
        downloads = place.shared(self._host) if isinstance(runtime, Podman) else store
        stays, passes = (store, size * _UNPACKED), (downloads, size)
        with (
            self._room.taken(f"image {source}", stays=stays, passes=passes),
            self._scratch() as scratch,
            measured(scratch, image.key.subject, size, progress),
        ):
            self._pulled.add(source, image)
            try:
                runtime.pull(source, scratch, credentials, self._proxy, self._pull_limit)
            except ProcessTimeout as error:
                raise Unavailable(f"cannot pull {source} on server {self._host.lrn}: {error}") from None
            except ProcessFailed as error:
                raise self._why(registry, address, digest, error) from None
        if not self._stored(source):
            raise HostError(f"cannot find {source} on server {self._host.lrn} after it was pulled")

    def _why(
        self, registry: Registry, address: str, digest: str, error: ProcessFailed
    ) -> HostError | Unavailable:
        """What a failed pull means. The registry itself is asked first: its status says more than the runtime's words."""
        try:
            registry.digest(address, digest)
        except (HostError, Unavailable) as answer:
            return answer
        what = f"cannot pull {address}@{digest} on server {self._host.lrn}"
        said = error.output.lower()
        if "no space left" in said:
            return HostError(f"{what}: its disk is full: {error}")
        if any(sign in said for sign in _FORBIDDEN_HERE):
            return HostError(f"{what}: this host does not allow it: {error}")
        if any(sign in said for sign in _CONTENT_IS_WRONG):
            return Unfetchable(
                f"{what}: what the registry sends is not what the digest names (truncated or damaged): {error}"
            )
        return Unavailable(f"{what}: {error}")

    # --- changing -----------------------------------------------------------------------------------------------------

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        """Make the image the one that its tag names here, and its container run as defined. Uses no network.

        Where a new container cannot be started, the one before it is started again and the error says so.
        """
        image = _image(artifact)
        address, digest = self._source(image, pin)
        source = f"{address}@{digest}"
        stored = self._stored(source)
        if stored is None:
            raise HostError(
                f"cannot use {source} on server {self._host.lrn}: it is not there, though it was fetched; "
                "the next attempt fetches it again"
            )
        definition = define(image, address, digest, self._host)
        entry = self._next_entry(Entry(image, "", digest, source))
        if definition is None:
            self._apply_kept(image, entry)
        else:
            self._apply_running(image, definition, entry)
        name = f"{repository_of(image.repository)}:{image.tag}"
        if name not in stored.tags:
            self._runtime().tag(source, name)
        self._prune(image.key)

    def _apply_kept(self, image: Image, entry: Entry) -> None:
        container = self._runtime().containers().get(image.name)
        if container and _is_ours(container):
            # It ran until now, and is only to be kept from here on.
            self._end(image.name)
        self._ledger.put(replace(entry, found=entry.digest))

    def _apply_running(self, image: Image, definition: Definition, entry: Entry) -> None:
        confirmed = image.container is not None and image.container.health is None
        before = self._ledger.get(image.key)
        if self._is_running(image, definition, entry):
            kept = before.found if before and before.digest == entry.digest else ""
            self._ledger.put(replace(entry, found=definition.running if confirmed else kept))
            return
        if not self._is_agents(image):
            self._require_paths(definition)
            self._require_ours(image, before)
        self._ledger.put(entry)
        try:
            self._switch(image, definition)
            self._require_up(definition)
        except HostError as error:
            if (again := self._start_again(image.key)) is None:
                raise
            raise HostError(f"{error}\n{again}") from None
        if confirmed:
            self._ledger.put(replace(entry, found=definition.running))

    def hand_to_systemd(self, image: Image, pin: Pin | None) -> None:
        """Have the unit of this agent's own container run the image that is asked for, and systemd restart it: that ends this process."""
        address, digest = self._source(image, pin)
        source = f"{address}@{digest}"
        if self._stored(source) is None:
            raise HostError(
                f"cannot use {source} on server {self._host.lrn}: it is not there, though it was fetched"
            )
        self._ledger.put(self._next_entry(Entry(image, "", digest, source)))
        self._runtime().tag(source, f"{repository_of(image.repository)}:{image.tag}")
        units.change_image(self._host, _unit_of(image) or "", image.repository, source, wait=False)

    def _require_up(self, definition: Definition) -> None:
        """Raise where the container ends as soon as it is started, though the runtime starts it anew again and again."""
        name = definition.name
        first = self._runtime().containers().get(name)
        time.sleep(self._settle)
        now = self._runtime().containers().get(name)
        if first is None or now is None or now.state != "running" or now.pid != first.pid:
            raise HostError(
                f"cannot run {name} on server {self._host.lrn}: it ends as soon as it is started"
                f"{self._runtime().logs(name) if now else ''}"
            )

    def _start_again(self, key: Key) -> str | None:
        """After a start that failed: the previous container again. What became of that; None where there is none."""
        older = self.previous(key)
        if older is None:
            return None
        try:
            self.restore(key)
        except HostError as error:
            return f"the previous one, {older.tag}, could not be started again either: {error}"
        return f"the previous one, {older.tag}, was started again"

    def confirm(self, key: Key) -> None:
        """Note that what runs is healthy: from now on it is what `restore` goes back to."""
        entry = self._ledger.get(key)
        if entry and not entry.found and (said := self.observe([entry.artifact]).get(key)):
            self._ledger.put(replace(entry, found=said))

    def previous(self, key: Key) -> Image | None:
        """The image that ran before and that `restore` would start; None where there is none."""
        entry = self._ledger.get(key)
        older = entry.previous[0].artifact if entry and entry.previous else None
        return older if isinstance(older, Image) and older.container else None

    def restore(self, key: Key) -> str | None:
        """Run the previous image, with its own definition, again; what `observe` says then. None where there is none.

        May be called again, after a kill too: one that went back already is where it would go back to.
        """
        entry = self._ledger.get(key)
        image = self.previous(key)
        if entry is None or image is None:
            return None
        older = entry.previous[0]
        definition = define(image, _address(older.file), older.digest, self._host)
        if definition is None:
            return None
        if not self._is_running(image, definition, older):
            # The agent would wait here for its own end.
            self._switch(image, definition, wait=False)
        name = f"{repository_of(image.repository)}:{image.tag}"
        self._runtime().tag(definition.image, name)
        older = replace(older, found=older.found or definition.running)
        self._ledger.put(replace(older, previous=(older,)))
        return definition.running

    def stop(self, key: Key) -> None:
        """Stop the container, as the phase *stop* asks; one that does not run or is not ours is left alone."""
        container = self._runtime().containers().get(key.name)
        entry = self._ledger.get(key)
        if container is None or not (entry or _is_ours(container)):
            return
        unit = _unit_name(entry)
        if unit and units.has_systemd(self._host):
            units.stop(self._host, f"{unit}.service")
        if container.state != "stopped":
            self._runtime().stop(key.name, self._stop_timeout)

    def remove(self, key: Key) -> None:
        """Take away the container and the images that the ledger has under `key`. Raises `HostError` for a container that is not in it."""
        entry = self._ledger.get(key)
        if entry is None:
            if key.name in self._runtime().containers():
                raise HostError(
                    f"cannot remove {key.subject} from server {self._host.lrn}: a container of this name is there, but not "
                    "in this host's ledger, so it was not installed from here; `reconcile adopt` takes it over, `prune: false` in "
                    "the RolloutPolicy leaves it"
                )
            return
        image = entry.artifact
        if isinstance(image, Image) and self._is_agents(image):
            # Its unit is a person's, and so is its end.
            self._ledger.drop(key)
            return
        if not isinstance(image, Image) or image.container or self._labelled(key.name):
            self._end(key.name, _unit_name(entry))
        self._forget(key.name, frozenset())
        self._ledger.drop(key)

    # --- how ----------------------------------------------------------------------------------------------------------

    def _switch(self, image: Image, definition: Definition, *, wait: bool = True) -> None:
        """Another definition under the same name: the old container goes, the new one runs. After a kill in between, `apply` does it anew.

        `wait` is for the agent itself only.
        """
        if self._is_agents(image):
            own = _unit_of(image) or ""
            units.change_image(self._host, own, image.repository, definition.image, wait=wait)
            return
        with_unit = definition.unit is not None and units.has_systemd(self._host)
        entry = self._ledger.get(Key("image", definition.name))
        for unit in {_unit_name(known) for known in (entry, *(entry.previous if entry else ()))}:
            if unit and units.has_systemd(self._host):
                if with_unit and unit == definition.unit:
                    units.stop(self._host, f"{unit}.service")
                else:
                    units.uninstall(self._host, unit)
        runtime = self._runtime()
        runtime.stop(definition.name, self._stop_timeout)
        runtime.remove(definition.name)
        if with_unit:
            with self._scratch() as scratch:
                units.install(self._host, self._unit(definition), scratch)
        else:
            runtime.create(definition)
            runtime.start(definition.name)

    def _end(self, name: str, unit: str | None = None) -> None:
        if unit and units.has_systemd(self._host):
            units.uninstall(self._host, unit)
        self._runtime().stop(name, self._stop_timeout)
        self._runtime().remove(name)

    def _unit(self, definition: Definition) -> units.Unit:
        runtime = self._runtime()
        podman = isinstance(runtime, Podman)
        if podman and units.has_quadlet(self._host):
            return units.quadlet_unit(definition, self._stop_timeout, runtime.seen)
        return units.service_unit(
            definition,
            runtime.run_command(definition),
            notify=podman,
            stop=self._stop_timeout,
            environment=storage_environment(),
        )

    def _is_running(self, image: Image, definition: Definition, entry: Entry) -> bool:
        runtime = self._runtime()
        return self._observed(image, entry, runtime.containers(), runtime.images()) == definition.running

    def _require_paths(self, definition: Definition) -> None:
        """Say what is missing before the old container is stopped, and not after."""
        wanted = [(f"bind {bind.name}", bind.source) for bind in definition.binds]
        if definition.environment_file:
            wanted.append(("environmentFile", definition.environment_file))
        for what, path in wanted:
            if place.status(self._host, path) is None:
                raise HostError(
                    f"cannot run {definition.name} on server {self._host.lrn}: {path} ({what}) is not there; "
                    "create it on the host"
                )

    def _require_ours(self, image: Image, entry: Entry | None) -> None:
        container = self._runtime().containers().get(image.name)
        if container and not _is_ours(container) and entry is None:
            raise HostError(
                f"cannot run {image.name} on server {self._host.lrn}: a container of this name is there that this "
                "agent did not start; remove it, or take it over with `reconcile adopt`"
            )

    def _labelled(self, name: str) -> bool:
        container = self._runtime().containers().get(name)
        return container is not None and _is_ours(container)

    def _next_entry(self, entry: Entry) -> Entry:
        """`entry` with what to go back to: the newest that was healthy, else the newest; one, so that two images are kept."""
        before = self._ledger.get(entry.key)
        if before is None:
            return entry
        if (before.artifact, before.digest) == (entry.artifact, entry.digest):
            return replace(entry, previous=before.previous, found=before.found)
        older = [
            known
            for known in (replace(before, previous=()), *before.previous)
            if known.digest and (known.artifact, known.digest) != (entry.artifact, entry.digest)
        ]
        chosen = next((known for known in older if known.found), older[0] if older else None)
        return replace(entry, previous=(chosen,) if chosen else ())

    def _source(self, image: Image, pin: Pin | None) -> tuple[str, str]:
        """The repository that the image is pulled from, and its digest."""
        if pin:
            if image.digest and image.digest != pin.digest:
                raise Unfetchable(
                    f"cannot use {image.repository}@{image.digest}: the rollout was opened with {pin.digest}"
                )
            return str(repository_of(pin.address or image.repository)), pin.digest
        address = str(repository_of(image.repository))
        if (entry := self._entry_of(image)) and image.digest in (None, entry.digest):
            return _address(entry.file) or address, entry.digest
        if image.digest:
            private = image.private and self._registry().login(f"{address}-secret")
            return f"{address}-secret" if private else address, image.digest
        raise HostError(
            f"cannot use {image.repository}:{image.tag} on server {self._host.lrn}: nothing says which digest it is; "
            "the rollout resolves tags when it opens"
        )

    def _entry_of(self, image: Image) -> Entry | None:
        """The ledger's entry, where it is of this repository and tag and says which digest they were."""
        entry = self._ledger.get(image.key)
        known = entry.artifact if entry else None
        same = isinstance(known, Image) and (known.repository, known.tag) == (image.repository, image.tag)
        return entry if entry and entry.digest and same else None

    def _stored(self, source: str) -> Stored | None:
        return next((stored for stored in self._runtime().images() if source in stored.sources), None)

    def tidy(self, wanted: Iterable[Key]) -> None:
        """Remove the images that were pulled for names that are neither wanted nor ours: a revision that was never applied."""
        keep = {key.name for key in (*wanted, *self._ledger.entries()) if key.kind == "image"}
        for name in sorted(self._pulled.names() - keep):
            self._forget(name, frozenset())

    def _prune(self, key: Key) -> None:
        entries = [entry for known, entry in self._ledger.entries().items() if known.kind == "image"]
        kept = {known.file for entry in entries for known in (entry, *entry.previous)}
        self._forget(key.name, frozenset(kept))

    def _forget(self, name: str, kept: frozenset[str]) -> None:
        """Remove the images that were pulled for `name`, but those in `kept` and those that a container still uses."""
        runtime = self._runtime()
        images = runtime.images()
        for source, tag in self._pulled.of(name):
            if source in kept:
                continue
            stored = next((stored for stored in images if source in stored.sources), None)
            names = [*({tag} & stored.tags), source] if stored else []
            if runtime.forget(names):
                self._pulled.drop(source)

    def _registry(self) -> Registry:
        return Registry(place.inside(self._host, self._credentials), proxy=self._proxy)

    def _runtime(self) -> Runtime:
        if self._chosen is None:
            self._chosen = runtime_of(self._host, self._wanted)
        return self._chosen

    def _storage(self) -> Path:
        found = self._runtime().storage()
        return Path(found) if self._host.exec == "direct" else place.inside(self._host, found)

    @staticmethod
    def _architecture() -> str:
        machine = platform.machine()
        return _ARCHITECTURES.get(machine, machine)

    def _clean(self) -> None:
        """Once: take away what an agent that was killed left half downloaded."""
        with self._mutex:
            if not self._cleaned:
                shutil.rmtree(place.shared(self._host) / "pull", ignore_errors=True)
                self._cleaned = True

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A directory of its own that commands on the host see too."""
        self._clean()
        directory = place.shared(self._host) / "pull"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = Path(tempfile.mkdtemp(dir=directory))
        except OSError as error:
            raise HostError(f"cannot make a directory in {directory}: {error.strerror or error}") from None
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _image(artifact: Artifact) -> Image:
    if not isinstance(artifact, Image):
        raise TypeError(f"{artifact.key.subject} is no container image")
    return artifact


def _is_ours(container: Running) -> bool:
    return container.labels.get(LABEL_NAME) == container.name


def _digest_of(stored: Stored, entry: Entry | None, image: Image) -> str:
    """The digest to show: an image has several where it came through a list of images; the one that was asked for, if it is among them."""
    for asked in (image.digest, entry.digest if entry else None):
        if asked and asked in stored.digests:
            return asked
    return min(stored.digests, default=f"local {stored.id[:12]}")


def _address(source: str) -> str:
    return source.partition("@")[0]


def _unit_name(entry: Entry | None) -> str | None:
    return _unit_of(entry.artifact) if entry else None


def _unit_of(artifact: Artifact | Known) -> str | None:
    return artifact.container.unit if isinstance(artifact, Image) and artifact.container else None
