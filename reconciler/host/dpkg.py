"""The host's dpkg: its database in one query, its lock waited for, what was interrupted repaired. Called by `packages` and `apt`.

Not pure. Where commands run directly and the host's root is another directory, dpkg works on that directory's database
(`--root`); else it is the host's own dpkg, run on the host.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import HeldBack, HostError, Unfetchable
from reconciler.ground import process
from reconciler.ground.process import Completed, ProcessFailed
from reconciler.host import place
from reconciler.host.driver import Host

_log = logging.getLogger(__name__)

DATABASE = "/var/lib/dpkg"
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "APT_LISTCHANGES_FRONTEND": "none",
    "NEEDRESTART_SUSPEND": "1",
}
"""No package may ask anything: a question would hang until the time is up."""

KEEP_CONFIGURATION = "--force-confdef,confold"
CHANGE_LIMIT = 1800.0
"""Seconds that installing or removing may take. dpkg is not cut off before: half a package is worse than a late one."""

_QUERY_LIMIT = 60.0
_FIELDS = (
    "Package",
    "Architecture",
    "Version",
    "db:Status-Want",
    "db:Status-Eflag",
    "db:Status-Status",
    "Essential",
    "Protected",
    "Installed-Size",
)
_LOCKS = ("lock-frontend", "lock")
_LOCKED = re.compile(
    r"(lock was locked by another process|Could not get lock|Unable to acquire the dpkg frontend lock)"
)
_VERIFIED = re.compile(r"(?P<how>missing|[?.5A-Z]{9}) +(?P<what>[a-z])? *(?P<path>/.*?)(?: \(.*\))?")
_LEFT_OUT = re.compile(r"/usr/share/(doc|man|info|locale|help|gnome/help|omf)/")
_ABSENT = ("not-installed", "config-files")


@dataclass(frozen=True, slots=True)
class Package:
    """A package as dpkg has it. `state` is dpkg's own word (`installed`, `half-configured`, …)."""

    name: str
    architecture: str
    version: str
    state: str
    held: bool = False
    broken: bool = False
    """It has to be installed anew before anything else can be done with it (dpkg's `reinstreq`)."""
    essential: bool = False
    size: int = 0
    """Bytes that it takes, as its control file says."""

    @property
    def there(self) -> bool:
        """Whether anything but configuration files is on the host."""
        return self.state not in _ABSENT

    @property
    def installed(self) -> bool:
        """Whether it is wholly installed: `ii`, or `hi` where it is held."""
        return self.state == "installed" and not self.broken

    @property
    def text(self) -> str:
        """The version; with the state where it is not wholly installed."""
        state = f"{self.state}, to be reinstalled" if self.broken else self.state
        return self.version if self.installed else f"{self.version} {state}".strip()


@dataclass(frozen=True, slots=True)
class Control:
    """What a .deb says of itself. `size` in bytes, as it will be installed."""

    package: str
    version: str
    architecture: str
    size: int


