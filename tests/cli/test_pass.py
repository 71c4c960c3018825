"""`reconcile` without a verb, on real parts: dpkg, podman and a registry, a netboot directory, etcd. And when it must not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.host.driver import Host
from reconciler.store.session import Session
from tests.cli.command import Command, Ran
from tests.cli.git import Repository, artifacts, documents
from tests.conftest import Etcd
from tests.debs import DebSpec, build, dpkg, state
from tests.etcd_server import etcdctl
from tests.flatcar_server import INITRD, KERNEL
from tests.flatcar_server import release_server as flatcar_server
from tests.podman import podman
from tests.ports import free_port
from tests.registry import Registry, registry
from tests.release_server import ReleaseServer
from tests.store.fleet import serve

pytestmark = pytest.mark.needs("dpkg", "dpkg-deb", "git")

HELD_BACK, UNEXPECTED, USAGE = 3, 4, 64


class Packages:
    """Small packages, released as they are asked for."""

    def __init__(self, releases: ReleaseServer, directory: Path) -> None:
        self._releases, self._directory = releases, directory

    def deb(self, name: str, version: str, *scripts: tuple[str, str]) -> dict[str, str]:
        """Release it; its entry in an ArtifactSet."""
        spec = DebSpec(name, version, scripts=scripts)
        file = build(spec, self._directory, f"{name}_{version}_amd64.deb")
        self._releases.add("o", name, f"v{version}", file)
        return {"name": name, "owner": "o", "repository": name, "release": f"v{version}"}


@pytest.fixture
def packages(releases: ReleaseServer, tmp_path: Path) -> Packages:
    return Packages(releases, tmp_path)


def recorded(etcd: Etcd) -> dict[str, str]:
    """The short keys of server 0: what etcd says is installed."""
    prefix = f"{etcd.prefix}install/0/"
    lines = etcdctl(etcd.endpoint, "get", "--prefix", prefix).splitlines()
    found = dict(zip(lines[::2], lines[1::2], strict=True))
    return {key.removeprefix(prefix): text for key, text in found.items() if "/details/" not in key}


def actions(ran: Ran) -> dict[str, str]:
    """What the plan that was shown as JSON does."""
    (server,) = json.loads(ran.out.splitlines()[0])["servers"]
    return {change["name"]: change["action"] for change in server["changes"]}


# --- packages -------------------------------------------------------------------------------------------------------


def test_five_hundred_packages_are_planned_with_one_query(
    command: Command, repository: Repository, host: Host, tmp_path: Path
) -> None:
    stanza = "Package: p{0}\nStatus: install ok installed\nMaintainer: x\nArchitecture: all\nVersion: {0}.0\nDescription: x\n\n"
    (host.root / "var/lib/dpkg/status").write_text("".join(stanza.format(number) for number in range(500)))
    repository.commit(artifacts(debs=[{"name": f"p{n}", "version": f"{n}.0"} for n in range(500)]))
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for program in ("dpkg", "dpkg-query", "apt-get", "apt-cache"):
        wrapper = programs / program
        wrapper.write_text(f'#!/bin/sh\necho {program} >> {calls}\nexec {shutil.which(program)} "$@"\n')
        wrapper.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    (server,) = json.loads(command("--dry-run", "--output", "json", env={"PATH": path}).ok().out)["servers"]
    assert [change["action"] for change in server["changes"]] == ["record"] * 500
    assert calls.read_text().split() == ["dpkg-query"]


def test_packages_are_installed_upgraded_downgraded_and_removed(
    command: Command, repository: Repository, host: Host, etcd: Etcd, packages: Packages
) -> None:
    one, two, three = (packages.deb(name, "1.0") for name in ("one", "two", "three"))
    repository.commit(artifacts(debs=[one, two, three]))
    ran = command("--yes", "--output", "json").ok()
    assert actions(ran) == {"one": "install", "two": "install", "three": "install"}
    assert [state(host, name) for name in ("one", "two", "three")] == ["ii 1.0"] * 3
    assert recorded(etcd) == {"debs/one": "v1.0", "debs/two": "v1.0", "debs/three": "v1.0"}
    assert command("--dry-run", "--detailed-exitcode").status == 0

    repository.commit(artifacts(debs=[packages.deb("one", "2.0"), packages.deb("two", "0.9")]))
    assert command("--dry-run", "--detailed-exitcode").status == 2
    ran = command("--yes", "--output", "json").ok()
    assert actions(ran) == {"one": "upgrade", "two": "downgrade", "three": "remove"}
    assert [state(host, name) for name in ("one", "two", "three")] == ["ii 2.0", "ii 0.9", ""]
    assert recorded(etcd) == {"debs/one": "v2.0", "debs/two": "v0.9"}
    assert command("drift").ok().out == "Server 0 has what is recorded (2 artifacts).\n"
    assert command("--yes").ok().out.splitlines()[-1].startswith("Nothing to do: ")


def test_etcd_says_so_only_after_the_host_does(
    command: Command, repository: Repository, host: Host, etcd: Etcd, packages: Packages
) -> None:
    """Promise 8: a package whose script fails (this host has no shell at all) is on the host by half, and recorded not at all."""
    good = packages.deb("good", "1.0")
    repository.commit(artifacts(debs=[good, packages.deb("worse", "1.0", ("postinst", "#!/bin/sh\n"))]))
    ran = command("--yes")
    assert ran.status == 1
    problem = ran.err[ran.err.index("reconcile: ") :]
    for word in ("server 0", "debs:deb/worse:change", "postinst"):
        assert word in problem
    assert state(host, "good") == "ii 1.0"
    assert state(host, "worse") != "ii 1.0"
    assert recorded(etcd) == {"debs/good": "v1.0"}
    assert "failed" in command("status").ok().out

    repository.commit(artifacts(debs=[good, packages.deb("worse", "1.1")]))
    command("--yes").ok()
    assert state(host, "worse") == "ii 1.1"
    assert recorded(etcd) == {"debs/good": "v1.0", "debs/worse": "v1.1"}
    outcomes = [entry["outcome"] for entry in command("history", "--output", "json").ok().document]
    assert outcomes[0] == "complete"
    assert len(outcomes) == 2


def test_a_failure_is_tried_again_by_the_next_pass(
    command: Command, repository: Repository, host: Host, releases: ReleaseServer, packages: Packages
) -> None:
    repository.commit(artifacts(debs=[packages.deb("one", "1.0")]))
    releases.fail("/files/", "corrupt")
    ran = command("--yes")
    assert ran.status == 1
    releases.orders.clear()
    ran = command("--yes").ok()
    assert "Trying again what failed before: " in ran.err
    assert state(host, "one") == "ii 1.0"


def test_what_was_lost_is_put_back_though_its_revision_was_rolled_out(
    command: Command, repository: Repository, host: Host, etcd: Etcd, packages: Packages
) -> None:
    """A short key that was deleted by hand means "install again"."""
    repository.commit(artifacts(debs=[packages.deb("one", "1.0"), packages.deb("two", "1.0")]))
    command("--yes").ok()
    dpkg(host, "--remove", "one")
    for name in ("one", "two"):
        etcdctl(etcd.endpoint, "del", f"{etcd.prefix}install/0/debs/{name}")
    ran = command("--yes", "--output", "json").ok()
    assert actions(ran) == {"one": "install", "two": "record"}
    assert state(host, "one") == "ii 1.0"
    assert recorded(etcd) == {"debs/one": "v1.0", "debs/two": "v1.0"}


def test_drift_is_shown_and_repaired(
    command: Command, repository: Repository, host: Host, packages: Packages
) -> None:
    repository.commit(artifacts(debs=[packages.deb("one", "1.0"), packages.deb("two", "1.0")]))
    command("--yes").ok()
    dpkg(host, "--remove", "one")
    ran = command("drift")
    assert ran.status == 2
    assert "deb/one" in ran.out and "missing_on_host" in ran.out
    (found,) = json.loads(command("drift", "--output", "json").out)
    assert (found["kind"], found["name"], found["recorded"], found["found"]) == ("deb", "one", "1.0", None)
    command("drift", "--repair").ok()
    assert state(host, "one") == "ii 1.0"
    command("drift").ok()


def test_packages_that_need_each_other_go_in_one_commit(
    command: Command, repository: Repository, host: Host, releases: ReleaseServer, tmp_path: Path
) -> None:
    debs = []
    for name, depends in (("base", ""), ("middle", "base"), ("zenith", "middle, base")):
        spec = DebSpec(name, "1.0", depends=depends)
        releases.add("o", name, "v1.0", build(spec, tmp_path, f"{name}_1.0_amd64.deb"))
        debs.append({"name": name, "owner": "o", "repository": name, "release": "v1.0"})
    repository.commit(artifacts(debs=debs))
    command("--yes").ok()
    repository.commit(artifacts(debs=[]))
    (server,) = json.loads(command("--dry-run", "--output", "json").ok().out)["servers"]
    removed = [step["subject"] for step in server["steps"] if step["phase"] == "debs"]
    assert removed == ["deb/zenith", "deb/middle", "deb/base"]
    command("--yes").ok()
    assert [state(host, name) for name in ("base", "middle", "zenith")] == ["", "", ""]


def test_no_server_is_told_to_remove_too_much(
    command: Command, repository: Repository, host: Host, packages: Packages
) -> None:
    names = [f"p{number}" for number in range(4)]
    repository.commit(artifacts(debs=[packages.deb(name, "1.0") for name in names]))
    command("--yes").ok()
    repository.commit(artifacts(debs=[]))
    ran = command("--yes")
    assert ran.status == 5
    assert "it would remove 4 artifacts" in ran.err and "maxRemovals is 3" in ran.err
    assert all(state(host, name) == "ii 1.0" for name in names)
    repository.commit(
        documents({"kind": "ArtifactSet", "debs": []}, {"kind": "RolloutPolicy", "maxRemovals": 4})
    )
    command("--yes").ok()
    assert not any(state(host, name) for name in names)


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


def answer(port: int) -> str:
    """What the web server there says, as soon as it says something."""
    end = time.monotonic() + 10
    while True:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as reply,
        ):
            text: str = reply.read().decode()
            return text
        assert time.monotonic() < end, "nothing answers"
        time.sleep(0.05)


def web(images: Registry, tag: str, port: int, **more: Any) -> dict[str, Any]:
    script = f"trap 'exit 0' TERM; httpd -p {port} -h /www; while :; do sleep 1000 & wait $!; done"
    container = {
        "args": ["sh", "-c", script],
        "health": {"tcp": f"127.0.0.1:{port}", "timeout": "20s"},
        **more,
    }
    return {"name": "web", "repository": images.repository("web"), "tag": tag, "container": container}


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
def test_images_are_pulled_run_replaced_and_removed(
    command: Command,
    repository: Repository,
    etcd: Etcd,
    images: Registry,
    podman_environment: dict[str, str],
) -> None:
    for tag in ("1.0", "2.0"):
        images.push("web", tag)
        images.push("tool", tag)
    port = free_port()
    tool = {"name": "tool", "repository": images.repository("tool"), "tag": "1.0"}
    repository.commit(artifacts(images=[web(images, "1.0", port), tool]))
    ran = command("--yes", "--output", "json").ok()
    assert actions(ran) == {"web": "install", "tool": "install"}
    assert answer(port) == "1.0"
    assert recorded(etcd) == {"containers/web": "1.0", "containers/tool": "1.0"}
    assert command("--dry-run", "--detailed-exitcode").status == 0

    repository.commit(artifacts(images=[web(images, "2.0", port)]))
    shown = command("--dry-run").ok().out
    assert "upgrade    version_changed   restart (lock default), unpinned" in shown
    command("--yes").ok()
    assert answer(port) == "2.0"
    assert recorded(etcd) == {"containers/web": "2.0"}
    assert "tool" not in podman(podman_environment, "images", check=True)
    lock = command("lock", "status", "--output", "json").ok().document
    assert (lock["max"], lock["holders"]) == (1, [])

    # The same tag, another definition: replaced without a pull.
    repository.commit(artifacts(images=[web(images, "2.0", port, environment={"A": "1"})]))
    shown = command("--dry-run").ok().out
    assert "replace    definition_changed" in shown and "+ container.environment" in shown
    command("--yes").ok()
    assert answer(port) == "2.0"

    repository.commit(artifacts(images=[]))
    command("--yes").ok()
    assert recorded(etcd) == {}
    assert podman(podman_environment, "ps", "--all", "--quiet", check=True) == ""


def web_runs(command: Command, repository: Repository, images: Registry) -> int:
    """The container web runs its version 1.0, and 2.0 is in the registry too: the port that it answers on."""
    for tag in ("1.0", "2.0"):
        images.push("web", tag)
    port = free_port()
    repository.commit(artifacts(images=[web(images, "1.0", port)]))
    command("--yes").ok()
    return port


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
@pytest.mark.usefixtures("podman_environment")
def test_a_container_that_never_gets_healthy_gives_way_to_the_one_before(
    command: Command, repository: Repository, etcd: Etcd, images: Registry
) -> None:
    port = web_runs(command, repository, images)
    sick = {"tcp": f"127.0.0.1:{free_port()}", "timeout": "1s"}
    repository.commit(artifacts(images=[web(images, "2.0", port, health=sick)]))
    ran = command("--yes")
    assert ran.status == 1
    assert "the previous version 1.0 was started again" in ran.err
    assert answer(port) == "1.0"
    assert recorded(etcd) == {"containers/web": "1.0"}
    rollout = command("status", "--output", "json").ok().document["rollout"]
    assert rollout["stopped_by"] == "leader"


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
@pytest.mark.usefixtures("podman_environment")
def test_a_restart_waits_for_its_slot_and_a_pass_does_not(
    command: Command, repository: Repository, etcd: Etcd, images: Registry
) -> None:
    port = web_runs(command, repository, images)
    command("lock", "acquire", "--machine-id", "f" * 32, "--reason", "maintenance").ok()
    repository.commit(artifacts(images=[web(images, "2.0", port)]))
    ran = command("--yes")
    assert ran.status == HELD_BACK
    assert "slot" in ran.err.splitlines()[-2]
    assert answer(port) == "1.0"
    assert recorded(etcd) == {"containers/web": "1.0"}
    command("lock", "release", "--machine-id", "f" * 32).ok()
    command("--yes").ok()
    assert answer(port) == "2.0"


# --- the OS image ---------------------------------------------------------------------------------------------------


def boot(version: str, **group: Any) -> str:
    return documents(
        {"kind": "ArtifactSet", "osImage": {"channel": "stable", "version": version}},
        {"kind": "ServerGroup", "name": "boot", "servers": [0], **group},
    )


NETBOOT = {"osImage": {"driver": "netboot", "directory": "/var/lib/netboot"}}


def test_kernel_and_initrd_are_published(
    command: Command, repository: Repository, host: Host, etcd: Etcd, tmp_path: Path
) -> None:
    place = host.root / "var/lib/netboot"
    with flatcar_server(tmp_path / "flatcar") as flatcar:
        for version in ("3139.2.1", "3227.2.0"):
            flatcar.release("stable", version)
        command.variables["flatcar_url"] = flatcar.url
        for version in ("3139.2.1", "3227.2.0"):
            repository.commit(boot(version, **NETBOOT))
            assert "reboot" not in command("--dry-run").ok().out.splitlines()[1]
            command("--yes").ok()
            assert (place / "current").resolve() == place / "stable" / version
            for name in (KERNEL, INITRD):
                served = flatcar.directory / "stable" / version / name
                assert (place / "current" / name).read_bytes() == served.read_bytes()
            assert recorded(etcd) == {"os-image": f"stable/{version}"}
        # One file of the next is missing: neither is published, nothing is recorded.
        (flatcar.release("stable", "3300.1.0") / INITRD).unlink()
        repository.commit(boot("3300.1.0", **NETBOOT))
        ran = command("--yes")
        assert ran.status == 1
        assert INITRD in ran.err
        assert (place / "current").resolve() == place / "stable/3227.2.0"
        assert not list((place / "stable").glob("3300.1.0"))
        assert recorded(etcd) == {"os-image": "stable/3227.2.0"}


def hook(host: Host, name: str, text: str) -> None:
    path = host.root / "etc/reconciler/hooks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.skipif(os.getuid() != 0, reason="hooks must be root's")
def test_a_pass_ends_before_a_reboot(
    command: Command, repository: Repository, host: Host, etcd: Etcd, tmp_path: Path
) -> None:
    """That is the agent's: this process would not come back."""
    hook(host, "os-current", f"cat {tmp_path}/running")
    hook(host, "os-stage", f'printf "%s\\n" "$*" >> {tmp_path}/staged')
    hook(host, "os-rollback", "exit 1")
    (tmp_path / "running").write_text("stable/1.0\n")
    command.variables["reboot_command"] = f"touch {tmp_path}/rebooted"
    repository.commit(boot("2.0", osImage={"driver": "command"}))
    assert "reboot (lock default)" in command("--dry-run").ok().out
    ran = command("--yes")
    assert ran.status == HELD_BACK, ran.err
    assert "server 0 has to reboot for this revision, and that is its agent's to do" in ran.err
    assert (tmp_path / "staged").exists()
    assert not (tmp_path / "rebooted").exists()
    assert recorded(etcd) == {}
    lock = command("lock", "status", "--output", "json").ok().document
    assert lock["holders"] == [], "a pass that ends keeps no slot"


