"""The fleet's status as people read it: what is long stands below the table, and what to do is said."""

from __future__ import annotations

from dataclasses import replace

from reconciler.cli.status_text import moment, one_line, status_text
from reconciler.core.report import HolderReport, LockReport, ServerReport, Status
from reconciler.core.semaphore import Holder
from reconciler.core.state import Notice, Rollout, Settings, Wave

AT = "2026-01-01T00:00:00.123456789Z"
ROLLOUT = Rollout("b" * 40, (0, 1), AT, (Wave((0, 1)),))
FAILED = "debs:deb/tool:change: dpkg --install -- /var/lib/reconciler/debs/tool.deb failed with exit status 1\n  no database\n"


def server(lrn: int, condition: str = "running", message: str = "", **fields: object) -> ServerReport:
    return ServerReport(lrn, "boot", 1, f"s{lrn}", condition, "debs", "b" * 40, message, None, **fields)  # type: ignore[arg-type]  # nobody else is registered


def status(*servers: ServerReport, rollout: Rollout | None = ROLLOUT, **fields: object) -> Status:
    found = Status(
        9, "s0", "running", "debs is open", None, None, rollout, None, servers, (), None, Settings()
    )
    return replace(found, **fields)  # type: ignore[arg-type]  # the fields that a test is about


def test_the_table_says_what_each_server_waits_for() -> None:
    text = status_text(status(server(0, message="prefetch is done", waits_for="server 1 in debs"), server(1)))
    assert text.splitlines() == [
        "Leader   s0",
        "Rollout  bbbbbbb running, begun 2026-01-01T00:00:00Z: debs is open",
        "",
        "LRN  GROUP  WAVE  AGENT  CONDITION  PHASE  WAITS FOR         MESSAGE",
        "0    boot   1     s0     running    debs   server 1 in debs  prefetch is done",
        "1    boot   1     s1     running    debs   -",
    ]


def test_a_failure_stands_whole_below_the_table() -> None:
    lines = status_text(status(server(0, "aborted", FAILED))).splitlines()
    assert lines[4].endswith("debs:deb/tool:change: dpkg --install -- /var/lib/reconciler/debs/tool.d…")
    assert lines[5:] == [f"  ! server 0: {FAILED.splitlines()[0]}", "      no database"]


def test_a_stopped_rollout_says_what_to_do() -> None:
    by_ann = replace(ROLLOUT, stop=True, stopped_by="ann")
    text = status_text(status(rollout=by_ann, state="stopped", message="stopped by ann: looks wrong"))
    assert "stopped by ann: looks wrong\n         `reconcile recover` clears it" in text
    failed = replace(by_ann, stopped_by="leader")
    text = status_text(status(rollout=failed, state="stopped", message=f"server 1 failed: {FAILED}" * 9))
    assert "a newer revision gets through, and `reconcile recover` clears it" in text
    assert max(map(len, text.splitlines())) < 400
    assert "recover" not in status_text(status(rollout=replace(by_ann, outcome="replaced")))


def test_what_holds_the_newest_revision_back() -> None:
    pause = Notice("ann", "the switch", AT, AT)
    text = status_text(status(noted="c" * 40, pause=pause, held="paused by ann: the switch"))
    assert "Desired  ccccccc, not rolled out: paused by ann: the switch" in text
    assert "Paused   by ann since 2026-01-01T00:00:00Z until 2026-01-01T00:00:00Z: the switch" in text
    assert "Desired  ccccccc\n" in status_text(status(server(0), noted="c" * 40))


def test_a_reboot_that_is_asked_for_is_said_where_nothing_is_under_way() -> None:
    asks = "asks for a reboot: the next rollout does it"
    assert asks in status_text(status(server(0, "complete", reboot_required=True)))
    assert asks not in status_text(status(server(0, "running", reboot_required=True, waits_for="its window")))


def test_the_next_window_is_said_once_for_its_group() -> None:
    opens = 1_767_308_400.0  # 2026-01-01T23:00Z
    said = "  window of group boot opens next Thu 2026-01-01 23:00Z"
    idle = [server(lrn, "complete", next_window=opens) for lrn in (0, 1)]
    assert status_text(status(*idle)).splitlines()[-1:] == [said]
    waiting = replace(server(0, next_window=opens), waiting="window")
    text = status_text(status(waiting))
    assert said not in text and "its window, Thu 2026-01-01 23:00Z" in text


def test_a_holder_that_is_overdue_is_somebodys_task() -> None:
    holder = Holder("m1", "agent", 1, 5, "b", "reboot")

    def shown(away: bool, overdue: bool = False) -> str:
        found = HolderReport("m1", holder, 3602.0, away, overdue)
        return status_text(status(locks=(LockReport("default", 1, 0, (found,), ()),)))

    gone = shown(True, True)
    assert (
        "held     m1 (server 1, agent, for 1h2s, reboot): overdue, its agent does not run; look after" in gone
    )
    assert "reconcile lock release" in gone
    assert shown(True).endswith("reboot): its agent does not run")
    assert shown(False).endswith("reboot)")


def test_times_and_lines_are_short() -> None:
    assert (
        moment(AT) == "2026-01-01T00:00:00Z"
        and moment("2026-01-01T00:00:00+09:00") == "2026-01-01T00:00:00+09:00"
    )
    assert one_line(" a\n  b ", 10) == "a b" and one_line("abcdef", 4) == "abc…"
