"""The loops' own parts: what wakes them, what a failing one does, and reaping as process 1."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.agent import loop
from reconciler.agent.follow import Follower, Following
from reconciler.agent.loop import Bells, Follow, Loops, longest_pause
from reconciler.agent.publisher import Publisher
from reconciler.agent.wake import Wake, local_paths, watch_paths
from reconciler.core.published import Missing, Published
from reconciler.errors import Ambiguous, Corrupt, HeldBack, NoEtcd, ReconcilerError, Refused, Unavailable


def wait_for(condition: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]  # any callable
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_hundred_rings_are_one() -> None:
    wake = Wake()
    for _ in range(100):
        wake.ring()
    assert wake.wait(1)
    assert not wake.wait(0.01)


def test_a_loop_that_fails_says_what_is_missing_and_goes_on() -> None:
    publisher, ending, tries = Publisher(Published()), threading.Event(), []

    def once() -> float:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise Unavailable("a registry is away")
        return 60.0

    loops = Loops(publisher, ending)
    bell = Wake()
    loops.start("worker", once, bell)
    wait_for(lambda: publisher().missing == (Missing("worker", "a registry is away"),))
    bell.ring()
    wait_for(lambda: len(tries) >= 3)
    wait_for(lambda: publisher().missing == ())
    ending.set()
    bell.ring()
    assert loops.join(5)


class Away(Follower):
    """A git that is away: how long it took to see that is another text at each try."""

    def __init__(self) -> None:
        self.state = Following()
        self.tries = 0

    def look(self) -> bool:
        self.tries += 1
        self.state = replace(self.state, unavailable=f"failed to connect after {self.tries} ms")
        return False


def test_a_git_that_stays_away_rings_the_other_loops_once() -> None:
    publisher, bells = Publisher(Published()), Bells()
    follow = Follow(Away(), publisher, lambda: 60.0, bells)
    follow.once()
    assert bells.work.wait(0) and bells.lead.wait(0)
    follow.once()
    assert not bells.work.wait(0) and not bells.lead.wait(0)
    assert publisher().missing == (Missing("git fetch", "failed to connect after 2 ms"),)


def test_polls_are_spread_around_the_interval() -> None:
    """A thousand agents that were started together must not ask git together for ever."""
    follow = Follow(Away(), Publisher(Published()), lambda: 60.0, Bells())
    pauses = [follow.once() for _ in range(50)]
    assert all(48 <= pause <= 72 for pause in pauses) and max(pauses) - min(pauses) > 5


def test_without_etcd_nothing_can_be_done_and_without_another_part_something() -> None:
    """An etcd that refuses this agent, or is refused by it, is no better than none."""
    vital_ones = (
        NoEtcd("x"),
        Ambiguous("x"),
        Refused("x"),
        ReconcilerError("x"),
        HeldBack("x"),
        Corrupt("x"),
    )
    for error, vital in (*((each, True) for each in vital_ones), (Unavailable("x"), False)):
        publisher, ending = Publisher(Published()), threading.Event()

        def once(error: ReconcilerError = error) -> float:
            raise error

        loops, bell = Loops(publisher, ending), Wake()
        loops.start("worker", once, bell)
        wait_for(lambda publisher=publisher: publisher().missing)
        ending.set()
        bell.ring()
        assert loops.join(5)
        assert publisher().missing == (Missing("worker", "x", vital),)


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        # An etcd that was away for a day is found within five seconds of its return.
        (NoEtcd("x"), {1: 0.5, 2: 1.0, 4: 4.0, 5: 5.0, 100_000: 5.0}),
        (Unavailable("x"), {1: 0.5, 6: 16.0, 7: 30.0, 100_000: 30.0}),
        (KeyError("x"), {1: 0.5, 100_000: 30.0}),
    ],
)
def test_a_loop_that_goes_on_failing_waits_longer_up_to_a_bound(
    error: Exception, pauses: dict[int, float]
) -> None:
    assert {failures: longest_pause(failures, error) for failures in pauses} == pauses


def test_a_fault_of_ours_does_not_end_a_loop() -> None:
    publisher, ending, tries, bell = Publisher(Published()), threading.Event(), [], Wake()

    def once() -> float:
        tries.append(1)
        if len(tries) == 1:
            raise KeyError("a fault")
        return 60.0

    loops = Loops(publisher, ending)
    loops.start("worker", once, bell)
    fault = Missing("worker", "an unexpected KeyError; the log has it", vital=True)
    wait_for(lambda: publisher().missing == (fault,))
    bell.ring()
    wait_for(lambda: publisher().missing == ())
    assert len(tries) == 2
    ending.set()
    bell.ring()
    assert loops.join(5)


def test_a_push_to_a_local_repository_rings(tmp_path: Path) -> None:
    refs = tmp_path / "fleet.git" / "refs" / "heads"
    refs.mkdir(parents=True)
    (tmp_path / "fleet.git" / "HEAD").write_text("ref: refs/heads/main\n")
    wake, stop = Wake(), threading.Event()
    (watched,) = local_paths(f"file://{tmp_path}/fleet.git")
    assert watched == tmp_path / "fleet.git" / "refs"
    assert local_paths("https://git.example/fleet.git") == []
    thread = watch_paths([watched], wake.ring, stop)
    try:
        wait_for(lambda: (refs / "main").write_text(str(time.time())) and wake.wait(0.3))
    finally:
        stop.set()
        thread.join(5)


def test_a_zombie_that_nobody_waits_for_is_reaped() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    ending = threading.Event()
    reaper = threading.Thread(target=loop._reap_orphans, args=(ending, 0.05))
    reaper.start()
    try:
        wait_for(lambda: not Path(f"/proc/{child}").exists())
    finally:
        ending.set()
        reaper.join()
