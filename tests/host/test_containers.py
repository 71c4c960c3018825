"""Images and containers on a real podman, from a real registry, asked by real requests."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from reconciler.core.artifact import Bind, Check, Container, Image, Key, Known, Pin
from reconciler.errors import HostError, Unavailable, Unfetchable
from reconciler.host.containers import Containers
from reconciler.host.driver import Host
from reconciler.host.ledger import Entry, Ledger
from tests.podman import podman, podman_below
from tests.ports import free_port
from tests.registry import Registry, registry

pytestmark = [
    pytest.mark.needs("podman", "runc", "docker-registry", "busybox"),
    pytest.mark.skipif(os.getuid() != 0, reason="a server's podman is root's"),
]

WEB = Key("image", "web")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        for tag in ("1", "2", "3"):
            running.push("web", tag)
        yield running


@dataclass
class Server:
    """One server of a test: its podman, its driver, and the port that its web server has."""

    host: Host
    containers: Containers
    ledger: Ledger
    environment: dict[str, str]
    images: Registry
    port: int

    def web(self, tag: str, **changes: object) -> Image:
        """A web server that answers with its image's tag."""
        script = f"trap 'exit 0' TERM; httpd -p {self.port} -h /www; while :; do sleep 1000 & wait $!; done"
        container = Container(args=("sh", "-c", script))
        return Image(
            "web",
            self.images.repository("web"),
            tag,
            container=replace(container, **changes),  # type: ignore[arg-type]  # the fields of Container
        )

    def install(self, image: Image) -> Pin:
        """As the performer does it: resolve, fetch, apply, and the host is as asked."""
        pin = self.containers.resolve(image)
        self.containers.fetch(image, pin)
        self.containers.apply(image, pin)
        assert self.observed(image) == self.containers.target(image, pin)
        return pin

    def observed(self, image: Image) -> str | None:
        return self.containers.observe([image]).get(image.key)

    def answer(self) -> str:
        """What the web server says, as soon as it says something."""
        deadline = time.monotonic() + 10
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2) as reply:
                    text: str = reply.read().decode()
                    return text
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def podman(self, *argv: str) -> str:
        return podman(self.environment, *argv, check=True)


