"""Builds one server's parts from the options: its drivers, and what resolves references. Called by `agent`, a pass, `drift`, `adopt`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reconciler.agent.hands import Hands
from reconciler.cli.here import host, policy
from reconciler.core.artifact import Artifact, Key, Kind, Known, Pin
from reconciler.core.state import DEFAULT_GROUP, OsDriver, ServerGroup, Settings
from reconciler.host.containers import Containers
from reconciler.host.driver import Driver, Host, Progress, silent
from reconciler.host.ledger import Ledger
from reconciler.host.os_image import OsImages
from reconciler.host.packages import Packages

if TYPE_CHECKING:
    from reconciler.agent.resolve import Resolver
    from reconciler.cli.options import Options

__all__ = ["ServerParts", "host", "policy", "server_parts"]


class GroupOsImages:
    """The OS image's driver, by the way that the server's group has now: `group` is asked at each call.

    `proxy` may be set anew at any time: it comes from the fleet's settings.
    """

    def __init__(
        self, make: Callable[[OsDriver, str | None], OsImages], group: Callable[[], ServerGroup]
    ) -> None:
        self._make, self._group = make, group
        self.proxy: str | None = None
        self._made: tuple[OsDriver, str | None, OsImages] | None = None

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        return self._driver.observe(artifacts, closely=closely)

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        return self._driver.target(artifact, pin)

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        self._driver.fetch(artifact, pin, progress)

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        self._driver.apply(artifact, pin)

    def remove(self, key: Key) -> None:
        self._driver.remove(key)

    def tidy(self) -> None:
        self._driver.tidy()

    def resolve(self, artifact: Artifact) -> Pin | None:
        return self._driver.resolve(artifact)

    @property
    def _driver(self) -> OsImages:
        wanted, proxy = self._group().os_image, self.proxy
        if self._made is None or self._made[:2] != (wanted, proxy):
            self._made = (wanted, proxy, self._make(wanted, proxy))
        return self._made[2]


@dataclass(frozen=True, slots=True)
class ServerParts:
    """One server's parts. `configure` takes over the fleet's settings as they are now."""

    hands: Hands
    resolvers: Mapping[Kind, Resolver]
    configure: Callable[[Settings], None]


def server_parts(
    options: Options,
    where: Host,
    group: Callable[[], ServerGroup] = lambda: DEFAULT_GROUP,
    progress: Progress = silent,
    ending: threading.Event | None = None,
    alarm_after: Callable[[], float] | None = None,
    restart: Callable[[], None] | None = None,
) -> ServerParts:
    """The parts of the server at `where`. `group` says which group it is in now, `alarm_after` that option's value, `restart` ends an agent."""
    ledger = Ledger.open(where)
    packages = Packages(where, ledger, github_api=options.github_api)
    containers = Containers(where, ledger, runtime=_runtime(options))

    def os_images(driver: OsDriver, proxy: str | None) -> OsImages:
        if options.flatcar_url is None:
            return OsImages(where, ledger, driver, proxy=proxy)
        return OsImages(where, ledger, driver, flatcar_url=options.flatcar_url, proxy=proxy)

    def begin_fetching() -> None:
        packages.begin_fetching()
        containers.begin_fetching()

    def tidy(recorded: Iterable[Key]) -> None:
        wanted = tuple(recorded)
        packages.tidy(wanted)
        containers.tidy(wanted)
        os_image.tidy()

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
        alarm_after or (lambda: options.alarm_after),
        progress,
        ending or threading.Event(),
        time.time,
        begin_fetching,
        tidy,
        packages.users,
        _runtime(options),
        restart,
    )

    def configure(settings: Settings) -> None:
        packages.configure(settings.github_token, settings.proxy)
        containers.configure(settings.proxy)
        os_image.proxy = settings.proxy

    return ServerParts(hands, {"deb": packages, "image": containers, "os-image": os_image}, configure)


def _runtime(options: Options) -> Literal["auto", "podman", "docker"]:
    match options.runtime:
        case "podman" | "docker" as asked:
            return asked
        case _:
            return "auto"
