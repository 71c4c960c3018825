"""What can be installed: container images, Debian packages, the OS image. Pure values, used everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["image", "deb", "os-image"]
KINDS: tuple[Kind, ...] = ("image", "deb", "os-image")
Update = Literal["rolling", "parallel", "stop-all"]


class Key(NamedTuple):
    """What names an artifact on one server. Sorted as a tuple: by kind, then by name."""

    kind: Kind
    name: str

    @property
    def subject(self) -> str:
        """The key as a step's id has it: `image/etcd`, `deb/chrony`, `os-image`."""
        return self.kind if self.kind == "os-image" else f"{self.kind}/{self.name}"

    @classmethod
    def of_subject(cls, subject: str) -> Key | None:
        """The key that `subject` names; None for the host itself, or for what is no subject."""
        if subject == "os-image":
            return OS_IMAGE
        kind, _, name = subject.partition("/")
        return next((cls(known, name) for known in KINDS if known == kind and name), None)


OS_IMAGE = Key("os-image", "os-image")


@dataclass(frozen=True, slots=True)
class Bind:
    """A host directory or file that a container sees; `source` is the host's path, `dest` the container's."""

    name: str
    source: str
    dest: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """A health check. `target` is a URL, `host:port` or a hook's name; `timeout` (seconds) is how long it may take to pass."""

    kind: Literal["http", "tcp", "hook"]
    target: str
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Container:
    """How an image is run. Text fields may hold `$(lrn)` and `$(hostname)`, replaced on the server."""

    args: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    environment_file: str | None = None
    unit: str | None = None
    update: Update = "rolling"
    after: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    health: Check | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A container image; without `container` it is only kept on the server."""

    name: str
    repository: str
    tag: str
    digest: str | None = None
    private: bool = False
    container: Container | None = None

    @property
    def key(self) -> Key:
        return Key("image", self.name)

    @property
    def version(self) -> str:
        return self.tag


@dataclass(frozen=True, slots=True)
class ReleaseDeb:
    """A Debian package from a GitHub release; `release` is the release's tag, `sha256` 64 hex digits."""

    name: str
    owner: str
    repository: str
    release: str
    sha256: str | None = None

    @property
    def key(self) -> Key:
        return Key("deb", self.name)

    @property
    def version(self) -> str:
        return self.release


@dataclass(frozen=True, slots=True)
class AptDeb:
    """A Debian package, at one exact version, from the server's own APT sources."""

    name: str
    version: str

    @property
    def key(self) -> Key:
        return Key("deb", self.name)


@dataclass(frozen=True, slots=True)
class OsImage:
    """The operating system's image: a release channel and a version in it."""

    channel: str
    release: str

    @property
    def key(self) -> Key:
        return OS_IMAGE

    @property
    def name(self) -> str:
        return OS_IMAGE.name

    @property
    def version(self) -> str:
        return f"{self.channel}/{self.release}"

    @classmethod
    def of_version(cls, version: str) -> OsImage:
        channel, _, release = version.partition("/")
        return cls(channel, release)


@dataclass(frozen=True, slots=True)
class Known:
    """An artifact of which only the version is known: recorded by Neco, or observed on the host."""

    key: Key
    version: str

    @property
    def name(self) -> str:
        return self.key.name


Artifact = Image | ReleaseDeb | AptDeb | OsImage


@dataclass(frozen=True, slots=True)
class Pin:
    """What a reference was resolved to when the rollout opened: a digest (`sha256:…`) and where it is fetched from."""

    digest: str
    address: str


def reference(artifact: Artifact) -> str | None:
    """The key of an artifact's pin in `status/pins`; None for what needs none (an APT version is exact by itself)."""
    match artifact:
        case Image():
            return f"{artifact.repository}:{artifact.tag}"
        case ReleaseDeb():
            return f"{artifact.owner}/{artifact.repository}/{artifact.name}@{artifact.release}"
        case OsImage():
            return f"os-image/{artifact.version}"
        case AptDeb():
            return None


def pinned(artifact: Artifact) -> bool:
    """Whether git itself fixes the content: a digest for an image, a checksum for a release, an APT version always."""
    match artifact:
        case Image():
            return artifact.digest is not None
        case ReleaseDeb():
            return artifact.sha256 is not None
        case AptDeb() | OsImage():
            return True
