"""Fetching from remotes: `file://`, HTTPS served by git's own backend, SSH through a stand-in, and servers that fail."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.desired.calls import Calls
from reconciler.desired.repository import Source, fetch, fetched_at, is_descendant, read, resolve
from reconciler.errors import Unavailable, UsageError
from reconciler.ground import process
from tests.desired.conftest import Repository, git
from tests.git_server import Server, https_server, processes_with

STATE = {"desired-state/a.yaml": "a: 1\n"}


@pytest.fixture
def source(repository: Repository, state_dir: Path) -> Source:
    return Source(f"file://{repository.path}", state_dir=state_dir, timeout=30)


def content(source: Source) -> bytes:
    fetch(source)
    return read(source, resolve(source).id)[0][1]


# --- the mirror -----------------------------------------------------------------------------------------------------


def test_a_remote_is_fetched_and_followed(repository: Repository, source: Source) -> None:
    first = repository.commit(STATE)
    assert content(source) == b"a: 1\n"
    second = repository.commit({"desired-state/a.yaml": "a: 2\n"})
    repository.git("tag", "v2")
    assert resolve(source).id == first
    assert content(source) == b"a: 2\n"
    assert resolve(source, "v2").id == second
    assert is_descendant(source, second, first)
    assert read(source, first) == [("desired-state/a.yaml", b"a: 1\n")]


def test_the_last_good_fetch_is_known_over_a_restart(repository: Repository, source: Source) -> None:
    repository.commit(STATE)
    assert fetched_at(source) is None
    fetch(source)
    first = fetched_at(source)
    assert first is not None
    repository.path.rename(repository.path.with_name("away"))
    with pytest.raises(Unavailable):
        fetch(source)
    assert fetched_at(source) == first
    assert abs(first - time.time()) < 60


def test_a_file_that_git_writes_cannot_grow_without_end(repository: Repository, tmp_path: Path) -> None:
    repository.commit({"noise": os.urandom(1 << 20)})
    bundle = tmp_path / "bundle"
    calls = Calls(repository.path)
    assert calls.run("bundle", "create", str(bundle), "HEAD", timeout=30, file_limit=4 << 20).status == 0
    bundle.unlink()
    assert calls.run("bundle", "create", str(bundle), "HEAD", timeout=30, file_limit=64 << 10).status != 0


def test_before_the_first_fetch_there_is_nothing(source: Source) -> None:
    with pytest.raises(Unavailable, match=r"has not been fetched yet"):
        resolve(source)


def test_a_branch_that_is_gone_or_became_a_directory_is_followed(
    repository: Repository, source: Source
) -> None:
    repository.commit(STATE)
    repository.git("branch", "release")
    fetch(source)
    repository.git("branch", "--delete", "release")
    repository.git("branch", "release/1")
    fetch(source)
    assert resolve(source, "release/1").id == resolve(source).id
    with pytest.raises(Unavailable, match=r"there are: .*release/1"):
        resolve(source, "release")


def test_rewritten_history_is_fetched_and_known_as_such(repository: Repository, source: Source) -> None:
    repository.commit(STATE)
    second = repository.commit({"desired-state/a.yaml": "a: 2\n"})
    fetch(source)
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    other = repository.commit({"desired-state/a.yaml": "a: 3\n"})
    fetch(source)
    assert resolve(source).id == other
    assert not is_descendant(source, other, second)
    assert read(source, second) == [("desired-state/a.yaml", b"a: 2\n")]


def test_a_remote_without_a_commit_says_so(repository: Repository, source: Source) -> None:
    fetch(source)
    with pytest.raises(Unavailable, match=r"no commit yet"):
        resolve(source)


def test_a_remote_that_is_gone_leaves_the_mirror_usable(repository: Repository, source: Source) -> None:
    repository.commit(STATE)
    assert content(source) == b"a: 1\n"
    repository.path.rename(repository.path.with_name("away"))
    with pytest.raises(Unavailable, match=r"cannot fetch file://"):
        fetch(source)
    assert read(source, resolve(source).id) == [("desired-state/a.yaml", b"a: 1\n")]


def test_a_damaged_remote_leaves_the_mirror_usable(repository: Repository, source: Source) -> None:
    repository.commit(STATE)
    assert content(source) == b"a: 1\n"
    repository.commit({"desired-state/a.yaml": "a: 2\n"})
    blob = repository.git("rev-parse", "HEAD:desired-state/a.yaml")
    file = repository.path / ".git/objects" / blob[:2] / blob[2:]
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(Unavailable, match=r"cannot fetch"):
        fetch(source)
    assert read(source, resolve(source).id) == [("desired-state/a.yaml", b"a: 1\n")]


@pytest.mark.parametrize("damage", ["packs", "HEAD", "lock", "refs"])
def test_a_damaged_mirror_is_made_anew(repository: Repository, source: Source, damage: str) -> None:
    repository.commit(STATE)
    fetch(source)
    mirror = source.mirror
    match damage:
        case "packs":
            for file in (file for file in (mirror / "objects").rglob("*") if file.is_file()):
                file.chmod(0o644)
                file.write_bytes(b"\0" * file.stat().st_size)
        case "HEAD":
            (mirror / "HEAD").unlink()
        case "lock":
            (mirror / "packed-refs.lock").touch()
            (mirror / "refs/heads/main.lock").touch()
        case "refs":
            (mirror / "refs/heads/main").write_text("nonsense\n")
    repository.commit({"desired-state/a.yaml": "a: 2\n"})
    if damage == "packs":
        with contextlib.suppress(Unavailable):
            fetch(source)
        with contextlib.suppress(Unavailable):
            read(source, resolve(source).id)
    assert content(source) == b"a: 2\n"
    assert sorted(path.name for path in mirror.parent.iterdir()) == [mirror.name, f"{mirror.name}.lock"]


def test_an_object_that_was_damaged_unnoticed_heals_at_the_next_fetch(
    repository: Repository, source: Source
) -> None:
    commit = repository.commit(STATE)
    fetch(source)
    blob = repository.git("rev-parse", "HEAD:desired-state/a.yaml")
    file = source.mirror / "objects" / blob[:2] / blob[2:]
    file.chmod(0o644)
    file.write_bytes(b"garbage")
    with pytest.raises(Unavailable, match=r"made anew at the next fetch"):
        read(source, commit)
    assert content(source) == b"a: 1\n"


def test_what_killed_processes_left_behind_is_cleaned_up(repository: Repository, source: Source) -> None:
    repository.commit(STATE)
    fetch(source)
    (source.mirror / "objects/pack").mkdir(exist_ok=True)
    (source.mirror / "objects/pack/tmp_pack_x").touch()
    source.mirror.rename(source.mirror.with_suffix(".old"))
    source.mirror.with_suffix(".new").mkdir()
    assert content(source) == b"a: 1\n"
    assert not (source.mirror / "objects/pack/tmp_pack_x").exists()
    assert not source.mirror.with_suffix(".new").exists()


def test_fetches_at_the_same_time_go_one_after_the_other(repository: Repository, source: Source) -> None:
    repository.commit(STATE)
    failures: list[Exception] = []

    def go() -> None:
        try:
            for _ in range(3):
                fetch(source)
        except Unavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert content(source) == b"a: 1\n"


def test_another_process_that_does_not_end_is_not_waited_for_for_ever(
    repository: Repository, source: Source
) -> None:
    repository.commit(STATE)
    fetch(source)
    lock = source.mirror.with_suffix(".lock")
    code = f"import fcntl, time; f = open({str(lock)!r}); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(Unavailable, match=r"another process of reconciler has held it for 0\.2 s"):
                fetch(replace(source, timeout=0.2))
        finally:
            other.kill()
    fetch(source)


def test_a_state_directory_that_cannot_be_written_is_named(repository: Repository, tmp_path: Path) -> None:
    repository.commit(STATE)
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"cannot fetch .* see --state-dir"):
        fetch(Source(f"file://{repository.path}", state_dir=tmp_path / "file"))


# --- servers that do not answer -------------------------------------------------------------------------------------


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where somebody listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_remote_that_hangs_is_given_up_in_time_and_nothing_is_left(
    silent_port: int, state_dir: Path
) -> None:
    source = Source(f"https://127.0.0.1:{silent_port}/x", state_dir=state_dir, timeout=1)
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"no answer within 1 s"):
        fetch(source)
    assert time.monotonic() - start < 3
    assert not processes_with(f"127.0.0.1:{silent_port}")


def test_a_hang_leaves_the_mirror_usable(repository: Repository, silent_port: int, state_dir: Path) -> None:
    commit = repository.commit(STATE)
    source = Source(f"https://127.0.0.1:{silent_port}/x", state_dir=state_dir, timeout=1)
    filled = Source(f"file://{repository.path}", state_dir=state_dir)
    fetch(filled)
    filled.mirror.rename(source.mirror)
    with pytest.raises(Unavailable):
        fetch(source)
    assert read(source, commit) == [("desired-state/a.yaml", b"a: 1\n")]


def test_a_remote_that_refuses_says_why(state_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        Unavailable, match=rf"(?s)cannot fetch https://127\.0\.0\.1:{port}/x:.*(refused|connect)"
    ):
        fetch(Source(f"https://127.0.0.1:{port}/x", state_dir=state_dir))


# --- HTTPS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, repository: Repository) -> Iterator[Server]:
    """HTTPS before the test's repository, at `/repository/.git`, with a certificate that only `ca` vouches for."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1"]
    process.run([*words.split(), *extension, "-keyout", key, "-out", certificate], timeout=60)
    with https_server(tmp_path, certificate, key) as running:
        yield running


