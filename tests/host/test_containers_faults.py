"""Pulling from a registry that misbehaves, onto a disk that is full, by an agent that is killed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from reconciler.agent.hands import Did, Hands
from reconciler.agent.perform.fetch import TRIES, fetch
from reconciler.core.artifact import Container, Image, Key, reference
from reconciler.core.change import Change
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server
from reconciler.errors import HostError, ReconcilerError, Unavailable, Unfetchable
from reconciler.ground.process import ProcessFailed
from reconciler.host.containers import Containers
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.policy import EVERYTHING
from reconciler.host.runtime import Podman
from tests.http_proxy import http_proxy
from tests.podman import podman, podman_below
from tests.registry import Registry, registry
from tests.registry_proxy import Fault, Proxy, proxy

pytestmark = [
    pytest.mark.needs("podman", "runc", "docker-registry", "busybox"),
    pytest.mark.skipif(os.getuid() != 0, reason="a server's podman is root's"),
]


@dataclass
class Bench:
    """A server, a registry, and the proxy in front of it that misbehaves."""

    host: Host
    containers: Containers
    environment: dict[str, str]
    images: Registry
    proxy: Proxy

    def image(self, tag: str = "1", private: bool = False) -> Image:
        return Image("web", self.proxy.repository("web"), tag, private=private)

    def leftovers(self) -> list[str]:
        return [str(path) for path in (self.host.state_dir / "pull").rglob("*")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        running.push("web", "1", size=200_000)
        running.push("web-secret", "1", "the secret one")
        yield running


@pytest.fixture
def bench(tmp_path: Path, images: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with podman_below(tmp_path / "podman") as environment, proxy(images.address) as faults:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        host = Host(state_dir=tmp_path / "state")
        containers = Containers(
            host,
            Ledger.open(host),
            credentials=str(tmp_path / "auth.json"),
            pull_limit=60,
            stop_timeout=1,
            settle=0.2,
        )
        yield Bench(host, containers, dict(environment), images, faults)


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "where", "error", "says"),
    [
        ("500", "/blobs/", Unavailable, "500"),
        ("500", "/manifests/", Unavailable, "answered 500"),
        ("429", "/manifests/", Unavailable, "rate limit"),
        ("cut off", "/blobs/", Unavailable, "EOF"),
        ("truncate", "/blobs/", Unfetchable, "not what the digest names"),
        ("damage", "/blobs/", Unfetchable, "not what the digest names"),
        ("damage", "/manifests/", Unfetchable, "another digest"),
    ],
)
def test_what_a_fault_of_the_registry_means(
    bench: Bench, fault: Fault, where: str, error: type[ReconcilerError], says: str
) -> None:
    image = bench.image()
    pin = bench.containers.resolve(image)
    bench.proxy.fault, bench.proxy.where = fault, where
    with pytest.raises(error, match=says):
        bench.containers.fetch(image, pin)
    assert bench.leftovers() == []
    bench.proxy.fault = "none"
    bench.containers.fetch(image, pin)
    bench.containers.apply(image, pin)
    assert bench.containers.observe([image]) == {image.key: pin.digest}


def _step(image: Image) -> Step:
    return Step(
        "prefetch", image.key, "fetch", change=Change(image.key, "install", None, image, "not_recorded")
    )


def _fetched(bench: Bench, image: Image) -> Did:
    """What the *fetch* step comes to, with pauses that are short."""
    ledger, pin = Ledger.open(bench.host), bench.containers.resolve(image)
    hands = Hands(bench.host, {"image": bench.containers}, bench.containers, ledger, EVERYTHING)
    server = Server(0, "m", "b", pins={reference(image) or "": pin})
    return fetch(_step(image), Plan(0, "default", 1), server, hands, pause=0.05)


def test_a_fault_that_passes_is_waited_out(bench: Bench) -> None:
    image = bench.image()
    bench.proxy.fault, bench.proxy.where, bench.proxy.times = "500", "/manifests/sha256:", TRIES - 1
    _fetched(bench, image)
    assert bench.proxy.times == 0


def test_a_fault_that_stays_is_given_up_after_so_many_tries(bench: Bench) -> None:
    bench.proxy.fault, bench.proxy.where, bench.proxy.times = "500", "/manifests/sha256:", TRIES
    with pytest.raises(HostError, match=f"answered 500\ngiven up after {TRIES} tries"):
        _fetched(bench, bench.image())
    assert bench.proxy.times == 0


def test_what_this_host_forbids_is_not_tried_again(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "registries.conf"
    blocked.write_text(f'[[registry]]\nlocation = "{bench.proxy.repository("web")}"\nblocked = true\n')
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(blocked))
    with pytest.raises(HostError, match=r"(?s)this host does not allow it.*is blocked"):
        _fetched(bench, bench.image())
    assert "try 1" not in caplog.text


def test_a_registry_that_hangs_is_given_up_at_the_deadline(bench: Bench, tmp_path: Path) -> None:
    image = bench.image()
    pin = bench.containers.resolve(image)
    hasty = Containers(bench.host, Ledger.open(bench.host), pull_limit=2)
    bench.proxy.fault = "hang"
    started = time.monotonic()
    with pytest.raises(Unavailable, match="did not end within"):
        hasty.fetch(image, pin)
    assert time.monotonic() - started < 10
    assert bench.leftovers() == []


def test_the_old_container_runs_on_while_the_registry_fails(bench: Bench) -> None:
    running = replace(bench.image(), container=Container(args=("sleep", "1000")))
    pin = bench.containers.resolve(running)
    bench.containers.fetch(running, pin)
    bench.containers.apply(running, pin)
    bench.images.push("web", "2")
    newer = replace(running, tag="2")
    pin_newer = bench.containers.resolve(newer)
    bench.proxy.fault = "damage"
    with pytest.raises(Unfetchable):
        bench.containers.fetch(newer, pin_newer)
    with pytest.raises(HostError, match="is not there"):
        bench.containers.apply(newer, pin_newer)
    assert bench.containers.observe([running])[running.key] == bench.containers.target(running, pin)


# --- logins -----------------------------------------------------------------------------------------------------------


def _log_in(tmp_path: Path, bench: Bench, login: str) -> None:
    coded = base64.b64encode(login.encode()).decode()
    document = {"auths": {bench.proxy.address: {"auth": coded}}}
    (tmp_path / "auth.json").write_text(json.dumps(document))


def test_an_anonymous_token_is_fetched_where_the_registry_wants_one(bench: Bench) -> None:
    bench.proxy.scheme = "bearer"
    image = bench.image()
    bench.containers.fetch(image, bench.containers.resolve(image))
    assert any(asked.startswith("GET /token") for asked in bench.proxy.asked)


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_a_private_image_is_pulled_with_the_login_from_the_hosts_file(
    bench: Bench, tmp_path: Path, scheme: str
) -> None:
    bench.proxy.scheme, bench.proxy.login = ("basic" if scheme == "basic" else "bearer"), "robot:sesame"
    _log_in(tmp_path, bench, "robot:sesame")
    image = bench.image()
    bench.containers.fetch(image, bench.containers.resolve(image))


def test_without_a_login_the_message_names_the_file(bench: Bench, tmp_path: Path) -> None:
    bench.proxy.scheme, bench.proxy.login = "basic", "robot:sesame"
    with pytest.raises(HostError, match=r"auth\.json") as caught:
        bench.containers.resolve(bench.image())
    assert not isinstance(caught.value, Unfetchable)


def test_a_wrong_login_is_told_and_not_shown(bench: Bench, tmp_path: Path) -> None:
    bench.proxy.scheme, bench.proxy.login = "bearer", "robot:sesame"
    _log_in(tmp_path, bench, "robot:wrong-word")
    with pytest.raises(HostError, match="may not read it") as caught:
        bench.containers.resolve(bench.image())
    assert "wrong-word" not in str(caught.value)


def test_a_damaged_credentials_file_is_told_and_not_shown(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "auth.json").write_text(
        f'{{"auths": {{"{bench.proxy.address}": {{"auth": "not base64 secret"}}}}}}'
    )
    with pytest.raises(HostError, match="log in again") as caught:
        bench.containers.resolve(bench.image())
    assert "secret" not in str(caught.value)


def test_the_secret_twin_is_pulled_where_there_is_a_login(bench: Bench, tmp_path: Path) -> None:
    plain = bench.containers.resolve(bench.image(private=True))
    assert plain.address == bench.proxy.repository("web")
    _log_in(tmp_path, bench, "robot:sesame")
    image = bench.image(private=True)
    secret = bench.containers.resolve(image)
    assert secret.address == bench.proxy.repository("web-secret")
    bench.containers.fetch(image, secret)
    bench.containers.apply(image, secret)
    assert bench.containers.observe([image]) == {image.key: secret.digest}
    assert f"{image.repository}:1" in podman(
        bench.environment, "images", "--format", "{{.Repository}}:{{.Tag}}"
    )


@pytest.mark.parametrize("said_by", ["the fleet", "the environment"])
def test_podman_pulls_through_the_proxy(bench: Bench, monkeypatch: pytest.MonkeyPatch, said_by: str) -> None:
    with http_proxy() as relay:
        if said_by == "the environment":
            monkeypatch.setenv("HTTPS_PROXY", relay.url)
        scratch = bench.host.state_dir / "pull"
        scratch.mkdir(parents=True)
        source = f"198.18.0.1:5000/web@sha256:{'0' * 64}"
        with pytest.raises(ProcessFailed):
            Podman(bench.host).pull(source, scratch, None, relay.url if said_by == "the fleet" else None, 30)
        assert "CONNECT 198.18.0.1:5000" in relay.asked


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_before_anything_is_pulled(tmp_path: Path, images: Registry) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        with podman_below(tmp_path / "podman") as environment, pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            storage = tmp_path / "podman" / "storage.conf"
            storage.write_text(storage.read_text().replace(f"{tmp_path}/podman/graph", f"{small}/graph"))
            host = Host(state_dir=tmp_path / "state")
            containers = Containers(host, Ledger.open(host))
            image = Image("web", images.repository("web"), "1")
            with pytest.raises(HostError, match="MB are free; make room"):
                containers.fetch(image, containers.resolve(image))
            assert containers.observe([image]) == {}
    finally:
        subprocess.run(["umount", "-l", small], check=False)


# --- kill -9 ----------------------------------------------------------------------------------------------------------

_AGENT = """
import pickle, sys
from reconciler.host.containers import Containers
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.policy import EVERYTHING
from pathlib import Path
host = Host(state_dir=Path(sys.argv[1]))
containers = Containers(host, Ledger.open(host), stop_timeout=1, settle=0.2)
image, pin = pickle.loads(bytes.fromhex(sys.argv[2]))
containers.fetch(image, pin)
containers.apply(image, pin)
print("done", flush=True)
"""


def _tree(pid: int) -> list[int]:
    """A process and all that it started and still has below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        below = [int(word) for word in children.read_text().split()]
    except OSError:
        below = []
    return [pid, *(found for child in below for found in _tree(child))]


