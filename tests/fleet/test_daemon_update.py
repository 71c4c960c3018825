"""The agent updates itself: real packages that hold the agent's own code, real dpkg whose script restarts it, and podman.

No systemd runs here. What stands for the agent's service is the package's own script, which ends the agent, and this test,
which starts it again from what is installed: as `Restart=always` does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import reconciler
from reconciler import __version__
from reconciler.core.artifact import Key
from reconciler.core.state import PLAN_FORMAT
from reconciler.store.transaction import Item, Put, one, put
from tests.debs import DebSpec
from tests.fleet.checker import history
from tests.fleet.daemon import metric, wait_for_log
from tests.fleet.fleet import Machine, Servers, with_shell
from tests.podman import podman
from tests.registry import registry
from tests.systemd import Systemd

WITHIN = 90.0
LIBRARY = "/opt/reconciler/lib"
SOURCES = Path(reconciler.__file__).parent
POSTINST = """#!/bin/sh
set -e
sleep 0.5
if [ -e /agent.pid ]; then read pid </agent.pid; kill -TERM $pid; fi
sleep 0.5
touch /configured
"""
"""What a package's script does with its service. It goes on for a while after the agent has ended: nothing may cut it off."""


def package(version: str, broken: bool = False) -> DebSpec:
    """The agent's package: this very code, but for what it says of its version; or one whose agent cannot start."""
    files = {path.relative_to(SOURCES): path.read_text() for path in SOURCES.rglob("*.py")}
    schemas = SOURCES.parent / "schemas"
    files |= {Path("schemas") / path.name: path.read_text() for path in schemas.glob("*.json")}
    start = files[Path("__init__.py")]
    assert f'"{__version__}"' in start
    files[Path("__init__.py")] = start.replace(f'"{__version__}"', f'"{version}"')
    if broken:
        files[Path("cli/agent.py")] = "raise SystemExit('this agent does not come up')\n"
    placed = tuple((f"{LIBRARY}/reconciler/{path}", text) for path, text in sorted(files.items()))
    return DebSpec("reconciler", version, files=placed, scripts=(("postinst", POSTINST),))


def supervised(servers: Servers, machine: Machine) -> Callable[[], None]:
    """Starts the agent again whenever it has ended, from what is installed on its host. Call it often."""
    machine.environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{machine.root}{LIBRARY}"}
    with_shell(machine)

    def look() -> None:
        if machine.process is None or machine.process.poll() is not None:
            machine.process = None
            servers.start(machine)
            assert machine.process is not None
            (machine.root / "agent.pid").write_text(f"{machine.process.pid}\n")

    return look


def until(servers: Servers, look: Callable[[], None], what: str, condition: Callable[[], object]) -> None:
    def looked() -> bool:
        look()
        return bool(condition())

    servers.wait(what, looked, within=WITHIN)


def version_of(machine: Machine) -> str:
    """The version of the agent that runs."""
    found = [
        version
        for version in ("1.0", "2.0", __version__)
        if metric(machine, "reconciler_build_info", version=version) == 1
    ]
    return found[0] if found else ""


def ended(servers: Servers, revision: str) -> bool:
    rollout = servers.view().rollout
    return bool(rollout and rollout.version == revision and rollout.outcome == "complete")


def test_its_own_package_comes_last_and_the_new_agent_records_it(servers: Servers) -> None:
    for version in ("1.0", "2.0"):
        servers.release_package(package(version))
    machine = servers.add(0)
    look = supervised(servers, machine)
    look()
    revision = servers.push({"reconciler": "1.0", "zsh": "1"})
    until(servers, look, "the agent is its package's", lambda: ended(servers, revision))
    until(servers, look, "it serves", lambda: version_of(machine) == "1.0")
    (machine.root / "configured").unlink()
    before = len(machine.log)

    revision = servers.push({"reconciler": "2.0", "zsh": "2"})
    until(servers, look, "the new agent goes on", lambda: ended(servers, revision))
    servers.has("reconciler", "2.0", 0)
    assert (machine.root / "configured").exists(), "the package's script was not cut off"
    until(servers, look, "it is the new one", lambda: version_of(machine) == "2.0")
    log = machine.log[before:]
    own = "debs:deb/reconciler:change"
    assert log.index("has done debs:deb/zsh:change") < log.index(f"begins {own}"), "it comes last"
    assert log.index(f"begins {own}") < log.index("the step in flight is finished"), (
        "the old one ends in order"
    )
    assert log.index("the step in flight is finished") < log.index(f"has done {own}")
    assert servers.view().steps[0][own].attempt == 2, "begun by the old one, ended by the new one"

    # Desired no more, it is forgotten: an agent that removed itself would leave a server that nobody serves.
    revision = servers.push({"zsh": "2"})
    until(servers, look, "it is recorded no more", lambda: ended(servers, revision))
    assert "deb/reconciler" not in servers.recorded(0)
    assert machine.deb("reconciler") == "ii 2.0"
    assert machine.terminate() == 0


