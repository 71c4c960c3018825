"""make_plan: which steps a change takes, in which order, and what stays in a plan that has begun."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.artifact import OS_IMAGE, AptDeb, Artifact, Container, Image, Key, Known, OsImage
from reconciler.core.plan import Plan, make_plan
from reconciler.core.state import (
    ArtifactSet,
    Desired,
    Detail,
    Installed,
    OsDriver,
    RebootPolicy,
    Recorded,
    Revision,
    RolloutPolicy,
    ServerGroup,
)
from reconciler.errors import Refused

REBOOT = ["reboot:host:acquire", "reboot:host:reboot", "reboot:host:health", "reboot:host:release"]


def image(
    name: str, tag: str, update: str | None = None, after: tuple[str, ...] = (), started: tuple[str, ...] = ()
) -> Image:
    container = None
    if update in ("rolling", "parallel", "stop-all"):
        container = Container(update=update, after=after, started=started)  # type: ignore[arg-type]  # narrowed above
    return Image(name, f"registry.example/{name}", tag, container=container)


def deb(name: str, version: str) -> AptDeb:
    return AptDeb(name, version)


def desired(
    *artifacts: Artifact,
    reboot: RebootPolicy = RebootPolicy(),
    os_reboot: bool = False,
    policy: RolloutPolicy = RolloutPolicy(),
) -> Desired:
    group = ServerGroup("boot", frozenset({0}), OsDriver("command", reboot=os_reboot), reboot)
    return Desired(Revision("a" * 40), (ArtifactSet(tuple(artifacts)),), (group,), policy)


def recorded(*artifacts: Artifact) -> Recorded:
    return {
        artifact.key: Installed(
            artifact.key, artifact.version, Detail(artifact, "found", "b" * 40, "2026-01-01T00:00:00Z")
        )
        for artifact in artifacts
    }


def steps(plan: Plan) -> list[str]:
    """The steps without those that stand in every plan."""
    return [step.id for step in plan.steps if step.phase not in ("reboot", "verify")]


def test_nothing_to_do_still_has_what_the_reboot_and_verify_phases_need() -> None:
    plan = make_plan(desired(deb("a", "1")), recorded(deb("a", "1")), 0)
    assert plan.changes == ()
    assert [step.id for step in plan.steps] == [*REBOOT, "verify:host:health"]


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ("rolling", ["acquire", "change", "health", "release"]),
        ("parallel", ["change", "health"]),
        ("stop-all", ["change", "health"]),
        (None, ["change"]),
    ],
)
def test_an_image_changes_by_its_update(update: str | None, expected: list[str]) -> None:
    plan = make_plan(desired(image("app", "2", update)), recorded(image("app", "1", update)), 0)
    stop = ["stop:image/app:stop"] if update == "stop-all" else []
    assert steps(plan) == [
        "prefetch:image/app:fetch",
        *stop,
        *(f"containers:image/app:{effect}" for effect in expected),
    ]


def test_an_install_takes_nothing_down() -> None:
    plan = make_plan(desired(image("app", "1", "rolling", started=("unseal",))), {}, 0)
    assert steps(plan) == [
        "prefetch:image/app:fetch",
        "containers:image/app:change",
        "containers:image/app:hook:started:0",
        "containers:image/app:health",
    ]


def test_each_step_needs_the_one_before_and_the_change_what_was_fetched() -> None:
    plan = make_plan(desired(image("app", "2", "rolling")), recorded(image("app", "1", "rolling")), 0)
    needs = {step.id: step.needs for step in plan.steps}
    assert needs["containers:image/app:acquire"] == ("prefetch:image/app:fetch",)
    assert needs["containers:image/app:release"] == ("containers:image/app:health",)


def test_removals_first_then_after_then_etcd_and_the_agent_last() -> None:
    now = [
        image("b", "2", "parallel", after=("z",)),
        image("etcd", "2", "parallel"),
        image("reconciler", "2", "parallel"),
        image("z", "2", "parallel"),
    ]
    before = [
        image("b", "1", "parallel"),
        image("etcd", "1", "parallel"),
        image("reconciler", "1", "parallel"),
        image("z", "1", "parallel"),
        image("old", "1"),
    ]
    plan = make_plan(desired(*now), recorded(*before), 0)
    changed = [
        step.subject.name for step in plan.steps_of("containers") if step.effect == "change" and step.subject
    ]
    assert changed == ["old", "z", "b", "etcd", "reconciler"]


def test_a_definition_changed_under_one_tag_is_not_fetched() -> None:
    plan = make_plan(desired(image("app", "1", "parallel")), recorded(image("app", "1", "rolling")), 0)
    assert [(change.action, change.reason) for change in plan.changes] == [("replace", "definition_changed")]
    assert steps(plan) == ["containers:image/app:change", "containers:image/app:health"]


def test_what_the_host_has_is_only_recorded() -> None:
    plan = make_plan(desired(image("app", "1", "rolling")), {}, 0, observed=frozenset({Key("image", "app")}))
    assert [(change.action, change.restart) for change in plan.changes] == [("record", False)]
    assert steps(plan) == ["containers:image/app:change"]


def test_an_interrupted_os_is_put_in_place_again_though_it_runs() -> None:
    """Another one may be staged, and the next boot would bring that."""
    plan = make_plan(
        desired(OsImage("stable", "1"), os_reboot=True),
        recorded(OsImage("stable", "1")),
        0,
        observed=frozenset({OS_IMAGE}),
        interrupted=frozenset({OS_IMAGE}),
    )
    assert [(change.action, change.reason, change.reboot) for change in plan.changes] == [
        ("replace", "interrupted", True)
    ]


def test_an_os_whose_change_has_begun_still_says_whether_it_needs_a_boot() -> None:
    begun = frozenset({"os-image:os-image:change"})
    for reboot in (True, False):
        wanted = desired(OsImage("stable", "1"), os_reboot=reboot)
        plan = make_plan(wanted, recorded(OsImage("stable", "1")), 0, begun=begun)
        assert [step.change and step.change.reboot for step in plan.steps_of("os-image")] == [reboot]


@pytest.mark.parametrize(
    ("begun", "action"),
    [
        ("prefetch:image/app:fetch", "record"),
        ("containers:image/app:acquire", "upgrade"),
        ("containers:image/beside:acquire", "record"),
    ],
)
def test_what_the_host_has_goes_on_to_its_end_once_it_has_begun(begun: str, action: str) -> None:
    plan = make_plan(
        desired(image("app", "2", "rolling")),
        recorded(image("app", "1", "rolling")),
        0,
        observed=frozenset({Key("image", "app")}),
        begun=frozenset({begun}),
    )
    assert [change.action for change in plan.changes] == [action]
    whole = ["acquire", "change", "health", "release"] if action == "upgrade" else ["change"]
    assert [step.effect for step in plan.steps_of("containers")] == whole


def test_packages_are_removed_last_and_the_agents_own_comes_after_the_others() -> None:
    now = [deb("reconciler", "2"), deb("zsh", "1"), deb("etcd", "2")]
    plan = make_plan(desired(*now), recorded(deb("a", "1"), deb("reconciler", "1"), deb("etcd", "1")), 0)
    assert [step.subject.name for step in plan.steps_of("debs") if step.subject] == [
        "zsh",
        "etcd",
        "reconciler",
        "a",
    ]


@pytest.mark.parametrize(
    ("users", "order"),
    [
        ({}, "a b c"),
        ({"a": "b", "b": "c"}, "c b a"),
        ({"a": "b c"}, "b c a"),
        ({"a": "other"}, "a b c"),
        ({"a": "b", "b": "a"}, "c a b"),
    ],
    ids=["none", "chain", "two users", "one that stays", "each other"],
)
def test_a_package_goes_after_those_that_need_it(users: dict[str, str], order: str) -> None:
    needed = {
        Key("deb", name): frozenset(Key("deb", user) for user in text.split()) for name, text in users.items()
    }
    had = recorded(deb("a", "1"), deb("b", "1"), deb("c", "1"))
    plan = make_plan(desired(deb("z", "1")), had, 0, users=needed)
    assert steps(plan)[1:5] == ["debs:deb/z:change", *(f"debs:deb/{name}:change" for name in order.split())]


def test_only_what_runs_is_stopped_and_its_change_needs_the_stop() -> None:
    installed = make_plan(desired(image("db", "1", "stop-all")), {}, 0)
    assert steps(installed) == [
        "prefetch:image/db:fetch",
        "containers:image/db:change",
        "containers:image/db:health",
    ]
    upgraded = make_plan(desired(image("db", "2", "stop-all")), recorded(image("db", "1", "stop-all")), 0)
    needs = {step.id: step.needs for step in upgraded.steps}
    assert needs["containers:image/db:change"] == ("prefetch:image/db:fetch", "stop:image/db:stop")


def test_a_stop_that_has_begun_stays_in_the_plan() -> None:
    same = image("db", "1", "stop-all")
    plan = make_plan(desired(same), recorded(same), 0, begun=frozenset({"stop:image/db:stop"}))
    assert steps(plan) == ["stop:image/db:stop", "containers:image/db:change", "containers:image/db:health"]


def test_the_os_image_reboots_where_its_group_says_so() -> None:
    wanted, had = OsImage("stable", "2"), OsImage("stable", "1")
    for reboot in (True, False):
        plan = make_plan(desired(wanted, os_reboot=reboot), recorded(had), 0)
        assert [(change.key, change.reboot) for change in plan.changes] == [(OS_IMAGE, reboot)]


def test_which_os_a_boot_has_to_bring() -> None:
    """The one that is desired, changed or not; none where only other machines boot what is published here."""
    wanted = desired(OsImage("stable", "2"), os_reboot=True)
    for had in ("1", "2"):
        assert make_plan(wanted, recorded(OsImage("stable", had)), 0).os == "stable/2"
    assert make_plan(desired(os_reboot=True), recorded(OsImage("stable", "1")), 0).os == ""
    netboot = replace(wanted, groups=(replace(wanted.groups[0], os_image=OsDriver()),))
    assert make_plan(netboot, {}, 0).os == ""


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (RebootPolicy(), ["acquire", "reboot", "health", "release"]),
        (RebootPolicy(strategy="reboot"), ["reboot", "health"]),
        (RebootPolicy(strategy="off"), []),
        (
            RebootPolicy(before=("drain", "say"), after=("undrain",), warn=60),
            [
                "acquire",
                "hook:before:0",
                "hook:before:1",
                "warn",
                "reboot",
                "hook:after:0",
                "health",
                "release",
            ],
        ),
    ],
)
def test_the_reboots_steps(rules: RebootPolicy, expected: list[str]) -> None:
    plan = make_plan(desired(reboot=rules), {}, 0)
    assert [step.id for step in plan.steps_of("reboot")] == [f"reboot:host:{effect}" for effect in expected]


def test_what_has_begun_stays_until_its_last_step_though_it_is_recorded() -> None:
    begun = frozenset({"containers:image/app:acquire", "containers:image/app:change"})
    plan = make_plan(
        desired(image("app", "2", "rolling")), recorded(image("app", "2", "rolling")), 0, begun=begun
    )
    assert plan.changes == ()
    assert steps(plan) == [
        f"containers:image/app:{effect}" for effect in ("acquire", "change", "health", "release")
    ]


def test_an_interrupted_change_is_planned_though_recorded_equals_desired() -> None:
    keys = frozenset({Key("deb", "a"), Key("deb", "gone")})
    plan = make_plan(desired(deb("a", "1")), recorded(deb("a", "1")), 0, interrupted=keys)
    assert [(change.key.name, change.action, change.reason) for change in plan.changes] == [
        ("a", "replace", "interrupted"),
        ("gone", "remove", "interrupted"),
    ]


def test_a_fleet_taken_over_from_neco_differs_only_in_versions() -> None:
    had: Recorded = {
        Key("image", "app"): Installed(Key("image", "app"), "1"),
        Key("deb", "a"): Installed(Key("deb", "a"), "1"),
    }
    plan = make_plan(desired(image("app", "2"), deb("a", "1")), had, 0)
    assert [(change.key, change.action, change.before) for change in plan.changes] == [
        (Key("image", "app"), "upgrade", Known(Key("image", "app"), "1"))
    ]


def test_too_many_removals_are_refused_by_name() -> None:
    had = recorded(*(deb(name, "1") for name in "abcd"))
    with pytest.raises(
        Refused, match=r"would remove 4 artifacts \(deb/a, deb/b, deb/c, deb/d\), and maxRemovals is 3"
    ):
        make_plan(desired(), had, 0)
    assert len(make_plan(desired(policy=RolloutPolicy(max_removals=4)), had, 0).changes) == 4


def test_without_prune_nothing_is_removed() -> None:
    had = recorded(*(deb(name, "1") for name in "abcd"))
    assert make_plan(desired(policy=RolloutPolicy(prune=False)), had, 0).changes == ()
