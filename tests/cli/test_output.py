"""What is printed: JSON that fits its schema from every verb, text with colours on a terminal only, and where options come from."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from reconciler.cli.options import TABLE
from reconciler.cli.program import VERBS
from reconciler.core.semaphore import Holder
from reconciler.host.driver import Host
from reconciler.store.lock import RebootLock
from reconciler.wire.schema import violations
from tests.cli.command import Command
from tests.cli.git import SET, Repository, artifacts, documents
from tests.conftest import Etcd
from tests.etcd_server import etcdctl

ETCD = {"name": "etcd", "repository": "quay.io/cybozu/etcd", "tag": "3.5.4.1"}
SQUID = {"name": "squid", "repository": "quay.io/cybozu/squid", "tag": "5.4.1.1"}


@pytest.fixture
def revision(repository: Repository, etcd: Etcd) -> str:
    """A revision of which something is recorded already on server 1."""
    for key, text in (("info/bootservers/1", ""), ("install/1/containers/etcd", "3.5.3.1")):
        etcdctl(etcd.endpoint, "put", f"{etcd.prefix}{key}", "--", text)
    return repository.commit(artifacts(images=[ETCD, SQUID]))


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        ("--dry-run", "plan"),
        ("--dry-run --server 1", "plan"),
        ("--dry-run --all", "plan"),
        ("status", "status"),
        ("snapshot", "snapshot"),
        ("validate", None),
        ("diff HEAD HEAD", None),
        ("drift", None),
        ("history", "history"),
        ("server list", "server-list"),
        ("server add 5", "server-change"),
        ("server disable 1 --reason test", "server-change"),
        ("server enable 1", "server-change"),
        ("server remove 1", "server-change"),
        ("lock status", None),
        ("lock acquire", None),
        ("lock release", None),
        ("lock set-max 2", None),
        ("lock history", "lock-history"),
        ("pause --reason test --until 2h", "pause"),
        ("resume", "resume"),
        ("config set check-update-interval 5m", None),
        ("config list", None),
        ("config unset check-update-interval", None),
        ("config explain", None),
        ("adopt", "adopt"),
        ("etcd-roles", None),
    ],
)
@pytest.mark.usefixtures("revision")
def test_every_verb_prints_one_json_document(command: Command, words: str, schema: str | None) -> None:
    ran = command(*words.split(), "--output", "json").ok()
    assert ran.out.endswith("\n")
    document = json.loads(ran.out)
    if schema is not None:
        assert violations(document, schema) == []


@pytest.mark.usefixtures("revision")
def test_watch_shows_the_status_again_when_it_has_changed_and_not_before(command: Command) -> None:
    """Each time a whole document, until it is interrupted."""
    words = [sys.executable, "-m", "reconciler", "status", "--watch", "--output", "json"]
    watching = subprocess.Popen(
        words, cwd=command.below, env=command.whole_environment({}), stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout
    try:
        first = _next_document(watching.stdout)
        assert [server["disabled"] for server in first["servers"]] == [None]
        # What nobody sees in the status is no reason to show it again.
        command("config", "set", "check-update-interval", "5m").ok()
        command("server", "disable", "1", "--reason", "a test").ok()
        second = _next_document(watching.stdout)
        assert second["servers"][0]["disabled"]["why"] == "a test"
        assert second["servers"][0]["waits_for"] == "`reconcile server enable`"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
        assert watching.stdout.read() == ""
    finally:
        watching.kill()
        watching.wait()


def _next_document(stream: IO[str]) -> Any:
    """The next document, which stands on one line."""
    assert select.select([stream], [], [], 20.0)[0], "nothing within 20 s"
    return json.loads(stream.readline())


@pytest.mark.usefixtures("revision")
def test_json_where_somebody_has_to_act(command: Command, etcd: Etcd, revision: str) -> None:
    """`stop` and `recover` have something to do only while a rollout is under way."""
    for verb in ("stop", "recover"):
        ran = command(verb, "--output", "json")
        assert (ran.status, ran.out) == (3, ""), verb
    current = {
        "version": revision,
        "servers": [1],
        "stop": False,
        "started_at": "2026-01-02T03:04:05.000000006Z",
    }
    ours = {"plan_format": 1, "phases": ["prefetch"], "waves": [{"servers": [1]}]}
    etcdctl(etcd.endpoint, "put", f"{etcd.prefix}status/current", "--", json.dumps(current | ours))
    assert command("status").ok().out.splitlines()[1].startswith("Rollout  ")
    stopped = command("stop", "--reason", "test", "--output", "json").ok().document
    assert stopped["revision"] == revision and violations(stopped, "stop") == []
    assert violations(command("status", "--output", "json").ok().document, "status") == []
    command("pause", "--reason", "test").ok()
    recovered = command("recover", "--output", "json").ok().document
    assert (recovered["revision"], violations(recovered, "recover")) == (revision, [])
    assert recovered["held"].startswith("paused by ")
    finished = command("history", "--output", "json").ok().document
    assert [(old["revision"], old["outcome"]) for old in finished] == [(revision, "stopped")]
    assert violations(finished, "history") == []
    servers = command("server", "list", "--output", "json").ok().document
    assert servers and violations(servers, "server-list") == []


@pytest.mark.usefixtures("revision")
def test_equal_inputs_give_byte_equal_plans(command: Command) -> None:
    first, second = (command("--dry-run", "--all", "--output", "json").ok().out for _ in range(2))
    assert first == second


@pytest.mark.usefixtures("revision")
def test_a_snapshot_stands_for_etcd(command: Command, tmp_path: Path) -> None:
    """In CI, where etcd is out of reach."""
    file = tmp_path / "snapshot.json"
    file.write_text(command("snapshot").ok().out)
    plans = [
        command("--dry-run", "--all", "--output", "json").ok().document,
        command("--dry-run", "--all", "--output", "json", "--recorded", file, "--etcd", "http://127.0.0.1:1")
        .ok()
        .document,
    ]
    assert plans[0]["digest"] == plans[1]["digest"]
    assert plans[0]["servers"] == plans[1]["servers"]


@pytest.mark.usefixtures("revision")
def test_nothing_is_written_by_looking(command: Command, etcd: Etcd, host: Host) -> None:
    """Promise 13, and no lease either: etcd's revision stays where it is, and so does every file of the host."""

    def etcd_revision() -> Any:
        found = json.loads(etcdctl(etcd.endpoint, "get", "nothing", "--write-out", "json"))
        leases = etcdctl(etcd.endpoint, "lease", "list")
        return found["header"]["revision"], leases

    def files() -> dict[Path, int]:
        """Each file of the host and of this host's memory, and when it was written. git's mirror may be made."""
        below = [path for place in (host.root, command.state_dir) for path in place.rglob("*")]
        return {path: path.lstat().st_mtime_ns for path in below if "git" not in path.parts}

    before = etcd_revision(), files()
    for words in ("--dry-run", "--dry-run --all", "status", "snapshot", "drift", "history", "lock status",
                  "server list", "config list", "config explain", "validate", "diff HEAD HEAD"):  # fmt: skip
        command(*words.split())
    assert (etcd_revision(), files()) == before