# --- when it must not -----------------------------------------------------------------------------------------------


@pytest.fixture
def pending(repository: Repository, packages: Packages) -> None:
    """A revision that would install a package."""
    repository.commit(artifacts(debs=[packages.deb("one", "1.0")]))


@pytest.mark.usefixtures("pending")
def test_only_the_plan_that_is_expected(
    command: Command, repository: Repository, host: Host, etcd: Etcd, packages: Packages
) -> None:
    digest = command("--dry-run", "--output", "json").ok().document["digest"]
    assert command("--dry-run", "--expect", digest).status == 0
    repository.commit(artifacts(debs=[packages.deb("one", "1.0"), packages.deb("two", "1.0")]))
    ran = command("--expect", digest)
    assert (ran.status, ran.out) == (UNEXPECTED, "")
    assert f"not {digest}" in ran.err
    assert recorded(etcd) == {}
    digest = command("--dry-run", "--output", "json").ok().document["digest"]
    command("--expect", digest).ok()
    assert state(host, "two") == "ii 1.0"


@pytest.mark.usefixtures("pending")
def test_without_a_terminal_it_wants_to_be_told(command: Command, etcd: Etcd) -> None:
    ran = command()
    assert ran.status == USAGE
    assert ran.out.splitlines()[-1].startswith("Plan: 1 to install on server 0")
    assert "standard input is no terminal; give --yes or --expect DIGEST" in ran.err
    assert recorded(etcd) == {}


