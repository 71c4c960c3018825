"""Paths on a host whose links all want out, and writes that are whole or not there; on a real file system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

import pytest

from reconciler.errors import HostError
from reconciler.host import place
from reconciler.host.driver import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/os-release").write_text("the host's\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("not the host's")
    return Host(root=root)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/os-release", "etc/os-release"),
        ("etc/os-release", "etc/os-release"),
        ("//etc/./os-release/", "etc/os-release"),
        ("/../../../etc/passwd", "etc/passwd"),
        ("/etc/../../../x", "x"),
        ("/", ""),
        ("/..", ""),
        ("/not/there/../yet", "not/yet"),
        ("/relative/os-release", "etc/os-release"),
        ("/absolute/os-release", "etc/os-release"),
        ("/chain/os-release", "etc/os-release"),
        ("/climbing/etc/passwd", "etc/passwd"),
        ("/file", "etc/os-release"),
        ("/dangling", "nowhere/at/all"),
    ],
)
def test_a_path_is_what_the_host_would_make_of_it(host: Host, path: str, expected: str) -> None:
    for link, target in (
        ("relative", "etc"),
        ("absolute", "/etc"),
        ("chain", "absolute"),
        ("climbing", "../../../../../.."),
        ("file", "/etc/os-release"),
        ("dangling", "/nowhere/at/all"),
    ):
        (host.root / link).symlink_to(target)
    assert place.inside(host, path) == host.root / expected


def test_nothing_is_written_read_or_removed_through_a_link_that_leads_out(host: Host, tmp_path: Path) -> None:
    (host.root / "out").symlink_to(tmp_path / "outside")
    (host.root / "secret").symlink_to(tmp_path / "outside/secret")
    assert place.read(host, "/out/secret") is None
    assert place.read(host, "/secret") is None
    place.write(host, "/out/new", "x")
    place.write(host, "/secret", "x")
    place.point(host, "/out/link", "x")
    assert sorted(path.name for path in (tmp_path / "outside").iterdir()) == ["secret"]
    assert (tmp_path / "outside/secret").read_text() == "not the host's"
    assert (host.root / str(tmp_path).lstrip("/") / "outside/new").read_text() == "x"
    assert place.remove(host, "/secret")
    assert (tmp_path / "outside/secret").exists()


def test_a_link_that_changes_meanwhile_leads_nowhere_else(host: Host, tmp_path: Path) -> None:
    (host.root / "real").mkdir()
    (host.root / "here").symlink_to("real")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for target in (str(tmp_path / "outside"), "real"):
                (host.root / "new").symlink_to(target)
                (host.root / "new").rename(host.root / "here")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for number in range(300):
            place.write(host, f"/here/{number % 5}", str(number))
    finally:
        ended.set()
        swapper.join()
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]


def test_links_in_a_circle(host: Host) -> None:
    (host.root / "a").symlink_to("b")
    (host.root / "b").symlink_to("a")
    with pytest.raises(HostError, match=os.strerror(errno.ELOOP)):
        place.inside(host, "/a/x")


def test_a_write_makes_directories_and_says_whether_it_changed_anything(host: Host) -> None:
    assert place.write(host, "/etc/systemd/system/a.service", "one", 0o600)
    path = host.root / "etc/systemd/system/a.service"
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("one", 0o600)
    before = path.stat().st_ino
    assert not place.write(host, "/etc/systemd/system/a.service", b"one", 0o600)
    assert path.stat().st_ino == before
    assert place.write(host, "/etc/systemd/system/a.service", "one", 0o644)
    assert place.write(host, "/etc/systemd/system/a.service", "two")
    assert [entry.name for entry in path.parent.iterdir()] == ["a.service"]


def test_a_write_that_fails_leaves_what_was_there(host: Host) -> None:
    (host.root / "etc/taken").mkdir()
    with pytest.raises(HostError, match=r"cannot write /etc/taken below .*Is a directory"):
        place.write(host, "/etc/taken", "x")
    with pytest.raises(HostError, match=r"cannot write /etc/os-release/x .*Not a directory"):
        place.write(host, "/etc/os-release/x", "x")
    assert sorted(path.name for path in (host.root / "etc").iterdir()) == ["os-release", "taken"]


def test_a_read_is_bounded_and_of_regular_files_only(host: Host) -> None:
    assert place.text(host, "/etc/os-release") == "the host's"
    assert place.read(host, "/etc/none") is None
    assert place.read(host, "/none/none") is None
    with pytest.raises(HostError, match="more than 3 bytes"):
        place.read(host, "/etc/os-release", 3)
    os.mkfifo(host.root / "pipe")
    with pytest.raises(HostError, match="no regular file"):
        place.read(host, "/pipe")


def test_a_link_is_switched_in_one_step(host: Host) -> None:
    assert place.point(host, "/boot/current", "1.0")
    assert not place.point(host, "/boot/current", "1.0")
    assert place.point(host, "/boot/current", "2.0")
    assert (host.root / "boot/current").readlink() == Path("2.0")
    assert place.remove(host, "/boot/current")
    assert not place.remove(host, "/boot/current")
    assert not place.remove(host, "/nowhere/current")


def test_how_a_command_runs_on_the_host() -> None:
    assert place.command(Host(), ["dpkg", Path("/x")]) == ["dpkg", "/x"]
    assert place.command(Host(root=Path("/host"), exec="chroot"), ["dpkg"]) == ["chroot", "/host", "dpkg"]
    entered = place.command(Host(root=Path("/host"), exec="nsenter"), ["dpkg", "-l"])
    assert entered[:2] == ["nsenter", "--target=1"]
    assert entered[-3:] == ["--", "dpkg", "-l"]


@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a process namespace")
def test_nothing_is_run_in_process_1_where_that_is_not_the_hosts(tmp_path: Path) -> None:
    """As in a container that was not given the host's processes: what is meant for the host would change the container."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from reconciler.errors import HostError\n"
        "from reconciler.host import place\n"
        "from reconciler.host.driver import Host\n"
        "print(place.command(Host(exec='nsenter'), ['dpkg'])[0])\n"
        "try:\n"
        "    place.command(Host(root=Path(sys.argv[1]), exec='nsenter'), ['dpkg'])\n"
        "except HostError as error:\n"
        "    print(error)\n"
    )
    contained = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(contained, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "nsenter",
        f"cannot run anything on the host by nsenter: the root of process 1 is not {tmp_path}; "
        "give the container the host's process namespace (hostPID, pid: host), or say --host-exec chroot",
    ]


