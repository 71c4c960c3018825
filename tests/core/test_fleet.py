"""The whole fleet in memory under random schedules: promises 1, 2, 6, 7, 8, 9 and 11 after every event, and the end is always reached."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
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
    WavePolicy,
)
from tests.core.fleet_model import Model


def revision(id: str, *artifacts: Artifact, failures: int = 0, waves: bool = False) -> Desired:
    rules = RebootPolicy(before=("drain",), after=("undrain",), warn=60)
    group = ServerGroup("boot", frozenset(range(10)), OsDriver(reboot=True), rules)
    policy = RolloutPolicy(
        waves=(WavePolicy(frozenset({0}), soak=1.0),) if waves else (),
        max_failures=Budget(failures),
        timeout=3000,
    )
    return Desired(Revision(id), (ArtifactSet(tuple(artifacts)),), (group,), policy)


def app(tag: str) -> Image:
    return Image("app", "registry.example/app", tag, container=Container())


def history(failures: int, waves: bool) -> list[Desired]:
    return [
        revision("one", app("1"), AptDeb("a", "1"), OsImage("stable", "1"), failures=failures, waves=waves),
        revision(
            "two",
            app("2"),
            AptDeb("a", "2"),
            AptDeb("b", "1"),
            OsImage("stable", "1"),
            failures=failures,
            waves=waves,
        ),
        revision("three", app("2"), AptDeb("a", "1"), OsImage("stable", "2"), failures=failures, waves=waves),
        revision("four", app("3"), AptDeb("b", "2"), OsImage("stable", "2"), failures=failures, waves=waves),
        revision("five", app("4"), AptDeb("b", "2"), OsImage("stable", "3"), failures=failures, waves=waves),
    ]


def test_without_trouble_every_revision_is_reached() -> None:
    model = Model(history(0, waves=True), 3)
    for _ in range(4):
        model.come_to_an_end()
        model.push()
    model.come_to_an_end()


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    events=st.integers(20, 800),
    trouble=st.sampled_from([0.01, 0.03, 0.1, 0.3]),
    failures=st.integers(0, 1),
    waves=st.booleans(),
)
def test_the_promises_hold_after_every_event(
    seed: int, events: int, trouble: float, failures: int, waves: bool
) -> None:
    model = Model(history(failures, waves), 3)
    try:
        model.run(seed, events, trouble)
    except AssertionError as error:
        raise AssertionError(f"{error}\n" + "\n".join(model.log[-60:])) from error
