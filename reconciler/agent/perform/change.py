"""*change*: look, make the host have the artifact as desired, look again. Only what the second look shows is recorded."""

from __future__ import annotations

from reconciler.agent.hands import Did, Hands, pin_of
from reconciler.agent.perform.own import is_own, replace_agent
from reconciler.core.artifact import Artifact, Known
from reconciler.core.duration import timestamp
from reconciler.core.plan import Plan, Step
from reconciler.core.state import Detail, Installed, Server
from reconciler.errors import Fenced, HostError
from reconciler.host.policy import check_removal


def change(step: Step, plan: Plan, server: Server, hands: Hands) -> Did:
    wanted = step.change
    if step.subject is None or wanted is None:
        raise HostError(f"step {step.id} names nothing that could be changed")
    driver = hands.drivers[step.subject.kind]
    if wanted.action == "remove":
        if forbidden := check_removal(hands.policy, step.subject):
            raise HostError(f"cannot change server {server.lrn}: {forbidden[0]}")
        if is_own(step.subject, hands):
            # No agent ends itself for good: it is followed no more, and a person takes it away.
            hands.ledger.drop(step.subject)
        else:
            driver.remove(step.subject)
        return Did(removals=(step.subject,))
    artifact = wanted.after
    if artifact is None or isinstance(artifact, Known):
        raise HostError(f"step {step.id} has no artifact as it is desired")
    pin = pin_of(artifact, server.pins)
    target = driver.target(artifact, pin)
    found = hands.look([artifact], closely=True).get(step.subject)
    # What an interrupted change staged runs only at the next boot: what runs now does not show it.
    staged = wanted.reboot and wanted.reason == "interrupted"
    if wanted.reason == "found_on_host" and found != target:
        # Its plan has no slot and no hooks for it; having begun, it is planned as any change.
        raise Fenced(
            f"{step.subject.subject} is not on the host any more as it was found: it is planned anew"
        )
    if target is None or found != target or staged:
        if is_own(artifact.key, hands):
            replace_agent(artifact, pin, lambda: hands.look([artifact]).get(artifact.key) == target, hands)
        else:
            driver.apply(artifact, pin)
        if wanted.reboot:
            # It runs only after the boot: the reboot step looks at it, and records it.
            return Did(found=driver.target(artifact, pin) or artifact.version)
        target = driver.target(artifact, pin)
        found = hands.look([artifact]).get(step.subject)
    if found is None or found != target:
        raise HostError(
            f"cannot verify {step.subject.subject} {artifact.version} on server {server.lrn}: "
            f"wanted {target or 'it'}, found {found or 'nothing'}"
        )
    return Did(found, (installed(artifact, found, server, hands),))


def installed(artifact: Artifact, found: str, server: Server, hands: Hands) -> Installed:
    """The record of an artifact that the host was seen to have. What a newer agent noted of this very one stays."""
    before = server.recorded.get(artifact.key)
    known = before.detail if before and before.detail and before.detail.desired == artifact else None
    extra = known.extra if known else {}
    detail = Detail(artifact, found, server.revision, timestamp(hands.wall()), extra)
    return Installed(artifact.key, artifact.version, detail)
