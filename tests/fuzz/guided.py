"""`python -m tests.fuzz.guided DOOR RUNS`: one door under `atheris`, which looks for input that reaches new lines. Run by `test_guided`.

It ends with 0 where only typed errors came; else libFuzzer prints the input and the traceback.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["reconciler"]):
    from tests.fuzz.doors import DOORS


def main() -> None:
    name, runs, corpus = sys.argv[1:4]
    door = next(door for door in DOORS if door.name == name)
    atheris.Setup(
        [sys.argv[0], f"-runs={runs}", "-max_len=2000", "-rss_limit_mb=1024", "-timeout=20", corpus],
        door.opened,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
