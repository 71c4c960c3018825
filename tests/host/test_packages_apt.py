"""Packages with scripts, dependencies and APT sources, on whole systems of their own (a chroot on an overlay): the real dpkg and apt."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.artifact import AptDeb, Key, Pin, ReleaseDeb
from reconciler.errors import HeldBack, HostError, Unavailable, Unfetchable
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.packages import Packages
from tests.debs import DebSpec, audit, bare_host, build, dpkg, overlay_host, repository, state
from tests.disks import small_disk
from tests.release_server import ReleaseServer

pytestmark = [
    pytest.mark.needs("dpkg", "apt-get", "dpkg-scanpackages"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a chroot on an overlay needs root"),
]

LIBRARY = DebSpec("rt-library", "1.0")
SERVICE = DebSpec("rt-service", "1.0", depends="rt-library")
FAILING = "#!/bin/sh\ntest -e /etc/rt-allowed || { echo 'no leave to start' >&2; exit 3; }\n"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is said on the test's standard error."""


@contextmanager
def http(directory: Path) -> Iterator[str]:
    """The directory as an APT source over HTTP."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"deb [trusted=yes] http://127.0.0.1:{server.server_address[1]} ./"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return repository(tmp_path / "archive", LIBRARY, SERVICE, LIBRARY.at("2.0"), SERVICE.at("2.0"))


@pytest.fixture
def source(archive: Path) -> Iterator[str]:
    with http(archive) as line:
        yield line


@pytest.fixture
def host(tmp_path: Path, source: str) -> Iterator[Host]:
    with overlay_host(tmp_path, source) as made:
        yield made


@pytest.fixture
def packages(host: Host) -> Packages:
    return Packages(host, Ledger.open(host), lock_timeout=0.5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReleaseServer]:
    with ReleaseServer(tmp_path / "releases").serving() as serving:
        yield serving


def released(server: ReleaseServer, tmp_path: Path, spec: DebSpec) -> ReleaseDeb:
    server.add("acme", "tool", f"v{spec.version}", build(spec, tmp_path))
    return ReleaseDeb(spec.name, "acme", "tool", f"v{spec.version}")


def install(packages: Packages, deb: AptDeb | ReleaseDeb) -> Pin | None:
    pin = packages.resolve(deb)
    packages.fetch(deb, pin)
    packages.apply(deb, pin)
    return pin


# --- from APT -------------------------------------------------------------------------------------------------------


def test_exact_versions_up_and_down_with_what_they_depend_on(host: Host, packages: Packages) -> None:
    for version in ("1.0", "2.0", "1.0"):
        deb = AptDeb("rt-service", version)
        assert packages.target(deb, None) == version
        install(packages, deb)
        assert packages.observe([deb]) == {deb.key: version}
        assert state(host, "rt-service") == f"ii {version}"
    assert state(host, "rt-library") == "ii 2.0"
    packages.remove(deb.key)
    assert (state(host, "rt-service"), state(host, "rt-library")) == ("", "ii 2.0")


def test_what_was_fetched_is_applied_though_the_source_is_gone(
    host: Host, packages: Packages, archive: Path
) -> None:
    deb = AptDeb("rt-service", "2.0")
    packages.fetch(deb, None)
    shutil.rmtree(archive)
    packages.fetch(deb, None)
    packages.apply(deb, None)
    assert (state(host, "rt-service"), state(host, "rt-library")) == ("ii 2.0", "ii 2.0")


def test_a_version_that_left_the_archive_meanwhile_is_installed_from_what_is_kept(
    host: Host, packages: Packages, archive: Path
) -> None:
    deb = AptDeb("rt-library", "1.0")
    packages.fetch(deb, None)
    repository(archive, LIBRARY.at("3.0"))
    subprocess.run(["chroot", host.root, "apt-get", "-q=2", "update"], check=True, capture_output=True)
    packages.apply(deb, None)
    assert state(host, "rt-library") == "ii 1.0"


def test_the_lists_are_brought_up_to_date_when_they_do_not_know_a_version(
    host: Host, packages: Packages, archive: Path
) -> None:
    install(packages, AptDeb("rt-library", "1.0"))
    repository(archive, LIBRARY.at("3.0"))
    fresh = Packages(host, Ledger.open(host))
    install(fresh, AptDeb("rt-library", "3.0"))
    assert state(host, "rt-library") == "ii 3.0"


def test_several_are_fetched_at_once(host: Host, packages: Packages) -> None:
    debs = [AptDeb(name, version) for name in ("rt-service", "rt-library") for version in ("1.0", "2.0")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda deb: packages.fetch(deb, None), debs))
    for deb in debs[1::2]:
        packages.apply(deb, None)
    assert (state(host, "rt-service"), state(host, "rt-library")) == ("ii 2.0", "ii 2.0")


@pytest.mark.parametrize(
    ("deb", "words"),
    [
        (AptDeb("rt-service", "9.9"), "its APT sources do not have it"),
        (AptDeb("rt-unheard-of", "1.0"), "its APT sources do not have it"),
    ],
)
def test_what_the_sources_do_not_have_is_refused(packages: Packages, deb: AptDeb, words: str) -> None:
    with pytest.raises(Unfetchable, match=words):
        packages.fetch(deb, None)
    with pytest.raises(HostError, match="nothing was fetched"):
        packages.apply(deb, None)


def test_a_source_that_does_not_answer_is_tried_again_later(tmp_path: Path, archive: Path) -> None:
    with ExitStack() as serving, overlay_host(tmp_path, serving.enter_context(http(archive))) as host:
        subprocess.run(["chroot", host.root, "apt-get", "-q=2", "update"], check=True, capture_output=True)
        serving.close()
        # The lists know the version, and there is nobody to ask for it any more.
        with pytest.raises(Unavailable, match="a source does not answer"):
            Packages(host, Ledger.open(host)).fetch(AptDeb("rt-library", "1.0"), None)


def test_a_local_source_is_kept_too(tmp_path: Path, archive: Path) -> None:
    host = bare_host(tmp_path, f"deb [trusted=yes] file:{archive} ./")
    packages = Packages(host, Ledger.open(host))
    deb = AptDeb("rt-service", "2.0")
    packages.fetch(deb, None)
    shutil.rmtree(archive)
    packages.apply(deb, None)
    assert (state(host, "rt-service"), state(host, "rt-library")) == ("ii 2.0", "ii 2.0")


def test_a_host_without_apt_says_so(tmp_path: Path) -> None:
    host = bare_host(tmp_path)
    with pytest.raises(HostError, match="the host has no apt-get"):
        Packages(host, Ledger.open(host)).fetch(AptDeb("rt-library", "1.0"), None)


def test_a_dependency_that_cannot_be_had_stops_the_fetch(
    host: Host, packages: Packages, tmp_path: Path, archive: Path
) -> None:
    repository(archive, SERVICE.at("3.0"))
    with pytest.raises(Unfetchable, match="what it depends on cannot be had") as caught:
        packages.fetch(AptDeb("rt-service", "3.0"), None)
    assert "rt-library" in str(caught.value)


def test_nothing_is_removed_to_make_room_for_another(host: Host, packages: Packages, archive: Path) -> None:
    install(packages, AptDeb("rt-library", "1.0"))
    rival = DebSpec("rt-rival", "1.0", fields=(("Conflicts", "rt-library"),))
    repository(archive, LIBRARY, rival)
    fresh = Packages(host, Ledger.open(host))
    with pytest.raises(HostError, match="would have to remove other packages"):
        fresh.fetch(AptDeb("rt-rival", "1.0"), None)
    assert state(host, "rt-library") == "ii 1.0"


def test_a_hold_is_respected_also_on_the_way(host: Host, packages: Packages) -> None:
    install(packages, AptDeb("rt-library", "1.0"))
    subprocess.run(["chroot", host.root, "apt-mark", "hold", "rt-library"], check=True, capture_output=True)
    deb = AptDeb("rt-library", "2.0")
    with pytest.raises(HostError, match="hold"):
        install(packages, deb)
    assert state(host, "rt-library") == "hi 1.0"


# --- from a release, with what the host's sources have --------------------------------------------------------------


def test_a_release_brings_its_dependencies_from_apt(
    host: Host, server: ReleaseServer, tmp_path: Path, archive: Path
) -> None:
    packages = Packages(host, Ledger.open(host), github_api=server.url)
    deb = released(server, tmp_path, DebSpec("rt-tool", "1.0", depends="rt-service (>= 2.0)"))
    pin = packages.resolve(deb)
    packages.fetch(deb, pin)
    shutil.rmtree(archive)
    server.fail("/", "500")
    packages.apply(deb, pin)
    for name, version in (("rt-tool", "1.0"), ("rt-service", "2.0"), ("rt-library", "2.0")):
        assert state(host, name) == f"ii {version}"
    automatic = subprocess.run(
        ["chroot", host.root, "apt-mark", "showauto", "rt-service", "rt-tool"], capture_output=True, text=True
    )
    assert automatic.stdout.split() == ["rt-service"]


def test_a_script_that_fails_fails_the_step_and_the_next_attempt_repairs(
    host: Host, server: ReleaseServer, tmp_path: Path
) -> None:
    packages = Packages(host, Ledger.open(host), github_api=server.url)
    deb = released(server, tmp_path, DebSpec("rt-tool", "1.0", scripts=(("postinst", FAILING),)))
    pin = packages.resolve(deb)
    packages.fetch(deb, pin)
    for _ in range(2):
        with pytest.raises(HostError, match="no leave to start"):
            packages.apply(deb, pin)
        assert packages.observe([deb]) == {deb.key: "1.0 half-configured"}
    (host.root / "etc/rt-allowed").touch()
    packages.apply(deb, pin)
    assert (state(host, "rt-tool"), audit(host)) == ("ii 1.0", "")


def test_what_fails_can_be_left_for_the_version_before(
    host: Host, server: ReleaseServer, tmp_path: Path
) -> None:
    packages = Packages(host, Ledger.open(host), github_api=server.url)
    good = released(server, tmp_path, DebSpec("rt-tool", "1.0"))
    bad = released(server, tmp_path, DebSpec("rt-tool", "1.1", scripts=(("postinst", FAILING),)))
    install(packages, good)
    with pytest.raises(HostError, match="no leave to start"):
        install(packages, bad)
    install(packages, good)
    assert (packages.observe([good]), audit(host)) == ({good.key: "1.0"}, "")


def test_somebody_elses_broken_package_does_not_keep_us_from_ours(
    host: Host, packages: Packages, tmp_path: Path
) -> None:
    theirs = build(DebSpec("rt-theirs", "1.0", scripts=(("postinst", FAILING),)), host.root / "root")
    with pytest.raises(AssertionError):
        dpkg(host, "--install", f"/root/{theirs.name}")
    assert state(host, "rt-theirs") == "iF 1.0"
    install(packages, AptDeb("rt-library", "1.0"))
    assert (state(host, "rt-library"), state(host, "rt-theirs")) == ("ii 1.0", "iF 1.0")


def half_install(host: Host, name: str, version: str) -> None:
    """What a power cut in the middle of unpacking leaves in dpkg's database."""
    status = host.root / "var/lib/dpkg/status"
    stanza = (
        f"Package: {name}\nStatus: install reinstreq half-installed\nMaintainer: x\nArchitecture: all\n"
        f"Version: {version}\nDescription: x\n"
    )
    others = [
        other for other in status.read_text().split("\n\n") if not other.startswith(f"Package: {name}\n")
    ]
    status.write_text("\n\n".join([*(other.strip("\n") for other in others if other.strip()), stanza]))
    assert state(host, name).startswith("iHR")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_was_cut_off_in_the_middle_is_left_for_any_version(
    host: Host, packages: Packages, version: str
) -> None:
    half_install(host, "rt-service", "2.0")
    install(packages, AptDeb("rt-service", version))
    assert (state(host, "rt-service"), state(host, "rt-library"), audit(host)) == (
        f"ii {version}",
        "ii 2.0",
        "",
    )


