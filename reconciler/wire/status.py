"""The fleet's status as JSON, as `schemas/status.json` says. Pure; called by the command and the web."""

from __future__ import annotations

from typing import Any

from reconciler.core.report import HolderReport, LockReport, ServerReport, Status
from reconciler.core.state import Notice, OpenPhase, Rollout

FORMAT_VERSION = 1


def status_json(status: Status) -> dict[str, Any]:
    """What `reconcile status --output json` prints."""
    return {
        "format_version": FORMAT_VERSION,
        "etcd_revision": status.etcd_revision,
        "leader": status.leader,
        "state": status.state,
        "message": status.message,
        "desired": status.desired,
        "noted": status.noted,
        "rollout": _rollout_json(status.rollout) if status.rollout else None,
        "open": _phase_json(status.phase, status.rollout) if status.phase else None,
        "servers": [_server_json(server) for server in status.servers],
        "locks": [lock_json(lock) for lock in status.locks],
        "pause": _notice_json(status.pause) if status.pause else None,
        "held": status.held,
    }


def _rollout_json(rollout: Rollout) -> dict[str, Any]:
    return {
        "revision": rollout.version,
        "started_at": rollout.started_at,
        "finished_at": rollout.finished_at,
        "servers": list(rollout.servers),
        "waves": [
            {"servers": list(wave.servers), "soak": wave.soak, "max_failures": wave.max_failures}
            for wave in rollout.waves
        ],
        "phases": list(rollout.phases),
        "stopped_by": rollout.stopped_by,
        "out": {str(lrn): left.text for lrn, left in sorted(rollout.out.items())},
        "outcome": rollout.outcome,
    }


def _phase_json(phase: OpenPhase, rollout: Rollout | None) -> dict[str, Any]:
    names = rollout.phases if rollout else ()
    return {"wave": phase.wave, "phase": names[phase.phase - 1] if phase.phase <= len(names) else None}


def _server_json(server: ServerReport) -> dict[str, Any]:
    return {
        "lrn": server.lrn,
        "group": server.group,
        "wave": server.wave,
        "agent": server.agent,
        "condition": server.condition,
        "phase": server.phase,
        "version": server.version,
        "message": server.message,
        "waiting": server.waiting,
        "waits_for": server.waits_for,
        "next_window": server.next_window,
        "disabled": _notice_json(server.disabled) if server.disabled else None,
        "out": server.out.text if server.out else None,
        "trouble": server.trouble or None,
        "drift": server.drift,
        "reboot_required": server.reboot_required,
        "rebooting": server.rebooting,
    }


def lock_json(lock: LockReport) -> dict[str, Any]:
    """One lock group, with its holders and who waits."""
    return {
        "group": lock.group,
        "max": lock.max,
        "free": lock.free,
        "holders": [_holder_json(holder) for holder in lock.holders],
        "waiters": [{"machine_id": machine_id, "lrn": lrn} for machine_id, lrn in lock.waiters],
    }


def _holder_json(holder: HolderReport) -> dict[str, Any]:
    record = holder.record
    return {
        "machine_id": holder.machine_id,
        "lrn": record.lrn if record else None,
        "source": record.source if record else None,
        "reason": record.reason if record else None,
        "revision": record.revision if record else None,
        "boot_id": record.boot_id if record else None,
        "age": holder.age,
        "away": holder.away,
        "overdue": holder.overdue,
    }


def _notice_json(notice: Notice) -> dict[str, Any]:
    return {"who": notice.who, "why": notice.why, "since": notice.since, "until": notice.until}
