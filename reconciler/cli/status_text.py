"""The fleet's status as people read it. Pure: a `Status` in, text out. Called by `status` and `lock`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from reconciler.cli.render import Paint, numbers_text, plain, short_id, table
from reconciler.core.duration import format_duration
from reconciler.core.report import HolderReport, LockReport, ServerReport, Status
from reconciler.core.state import Notice
from reconciler.wire.lock import ReleasedSlot

_SAID, _IN_TABLE = 300, 72
"""Characters of a message in the head, and in the table: what is longer stands whole below the table."""
_CUT = "…"
_STATES = {
    "running": "yellow",
    "complete": "green",
    "stopped": "red",
    "failed": "red",
    "neco": "red",
}


def status_text(status: Status, paint: Paint = plain) -> str:
    """Leader, rollout, servers and locks, with what is waited for."""
    lines = [f"Leader   {status.leader or 'nobody leads'}", _rollout_line(status, paint)]
    if status.noted and (status.held or not (status.rollout and status.rollout.version == status.noted)):
        why = f", not rolled out: {one_line(status.held, _SAID)}" if status.held else ""
        lines.append(f"Desired  {short_id(status.noted)}{why}")
    if status.pause:
        lines.append(paint(f"Paused   {notice_text(status.pause)}", "yellow"))
    if status.servers:
        lines += ["", _servers(status.servers)]
        lines += [paint(line, "yellow") for line in _all_notes(status.servers)]
        lines += _windows(status.servers)
    for lock in status.locks:
        lines += ["", lock_text(lock)]
    return "\n".join(lines)


def _rollout_line(status: Status, paint: Paint) -> str:
    rollout = status.rollout
    state = paint(status.state, _STATES.get(status.state, "dim"))
    if rollout is None:
        return f"Rollout  {status.message or state}"
    message = f": {one_line(status.message, _SAID)}" if status.message else ""
    line = f"Rollout  {short_id(rollout.version)} {state}, begun {moment(rollout.started_at)}{message}"
    if rollout.unfinished and rollout.stop:
        newer = "a newer revision gets through, and " if rollout.stopped_by == "leader" else ""
        line += f"\n         {newer}`reconcile recover` clears it, so that this one is tried again"
    return line


def _servers(servers: tuple[ServerReport, ...]) -> str:
    header = ("LRN", "GROUP", "WAVE", "AGENT", "CONDITION", "PHASE", "WAITS FOR", "MESSAGE")
    return table([_server(server) for server in servers], header)


def _server(server: ServerReport) -> tuple[str, ...]:
    return (
        str(server.lrn),
        server.group,
        str(server.wave or "-"),
        server.agent or "-",
        _condition(server),
        server.phase or "-",
        _waiting(server),
        one_line(server.message, _IN_TABLE),
    )


def _notes(server: ServerReport) -> list[str]:
    """What only the server's agent knows of it, a line each."""
    notes = [server.trouble] if server.trouble else []
    if server.condition == "aborted" or one_line(server.message, _IN_TABLE).endswith(_CUT):
        notes.append("\n      ".join(line.strip() for line in server.message.splitlines() if line.strip()))
    if server.drift:
        number = f"{server.drift} artifact{'s' if server.drift > 1 else ''}"
        notes.append(
            f"{number} differ{'' if server.drift > 1 else 's'} from what is recorded: `reconcile drift` there shows what"
        )
    if (
        server.reboot_required
        and server.waits_for is None
        and server.condition in ("complete", "not running")
    ):
        notes.append("asks for a reboot: the next rollout does it")
    return notes


def _all_notes(servers: tuple[ServerReport, ...]) -> list[str]:
    """Each note once, with the servers that it is about."""
    about: dict[str, list[int]] = {}
    for server in servers:
        for note in _notes(server):
            about.setdefault(note, []).append(server.lrn)
    return [
        f"  ! server{'s' if len(lrns) > 1 else ''} {numbers_text(lrns)}: {note}"
        for note, lrns in about.items()
    ]


def _condition(server: ServerReport) -> str:
    if server.disabled:
        return "disabled"
    if server.out:
        return "left out"
    return "rebooting" if server.rebooting else server.condition


def _waiting(server: ServerReport) -> str:
    if server.waiting == "window" and server.next_window is not None:
        return f"its window, {_opening(server.next_window)}"
    return server.waits_for or "-"


def _windows(servers: tuple[ServerReport, ...]) -> list[str]:
    """When each group's window opens next, where no server waits for it: that stands in the table."""
    opening = {
        server.group: server.next_window
        for server in servers
        if server.next_window is not None and server.waiting != "window"
    }
    return [f"  window of group {group} opens next {_opening(at)}" for group, at in sorted(opening.items())]


def _opening(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%a %Y-%m-%d %H:%MZ}"


def lock_text(lock: LockReport) -> str:
    """A lock group's slots, who has them for how long, and who waits."""
    lines = [f"Lock {lock.group}: {lock.free} of {lock.max} free"]
    lines += [f"  held     {holder_text(holder)}" for holder in lock.holders]
    for machine, lrn in lock.waiters:
        lines.append(f"  waiting  {machine}{f' (server {lrn})' if lrn is not None else ''}")
    return "\n".join(lines)


def holder_text(holder: HolderReport) -> str:
    record = holder.record
    if record is None:
        return f"{holder.machine_id} (without a record: an operator's)"
    parts = [f"server {record.lrn}"] if record.lrn is not None else []
    parts.append(record.source)
    if holder.age is not None:
        parts.append(f"for {format_duration(int(holder.age))}")
    if record.reason:
        parts.append(record.reason)
    away = ": its agent does not run" if holder.away else ""
    if holder.overdue:
        away = f": overdue{', its agent does not run' if holder.away else ''}; look after that server, and release the slot with `reconcile lock release` if it stays away"
    return f"{holder.machine_id} ({', '.join(parts)}){away}"


def released_text(released: ReleasedSlot) -> str:
    """One slot that an operator gave back, on one line."""
    holder = released.holder
    whose = f"server {holder.lrn}, {holder.source}" if holder.lrn is not None else holder.source
    what = f", {holder.reason}" if holder.reason else ""
    why = f": {released.why}" if released.why else ""
    return f"{released.at[:19]}Z  {released.group}  {holder.machine_id} ({whose}{what}) released by {released.who}{why}"


def notice_text(notice: Notice) -> str:
    """Who asked for it, since when, until when and why."""
    until = f" until {moment(notice.until)}" if notice.until else ""
    why = f": {notice.why}" if notice.why else ""
    return f"by {notice.who} since {moment(notice.since)}{until}{why}"


def moment(time: str) -> str:
    """A time of RFC 3339 to the second: nanoseconds are for programs."""
    return re.sub(r"\.\d+", "", time)


def one_line(text: str, most: int) -> str:
    """`text` on one line, of at most `most` characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= most else f"{joined[: most - 1]}{_CUT}"
