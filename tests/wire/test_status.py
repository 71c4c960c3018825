"""The fleet's status as JSON: its form is the schema's, and each part is where it belongs."""

from __future__ import annotations

from reconciler.core.report import report
from reconciler.core.semaphore import Holder, Semaphore
from reconciler.core.state import (
    ABORTED,
    RUNNING,
    Agent,
    Fleet,
    Leader,
    LeftOut,
    Lock,
    Notice,
    Now,
    OpenPhase,
    Rollout,
    ServerStatus,
    Waiter,
    Wave,
)
from reconciler.wire.schema import violations
from reconciler.wire.status import status_json

STARTED = "2026-01-02T03:04:05.000000006Z"
NOW = Now(1_767_322_800.0, 10.0)
FLEET = Fleet(
    etcd_revision=9,
    servers=frozenset({0, 1, 2}),
    disabled={2: Notice("ops", "broken disk", STARTED)},
    noted="1a2b",
    rollout=Rollout("1a2b", (0, 1), STARTED, (Wave((0, 1), 600.0),), out={5: LeftOut("removed", "removed")}),
    phase=OpenPhase(STARTED, 1, 4),
    statuses={
        0: ServerStatus("1a2b", STARTED, 4, RUNNING, "waits for a slot", "slot"),
        1: ServerStatus("1a2b", STARTED, 4, ABORTED, "dpkg failed"),
    },
    leader=Leader("boot-0", "leader/updater//1f", 7),
    agents=(Agent(0, "boot-0", "m0", "1f"),),
    pause=Notice("ops", "holidays", STARTED, STARTED),
    locks={
        "default": Lock(
            "default",
            Semaphore(2, ("m1", "m9")),
            (Holder("m1", "agent", 1, 1_767_322_700, "b1", "reboot", "1a2b"),),
            (Waiter("waiters/1", "m0", 0),),
        )
    },
)


def test_the_form_is_the_schemas() -> None:
    assert not violations(status_json(report(FLEET, None, NOW)), "status")
    assert not violations(status_json(report(Fleet(), None, NOW)), "status")


def test_each_part_is_where_it_belongs() -> None:
    document = status_json(report(FLEET, None, NOW))
    assert document["open"] == {"wave": 1, "phase": "containers"}
    assert document["rollout"]["out"] == {"5": "removed"}
    assert document["pause"] == {"who": "ops", "why": "holidays", "since": STARTED, "until": STARTED}
    assert [(server["lrn"], server["condition"], server["waiting"]) for server in document["servers"]] == [
        (0, "running", "slot"),
        (1, "aborted", None),
        (2, "not running", None),
    ]
    assert document["servers"][2]["disabled"]["why"] == "broken disk"
    [lock] = document["locks"]
    assert lock["holders"] == [
        {
            "machine_id": "m1",
            "lrn": 1,
            "source": "agent",
            "reason": "reboot",
            "revision": "1a2b",
            "boot_id": "b1",
            "age": 100.0,
            "away": True,
            "overdue": False,
        },
        {
            "machine_id": "m9",
            "lrn": None,
            "source": None,
            "reason": None,
            "revision": None,
            "boot_id": None,
            "age": None,
            "away": None,
            "overdue": False,
        },
    ]
    assert lock["waiters"] == [{"machine_id": "m0", "lrn": 0}]
