"""The same driver on docker's command line. Its daemon is podman's service, which speaks docker's API: no dockerd runs here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.core.artifact import Container, Image
from reconciler.errors import HostError
from reconciler.host.containers import Containers
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from tests.podman import docker_daemon, podman_below
from tests.registry import Registry, registry

pytestmark = [
    pytest.mark.needs("docker", "podman", "runc", "docker-registry", "busybox"),
    pytest.mark.skipif(os.getuid() != 0, reason="a server's podman is root's"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        running.push("web", "1")
        running.push("web", "2")
        yield running


@pytest.fixture
def containers(tmp_path: Path, images: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Containers]:
    with (
        podman_below(tmp_path / "podman") as environment,
        docker_daemon(environment, tmp_path, images.address) as address,
    ):
        monkeypatch.setenv("DOCKER_HOST", address)
        host = Host(state_dir=tmp_path / "state")
        yield Containers(host, Ledger.open(host), runtime="docker", stop_timeout=1, settle=0.2)


def test_from_tag_to_container_to_nothing_with_docker(containers: Containers, images: Registry) -> None:
    def image(tag: str) -> Image:
        script = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
        return Image("web", images.repository("web"), tag, container=Container(args=("sh", "-c", script)))

    pins = {}
    for tag in ("1", "2"):
        pins[tag] = containers.resolve(image(tag))
        containers.fetch(image(tag), pins[tag])
        containers.apply(image(tag), pins[tag])
        containers.apply(image(tag), pins[tag])
        found = containers.observe([image(tag)])
        assert found == {image(tag).key: containers.target(image(tag), pins[tag])}
    containers.stop(image("2").key)
    assert " stopped " in containers.observe([image("2")])[image("2").key]
    containers.restore(image("2").key)
    assert containers.observe([image("1")]) == {image("1").key: containers.target(image("1"), pins["1"])}
    containers.remove(image("1").key)
    containers.remove(image("1").key)
    assert containers.observe([image("1")]) == {}


def test_an_image_that_is_only_kept_with_docker(containers: Containers, images: Registry) -> None:
    image = Image("kept", images.repository("web"), "1")
    pin = containers.resolve(image)
    containers.fetch(image, pin)
    containers.apply(image, pin)
    assert containers.observe([image]) == {image.key: pin.digest}


def test_a_daemon_that_is_not_there_is_an_error_and_not_an_empty_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    host = Host(state_dir=tmp_path / "state")
    containers = Containers(host, Ledger.open(host), runtime="docker")
    with pytest.raises(HostError, match="docker ps"):
        containers.observe([Image("web", "registry.example/web", "1")])
