"""The Containerfile, really built on a base of this machine's own distribution; the command and the agent run in the image.

The base, a whole small Debian, is the agent's host as well: a directory that podman mounts at `/host`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from reconciler.host.driver import Host
from reconciler.store.transaction import under
from reconciler.store.view import read_locks
from tests import podman
from tests.conftest import Etcd
from tests.debian_base import BUNDLE, base_archive, unpack
from tests.debs import DebSpec, build, state
from tests.etcd_users import agent
from tests.ports import free_ports
from tests.release_server import ReleaseServer

ROOT = Path(__file__).parent.parent
IMAGE = "localhost/reconciler:test"
BASE = "localhost/base:test"
LARGEST = 190 << 20
"""Bytes that the image may have over its base."""
PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_DEFAULT_TIMEOUT")

pytestmark = [
    pytest.mark.needs("buildah", "podman", "runc", "debootstrap", "apt-get"),
    # The first test's includes the base and the image.
    pytest.mark.timeout(900),
]


@dataclass(frozen=True, slots=True)
class Storage:
    """Images and containers below a directory of their own, run without systemd."""

    directory: Path
    environment: Mapping[str, str]

    @classmethod
    def below(cls, directory: Path) -> Storage:
        """With layers where this machine has them; where it has not, each container is a copy of its image."""
        layered = cls(directory, podman.configure(directory, "overlay"))
        if layered.call("podman", "info").returncode == 0:
            return layered
        return cls(directory, podman.configure(directory))

    @property
    def host(self) -> Path:
        """The file system of the server that a sidecar works for."""
        return self.directory / "host"

    def call(self, *argv: str | Path, timeout: float = 290) -> subprocess.CompletedProcess[str]:
        """One call of podman or buildah on this storage, however it ends."""
        environment = {"PATH": os.environ["PATH"], "HOME": "/root", **self.environment}
        return subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def podman(self, *argv: str | Path) -> str:
        return self.must("podman", *argv)

    def must(self, *argv: str | Path) -> str:
        done = self.call(*argv)
        said = (done.stdout + done.stderr)[-4000:]
        assert done.returncode == 0, f"{argv} ended with {done.returncode}:\n{said}"
        return done.stdout

    def run(self, *argv: str, options: Sequence[str] = ()) -> str:
        place = ("--rm", "--no-healthcheck", "--network", "host")
        return self.podman("run", *place, *options, IMAGE, *argv)


@pytest.fixture(scope="module")
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    if os.geteuid() != 0:
        pytest.skip("debootstrap wants root")
    cache = request.config.cache
    assert cache is not None
    archive = base_archive(cache.mkdir("base"))
    # podman takes no run root of more than 50 characters, and pytest's directories grow longer with every run.
    directory = Path(tempfile.mkdtemp(prefix="podman-"))
    try:
        made = Storage.below(directory)
        unpack(archive, made.host)
        # From the tree and not from the archive: this machine's certificates are in it.
        made.must("sh", "-c", f"tar --directory {made.host} --create . | podman import - {BASE}")
        _build(made)
        yield made
        made.podman("pod", "rm", "--all", "--force", "--time", "0")
        made.podman("rm", "--all", "--force", "--time", "0")
        made.podman("rmi", "--all", "--force")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _build(storage: Storage) -> None:
    settings = [f"--build-arg={name}={os.environ[name]}" for name in PIP_SETTINGS if name in os.environ]
    storage.must(
        "buildah",
        "bud",
        "--isolation=chroot",
        "--network=host",
        "--format=docker",
        "--pull=never",
        f"--build-arg=BASE={BASE}",
        f"--build-arg=PIP_CERT=/{BUNDLE}",
        "--build-arg=REVISION=0123abc",
        *settings,
        f"--tag={IMAGE}",
        ROOT,
    )


def test_the_image_says_what_it_is(storage: Storage) -> None:
    (image,) = json.loads(storage.podman("image", "inspect", IMAGE))
    config = image["Config"]
    assert (config["Entrypoint"], config["Cmd"]) == (["reconcile"], ["--help"])
    assert config["StopSignal"] == "SIGTERM"
    assert image["Healthcheck"]["Test"] == ["CMD", "python3", "-m", "reconciler.web.probe"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Labels"]["org.opencontainers.image.revision"] == "0123abc"
    settings = [variable for variable in config["Env"] if variable.startswith("PIP_")]
    assert settings == [], "how packages were reached is not the image's affair"


def test_nothing_in_it_builds_and_everything_is_compiled(storage: Storage) -> None:
    look = (
        "import pathlib, shutil\n"
        "print(*filter(shutil.which, ('cc', 'gcc', 'c++', 'make', 'pip')))\n"
        "packages = pathlib.Path('/opt/reconciler/lib')\n"
        "sources = [p for p in packages.rglob('*.py')]\n"
        "compiled = [p for p in packages.rglob('*.pyc')]\n"
        "print(len(sources) - len(compiled), all(p.read_bytes()[4] == 1 for p in compiled))\n"
    )
    tools, compiled = storage.run("-c", look, options=["--entrypoint", "/opt/reconciler/bin/python"]).split(
        "\n"
    )[:2]
    assert tools == ""
    assert compiled == "0 True", (
        "each source has its byte code, which is believed without a look at the source"
    )


def test_it_is_small(storage: Storage) -> None:
    """What docs/install.md says of its size."""
    sizes = [json.loads(storage.podman("image", "inspect", image))[0]["Size"] for image in (IMAGE, BASE)]
    assert sizes[0] - sizes[1] < LARGEST


NOBODY = ("--user", "65534:65534", "--cap-drop", "all", "--read-only", "--read-only-tmpfs=false")


def test_an_ordinary_user_plans_and_checks_on_a_read_only_root(storage: Storage) -> None:
    """Root is needed only for what changes the host."""
    mount = ["--volume", f"{ROOT / 'desired-state'}:/fleet/desired-state:ro", "--workdir", "/fleet"]
    shown = storage.run("--dry-run", "--output", "json", options=[*NOBODY, *mount])
    assert json.loads(shown)["summary"]["install"] == 16
    assert "16 artifacts" in storage.run("validate", options=[*NOBODY, *mount])


@pytest.mark.needs("etcd", "etcdctl")
@pytest.mark.parametrize("user", ["reader", "fleetlock"])
def test_an_ordinary_user_asks_and_shares_the_lock(
    storage: Storage, secured_etcd: Etcd, tmp_path: Path, user: str
) -> None:
    """As examples/sidecar has it: a directory of its own with the configuration and a password that this user may read."""
    place = configuration(tmp_path / user, secured_etcd, user)
    os.chown(place / "etcd-password", 65534, 65534)
    options = [*NOBODY, f"--volume={place}:/etc/reconciler:ro"]
    if user == "reader":
        assert "nobody leads" in storage.run("status", options=options)
        return
    (port,) = free_ports(1)
    words = ("fleetlock", "--listen", f"127.0.0.1:{port}", "--lock-groups", "workers")
    name = storage.run(*words, options=[*options, "--detach"]).strip()
    try:
        body = json.dumps({"client_params": {"id": "m1", "group": "workers"}})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/pre-reboot", body.encode(), {"fleet-lock-protocol": "true"}
        )
        assert _answers(request) == 200
        assert read_locks(secured_etcd.client, secured_etcd.keys)["workers"].semaphore.holders == ("m1",)
    finally:
        storage.podman("stop", "--time", "20", name)


def _answers(request: urllib.request.Request) -> int:
    """The status, once somebody listens there."""
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.URLError as error:
            assert isinstance(error.reason, ConnectionRefusedError) and time.monotonic() < end, error
            time.sleep(0.05)


def configuration(place: Path, etcd: Etcd, user: str, **more: str) -> Path:
    """What stands in `/etc/reconciler` of a container: the options that are a file's, and the password for etcd."""
    assert etcd.users is not None
    place.mkdir(mode=0o755)
    told = {
        "etcd": etcd.endpoint,
        "etcd-user": user,
        "etcd-password-file": "/etc/reconciler/etcd-password",
        **more,
    }
    (place / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in told.items()))
    (place / "etcd-password").write_text(etcd.users.password(user))
    (place / "etcd-password").chmod(0o600)
    return place


