"""The list of mutations is of this code: each stands where it says, is a change, and what it leaves is Python.

Whether a test notices each is `make mutations`, which takes minutes.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    assert spec and spec.loader
    module = sys.modules["mutate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MUTATIONS = _tool().mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks.replace(" ", "-"))
def test_a_mutation_stands_in_the_code(mutation: Any) -> None:
    text = (ROOT / mutation.file).read_text()
    patched = mutation.applied(text)
    assert patched != text
    ast.parse(patched)
    for test in mutation.tests:
        assert (ROOT / test.partition("::")[0]).exists(), f"{test} is not there"


def test_there_are_enough_of_them_in_every_room() -> None:
    rooms = [mutation.file.split("/")[1] for mutation in MUTATIONS]
    assert len(MUTATIONS) >= 40
    assert {"core", "store", "agent", "host", "desired", "web"} <= set(rooms)
    assert {mutation.promise for mutation in MUTATIONS} >= {
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
        16,
        17,
        18,
        19,
    }
