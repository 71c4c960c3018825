"""A rehearsed fleet's servers, in one process: each one's real worker and writes, with a host in memory. Tasks: `start`, `count`, `floor N`, `end`.

What differs from as many agents: they share one client, one watch of what the leader writes, and a few threads.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.inside import Answer, answering, cpu_seconds, peak_mb
from bench.inside.fleet import GivenRevisions, first_records, machine_id, revision
from reconciler.agent.hands import Hands
from reconciler.agent.publisher import Publisher
from reconciler.agent.worker import Worker
from reconciler.agent.writing import Identity, Writing
from reconciler.core.artifact import Artifact, Image, Key, Known, Pin
from reconciler.core.published import Published
from reconciler.core.state import Server
from reconciler.errors import ReconcilerError
from reconciler.host.driver import Host, Progress, silent
from reconciler.host.ledger import Ledger
from reconciler.host.policy import EVERYTHING
from reconciler.store.client import Client, EtcdOptions
from reconciler.store.keys import Keys
from reconciler.store.transaction import Event, Operation, absent, one, put
from reconciler.store.view import read_server
from reconciler.store.watch import Watch

THREADS = 8
AGAIN_AFTER = 0.2
OPERATIONS = 120


class ImagesInMemory:
    """The images of one server, without a runtime: what is applied is there."""

    def __init__(self) -> None:
        self._has = {key: artifact.version for key, artifact in revision(0).artifacts_of(0).items()}

    def observe(self, artifacts: Iterable[Artifact | Known], *, closely: bool = False) -> Mapping[Key, str]:
        return {artifact.key: self._has[artifact.key] for artifact in artifacts if artifact.key in self._has}

    def target(self, artifact: Artifact, pin: Pin | None) -> str | None:
        return artifact.version

    def fetch(self, artifact: Artifact, pin: Pin | None, progress: Progress = silent) -> None:
        """All of it is here."""

    def apply(self, artifact: Artifact, pin: Pin | None) -> None:
        self._has[artifact.key] = artifact.version

    def remove(self, key: Key) -> None:
        self._has.pop(key, None)

    def stop(self, key: Key) -> None:
        """Nothing runs here."""

    def confirm(self, key: Key) -> None:
        """Nothing runs here."""

    def previous(self, key: Key) -> Image | None:
        return None

    def restore(self, key: Key) -> str | None:
        return None


class Rung:
    """Servers that have something to do, each once however often it was rung, and never with two threads at a time."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._rung: set[int] = set()
        self._busy: set[int] = set()

    def ring(self, lrn: int) -> None:
        with self._mutex:
            if lrn in self._rung:
                return
            self._rung.add(lrn)
            if lrn not in self._busy:
                self._waiting.put(lrn)

    def take(self) -> int | None:
        """The next one; None at the end."""
        lrn = self._waiting.get()
        if lrn is not None:
            with self._mutex:
                self._rung.discard(lrn)
                self._busy.add(lrn)
        return lrn

    def give_back(self, lrn: int) -> None:
        with self._mutex:
            self._busy.discard(lrn)
            if lrn in self._rung:
                self._waiting.put(lrn)

    def end(self, threads: int) -> None:
        for _ in range(threads):
            self._waiting.put(None)


class Servers:
    """`number` servers and the threads that work for them."""

    def __init__(self, endpoint: str, number: int, directory: Path) -> None:
        self._number, self._rung = number, Rung()
        self.client, self._keys = Client(EtcdOptions((endpoint,))), Keys()
        self._follower, self._ending = GivenRevisions(), threading.Event()
        host = Host(root=directory, state_dir=directory)
        self._host, self._ledger = host, Ledger.open(host)
        self._writings: list[Writing] = []
        self._workers = [self._worker(lrn) for lrn in range(number)]
        self._failed_passes = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        self._watch: Watch | None = None

    def _worker(self, lrn: int) -> Worker:
        def read() -> Server:
            return read_server(self.client, self._keys, lrn, machine_id(lrn), "boot")

        def ring() -> None:
            self._rung.ring(lrn)

        images = ImagesInMemory()
        hands = Hands(
            self._host,
            {"image": images},
            images,
            self._ledger,
            EVERYTHING,
            ending=self._ending,
            wall=time.time,
        )
        writing = Writing(
            self.client, self._keys, Identity(lrn, f"boot-{lrn}", machine_id(lrn)), time.time, ring
        )
        self._writings.append(writing)
        return Worker(hands, writing, self._follower, read, Publisher(Published(lrn)))

    def start(self) -> Answer:
        """Record and register all, and let them look once."""
        operations = [put_ for lrn in range(self._number) for put_ in first_records(self._keys, lrn)]
        for index in range(0, len(operations), OPERATIONS):
            self.client.txn([], operations[index : index + OPERATIONS])
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(Writing.ensure, self._writings))
        found = self.client.read((one(self._keys.rollout),))
        ranges = [one(key) for key in (self._keys.rollout, self._keys.phase, self._keys.pause)]
        self._watch = Watch(self.client, ranges, found.revision + 1, self._ring_all, lambda: found.revision)
        for thread in self._threads:
            thread.start()
        self._ring_all()
        return {"servers": self._number}

    def _ring_all(self, events: tuple[Event, ...] = (), at: int = 0) -> None:
        for lrn in range(self._number):
            self._rung.ring(lrn)

    def _work(self) -> None:
        while (lrn := self._rung.take()) is not None:
            try:
                self._workers[lrn].work()
            except ReconcilerError as error:
                logging.warning("server %d: %s", lrn, error)
                self._failed_passes += 1
                threading.Timer(AGAIN_AFTER, self._rung.ring, (lrn,)).start()
            finally:
                self._rung.give_back(lrn)

    def count(self) -> Answer:
        """Since the start: etcd requests (without what keeps leases alive), errors, CPU seconds; and the peak of memory."""
        counts = self.client.counts
        return {
            "requests": counts.get("Txn", 0) + counts.get("Range", 0),
            "errors": sum(number for name, number in counts.items() if name.startswith("error ")),
            "failed_passes": self._failed_passes,
            "cpu": cpu_seconds(),
            "peak_mb": peak_mb(),
        }

    def floor(self, number: str) -> Answer:
        """As many transactions by as many threads, each writing one key where it is absent, and nothing decided: seconds."""

        def write(index: int) -> None:
            key = f"/floor/{time.monotonic_ns()}/{index}"
            written: list[Operation] = [put(key, "x" * 200)]
            self.client.txn([absent(key)], written)

        began = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(write, range(int(number))))
        return {"seconds": time.perf_counter() - began}

    def end(self) -> Answer:
        self._ending.set()
        if self._watch is not None:
            self._watch.close()
        self._rung.end(THREADS)
        for thread in self._threads:
            thread.join(10)
        self.client.close()
        return {}


def main() -> None:
    with TemporaryDirectory(prefix="bench-host-") as directory:
        servers = Servers(sys.argv[1], int(sys.argv[2]), Path(directory))
        answering(
            {"start": servers.start, "count": servers.count, "floor": servers.floor, "end": servers.end}
        )


if __name__ == "__main__":
    main()