@pytest.fixture
def https(server: Server, state_dir: Path) -> Source:
    return Source(f"{server.url}/repository/.git", state_dir=state_dir, ca=server.ca, timeout=30)


needs_https = pytest.mark.needs("openssl", "git")


@needs_https
def test_https_with_a_ca_of_its_own(repository: Repository, https: Source) -> None:
    repository.commit(STATE)
    assert content(https) == b"a: 1\n"
    repository.commit({"desired-state/a.yaml": "a: 2\n"})
    assert content(https) == b"a: 2\n"
    with pytest.raises(Unavailable, match=r"(?s)certificate.*--git-ca"):
        fetch(replace(https, ca=None))


@needs_https
def test_a_password_is_read_at_each_fetch_and_in_no_argument(
    repository: Repository, server: Server, https: Source, tmp_path: Path
) -> None:
    repository.commit(STATE)
    server.password = "correct-horse"
    file = tmp_path / "password"
    file.write_text("correct-horse\n")
    source = replace(https, username="ops", password_file=file)
    assert content(source) == b"a: 1\n"
    assert server.command_lines
    assert not any("correct-horse" in line or "Authorization" in line for line in server.command_lines)
    server.password = "battery-staple"
    with pytest.raises(Unavailable, match=r"another one: --git-username and --git-password-file") as error:
        fetch(source)
    assert "correct-horse" not in str(error.value)
    file.write_text("battery-staple")
    fetch(source)