# --- exit statuses --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("revision")
def test_exit_statuses(command: Command, repository: Repository) -> None:
    assert command("--dry-run").status == 0
    assert command("--dry-run", "--detailed-exitcode").status == 2
    assert command("--dry-run", "--expect", "sha256:" + "0" * 64).status == 4
    assert command("recover").status == 3
    assert command("config", "get", "proxy").status == 1
    assert command("validate", repository.path).status == 0
    repository.commit(SET + "images: [\n")
    assert command("validate").status == 5
    assert command("--dry-run", "--detailed-exitcode").status == 5
    assert command("--no-such-option").status == 64


def test_validate_shows_what_is_there_and_what_is_wrong(
    command: Command, repository: Repository, tmp_path: Path
) -> None:
    commit = repository.commit(
        documents(
            {"kind": "ArtifactSet", "images": [ETCD, SQUID]},
            {"kind": "ServerGroup", "name": "boot", "servers": ["0-4"]},
            {"kind": "RolloutPolicy", "waves": [{"servers": [0]}]},
        )
    )
    said = "is valid: 2 artifacts, 1 server group, 1 wave\n"
    assert command("validate").ok().out == f"HEAD@{commit[:7]} {said}"
    assert command("validate", "main").ok().out.endswith(said)
    assert command("validate", repository.path / "desired-state").ok().out.endswith(said)
    assert command("validate", "--output", "json").ok().document == {
        "valid": True,
        "revision": commit,
        "artifacts": 2,
        "server_groups": 1,
        "waves": 1,
    }
    (repository.path / "desired-state/fleet.yaml").write_text(SET + "images:\n  - {name: a, tag: 1.10}\n")
    ran = command("validate", repository.path, "--output", "json")
    assert (ran.status, ran.document["valid"]) == (5, False)
    assert [(entry["line"], entry["column"]) for entry in ran.document["findings"]] == [(4, 5), (4, 20)]
    # The directory as it stands, and not as it was committed.
    assert command("validate").status == 0
    ran = command("validate", "nowhere")
    assert ran.status == 1
    assert "no branch, tag or commit is called so" in ran.err


