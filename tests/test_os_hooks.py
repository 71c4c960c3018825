"""The example hooks, against scripts that answer as `flatcar-update`, `bootc` and `rpm-ostree` are documented to."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "os-hooks"


class Tool:
    """A host's root and programs; every call of one of them is in `calls`."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.root = directory / "root"
        self._kind = kind
        self._bin = directory / "bin"
        self._log = directory / "calls"
        self._bin.mkdir()
        for name in ("etc/reconciler", "run", "usr/share/flatcar"):
            (self.root / name).mkdir(parents=True)

    def program(self, name: str, answers: str = "") -> None:
        """A program that notes its call and runs the shell text `answers`."""
        path = self._bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self._log}\n{answers}\n')
        path.chmod(0o755)

    def says(self, name: str, document: object) -> None:
        """A program whose `status` prints a document."""
        self.program(name, f"[ $1 = status ] && cat <<'END'\n{json.dumps(document)}\nEND\ntrue")

    def run(self, hook: str, *arguments: str) -> str:
        done = subprocess.run(
            [EXAMPLES / self._kind / hook, *arguments],
            env={"PATH": f"{self._bin}:{os.environ['PATH']}", "ROOT": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def calls(self) -> list[str]:
        """What was called, but for what only asks."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line for line in lines if "status" not in line.split() and "-status" not in line.split()]


@pytest.fixture
def tool(tmp_path: Path, request: pytest.FixtureRequest) -> Tool:
    return Tool(tmp_path, request.param)


@pytest.mark.parametrize(
    "hook", sorted(EXAMPLES.glob("*/os-*")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_hook_can_be_installed_as_it_is(hook: Path) -> None:
    assert hook.read_text().startswith("#!/bin/sh\n")
    assert os.access(hook, os.X_OK)
    subprocess.run(["sh", "-n", hook], check=True)


def test_every_kind_has_the_three_hooks() -> None:
    kinds = [path for path in EXAMPLES.iterdir() if path.is_dir()]
    assert {kind.name for kind in kinds} == {"flatcar-update", "bootc", "rpm-ostree"}
    for kind in kinds:
        assert sorted(path.name for path in kind.iterdir()) == ["os-current", "os-rollback", "os-stage"]


# --- flatcar-update ---------------------------------------------------------------------------------------------------

_UPDATED = "CURRENT_OP=UPDATE_STATUS_UPDATED_NEED_REBOOT"
flatcar = pytest.mark.parametrize("tool", ["flatcar-update"], indirect=True)


def _flatcar(tool: Tool, operation: str = "CURRENT_OP=UPDATE_STATUS_IDLE") -> None:
    (tool.root / "etc/os-release").write_text('NAME="Flatcar"\nVERSION_ID=3139.2.1\n')
    (tool.root / "usr/share/flatcar/update.conf").write_text("SERVER=https://x\nGROUP=stable\n")
    tool.program(
        "update_engine_client", f"[ $1 = -status ] && echo LAST_CHECKED_TIME=0 && echo {operation}; true"
    )
    tool.program("flatcar-update")
    tool.program("rootdev", "echo /dev/sda3")
    tool.program("cgpt", "[ $1 = find ] && echo /dev/sda3 && echo /dev/sda4; true")


@flatcar
def test_flatcar_says_what_runs(tool: Tool) -> None:
    _flatcar(tool)
    assert tool.run("os-current") == "stable/3139.2.1\n"


@flatcar
def test_flatcar_stages_once(tool: Tool) -> None:
    _flatcar(tool)
    tool.run("os-stage", "stable", "3227.2.0")
    assert tool.calls == ["flatcar-update --to-version 3227.2.0 --disable-afterwards"]
    _flatcar(tool, _UPDATED)
    tool.run("os-stage", "stable", "3227.2.0")
    assert len(tool.calls) == 1
    tool.run("os-stage", "beta", "3277.1.0")
    assert tool.calls[1:] == [
        "update_engine_client -reset_status",
        "flatcar-update --to-version 3277.1.0 --disable-afterwards",
    ]


@flatcar
def test_flatcar_goes_back_before_and_after_the_boot(tool: Tool) -> None:
    _flatcar(tool, _UPDATED)
    tool.run("os-rollback")
    assert tool.calls[-1] == "cgpt prioritize /dev/sda3"
    _flatcar(tool)
    tool.run("os-rollback")
    assert tool.calls[-1] == "cgpt prioritize /dev/sda4"


# --- bootc ------------------------------------------------------------------------------------------------------------

bootc = pytest.mark.parametrize("tool", ["bootc"], indirect=True)


def _bootc(tool: Tool, staged: str | None = None) -> None:
    def image(name: str) -> dict[str, object]:
        return {"image": {"image": {"image": name, "transport": "registry"}}}

    (tool.root / "etc/reconciler/os-image.conf").write_text("REPOSITORY=registry.example/os\n")
    tool.says(
        "bootc",
        {
            "status": {
                "booted": image("registry.example/os:stable-41.1"),
                "staged": image(staged) if staged else None,
            }
        },
    )
    tool.program("ostree")


@pytest.mark.needs("jq")
@bootc
def test_bootc(tool: Tool) -> None:
    _bootc(tool)
    assert tool.run("os-current") == "stable/41.1\n"
    tool.run("os-stage", "stable", "41.2")
    assert tool.calls == ["bootc switch registry.example/os:stable-41.2"]
    tool.run("os-rollback")
    assert tool.calls[1:] == ["bootc rollback"]
    _bootc(tool, staged="registry.example/os:stable-41.2")
    tool.run("os-stage", "stable", "41.2")
    assert len(tool.calls) == 2
    tool.run("os-rollback")
    assert tool.calls[2:] == ["ostree admin undeploy 0"]


# --- rpm-ostree -------------------------------------------------------------------------------------------------------

rpm_ostree = pytest.mark.parametrize("tool", ["rpm-ostree"], indirect=True)
_ORIGIN = "fedora:fedora/x86_64/coreos/stable"


def _rpm_ostree(tool: Tool, staged: str | None = None) -> None:
    booted = {"booted": True, "staged": False, "origin": _ORIGIN, "version": "40.1"}
    other = {"booted": False, "staged": True, "origin": _ORIGIN, "version": staged}
    tool.says("rpm-ostree", {"deployments": [*([other] if staged else []), booted]})


@pytest.mark.needs("jq")
@rpm_ostree
def test_rpm_ostree(tool: Tool) -> None:
    _rpm_ostree(tool)
    assert tool.run("os-current") == "stable/40.1\n"
    tool.run("os-stage", "stable", "40.2")
    tool.run("os-stage", "testing", "41.0")
    tool.run("os-rollback")
    assert tool.calls == [
        "rpm-ostree deploy 40.2",
        "rpm-ostree rebase fedora:fedora/x86_64/coreos/testing 41.0",
        "rpm-ostree rollback",
    ]
    _rpm_ostree(tool, staged="40.2")
    tool.run("os-stage", "stable", "40.2")
    assert len(tool.calls) == 3
    tool.run("os-rollback")
    assert tool.calls[3:] == ["rpm-ostree cleanup --pending"]
