"""What a rehearsed fleet has and is given: one image on each server, at another tag in each revision. Used by `leader` and `servers`."""

from __future__ import annotations

from functools import lru_cache

from reconciler.agent.follow import Follower, Following
from reconciler.core.artifact import Artifact, Image, Pin, reference
from reconciler.core.state import ArtifactSet, Desired, Detail, Installed, Machine, Revision
from reconciler.store.keys import Keys
from reconciler.store.serving import Found, recording
from reconciler.store.transaction import Operation, put
from reconciler.wire.records import encode_machine

DIGEST = f"sha256:{7:064x}"


@lru_cache(maxsize=64)
def revision(number: int) -> Desired:
    """The desired state number `number`, from 0: its id is a commit's in form."""
    image = Image("app", "registry.example.invalid/app", f"1.{number}.0", DIGEST)
    return Desired(Revision(f"{number:040x}"), (ArtifactSet((image,)),))


def machine_id(lrn: int) -> str:
    return f"{lrn:032x}"


def first_records(keys: Keys, lrn: int) -> list[Operation]:
    """What etcd says of a server that is registered and has revision 0."""
    artifacts = revision(0).artifacts_of(lrn).values()
    has = tuple(Installed(one.key, one.version, _detail(one)) for one in artifacts)
    registered = encode_machine(Machine(lrn, machine_id(lrn)))
    return [
        put(keys.server(lrn), ""),
        put(keys.machine(lrn), registered),
        *recording(keys, lrn, Found(has)),
    ]


def _detail(artifact: Artifact) -> Detail:
    return Detail(artifact, artifact.version, "", "2026-01-01T00:00:00Z")


def pin(artifact: Artifact) -> Pin | None:
    return Pin(DIGEST, "registry.example.invalid") if reference(artifact) else None


class GivenRevisions(Follower):
    """Git without git: the newest revision is the one that it was told, and any other is known too."""

    def __init__(self) -> None:
        self.state = Following(newest=revision(0))

    def push(self, number: int) -> None:
        self.state = Following(newest=revision(number))

    def look(self) -> bool:
        return False

    def at(self, id: str) -> Desired:
        return revision(int(id, 16))

    def enter(self, id: str) -> None:
        """Every host goes forward here."""