@pytest.mark.usefixtures("pending")
def test_other_servers_are_registered(command: Command, host: Host, etcd: Etcd) -> None:
    for number in (7, 12):
        command("server", "add", str(number)).ok()
    ran = command("--yes")
    assert ran.status == HELD_BACK
    assert "other servers are registered (7, 12)" in ran.err
    assert (state(host, "one"), recorded(etcd)) == ("", {})


@pytest.mark.usefixtures("pending")
def test_an_agent_is_running(command: Command, host: Host, etcd: Etcd) -> None:
    session = Session(etcd.client, 30.0)
    try:
        serve(etcd, session, 0)
        ran = command("--yes")
    finally:
        session.close()
    assert ran.status == HELD_BACK
    assert "agents are running (server 0 on boot-0)" in ran.err
    assert (state(host, "one"), recorded(etcd)) == ("", {})


@pytest.mark.usefixtures("pending")
def test_somebody_has_paused(command: Command, host: Host, etcd: Etcd) -> None:
    command("pause", "--reason", "the network is being rebuilt").ok()
    ran = command("--yes")
    assert ran.status == HELD_BACK
    assert "the network is being rebuilt" in ran.err
    assert (state(host, "one"), recorded(etcd)) == ("", {})
    command("resume").ok()
    command("--yes").ok()
    assert state(host, "one") == "ii 1.0"


