"""Small Debian packages, built on the spot, and the hosts that they are installed on. For tests.

`bare_host` is a directory with a dpkg database and nothing else: quick, for packages without scripts. `overlay_host` is a
whole system of its own, a chroot on an overlay over this machine's root: with apt, scripts, locks and a disk that can be full.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from reconciler.host.driver import Host


@dataclass(frozen=True, slots=True)
class DebSpec:
    """A package to build: `files` by path, `scripts` by name (`postinst`), `fields` for the control file."""

    name: str
    version: str
    depends: str = ""
    architecture: str = "all"
    files: tuple[tuple[str, str], ...] = ()
    conffiles: tuple[tuple[str, str], ...] = ()
    scripts: tuple[tuple[str, str], ...] = ()
    fields: tuple[tuple[str, str], ...] = ()

    def at(self, version: str) -> DebSpec:
        return replace(self, version=version)


def build(spec: DebSpec, directory: Path, file_name: str = "") -> Path:
    """Build the package's .deb into `directory`."""
    tree = directory / f".{spec.name}-{spec.version}-{spec.architecture}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    fields = {
        "Package": spec.name,
        "Version": spec.version,
        "Architecture": spec.architecture,
        "Maintainer": "Nobody <nobody@example.com>",
        **({"Depends": spec.depends} if spec.depends else {}),
        **dict(spec.fields),
        "Description": f"the test's {spec.name}",
    }
    _put(tree / "DEBIAN/control", "".join(f"{name}: {value}\n" for name, value in fields.items()))
    files = spec.files or ((f"/usr/share/{spec.name}/version", f"{spec.version}\n"),)
    for path, content in (*files, *spec.conffiles):
        _put(tree / path.lstrip("/"), content)
    if spec.conffiles:
        _put(tree / "DEBIAN/conffiles", "".join(f"{path}\n" for path, _ in spec.conffiles))
    for name, text in spec.scripts:
        _put(tree / "DEBIAN" / name, text, 0o755)
    deb = directory / (file_name or f"{spec.name}_{spec.version.replace(':', '%3a')}_{spec.architecture}.deb")
    _run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(deb)])
    _run(["rm", "-r", str(tree)])
    return deb


def repository(directory: Path, *specs: DebSpec) -> Path:
    """An APT repository in `directory` that has these packages and no others."""
    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.deb"):
        old.unlink()
    for spec in specs:
        build(spec, directory)
    found = subprocess.run(
        ["dpkg-scanpackages", "--multiversion", "."],
        cwd=directory,
        capture_output=True,
        check=True,
        text=True,
    )
    index = directory / "Packages"
    before = index.stat().st_mtime if index.exists() else time.time() - 1000
    index.write_text(found.stdout)
    # A server tells apt that nothing changed where both happened within one second.
    os.utime(index, (before + 10, before + 10))
    return directory


def bare_host(directory: Path, source: str = "") -> Host:
    """A host root with dpkg's database alone; with apt's directories too where `source` (a line of sources.list) is given."""
    root = directory / "root"
    for path in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "usr", "etc"):
        (root / path).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    if source:
        for path in (
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
            "etc/apt/trusted.gpg.d",
        ):
            (root / path).mkdir(parents=True)
        (root / "var/lib/apt/lists/partial").mkdir(parents=True)
        (root / "var/cache/apt").mkdir(parents=True)
        (root / "etc/apt/sources.list").write_text(source + "\n")
    return Host(root=root, state_dir=directory / "state", hostname="boot-0")


@contextmanager
def overlay_host(directory: Path, source: str = "", size: str = "200m") -> Iterator[Host]:
    """A whole system over this machine's own, with a disk of `size`; its only APT source is `source`."""
    top = directory / "top"
    root = directory / "root"
    top.mkdir()
    root.mkdir()
    if not _mounts(["-t", "tmpfs", "-o", f"size={size}", "top", str(top)]):
        pytest.skip("this machine does not let us mount anything, so there is no host of its own")
    try:
        (top / "upper").mkdir()
        (top / "work").mkdir()
        options = f"lowerdir=/,upperdir={top}/upper,workdir={top}/work"
        if not _mounts(["-t", "overlay", "-o", options, "host", str(root)]):
            pytest.skip("this machine has no overlay file system, so there is no host of its own")
        try:
            _prepare(root, source)
            yield Host(root=root, exec="chroot", state_dir=root / "var/lib/reconciler", hostname="boot-0")
        finally:
            _run(["umount", "--lazy", str(root)])
    finally:
        _run(["umount", "--lazy", str(top)])


def _prepare(root: Path, source: str) -> None:
    apt = root / "etc/apt"
    for path in (*apt.glob("sources.list.d/*"), *apt.glob("preferences.d/*")):
        path.unlink()
    (apt / "sources.list").write_text(source + "\n")
    # The sandbox of apt's downloads is a user that may not read a test's directory.
    _put(apt / "apt.conf.d/99test", 'APT::Sandbox::User "root";\n')
    lists = root / "var/lib/apt/lists"
    for path in lists.glob("*_*"):
        path.unlink()
    if not (root / "dev/null").exists():
        _run(["mknod", "-m", "666", str(root / "dev/null"), "c", "1", "3"])


def state(host: Host, name: str) -> str:
    """What dpkg itself says of a package: `ii  1.0`, `iF 1.0`, or nothing."""
    found = subprocess.run(
        [
            "dpkg-query",
            f"--admindir={host.root}/var/lib/dpkg",
            "--show",
            "--showformat=${db:Status-Abbrev}${Version}",
            name,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return " ".join(found.stdout.split())


def audit(host: Host) -> str:
    """What dpkg finds wrong with its own database; empty where all is well."""
    return subprocess.run(
        ["dpkg", f"--admindir={host.root}/var/lib/dpkg", "--audit"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def dpkg(host: Host, *words: str, env: Mapping[str, str] | None = None) -> None:
    """Run dpkg on the host by hand, as an administrator would."""
    argv = (
        ["dpkg", f"--root={host.root}", *words]
        if host.exec == "direct"
        else ["chroot", str(host.root), "dpkg", *words]
    )
    _run(argv, env)


def _mounts(words: Sequence[str]) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


def _put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _run(argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(argv)} failed: {done.stderr}")
