"""The whole fleet in memory under random schedules: promises 1 to 3, 5 to 9 and 11 after every event, and the end is always reached."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reconciler.core.artifact import AptDeb, Artifact, Container, Image, OsImage
from reconciler.core.state import (
    ArtifactSet,
    Budget,
    Desired,
    OsDriver,
    RebootPolicy,
    Revision,
    RolloutPolicy,
    ServerGroup,
    Strategy,
    WavePolicy,
)
from reconciler.core.window import Window
from tests.core.fleet_model import Model


def revision(
    id: str, *artifacts: Artifact, failures: int = 0, waves: bool = False, strategy: Strategy = "etcd-lock"
) -> Desired:
    window = Window(None, 22, 0, 6 * 3600.0)
    rules = RebootPolicy(strategy, windows=(window,), before=("drain",), after=("undrain",), warn=60)
    group = ServerGroup("boot", frozenset(range(10)), OsDriver("command", reboot=True), rules)
    policy = RolloutPolicy(
        waves=(WavePolicy(frozenset({0}), soak=1.0),) if waves else (),
        max_failures=Budget(failures),
        timeout=3000,
    )
    return Desired(Revision(id), (ArtifactSet(tuple(artifacts)),), (group,), policy)


def app(tag: str) -> Image:
    return Image("app", "registry.example/app", tag, container=Container())


def db(tag: str) -> Image:
    return Image("db", "registry.example/db", tag, container=Container(update="stop-all"))


def history(failures: int, waves: bool, strategy: Strategy = "etcd-lock") -> list[Desired]:
    """Upgrades, a downgrade, a removal, and the fourth a revert to the second."""
    second = (app("2"), db("1"), AptDeb("a", "2"), AptDeb("b", "1"), OsImage("stable", "1"))
    sets: list[tuple[str, tuple[Artifact, ...]]] = [
        ("one", (app("1"), db("1"), AptDeb("a", "1"), OsImage("stable", "1"))),
        ("two", second),
        ("three", (app("2"), db("2"), AptDeb("a", "1"), OsImage("stable", "2"))),
        ("four", second),
        ("five", (app("3"), AptDeb("b", "2"), OsImage("stable", "2"))),
        ("six", (app("4"), db("3"), AptDeb("b", "2"), OsImage("stable", "3"))),
    ]
    return [
        revision(id, *artifacts, failures=failures, waves=waves, strategy=strategy) for id, artifacts in sets
    ]


def test_without_trouble_every_revision_is_reached() -> None:
    model = Model(history(0, waves=True), 3)
    for _ in range(5):
        model.come_to_an_end()
        model.push()
    model.come_to_an_end()


def test_an_os_that_a_boot_did_not_bring_is_staged_again_whoever_asked_for_the_boot() -> None:
    oses = (("1", "1"), ("1", "2"), ("2", "2"))
    revisions = [
        revision(f"r{n}", AptDeb("a", deb), OsImage("stable", os)) for n, (deb, os) in enumerate(oses)
    ]
    model = Model([*revisions, revisions[-1]], 3)
    model.come_to_an_end()
    model.push()
    model.falls = 1
    model.come_to_an_end()  # the rollout brings another OS, and its first boot falls back
    model.push()
    model.falls = 1
    for host in model.hosts.values():
        host.sentinel = True
    model.come_to_an_end()  # nothing of the OS has changed, and the first boot falls back
    assert [line.split(": ")[1] for line in model.log if "falls back" in line] == [
        "0 falls back to stable/1"
    ] * 2


@pytest.mark.parametrize(
    "examples", [100, pytest.param(3000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_the_promises_hold_after_every_event(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        seed=st.integers(0, 2**32),
        events=st.integers(20, 800),
        trouble=st.sampled_from([0.01, 0.03, 0.1, 0.3]),
        failures=st.integers(0, 1),
        waves=st.booleans(),
        strategy=st.sampled_from(["etcd-lock", "etcd-lock", "reboot", "off"]),
        falls=st.integers(0, 3),
    )
    @example(seed=23024, events=269, trouble=0.01, failures=0, waves=True, strategy="reboot", falls=0)
    def they_hold(
        seed: int,
        events: int,
        trouble: float,
        failures: int,
        waves: bool,
        strategy: Strategy,
        falls: int,
    ) -> None:
        model = Model(history(failures, waves, strategy), 3)
        model.falls = falls
        try:
            model.run(seed, events, trouble)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(model.log[-60:])) from error

    they_hold()
