"""Every JSON document in etcd but the lock's, to and from the values of `core/state`. Pure; called by `store`.

The names are those of the keyspace: snake_case in the rollout's documents, as Neco writes them, `machineID` where
a machine is named. Neco's own documents read too: what they do not have is its absent value (`plan_format` None).
Each `decode_…` takes the stored text and its key, and raises `Corrupt`, which names the key and what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reconciler.core.artifact import KINDS, Key, Pin
from reconciler.core.state import (
    Absence,
    Agent,
    Detail,
    Installed,
    LeftOut,
    Machine,
    Notice,
    OpenPhase,
    Recorded,
    Rollout,
    ServerStatus,
    StepRecord,
    Told,
    Unopened,
    Wave,
)
from reconciler.wire.artifact import artifact_from_fields, artifact_json
from reconciler.wire.document import Fields, corrupt, decode, encode, shown

SNAPSHOT_FORMAT = 1

_DEFAULT_PATH = "desired-state"
_DEFAULT_TIMEOUT = 3600.0
_COND_MAX = 3
_ABSENCES: tuple[Absence, ...] = ("failed", "silent", "removed", "disabled")
_WAITING: dict[str, Literal["window", "slot"]] = {"window": "window", "slot": "slot"}
_STATES: dict[str, Literal["running", "done", "failed"]] = {
    "running": "running",
    "done": "done",
    "failed": "failed",
}


def _seconds(value: float) -> float:
    """A whole number of seconds without `.0`."""
    return int(value) if value == int(value) else value


# --- status/ --------------------------------------------------------------------------------------------------------


def encode_rollout(rollout: Rollout) -> str:
    """`status/current`. Of Neco's own, only Neco's fields are written."""
    document: dict[str, Any] = {
        "version": rollout.version,
        "servers": list(rollout.servers),
        "stop": rollout.stop,
        "started_at": rollout.started_at,
    }
    if rollout.plan_format is not None:
        document |= {
            "plan_format": rollout.plan_format,
            "phases": list(rollout.phases),
            "path": rollout.path,
            "waves": [_wave_json(wave) for wave in rollout.waves],
            "timeout": _seconds(rollout.timeout),
        }
    if rollout.stopped_by is not None:
        document["stopped_by"] = rollout.stopped_by
    if rollout.out:
        document["out"] = {str(lrn): left.text for lrn, left in sorted(rollout.out.items())}
        document["out_kinds"] = {str(lrn): left.kind for lrn, left in sorted(rollout.out.items())}
    if rollout.outcome is not None:
        document["outcome"] = rollout.outcome
    if rollout.message:
        document["message"] = rollout.message
    if rollout.finished_at is not None:
        document["finished_at"] = rollout.finished_at
    return encode(document, rollout.extra)


def _wave_json(wave: Wave) -> dict[str, Any]:
    known = {"servers": list(wave.servers), "soak": _seconds(wave.soak), "max_failures": wave.max_failures}
    return {**wave.extra, **known}


def decode_rollout(text: str | bytes, key: str, mod_revision: int = 0) -> Rollout:
    """`status/current`. Neco's has `plan_format` None, and neither phases nor waves."""
    fields = Fields(decode(text, key), key)
    return Rollout(
        version=fields.text("version"),
        servers=fields.integers("servers"),
        stop=fields.boolean("stop", False),
        started_at=fields.time("started_at"),
        plan_format=fields.optional_integer("plan_format"),
        phases=fields.texts("phases"),
        path=fields.text("path", _DEFAULT_PATH),
        waves=tuple(_wave(wave) for wave in fields.objects("waves")),
        timeout=fields.seconds("timeout", _DEFAULT_TIMEOUT),
        stopped_by=fields.optional_text("stopped_by"),
        out=_left_out(fields),
        outcome=fields.optional_text("outcome"),
        message=fields.text("message", ""),
        finished_at=fields.optional_text("finished_at"),
        mod_revision=mod_revision,
        extra=fields.rest,
    )