@needs_https
def test_the_name_in_the_url_is_the_user(
    repository: Repository, server: Server, https: Source, tmp_path: Path
) -> None:
    repository.commit(STATE)
    server.password = "x"
    (tmp_path / "password").write_text("x")
    repo = https.repo.replace("https://", "https://ops@")
    assert content(replace(https, repo=repo, password_file=tmp_path / "password")) == b"a: 1\n"


@needs_https
def test_a_password_goes_to_no_other_server(
    repository: Repository, server: Server, https: Source, tmp_path: Path
) -> None:
    repository.commit(STATE)
    (tmp_path / "password").write_text("secret")
    with https_server(tmp_path, server.ca, tmp_path / "key.pem") as other:
        server.mode, server.redirect_to = "redirect", other.url
        assert content(https) == b"a: 1\n"
        other.seen.clear()
        with pytest.raises(Unavailable, match=r"(?s)cannot fetch.*the server redirects"):
            fetch(replace(https, password_file=tmp_path / "password"))
        assert other.seen == []


@needs_https
def test_what_a_server_says_cannot_touch_the_terminal(
    repository: Repository, server: Server, https: Source
) -> None:
    server.mode = "garbage"
    with pytest.raises(Unavailable, match=r"cannot fetch") as error:
        fetch(https)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 4000


@pytest.mark.parametrize("written", [None, b"", b"two\nlines", b"\xff\xfe", b"x" * 100_000])
def test_a_password_file_that_cannot_be_used_is_named(
    tmp_path: Path, state_dir: Path, written: bytes | None
) -> None:
    file = tmp_path / "password"
    if written is not None:
        file.write_bytes(written)
    with pytest.raises(Unavailable, match=r"password file .*password"):
        fetch(Source("https://127.0.0.1:1/x", state_dir=state_dir, password_file=file))