def test_somebody_elses_half_of_a_package_does_not_keep_us_from_ours(
    host: Host, server: ReleaseServer, tmp_path: Path
) -> None:
    packages = Packages(host, Ledger.open(host), github_api=server.url)
    half_install(host, "rt-theirs", "1.0")
    install(packages, released(server, tmp_path, DebSpec("rt-tool", "1.0", depends="rt-service")))
    install(packages, AptDeb("rt-library", "1.0"))
    found = [state(host, name) for name in ("rt-tool", "rt-service", "rt-library")]
    assert found == ["ii 1.0", "ii 2.0", "ii 1.0"]
    assert state(host, "rt-theirs") == "iHR1.0"


def test_a_host_without_any_source_installs_what_needs_none(tmp_path: Path, server: ReleaseServer) -> None:
    with overlay_host(tmp_path) as host:
        packages = Packages(host, Ledger.open(host), github_api=server.url)
        install(packages, released(server, tmp_path, DebSpec("rt-tool", "1.0")))
        assert state(host, "rt-tool") == "ii 1.0"


def test_a_configuration_file_that_was_edited_stays(
    host: Host, server: ReleaseServer, tmp_path: Path
) -> None:
    packages = Packages(host, Ledger.open(host), github_api=server.url)
    first = DebSpec("rt-tool", "1.0", conffiles=(("/etc/rt-tool.conf", "first\n"),))
    install(packages, released(server, tmp_path, first))
    (host.root / "etc/rt-tool.conf").write_text("mine\n")
    deb = released(
        server, tmp_path, replace(first, version="1.1", conffiles=(("/etc/rt-tool.conf", "second\n"),))
    )
    install(packages, deb)
    assert (host.root / "etc/rt-tool.conf").read_text() == "mine\n"
    packages.remove(deb.key)
    assert packages.observe([deb]) == {}
    assert (host.root / "etc/rt-tool.conf").read_text() == "mine\n"