# --- the agent ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The agent in a container, for the server whose file system is `storage.host`."""

    storage: Storage
    fleet: Path
    releases: ReleaseServer
    port: int
    etcd: Etcd
    name: str = "reconciler"

    @property
    def settings(self) -> dict[str, str]:
        """What the agent is told, beside where its host is."""
        return {
            "LISTEN": f"127.0.0.1:{self.port}",
            "GITHUB_API": self.releases.url,
        }

    def push(self, version: str) -> None:
        """A revision that wants the package `greeting` in this version, on its branch of the bare repository."""
        self.releases.add("acme", "greeting", f"v{version}", build(DebSpec("greeting", version), self.fleet))
        work = self.fleet / "work"
        (work / "desired-state").mkdir(exist_ok=True)
        deb = {"name": "greeting", "owner": "acme", "repository": "greeting", "release": f"v{version}"}
        document = {"apiVersion": "reconciler/v1", "kind": "ArtifactSet", "debs": [deb]}
        (work / "desired-state" / "fleet.yaml").write_text(json.dumps(document))
        git(work, "add", "--all")
        git(work, "commit", "--quiet", "--message", version)
        git(work, "push", "--quiet", "origin", "HEAD:main")

    def on_the_host(self) -> str:
        """What the host's dpkg says of the package."""
        return state(Host(self.storage.host), "greeting")

    def inside(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.storage.call("podman", "exec", self.name, *argv, timeout=60)

    def is_healthy(self) -> bool:
        """What the image's own health check says."""
        return self.storage.call("podman", "healthcheck", "run", self.name, timeout=60).returncode == 0

    def of(self, field: str) -> str:
        return self.storage.podman("inspect", "--format", f"{{{{{field}}}}}", self.name).strip()

    def has_child(self, state: str) -> bool:
        """Whether the container's process 1 has a child called `sleep` in this state."""
        process_1 = self.of(".State.Pid")
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = file.read_text().partition("(")[2].rpartition(")")
                if name == "sleep" and rest.split()[:2] == [state, process_1]:
                    return True
        return False

    def log(self) -> str:
        done = self.storage.call("podman", "logs", self.name, timeout=60)
        return done.stdout + done.stderr

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < end, f"not within 90 s: {what}\n{self.log()}"
            time.sleep(0.1)


def git(directory: Path, *words: str | Path) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *identity, *words], cwd=directory, capture_output=True, timeout=60, check=True)