@pytest.mark.usefixtures("pending")
def test_outside_the_release_time(command: Command, host: Host, etcd: Etcd) -> None:
    command("config", "set", "release-time", "0 0 29 2 *").ok()
    ran = command("--yes")
    assert ran.status == HELD_BACK
    assert "outside the release time" in ran.err
    assert (state(host, "one"), recorded(etcd)) == ("", {})


def allow(host: Host, text: str) -> None:
    policy = host.root / "etc/reconciler/policy.yaml"
    policy.parent.mkdir(exist_ok=True)
    policy.write_text(f"apiVersion: reconciler/v1\nkind: HostPolicy\n{text}\n")


@pytest.mark.usefixtures("pending")
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            "allow: {releaseOwners: [cybozu-go]}",
            "deb one: a release of o/one is not allowed by this host's policy (releaseOwners)",
        ),
        ("allow: {packages: [t*]}", "deb one is not allowed by this host's policy (packages)"),
        ("allow: {sources: [https://git.example/*]}", "is not allowed by this host's policy (sources)"),
        ("alow: {}", "/etc/reconciler/policy.yaml:3:1: alow: this field is not known; did you mean allow?"),
    ],
)
def test_the_hosts_policy_has_the_last_word(
    command: Command, host: Host, etcd: Etcd, policy: str, message: str
) -> None:
    allow(host, policy)
    for words in ("--dry-run", "--yes"):
        ran = command(words)
        assert (ran.status, ran.out) == (5, ""), ran
        assert message in ran.err
    assert (state(host, "one"), recorded(etcd)) == ("", {})
    # Another server's policy is its own affair.
    assert command("--dry-run", "--server", "8").status == 0