def test_a_script_cannot_ask_and_sees_the_agents_lock(
    host: Host, server: ReleaseServer, tmp_path: Path
) -> None:
    with (tmp_path / "reconciler.lock").open("w") as lock:
        script = f'#!/bin/bash\nread -t 5 answer; echo "$DEBIAN_FRONTEND" > /rt-seen; true >&{lock.fileno()} && touch /rt-lock\n'
        deb = released(server, tmp_path, DebSpec("rt-tool", "1.0", scripts=(("postinst", script),)))
        locked = replace(host, lock_fd=lock.fileno())
        install(Packages(locked, Ledger.open(locked), github_api=server.url), deb)
    assert (host.root / "rt-seen").read_text() == "noninteractive\n"
    assert (host.root / "rt-lock").exists()


LOOK = """
from reconciler.core.artifact import Key, Known
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.packages import Packages
host = Host(exec="nsenter")
print(Packages(host, Ledger.open(host)).observe([Known(Key("deb", "dpkg"), "?"), Known(Key("deb", "none"), "?")]))
"""


def test_the_host_is_looked_at_through_the_namespaces_of_process_1() -> None:
    # In process and mount namespaces of its own, the first process is the test's.
    argv = ["unshare", "--fork", "--pid", "--mount-proc", "--uts", sys.executable, "-c", LOOK]
    found = subprocess.run(argv, capture_output=True, text=True, check=True)
    version = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "dpkg"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str({Key("deb", "dpkg"): version.stdout})


