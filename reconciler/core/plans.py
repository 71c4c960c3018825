"""The plans of several servers from one view of the fleet. Pure; called by `--dry-run` and the web's plan; its waves by the leader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from reconciler.core.artifact import Artifact, Key, Known
from reconciler.core.interrupted import interrupted
from reconciler.core.plan import Plan, make_plan
from reconciler.core.state import Desired, Fleet, Server, Wave
from reconciler.errors import Refused

_SHARED = 8
"""Distinct recorded states of one group that are remembered: a fleet has few."""

_Before = dict[Key, Artifact | Known]


def plans_of(
    desired: Desired,
    fleet: Fleet,
    servers: Iterable[int],
    observed: Mapping[int, frozenset[Key]] | None = None,
    users: Mapping[int, Mapping[Key, frozenset[Key]]] | None = None,
) -> tuple[Plan, ...]:
    """A plan for each of `servers`, in their order.

    `observed` says of a server what its host has already as desired, `users` which of its packages need which, as for `make_plan`.
    Servers of one group with equal records share their changes and steps, so that a large fleet costs little more
    than a small one. Raises `Refused` with every server's reason.
    """
    wanted = tuple(servers)
    everyone = tuple(sorted({*fleet.servers, *wanted}))
    waves = {
        lrn: number for number, wave in enumerate(waves_of(desired, everyone), 1) for lrn in wave.servers
    }
    seen: dict[str, list[tuple[_Before, frozenset[Key], Plan]]] = {}
    plans: list[Plan] = []
    refusals: list[Refused] = []
    for lrn in wanted:
        there, uses = (observed or {}).get(lrn, frozenset()), (users or {}).get(lrn, {})
        recorded = fleet.recorded.get(lrn, {})
        steps = fleet.steps.get(lrn, {})
        server = Server(lrn, "", "", recorded=recorded, rollout=fleet.rollout, steps=steps)
        unsettled = interrupted(server)
        before = {key: installed.artifact for key, installed in recorded.items()}
        alike = seen.setdefault(desired.group_of(lrn).name, [])
        shared = next((plan for had, keys, plan in alike if keys == unsettled and had == before), None)
        if shared is not None and not there and not uses:
            plans.append(replace(shared, lrn=lrn, wave=waves[lrn]))
            continue
        try:
            plan = make_plan(
                desired,
                recorded,
                lrn,
                observed=there,
                interrupted=unsettled,
                users=uses,
                wave=waves[lrn],
            )
        except Refused as refused:
            refusals.append(refused)
            continue
        plans.append(plan)
        if not there and not uses:
            alike.append((before, unsettled, plan))
            del alike[:-_SHARED]
    if refusals:
        findings = [finding for refused in refusals for finding in refused.findings]
        raise Refused("\n".join(refused.summary for refused in refusals), findings)
    return tuple(plans)


def waves_of(desired: Desired, servers: tuple[int, ...]) -> tuple[Wave, ...]:
    """The policy's waves over these servers, in order; those in no wave form the last one. Empty ones are left out."""
    rest = list(servers)
    waves: list[Wave] = []
    for policy in desired.policy.waves:
        chosen = tuple(
            lrn for lrn in rest if lrn in policy.servers or desired.group_of(lrn).name in policy.groups
        )
        rest = [lrn for lrn in rest if lrn not in chosen]
        waves.append(Wave(chosen, policy.soak, desired.policy.max_failures.of(len(chosen))))
    waves.append(Wave(tuple(rest), 0.0, desired.policy.max_failures.of(len(rest))))
    return tuple(wave for wave in waves if wave.servers)