@pytest.fixture
def etcd(secured_etcd: Etcd) -> Etcd:
    """With users: the agent logs in, as its configuration says, and has its own rights."""
    return secured_etcd


@pytest.fixture
def fleet(storage: Storage, etcd: Etcd, tmp_path: Path) -> Iterator[Sidecar]:
    """A server, its configuration, and a repository that wants version 1.0 of a package on it; no agent yet."""
    configuration(tmp_path / "etc", etcd, agent(0), repo="/fleet.git", lrn="0")
    (storage.host / "etc" / "machine-id").write_text(f"{1:032x}\n")
    shutil.rmtree(storage.host / "var/lib/reconciler", ignore_errors=True)
    (storage.host / "var/lib/reconciler").mkdir()
    with contextlib.suppress(AssertionError):
        storage.must("dpkg", "--root", storage.host, "--purge", "greeting")
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", tmp_path / "fleet.git")
    git(tmp_path, "clone", "--quiet", tmp_path / "fleet.git", tmp_path / "work")
    (port,) = free_ports(1)
    with ReleaseServer(tmp_path / "releases").serving() as releases:
        made = Sidecar(storage, tmp_path, releases, port, etcd)
        made.push("1.0")
        yield made


@pytest.fixture
def sidecar(fleet: Sidecar) -> Iterator[Sidecar]:
    """A read-only container with the mounts that examples/sidecar gives it."""
    storage = fleet.storage
    mounts = {
        storage.host: "/host",
        storage.host / "var/lib/reconciler": "/var/lib/reconciler",
        fleet.fleet / "etc": "/etc/reconciler:ro",
        fleet.fleet / "fleet.git": "/fleet.git:ro",
    }
    told = {"HOST_ROOT": "/host", **fleet.settings}
    volumes = [f"--volume={source}:{target}" for source, target in mounts.items()]
    variables = [f"--env=RECONCILER_{name}={value}" for name, value in told.items()]
    # No systemd is here whose timer would ask for the container's health: the test does.
    timer = ["--health-interval", "disable"]
    place = ["--name", fleet.name, "--read-only", "--read-only-tmpfs=false", *timer, "--network=host"]
    try:
        storage.podman("run", "--detach", *place, *volumes, *variables, IMAGE, "agent")
        yield fleet
    finally:
        with contextlib.suppress(AssertionError):
            storage.podman("rm", "--force", "--time", "0", fleet.name)


