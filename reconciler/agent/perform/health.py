"""*health*: a container's, a server's after its reboot, or, in the phase *verify*, whether the host has what the rollout has brought."""

from __future__ import annotations

import logging

from reconciler.agent.drift import described, drifted
from reconciler.agent.hands import Did, Hands, pin_of
from reconciler.agent.perform.change import installed
from reconciler.core.artifact import Image, Key
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Server
from reconciler.errors import HostError
from reconciler.host.health import check

log = logging.getLogger(__name__)


class Restored(HostError):
    """The new version did not get healthy and the previous one runs again: `did` has what to record."""

    def __init__(self, message: str, did: Did) -> None:
        super().__init__(message)
        self.did = did


def health(step: Step, plan: Plan, server: Server, hands: Hands, rollout: str) -> Did:
    if step.subject is not None:
        return _container(step, server, hands)
    if step.phase == "verify":
        return _verify(plan, server, hands, rollout)
    for wanted in plan.reboot.health:
        check(hands.host, wanted, ending=hands.ending)
    return Did()


def _container(step: Step, server: Server, hands: Hands) -> Did:
    artifact = step.change.after if step.change else None
    if not isinstance(artifact, Image):
        # A closing step of an older rollout, whose definition is no longer at hand: what is recorded is looked at.
        recorded = server.recorded.get(step.subject) if step.subject else None
        artifact = recorded.artifact if recorded and isinstance(recorded.artifact, Image) else None
    if artifact is None or artifact.container is None:
        return Did()
    try:
        _running(artifact, server, hands)
        if artifact.container.health:
            check(hands.host, artifact.container.health, ending=hands.ending)
    except HostError as error:
        raise _restored(artifact, server, hands, error) from None
    hands.containers.confirm(artifact.key)
    return Did(hands.look([artifact]).get(artifact.key, ""))


def _running(artifact: Image, server: Server, hands: Hands) -> None:
    target = hands.containers.target(artifact, pin_of(artifact, server.pins))
    found = hands.look([artifact]).get(artifact.key)
    if found is None or found != target:
        raise HostError(
            f"{artifact.key.subject} does not run as asked for: wanted {target}, found {found or 'nothing'}"
        )


def _restored(artifact: Image, server: Server, hands: Hands, error: HostError) -> HostError:
    """The error to report, after the previous version was started again where there is one."""
    previous = hands.containers.previous(artifact.key)
    try:
        found = hands.containers.restore(artifact.key)
    except HostError as second:
        return HostError(f"{error}\nand the previous version could not be started again: {second}")
    if previous is None or found is None:
        return error
    record = installed(previous, found, server, hands)
    return Restored(
        f"{error}\nthe previous version {previous.version} was started again", Did(found, installs=(record,))
    )


def _runs(key: Key, server: Server) -> bool:
    """Whether it is recorded as a container, and not only as an image that is kept."""
    recorded = server.recorded.get(key)
    artifact = recorded.artifact if recorded else None
    return isinstance(artifact, Image) and artifact.container is not None


def _verify(plan: Plan, server: Server, hands: Hands, rollout: str) -> Did:
    """Look at what the rollout has changed here, and after its reboot at every container: what drifted beside it is not its failure.

    Drift beside it is the desired state's `drift: report` or `repair`, which begin when the rollout has ended: were it a
    failure here, no rollout would end and no repair begin.
    """
    changed = {step.subject for step in plan.steps if step.effect == "change"}
    reboot = server.steps.get("reboot:host:reboot")
    booted = reboot is not None and reboot.rollout == rollout and reboot.state == "done"
    differs = drifted(server.recorded, hands)
    failed = [found for found in differs if found.key in changed or (booted and _runs(found.key, server))]
    if failed:
        raise HostError("the host does not have what was recorded: " + "; ".join(map(described, failed)))
    if differs:
        log.warning(
            "drift beside the rollout: %s", "; ".join(map(described, differs)), extra={"server": server.lrn}
        )
    return Did()
