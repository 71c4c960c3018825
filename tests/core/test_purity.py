"""`core/` is values and decisions: of the standard library what computes, nothing that looks at the world, no clock."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import reconciler.core

COMPUTES = frozenset({"__future__", "collections", "dataclasses", "datetime", "enum", "fractions", "functools"}) | {
    "itertools", "math", "re", "typing", "zoneinfo",
}  # fmt: skip
"""Modules that give the same answer to the same question, anywhere and at any time."""
OURS = ("reconciler.core", "reconciler.errors")
LOOKS = frozenset({"open", "input", "print", "exec", "eval", "__import__", "breakpoint"})
CLOCK = frozenset({"now", "utcnow", "today"})
MODULES = sorted(Path(reconciler.core.__path__[0]).glob("*.py"))


def problems(source: str) -> Iterator[str]:
    """What the source has that is not pure."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                imported = [alias.name for alias in names]
            case ast.ImportFrom(module, _, level):
                imported = ["." * level + (module or "")]
            case ast.Call(ast.Name(name)) if name in LOOKS:
                yield f"line {node.lineno}: calls {name}()"
                continue
            case ast.Call(ast.Attribute(_, name)) if name in CLOCK:
                yield f"line {node.lineno}: asks the clock by {name}()"
                continue
            case _:
                continue
        for name in imported:
            if name.split(".")[0] not in COMPUTES and not name.startswith(OURS):
                yield f"line {node.lineno}: imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_of_the_core_is_pure(module: Path) -> None:
    assert list(problems(module.read_text())) == []


def test_what_is_allowed_is_the_standard_library() -> None:
    assert len(MODULES) > 10 and sys.stdlib_module_names >= COMPUTES


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "import os.path",
        "from pathlib import Path",
        "import yaml",
        "def f():\n    import time",
        "from reconciler.ground import process",
        "from . import state",
        "from datetime import datetime\ndatetime.now()",
        "open('x')",
    ],
)
def test_what_is_not_pure_is_seen(source: str) -> None:
    assert list(problems(source))
