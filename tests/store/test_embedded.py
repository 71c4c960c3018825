"""The embedded etcd: started by the first, found by the others, ended by the last; also after kills, and in a long path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reconciler.errors import ReconcilerError, Unavailable
from reconciler.store.client import Client
from reconciler.store.embedded import Embedded, directory, find_program, has_data
from reconciler.store.transaction import one, put

pytestmark = pytest.mark.needs("etcd")


def pid(state_dir: Path) -> int | None:
    try:
        return int((directory(state_dir) / "pid").read_text())
    except FileNotFoundError:
        return None


def is_alive(process: int | None) -> bool:
    return process is not None and Path(f"/proc/{process}/cwd").exists()


def write(user: Embedded, value: str) -> None:
    with Client(user.options) as client:
        assert client.txn([], [put("/a", value)]).succeeded


def read(user: Embedded) -> bytes:
    with Client(user.options) as client:
        return client.read([one("/a")]).items[0][0].value


def test_it_lives_from_the_first_user_to_the_last_and_keeps_its_data(tmp_path: Path) -> None:
    assert not has_data(tmp_path)
    with Embedded(tmp_path) as first:
        process = pid(tmp_path)
        assert is_alive(process)
        write(first, "v")
        with Embedded(tmp_path) as second:
            assert pid(tmp_path) == process
            assert read(second) == b"v"
        assert is_alive(process)
    assert not is_alive(process)
    assert has_data(tmp_path)
    with Embedded(tmp_path) as again:
        assert read(again) == b"v"
    again.close()


def test_nobody_else_gets_at_it(tmp_path: Path) -> None:
    with Embedded(tmp_path) as user:
        assert directory(tmp_path).stat().st_mode & 0o777 == 0o700
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
        assert f"pid={pid(tmp_path)}," not in listening
        assert user.options.endpoints[0].startswith("unix:")
    directory(tmp_path).chmod(0o755)
    with pytest.raises(ReconcilerError, match="chmod 700"):
        Embedded(tmp_path)


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    with Embedded(tmp_path / ("d" * 120)) as user:
        write(user, "v")
        assert read(user) == b"v"


def test_a_user_that_is_killed_leaves_it_to_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from reconciler.store.embedded import Embedded\n"
        "Embedded(Path(sys.argv[1])); print('up', flush=True); time.sleep(60)"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert user.stdout is not None
    assert user.stdout.readline() == b"up\n"
    process = pid(tmp_path)
    os.kill(user.pid, signal.SIGKILL)
    user.communicate()
    assert is_alive(process)
    with Embedded(tmp_path) as following:
        assert pid(tmp_path) == process
        write(following, "v")
    end = time.monotonic() + 5
    while is_alive(process) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_alive(process)


def test_an_etcd_that_was_killed_is_started_again_over_its_stale_socket(tmp_path: Path) -> None:
    with Embedded(tmp_path) as user:
        write(user, "v")
        process = pid(tmp_path)
        assert process is not None
        os.kill(process, signal.SIGKILL)
        time.sleep(0.1)
        assert (directory(tmp_path) / "embedded:0").exists()
        with Embedded(tmp_path) as following:
            assert read(following) == b"v"


def test_a_process_that_got_the_old_number_is_left_alone(tmp_path: Path) -> None:
    with Embedded(tmp_path):
        pass
    stranger = subprocess.Popen(["sleep", "60"], cwd=directory(tmp_path))
    try:
        (directory(tmp_path) / "pid").write_text(str(stranger.pid))
        with Embedded(tmp_path) as user:
            write(user, "v")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_that_was_killed_while_it_was_made_is_made_anew(tmp_path: Path) -> None:
    """etcd's own data is of no use then: it would wait for a leader for ever."""
    with Embedded(tmp_path) as user:
        write(user, "v")
    (directory(tmp_path) / "served").unlink()
    assert not has_data(tmp_path)
    with Embedded(tmp_path) as user, Client(user.options) as client:
        assert client.read([one("/a")]).items == ((),)


def test_data_that_cannot_be_read_says_where_to_look(tmp_path: Path) -> None:
    with Embedded(tmp_path) as user:
        write(user, "v")
    (directory(tmp_path) / "data" / "member" / "snap" / "db").write_bytes(b"x" * 100_000)
    with pytest.raises(Unavailable, match=r"ended; look into .*etcd\.log"):
        Embedded(tmp_path)


def test_many_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from reconciler.store.embedded import Embedded\n"
        "from reconciler.store.client import Client; from reconciler.store.transaction import put\n"
        "with Embedded(Path(sys.argv[1])) as user, Client(user.options) as client:\n"
        "    client.txn([], [put('/' + sys.argv[2], '')])"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(number)], cwd=Path(__file__).parents[2]
        )
        for number in range(8)
    ]
    assert [process.wait(60) for process in processes] == [0] * 8
    assert pid(tmp_path) is None


def test_the_program_from_path_is_no_demo() -> None:
    assert not find_program().demo
