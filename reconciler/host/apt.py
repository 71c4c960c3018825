"""The host's apt-get: brings packages with all that they depend on into a directory, and installs them from there without the network.

Called by `packages` only. Not pure. `archives` is a directory of one package's own, so that what was fetched for it
stays until the host was looked at, whatever cleans apt's own cache.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from reconciler.errors import HostError, ReconcilerError, Unavailable, Unfetchable
from reconciler.ground import process
from reconciler.ground.process import Completed
from reconciler.host import place
from reconciler.host.dpkg import DATABASE, ENVIRONMENT, Dpkg, failed

FETCH_LIMIT = 1800.0
"""Seconds that apt may take to fetch a package and what it depends on."""

_UPDATE_LIMIT = 300.0
_MENDED = "status"
_STATUS_LIMIT = 256 << 20
_HALF = re.compile(
    rb"^Status: \S+ (?:\S+ (?:half-installed|half-configured|unpacked|triggers-\S+)|reinstreq \S+)$", re.M
)
_UPDATE_AGE = 60.0
_MISSING = re.compile(
    r"E: (Unable to locate package|Version '.*' for '.*' was not found|Package '.*' has no installation)"
)
_GONE = re.compile(r"E: Failed to fetch \S+ +404")
_UNMET = re.compile(r"unmet dependencies|held broken packages|Unable to correct problems")
_UNREACHED = re.compile(
    r"Failed to fetch|Temporary failure|Could not (connect|resolve)|Connection (failed|timed out)|Could not get lock"
)
_REMOVES = re.compile(r"Packages need to be removed")
_HOLDS = re.compile(r"Held packages were changed")
_CORRUPT = re.compile(r"Hash Sum mismatch|unexpected size")


def archive_name(package: str, version: str, architecture: str) -> str:
    """The name under which apt looks for a package among its archives."""
    quoted = (
        re.sub(r"[_:%]", lambda found: f"%{ord(found[0]):02x}", part)
        for part in (package, version, architecture)
    )
    return "_".join(quoted) + ".deb"


class Apt:
    """apt-get of one host."""

    def __init__(self, dpkg: Dpkg, proxy: str | None = None) -> None:
        self._dpkg = dpkg
        self._host = dpkg.host
        self.proxy = proxy
        self._updating = threading.Lock()
        self._updated_at: float | None = None

    @property
    def there(self) -> bool:
        """Whether the host has apt: the program, or, for a bare directory, its sources and lists."""
        if self._dpkg.bare:
            lists = place.status(self._host, "/etc/apt") and place.status(self._host, "/var/lib/apt/lists")
            return lists is not None and process.exists("apt-get")
        return place.status(self._host, "/usr/bin/apt-get") is not None

    def fetch(self, name: str, what: str, archives: Path) -> None:
        """Bring package `name`, as `what` (`name=version`, or a .deb's path), and what it depends on into `archives`.

        The package lists are brought up to date where they do not know it. Raises `Unfetchable` or `Unavailable`.
        """
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        done = self._run(self._plan(name, what, archives, "--download-only"))
        if done.status and (
            _MISSING.search(done.stderr) or _GONE.search(done.stderr) or _UNMET.search(done.stderr)
        ):
            self.update()
            done = self._run(self._plan(name, what, archives, "--download-only"))
        if done.status:
            raise self._why(what, done)
        self._copy_local(name, what, archives)
        (archives / _MENDED).unlink(missing_ok=True)

    def install(self, what: str, archives: Path, *, reinstall: bool) -> None:
        """Install `what` from `archives`, old configuration files kept, nothing removed, without the network."""
        words = ["--no-download", "--reinstall"] if reinstall else ["--no-download"]
        argv = self._command(archives, "install", *words, what)
        done = self._dpkg.change(argv, check=False, env=self._environment())
        if done.status:
            raise self._refused(what, argv, done)

    def update(self) -> None:
        """Bring the package lists up to date, at most once a minute. Raises `Unavailable`."""
        with self._updating:
            now = time.monotonic()
            if self._updated_at is not None and now - self._updated_at < _UPDATE_AGE:
                return
            argv = ["apt-get", *self._options(), "-q=2", "update"]
            done = process.run(
                place.command(self._host, argv),
                timeout=_UPDATE_LIMIT,
                check=False,
                env=self._environment(),
                pass_fds=place.inherited(self._host),
            )
            if done.status:
                raise Unavailable(
                    f"cannot bring the package lists of server {self._host.lrn} up to date{_errors(done)}"
                )
            self._updated_at = time.monotonic()

    def _plan(self, name: str, what: str, archives: Path, mode: str) -> list[str]:
        """apt-get looking only: what is installed already comes too, so that it can be repaired from here.

        Nothing of the host changes, so dpkg's lock is not needed, and a package that is being installed holds up no prefetch.
        """
        options = ["-o", "Debug::NoLocking=true"]
        if mended := self._mended(name, archives):
            options += ["-o", f"Dir::State::status={place.seen(self._host, mended)}"]
        return [*self._command(archives, "install", "--reinstall", mode, *options, what)]

    def _mended(self, name: str, archives: Path) -> Path | None:
        """A copy of dpkg's status in which no package is half there, and `name` not at all; None where none is.

        apt plans nothing at all as long as one package is broken, and the repair comes with the change, not before it.
        """
        status = place.read(self._host, f"{DATABASE}/status", _STATUS_LIMIT) or b""
        if not _HALF.search(status):
            return None
        ours = f"Package: {name}\n".encode()
        stanzas = [
            _HALF.sub(b"Status: install ok installed", stanza)
            for stanza in status.split(b"\n\n")
            if not (stanza.lstrip(b"\n").startswith(ours) and _HALF.search(stanza))
        ]
        place.publish(archives / _MENDED, b"\n\n".join(stanzas), 0o644)
        return archives / _MENDED

    def _copy_local(self, name: str, what: str, archives: Path) -> None:
        """Copy what stands in a `file:` source: apt uses it where it is, and it may be gone when it is needed."""
        done = self._run(self._plan(name, what, archives, "--print-uris"))
        for address, file in re.findall(r"^'(file:[^']+)' (\S+) ", done.stdout, re.MULTILINE):
            source = place.inside(self._host, unquote(urlsplit(address).path))
            if self._dpkg.bare:
                source = Path(unquote(urlsplit(address).path))
            if source != archives / file and "/" not in file and place.seen(self._host, source) != what:
                shutil.copyfile(source, archives / file)

    def _run(self, argv: Sequence[str]) -> Completed:
        return process.run(
            place.command(self._host, argv),
            timeout=FETCH_LIMIT,
            check=False,
            env=self._environment(),
            pass_fds=place.inherited(self._host),
        )

    def _command(self, archives: Path, verb: str, *words: str) -> list[str]:
        return [
            "apt-get",
            *self._options(),
            *("-o", f"Dir::Cache::Archives={place.seen(self._host, archives)}/"),
            *("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"),
            *("-o", "Dpkg::Use-Pty=false"),
            *(word for kept in place.inherited(self._host) for word in ("-o", f"APT::Keep-Fds::={kept}")),
            *("-q", "--yes", "--allow-downgrades", "--no-install-recommends", "--no-remove"),
            verb,
            *words,
        ]

    def _options(self) -> list[str]:
        if not self._dpkg.bare:
            return []
        root = self._host.root
        pairs = {
            "Dir": str(root),
            "Dir::State::status": f"{root}/var/lib/dpkg/status",
            "Dpkg::Options::": f"--root={root}",
            "Dir::Log::Terminal": "",
            "Dir::Log::History": "",
            "Dir::Log::Planner": "",
            "APT::Sandbox::User": "root",
        }
        return [word for name, value in pairs.items() for word in ("-o", f"{name}={value}")]

    def _environment(self) -> Mapping[str, str]:
        return {**ENVIRONMENT, **process.proxy_environment(self.proxy)}

    def _why(self, what: str, done: Completed) -> ReconcilerError:
        """Why `what` could not be fetched."""
        server = f"on server {self._host.lrn}"
        said = done.stderr
        if _CORRUPT.search(said):
            return Unavailable(
                f"cannot fetch {what} {server}: what the source sent is damaged{_errors(done)}"
            )
        if _MISSING.search(said) or _GONE.search(said):
            return Unfetchable(
                f"cannot fetch {what} {server}: its APT sources do not have it{_errors(done)}\n"
                "Ask for a version that they have, or keep this one in a repository of your own"
            )
        if _UNMET.search(said):
            return Unfetchable(
                f"cannot fetch {what} {server}: what it depends on cannot be had{_unmet(done)}{_errors(done)}"
            )
        if _UNREACHED.search(said):
            return Unavailable(f"cannot fetch {what} {server}: a source does not answer{_errors(done)}")
        return self._refused(what, ["apt-get", "install", "--download-only", what], done)

    def _refused(self, what: str, argv: Sequence[str], done: Completed) -> HostError:
        """Why `what` could not be installed; the last lines as they are where nothing better is known."""
        server = f"on server {self._host.lrn}"
        if _REMOVES.search(done.stderr):
            return HostError(
                f"cannot install {what} {server}: apt would have to remove other packages for it, and only what is "
                f"this agent's own is ever removed{_errors(done)}"
            )
        if _HOLDS.search(done.stderr):
            return HostError(
                f"cannot install {what} {server}: it needs a change of a package that is on hold{_errors(done)}"
            )
        return failed(argv, done)


def _errors(done: Completed) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))][:8]
    return "".join(f"\n    {line[:300]}" for line in lines)


def _unmet(done: Completed) -> str:
    lines = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if " Depends: " in line or " Breaks: " in line
    ][:8]
    return "".join(f"\n    {line.strip()[:300]}" for line in lines)
