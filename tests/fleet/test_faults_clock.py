"""Wall clocks that are a day wrong, and jump, while whole agents reboot. Promise 12; fault 23.

Only what the program itself reads as the wall clock is set: that of the machine is everybody's, and gRPC's is the kernel's.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.fleet.fleet import Machine, Servers
from tests.fleet.test_reboots import group, holders, hooks

DAY = timedelta(days=1)

_CLOCK = """
import os, sys, time

def wall(real=time.time, file=os.environ["WALL_CLOCK"]):
    ours = sys._getframe(1).f_globals.get("__name__", "").startswith("reconciler")
    return real() + (float(open(file).read()) if ours else 0)

time.time = wall
"""


def with_a_clock(machine: Machine, directory: Path, wrong: timedelta) -> None:
    """From its agent's next start on, its wall clock is `wrong`; each of its hooks sets it to the other side of the truth."""
    (directory / "sitecustomize.py").write_text(_CLOCK)
    clock = machine.directory / "clock"
    seconds = int(wrong.total_seconds())
    clock.write_text(f"{seconds}")
    for hook, offset in (("drain", -seconds), ("undrain", seconds)):
        machine.hook(hook, f"echo {hook} >> {machine.directory}/hooks; echo {offset} > {clock}")
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    machine.environment = {"PYTHONPATH": path, "WALL_CLOCK": str(clock)}


def test_promise_12_wall_clocks_that_jump_by_two_days_change_nothing(
    servers: Servers, tmp_path: Path
) -> None:
    for lrn in range(3):
        servers.add(lrn)
    groups = group(servers)
    for lrn, wrong in enumerate((DAY, -DAY, 2 * DAY)):
        with_a_clock(servers.machines[lrn], tmp_path, wrong)
    servers.start()
    servers.wait_for_registered(0, 1, 2)
    servers.wants_reboot(0, 1, 2)
    began = datetime.now(UTC)
    ended = servers.wait_for_end(
        servers.push({"tool": "1.0"}, groups=groups, policy={"timeout": "1m"}), within=60
    )
    assert ended.out == {} and holders(servers) == ()
    servers.has("tool", "1.0")
    steps = servers.view().steps
    for lrn, wrong in enumerate((DAY, -DAY, 2 * DAY)):
        machine = servers.machines[lrn]
        assert len(machine.reboots) == 1 and hooks(machine.directory) == ["drain", "undrain"], machine.log
        assert {record.attempt for record in steps[lrn].values()} == {1}
        # It did live with these clocks: what it recorded shows both.
        for id, offset in (("debs:deb/tool:change", wrong), ("reboot:host:hook:before:0", -wrong)):
            at = datetime.fromisoformat(steps[lrn][id].at)
            assert abs(at - began - offset) < timedelta(hours=1), id