@pytest.mark.needs("etcd", "git", "dpkg-deb")
def test_the_sidecar_follows_a_push_changes_the_host_and_ends_in_order(sidecar: Sidecar, etcd: Etcd) -> None:
    sidecar.wait("the host has the package", lambda: sidecar.on_the_host() == "ii 1.0")
    assert (sidecar.storage.host / "usr/share/greeting/version").read_text() == "1.0\n"
    assert sidecar.inside("dpkg-query", "--show", "greeting").returncode == 1, "the container has it not"
    assert sidecar.inside("test", "-e", "/usr/share/greeting").returncode == 1
    assert "Read-only file system" in sidecar.inside("touch", "/tmp/anything").stderr
    assert sidecar.is_healthy()

    sidecar.push("2.0")
    sidecar.wait("a push does not wait for the poll", lambda: sidecar.on_the_host() == "ii 2.0")

    # The command beside it has the agent's options.
    status = sidecar.inside("reconcile", "status")
    assert (status.returncode, status.stderr) == (0, "") and "Leader" in status.stdout, status

    # Whoever loses its parent becomes a child of process 1, which is the agent; the shell is gone before `sleep` is.
    sidecar.inside("sh", "-c", "sleep 2 >/dev/null 2>&1 &")
    sidecar.wait("an orphan is taken over", lambda: sidecar.has_child("S"))
    sidecar.wait("and reaped", lambda: not sidecar.has_child("S") and not sidecar.has_child("Z"))

    # The health check is one that can fail: an agent that does not answer.
    process = int(sidecar.of(".State.Pid"))
    os.kill(process, signal.SIGSTOP)
    assert not sidecar.is_healthy()
    os.kill(process, signal.SIGCONT)

    sidecar.wait("all is recorded", lambda: "finishes the rollout" in sidecar.log().splitlines()[-1])
    sidecar.storage.podman("stop", "--time", "20", sidecar.name)
    assert sidecar.of(".State.ExitCode") == "0", sidecar.log()
    assert "the step in flight is finished" in sidecar.log()
    line, agents = etcd.client.read([under(etcd.keys.election), under(etcd.keys.agents)]).items
    assert not line and not agents, "the lead and the server are given up"


# --- examples/sidecar -----------------------------------------------------------------------------------------------


