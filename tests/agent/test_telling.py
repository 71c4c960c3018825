"""What people are told of, row by row: what stands, and what stays noted for whoever leads next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.agent.follow import Following
from reconciler.agent.telling import standing, still_told
from reconciler.core.semaphore import Holder
from reconciler.core.state import Desired, Fleet, Lock, Now, Revision, Rollout, Unopened

ROLLOUT = Rollout("a" * 40, (0, 1), "r1", (), message="2 of 2 servers complete")
NOW = Now(1_000.0, 500.0)
READ = Following(newest=Desired(Revision("b" * 40)), fetched=1.0)


def events(
    fleet: Fleet, git: Following = READ, unopened: Unopened | None = None
) -> list[tuple[str, str, str]]:
    found = standing(fleet, git, unopened, NOW, alarm_after=60.0)
    return [(name, event.event, event.text) for name, event in found.items()]


@pytest.mark.parametrize(
    ("rollout", "last"),
    [
        (ROLLOUT, ("opened r1", "rollout_opened", "opened on 2 servers")),
        (replace(ROLLOUT, outcome="complete"), ("complete r1", "rollout_complete", "2 of 2 servers")),
        (replace(ROLLOUT, stop=True, stopped_by="leader"), ("failed r1", "rollout_failed", "2 of 2")),
        (replace(ROLLOUT, stop=True, stopped_by="ann"), ("stopped r1", "rollout_stopped", "by ann: 2 of 2")),
    ],
)
def test_a_rollout_says_all_that_is_to_be_told_of_it(rollout: Rollout, last: tuple[str, str, str]) -> None:
    found = events(Fleet(rollout=rollout))
    assert found[0][:2] == ("opened r1", "rollout_opened")
    assert found[-1][:2] == last[:2] and last[2] in found[-1][2]
    assert len(found) == (1 if last[0] == "opened r1" else 2)


def test_neco_and_an_empty_fleet_are_nothing_to_tell() -> None:
    assert events(Fleet()) == []
    assert events(Fleet(rollout=ROLLOUT, neco_at_work="/neco/leader/worker/1")) == []


def test_a_slot_is_told_once_it_is_held_for_too_long() -> None:
    def held(since: int) -> Fleet:
        holder = Holder("f" * 32, "agent", 7, since, "b", "reboot")
        return Fleet(locks={"default": Lock("default", holders=(holder,))})

    assert events(held(950)) == []
    ((name, kind, text),) = events(held(900))
    assert (name, kind) == (f"holder default {'f' * 32} 900", "holder_overdue") and "server 7" in text


def test_what_is_wrong_with_git_and_with_a_revision() -> None:
    bad = replace(READ, refused="c" * 40, refusal="kind: Nonsense")
    assert events(Fleet(), bad) == [(f"refused {'c' * 40}", "revision_refused", "kind: Nonsense")]
    away = replace(READ, unavailable="no answer", since=400.0)
    assert events(Fleet(), away) == [("git", "fetch_overdue", "no answer")]
    assert events(Fleet(), replace(away, since=450.0)) == []
    assert events(Fleet(), READ, Unopened("b" * 40, "no such tag")) == [
        (f"refused {'b' * 40}", "revision_refused", "no such tag")
    ]
    assert events(Fleet(), READ, Unopened("a" * 40, "of a revision that is desired no more")) == []


def test_refusals_without_a_revision_are_told_apart() -> None:
    (first,) = events(Fleet(), Following(refusal="no tag is release-*"))
    (second,) = events(Fleet(), Following(refusal="the branch is gone \udce4"))
    assert first[0] != second[0]


@pytest.mark.parametrize(
    ("name", "git", "rollout", "stays"),
    [
        ("opened r0", READ, ROLLOUT, False),
        ("holder default f 1", READ, ROLLOUT, False),
        # A new leader that has not looked at git yet, or cannot, knows nothing better.
        ("git", Following(), None, True),
        ("git", replace(READ, unavailable="no answer", since=499.0), None, True),
        ("git", READ, None, False),
        (f"refused {'c' * 40}", Following(), None, True),
        (f"refused {'c' * 40}", READ, None, False),
        # One that was read, and that this leader may not be able to open either.
        (f"refused {'b' * 40}", READ, ROLLOUT, True),
        (f"refused {'b' * 40}", READ, replace(ROLLOUT, version="b" * 40), False),
    ],
)
def test_what_a_new_leader_does_not_know_yet_stays_noted(
    name: str, git: Following, rollout: Rollout | None, stays: bool
) -> None:
    fleet = Fleet(rollout=rollout)
    assert still_told({name}, set(), fleet, git) == ({name} if stays else set())
    assert still_told({name}, {name}, fleet, git) == {name}
