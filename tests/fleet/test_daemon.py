"""A running agent and its configuration file, its signals and its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fleet.daemon import ask, wait_for_log
from tests.fleet.fleet import Machine, Servers, with_shell

Write = Callable[[str], None]


def by_renaming(directory: Path) -> tuple[Path, Write]:
    """A file that is replaced as editors and configuration management do."""

    def write(text: str) -> None:
        new = directory / "config.new"
        new.write_text(text)
        new.replace(directory / "config.yaml")

    return directory / "config.yaml", write


def by_a_link_above(directory: Path) -> tuple[Path, Write]:
    """Kubernetes' way: the file is a link below `..data`, and `..data` is made to lead to another directory."""
    (directory / "config.yaml").symlink_to("..data/config.yaml")
    made: list[Path] = []

    def write(text: str) -> None:
        made.append(directory / f"..{len(made)}")
        made[-1].mkdir()
        (made[-1] / "config.yaml").write_text(text)
        link = directory / "..data.new"
        link.symlink_to(made[-1].name)
        link.replace(directory / "..data")

    return directory / "config.yaml", write


def by_a_link_elsewhere(directory: Path) -> tuple[Path, Write]:
    """The file is a link to one that is written in place somewhere else."""
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir()
    (directory / "config.yaml").symlink_to(elsewhere / "agent.yaml")

    def write(text: str) -> None:
        (elsewhere / "agent.yaml").write_text(text)

    return directory / "config.yaml", write


def started(servers: Servers, *arguments: str) -> Machine:
    """Server 0 at work on a first revision."""
    machine = servers.add(0, *arguments)
    servers.start()
    servers.wait_for_end(servers.push({"tool": "1.0"}), within=60)
    return machine


@pytest.mark.parametrize("way", [by_renaming, by_a_link_above, by_a_link_elsewhere])
def test_a_changed_configuration_file_is_taken_up(
    servers: Servers, tmp_path: Path, way: Callable[[Path], tuple[Path, Write]]
) -> None:
    place, token = tmp_path / "etc", tmp_path / "token"
    place.mkdir()
    token.write_text("let-me-in\n")
    file, write = way(place)
    write("runtime: podman\ndrift-interval: 1h\n")
    machine = started(servers, "--config", str(file))
    assert ask(machine, "/metrics").status == 200

    # What is safe is taken up at once, HTTP's token with it.
    write(f"runtime: podman\ndrift-interval: 1s\nlog-level: debug\ntoken-file: {token}\n")
    wait_for_log(servers, machine, f"log-level is debug now ({file}:3)")
    wait_for_log(servers, machine, f"drift-interval is 1s now ({file}:2)")
    servers.wait("it is at work again", lambda: "debug   waits:" in machine.log, within=60)
    servers.wait("the token is wanted", lambda: ask(machine, "/metrics").status == 401)
    assert ask(machine, "/metrics", headers={"Authorization": "Bearer let-me-in"}).status == 200
    known = machine.root / "var/lib/dpkg/status"
    packages = known.read_text()
    known.write_text("")
    wait_for_log(servers, machine, "drift: deb/tool")
    known.write_text(packages)

    # One that cannot be used changes nothing, and is said once.
    write("runtime: podman\nlog-levle: info\n")
    wait_for_log(servers, machine, "what was in force stays")
    machine.signal(signal.SIGHUP)
    wait_for_log(servers, machine, "waits:", machine.log.count("waits:") + 1)
    assert machine.log.count("what was in force stays") == 1
    assert "did you mean log-level" in machine.log

    # What is not safe wants a restart, and it is said which option that is; the rest of the file is taken up.
    write("runtime: docker\n")
    wait_for_log(servers, machine, f"a restart is needed to take up what has changed of runtime ({file}:1)")
    wait_for_log(servers, machine, "log-level is info now (default)")
    servers.wait("HTTP is for everybody again", lambda: ask(machine, "/metrics").status == 200)
    file.unlink()
    wait_for_log(servers, machine, f"{file} is gone")
    assert machine.terminate() == 0


def test_http_that_cannot_be_served_anew_is_served_as_before(servers: Servers, tmp_path: Path) -> None:
    file, write = by_renaming(tmp_path)
    write("")
    machine = started(servers, "--config", str(file))
    write(f"token-file: {tmp_path}/nothing\n")
    wait_for_log(servers, machine, "HTTP is served as before: cannot read --token-file")
    servers.wait("it answers", lambda: ask(machine, "/readyz").status == 200)


