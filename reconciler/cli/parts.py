"""Builds one server's parts from the options: its host, drivers, and what resolves references. Called by `agent`, a pass, `drift`, `adopt`."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reconciler.agent.hands import Hands
from reconciler.core.artifact import Artifact, Key, Kind, Known, Pin
from reconciler.core.state import DEFAULT_GROUP, OsDriver, ServerGroup, Settings
from reconciler.errors import UsageError
from reconciler.host import place
from reconciler.host.containers import Containers
from reconciler.host.driver import Driver, Host, Progress, silent
from reconciler.host.ledger import Ledger
from reconciler.host.os_image import OsImages
from reconciler.host.packages import Packages
from reconciler.host.policy import EVERYTHING, HostPolicy

if TYPE_CHECKING:
    from reconciler.agent.resolve import Resolver
    from reconciler.cli.options import Options

_POLICY_LIMIT = 1 << 20


class GroupOsImages:
    """The OS image's driver, by the way that the server's group has now: `group` is asked at each call."""

    def __init__(self, make: Callable[[OsDriver], OsImages], group: Callable[[], ServerGroup]) -> None:
        self._make, self._group = make, group
        self._made: tuple[OsDriver, OsImages] | None = None

    def observe(self, artifacts: Iterable[Artifact | Known]) -> Mapping[Key, str]:
        return self._driver.observe(artifacts)

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        return self._driver.target(artifact, pin)

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        self._driver.fetch(artifact, pin, progress)

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        self._driver.apply(artifact, pin)

    def remove(self, key: Key) -> None:
        self._driver.remove(key)

    def resolve(self, artifact: Artifact) -> Pin | None:
        return self._driver.resolve(artifact)

    @property
    def _driver(self) -> OsImages:
        wanted = self._group().os_image
        if self._made is None or self._made[0] != wanted:
            self._made = (wanted, self._make(wanted))
        return self._made[1]


@dataclass(frozen=True, slots=True)
class ServerParts:
    """One server's parts. `configure` takes over the fleet's settings as they are now."""

    hands: Hands
    resolvers: Mapping[Kind, Resolver]
    configure: Callable[[Settings], None]


def host(options: Options, lock_fd: int | None = None) -> Host:
    """The server that this process works for."""
    return Host(
        options.host_root, _execution(options), options.state_dir, options.lrn, _hostname(options), lock_fd
    )


def policy(options: Options, where: Host) -> HostPolicy:
    """What the host allows; everything where it has no policy and none was asked for. Raises `Refused`."""
    from reconciler.wire.settings import read_policy

    data = place.read(where, options.policy, _POLICY_LIMIT)
    if data is None:
        if options.given("policy"):
            raise UsageError(f"cannot read the host's policy {options.policy}: it is not there")
        return EVERYTHING
    return read_policy(data, str(options.policy))


def server_parts(
    options: Options,
    where: Host,
    group: Callable[[], ServerGroup] = lambda: DEFAULT_GROUP,
    progress: Progress = silent,
    ending: threading.Event | None = None,
) -> ServerParts:
    """The parts of the server at `where`; `group` says which group it is in now."""
    ledger = Ledger.open(where)
    packages = Packages(where, ledger, github_api=options.github_api)
    containers = Containers(where, ledger, runtime=_runtime(options))

    def os_images(driver: OsDriver) -> OsImages:
        if options.flatcar_url is None:
            return OsImages(where, ledger, driver)
        return OsImages(where, ledger, driver, flatcar_url=options.flatcar_url)

    os_image = GroupOsImages(os_images, group)
    drivers: dict[Kind, Driver] = {"deb": packages, "image": containers, "os-image": os_image}
    hands = Hands(
        where,
        drivers,
        containers,
        ledger,
        policy(options, where),
        options.reboot_command,
        str(options.reboot_required_file),
        options.alarm_after,
        progress,
        ending or threading.Event(),
        time.time,
    )

    def configure(settings: Settings) -> None:
        packages.configure(settings.github_token, settings.proxy)

    return ServerParts(hands, {"deb": packages, "image": containers, "os-image": os_image}, configure)


def _execution(options: Options) -> Literal["direct", "chroot", "nsenter"]:
    """`auto`: directly where the server's file system is this process's own, else by chroot into it."""
    match options.host_exec:
        case "direct" | "chroot" | "nsenter" as asked:
            return asked
        case _:
            return "direct" if str(options.host_root) == "/" else "chroot"


def _runtime(options: Options) -> Literal["auto", "podman", "docker"]:
    match options.runtime:
        case "podman" | "docker" as asked:
            return asked
        case _:
            return "auto"


def _hostname(options: Options) -> str:
    found = (
        place.text(Host(options.host_root), "/etc/hostname", 300) if str(options.host_root) != "/" else None
    )
    return found or socket.gethostname()
