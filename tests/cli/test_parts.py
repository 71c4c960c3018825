"""One server's parts, and what the fleet's settings change in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.cli.options import Options
from reconciler.cli.parts import server_parts
from reconciler.core.artifact import Image, OsImage, ReleaseDeb
from reconciler.core.state import Settings
from reconciler.errors import ReconcilerError
from reconciler.host.driver import Host
from tests.http_proxy import HttpProxy, http_proxy

RELEASE = ReleaseDeb("tool", "acme", "tool", "v1")
IMAGE = Image("web", "198.18.0.1:5000/web", "1")
OS = OsImage("stable", "3139.2.1")


def test_what_no_rollout_needs_any_more_is_thrown_away(tmp_path: Path) -> None:
    """Of each kind. Images have a test of their own: they want a podman."""
    shelf, incoming = tmp_path / "state/debs/tool", tmp_path / "var/lib/netboot/.incoming"
    for place in (shelf, incoming):
        place.mkdir(parents=True)
    parts = server_parts(Options(), Host(root=tmp_path, state_dir=tmp_path / "state"))
    parts.hands.tidy([])
    assert not shelf.exists()
    assert not incoming.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="a server's drivers are root's")
def test_each_kind_of_artifact_is_fetched_through_the_fleets_proxy(tmp_path: Path) -> None:
    """And through another one as soon as the setting says so."""
    with http_proxy() as proxy, http_proxy() as another:
        options = Options(github_api="http://198.18.0.1/api", flatcar_url="http://198.18.0.1/os")
        parts = server_parts(options, Host(state_dir=tmp_path / "state"))

        def asked(where: HttpProxy) -> list[str]:
            parts.configure(Settings(proxy=where.url))
            for artifact in (RELEASE, IMAGE, OS):
                with pytest.raises(ReconcilerError):
                    parts.resolvers[artifact.key.kind].resolve(artifact)
            return where.asked

        wanted = [
            "GET http://198.18.0.1/api/repos/acme/tool/releases/tags/v1",
            "CONNECT 198.18.0.1:5000",
            "GET http://198.18.0.1/os/stable/3139.2.1/flatcar_production_pxe.vmlinuz.DIGESTS",
        ]
        assert asked(proxy) == wanted
        assert asked(another) == wanted
        assert proxy.asked == wanted