class Dpkg:
    """dpkg of one host. `lock_timeout`: seconds that its lock is waited for."""

    def __init__(self, host: Host, lock_timeout: float) -> None:
        self.host = host
        self._lock_timeout = lock_timeout
        self._architecture: str | None = None

    @property
    def bare(self) -> bool:
        """Whether the host is a directory that this machine's dpkg works on."""
        return self.host.exec == "direct" and self.host.root != Path("/")

    @property
    def options(self) -> tuple[str, ...]:
        """What every dpkg needs to find the host's database."""
        return (f"--root={self.host.root}",) if self.bare else ()

    # --- looking -----------------------------------------------------------------------------------------------------

    def packages(self) -> dict[str, Package]:
        """All packages that anything is left of, by name, from one `dpkg-query`; none where the host has no dpkg."""
        if place.status(self.host, f"{DATABASE}/status") is None:
            return {}
        where = [f"--admindir={place.inside(self.host, DATABASE)}"] if self.bare else []
        form = "\t".join(f"${{{field}}}" for field in _FIELDS) + "\n"
        argv = place.command(self.host, ["dpkg-query", *where, "--show", f"--showformat={form}"])
        return self._by_name(process.run(argv, timeout=_QUERY_LIMIT).stdout)

    def _by_name(self, text: str) -> dict[str, Package]:
        found: dict[str, Package] = {}
        for line in text.splitlines():
            name, architecture, version, want, flag, state, essential, protected, size = line.split("\t")
            package = Package(
                name=name,
                architecture=architecture,
                version=version,
                state=state,
                held=want == "hold",
                broken=flag == "reinstreq",
                essential="yes" in (essential, protected),
                size=_bytes(size),
            )
            known = found.get(name)
            if known is None or (package.there and not (known.there and self._ours(known.architecture))):
                found[name] = package
        return found

    def _ours(self, architecture: str) -> bool:
        return architecture in ("all", self.architecture)

    @property
    def architecture(self) -> str:
        """The host's architecture in Debian's words."""
        if self._architecture is None:
            argv = place.command(self.host, ["dpkg", "--print-architecture"])
            self._architecture = process.run(argv, timeout=_QUERY_LIMIT).stdout.strip()
        return self._architecture

    def needed_by(self, name: str) -> tuple[str, ...]:
        """The installed packages that do not work without `name`, as dpkg judges it."""
        argv = ["dpkg", *self.options, "--no-act", "--remove", "--", name]
        done = process.run(place.command(self.host, argv), timeout=_QUERY_LIMIT, check=False, env=ENVIRONMENT)
        if done.status == 0:
            return ()
        return tuple(sorted(set(re.findall(r"^ (\S+) (?:pre-)?depends on ", done.stderr, re.MULTILINE))))

    def altered(self, names: Sequence[str]) -> tuple[str, ...]:
        """The files of these packages that are not as they came, sorted: changed or missing, configuration files left out."""
        if not names:
            return ()
        argv = place.command(self.host, ["dpkg", *self.options, "--verify", "--", *names])
        done = process.run(argv, timeout=CHANGE_LIMIT, check=False)
        found = (_VERIFIED.fullmatch(line) for line in done.stdout.splitlines())
        return tuple(
            sorted(line["path"] for line in found if line and line["what"] != "c" and _matters(line))
        )

    # --- changing ----------------------------------------------------------------------------------------------------

    def repair(self, packages: Mapping[str, Package], cached: Mapping[str, Path]) -> bool:
        """Finish what an interrupted dpkg left: configure all, then install the `cached` .deb of what is still broken.

        `cached` is by package. False where there was nothing to do. What cannot be repaired is left to what comes next:
        a package that has nothing to do with us must not keep us from our own work.
        """
        if not self._interrupted() and all(
            not package.there or package.installed for package in packages.values()
        ):
            return False
        self.change(["dpkg", *self.options, KEEP_CONFIGURATION, "--configure", "--pending"], check=False)
        broken = [
            name for name, package in self.packages().items() if package.there and not package.installed
        ]
        if again := [cached[name] for name in broken if name in cached]:
            self.install(again, check=False)
        return True

    def _interrupted(self) -> bool:
        """Whether dpkg's journal has entries, or an update of its database was cut off."""
        try:
            return any(
                entry.name.isdecimal() for entry in place.inside(self.host, f"{DATABASE}/updates").iterdir()
            )
        except OSError:
            return False

    def install(self, files: Iterable[Path], check: bool = True) -> Completed:
        """Install these .deb files with dpkg alone: nothing else comes along."""
        paths = [place.seen(self.host, file) for file in files]
        return self.change(
            ["dpkg", *self.options, KEEP_CONFIGURATION, "--install", "--", *paths], check=check
        )

    def remove(self, name: str) -> None:
        """Remove one package; configuration files stay."""
        self.change(["dpkg", *self.options, "--remove", "--", name])

    def remove_broken(self, name: str) -> None:
        """Remove a package that would have to be installed anew first, where nothing is there to install it from."""
        self.change(["dpkg", *self.options, "--force-remove-reinstreq", "--remove", "--", name])

    def change(
        self, argv: Sequence[str], *, check: bool = True, env: Mapping[str, str] | None = None
    ) -> Completed:
        """Run a program that changes packages, once dpkg's lock is free, however often somebody else is quicker."""
        deadline = time.monotonic() + self._lock_timeout
        while True:
            self._wait_for_lock(deadline)
            done = process.run(
                place.command(self.host, argv),
                timeout=CHANGE_LIMIT,
                check=False,
                env={**ENVIRONMENT, **(env or {})},
                pass_fds=place.inherited(self.host),
            )
            if done.status == 0:
                return done
            if _LOCKED.search(done.stderr) and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            if check:
                raise failed(argv, done)
            return done

    def _wait_for_lock(self, deadline: float) -> None:
        told = False
        while holder := self.holder():
            if not told:
                _log.info("waits for dpkg's lock, which %s holds", holder)
                told = True
            if time.monotonic() >= deadline:
                raise HeldBack(
                    f"cannot change packages on server {self.host.lrn}: {holder} has held dpkg's lock for more than "
                    f"{self._lock_timeout:g} s; it goes on once that is free"
                )
            time.sleep(0.1)

    def holder(self) -> str | None:
        """Who holds dpkg's lock, with process id and name; None while nobody does."""
        for name in _LOCKS:
            pid = _locked_by(place.inside(self.host, f"{DATABASE}/{name}"))
            if pid is not None:
                return self._process(pid)
        return None

    def _process(self, pid: int) -> str:
        name = None
        if pid > 0:
            with contextlib.suppress(HostError):
                # In a container, the process ids of a lock are this process' own; so is /proc.
                name = place.text(Host(), f"/proc/{pid}/comm", 100)
        return f"{name} (process {pid})" if name else f"process {pid}" if pid > 0 else "a process elsewhere"


