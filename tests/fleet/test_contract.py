"""What the simulated drivers share with a real one: the same tests for both, so that the simulation may be believed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.core.artifact import Key, Pin, ReleaseDeb
from reconciler.errors import HostError, Unfetchable
from reconciler.host.driver import Driver, Host
from reconciler.host.ledger import Ledger
from reconciler.host.packages import Packages
from tests.debs import DebSpec, bare_host, build
from tests.fleet.simulated import Fate, Place, SimulatedDriver
from tests.release_server import ReleaseServer

NAME = Key("deb", "tool")


@dataclass(frozen=True, slots=True)
class Subject:
    """A driver, how a version is asked of it, and how a fetch is made to fail."""

    driver: Driver
    pin: Callable[[ReleaseDeb], Pin | None]
    break_fetch: Callable[[], None]

    def fetch(self, version: str) -> None:
        wanted = deb(version)
        self.driver.fetch(wanted, self.pin(wanted))

    def apply(self, version: str) -> None:
        wanted = deb(version)
        self.driver.apply(wanted, self.pin(wanted))

    def has(self, version: str) -> bool:
        """Whether a look shows just what the driver says that this version looks like."""
        wanted = deb(version)
        found = self.driver.observe([wanted])
        return found.get(NAME) is not None and found == {NAME: self.driver.target(wanted, self.pin(wanted))}


def deb(version: str) -> ReleaseDeb:
    return ReleaseDeb("tool", "acme", "tool", f"v{version}")


@pytest.fixture(params=["simulated", "packages"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    if request.param == "simulated":
        place = Place(0, Host(root=tmp_path))
        driver = SimulatedDriver(place, Fate())
        yield Subject(driver, driver.resolve, lambda: place.fails.update({"fetch deb/tool": "not found"}))
        return
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("dpkg", "dpkg-deb")):
        pytest.skip("needs dpkg, dpkg-deb, and root")
    with ReleaseServer(tmp_path / "releases").serving() as server:
        for version in ("1", "2"):
            server.add("acme", "tool", f"v{version}", build(DebSpec("tool", version), tmp_path))
        host = bare_host(tmp_path)
        packages = Packages(host, Ledger.open(host), github_api=server.url)
        pins = {version: packages.resolve(deb(version)) for version in ("1", "2")}
        yield Subject(
            packages,
            lambda wanted: pins[wanted.release.removeprefix("v")],
            lambda: server.fail("files", "404"),
        )


def test_nothing_is_found_before_anything_was_done(subject: Subject) -> None:
    assert subject.driver.observe([deb("1")]) == {}


def test_what_was_applied_is_found_as_the_target_says(subject: Subject) -> None:
    """Install, upgrade, downgrade."""
    for version in ("1", "2", "1"):
        subject.fetch(version)
        subject.apply(version)
        assert subject.has(version)


def test_a_fetch_changes_nothing_that_is_found(subject: Subject) -> None:
    subject.fetch("1")
    subject.apply("1")
    subject.fetch("2")
    assert subject.has("1")


def test_everything_again_is_success(subject: Subject) -> None:
    for _ in range(2):
        subject.fetch("1")
        subject.apply("1")
        assert subject.has("1")
    for _ in range(2):
        subject.driver.remove(NAME)
        assert subject.driver.observe([deb("1")]) == {}


def test_what_was_not_fetched_cannot_be_applied(subject: Subject) -> None:
    with pytest.raises(HostError, match="fetched"):
        subject.apply("1")
    assert subject.driver.observe([deb("1")]) == {}


def test_what_cannot_be_fetched_is_no_failure_that_passes(subject: Subject) -> None:
    subject.break_fetch()
    with pytest.raises(Unfetchable):
        subject.fetch("1")
    assert subject.driver.observe([deb("1")]) == {}


def test_what_is_not_there_is_removed_without_an_error(subject: Subject) -> None:
    subject.driver.remove(NAME)
