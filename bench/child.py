"""One of the programs of `bench/inside`, run in a process of its own and told what to do. Used by the subjects."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.measure import NotMeasured

ROOT = Path(__file__).parent.parent


class Child:
    """`python -m bench.inside.<program> <arguments>`, until the block ends."""

    def __init__(self, program: str, *arguments: object) -> None:
        self._name = program
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the block)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"bench.inside.{program}", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        self._rest = b""

    def tell(self, *words: object) -> None:
        """Give it a task; `answer` waits for its end."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{' '.join(map(str, words))}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self, within: float = 120.0) -> dict[str, Any]:
        """What it answers to the task that it was told first."""
        assert self._process.stdout is not None
        end = time.monotonic() + within
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise NotMeasured(f"bench.inside.{self._name} has not answered within {within:g} s")
            got = os.read(self._process.stdout.fileno(), 1 << 16)
            if not got:
                raise self._ended()
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, *words: object, within: float = 120.0) -> dict[str, Any]:
        self.tell(*words)
        return self.answer(within)

    def _ended(self) -> NotMeasured:
        self._said.seek(0)
        last = self._said.read()[-1000:].decode(errors="replace").strip()
        return NotMeasured(f"bench.inside.{self._name} has ended: {last}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._said, self._process.stdout:
            if kind is not None:
                self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