@pytest.mark.parametrize(
    ("how", "state", "directory"),
    [
        ("chroot", "/var/lib/reconciler", "var/lib/reconciler"),
        ("nsenter", "{root}/srv/state", "srv/state"),
        ("chroot", "/linked/state", "srv/state"),
        ("nsenter", "{root}/linked/state", "srv/state"),
    ],
)
def test_what_commands_on_the_host_read_lies_where_they_see_it(
    tmp_path: Path, how: Literal["chroot", "nsenter"], state: str, directory: str
) -> None:
    """Where a link leads the state directory elsewhere too: as the host means it, and not as this process would."""
    (tmp_path / "linked").symlink_to("/srv")
    host = Host(root=tmp_path, exec=how, state_dir=Path(state.format(root=tmp_path)))
    assert place.shared(host) == tmp_path / directory
    assert place.seen(host, place.shared(host) / "debs") == f"/{directory}/debs"


def test_where_commands_run_directly_the_state_directory_is_what_it_is() -> None:
    assert place.shared(Host()) == Path("/var/lib/reconciler")
    assert place.seen(Host(), place.shared(Host()) / "debs") == "/var/lib/reconciler/debs"


def test_what_is_outside_cannot_be_shown_to_a_command_on_the_host() -> None:
    with pytest.raises(HostError, match="not below the host's root /host"):
        place.seen(Host(root=Path("/host"), exec="chroot"), Path("/tmp/x"))


def test_a_file_of_our_own_is_published_whole(tmp_path: Path) -> None:
    place.publish(tmp_path / "state/x.json", "{}")
    assert (tmp_path / "state/x.json").read_text() == "{}"
    assert (tmp_path / "state/x.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["x.json"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    place.require_space(tmp_path / "not/there/yet", 1000, "a thing")
    with pytest.raises(
        HostError, match=r"cannot put a thing into .*: it takes 1000000000000\.0 MB and .* MB are free"
    ):
        place.require_space(tmp_path, 10**18, "a thing")
