"""The fleet's status as people read it. Pure: a `Status` in, text out. Called by `status` and `lock`."""

from __future__ import annotations

from datetime import UTC, datetime

from reconciler.cli.render import Paint, numbers_text, plain, short_id, table
from reconciler.core.duration import format_duration
from reconciler.core.report import HolderReport, LockReport, ServerReport, Status
from reconciler.core.state import Notice

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
    if status.noted and not (status.rollout and status.rollout.version == status.noted):
        lines.append(f"Desired  {short_id(status.noted)}")
    if status.pause:
        lines.append(paint(f"Paused   {notice_text(status.pause)}", "yellow"))
    if status.servers:
        lines += ["", _servers(status.servers)]
        lines += [paint(line, "yellow") for line in _all_notes(status.servers)]
    for lock in status.locks:
        lines += ["", lock_text(lock)]
    return "\n".join(lines)


def _rollout_line(status: Status, paint: Paint) -> str:
    rollout = status.rollout
    state = paint(status.state, _STATES.get(status.state, "dim"))
    if rollout is None:
        return f"Rollout  {status.message or state}"
    message = f": {status.message}" if status.message else ""
    return f"Rollout  {short_id(rollout.version)} {state}, begun {rollout.started_at[:19]}Z{message}"


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
        " ".join(server.message.split()),
    )


def _notes(server: ServerReport) -> list[str]:
    """What only the server's agent knows of it, a line each."""
    notes = [server.trouble] if server.trouble else []
    if server.drift:
        number = f"{server.drift} artifact{'s' if server.drift > 1 else ''}"
        notes.append(
            f"{number} differ{'' if server.drift > 1 else 's'} from what is recorded: `reconcile drift` there shows what"
        )
    if server.reboot_required:
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
    return "left out" if server.out else server.condition


def _waiting(server: ServerReport) -> str:
    if server.next_window is not None:
        opening = datetime.fromtimestamp(server.next_window, UTC)
        return f"{server.waiting or 'window'} {opening:%a %Y-%m-%d %H:%MZ}"
    return server.waiting or "-"


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
    return f"{holder.machine_id} ({', '.join(parts)})"


def notice_text(notice: Notice) -> str:
    """Who asked for it, since when, until when and why."""
    until = f" until {notice.until}" if notice.until else ""
    why = f": {notice.why}" if notice.why else ""
    return f"by {notice.who} since {notice.since}{until}{why}"
