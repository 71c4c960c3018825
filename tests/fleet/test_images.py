"""Images on whole agents, with a real registry and a podman of each server's own: one content for all, or nothing. Promises 11 and 16; fault 32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.fleet import Servers
from tests.podman import podman
from tests.registry import Registry, registry

pytestmark = pytest.mark.needs("podman", "runc", "docker-registry", "busybox")


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


def add_with_podman(servers: Servers, *lrns: int) -> None:
    """Add these servers, each with a podman."""
    for lrn in lrns:
        servers.give_podman(servers.add(lrn))


def kept(images: Registry, *names: str) -> dict[str, object]:
    """Images that are only kept, by name and tag (`web:1`)."""
    return {
        "images": [
            {"name": name, "repository": images.repository(name), "tag": tag}
            for name, _, tag in (each.partition(":") for each in names)
        ]
    }


def digests(servers: Servers, name: str) -> dict[int, set[str]]:
    """What each server's podman has of a repository."""
    found = {}
    for lrn, machine in servers.machines.items():
        listed = podman(
            machine.environment, "images", "--digests", "--format", "{{.Repository}} {{.Digest}}", check=True
        )
        found[lrn] = {line.split()[1] for line in listed.splitlines() if line.split()[0].endswith(f"/{name}")}
    return found


def test_a_tag_that_is_moved_during_a_rollout_is_the_same_content_for_all(
    servers: Servers, images: Registry
) -> None:
    """Also for a server that comes later: what some server has keeps its pin."""
    first = images.push("web", "1", "as the leader saw it")
    add_with_podman(servers, 0, 1, 2)
    servers.start()
    servers.wait_for_registered(0, 1, 2)
    late = next(machine for machine in servers.machines.values() if machine is not servers.leader())
    late.kill()
    revision = servers.push(sets=[kept(images, "web:1")])
    others = [lrn for lrn in range(3) if lrn != late.lrn]

    def fetched() -> bool:
        statuses = servers.view().statuses
        return all((status := statuses.get(lrn)) and status.step == 2 for lrn in others)

    servers.wait("the others have fetched it", fetched)
    moved = images.push("web", "1", "as somebody pushed it meanwhile")
    assert moved != first
    servers.start(late)
    servers.wait_for_end(revision)
    assert digests(servers, "web") == {lrn: {first} for lrn in range(3)}
    pins = {pin.digest for pin in servers.view().pins.values()}
    assert pins == {first}

    add_with_podman(servers, 3)
    servers.start(3)
    servers.wait("server 3 is taken along", lambda: servers.recorded(3).get("image/web") == "1")
    assert digests(servers, "web") == {lrn: {first} for lrn in range(4)}


def test_a_registry_that_is_away_holds_up_only_what_it_is_needed_for(
    servers: Servers, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as running:
        images = running.enter_context(registry(tmp_path / "registry"))
        images.push("web", "1")
        add_with_podman(servers, 0, 1)
        servers.start()
        servers.wait_for_registered(0, 1)
        servers.wait_for_end(servers.push({"tool": "1.0"}, sets=[kept(images, "web:1")]))
        running.close()
        servers.wait_for_end(servers.push({"tool": "2.0"}, sets=[kept(images, "web:1")]))
        servers.has("tool", "2.0")
        needed = servers.push({"tool": "2.0"}, sets=[kept(images, "web:2")])
        refused = f"cannot open a rollout of {needed[:12]}"
        servers.wait("the leader says so", lambda: refused in servers.leader().log)
        rollout = servers.view().rollout
        assert rollout and rollout.version != needed and rollout.outcome == "complete"
        # The newest revision does not need it any more.
        servers.wait_for_end(servers.push({"tool": "3.0"}))
        servers.has("tool", "3.0")


def test_one_server_cannot_fetch_an_image_and_nobody_has_changed_anything(
    servers: Servers, images: Registry, tmp_path: Path
) -> None:
    """The two others fetch it, and install nothing of that revision; a fixed one goes through by itself."""
    images.push("web", "1")
    blocked = tmp_path / "registries.conf"
    blocked.write_text(f'[[registry]]\nlocation = "{images.repository("web")}"\nblocked = true\n')
    add_with_podman(servers, 0, 1, 2)
    poor = servers.machines[2]
    poor.environment = {**poor.environment, "CONTAINERS_REGISTRIES_CONF": str(blocked)}
    servers.start()
    servers.wait_for_registered(0, 1, 2)
    failed = servers.push({"tool": "1.0"}, sets=[kept(images, "web:1")])
    stopped = servers.wait_for_stop(failed)
    assert stopped.stopped_by == "leader" and "server 2" in stopped.message
    assert "image/web" in stopped.message and "blocked" in stopped.message
    servers.has_not("tool")
    assert not any(servers.recorded(lrn) for lrn in servers.machines)
    begun = [id for steps in servers.view().steps.values() for id in steps]
    assert begun and all(id.startswith("prefetch:") for id in begun)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    servers.has("tool", "1.0")