def test_diff_shows_what_differs_inside(command: Command, repository: Repository) -> None:
    container = {"args": ["--name", "boot"], "environment": {"A": "1"}}
    group: dict[str, Any] = {"kind": "ServerGroup", "name": "boot", "servers": [0]}
    first = repository.commit(
        documents({"kind": "ArtifactSet", "images": [{**ETCD, "container": container}, SQUID]}, group)
    )
    container = {"args": ["--name", "boot-$(lrn)"], "environment": {"A": "2"}}
    group |= {"reboot": {"strategy": "off"}}
    second = repository.commit(
        documents({"kind": "ArtifactSet", "images": [{**ETCD, "container": container}]}, group)
    )
    ran = command("diff").ok()
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[0] == f"{first[:7]} → HEAD@{second[:7]}"
    for line in (
        "~ image etcd 3.5.4.1 replace definition_changed restart (lock default), unpinned",
        'container.args[1]: "boot" → "boot-$(lrn)"',
        'container.environment.A: "1" → "2"',
        "- image squid 5.4.1.1 remove not_desired",
    ):
        assert line in lines
    assert any("strategy" in line and '"etcd-lock" → "off"' in line for line in lines)
    document = command("diff", first, second, "--output", "json").ok().document
    assert (document["before"], document["after"]) == (first, second)
    # The other way round, and nothing at all.
    back = command("diff", second, first).ok().out
    assert "install" in back and "remove" not in back
    assert command("diff", first, first).ok().out.splitlines()[-1] == "Nothing changes."


# --- options --------------------------------------------------------------------------------------------------------


def test_options_stand_before_and_after_the_verb(command: Command) -> None:
    before = command("--lrn", "9", "config", "explain").ok().out
    after = command("config", "explain", "--lrn", "9").ok().out
    between = command("config", "--lrn", "9", "explain").ok().out
    assert before == after == between
    # The last one wins.
    assert command("--lrn", "8", "config", "explain", "--lrn", "9").ok().out == before


def test_explain_says_where_each_value_comes_from(command: Command, etcd: Etcd, tmp_path: Path) -> None:
    command("config", "set", "check-update-interval", "7m").ok()
    file = tmp_path / "config.yaml"
    file.write_text("grace: 90s\nalarm-after: 3m\nlrn: 4\n")
    ran = command(
        "config", "explain", "--config", file, "--lrn", "5", "--output", "json",
        env={"RECONCILER_ALARM_AFTER": "2m"},
    ).ok()  # fmt: skip
    rows = {row["option"]: (row["value"], row["origin"]) for row in ran.document}
    assert rows.keys() == TABLE.keys()
    assert rows["lrn"] == ("5", "flag")
    assert rows["alarm-after"] == ("2m", "environment RECONCILER_ALARM_AFTER")
    assert rows["grace"] == ("1m30s", f"{file}:1")
    assert rows["interval"] == ("7m", "etcd config/check-update-interval")
    assert rows["ref"] == ("main; for a local path HEAD", "default")


