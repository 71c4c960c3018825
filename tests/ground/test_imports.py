"""A package's own code left out, in a process of its own each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = {
    "whole/__init__.py": "import whole.large\nfrom whole.small import WORD",
    "whole/large.py": "",
    "whole/small.py": "WORD = 'small'",
    "whole/inner/__init__.py": "from whole import WORD",
    "whole/inner/part.py": "PART = 'part'",
}


@pytest.fixture
def there(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def said(there: Path, *lines: str) -> str:
    program = ["import sys", "from reconciler.ground.imports import folder_of, left_out", *lines]
    argv = [sys.executable, "-c", "\n".join(program)]
    return subprocess.run(argv, cwd=there, capture_output=True, text=True, check=True).stdout.strip()


def test_the_modules_asked_for_are_imported_and_no_others(there: Path) -> None:
    lines = (
        "folder = folder_of('whole')",
        "with left_out('whole', folder), left_out('whole.inner', folder / 'inner'):",
        "    from whole.small import WORD",
        "    from whole.inner.part import PART",
        "print(WORD, PART, *sorted(name for name in sys.modules if name.startswith('whole')))",
    )
    assert said(there, *lines) == "small part whole.inner.part whole.small"


def test_who_imports_the_package_later_gets_it_whole(there: Path) -> None:
    lines = (
        "with left_out('whole', folder_of('whole')):",
        "    from whole.small import WORD",
        "import whole, whole.inner",
        "print(whole.large.__name__, whole.WORD, whole.inner.WORD)",
    )
    assert said(there, *lines) == "whole.large small small"


def test_a_package_that_is_imported_already_stays(there: Path) -> None:
    lines = (
        "import whole",
        "with left_out('whole', folder_of('whole')):",
        "    from whole import large",
        "print(sys.modules['whole'] is whole, whole.large is large)",
    )
    assert said(there, *lines) == "True True"


def test_the_real_libraries_are_there_for_others() -> None:
    lines = (
        "from reconciler.desired.calls import tree_entries",
        "from reconciler.store.library import etcd_and_grpc",
        "tree_entries(b'')",
        "rpc, grpc = etcd_and_grpc()",
        "print(*(name in sys.modules for name in ('git', 'git.repo', 'etcd3', 'grpc.aio')))",
        "import etcd3, git, grpc.aio",
        "print(git.Repo.__name__, etcd3.client.__name__, grpc.aio.__name__, etcd3.etcdrpc is rpc)",
    )
    assert said(Path(__file__).parents[2], *lines).splitlines() == [
        "False False False False",
        "Repo client grpc.aio True",
    ]


def test_a_package_that_is_not_installed_has_no_folder(there: Path) -> None:
    assert said(there, "print(folder_of('nowhere_to_be_found'))") == "None"