def test_a_new_agent_that_does_not_come_up_stops_the_rollout(servers: Servers) -> None:
    """Its server is silent; the others, in the next wave, keep what they have."""
    servers.release_package(package("2.0", broken=True))
    machine, other = servers.add(0, "--no-lead"), servers.add(1)
    look = supervised(servers, machine)
    look()
    servers.start(1)
    servers.wait_for_registered(0, 1)
    policy = {"waves": [{"servers": [0]}, {"servers": [1]}], "timeout": "10s"}
    servers.wait_for_end(servers.push({"tool": "1.0"}, policy=policy), within=WITHIN)
    second = servers.push({"tool": "2.0", "reconciler": "2.0"}, policy=policy)

    def stopped() -> bool:
        rollout = servers.view().rollout
        return bool(rollout and rollout.version == second and rollout.stop)

    until(servers, look, "the rollout has stopped", stopped)
    rollout = servers.view().rollout
    assert rollout is not None and "server 0" in (rollout.message or "")
    assert machine.deb("reconciler") == "ii 2.0", "what was done is done"
    assert "deb/reconciler" not in servers.recorded(0), "and nobody has seen that it works"
    servers.has("tool", "1.0", 1)
    assert other.deb("reconciler") == ""


def test_a_package_that_cannot_replace_the_agent_fails_as_a_step(servers: Servers) -> None:
    servers.release_package(
        DebSpec(
            "reconciler", "3.0", scripts=(("preinst", "#!/bin/sh\necho 'no room for this agent'\nexit 1\n"),)
        )
    )
    machine = servers.add(0)
    with_shell(machine)
    servers.start()
    rollout = servers.wait_for_stop(servers.push({"reconciler": "3.0"}), within=WITHIN)
    assert "cannot replace the agent on server 0" in (rollout.message or "")
    assert machine.process is not None and machine.process.poll() is None, "the agent lives"