def _left_out(fields: Fields) -> dict[int, LeftOut]:
    """`out` is for every reader; `out_kinds` beside it says what decisions go by."""
    texts, kinds = fields.by_server("out"), fields.by_server("out_kinds")
    return {lrn: LeftOut(_absence(kinds.get(lrn), text), text) for lrn, text in texts.items()}


def _absence(kind: str | None, text: str) -> Absence:
    """The kind that is written, or (an older program wrote none) that the text begins with; what nobody knows has failed."""
    said = kind or text
    return next((known for known in _ABSENCES if said.startswith(known)), "failed")


def _wave(fields: Fields) -> Wave:
    servers, soak = fields.integers("servers"), fields.seconds("soak", 0.0)
    return Wave(servers, soak, fields.integer("max_failures", 0), fields.rest)


def encode_phase(phase: OpenPhase) -> str:
    """`status/phase`."""
    return encode({"rollout": phase.rollout, "wave": phase.wave, "phase": phase.phase}, phase.extra)


def decode_phase(text: str | bytes, key: str, mod_revision: int = 0) -> OpenPhase:
    """`status/phase`."""
    fields = Fields(decode(text, key), key)
    return OpenPhase(
        rollout=fields.time("rollout"),
        wave=fields.integer("wave"),
        phase=fields.integer("phase", least=1),
        mod_revision=mod_revision,
        extra=fields.rest,
    )


def encode_pins(pins: Mapping[str, Pin]) -> str:
    """`status/pins`: reference → digest and address, sorted by reference."""
    return encode({ref: {"digest": pin.digest, "address": pin.address} for ref, pin in sorted(pins.items())})


def decode_pins(text: str | bytes, key: str) -> dict[str, Pin]:
    """`status/pins`."""
    pins = {}
    for reference, pin in decode(text, key).items():
        if not isinstance(pin, dict):
            corrupt(key, f"{reference} is {shown(pin)}, and must be an object")
        fields = Fields(pin, key, f"{reference}: ")
        pins[reference] = Pin(fields.text("digest"), fields.text("address"))
    return pins


def encode_status(status: ServerStatus) -> str:
    """`status/bootservers/<lrn>`."""
    document: dict[str, Any] = {
        "version": status.version,
        "step": status.step,
        "cond": status.cond,
        "message": status.message,
    }
    if status.rollout:
        document["rollout"] = status.rollout
    if status.waiting is not None:
        document["waiting"] = status.waiting
    return encode(document, status.extra)


def decode_status(text: str | bytes, key: str, mod_revision: int = 0) -> ServerStatus:
    """`status/bootservers/<lrn>`. Neco's has no `rollout`: it is empty, and counts for nothing in any."""
    fields = Fields(decode(text, key), key)
    cond = fields.integer("cond", 0)
    if cond > _COND_MAX:
        fields.wrong("cond", f"is {shown(cond)}, and must be from 0 to {_COND_MAX}")
    waiting = fields.optional_text("waiting")
    return ServerStatus(
        version=fields.text("version"),
        rollout=fields.text("rollout", ""),
        step=fields.integer("step"),
        cond=cond,
        message=fields.text("message", ""),
        # A newer program may wait for something else: for this one, that server is simply not waiting.
        waiting=None if waiting is None else _WAITING.get(waiting),
        mod_revision=mod_revision,
        extra=fields.rest,
    )


# --- install/ -------------------------------------------------------------------------------------------------------


def encode_detail(detail: Detail) -> str:
    """`install/<lrn>/details/<kind>/<name>`."""
    return encode(_detail_json(detail), detail.extra)


def _detail_json(detail: Detail) -> dict[str, Any]:
    return {
        "desired": artifact_json(detail.desired),
        "found": detail.found,
        "revision": detail.revision,
        "installed_at": detail.installed_at,
    }


