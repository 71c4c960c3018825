"""The project as a newcomer meets it: the Makefile, the set-up without root, the wheel, and the links in its pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TARGETS = ("setup", "venv", "test", "demo", "lint", "bench", "soak", "mutations", "clean")
ELSEWHERE = {".venv", ".git", "build", "dist", "node_modules"}


def test_make_alone_lists_what_can_be_done() -> None:
    listed = subprocess.run(
        ["make", "--directory", ROOT], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    for target in TARGETS:
        assert re.search(rf"^make {target} +\w", listed, re.MULTILINE), f"{target} is not in the list"


def test_ci_runs_the_linters_and_the_readmes_test_command() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make lint", "make test"]
    assert re.search(r"^\s*(?:\$ )?make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_without_root_missing_packages_are_named_and_the_set_up_goes_on() -> None:
    script = (ROOT / "tools" / "system-packages").read_text()
    # A machine with almost no program, in a directory that everybody may enter: `id`, and what the script finds in sbin.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        Path(directory, "id").symlink_to(shutil.which("id") or "id")
        done = subprocess.run(
            ["/bin/sh", "-s"],
            input=script,
            env={"PATH": directory},
            cwd="/",
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "sudo make setup" in done.stderr
    for package in ("etcd-server", "git", "podman", "busybox-static", "python3-venv"):
        assert package in done.stderr


def test_the_wheel_carries_the_schemas_and_the_licence(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("reconciler", "schemas"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        tmp_path,
        source,
    ]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("reconciler-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "reconcile = reconciler.cli:main" in packed.read(entry_points).decode()
    schemas = sorted(path.name for path in (ROOT / "schemas").glob("*.json"))
    assert schemas, "there is no schema to carry"
    assert {f"reconciler/schemas/{name}" for name in schemas} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "bench/", "examples/"))]


def pages() -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not ELSEWHERE & set(path.relative_to(ROOT).parts)
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    )


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    dead = [
        target
        for target in targets
        if target
        and "://" not in target
        and not target.startswith("mailto:")
        and not (page.parent / target).exists()
    ]
    assert dead == []
    anchors = re.findall(r"\]\(([^)\s:#]*\.md)?#([^)\s]+)\)", text)
    assert [
        anchor for file, anchor in anchors if anchor not in headings(page.parent / file if file else page)
    ] == []


def headings(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