# --- faults of the host ---------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_before_anything_changes(tmp_path: Path, server: ReleaseServer) -> None:
    with overlay_host(tmp_path, size="8m") as host:
        packages = Packages(host, Ledger.open(host), github_api=server.url)
        big = "".join(os.urandom(1 << 20).hex() for _ in range(6))
        fat = released(server, tmp_path, DebSpec("rt-fat", "1.0", files=(("/usr/share/fat", big),)))
        with pytest.raises(HostError, match="make room there"):
            packages.fetch(fat, packages.resolve(fat))
        swollen = DebSpec("rt-swollen", "1.0", fields=(("Installed-Size", "50000"),))
        deb = released(server, tmp_path, replace(swollen, version="2.0"))
        with pytest.raises(HostError, match=r"deb rt-swollen 2\.0 .* it takes 51\.2 MB"):
            packages.fetch(deb, packages.resolve(deb))
        assert (state(host, "rt-fat"), state(host, "rt-swollen"), audit(host)) == ("", "", "")


def test_what_does_not_fit_together_is_said_before_anything_changes(
    tmp_path: Path, server: ReleaseServer, archive: Path
) -> None:
    """Each alone would fit; what a package brings along counts, and what it replaces counts only while it is replaced."""

    def sized(name: str, megabytes: int, version: str = "1.0", depends: str = "") -> DebSpec:
        fields = (("Installed-Size", str(megabytes * 1000)),)
        return DebSpec(name, version, depends=depends, fields=fields)

    repository(archive, sized("rt-needed", 15))
    with http(archive) as line, small_disk(tmp_path / "small", "40m") as small:
        host = bare_host(small, line)
        packages = Packages(host, Ledger.open(host), github_api=server.url)

        def fetch(spec: DebSpec) -> ReleaseDeb:
            deb = released(server, tmp_path, spec)
            packages.fetch(deb, packages.resolve(deb))
            return deb

        first = fetch(sized("rt-a", 15, "1.0", depends="rt-needed"))
        says = r"deb rt-b 2\.0 and 1 more .* it takes 46\.1 MB"
        with pytest.raises(HostError, match=says):
            fetch(sized("rt-b", 15, "2.0"))
        packages.apply(first, packages.resolve(first))
        assert state(host, "rt-needed") == state(host, "rt-a") == "ii 1.0"
        fetch(sized("rt-b", 15, "2.0"))
        fetch(sized("rt-a", 18, "3.0", depends="rt-needed"))
        packages.begin_fetching()
        fetch(sized("rt-c", 25, "4.0"))


