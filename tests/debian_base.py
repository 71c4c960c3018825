"""A small Debian of this machine's own release, made by debootstrap: what an image is built on, and a server's file system.

It takes a minute or two, so its archive stays in pytest's cache for a week (`make clean` removes it). For tests.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import time
from pathlib import Path

BUNDLE = "etc/ssl/certs/ca-certificates.crt"
_KEPT = 7 * 24 * 3600.0
_PATIENCE = 280


def base_archive(cache: Path) -> Path:
    """The archive, made anew where the cache has none that is for this machine's package sources, or only an old one."""
    codename, site, components = _source()
    name = hashlib.sha256(f"{codename} {site} {components}".encode()).hexdigest()[:16]
    archive = cache / f"{codename}-{name}.tar"
    if archive.exists() and time.time() - archive.stat().st_mtime < _KEPT:
        return archive
    tree, part = cache / "tree", cache / "part.tar"
    shutil.rmtree(tree, ignore_errors=True)
    options = ["--variant=minbase", "--include=ca-certificates", f"--components={components}"]
    try:
        _run("debootstrap", *options, codename, tree, site)
        _run("chroot", tree, "apt-get", "clean")
        for index in (tree / "var/lib/apt/lists").glob("*_*"):
            index.unlink()
        # A throw-away image need not reach the disk before the next package.
        (tree / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        _run("tar", "--directory", tree, "--create", "--file", part, ".")
        for old in cache.glob("*-*.tar"):
            old.unlink()
        part.rename(archive)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        part.unlink(missing_ok=True)
    return archive


def unpack(archive: Path, directory: Path) -> None:
    """A system below `directory`. Who may vouch for packages is this machine's affair, so its certificates are put there."""
    directory.mkdir()
    _run("tar", "--directory", directory, "--extract", "--file", archive)
    shutil.copy(Path("/") / BUNDLE, directory / BUNDLE)


def _source() -> tuple[str, str, str]:
    """This machine's release, where its packages come from, and which parts of that archive are free."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release["VERSION_CODENAME"]
    form = "$(CODENAME) $(SITE) $(COMPONENT)"
    targets = _run("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    archives = [line.split() for line in targets.splitlines() if line.startswith(f"{codename} ")]
    assert archives, f"apt-get names no archive of {codename}: {targets}"
    components = ",".join(sorted({component for _, _, component in archives} & {"main", "universe"}))
    return codename, archives[0][1], components


def _run(*argv: str | Path) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    assert done.returncode == 0, (
        f"{argv} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
    )
    return done.stdout