def _kill_in_the_middle(bench: Bench, image: Image, after: float, whole_tree: bool) -> None:
    pin = bench.containers.resolve(image)
    child = subprocess.Popen(
        [sys.executable, "-c", _AGENT, bench.host.state_dir, pickle.dumps((image, pin)).hex()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after)
    for pid in _tree(child.pid) if whole_tree else [child.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


def _killed_again_and_again(bench: Bench, times: int, seed: int) -> None:
    chance = random.Random(seed)
    tags = []
    for number in range(times):
        tag = f"k{number}"
        bench.images.push("web", tag, size=50_000)
        tags.append(tag)
        image = replace(bench.image(tag), container=Container(args=("sleep", "1000")))
        _kill_in_the_middle(bench, image, chance.uniform(0.2, 1.6), whole_tree=bool(number % 2))
        containers = Containers(bench.host, Ledger.open(bench.host), stop_timeout=1, settle=0.2)
        pin = containers.resolve(image)
        containers.fetch(image, pin)
        containers.apply(image, pin)
        assert containers.observe([image])[image.key] == containers.target(image, pin)
        assert bench.leftovers() == []
        running = podman(bench.environment, "ps", "--all", "--format", "{{.Names}}", check=True)
        assert running == "web\n"
        names = podman(bench.environment, "images", "--format", "{{.Tag}}", check=True).split()
        assert len([name for name in names if name in tags]) <= 2


def test_killed_at_any_moment_a_new_run_converges(bench: Bench) -> None:
    _killed_again_and_again(bench, 5, seed=random.SystemRandom().randrange(1 << 30))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_fifty_times_a_new_run_converges(bench: Bench) -> None:
    _killed_again_and_again(bench, 50, seed=random.SystemRandom().randrange(1 << 30))


def test_what_a_killed_pull_left_is_cleaned_up(bench: Bench) -> None:
    left = bench.host.state_dir / "pull" / "of-a-killed-agent"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x" * 1000)
    image = bench.image()
    bench.containers.fetch(image, bench.containers.resolve(image))
    assert bench.leftovers() == []


def test_a_damaged_list_of_pulled_images_is_named_and_kept(bench: Bench) -> None:
    (bench.host.state_dir).mkdir()
    listed = bench.host.state_dir / "images.json"
    listed.write_text("{")
    image = bench.image()
    with pytest.raises(ReconcilerError, match=r"images\.json"):
        bench.containers.fetch(image, bench.containers.resolve(image))
    assert listed.read_text() == "{"
    assert Key("image", "web") not in bench.containers.observe([image])