def test_secrets_are_masked_and_come_from_files_only(command: Command, tmp_path: Path) -> None:
    command("config", "set", "github-token", stdin="ghp_hunter2hunter2\n").ok()
    (tmp_path / "slack").write_text("https://hooks.slack.example/services/T0/B0/hunter2\n")
    command("config", "set", "notification/slack", "--from-file", tmp_path / "slack").ok()
    for words in ("config list", "config get github-token", "config get notification/slack", "config explain",
                  "status", "snapshot", "config list --output json"):  # fmt: skip
        ran = command(*words.split()).ok()
        assert "hunter2" not in ran.out + ran.err, words
    assert command("config", "get", "github-token").ok().out.strip()


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("revision")
def test_the_lock_by_hand_is_said_as_locksmithctl_says_it(command: Command, etcd: Etcd) -> None:
    """Line for line: locksmith's locksmithctl/status.go and set_max.go; asking again succeeds, and a wait has an end."""
    agents = Holder("d" * 32, "agent", 3, 1_767_268_800, "b1", "reboot", "c" * 40)
    lock = RebootLock(etcd.client, etcd.keys)
    lock.take(agents)
    assert command("lock", "status", "--lock-group", "rack").ok().out == "Available: 1\nMax: 1\n"
    assert command("lock", "set-max", "2").ok().out == "Old-Max: 1\nMax: 2\n"
    lock.take(Holder("a" * 32))
    assert command("lock", "acquire", "--machine-id", "a" * 32).ok().out.endswith(" held a slot already.\n")
    listed = f"MACHINE ID\n{'a' * 32}\n{'d' * 32}\n"
    assert command("lock", "status").ok().out == f"Available: 0\nMax: 2\n\n{listed}"
    full = command("lock", "acquire", "--machine-id", "c" * 32, "--wait", "100ms")
    assert (full.status, full.out) == (3, "") and "max 2" in full.err
    document = command("lock", "status", "--output", "json").ok().document
    (told,) = [held for held in document["holders"] if held["machine_id"] == agents.machine_id]
    assert [told[key] for key in ("lrn", "source", "reason", "boot_id")] == [3, "agent", "reboot", "b1"]
    assert told["age"] > 0
    released = command("lock", "release", "--machine-id", agents.machine_id).ok().out
    assert released == f"Released server 3's (agent) slot of machine {agents.machine_id}: reboot.\n"


