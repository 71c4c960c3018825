"""What the agent has published, as answers: is it alive, is it ready, its status and the whole fleet's plan. Called by `app`. Pure but for the cache."""

from __future__ import annotations

import json
import threading
from typing import Any

from reconciler.core.plans import plans_of
from reconciler.core.published import Published
from reconciler.wire.plan import plan_json
from reconciler.wire.status import status_json


class NotYet(Exception):
    """There is nothing to answer with, and why."""


def why_not_alive(published: Published, now: float) -> tuple[str, ...]:
    """The loops whose sign of life is overdue at `now` (monotonic seconds)."""
    return tuple(
        f"the {beat.loop} loop has given no sign of life for {now - beat.at:.0f} s"
        for beat in published.heartbeats
        if now - beat.at > beat.limit
    )


def why_not_ready(published: Published, now: float) -> tuple[str, ...]:
    """What is overdue at `now`, or missing without which nothing can be done; empty means that this agent can work."""
    unread = () if published.desired else (_no_revision(published),)
    return (*why_not_alive(published, now), *missed(published, vital=True), *unread)


def missed(published: Published, vital: bool) -> tuple[str, ...]:
    """What is missing, as sentences: what all waits for, or (not `vital`) git or a registry, without which the last revision stays in force."""
    return tuple(str(missing) for missing in published.missing if missing.vital == vital)


def _no_revision(published: Published) -> str:
    why = published.refusal or published.unavailable
    return f"no revision has been read yet: {why}" if why else "no revision has been read yet"


def status_body(published: Published) -> bytes:
    """The status, as `reconcile status --output json` prints it. Raises `NotYet`."""
    if published.status is None:
        raise NotYet(f"this agent has not looked at the fleet yet{_missing(published)}")
    return _encoded(status_json(published.status))


class Plans:
    """The fleet's plan as JSON, made once for each pair of etcd revision and desired revision. Used by several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._made_for: tuple[int, str] | None = None
        self._body = b""

    def body(self, published: Published) -> bytes:
        """What `reconcile --dry-run --all --output json` prints. Raises `NotYet`, and `Refused` where a plan is not acceptable."""
        fleet, desired = published.fleet, published.desired
        if desired is None:
            raise NotYet(_no_revision(published))
        if fleet is None:
            raise NotYet(f"this agent has not looked at the fleet yet{_missing(published)}")
        wanted = (fleet.etcd_revision, desired.revision.id)
        with self._mutex:
            if self._made_for != wanted:
                self._body = _encoded(
                    plan_json(plans_of(desired, fleet, sorted(fleet.servers)), desired, fleet.etcd_revision)
                )
                self._made_for = wanted
            return self._body


def _missing(published: Published) -> str:
    return "".join(f"; {missing}" for missing in published.missing)


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