def test_an_agent_that_nobody_restarts_ends_in_order_by_itself(servers: Servers) -> None:
    """A package without a script: the old agent runs on until it sees that it has been replaced."""
    servers.release_package(DebSpec("reconciler", "1.0"))
    machine = servers.add(0)
    look = supervised(servers, machine)
    look()
    first = machine.process
    revision = servers.push({"reconciler": "1.0"})
    until(servers, look, "the new agent goes on", lambda: ended(servers, revision))
    assert machine.process is not first
    assert "the step in flight is finished" in machine.log


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
def test_its_own_container_is_replaced_from_outside(servers: Servers, tmp_path: Path) -> None:
    """By a process outside, which goes on though the agent is killed in the middle; and by systemd, in the unit that a person wrote."""
    with registry(tmp_path / "registry") as images:
        for tag in ("1", "2"):
            images.push("web", tag)
        machine, repository = servers.add(0), images.repository("web")
        systemd = Systemd(tmp_path / "bin")
        servers.give_podman(machine)
        environment = machine.environment
        machine.environment = {**environment, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        servers.start()

        def push(tag: str, container: dict[str, object]) -> str:
            image = {"name": "reconciler", "repository": repository, "tag": tag, "container": container}
            return servers.push(sets=[{"images": [image]}])

        def runs(tag: str, revision: str) -> None:
            servers.wait_for_end(revision, within=WITHIN)
            assert servers.recorded(0)["image/reconciler"] == tag
            running = podman(machine.environment, "ps", "--format", "{{.Names}} {{.Status}}", check=True)
            assert running.startswith("reconciler Up")

        forever = "trap 'sleep 2; exit 0' TERM; while :; do sleep 1000 & wait $!; done"
        revision = push("1", {"args": ["sh", "-c", forever]})
        servers.wait(
            "it is handed over", (machine.directory / "state/replacement.json").exists, within=WITHIN
        )
        machine.kill()
        servers.start()
        runs("1", revision)

        systemd.boot(machine.root)
        unit = machine.root / "etc/systemd/system/reconciler.service"
        written = (
            "[Service]\n"
            + "".join(f"Environment={name}={value}\n" for name, value in environment.items())
            + f"ExecStop=-kill -TERM $(cat {machine.directory}/pid)\nExecStopPost=-podman rm --force --time 0 reconciler\n"
            f"ExecStart=podman run --detach --privileged --name reconciler {repository}:1 sleep 1000\n"
        )
        unit.write_text(written)
        revision, old = push("2", {"unit": "reconciler", "update": "parallel"}), machine.process
        servers.wait("systemd ends the old one", lambda: old and old.poll() == 0, within=WITHIN)
        servers.start()
        runs("2", revision)
        detail = servers.view().recorded[0][Key("image", "reconciler")].detail
        digest = detail.found.split()[0] if detail else ""
        assert unit.read_text() == written.replace(":1 sleep", f"@{digest} sleep"), "all else in it stands"
        assert machine.terminate() == 0


def test_a_plan_format_that_it_does_not_know_is_waited_for(servers: Servers) -> None:
    """A newer leader's rollout: an older agent touches nothing, says so, and keeps every field that it does not know."""
    servers.gather(1)
    servers.wait_for_end(servers.push({"tool": "1.0"}))
    machine = servers.machines[0]
    machine.kill()
    keys, client = servers.etcd.keys, servers.etcd.client
    (found,) = client.read([one(keys.rollout)]).items[0]
    text = found.value.decode()
    newer = re.sub(r'"plan_format": *[0-9]+', f'"plan_format": {PLAN_FORMAT + 1}', text)
    newer = re.sub(r'"outcome": *"complete"', '"from_the_future": [1]', newer)
    assert newer != text
    started = servers.view().rollout
    assert started is not None
    phase = json.dumps({"rollout": started.id, "wave": 1, "phase": 2, "from_the_future": True})
    written = {keys.rollout: newer, keys.phase: phase}
    client.txn([], [put(key, value) for key, value in written.items()])
    servers.start()
    said = f"plan format {PLAN_FORMAT + 1} is newer than this program's {PLAN_FORMAT}"
    wait_for_log(servers, machine, said)
    servers.wait("the fleet is told", lambda: any(said in agent.trouble for agent in servers.view().agents))
    servers.push({"tool": "2.0"})
    wait_for_log(servers, machine, "is valid", 3)
    for key, value in written.items():
        (kept,) = client.read([one(key)]).items[0]
        assert kept.value.decode() == value
    assert machine.deb("tool") == "ii 1.0"


NEWER = {"from_the_future": {"kept": [1]}}


def test_fields_of_a_newer_program_survive_what_an_older_one_writes(servers: Servers) -> None:
    """A newer agent ended in the middle of a rollout, with the slot in hand; an older one goes on with what it left."""
    machine, keys, client = servers.add(0), servers.etcd.keys, servers.etcd.client
    waits, gate = servers.directory / "waits", servers.directory / "gate"
    gate.touch()
    machine.hook("waits", f"touch {waits}; while [ -e {gate} ]; do sleep 0.02; done")
    servers.wants_reboot(0)
    servers.start()
    groups = [{"name": "boot", "servers": [0], "reboot": {"before": ["waits"]}}]
    revision = servers.push({"tool": "1.0"}, groups=groups)
    servers.wait("it is in the hook, with the slot", waits.exists)
    machine.kill()

    hook, setting = "reboot:host:hook:before:0", f"{keys.prefix}config/from-the-future"
    written = [keys.rollout, keys.phase, keys.server_status(0), keys.semaphore("default"), keys.step(0, hook)]
    kept = [keys.holder("default", machine.machine_id), keys.detail(0, Key("deb", "tool")), keys.machine(0)]
    planted = [_as_newer(item) for (item,) in client.read([one(key) for key in (*written, *kept)]).items]
    since = client.txn([], [*planted, put(setting, "unknown")]).revision
    gate.unlink()
    servers.start()
    servers.wait_for_end(revision)
    assert machine.terminate() == 0, "or it would open a rollout for the server that is new again"
    assert servers.administration.remove_server(0) and servers.administration.add_server(0)

    again: set[str] = set()
    for change in history(client, keys, since + 1):
        for key, text in change.keys.items():
            if text is not None and key in {write.key for write in planted}:
                assert _has_newer(text), f"{key} at etcd revision {change.revision}: {text}"
                again.add(key)
    assert again == {*written, keys.machine(0)}, "each was written anew, and not only left alone"
    assert client.read([one(setting)]).items[0][0].value == b"unknown"


def _as_newer(item: Item) -> Put:
    document = json.loads(item.value) | NEWER
    if "waves" in document:
        document["waves"] = [wave | NEWER for wave in document["waves"]]
    return put(item.key, json.dumps(document))


def _has_newer(text: str) -> bool:
    document = json.loads(text)
    return all(NEWER.items() <= part.items() for part in (document, *document.get("waves", ())))