@pytest.mark.needs("catatonit", "etcd", "git", "dpkg-deb")
def test_podman_plays_the_pod_which_changes_the_host(fleet: Sidecar, etcd: Etcd, tmp_path: Path) -> None:
    """examples/sidecar/pod.yaml with this test's directories, and `chroot` for the host that has no processes."""
    storage = fleet.storage
    pod = yaml.safe_load((ROOT / "examples" / "sidecar" / "pod.yaml").read_text())
    (container,) = pod["spec"]["containers"]
    container["image"] = IMAGE
    told = {variable["name"]: variable["value"] for variable in container["env"]}
    told |= {f"RECONCILER_{name}": value for name, value in fleet.settings.items()}
    told |= {"RECONCILER_HOST_EXEC": "chroot"}
    container["env"] = [{"name": name, "value": value} for name, value in told.items()]
    places = {
        "host": storage.host,
        "state": storage.host / "var/lib/reconciler",
        "configuration": tmp_path / "etc",
        "repository": fleet.fleet / "fleet.git",
    }
    container["volumeMounts"].append({"name": "repository", "mountPath": "/fleet.git", "readOnly": True})
    pod["spec"]["volumes"].append({"name": "repository", "hostPath": {"type": "Directory"}})
    for volume in pod["spec"]["volumes"]:
        volume["hostPath"]["path"] = str(places[volume["name"]])
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(yaml.safe_dump(pod))
    played = replace(fleet, name="reconciler-agent")
    try:
        storage.podman("kube", "play", manifest)
        played.wait("the host has the package", lambda: played.on_the_host() == "ii 1.0")
        assert played.inside("dpkg-query", "--show", "greeting").returncode == 1, "the container has it not"
        assert "Read-only file system" in played.inside("touch", "/tmp/anything").stderr
        assert played.is_healthy(), "the liveness probe"
        assert played.of(".HostConfig.Privileged") == "true"
        assert played.of(".HostConfig.NetworkMode") == "host"
        played.wait("all is recorded", lambda: "finishes the rollout" in played.log())
        storage.podman("pod", "stop", "--time", "20", "reconciler")
        assert played.of(".State.ExitCode") == "0", played.log()
        line, agents = etcd.client.read([under(etcd.keys.election), under(etcd.keys.agents)]).items
        assert not line and not agents, "it ended in order"
    finally:
        storage.podman("kube", "down", manifest)


@pytest.mark.parametrize("execution", ["nsenter", "chroot"])
def test_the_quadlets_options_let_it_look_at_the_host(
    storage: Storage, tmp_path: Path, execution: str
) -> None:
    """As examples/sidecar/reconciler.container runs it, on this very machine, which it only looks at."""
    if execution == "nsenter" and not _may_enter_process_1():
        pytest.skip("this machine lets nobody into the namespaces of its process 1")
    known = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Version}", "debootstrap"],
        capture_output=True,
        text=True,
        check=False,
    )
    if known.returncode != 0:
        pytest.skip("this machine's dpkg does not know debootstrap")
    document = {
        "apiVersion": "reconciler/v1",
        "kind": "ArtifactSet",
        "debs": [{"name": "debootstrap", "version": known.stdout.strip()}],
    }
    (tmp_path / "desired-state").mkdir()
    (tmp_path / "desired-state" / "fleet.yaml").write_text(json.dumps(document))
    text = (ROOT / "examples" / "sidecar" / "reconciler.container").read_text()
    told = re.findall(r"^(PodmanArgs|Volume|Environment|Network|ReadOnly)=(.*)$", text, flags=re.M)
    options = [f"--volume={tmp_path}:/fleet:ro"]
    for key, value in told:
        if key == "PodmanArgs":
            options += value.split()
        elif key == "Environment":
            options += [f"--env={word}" for word in value.split()]
        elif key == "ReadOnly":
            options.append("--read-only")
        elif key == "Volume" and value.startswith("/:"):
            options.append(f"--volume={value}")
    argv = ["--dry-run", "--repo", "/fleet", "--host-exec", execution, "--output", "json"]
    shown = storage.run(*argv, options=options)
    (server,) = json.loads(shown)["servers"]
    assert [(change["name"], change["action"]) for change in server["changes"]] == [("debootstrap", "record")]


def _may_enter_process_1() -> bool:
    try:
        Path("/proc/1/ns/mnt").readlink()
    except OSError:
        return False
    return True