def decode_detail(text: str | bytes, key: str, artifact: Key) -> Detail:
    """`install/<lrn>/details/<kind>/<name>`, of the artifact that the key names."""
    return _detail(Fields(decode(text, key), key), artifact)


def _detail(fields: Fields, artifact: Key) -> Detail:
    asked = fields.object("desired")
    if asked is None:
        fields.wrong("desired", "is missing, and must be an object")
    desired = artifact_from_fields(artifact.kind, asked)
    if desired.key != artifact:
        fields.wrong("desired.name", f"is {shown(desired.name)}, and must be {shown(artifact.name)}")
    return Detail(
        desired=desired,
        found=fields.text("found"),
        revision=fields.text("revision", ""),
        installed_at=fields.text("installed_at", ""),
        extra=fields.rest,
    )


# --- steps/, leader/, info/, pause ----------------------------------------------------------------------------------


def encode_step(record: StepRecord) -> str:
    """`steps/<lrn>/<id>`; the id stands in the key."""
    document = {
        "rollout": record.rollout,
        "state": record.state,
        "attempt": record.attempt,
        "boot_id": record.boot_id,
        "target": record.target,
        "message": record.message,
        "at": record.at,
    }
    return encode(document, record.extra)


def decode_step(text: str | bytes, key: str, id: str, mod_revision: int = 0) -> StepRecord:
    """`steps/<lrn>/<id>`."""
    fields = Fields(decode(text, key), key)
    return StepRecord(
        id=id,
        rollout=fields.text("rollout"),
        state=_STATES[fields.one_of("state", _STATES)],
        attempt=fields.integer("attempt", 1),
        boot_id=fields.text("boot_id", ""),
        target=fields.text("target", ""),
        message=fields.text("message", ""),
        at=fields.text("at", ""),
        mod_revision=mod_revision,
        extra=fields.rest,
    )


def encode_agent(agent: Agent) -> str:
    """`leader/agents/<lrn>//<lease>`; number and lease stand in the key."""
    document: dict[str, Any] = {"host": agent.host, "machineID": agent.machine_id}
    if agent.trouble:
        document["trouble"] = agent.trouble
    if agent.drift:
        document["drift"] = agent.drift
    if agent.reboot_required:
        document["reboot_required"] = True
    return encode(document)


def decode_agent(text: str | bytes, key: str, lrn: int, lease: str, create_revision: int = 0) -> Agent:
    """`leader/agents/<lrn>//<lease>`."""
    fields = Fields(decode(text, key), key)
    return Agent(
        lrn,
        fields.text("host"),
        fields.text("machineID"),
        lease,
        create_revision,
        fields.text("trouble", ""),
        fields.integer("drift", 0),
        fields.boolean("reboot_required", False),
    )


def encode_told(told: Told) -> str:
    """`leader/told`."""
    document: dict[str, Any] = {"told": sorted(told.names)}
    if told.unopened:
        document["unopened"] = {
            "revision": told.unopened.revision,
            "why": told.unopened.why,
            "refused": told.unopened.refused,
        }
    return encode(document, told.extra)


def decode_told(text: str | bytes, key: str) -> Told:
    """`leader/told`."""
    fields = Fields(decode(text, key), key)
    found = fields.object("unopened")
    unopened = (
        Unopened(found.text("revision"), found.text("why"), found.boolean("refused", True)) if found else None
    )
    return Told(frozenset(fields.texts("told")), unopened, fields.rest)


def encode_machine(machine: Machine) -> str:
    """`info/machines/<lrn>`."""
    return encode({"machineID": machine.machine_id, "removed": machine.removed}, machine.extra)


def decode_machine(text: str | bytes, key: str, lrn: int, mod_revision: int = 0) -> Machine:
    """`info/machines/<lrn>`."""
    fields = Fields(decode(text, key), key)
    return Machine(lrn, fields.text("machineID"), fields.boolean("removed", False), mod_revision, fields.rest)


