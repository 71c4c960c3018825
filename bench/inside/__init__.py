"""Programs that run parts of `reconciler` from inside, each in a process of its own, so that what measures them stays small.

Each is told its next task by a line on standard input and answers with one JSON object on a line: `answering`.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

Answer = Mapping[str, object]


def answering(tasks: Mapping[str, Callable[..., Answer]]) -> None:
    """Answer until standard input ends: a line is a task's name and its words."""
    for line in sys.stdin:
        name, *words = line.split()
        print(json.dumps(tasks[name](*words)), flush=True)


def cpu_seconds() -> float:
    """CPU that this process has used, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    """The peak of this process's resident memory, in MB. Unlike `getrusage`'s it counts nothing of before `exec`."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0
