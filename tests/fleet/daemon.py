"""A running agent seen from outside, as the daemon's tests see it: its HTTP port, its log, what /proc says of it."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fleet.fleet import Machine, Servers

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer over HTTP."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used: seconds of CPU; now: resident bytes, threads, open files."""

    cpu: float
    resident: int
    threads: int
    files: int


def port_of(machine: Machine) -> int | None:
    """Where it serves HTTP, as its log says last."""
    found = re.findall(r"serves https? on \S+, port ([0-9]+)", machine.log)
    return int(found[-1]) if found else None


def ask(
    machine: Machine,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request; status 0 where nobody answers."""
    port = port_of(machine)
    if port is None:
        return Answer(0, "")
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=tls)
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    )
    with contextlib.closing(connection):
        try:
            connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.read().decode())
        except (OSError, http.client.HTTPException):
            return Answer(0, "")


def metric(machine: Machine, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    text = ask(machine, "/metrics").text
    found = re.findall(rf"^{name}(?:_total)?(?:\{{(.*)\}})? ([0-9.e+-]+)$", text, re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for shown, value in found if all(pair in shown for pair in wanted))


def usage(machine: Machine) -> Usage:
    assert machine.process is not None
    return usage_of(machine.process.pid)


def usage_of(pid: int) -> Usage:
    place = Path("/proc") / str(pid)
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
    return Usage(
        (int(fields[11]) + int(fields[12])) / TICKS,
        int(status["VmRSS"].split()[0]) << 10,
        int(status["Threads"]),
        len(list((place / "fd").iterdir())),
    )


def wait_for_log(servers: Servers, machine: Machine, text: str, number: int = 1) -> None:
    """Until its log has a text so many times."""
    servers.wait(f'the log says "{text}"', lambda: machine.log.count(text) >= number, within=60)
