"""Flatcar's files from a real server to a directory that machines boot from; and the host's own OS by real hooks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.core.artifact import OS_IMAGE, Known, OsImage, Pin
from reconciler.core.state import OsDriver
from reconciler.errors import HostError, Unavailable, Unfetchable
from reconciler.host.driver import Host
from reconciler.host.flatcar import Flatcar
from reconciler.host.ledger import Ledger
from reconciler.host.os_image import OsImages
from tests.flatcar_server import INITRD, KERNEL, ReleaseServer, release_server, signer
from tests.ports import free_port

FIRST = OsImage("stable", "3139.2.1")
SECOND = OsImage("stable", "3227.2.0")
THIRD = OsImage("beta", "3277.1.0")
DIRECTORY = "/var/lib/netboot"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReleaseServer]:
    with release_server(tmp_path / "releases") as running:
        for image in (FIRST, SECOND, THIRD):
            running.release(image.channel, image.release)
        yield running


@dataclass
class Boot:
    """A boot server: its driver, and what machines that boot from it would get."""

    host: Host
    driver: OsImages

    def install(self, image: OsImage) -> Pin | None:
        pin = self.driver.resolve(image)
        self.driver.fetch(image, pin)
        self.driver.apply(image, pin)
        assert self.observed() == self.driver.target(image, pin)
        return pin

    def observed(self) -> str | None:
        return self.driver.observe([Known(OS_IMAGE, "")]).get(OS_IMAGE)

    @property
    def directory(self) -> Path:
        return self.host.root / DIRECTORY.lstrip("/")

    def versions(self) -> list[str]:
        """What is published, and whatever else lies there."""
        found = [path for path in self.directory.glob("*/*") if not path.parent.is_symlink()]
        return sorted(str(path.relative_to(self.directory)) for path in found)


@pytest.fixture
def boot(tmp_path: Path, server: ReleaseServer) -> Boot:
    root = tmp_path / "root"
    root.mkdir()
    host = Host(root=root, state_dir=tmp_path / "state", lrn=1)
    return Boot(
        host, OsImages(host, Ledger.open(host), OsDriver(directory=DIRECTORY), flatcar_url=server.url)
    )


# --- netboot ----------------------------------------------------------------------------------------------------------


def test_both_files_are_published_and_current_leads_to_them(boot: Boot, server: ReleaseServer) -> None:
    assert boot.observed() is None
    boot.install(FIRST)
    for name in (KERNEL, INITRD):
        published = (boot.directory / "current" / name).read_bytes()
        assert published == (server.directory / "stable/3139.2.1" / name).read_bytes()
    assert (boot.directory / "current").readlink() == Path("stable/3139.2.1")


def test_the_last_two_are_kept(boot: Boot) -> None:
    for image in (FIRST, SECOND, THIRD):
        boot.install(image)
    assert boot.versions() == ["beta/3277.1.0", "stable/3227.2.0"]


def test_what_somebody_else_put_there_stays(boot: Boot) -> None:
    other = boot.directory / "alpha/1.0"
    other.mkdir(parents=True)
    for image in (FIRST, SECOND, THIRD):
        boot.install(image)
    boot.driver.remove(OS_IMAGE)
    assert boot.versions() == ["alpha/1.0"]


def test_nothing_changes_before_apply_and_apply_needs_no_network(boot: Boot, tmp_path: Path) -> None:
    with release_server(tmp_path / "short-lived") as other:
        other.release(SECOND.channel, SECOND.release)
        boot.install(FIRST)
        driver = _driver(boot.host, other.url)
        pin = driver.resolve(SECOND)
        driver.fetch(SECOND, pin)
        assert boot.observed() == FIRST.version
    driver.apply(SECOND, pin)
    driver.apply(SECOND, pin)
    driver.fetch(SECOND, pin)
    assert boot.observed() == SECOND.version


def test_what_was_fetched_and_never_published_is_thrown_away(boot: Boot) -> None:
    boot.install(FIRST)
    boot.driver.fetch(SECOND, boot.driver.resolve(SECOND))
    assert (boot.directory / ".incoming").exists()
    boot.driver.tidy()
    assert not (boot.directory / ".incoming").exists()
    assert boot.observed() == FIRST.version


def test_apply_without_a_fetch_changes_nothing(boot: Boot) -> None:
    boot.install(FIRST)
    with pytest.raises(HostError, match="fetches them again"):
        boot.driver.apply(SECOND, boot.driver.resolve(SECOND))
    assert boot.observed() == FIRST.version


def test_rollback_goes_to_the_one_before_and_forward_again(boot: Boot) -> None:
    boot.install(FIRST)
    boot.install(SECOND)
    boot.driver.rollback()
    assert boot.observed() == FIRST.version
    boot.driver.rollback()
    assert boot.observed() == SECOND.version


def test_without_one_before_there_is_no_rollback(boot: Boot) -> None:
    boot.install(FIRST)
    with pytest.raises(HostError, match="no OS image was published before"):
        boot.driver.rollback()


def test_remove_takes_only_what_is_ours(boot: Boot) -> None:
    boot.install(FIRST)
    boot.driver.remove(OS_IMAGE)
    boot.driver.remove(OS_IMAGE)
    assert boot.observed() is None
    assert list(boot.directory.iterdir()) == []


def test_a_release_that_does_not_exist(boot: Boot) -> None:
    with pytest.raises(Unfetchable, match=r"stable/0\.0\.0/.*404"):
        boot.driver.resolve(OsImage("stable", "0.0.0"))


def test_a_server_that_is_not_there(boot: Boot) -> None:
    with pytest.raises(Unavailable, match="refused"):
        _driver(boot.host, f"http://127.0.0.1:{free_port()}").resolve(FIRST)


def test_a_file_that_is_not_what_its_checksum_says(boot: Boot, server: ReleaseServer) -> None:
    boot.install(FIRST)
    kernel = server.directory / "stable/3227.2.0" / KERNEL
    kernel.write_bytes(kernel.read_bytes().replace(b"stable", b"stolen"))
    with pytest.raises(Unfetchable, match="SHA-512"):
        boot.driver.fetch(SECOND, boot.driver.resolve(SECOND))
    assert boot.observed() == FIRST.version
    assert not list(boot.directory.rglob(f"{SECOND.release}/{KERNEL}"))


def test_a_release_that_changed_after_the_rollout_opened(boot: Boot, server: ReleaseServer) -> None:
    pin = boot.driver.resolve(FIRST)
    server.release(FIRST.channel, FIRST.release, "another build")
    with pytest.raises(Unfetchable, match="not those that the rollout was opened with"):
        boot.driver.fetch(FIRST, pin)


def test_checksums_that_say_nothing_of_the_file(boot: Boot, server: ReleaseServer) -> None:
    (server.directory / "stable/3139.2.1" / f"{INITRD}.DIGESTS").write_text("# SHA512 HASH\n")
    with pytest.raises(Unfetchable, match="0 SHA-512 checksums"):
        boot.driver.resolve(FIRST)


def test_changed_by_hand_is_seen_and_repaired(boot: Boot) -> None:
    boot.install(FIRST)
    kernel = boot.directory / "stable/3139.2.1" / KERNEL
    whole = kernel.read_bytes()
    os.utime(kernel)
    assert boot.observed() == FIRST.version, "touched, but the same"
    kernel.write_bytes(whole.replace(b"stable", b"stolen"))
    assert boot.observed() == f"{FIRST.version} ({KERNEL} was changed)"
    kernel.unlink()
    assert boot.observed() == f"{FIRST.version} ({KERNEL} is missing)"
    boot.install(FIRST)
    assert kernel.read_bytes() == whole


def test_a_link_in_the_root_leads_nothing_outside(boot: Boot, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (boot.host.root / "var/lib").mkdir(parents=True)
    (boot.host.root / "var/lib/netboot").symlink_to(f"../../../../../../../..{outside}")
    boot.install(FIRST)
    assert list(outside.iterdir()) == []


def test_a_mirror_and_the_public_server_lay_their_files_out_differently() -> None:
    assert Flatcar().address(FIRST) == "https://stable.release.flatcar-linux.net/amd64-usr/3139.2.1"
    assert Flatcar("https://mirror.example/flatcar/").address(FIRST) == (
        "https://mirror.example/flatcar/stable/3139.2.1"
    )


@pytest.mark.needs("gpg")
def test_where_a_key_is_given_every_file_must_be_signed_by_it(
    boot: Boot, server: ReleaseServer, tmp_path: Path
) -> None:
    key = boot.host.root / "etc/reconciler/os-image-key.asc"
    key.parent.mkdir(parents=True)
    with signer(tmp_path / "ours") as ours, signer(tmp_path / "theirs") as theirs:
        key.write_bytes(ours.public.read_bytes())
        driver = _driver(boot.host, server.url)
        pin = driver.resolve(FIRST)
        with pytest.raises(Unfetchable, match=r"\.sig.*404"):
            driver.fetch(FIRST, pin)
        theirs.sign(server.directory / "stable/3139.2.1")
        with pytest.raises(Unfetchable, match="not signed by the key"):
            driver.fetch(FIRST, pin)
        ours.sign(server.directory / "stable/3139.2.1")
        driver.fetch(FIRST, pin)
        driver.apply(FIRST, pin)
    assert boot.observed() == FIRST.version


def test_a_key_that_is_none_is_named(boot: Boot, server: ReleaseServer) -> None:
    key = boot.host.root / "etc/reconciler/os-image-key.asc"
    key.parent.mkdir(parents=True)
    key.write_text("no key")
    for name in (KERNEL, INITRD):
        (server.directory / "stable/3139.2.1" / f"{name}.sig").write_text("x")
    driver = _driver(boot.host, server.url)
    with pytest.raises(HostError, match=r"os-image-key\.asc"):
        driver.fetch(FIRST, driver.resolve(FIRST))


_AGENT = """
import sys
from pathlib import Path
from reconciler.core.artifact import OsImage
from reconciler.core.state import OsDriver
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.os_image import OsImages
root, state, url, channel, version = sys.argv[1:]
host = Host(root=Path(root), state_dir=Path(state))
driver = OsImages(host, Ledger.open(host), OsDriver(), flatcar_url=url)
image = OsImage(channel, version)
pin = driver.resolve(image)
driver.fetch(image, pin)
driver.apply(image, pin)
"""


def _killed_again_and_again(boot: Boot, server: ReleaseServer, times: int) -> None:
    chance = random.SystemRandom()
    boot.install(FIRST)
    before = FIRST.version
    for number in range(times):
        image = OsImage("stable", f"4000.{number}.0")
        server.release(image.channel, image.release)
        argv: list[str | Path] = [
            boot.host.root,
            boot.host.state_dir,
            server.url,
            image.channel,
            image.release,
        ]
        child = subprocess.Popen([sys.executable, "-c", _AGENT, *argv], stdin=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.1, 0.4))
        with_killed = child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        if with_killed:
            assert boot.observed() in (before, image.version), "never half of it"
        boot.install(image)
        assert len(boot.versions()) <= 2
        before = image.version


def test_killed_at_any_moment_a_new_run_converges(boot: Boot, server: ReleaseServer) -> None:
    _killed_again_and_again(boot, server, 5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_fifty_times_a_new_run_converges(boot: Boot, server: ReleaseServer) -> None:
    _killed_again_and_again(boot, server, 50)


# --- command ----------------------------------------------------------------------------------------------------------


class OwnOs:
    """A host whose OS is staged and run by hooks that keep their state in files, as a real tool does."""

    def __init__(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        self.hooks = root / "etc/reconciler/hooks"
        self.hooks.mkdir(parents=True)
        self.state = tmp_path / "os"
        self.state.mkdir()
        (self.state / "runs").write_text("stable/3139.2.1\n")
        boot_id = root / "proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        self._boot_id = boot_id
        self._boots = 0
        self.boot()
        self.hook("os-current", f"cat {self.state}/runs")
        self.hook(
            "os-stage",
            f'[ "$1/$2" = "$RECONCILER_OS_CHANNEL/$RECONCILER_OS_VERSION" ] && echo "$1/$2" > {self.state}/staged',
        )
        self.hook("os-rollback", f"rm -f {self.state}/staged")
        self.host = Host(root=root, state_dir=tmp_path / "state", lrn=1)
        self.driver = OsImages(self.host, Ledger.open(self.host), OsDriver("command", reboot=True))

    def hook(self, name: str, text: str) -> None:
        (self.hooks / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.hooks / name).chmod(0o755)

    def boot(self) -> None:
        """What a reboot does: what is staged runs, under another boot id."""
        self._boots += 1
        self._boot_id.write_text(f"00000000-0000-4000-8000-{self._boots:012d}\n")
        staged = self.state / "staged"
        if staged.exists():
            staged.rename(self.state / "runs")

    def observed(self) -> str | None:
        return self.driver.observe([SECOND]).get(OS_IMAGE)


own_os = pytest.mark.skipif(os.getuid() != 0, reason="hooks must be root's")


@own_os
def test_what_is_staged_runs_only_after_the_boot(tmp_path: Path) -> None:
    server = OwnOs(tmp_path)
    assert server.driver.resolve(SECOND) is None
    server.driver.fetch(SECOND, None)
    server.driver.apply(SECOND, None)
    server.driver.apply(SECOND, None)
    assert server.observed() == FIRST.version
    assert server.driver.staged(SECOND)
    server.boot()
    assert server.observed() == SECOND.version == server.driver.target(SECOND, None)
    assert not server.driver.staged(SECOND), "staged means: the next boot brings it"


@own_os
def test_a_rollback_before_the_boot_unstages(tmp_path: Path) -> None:
    server = OwnOs(tmp_path)
    server.driver.apply(SECOND, None)
    server.driver.rollback()
    server.boot()
    assert server.observed() == FIRST.version
    assert not server.driver.staged(SECOND)


@own_os
def test_a_hook_that_is_missing_is_told_in_the_prefetch(tmp_path: Path) -> None:
    server = OwnOs(tmp_path)
    (server.hooks / "os-rollback").unlink()
    with pytest.raises(HostError, match=r"os-rollback is not there; examples/os-hooks"):
        server.driver.fetch(SECOND, None)


@own_os
def test_a_stage_that_fails_is_quoted_and_not_staged(tmp_path: Path) -> None:
    server = OwnOs(tmp_path)
    server.hook("os-stage", "echo no such release >&2; exit 3")
    with pytest.raises(HostError, match=r"os-stage failed on server 1(.|\n)*no such release"):
        server.driver.apply(SECOND, None)
    assert not server.driver.staged(SECOND)


@own_os
def test_a_hook_that_prints_no_version_is_told(tmp_path: Path) -> None:
    server = OwnOs(tmp_path)
    server.hook("os-current", "echo I do not know")
    with pytest.raises(HostError, match="printed 'I do not know'"):
        server.observed()


@own_os
def test_without_os_current_the_hosts_os_release_says_it(tmp_path: Path) -> None:
    server = OwnOs(tmp_path)
    (server.hooks / "os-current").unlink()
    assert server.observed() is None
    (server.host.root / "etc/os-release").write_text('NAME="Flatcar"\nVERSION_ID="3227.2.0"\n')
    assert server.observed() == "3227.2.0"
    (server.host.root / "etc/flatcar").mkdir()
    (server.host.root / "etc/flatcar/update.conf").write_text("GROUP=stable\n")
    assert server.observed() == "stable/3227.2.0"


@own_os
def test_an_os_that_is_no_longer_asked_for_stays(tmp_path: Path) -> None:
    server = OwnOs(tmp_path)
    server.driver.apply(SECOND, None)
    server.driver.remove(OS_IMAGE)
    assert server.observed() == FIRST.version


def _driver(host: Host, url: str) -> OsImages:
    return OsImages(host, Ledger.open(host), OsDriver(directory=DIRECTORY), flatcar_url=url)
