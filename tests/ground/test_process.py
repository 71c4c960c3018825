"""Programs that behave, and programs that do not: they hang, flood, leave children behind, or do not exist."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.ground import process
from reconciler.ground.process import OUTPUT_LIMIT, ProcessFailed, ProcessTimeout, run


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_says_what_the_program_said() -> None:
    done = run(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"),
        timeout=10,
        check=False,
    )
    assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_words_are_words_and_no_shell_reads_them() -> None:
    assert run(["printf", "%s", "$(id); `id` | *"], timeout=10).stdout == "$(id); `id` | *"


def test_a_failure_names_the_command_the_status_and_the_last_lines() -> None:
    program = "import sys\nfor n in range(100): print('line', n, file=sys.stderr)\nsys.exit(7)"
    with pytest.raises(ProcessFailed, match="failed with exit status 7") as caught:
        run(python(program), timeout=10)
    assert caught.value.status == 7
    assert "    line 99" in str(caught.value)
    assert "line 79" not in str(caught.value)
    assert "line 0\n" in caught.value.output


def test_a_program_that_is_not_there_and_one_that_was_killed() -> None:
    with pytest.raises(ProcessFailed, match="cannot run no-such-program-anywhere x: No such file") as missing:
        run(["no-such-program-anywhere", "x"], timeout=10)
    assert missing.value.status is None
    with pytest.raises(ProcessFailed, match="was ended by signal 9"):
        run(python("import os; os.kill(os.getpid(), 9)"), timeout=10)


def test_the_environment_is_small_and_in_one_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    found = run(["env"], timeout=10, env={"MORE": "1"}).stdout.splitlines()
    assert {line.partition("=")[0] for line in found} <= {"PATH", "HOME", "LC_ALL", "MORE", "LC_CTYPE"}
    assert "LC_ALL=C.UTF-8" in found


def test_when_the_time_is_up_all_that_it_started_ends_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = (
        "import subprocess,sys,time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid)); print('said', flush=True); time.sleep(60)"
    )
    began = time.monotonic()
    with pytest.raises(ProcessTimeout, match="did not end within 1 s\n    said"):
        run(python(program), timeout=1)
    assert time.monotonic() - began < 5
    child = int(note.read_text())
    wait_for(lambda: not alive(child))


def test_a_program_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "note"
    program = (
        "import signal,sys,time\n"
        f"signal.signal(15, lambda *_: (open({str(note)!r}, 'w').write('tidied up'), sys.exit(0)))\n"
        "time.sleep(60)"
    )
    with pytest.raises(ProcessTimeout):
        run(python(program), timeout=1)
    assert note.read_text() == "tidied up"


def test_a_daemon_that_keeps_the_output_open_is_not_waited_for() -> None:
    program = "import subprocess,sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)']); print(p.pid, flush=True)"
    began = time.monotonic()
    done = run(python(program), timeout=30)
    assert time.monotonic() - began < 10
    daemon = int(done.stdout)
    assert alive(daemon)  # a service that a package's script started goes on
    os.kill(daemon, 9)


def test_a_daemon_that_is_left_behind_cannot_fill_the_memory(tmp_path: Path) -> None:
    note = tmp_path / "note"
    program = (
        "import os,sys,time\n"
        "if os.fork(): sys.exit()\n"
        "try:\n"
        "  while True: os.write(1, b'x' * 1000); time.sleep(0.01)\n"
        "except PermissionError as error:\n"
        f"  open({str(note)!r}, 'w').write('may write no more')\n"
    )
    run(python(program), timeout=30)
    wait_for(lambda: note.exists() and note.read_text() == "may write no more")


def test_what_was_heard_takes_no_memory_any_more() -> None:
    with process._Output(None) as output:
        for _ in range(4):
            os.write(output.file, b"x" * (1 << 20))
            output.take()
        assert os.fstat(output.file).st_blocks <= 8
    assert len(output.text()) == 4 << 20


def test_a_program_goes_on_when_who_ran_it_is_killed(tmp_path: Path) -> None:
    """What it says then is lost, and nothing else: dpkg would die of a broken pipe in the middle of a package."""
    said, note, go = tmp_path / "said", tmp_path / "note", tmp_path / "go"
    script = f"echo one; touch {said}; while [ ! -e {go} ]; do sleep 0.02; done; echo two && echo three >&2 && touch {note}"
    who = f"from reconciler.ground.process import run\nrun(['sh', '-c', {script!r}], timeout=60)"
    with subprocess.Popen(python(who)) as runs:
        wait_for(said.exists)
        runs.kill()
    go.touch()
    wait_for(note.exists)


def test_a_script_that_opens_its_output_anew_is_heard() -> None:
    """`> /dev/stderr` empties a file. What stood in it may be lost, what comes then is not."""
    script = "echo one >&2; echo two > /dev/stderr; echo three >&2; exit 3"
    with pytest.raises(ProcessFailed, match="two\n    three") as caught:
        run(["sh", "-c", script], timeout=10)
    assert caught.value.status == 3


def test_what_was_heard_before_the_output_was_opened_anew_is_kept() -> None:
    with process._Output(None) as output:
        os.write(output.file, b"one\n")
        output.take()
        with Path(f"/proc/self/fd/{output.file}").open("wb") as anew:
            anew.write(b"two, which is longer\n")
        output.take()
        os.write(output.file, b"three\n")
    assert output.text() == "one\ntwo, which is longer\nthree\n"


def test_a_flood_is_bounded_and_its_end_is_kept() -> None:
    program = (
        f"import sys\nfor n in range({OUTPUT_LIMIT // 500}): print('x' * 1000)\nprint('the end'); sys.exit(1)"
    )
    with pytest.raises(ProcessFailed, match="the end"):
        run(python(program), timeout=60)
    done = run(python(program), timeout=60, check=False)
    assert len(done.stdout) == OUTPUT_LIMIT


def test_output_that_is_no_text_is_taken() -> None:
    assert run(python(r"import sys; sys.stdout.buffer.write(b'\xff\xfe ok')"), timeout=10).stdout.endswith(
        " ok"
    )


def test_lines_are_heard_as_they_come_and_who_listens_cannot_stop_them() -> None:
    heard: list[str] = []

    def listen(line: str) -> None:
        heard.append(line)
        if len(heard) == 3:
            raise RuntimeError("listens no more")

    done = run(python("for n in range(30000): print(n)"), timeout=20, on_line=listen)
    assert heard == ["0", "1", "2"]
    assert done.stdout.endswith("29999\n")


def test_input_is_given_and_one_who_does_not_read_it_has_a_limit_too() -> None:
    assert run(["cat"], timeout=10, input="hello").stdout == "hello"
    assert run(["true"], timeout=10, input="x" * 10_000_000).status == 0
    with pytest.raises(ProcessTimeout):
        run(["sleep", "60"], timeout=0.3, input="x" * 10_000_000)


def test_only_the_descriptors_that_are_named_are_inherited(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as one, (tmp_path / "b").open("w") as other:
        os.set_inheritable(other.fileno(), True)
        program = (
            "import os\n"
            "def there(n):\n"
            "  try: os.fstat(n); return True\n"
            "  except OSError: return False\n"
            f"print(there({one.fileno()}), there({other.fileno()}))"
        )
        assert run(python(program), timeout=10, pass_fds=(one.fileno(),)).stdout == "True False\n"


def test_whether_a_program_is_there(tmp_path: Path) -> None:
    assert process.exists("sh")
    assert not process.exists("no-such-program-anywhere")
    (tmp_path / "usr/bin").mkdir(parents=True)
    assert not process.exists("sh", tmp_path)
    (tmp_path / "usr/bin/sh").symlink_to("/etc/alternatives/nowhere-from-here")
    assert process.exists("sh", tmp_path)
