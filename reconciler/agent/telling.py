"""What people are to be told of the fleet: the events that what stands there now amounts to, each with a name. Pure; called by the leader's loop.

Names are noted in etcd once their events are sent. Whoever leads next tells what a leader that died did not come to tell,
and nothing a second time: at least once, and never lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set

from reconciler.agent.follow import Following
from reconciler.agent.notify import Event
from reconciler.core.state import Fleet, Now, Rollout, Unopened

_GIT, _REFUSED = "git", "refused "


def standing(
    fleet: Fleet, git: Following, unopened: Unopened | None, now: Now, alarm_after: float
) -> dict[str, Event]:
    """The events of what stands now, by name. Those of a rollout follow from `status/current` alone, whoever wrote it."""
    if fleet.neco_at_work:
        return {}
    return {
        **_of_rollout(fleet.rollout),
        **_of_revisions(git, unopened, now, alarm_after),
        **_of_holders(fleet, now, alarm_after),
    }


def still_told(told: Set[str], current: Set[str], fleet: Fleet, git: Following) -> frozenset[str]:
    """Which of the names in `told` stay noted: what stands, and what may stand for all that this leader has seen of git yet."""
    return frozenset(name for name in told if name in current or _may_stand(name, fleet, git))


def _of_rollout(rollout: Rollout | None) -> dict[str, Event]:
    if rollout is None:
        return {}
    id, version, short = rollout.id, rollout.version, rollout.version[:12]
    opened = f"rollout of {short} opened on {len(rollout.servers)} servers"
    found = {f"opened {id}": Event("rollout_opened", opened, version, id)}
    if rollout.outcome is not None:
        text = f"rollout of {short}: {rollout.message}"
        found[f"complete {id}"] = Event("rollout_complete", text, version, id)
    elif rollout.stop and rollout.stopped_by == "leader":
        text = f"rollout of {short} stopped: {rollout.message}"
        found[f"failed {id}"] = Event("rollout_failed", text, version, id)
    elif rollout.stop:
        why = f": {rollout.message}" if rollout.message else ""
        text = f"rollout of {short} was stopped by {rollout.stopped_by or 'somebody'}{why}"
        found[f"stopped {id}"] = Event("rollout_stopped", text, version, id)
    return found


def _of_revisions(
    git: Following, unopened: Unopened | None, now: Now, alarm_after: float
) -> dict[str, Event]:
    found = {}
    if git.refusal:
        event = Event("revision_refused", git.refusal, git.refused or "")
        found[f"{_REFUSED}{git.refused or _short_digest(git.refusal)}"] = event
    if unopened and unopened.refused and git.newest and git.newest.revision.id == unopened.revision:
        event = Event("revision_refused", unopened.why, unopened.revision)
        found[f"{_REFUSED}{unopened.revision}"] = event
    if git.unavailable and git.since is not None and now.monotonic - git.since > alarm_after:
        found[_GIT] = Event("fetch_overdue", git.unavailable)
    return found


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]


def _of_holders(fleet: Fleet, now: Now, alarm_after: float) -> dict[str, Event]:
    found = {}
    for lock in fleet.locks.values():
        for holder in lock.holders:
            age = now.wall - holder.start_time
            if holder.start_time and age > alarm_after:
                text = f"{holder.machine_id} (server {holder.lrn}) has held a slot of lock group {lock.group} for {age:.0f} s"
                name = f"holder {lock.group} {holder.machine_id} {holder.start_time}"
                found[name] = Event("holder_overdue", text, server=holder.lrn)
    return found


def _may_stand(name: str, fleet: Fleet, git: Following) -> bool:
    """Whether what was told of git may still be so: this leader may not have looked yet, or not have come to open that rollout."""
    if not (name == _GIT or name.startswith(_REFUSED)):
        return False
    if git.fetched is None or git.unavailable:
        return True
    newest = f"{_REFUSED}{git.newest.revision.id}" if git.newest else ""
    opened = f"{_REFUSED}{fleet.rollout.version}" if fleet.rollout else ""
    return name == newest != opened
