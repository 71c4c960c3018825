"""Whose fault it is that a reference cannot be resolved: the revision's, the leader's, or nobody's for now. With a real release server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.agent.resolve import resolve
from reconciler.core.artifact import Artifact, ReleaseDeb, reference
from reconciler.core.pins import Wanted
from reconciler.errors import HostError, ReconcilerError, Unavailable, Unfetchable
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.packages import Packages
from tests.debs import DebSpec, bare_host, build
from tests.release_server import ReleaseServer

pytestmark = pytest.mark.needs("dpkg", "dpkg-deb")
TOOL, GONE = (ReleaseDeb(name, "acme", name, "v1.0") for name in ("tool", "gone"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReleaseServer]:
    with ReleaseServer(tmp_path / "releases").serving() as running:
        running.add("acme", "tool", "v1.0", build(DebSpec("tool", "1.0"), tmp_path))
        yield running


def resolved(server: ReleaseServer, host: Host, *artifacts: Artifact) -> ReconcilerError:
    packages = Packages(host, Ledger.open(host), github_api=server.url)
    wanted = Wanted({}, {reference(artifact) or "": artifact for artifact in artifacts}, {})
    with pytest.raises(ReconcilerError, match="cannot open a rollout of aaaaaaaaaaaa") as caught:
        resolve(wanted, "a" * 40, {"deb": packages})
    return caught.value


def test_what_does_not_exist_speaks_against_the_revision(server: ReleaseServer, tmp_path: Path) -> None:
    assert type(resolved(server, bare_host(tmp_path), TOOL, GONE)) is Unfetchable


def test_what_cannot_be_reached_speaks_against_nobody(server: ReleaseServer, tmp_path: Path) -> None:
    server.fail("/", "500")
    assert type(resolved(server, bare_host(tmp_path), TOOL)) is Unavailable


def test_what_the_leader_cannot_do_is_its_own_trouble(server: ReleaseServer, tmp_path: Path) -> None:
    """Its state directory cannot be written to, as on a full disk: other servers could, and the revision is good."""
    host = bare_host(tmp_path)
    host.state_dir.mkdir(parents=True, exist_ok=True)
    (host.state_dir / "releases").symlink_to("/proc/nowhere")
    trouble = resolved(server, host, TOOL)
    assert isinstance(trouble, HostError) and not isinstance(trouble, Unfetchable)
    assert "the host that leads cannot look for itself" in str(trouble)
    assert "The revision is not refused for that" in str(trouble) and "/releases" in str(trouble)
    # What is wrong with the revision beside it is said too, and refuses it.
    assert type(resolved(server, host, TOOL, GONE)) is Unfetchable