def test_a_password_is_sent_over_nothing_but_https(tmp_path: Path, state_dir: Path) -> None:
    (tmp_path / "password").write_text("x")
    with pytest.raises(UsageError, match=r"--git-password-file is for https"):
        fetch(Source("git@127.0.0.1:x", state_dir=state_dir, password_file=tmp_path / "password"))


# --- SSH ------------------------------------------------------------------------------------------------------------


def test_ssh_is_called_with_the_key_and_the_known_hosts(
    repository: Repository, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit(STATE)
    programs, key, known = tmp_path / "programs", tmp_path / "my key", tmp_path / "known 100%"
    key.touch()
    known.touch()
    programs.mkdir()
    ssh = programs / "ssh"
    # It writes its arguments down and does what the far end would do with the last one.
    ssh.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nfor last; do :; done\nexec sh -c "$last"\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    source = Source(
        f"git@boot.example.org:{repository.path}",
        state_dir=state_dir,
        ssh_key=key,
        known_hosts=known,
        timeout=30,
    )
    assert content(source) == b"a: 1\n"
    arguments = (tmp_path / "arguments").read_text().splitlines()
    options = {word for flag, word in itertools.pairwise(arguments) if flag == "-o"}
    assert {
        f'IdentityFile="{key}"',
        f'UserKnownHostsFile="{tmp_path}/known 100%%"',
        "StrictHostKeyChecking=yes",
        "BatchMode=yes",
        "IdentitiesOnly=yes",
    } <= options
    assert "git@boot.example.org" in arguments


@pytest.mark.needs("ssh")
def test_the_real_ssh_takes_these_options_and_its_reason_is_shown(state_dir: Path, tmp_path: Path) -> None:
    key, known = tmp_path / "my key", tmp_path / "known 100%"
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], timeout=30)
    known.touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    source = Source(
        f"ssh://git@127.0.0.1:{port}/x", state_dir=state_dir, ssh_key=key, known_hosts=known, timeout=20
    )
    with pytest.raises(Unavailable, match=r"(?s)cannot fetch ssh://git@127.*Connection refused"):
        fetch(source)


@pytest.mark.needs("ssh")
def test_an_ssh_server_that_hangs_is_given_up_in_time(silent_port: int, state_dir: Path) -> None:
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"no answer within 1 s"):
        fetch(Source(f"ssh://git@127.0.0.1:{silent_port}/x", state_dir=state_dir, timeout=1))
    assert time.monotonic() - start < 3
    # It was ended with its group; on a busy machine it is gone a moment later.
    while (left := processes_with(f"-p {silent_port}")) and time.monotonic() - start < 10:
        time.sleep(0.05)
    assert not left


def test_a_missing_key_is_named(state_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"the SSH key .*nokey cannot be read"):
        fetch(Source("git@127.0.0.1:x", state_dir=state_dir, ssh_key=tmp_path / "nokey"))


def test_a_missing_git_is_named(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit(STATE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"cannot run git: install it"):
        resolve(Source(str(repository.path)))


def test_a_fetch_that_was_killed_harms_nothing(repository: Repository, source: Source) -> None:
    """The process is killed at other moments again and again; after each, what was there before can still be read."""
    repository.commit(STATE)
    fetch(source)
    code = (
        "import pathlib, sys\nfrom reconciler.desired.repository import *\n"
        "fetch(Source(sys.argv[1], state_dir=pathlib.Path(sys.argv[2]), timeout=30))"
    )
    for number in range(8):
        repository.commit({f"desired-state/{number}-{name}.yaml": "x" * 1000 for name in range(30)})
        with subprocess.Popen([sys.executable, "-c", code, source.repo, str(source.state_dir)]) as child:
            time.sleep(0.12 + 0.02 * number)
            child.send_signal(signal.SIGKILL)
        assert read(source, resolve(source).id)[-1][0] == "desired-state/a.yaml"
    assert len(content(source)) == 1000
    assert git(source.mirror, "fsck", "--connectivity-only", "--no-dangling") == ""
    shutil.rmtree(source.state_dir)
