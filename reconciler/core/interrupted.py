"""What older rollouts left open on a server. Pure; used where plans are made, and by the leader."""

from __future__ import annotations

from reconciler.core.artifact import OS_IMAGE, Key
from reconciler.core.plan import effect_of
from reconciler.core.state import Server, StepRecord

_OS_CHANGE = "os-image:os-image:change"


def interrupted(server: Server) -> frozenset[Key]:
    """Artifacts that an older rollout began to change and did not end: they are planned though recorded equals desired."""
    current = server.rollout.id if server.rollout else ""
    keys = (
        OS_IMAGE if effect_of(id) == "reboot" else Key.of_subject(id.split(":", 2)[1])
        for id, record in server.steps.items()
        if record.rollout != current and _left_open(record, server)
    )
    return frozenset(key for key in keys if key)


def _left_open(record: StepRecord, server: Server) -> bool:
    """Whether what `record`'s step did to its artifact is not at its end: it did not end itself, or what should follow did not."""
    match effect_of(record.id):
        case "change" if record.state == "done":
            # Only an OS image that was staged, and whose boot nobody saw, is done and not recorded.
            recorded = server.recorded.get(OS_IMAGE)
            staged = record.id == _OS_CHANGE and bool(record.target)
            return staged and recorded is not None and recorded.version != record.target
        case "stop" if record.state == "done":
            changed = server.steps.get(
                record.id.replace("stop:", "containers:", 1).removesuffix("stop") + "change"
            )
            return not (changed and changed.state == "done" and changed.mod_revision >= record.mod_revision)
        case "reboot":
            # It has booted another OS than the recorded one, or none: that one is staged again before the next boot.
            return record.state == "failed" and bool(record.target) and OS_IMAGE in server.recorded
        case "change" | "stop" | "hook" | "health":
            return record.state != "done"
        case _:
            return False