@pytest.fixture
def server(tmp_path: Path, images: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with podman_below(tmp_path / "podman") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        host = Host(state_dir=tmp_path / "state", lrn=7, hostname="boot-7")
        ledger = Ledger.open(host)
        containers = Containers(host, ledger, stop_timeout=2, settle=0.2)
        yield Server(host, containers, ledger, dict(environment), images, free_port())


# --- from tag to container --------------------------------------------------------------------------------------------


def test_a_tag_becomes_a_container_that_answers(server: Server) -> None:
    image = server.web("1")
    progress: list[tuple[str, int, int | None]] = []
    pin = server.containers.resolve(image)
    assert server.observed(image) is None
    server.containers.fetch(image, pin, lambda *told: progress.append(told))
    server.containers.apply(image, pin)
    assert server.answer() == "1"
    assert server.observed(image) == server.containers.target(image, pin)
    assert progress[0][:2] == ("image/web", 0)
    assert progress[-1][1] == progress[-1][2]
    assert (progress[-1][2] or 0) > 500_000


def test_lrn_and_hostname_are_put_in_and_nothing_else(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "env").write_text("SECRET=from-a-file\n")
    image = server.web(
        "1",
        args=(
            "sh",
            "-c",
            'echo "$0 $1 $NAME $SECRET" > /out/said; sleep 1000',
            "$(lrn)",
            "$(hostname) $(id)",
        ),
        binds=(Bind("out", str(out), "/out"),),
        environment=(("NAME", "boot-$(lrn)"),),
        environment_file=str(tmp_path / "env"),
    )
    server.install(image)
    deadline = time.monotonic() + 5
    while not (out / "said").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (out / "said").read_text() == "7 boot-7 $(id) boot-7 from-a-file\n"


def test_a_read_only_bind_cannot_be_written(server: Server, tmp_path: Path) -> None:
    bound = tmp_path / "bound"
    bound.mkdir()
    image = server.web(
        "1",
        args=("sh", "-c", "touch /bound/file; sleep 1000"),
        binds=(Bind("b", str(bound), "/bound", read_only=True),),
    )
    server.install(image)
    server.podman("wait", "--condition", "running", "web")
    assert "Read-only" in _wait_for_log(server, "web")
    assert list(bound.iterdir()) == []


def test_applying_again_restarts_nothing(server: Server) -> None:
    image = server.web("1")
    pin = server.install(image)
    before = _identity(server)
    server.containers.apply(image, pin)
    assert _identity(server) == before


def test_a_list_of_images_is_pinned_by_its_own_digest(server: Server) -> None:
    digest = server.images.push_index("several", "1")
    image = Image("several", server.images.repository("several"), "1")
    assert server.install(image).digest == digest
    assert server.observed(image) == digest


def test_the_pin_and_not_the_tag_says_what_is_pulled(server: Server) -> None:
    first = server.images.push("moving", "1", "before")
    image = replace(server.web("1"), repository=server.images.repository("moving"))
    pin = server.containers.resolve(image)
    server.images.push("moving", "1", "after")
    server.containers.fetch(image, pin)
    server.containers.apply(image, pin)
    assert pin.digest == first
    assert server.answer() == "before"


def test_a_digest_in_git_is_checked_when_the_rollout_opens(server: Server) -> None:
    missing = f"sha256:{'0' * 64}"
    with pytest.raises(Unfetchable, match="does not have it"):
        server.containers.resolve(replace(server.web("1"), digest=missing))


def test_a_digest_in_git_that_is_not_the_rollouts_is_not_taken(server: Server) -> None:
    image = server.web("1")
    pin = server.containers.resolve(image)
    other = replace(image, digest=f"sha256:{'0' * 64}")
    with pytest.raises(Unfetchable, match="the rollout was opened with"):
        server.containers.fetch(other, pin)
    assert server.containers.target(other, pin) is None


def test_a_tag_that_does_not_exist(server: Server) -> None:
    with pytest.raises(Unfetchable, match=r"web:nope.*does not have it"):
        server.containers.resolve(server.web("nope"))


def test_a_registry_that_is_not_there(server: Server) -> None:
    with pytest.raises(Unavailable, match="refused"):
        server.containers.resolve(Image("gone", f"127.0.0.1:{free_port()}/gone", "1"))


def test_without_a_pin_the_tag_of_an_unknown_image_is_not_guessed(server: Server) -> None:
    with pytest.raises(HostError, match="which digest"):
        server.containers.fetch(server.web("1"), None)
    assert server.containers.target(server.web("1"), None) is None


# --- another version, and back ----------------------------------------------------------------------------------------


def test_an_update_replaces_the_container_and_keeps_the_last_two_images(server: Server) -> None:
    for tag in ("1", "2", "3"):
        server.install(server.web(tag))
        assert server.answer() == tag
    tags = json.loads(server.podman("images", "--format", "json"))
    kept = sorted(name.rpartition(":")[2] for row in tags for name in row["Names"] if "@" not in name)
    assert kept == ["2", "3"]


def test_a_new_definition_needs_no_network(server: Server) -> None:
    image = server.web("1")
    pin = server.install(image)
    other = server.web("1", environment=(("COLOUR", "blue"),))
    assert server.containers.target(other, pin) != server.containers.target(image, pin)
    offline = Pin(pin.digest, pin.address)
    server.containers.apply(other, offline)
    assert server.observed(other) == server.containers.target(other, pin)
    assert "COLOUR=blue" in server.podman("container", "inspect", "web")


def test_what_concerns_only_the_rollout_is_no_other_definition(server: Server) -> None:
    pin = server.install(server.web("1"))
    other = server.web("1", update="parallel", after=("vault",), started=("unseal",))
    assert server.observed(other) == server.containers.target(other, pin)


def test_restore_runs_the_previous_one_with_its_own_definition(server: Server) -> None:
    server.install(server.web("1"))
    server.install(server.web("2", environment=(("COLOUR", "blue"),)))
    assert server.containers.previous(WEB) == server.web("1")
    said = server.containers.restore(WEB)
    assert server.answer() == "1"
    assert said == server.observed(server.web("1"))
    assert "COLOUR" not in server.podman("container", "inspect", "web")


def test_restore_after_a_kill_in_its_middle_ends_the_same(server: Server) -> None:
    server.install(server.web("1"))
    server.install(server.web("2"))
    server.podman("rm", "--force", "--time", "0", "web")
    first = server.containers.restore(WEB)
    assert server.answer() == "1"
    started = _identity(server)
    assert server.containers.previous(WEB) == server.web("1"), "one that went back is asked again"
    assert server.containers.restore(WEB) == first
    assert _identity(server) == started
    server.install(server.web("3"))
    assert server.containers.previous(WEB) == server.web("1")


def test_without_a_previous_one_restore_changes_nothing(server: Server) -> None:
    server.install(server.web("1"))
    assert server.containers.restore(WEB) is None
    assert server.answer() == "1"


def test_a_version_that_was_never_healthy_is_not_what_one_goes_back_to(server: Server) -> None:
    health = Check("tcp", f"127.0.0.1:{server.port}")
    server.install(server.web("1", health=health))
    server.containers.confirm(WEB)
    server.install(server.web("2", health=health))
    server.install(server.web("3", health=health))
    previous = server.containers.previous(WEB)
    assert previous is not None
    assert previous.tag == "1"


def test_a_container_that_ends_at_once_gives_way_and_says_what_it_said(server: Server) -> None:
    server.install(server.web("1"))
    broken = server.web("2", args=("sh", "-c", "echo no such cluster >&2; exit 3"))
    pin = server.containers.resolve(broken)
    server.containers.fetch(broken, pin)
    with pytest.raises(HostError, match=r"ends as soon as(.|\n)*no such cluster(.|\n)*1, was started again"):
        server.containers.apply(broken, pin)
    assert server.answer() == "1"


def test_a_container_that_cannot_start_gives_way_to_the_one_before(server: Server) -> None:
    server.install(server.web("1"))
    running = server.podman("ps", "--no-trunc", "--format", "{{.ID}} {{.StartedAt}}")
    pin = server.containers.resolve(server.web("2"))
    server.containers.fetch(server.web("2"), pin)
    for broken, says in (
        (server.web("2", environment_file="/nowhere/env"), r"/nowhere/env \(environmentFile\) is not there"),
        (server.web("2", binds=(Bind("data", "/nowhere", "/data"),)), r"/nowhere \(bind data\) is not there"),
    ):
        with pytest.raises(HostError, match=says):
            server.containers.apply(broken, pin)
    # What is missing is said before the old one is stopped.
    assert server.podman("ps", "--no-trunc", "--format", "{{.ID}} {{.StartedAt}}") == running
    assert server.answer() == "1"

    twisted = server.web("2", binds=(Bind("root", "/etc/hostname", "/"),))
    with pytest.raises(HostError, match="the previous one, 1, was started again"):
        server.containers.apply(twisted, pin)
    assert server.answer() == "1"
    assert server.observed(server.web("1")) == server.containers.target(server.web("1"), None)


# --- changed by hand --------------------------------------------------------------------------------------------------


def test_a_stopped_container_is_seen_and_started_again(server: Server) -> None:
    image = server.web("1")
    pin = server.install(image)
    server.podman("stop", "--time", "2", "web")
    assert server.observed(image) == f"{pin.digest} stopped {_hash(server, image, pin)}"
    server.containers.apply(image, pin)
    assert server.answer() == "1"


def test_a_removed_container_is_absent(server: Server) -> None:
    image = server.web("1")
    server.install(image)
    server.podman("rm", "--force", "--time", "0", "web")
    assert server.observed(image) is None


def test_an_image_under_another_tag_is_seen_and_set_right_without_the_network(server: Server) -> None:
    image = Image("kept", server.images.repository("web"), "1")
    pin = server.install(image)
    other = server.web("2")
    server.containers.fetch(other, server.containers.resolve(other))
    server.podman(
        "tag", f"{image.repository}@{server.containers.resolve(other).digest}", f"{image.repository}:1"
    )
    assert server.observed(image) == server.containers.resolve(other).digest
    server.containers.apply(image, pin)
    assert server.observed(image) == pin.digest


def test_a_container_that_somebody_else_started_is_left_alone(server: Server) -> None:
    image = server.web("1")
    pin = server.containers.resolve(image)
    server.containers.fetch(image, pin)
    server.podman("create", "--name", "web", f"{image.repository}@{pin.digest}")
    assert server.observed(image) == f"{pin.digest} stopped, started by another"
    with pytest.raises(HostError, match="adopt"):
        server.containers.apply(image, pin)
    with pytest.raises(HostError, match="not in this host's ledger"):
        server.containers.remove(WEB)
    server.containers.stop(WEB)
    assert _identity(server)


def test_a_container_that_was_adopted_is_replaced(server: Server) -> None:
    image = server.web("1")
    pin = server.containers.resolve(image)
    server.containers.fetch(image, pin)
    server.podman("create", "--name", "web", f"{image.repository}@{pin.digest}")
    server.ledger.put(Entry(Known(WEB, "1"), origin="adopted"))
    server.containers.apply(image, pin)
    assert server.answer() == "1"


# --- stop and remove --------------------------------------------------------------------------------------------------


def test_stop_is_for_a_while(server: Server) -> None:
    image = server.web("1")
    pin = server.install(image)
    server.containers.stop(WEB)
    server.containers.stop(WEB)
    assert server.observed(image) == f"{pin.digest} stopped {_hash(server, image, pin)}"
    server.containers.apply(image, pin)
    assert server.answer() == "1"


def test_remove_takes_the_container_and_its_images_and_no_others(server: Server) -> None:
    server.install(server.web("1"))
    server.install(server.web("2"))
    bystander = Image("kept", server.images.repository("web"), "3")
    server.install(bystander)
    server.containers.remove(WEB)
    server.containers.remove(WEB)
    assert server.containers.observe([Known(WEB, "2"), bystander]).keys() == {bystander.key}
    assert server.podman("ps", "--all", "--quiet") == ""
    assert len(server.podman("images", "--quiet").split()) == 1
    assert not server.ledger.has(WEB)


def test_what_was_pulled_for_a_revision_that_was_never_applied_is_thrown_away(server: Server) -> None:
    kept, never = server.web("1"), replace(server.web("2"), name="never")
    server.install(kept)
    server.containers.fetch(never, server.containers.resolve(never))
    name = server.images.repository("web")
    assert len(server.podman("images", "--quiet", name).split()) == 2
    server.containers.tidy([never.key])
    assert len(server.podman("images", "--quiet", name).split()) == 2
    server.containers.tidy([])
    assert server.podman("images", "--format", "{{.Tag}}", name).split() == ["1"]
    assert server.answer() == "1"


def test_a_name_in_etcd_alone_removes_nothing(server: Server) -> None:
    server.install(server.web("1"))
    server.ledger.drop(WEB)
    with pytest.raises(HostError, match="not in this host's ledger"):
        server.containers.remove(WEB)
    server.containers.remove(Key("image", "never-there"))
    assert server.answer() == "1"


def test_an_image_that_is_only_kept_from_now_on_runs_no_more(server: Server) -> None:
    image = server.web("1")
    pin = server.install(image)
    kept = replace(image, container=None)
    assert server.observed(kept) != pin.digest
    server.containers.apply(kept, pin)
    assert server.observed(kept) == pin.digest
    assert server.podman("ps", "--all", "--quiet") == ""


def test_observing_without_images_needs_no_runtime(tmp_path: Path) -> None:
    host = Host(root=tmp_path, exec="chroot", state_dir=tmp_path / "state")
    containers = Containers(host, Ledger.open(host))
    assert containers.observe([Known(Key("deb", "chrony"), "4.3")]) == {}
    with pytest.raises(HostError, match="podman or docker is not installed"):
        containers.observe([Image("web", "registry.example/web", "1")])


def _hash(server: Server, image: Image, pin: Pin) -> str:
    return (server.containers.target(image, pin) or "").rpartition(" ")[2]


def _identity(server: Server) -> tuple[str, str]:
    """The container's id and when it was last started."""
    found = json.loads(server.podman("container", "inspect", "web"))[0]
    return found["Id"], found["State"]["StartedAt"]


def _wait_for_log(server: Server, name: str) -> str:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        done = subprocess.run(["podman", "logs", name], env=None, capture_output=True, text=True, check=False)
        if done.stderr or done.stdout:
            return done.stdout + done.stderr
        time.sleep(0.05)
    return ""
