"""The reboot lock: how often a slot is taken and given back, each client a process of its own.

Beside it stand two bare transactions a cycle by the same clients, the same with a key that goes round from client to client,
and etcd's own lock through `etcdctl lock`.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.child import Child
from bench.measure import Figure, Measured, Target
from bench.stage import Stage

SECONDS = 2.0
"""How long one run of each kind takes."""
CLIENTS = 8
TURNS = 100
"""How often the ring goes round in one run: it takes about as long."""
KEPT = (Target(0.7, "ratio", at_least=True),)
NONE = (Target(0.0),)
UNIT = "cycles/s"


def figures(stage: Stage, runs: int) -> Iterator[Figure]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Child("locker", stage.endpoint, "bench", n)) for n in range(CLIENTS)]
        answers: dict[str, list[dict[str, Any]]] = {}
        taken: dict[str, list[float]] = {}
        # In turns: what disturbs one kind disturbs the others too. The first turn does not count.
        for turn in range(runs + 1):
            for kind, said in _turn(clients):
                if turn:
                    rate = sum(answer["done"] / answer["seconds"] for answer in said)
                    taken.setdefault(kind, []).append(rate)
                    answers.setdefault(kind, []).extend(said)
        for client in clients:
            client.ask("end")
    rates = {kind: Measured(tuple(found), UNIT) for kind, found in taken.items()}
    one, many, crowd = rates["one on one"], rates["eight on eight"], rates["eight on one"]
    bare = "two bare transactions a cycle"
    yield Figure("lock", "1 client on 1 slot", one, bare, rates["one: floor"])
    yield Figure("lock", "8 clients on 8 slots", many, bare, rates["eight: floor"])
    yield Figure("lock", "8 clients on 1 slot", crowd, "1 client on 1 slot", one, KEPT)
    # What the machine leaves of one client's rate where another process has to be woken for each cycle.
    ring = "8 bare clients in a ring"
    yield Figure("lock", "8 clients on 1 slot", crowd, ring, rates["eight: ring"])
    yield Figure("lock", ring, rates["eight: ring"], bare, rates["one: floor"])
    if etcdctl := shutil.which("etcdctl"):
        for what, mine, number in (("1 client on 1 slot", one, 1), ("8 clients on 1 slot", crowd, CLIENTS)):
            peer = Measured(tuple(_etcdctl(etcdctl, stage.endpoint, number) for _ in range(5)), UNIT)
            yield Figure("lock", what, mine, "etcdctl lock", peer)
    kinds = (("1 on 1", "one on one"), ("8 on 8", "eight on eight"), ("8 on 1", "eight on one"))
    for what, kind in kinds:
        waited = Measured((max(said["longest"] for said in answers[kind]),))
        yield Figure("lock", f"{what}: longest wait for a slot", waited)
        yield Figure("lock", f"{what}: requests to etcd", _asked(answers[kind]))
    counted = [said for _, kind in kinds for said in answers[kind]]
    failed, done = float(sum(said["failed"] for said in counted)), sum(said["done"] for said in counted)
    yield Figure("lock", "calls that failed", Measured((failed,), f"of {done:,}"), targets=NONE)


def _asked(answers: Sequence[dict[str, Any]]) -> Measured:
    """Transactions and watches a cycle, over all clients."""
    asked = sum(said["asked"].get(name, 0) for said in answers for name in ("Txn", "Watch"))
    return Measured((asked / sum(said["done"] for said in answers),), "a cycle")


def _turn(clients: Sequence[Child]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each kind once."""
    clients[0].ask("slots", 1)
    yield "one on one", _together(clients[:1], "cycles")
    yield "eight on one", _together(clients, "cycles")
    yield "one: floor", _together(clients[:1], "floor")
    for client in clients:
        client.ask("stand", CLIENTS)
    yield "eight: ring", _together(clients, "ring", TURNS)
    clients[0].ask("slots", CLIENTS)
    yield "eight on eight", _together(clients, "cycles")
    yield "eight: floor", _together(clients, "floor")


def _together(clients: Sequence[Child], task: str, number: float = SECONDS) -> list[dict[str, Any]]:
    for client in clients:
        client.tell(task, number)
    return [client.answer() for client in clients]


def _etcdctl(program: str, endpoint: str, clients: int) -> float:
    """Cycles a second of so many `etcdctl lock`, each starting `true` while it holds the lock."""
    done: list[int] = []
    began = time.monotonic()

    def lock() -> None:
        argv = [program, "--endpoints", endpoint, "lock", "bench", "true"]
        while time.monotonic() < began + SECONDS:
            subprocess.run(
                argv,
                env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
                check=True,
                timeout=60,
                capture_output=True,
            )
            done.append(1)

    threads = [threading.Thread(target=lock) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done) / (time.monotonic() - began)
