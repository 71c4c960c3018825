"""A package's own code left out, in a process of its own each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
    program = ["import sys", "from reconciler.ground.imports import left_out", *lines]
    argv = [sys.executable, "-c", "\n".join(program)]
    return subprocess.run(argv, cwd=there, capture_output=True, text=True, check=True).stdout.strip()


def test_the_modules_asked_for_are_imported_and_no_others(there: Path) -> None:
    lines = (
        "with left_out('whole') as folder, left_out('whole.inner'):",
        "    from whole.small import WORD",
        "    from whole.inner.part import PART",
        "print(folder.name, WORD, PART, *sorted(name for name in sys.modules if name.startswith('whole')))",
    )
    assert said(there, *lines) == "whole small part whole.inner.part whole.small"


def test_who_imports_the_package_later_gets_it_whole(there: Path) -> None:
    lines = (
        "with left_out('whole'):",
        "    from whole.small import WORD",
        "import whole, whole.inner",
        "from whole import small",
        "print(whole.large.__name__, whole.WORD, whole.inner.WORD, small.WORD)",
    )
    assert said(there, *lines) == "whole.large small small small"


def test_a_package_that_is_imported_already_stays(there: Path) -> None:
    lines = (
        "import whole",
        "with left_out('whole') as folder:",
        "    from whole import large",
        "print(folder.name, sys.modules['whole'] is whole, whole.large is large)",
    )
    assert said(there, *lines) == "whole True True"


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
    assert said(ROOT, *lines).splitlines() == [
        "False False False False",
        "Repo client grpc.aio True",
    ]


def test_threads_that_ask_at_once_get_the_same() -> None:
    lines = (
        "from concurrent.futures import ThreadPoolExecutor",
        "from reconciler.desired.calls import tree_entries",
        "sys.setswitchinterval(1e-6)",
        "with ThreadPoolExecutor(8) as pool:",
        "    print(list(pool.map(tree_entries, [b''] * 8)))",
    )
    assert said(ROOT, *lines) == str([[]] * 8)


@pytest.mark.parametrize(
    ("package", "asked", "told"),
    [
        ("git", "from reconciler.desired.calls import tree_entries; tree_entries(b'')", "cannot read git"),
        ("gitdb", "from reconciler.desired.calls import tree_entries; tree_entries(b'')", "cannot read git"),
        (
            "etcd3",
            "from reconciler.store.library import etcd_and_grpc; etcd_and_grpc()",
            "cannot talk to etcd",
        ),
        (
            "grpc",
            "from reconciler.store.library import etcd_and_grpc; etcd_and_grpc()",
            "cannot talk to etcd",
        ),
    ],
)
def test_a_package_that_is_missing_is_named(package: str, asked: str, told: str) -> None:
    lines = (
        "import importlib.machinery",
        "from reconciler.errors import ReconcilerError",
        "found = importlib.machinery.PathFinder.find_spec",
        f"hidden = lambda name, *rest: None if name == {package!r} else found(name, *rest)",
        "importlib.machinery.PathFinder.find_spec = hidden",
        "try:",
        f"    {asked}",
        "except ReconcilerError as error:",
        "    print(error)",
    )
    assert said(ROOT, *lines) == f"{told}: the Python package {package} is missing; install this program anew"


def test_a_dry_run_imports_what_it_uses_and_no_more(tmp_path: Path) -> None:
    documents = tmp_path / "desired-state"
    documents.mkdir()
    (documents / "debs.yaml").write_text(
        "apiVersion: reconciler/v1\nkind: ArtifactSet\ndebs:\n  - {name: hello, version: '1'}\n"
    )
    for words in (["init", "--quiet", str(tmp_path)], ["-C", str(tmp_path), "add", "."]):
        subprocess.run(["git", *words], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(tmp_path), *author, "commit", "--quiet", "-m", "one"], check=True)
    useless = ("git.repo", "grpc", "jsonschema", "deepdiff", "http.client", "uvicorn", "watchfiles")
    lines = (
        "from reconciler.cli import main",
        f"status = main(['--dry-run', '--repo', {str(tmp_path)!r}, '--state-dir', {str(tmp_path / 'state')!r}])",
        f"print(status, [name for name in (*{useless!r}, 'reconciler.core.lead', 'reconciler.core.advance') if name in sys.modules])",
    )
    assert said(ROOT, *lines).splitlines()[-1] == "0 []"