def _matters(line: re.Match[str]) -> bool:
    """Whether the file's content differs, or it is gone and not one of those that small systems leave out at installing."""
    return "5" in line["how"] or (line["how"] == "missing" and not _LEFT_OUT.match(line["path"]))


def failed(argv: Sequence[str], done: Completed) -> ProcessFailed:
    """The error of a program that failed, with its last lines."""
    lines = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()][-15:]
    how = (
        f"was ended by signal {-done.status}" if done.status < 0 else f"failed with exit status {done.status}"
    )
    return ProcessFailed(
        f"{' '.join(argv)} {how}" + "".join(f"\n    {line.strip()[:500]}" for line in lines),
        done.status,
        done.stderr + done.stdout,
    )


def control(file: Path) -> Control:
    """What the .deb `file` says of itself; its beginning is enough. Raises `Unfetchable` where it is no .deb."""
    names = ("Package", "Version", "Architecture", "Installed-Size")
    try:
        # It unpacks beside the file: in a container whose root is read-only there may be no other place.
        env = {"TMPDIR": str(file.parent)}
        text = process.run(["dpkg-deb", "--field", file, *names], timeout=_QUERY_LIMIT, env=env).stdout
    except ProcessFailed as error:
        if error.status is None:
            raise
        if os.strerror(errno.ENOSPC) in error.output:
            raise HostError(f"cannot look into {file}: no room left beside it; make room there") from None
        raise Unfetchable(
            f"cannot use {file.name}: it is no Debian package ({_last_line(error.output)})"
        ) from None
    found = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    if not all(found.get(name) for name in names[:3]):
        raise Unfetchable(
            f"cannot use {file.name}: its control file names no package, version or architecture"
        )
    size = _bytes(found.get("Installed-Size", ""))
    return Control(found["Package"], found["Version"], found["Architecture"], size)


def _bytes(kibibytes: str) -> int:
    return int(kibibytes) * 1024 if kibibytes.isdecimal() else 0


def contents(file: Path) -> frozenset[str]:
    """The paths that the .deb `file` unpacks, from the root."""
    text = process.run(["dpkg-deb", "--contents", file], timeout=CHANGE_LIMIT).stdout
    fields = (line.split(maxsplit=5) for line in text.splitlines())
    names = (found[5].partition(" -> ")[0].partition(" link to ")[0] for found in fields if len(found) == 6)
    return frozenset(name.removeprefix(".") for name in names)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:200] if lines else "no reason given"


def _locked_by(path: Path) -> int | None:
    """The process that holds a record lock on `path` (0 where it is in another namespace); None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        form = "hhqqi4x"
        question = struct.pack(form, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(form, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
        return None if kind == fcntl.F_UNLCK else max(0, pid)
    finally:
        os.close(descriptor)
