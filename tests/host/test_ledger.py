"""The ledger: what is entered is there after a restart, whoever else writes, and what is no ledger is never overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reconciler.core.artifact import (
    AptDeb,
    Artifact,
    Bind,
    Check,
    Container,
    Image,
    Key,
    Known,
    OsImage,
    ReleaseDeb,
)
from reconciler.errors import Corrupt, HostError
from reconciler.host.driver import Host
from reconciler.host.ledger import LIMIT, Entry, Ledger

CONTAINER = Container(
    args=("--name", "boot-$(lrn)"),
    binds=(Bind("data", "/data", "/data", True),),
    health=Check("tcp", "127.0.0.1:1", 5.0),
)
ARTIFACTS: list[Artifact | Known] = [
    Image("etcd", "quay.io/cybozu/etcd", "3.5", "sha256:" + "ab" * 32, True, CONTAINER),
    ReleaseDeb("tool", "acme", "tool", "v1", "cd" * 32),
    AptDeb("chrony", "4.3-2+deb12u1"),
    OsImage("stable", "3139.2.1"),
    Known(Key("deb", "old"), "1.0"),
]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(state_dir=tmp_path / "state")


def test_opening_writes_nothing(host: Host) -> None:
    assert Ledger.open(host).entries() == {}
    assert not host.state_dir.exists()


@pytest.mark.parametrize("artifact", ARTIFACTS, ids=lambda artifact: artifact.key.subject)
def test_what_is_entered_is_there_for_the_next_one(host: Host, artifact: Artifact | Known) -> None:
    older = Entry(artifact, found="0.9", digest="sha256:00")
    entry = Entry(artifact, found="1.0 ü", digest="sha256:11", file="/x", previous=(older,))
    Ledger.open(host).put(entry)
    found = Ledger.open(host)
    assert found.get(artifact.key) == entry
    assert found.has(artifact.key)
    found.drop(artifact.key)
    found.drop(artifact.key)
    assert not Ledger.open(host).has(artifact.key)


def test_two_ledgers_of_one_host_lose_nothing_of_each_other(host: Host) -> None:
    def enter(prefix: str) -> None:
        ledger = Ledger.open(host)
        for number in range(20):
            ledger.put(Entry(AptDeb(f"{prefix}{number}", "1")))

    threads = [threading.Thread(target=enter, args=(prefix,)) for prefix in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Ledger.open(host).entries()
    assert len(entries) == 60
    assert list(entries) == sorted(entries)


def test_what_another_wrote_is_seen(host: Host) -> None:
    one, other = Ledger.open(host), Ledger.open(host)
    one.put(Entry(AptDeb("a", "1")))
    assert other.has(Key("deb", "a"))
    one.drop(Key("deb", "a"))
    assert not other.has(Key("deb", "a"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "format is missing"),
        ('{"format": 2, "entries": []}', "this program reads 1"),
        ('{"format": 1, "entries": {}}', "entries is"),
        ('{"format": 1, "entries": [{"kind": "deb"}]}', "artifact is missing"),
        (
            '{"format": 1, "entries": [{"kind": "rpm", "artifact": {"name": "a", "version": "1"}}]}',
            "must be one of image",
        ),
        (
            '{"format": 1, "entries": [{"kind": "deb", "artifact": {"name": 1, "version": "1"}}]}',
            "name is the number 1",
        ),
        ("\xff\xfe", "not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_ledger_is_named_and_never_overwritten(host: Host, text: str, problem: str) -> None:
    host.state_dir.mkdir()
    file = host.state_dir / "ledger.json"
    file.write_bytes(text.encode("latin-1"))
    ledger = Ledger.open(host)
    with pytest.raises(Corrupt, match=problem) as caught:
        ledger.entries()
    assert str(file) in str(caught.value)
    with pytest.raises(Corrupt):
        ledger.put(Entry(AptDeb("a", "1")))
    assert file.read_bytes() == text.encode("latin-1")


def test_a_huge_one_is_not_read(host: Host) -> None:
    host.state_dir.mkdir()
    with (host.state_dir / "ledger.json").open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(Corrupt, match="at most"):
        Ledger.open(host).entries()


def test_a_state_directory_that_cannot_be_written_is_named(host: Host) -> None:
    host.state_dir.write_text("a file")
    with pytest.raises(HostError, match=str(host.state_dir)):
        Ledger.open(host).put(Entry(AptDeb("a", "1")))


def test_killed_while_it_writes_it_is_always_whole(host: Host) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from reconciler.host.driver import Host; from reconciler.host.ledger import *\n"
        "from reconciler.core.artifact import AptDeb\n"
        "ledger = Ledger.open(Host(state_dir=Path(sys.argv[1])))\n"
        "for number in range(100000): ledger.put(Entry(AptDeb(f'p{number % 50}', str(number)), file='x' * 2000))\n"
    )
    for round in range(5):
        writer = subprocess.Popen([sys.executable, "-c", program, str(host.state_dir)])
        while not Ledger.open(host).entries():
            time.sleep(0.005)
        time.sleep(0.03 * round)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        assert Ledger.open(host).entries()
    Ledger.open(host).put(Entry(AptDeb("after", "1")))
    assert Ledger.open(host).has(Key("deb", "after"))
