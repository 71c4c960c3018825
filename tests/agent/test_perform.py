"""`agent/perform` decides nothing: no file of it reads a rollout's state, and the wall clock is only noted. What it imports: import-linter."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import reconciler.agent.perform

MODULES = sorted(Path(reconciler.agent.perform.__path__[0]).glob("*.py"))
DECIDED_FROM = frozenset({"rollout", "phase", "status", "pause", "disabled", "settings", "added"})
"""Of a server, what `advance` decides from. A step is told its revision (`Server.revision`) and its rollout's id."""
CLOCKS = frozenset({"wall", "time", "now", "utcnow", "today"})


def problems(source: str) -> Iterator[str]:
    """What the source has that is `advance`'s to look at."""
    tree = ast.parse(source)
    noted = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "timestamp"
        for argument in node.args
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Name("server"), name) if name in DECIDED_FROM:
                yield f"line {node.lineno}: reads server.{name}"
            case ast.Call(ast.Attribute(_, name)) if name in CLOCKS and id(node) not in noted:
                yield f"line {node.lineno}: asks the wall clock by {name}()"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_step_is_performed_and_nothing_decided(module: Path) -> None:
    assert list(problems(module.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "if server.rollout and server.rollout.stop: pass",
        "server.phase",
        "if hands.wall() > 5: pass",
        "import time\ntime.time()",
        "datetime.now()",
    ],
)
def test_what_decides_is_seen(source: str) -> None:
    assert list(problems(source))


def test_there_is_a_file_for_each_kind_of_step() -> None:
    kinds = {"fetch", "acquire", "hook", "warn", "stop", "change", "reboot", "health", "release"}
    assert {module.stem for module in MODULES} == kinds | {"__init__", "own"}