@pytest.mark.usefixtures("revision")
def test_a_slot_taken_by_hand_notes_the_boot_that_its_host_is_in(
    command: Command, etcd: Etcd, host: Host
) -> None:
    lock = RebootLock(etcd.client, etcd.keys)
    lock.set_max(2)
    command("lock", "acquire", "--reason", "maintenance").ok()
    command("lock", "acquire", "--machine-id", "a" * 32).ok()
    mine = lock.holder_of((host.root / "etc/machine-id").read_text().strip())
    boot = (host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    assert mine and (mine.source, mine.lrn, mine.boot_id, mine.reason) == (
        "operator",
        None,
        boot,
        "maintenance",
    )
    others = lock.holder_of("a" * 32)
    assert others and others.boot_id == "", "another machine's is not known here"


@pytest.mark.usefixtures("revision")
def test_the_locks_history_says_whose_slot_who_gave_it_back_and_why(command: Command, etcd: Etcd) -> None:
    assert command("lock", "history").ok().out == "No slot has been released by an operator.\n"
    held = Holder("a" * 32, "agent", 3, 1_767_268_800, "b1", "reboot", "c" * 40)
    lock = RebootLock(etcd.client, etcd.keys, "rack")
    lock.take(held)
    lock.release_of(held.machine_id, "ann", "its board is dead", "2026-01-02T03:04:05.000000000Z")
    command("lock", "acquire", "--machine-id", "m9").ok()
    command("lock", "release", "--machine-id", "m9", "--reason", "done").ok()
    newest, older = command("lock", "history").ok().out.splitlines()
    assert "default  m9 (operator, acquired by" in newest and newest.endswith(": done")
    assert older == (
        f"2026-01-02T03:04:05Z  rack  {'a' * 32} (server 3, agent, reboot) released by ann: its board is dead"
    )
    document = command("lock", "history", "--most", "1", "--output", "json").ok().document
    assert violations(document, "lock-history") == []
    assert [(one["machine_id"], one["lrn"], one["source"], one["why"]) for one in document["released"]] == [
        ("m9", None, "operator", "done")
    ]


@pytest.mark.usefixtures("revision")
def test_a_plan_for_this_host_says_that_a_reboot_is_asked_for(command: Command, tmp_path: Path) -> None:
    sentinel = "/run/asks-for-reboot"
    asked = ("--dry-run", "--reboot-required-file", sentinel)
    assert "Reboot required" not in command(*asked).ok().out
    before = command(*asked, "--output", "json").ok().document
    (tmp_path / "root/run").mkdir(parents=True, exist_ok=True)
    (tmp_path / f"root{sentinel}").touch()
    text = command(*asked).ok().out.splitlines()[-1]
    assert text == (
        f"Reboot required: {sentinel} asks for one; its agent reboots it in the next rollout's reboot phase (lock default)."
    )
    assert "Reboot required" not in command(*asked, "--server", "1").ok().out, (
        "another server's is not known here"
    )
    after = command(*asked, "--output", "json").ok().document
    assert (before["reboot_required"], after["reboot_required"]) == (None, sentinel)
    assert violations(after, "plan") == [] and before["digest"] != after["digest"], "what --expect names"


@pytest.mark.usefixtures("revision")
def test_status_marks_a_slot_that_is_held_for_too_long(command: Command, etcd: Etcd) -> None:
    RebootLock(etcd.client, etcd.keys).take(
        Holder("a" * 32, "agent", 3, int(time.time()) - 120, "b1", "reboot")
    )
    for alarm, overdue in (("1h", False), ("1m", True)):
        ran = command("status", "--alarm-after", alarm).ok()
        assert ("overdue" in ran.out) is overdue
        for words in (("status",), ("lock", "status")):
            shown = command(*words, "--alarm-after", alarm, "--output", "json").ok().document
            (holder,) = shown["locks"][0]["holders"] if "locks" in shown else shown["holders"]
            assert holder["overdue"] is overdue


CTRL_C = "\x03"


def on_terminal(
    command: Command, *words: str, env: Mapping[str, str] | None = None, answer: str = ""
) -> tuple[int, str]:
    """Run it on a terminal of its own: its exit status and all that was shown; `answer` is typed when it asks.

    Ctrl-C is pressed until it helps: between the question and the read that waits for the answer Python only notes it.
    """
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "reconciler", *words],
        cwd=command.below,
        env=command.whole_environment({"TERM": "xterm", **(env or {})}),
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    ) as child:
        os.close(its)
        shown, end, pressed = b"", time.monotonic() + 60, 0.0
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:
                    break
            if answer == CTRL_C and b"[y/N]" in shown and time.monotonic() > pressed + 1:
                child.send_signal(signal.SIGINT)
                pressed = time.monotonic()
            elif answer not in ("", CTRL_C) and b"[y/N]" in shown:
                os.write(ours, answer.encode())
                answer = ""
        else:
            child.kill()
            raise AssertionError(f"it does not end; it has shown:\n{shown.decode()}")
        status = child.wait(10)
    os.close(ours)
    text = shown.decode()
    assert "Traceback" not in text
    return status, text


@pytest.mark.usefixtures("revision")
def test_colours_are_for_a_terminal(command: Command) -> None:
    status, shown = on_terminal(command, "--dry-run")
    assert status == 0
    assert "\x1b[32m + image etcd" in shown
    status, shown = on_terminal(command, "--dry-run", env={"NO_COLOR": "1"})
    assert (status, "\x1b[" in shown, " + image etcd" in shown) == (0, False, True)
    assert "\x1b[" not in command("--dry-run").ok().out


@pytest.mark.usefixtures("revision")
def test_on_a_terminal_it_asks(command: Command, etcd: Etcd) -> None:
    etcdctl(etcd.endpoint, "del", f"{etcd.prefix}info/bootservers/1")
    status, shown = on_terminal(command, answer="n\n")
    assert status == 0
    assert "Apply? [y/N]" in shown and "Nothing was changed." in shown
    # Ctrl-C at the question.
    status, shown = on_terminal(command, answer=CTRL_C)
    assert status == 130
    assert "interrupted" in shown


def test_output_that_nobody_reads_is_no_error_to_tell(command: Command) -> None:
    """`reconcile … | head -1`."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m reconciler config explain | head -n 1"],
        cwd=command.below,
        env=command.whole_environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_needs_nothing(command: Command, verb: str) -> None:
    ran = command(*verb.split(), "--help", env={"RECONCILER_NONSENSE": "1"}).ok()
    assert ran.out.startswith("Usage: reconcile")
    assert max(map(len, ran.out.splitlines())) <= 110