def encode_notice(notice: Notice) -> str:
    """`pause`, `info/disabled/<lrn>`."""
    document = {"who": notice.who, "why": notice.why, "since": notice.since}
    return encode(
        document if notice.until is None else {**document, "until": notice.until},
        notice.extra,
    )


def decode_notice(text: str | bytes, key: str, mod_revision: int = 0) -> Notice:
    """`pause`, `info/disabled/<lrn>`."""
    fields = Fields(decode(text, key), key)
    return Notice(
        who=fields.text("who", ""),
        why=fields.text("why", ""),
        since=fields.text("since", ""),
        until=None if fields.optional_text("until") is None else fields.time("until"),
        mod_revision=mod_revision,
        extra=fields.rest,
    )


# --- history/ -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FinishedRollout:
    """`history/<started_at>`. `failures` are the servers that failed or were left out, each with the reason."""

    revision: str
    servers: tuple[int, ...]
    failures: Mapping[int, str]
    outcome: str
    message: str
    started: str
    finished: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def encode_finished(finished: FinishedRollout) -> str:
    """`history/<started_at>`."""
    document = {
        "revision": finished.revision,
        "servers": list(finished.servers),
        "failures": {str(lrn): reason for lrn, reason in sorted(finished.failures.items())},
        "outcome": finished.outcome,
        "message": finished.message,
        "started": finished.started,
        "finished": finished.finished,
    }
    return encode(document, finished.extra)


def decode_finished(text: str | bytes, key: str) -> FinishedRollout:
    """`history/<started_at>`."""
    fields = Fields(decode(text, key), key)
    return FinishedRollout(
        revision=fields.text("revision"),
        servers=fields.integers("servers"),
        failures=fields.by_server("failures"),
        outcome=fields.text("outcome"),
        message=fields.text("message", ""),
        started=fields.text("started"),
        finished=fields.text("finished", ""),
        extra=fields.rest,
    )


# --- a snapshot -----------------------------------------------------------------------------------------------------


def encode_snapshot(recorded: Mapping[int, Recorded], etcd_revision: int = 0) -> str:
    """What `reconcile snapshot` prints and `--recorded` reads: each server's recorded artifacts, sorted."""
    servers = [
        {"lrn": lrn, "installed": [_installed_json(installed) for _, installed in sorted(artifacts.items())]}
        for lrn, artifacts in sorted(recorded.items())
    ]
    return encode({"format_version": SNAPSHOT_FORMAT, "etcd_revision": etcd_revision, "servers": servers})


def _installed_json(installed: Installed) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kind": installed.key.kind,
        "name": installed.key.name,
        "version": installed.version,
    }
    if installed.detail is not None:
        document["detail"] = {**_detail_json(installed.detail), **installed.detail.extra}
    return document


def decode_snapshot(text: str | bytes, file: str) -> dict[int, Recorded]:
    """What `encode_snapshot` wrote. Raises `Corrupt`, naming the file."""
    fields = Fields(decode(text, file), file)
    if (found := fields.integer("format_version")) != SNAPSHOT_FORMAT:
        fields.wrong("format_version", f"is {shown(found)}, and this program reads {SNAPSHOT_FORMAT}")
    servers: dict[int, Recorded] = {}
    for server in fields.objects("servers"):
        lrn = server.integer("lrn")
        if lrn in servers:
            server.wrong("lrn", f"{lrn} is there twice")
        servers[lrn] = _installed(server)
    return dict(sorted(servers.items()))


def _installed(server: Fields) -> Recorded:
    found: dict[Key, Installed] = {}
    for entry in server.objects("installed"):
        word = entry.one_of("kind", KINDS)
        kind = next(kind for kind in KINDS if kind == word)
        key = Key(kind, entry.text("name"))
        if key in found:
            entry.wrong("name", f"{key.subject} is there twice")
        detail = entry.object("detail")
        found[key] = Installed(key, entry.text("version"), None if detail is None else _detail(detail, key))
    return dict(sorted(found.items()))