def test_signals_change_the_level_and_make_it_look(servers: Servers) -> None:
    machine = started(servers)
    machine.signal(signal.SIGUSR1)
    wait_for_log(servers, machine, "logs at level debug now")
    before = machine.log.count("waits:")
    machine.signal(signal.SIGHUP)
    wait_for_log(servers, machine, "waits:", before + 1)
    machine.signal(signal.SIGUSR1)
    wait_for_log(servers, machine, "logs at level info now")
    said = machine.log.count("waits:")
    machine.signal(signal.SIGHUP)
    servers.wait_for_end(servers.push({"tool": "1.1"}), within=60)
    assert machine.log.count("waits:") == said


def test_the_step_in_flight_is_finished(servers: Servers) -> None:
    machine = servers.add(0)
    machine.hold_dpkg()
    servers.start()
    servers.push({"tool": "1.0"})
    servers.wait("it is in dpkg", lambda: machine.in_dpkg, within=60)
    machine.signal(signal.SIGTERM)
    wait_for_log(servers, machine, "the step in flight is finished")
    assert machine.process is not None and machine.process.poll() is None
    fleet = servers.view()
    assert fleet.leader is None, "the lead is given up at once"
    assert fleet.agents, "the server's place is kept until its step has ended"
    machine.let_dpkg_go()
    assert machine.wait_until_ended() == 0
    servers.has("tool", "1.0")
    assert not servers.view().agents


def outlasts_the_grace(servers: Servers, machine: Machine) -> None:
    assert machine.terminate() == 1
    assert "a step did not end within the grace" in machine.log


def is_told_twice(servers: Servers, machine: Machine) -> None:
    said = machine.log.count("the step in flight is finished")
    machine.signal(signal.SIGTERM)
    wait_for_log(servers, machine, "the step in flight is finished", said + 1)
    machine.signal(signal.SIGTERM)
    assert machine.wait_until_ended() == 128 + signal.SIGTERM


def is_killed(servers: Servers, machine: Machine) -> None:
    machine.kill()


TALKS = """#!/bin/sh
while [ -e /gate ]; do echo at work; echo still >>/said; sleep 0.02; done
echo done && touch /configured
"""


def finishes(
    servers: Servers, machine: Machine, version: str, ends: Callable[[Servers, Machine], None]
) -> None:
    """The running agent begins a dpkg and ends; the dpkg goes on to its end, and the next agent finds it done."""
    gate, said, configured = (machine.root / name for name in ("gate", "said", "configured"))
    gate.touch()
    revision = servers.push({"tool": version}, scripts=(("postinst", TALKS),))
    servers.wait("its script talks", said.exists, within=60)
    ends(servers, machine)
    heard = said.stat().st_size
    servers.wait_on_hosts("it goes on", lambda: said.stat().st_size > heard + 20)
    gate.unlink()
    servers.wait_on_hosts("dpkg has finished", lambda: machine.deb("tool") == f"ii {version}")
    configured.unlink()
    said.unlink()
    assert servers.recorded(0).get("deb/tool") != f"v{version}"

    servers.start()
    servers.wait_for_end(revision, within=60)
    servers.has("tool", version)
    assert not configured.exists(), "there was nothing to do but to record it"


def test_dpkg_is_never_cut_off(servers: Servers) -> None:
    """A real one, whose package's script goes on talking when nobody hears it any more, however the agent ends."""
    machine = servers.add(0, "--grace", "1s")
    with_shell(machine)
    servers.start()
    finishes(servers, machine, "1.0", outlasts_the_grace)
    finishes(servers, machine, "1.1", is_told_twice)
    finishes(servers, machine, "1.2", is_killed)


@pytest.mark.needs("unshare")
def test_as_process_1_it_reaps_what_others_left_and_ends_in_order(servers: Servers, tmp_path: Path) -> None:
    """In a process namespace of its own, as in a container: orphans become its children, and SIGTERM reaches it."""
    machine = servers.add(0)
    orphan = tmp_path / "orphan"
    # The hook ends, and the grandchild that it left behind ends after it: nobody but process 1 can wait for that one.
    machine.hook("leaves", f"(sh -c 'sleep 0.3; touch {orphan}' &) >/dev/null 2>&1 </dev/null")
    groups = [{"name": "boot", "servers": [0], "reboot": {"before": ["leaves"]}}]
    servers.wrapper = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    servers.start()
    servers.wants_reboot(0)
    servers.push({"tool": "1.0"}, groups=groups)
    servers.wait("the orphan has ended", orphan.exists, within=60)
    agent = agent_below(machine)

    def zombies() -> list[str]:
        listed = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        return [pid for pid in listed if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()]

    servers.wait("no zombie is left", lambda: not zombies(), within=60)
    os.kill(agent, signal.SIGTERM)
    assert machine.wait_until_ended() == 0
    assert "the step in flight is finished" in machine.log


def agent_below(machine: Machine) -> int:
    """The agent that `unshare` started."""
    assert machine.process is not None
    (child,) = Path(f"/proc/{machine.process.pid}/task/{machine.process.pid}/children").read_text().split()
    return int(child)
