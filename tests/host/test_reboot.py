"""Who the server is, which boot it is in, and asking for the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.errors import HostError
from reconciler.host.driver import Host
from reconciler.host.reboot import User, boot_id, logged_in, machine_id, reboot, reboot_required, warn

BOOT = "0a1b2c3d-0000-4000-8000-0123456789ab"
MACHINE = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root = tmp_path / "root"
    for name, text in (("proc/sys/kernel/random/boot_id", BOOT), ("etc/machine-id", MACHINE)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return Host(root=root, lrn=2)


def test_boot_and_machine_are_the_hosts(host: Host) -> None:
    assert boot_id(host) == BOOT
    assert machine_id(host) == MACHINE


def test_this_machine_has_a_boot_id() -> None:
    assert boot_id(Host()) == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.parametrize("text", ["", "uninitialized", MACHINE + "0", MACHINE.upper()])
def test_what_is_no_machine_id_is_refused(host: Host, text: str) -> None:
    (host.root / "etc/machine-id").write_text(text)
    with pytest.raises(HostError, match="which machine server 2 is"):
        machine_id(host)


def test_a_root_without_proc_has_no_boot_id_of_its_own(host: Host) -> None:
    (host.root / "proc/sys/kernel/random/boot_id").unlink()
    with pytest.raises(HostError, match="missing"):
        boot_id(host)


def test_a_sidecar_takes_the_kernels_boot_id(host: Host) -> None:
    (host.root / "proc/sys/kernel/random/boot_id").unlink()
    sidecar = Host(root=host.root, exec="chroot")
    assert boot_id(sidecar) == boot_id(Host())


def test_the_sentinel_is_looked_for_where_the_host_has_it(host: Host) -> None:
    sentinel = "/var/run/reboot-required"
    assert not reboot_required(host, sentinel)
    (host.root / "run").mkdir()
    (host.root / "var").mkdir()
    (host.root / "var/run").symlink_to("/run")
    (host.root / "run/reboot-required").touch()
    assert reboot_required(host, sentinel)


def _program(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


def test_who_is_logged_in_is_told(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    _program(
        programs, "who", "printf 'ada   pts/1 2026-11-21 03:03 (198.18.0.9)\\nbob   tty1 2026-11-21 02:00\\n'"
    )
    _program(programs, "wall", f"cat > {tmp_path}/told")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert warn(host, "server 2 goes down in 5 minutes") == (User("ada", "pts/1"), User("bob", "tty1"))
    assert (tmp_path / "told").read_text() == "server 2 goes down in 5 minutes\n"


def test_nobody_is_told_where_nobody_is(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    _program(programs, "who", "exit 0")
    _program(programs, "wall", f"touch {tmp_path}/told")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert warn(host, "down") == ()
    assert not (tmp_path / "told").exists()


def test_a_host_without_who_has_nobody(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert logged_in(host) == ()


def test_the_reboot_command_is_words_and_no_shell(host: Host, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "reboot it"
    _program(tmp_path / "bin", "reboot it", f'printf "%s\\n" "$@" > {tmp_path}/said')
    reboot(host, f"'{program}' --now '; touch {tmp_path}/shell'")
    assert (tmp_path / "said").read_text() == f"--now\n; touch {tmp_path}/shell\n"
    assert not (tmp_path / "shell").exists()


@pytest.mark.parametrize(
    ("command", "says"), [("", "empty"), ("'unfinished", "cannot be read"), ("/no/reboot", "cannot run")]
)
def test_a_reboot_command_that_cannot_be_run(host: Host, command: str, says: str) -> None:
    with pytest.raises(HostError, match=says):
        reboot(host, command)


def test_a_reboot_command_that_fails_is_quoted(host: Host, tmp_path: Path) -> None:
    _program(tmp_path / "bin", "halt", "echo inhibited by ada >&2; exit 1")
    with pytest.raises(HostError, match="inhibited by ada"):
        reboot(host, str(tmp_path / "bin" / "halt"))
