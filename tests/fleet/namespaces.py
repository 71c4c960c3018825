"""Three servers that are apart: each with an etcd member and an agent in a network namespace of its own, cut off and joined by `iptables`.

A bridge joins them; the test itself stands at the bridge, as 198.18.77.254, with git and the releases.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

HERE = "198.18.77.254"


def address(lrn: int) -> str:
    return f"198.18.77.{lrn + 1}"


@dataclass
class Network:
    """The namespaces, by number. Names are this process's own, so that two runs do not meet."""

    numbers: tuple[int, ...]
    tag: str = field(default_factory=lambda: f"{os.getpid() % 100000}")

    @property
    def bridge(self) -> str:
        return f"rb{self.tag}"

    def namespace(self, lrn: int) -> str:
        return f"r{self.tag}-{lrn}"

    def inside(self, lrn: int) -> list[str]:
        """What goes before a command that runs there."""
        return ["ip", "netns", "exec", self.namespace(lrn)]

    def make(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{HERE}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for lrn in self.numbers:
            name, outer, inner = self.namespace(lrn), f"rv{self.tag}-{lrn}", f"ri{self.tag}-{lrn}"
            _ip("netns", "add", name)
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", name, "name", "eth0")
            _ip("link", "set", outer, "master", self.bridge, "up")
            _ip("-n", name, "addr", "add", f"{address(lrn)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def remove(self) -> None:
        for lrn in self.numbers:
            with contextlib.suppress(AssertionError):
                _ip("netns", "del", self.namespace(lrn))
        with contextlib.suppress(AssertionError):
            _ip("link", "del", self.bridge)

    def cut_off(self, lrn: int, others: Iterable[int]) -> None:
        """Nothing gets from `lrn` to `others` or back; both still reach the test."""
        for other in others:
            for way in (("INPUT", "-s"), ("OUTPUT", "-d")):
                _run(
                    [*self.inside(lrn), "iptables", "-w", "-A", way[0], way[1], address(other), "-j", "DROP"]
                )

    def pull_the_cable(self, lrn: int) -> None:
        """Nothing gets from `lrn` anywhere."""
        _ip("link", "set", f"rv{self.tag}-{lrn}", "down")

    def heal(self) -> None:
        for lrn in self.numbers:
            _run([*self.inside(lrn), "iptables", "-w", "-F"])
            _ip("link", "set", f"rv{self.tag}-{lrn}", "up")


def is_possible() -> bool:
    """Whether this process may make namespaces and links."""
    try:
        probe = Network((), f"p{os.getpid() % 10000}")
        _ip("netns", "add", probe.namespace(0))
        _ip("netns", "del", probe.namespace(0))
    except (AssertionError, OSError):
        return False
    return True


@contextlib.contextmanager
def network(*numbers: int) -> Iterator[Network]:
    made = Network(numbers)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