def test_all_that_the_hosts_policy_does_not_allow_is_named_at_planning(
    command: Command, repository: Repository, host: Host, etcd: Etcd
) -> None:
    """A bind of `/` that is not allowed, and each other point; nothing of it was asked for over the network."""
    container = {
        "binds": [{"name": "all", "source": "/", "dest": "/host"}],
        "environmentFile": "/etc/shadow",
        "started": ["unseal"],
        "health": {"hook": "probe"},
    }
    image = {"name": "web", "repository": "127.0.0.1:1/web", "tag": "1", "container": container}
    group = {
        "name": "boot",
        "servers": [0],
        "osImage": {"driver": "command"},
        "reboot": {"before": ["drain"]},
    }
    repository.commit(
        documents(
            {"kind": "ArtifactSet", "images": [image], "osImage": {"channel": "stable", "version": "1.2.3"}},
            {"kind": "ServerGroup", **group},
        )
    )
    allow(host, "allow: {images: [quay.io/*], binds: [/var/lib], hooks: [other], drivers: [netboot]}")
    for words in ("--dry-run", "--yes"):
        ran = command(words)
        assert (ran.status, ran.out) == (5, ""), ran
        for refused in (
            "image web: the repository 127.0.0.1:1/web is not allowed by this host's policy (images)",
            "image web: the bind all of / is not allowed by this host's policy (binds)",
            "image web: the environment file /etc/shadow is not allowed by this host's policy (binds)",
            "image web: the hook unseal is not allowed by this host's policy (hooks)",
            "image web: the hook probe is not allowed by this host's policy (hooks)",
            "server group boot: the hook drain is not allowed by this host's policy (hooks)",
            "server group boot: the OS image driver command is not allowed by this host's policy (drivers)",
        ):
            assert refused in ran.err
    assert recorded(etcd) == {}