def test_the_lock_of_the_host_is_waited_for(host: Host, packages: Packages) -> None:
    deb = AptDeb("rt-library", "1.0")
    lock = host.root / "var/lib/dpkg/lock-frontend"
    program = "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        packages.fetch(deb, None)
        with pytest.raises(HeldBack, match=rf"python.* \(process {holder.pid}\)"):
            packages.apply(deb, None)
        holder.kill()
    packages.apply(deb, None)
    assert state(host, "rt-library") == "ii 1.0"


APPLY = """
import sys
from pathlib import Path
from reconciler.core.artifact import AptDeb
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.packages import Packages
root, version = Path(sys.argv[1]), sys.argv[2]
host = Host(root=root, exec="chroot", state_dir=root / "var/lib/reconciler")
packages = Packages(host, Ledger.open(host), lock_timeout=20)
for name in ("rt-library", "rt-service"):
    packages.apply(AptDeb(name, version), None)
"""


def kill_tree(pid: int) -> None:
    """Kill a process and all that came from it, at once, as a container's end or a power cut does."""
    found = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in found.splitlines()}
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    for member in sorted(family):
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def converge_after_kills(host: Host, delays: list[float]) -> None:
    packages = Packages(host, Ledger.open(host), lock_timeout=20)
    versions = ["1.0", "2.0"]
    for number, delay in enumerate(delays):
        version = versions[number % 2]
        debs = [AptDeb("rt-library", version), AptDeb("rt-service", version)]
        for deb in debs:
            packages.fetch(deb, None)
        agent = subprocess.Popen(
            [sys.executable, "-c", APPLY, str(host.root), version], stderr=subprocess.DEVNULL
        )
        try:
            agent.wait(delay)
        except subprocess.TimeoutExpired:
            kill_tree(agent.pid)
            agent.wait()
        for deb in debs:
            packages.apply(deb, None)
        assert packages.observe(debs) == {deb.key: version for deb in debs}, f"killed after {delay} s"
        assert audit(host) == ""
        entries = Ledger.open(host).entries()
        assert {entry.found for entry in entries.values()} == {version}


def test_killed_at_any_moment_it_converges(host: Host) -> None:
    converge_after_kills(host, [0.1 + 0.12 * number for number in range(5)])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_at_fifty_moments_it_converges(host: Host) -> None:
    converge_after_kills(host, [0.05 + 0.025 * number for number in range(50)])
