"""*reboot*: ask for it, and after the boot look at the OS. Another boot id than when the step began is the only proof of a boot."""

from __future__ import annotations

from reconciler.agent.hands import Did, Hands
from reconciler.agent.perform.change import installed
from reconciler.core.artifact import OS_IMAGE, OsImage
from reconciler.core.duration import format_duration
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server, StepRecord
from reconciler.errors import HeldBack, HostError
from reconciler.host import reboot as host


def has_booted(record: StepRecord | None, rollout: str, server: Server) -> bool:
    """Whether the server has booted since the step began, whoever caused it."""
    return record is not None and record.rollout == rollout and record.boot_id != server.boot_id


def reboot(step: Step, plan: Plan, server: Server, hands: Hands) -> Did:
    """Ask for the reboot, which ends this process; that it is still here after `alarm_after` seconds is the failure."""
    host.reboot(hands.host, hands.reboot_command)
    alarm_after = hands.alarm_after()
    if hands.ending.wait(alarm_after):
        raise HeldBack("the server is going down")
    raise HostError(
        f"server {server.lrn} has not rebooted: `{hands.reboot_command}` was run {format_duration(alarm_after)} ago "
        "and the boot id is unchanged; its slot stays held. Reboot it by hand, or find out what holds it up"
    )


def after_boot(record: StepRecord, server: Server, hands: Hands) -> Did:
    """Look at the OS that runs now. Raises `HostError` where it is not the one that was to run when the reboot was begun.

    By the record and not by the plan: whoever asked for the reboot, and whatever has become of the desired state since.
    """
    if not record.target:
        return Did()
    wanted = OsImage.of_version(record.target)
    found = hands.look([wanted]).get(OS_IMAGE)
    if found != wanted.version:
        raise HostError(f"server {server.lrn} has booted {found or 'an unknown OS'} and not {wanted.version}")
    before = server.recorded.get(OS_IMAGE)
    if before is not None and before.version == found:
        return Did(found)
    return Did(found, (installed(wanted, found, server, hands),))