@pytest.mark.usefixtures("pending")
def test_what_the_hosts_policy_never_lets_go(
    command: Command, repository: Repository, host: Host, etcd: Etcd
) -> None:
    command("--yes").ok()
    allow(host, "neverRemove: [one]")
    repository.commit(artifacts(debs=[]))
    ran = command("--yes")
    assert (ran.status, ran.out) == (5, "")
    assert "deb/one: this host's policy never lets it be removed (neverRemove)" in ran.err
    assert (state(host, "one"), recorded(etcd)) == ("ii 1.0", {"debs/one": "v1.0"})


def test_ctrl_c_lets_the_step_in_flight_come_to_its_end(
    command: Command, repository: Repository, host: Host, etcd: Etcd, packages: Packages, tmp_path: Path
) -> None:
    """A dpkg is never cut off; what it did is recorded, and the next pass goes on."""
    repository.commit(artifacts(debs=[packages.deb("one", "1.0"), packages.deb("two", "1.0")]))
    programs, gate = tmp_path / "bin", tmp_path / "gate"
    programs.mkdir()
    gate.touch()
    (programs / "dpkg").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--install*|*--unpack*) touch {tmp_path}/in-dpkg;'
        f" while [ -e {gate} ]; do sleep 0.02; done;; esac\n"
        'exec /usr/bin/dpkg "$@"\n'
    )
    (programs / "dpkg").chmod(0o755)
    child = subprocess.Popen(
        [sys.executable, "-m", "reconciler", "--yes"],
        cwd=command.below,
        env=command.whole_environment({"PATH": f"{programs}:{os.environ['PATH']}"}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 20
    while not (tmp_path / "in-dpkg").exists():
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    gate.unlink()
    _, err = child.communicate(timeout=20)
    assert child.returncode == HELD_BACK, err
    assert "Traceback" not in err
    assert state(host, "one") == "ii 1.0"
    assert recorded(etcd) == {"debs/one": "v1.0"}
    command("--yes").ok()
    assert recorded(etcd) == {"debs/one": "v1.0", "debs/two": "v1.0"}


# --- without any etcd but its own -----------------------------------------------------------------------------------


@pytest.mark.needs("etcd")
def test_the_embedded_etcd_is_started_and_ended_by_the_command(
    command: Command, repository: Repository, host: Host, packages: Packages
) -> None:
    for name in ("etcd", "prefix", "lock_prefix"):
        del command.variables[name]
    repository.commit(artifacts(debs=[packages.deb("one", "1.0")]))
    for words in (
        ["--dry-run"],
        ["status"],
        ["history"],
        ["snapshot"],
        ["server", "list"],
        ["lock", "status"],
    ):
        command(*words).ok()
    assert not (command.state_dir / "etcd").exists(), "reading starts nothing"
    try:
        command("--yes").ok()
        assert state(host, "one") == "ii 1.0"
        assert command("--dry-run", "--detailed-exitcode").status == 0
        assert "complete" in command("history").ok().out
        found = subprocess.run(
            ["pgrep", "--full", str(command.state_dir)], capture_output=True, text=True, check=False
        )
        assert found.stdout == "", "it has ended with the last that used it"
    finally:
        subprocess.run(["rm", "-rf", str(command.state_dir / "etcd")], check=True)
