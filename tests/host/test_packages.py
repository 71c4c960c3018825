"""Packages from a release server, on a bare host root: what is chosen, checked, installed and removed. dpkg's database is the judge."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.core.artifact import Key, Known, Pin, ReleaseDeb
from reconciler.errors import HeldBack, HostError, Unavailable, Unfetchable
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.packages import Packages
from tests.debs import DebSpec, audit, bare_host, build, dpkg, state
from tests.release_server import ReleaseServer

pytestmark = [
    pytest.mark.needs("dpkg", "dpkg-deb"),
    pytest.mark.skipif(os.geteuid() != 0, reason="dpkg installs only as root"),
]
TOOL = DebSpec("tool", "1.0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReleaseServer]:
    with ReleaseServer(tmp_path / "releases").serving() as serving:
        yield serving


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return bare_host(tmp_path)


@pytest.fixture
def packages(host: Host, server: ReleaseServer) -> Packages:
    return Packages(host, Ledger.open(host), github_api=server.url, lock_timeout=0.5)


def release(
    server: ReleaseServer, tmp_path: Path, spec: DebSpec, tag: str | None = None, name: str = ""
) -> ReleaseDeb:
    """Publish a package in a release, and say how the desired state asks for it."""
    tag = tag or f"v{spec.version}"
    server.add("acme", "tool", tag, build(spec, tmp_path, name))
    return ReleaseDeb(TOOL.name, "acme", "tool", tag)


def install(packages: Packages, deb: ReleaseDeb) -> Pin:
    pin = packages.resolve(deb)
    assert pin is not None
    packages.fetch(deb, pin)
    packages.apply(deb, pin)
    return pin


# --- the way through ------------------------------------------------------------------------------------------------


def test_installs_upgrades_downgrades_and_removes(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    old, new = release(server, tmp_path, TOOL), release(server, tmp_path, TOOL.at("1.1"))
    for deb, version in ((old, "1.0"), (new, "1.1"), (old, "1.0")):
        pin = install(packages, deb)
        assert state(host, "tool") == f"ii {version}"
        assert packages.observe([deb]) == {deb.key: version}
        assert packages.target(deb, pin) == version
        assert (host.root / "usr/share/tool/version").read_text() == f"{version}\n"
    packages.remove(old.key)
    assert state(host, "tool") == ""
    assert packages.observe([old]) == {}
    assert not (host.root / "usr/share/tool").exists()
    assert list((host.state_dir / "debs").iterdir()) == []


def test_everything_again_changes_and_fetches_nothing(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    pin = install(packages, deb)
    asked = len(server.seen)
    packages.fetch(deb, pin)
    assert len(server.seen) == asked
    packages.apply(deb, pin)
    packages.remove(deb.key)
    packages.remove(deb.key)
    assert state(host, "tool") == ""


def test_what_was_fetched_is_applied_without_the_server(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    pin = packages.resolve(deb)
    packages.fetch(deb, pin)
    assert packages.target(deb, pin) == "1.0"
    asked = len(server.seen)
    server.fail("/", "500")
    packages.apply(deb, pin)
    assert (state(host, "tool"), len(server.seen)) == ("ii 1.0", asked)


def test_progress_is_told_in_bytes(server: ReleaseServer, packages: Packages, tmp_path: Path) -> None:
    deb = release(server, tmp_path, replace(TOOL, files=(("/usr/share/big", "x" * 3_000_000),)))
    told: list[tuple[str, int, int | None]] = []
    packages.fetch(deb, packages.resolve(deb), lambda *step: told.append(step))
    assert told[-1][0] == "deb/tool"
    assert told[-1][1] == told[-1][2]


def test_five_hundred_packages_are_observed_with_one_query(host: Host, packages: Packages) -> None:
    stanza = "Package: p{0}\nStatus: install ok installed\nMaintainer: x\nArchitecture: all\nVersion: {0}.0\nDescription: x\n\n"
    (host.root / "var/lib/dpkg/status").write_text("".join(stanza.format(number) for number in range(500)))
    began = time.monotonic()
    found = packages.observe([Known(Key("deb", f"p{number}"), "?") for number in range(600)])
    assert len(found) == 500
    assert found[Key("deb", "p7")] == "7.0"
    assert time.monotonic() - began < 1.0  # one query takes 10 ms, one a package 3 s


def test_what_is_no_package_is_not_looked_for(packages: Packages) -> None:
    assert packages.observe([Known(Key("image", "dpkg"), "1")]) == {}


def test_a_host_without_dpkg_has_no_packages(tmp_path: Path) -> None:
    host = Host(root=tmp_path, state_dir=tmp_path / "state")
    assert Packages(host, Ledger.open(host)).observe([Known(Key("deb", "dpkg"), "1")]) == {}


# --- which file it is -----------------------------------------------------------------------------------------------


def test_the_file_is_chosen_by_what_it_says_of_itself(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    build_at = tmp_path / "build"
    build_at.mkdir()
    server.add(
        "acme",
        "tool",
        "v1.0",
        build(replace(TOOL, architecture="arm64"), build_at, "tool.deb"),
        build(replace(TOOL, name="tool-dev"), build_at, "tool_1.0_amd64.deb"),
        build(TOOL, build_at, "a-package.deb"),
    )
    (server.directory / "acme/tool/v1.0/checksums.txt").write_text("")
    deb = ReleaseDeb("tool", "acme", "tool", "v1.0")
    assert install(packages, deb).address.endswith("/a-package.deb")
    assert state(host, "tool") == "ii 1.0"


def test_several_candidates_are_listed(server: ReleaseServer, packages: Packages, tmp_path: Path) -> None:
    deb = release(server, tmp_path, TOOL, name="one.deb")
    release(server, tmp_path, replace(TOOL, version="1.0+static"), tag="v1.0", name="two.deb")
    with pytest.raises(Unfetchable, match="2 of its files are package tool") as caught:
        packages.resolve(deb)
    assert "one.deb: package tool 1.0 for all" in str(caught.value)
    assert "two.deb: package tool 1.0+static for all" in str(caught.value)


def test_none_that_fits_is_told_with_what_there_is(
    server: ReleaseServer, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, replace(TOOL, name="other"))
    release(server, tmp_path, replace(TOOL, architecture="riscv64"), tag="v1.0")
    with pytest.raises(Unfetchable, match="none of its files is package tool") as caught:
        packages.resolve(deb)
    assert "other_1.0_all.deb: package other 1.0 for all" in str(caught.value)
    assert "tool_1.0_riscv64.deb: for another architecture, by its name" in str(caught.value)


def test_without_a_digest_from_the_api_the_file_itself_is_pinned(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    server.digests = False
    deb = release(server, tmp_path, TOOL)
    scratch = host.state_dir / "releases"
    (scratch / "of-a-killed-agent").mkdir(parents=True)
    (scratch / "of-a-killed-agent/asset.deb").write_bytes(b"x" * 1000)
    pin = packages.resolve(deb)
    assert list(scratch.rglob("*")) == []
    file = server.file("acme", "tool", "v1.0", "tool_1.0_all.deb")
    assert pin is not None
    assert file is not None
    assert pin.digest == f"sha256:{hashlib.sha256(file).hexdigest()}"


def test_a_token_opens_a_private_repository_and_goes_nowhere_else(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    server.token = "t0k3n"
    deb = release(server, tmp_path, TOOL)
    with pytest.raises(Unfetchable, match="give a token if it is private"):
        packages.resolve(deb)
    packages.configure(token="t0k3n", proxy=None)
    install(packages, deb)
    assert state(host, "tool") == "ii 1.0"
    storage = [request for request in server.seen if request.path.startswith("/files/")]
    assert storage
    assert all("authorization" not in request.headers for request in storage)


@pytest.mark.parametrize(
    ("fault", "part", "error", "words"),
    [
        ("404", "/repos/", Unfetchable, "no such release"),
        ("500", "/repos/", Unavailable, "answered 500"),
        ("rate-limit", "/repos/", Unavailable, "too many requests, it wants to be left alone for"),
        ("403", "/repos/", Unavailable, "wants a token"),
        ("404", "/files/", Unfetchable, "answered 404"),
        ("500", "/files/", Unavailable, "answered 500"),
    ],
)
def test_what_the_server_answers_is_told_apart(
    server: ReleaseServer,
    packages: Packages,
    tmp_path: Path,
    fault: str,
    part: str,
    error: type[Exception],
    words: str,
) -> None:
    deb = release(server, tmp_path, TOOL)
    server.fail(part, fault)  # type: ignore[arg-type]  # a row of the table
    with pytest.raises(error, match=words):
        packages.resolve(deb)


# --- checksums ------------------------------------------------------------------------------------------------------


def test_another_checksum_in_git_is_refused(
    server: ReleaseServer, packages: Packages, tmp_path: Path
) -> None:
    deb = replace(release(server, tmp_path, TOOL), sha256="ab" * 32)
    with pytest.raises(Unfetchable, match="the desired state says " + "ab" * 32):
        packages.resolve(deb)


def test_a_release_that_was_changed_after_it_was_pinned_is_refused(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    pin = packages.resolve(deb)
    release(server, tmp_path, replace(TOOL, files=(("/usr/bin/evil", ""),)))
    with pytest.raises(Unfetchable, match="either the file was changed after it was pinned"):
        packages.fetch(deb, pin)
    assert packages.target(deb, pin) is None
    with pytest.raises(HostError, match="nothing was fetched"):
        packages.apply(deb, pin)
    assert state(host, "tool") == ""


def test_a_pin_of_something_else_is_refused(
    server: ReleaseServer, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    address = (packages.resolve(deb) or Pin("", "")).address
    other = build(replace(TOOL, name="other"), tmp_path)
    (server.directory / "acme/tool/v1.0/tool_1.0_all.deb").write_bytes(other.read_bytes())
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(Unfetchable, match="its file is package other"):
        packages.fetch(deb, Pin(f"sha256:{digest}", address))


def test_what_was_damaged_on_this_disk_is_not_installed(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    pin = packages.resolve(deb)
    packages.fetch(deb, pin)
    (file,) = (host.state_dir / "debs/tool").glob("*/*.deb")
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(HostError, match="damaged since"):
        packages.apply(deb, pin)
    packages.fetch(deb, pin)
    packages.apply(deb, pin)
    assert state(host, "tool") == "ii 1.0"


def test_the_same_version_from_another_file_is_seen_and_installed(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    first = install(packages, deb)
    release(server, tmp_path, replace(TOOL, files=(("/usr/share/tool/other", ""),)))
    second = packages.resolve(deb)
    assert second is not None
    asked = replace(deb, sha256=second.digest.removeprefix("sha256:"))
    assert first.digest != second.digest
    assert packages.observe([asked]) == {deb.key: "1.0 from another file"}
    install(packages, asked)
    assert packages.observe([asked]) == {deb.key: "1.0"}
    assert (host.root / "usr/share/tool/other").exists()


def test_a_file_that_was_replaced_by_hand_is_seen_and_repaired(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    files = tuple((f"/usr/lib/tool/{number}", "as it came\n") for number in range(5))
    deb = release(server, tmp_path, replace(TOOL, files=files, conffiles=(("/etc/tool.conf", "first\n"),)))
    pin = install(packages, deb)
    (host.root / "etc/tool.conf").write_text("mine\n")
    assert packages.observe([deb], closely=True) == {deb.key: "1.0"}
    (host.root / "usr/lib/tool/1").write_text("replaced\n")
    (host.root / "usr/lib/tool/3").unlink()
    assert packages.observe([deb], closely=True) == {
        deb.key: "1.0 with /usr/lib/tool/1, /usr/lib/tool/3 altered"
    }
    for number in range(5):
        (host.root / f"usr/lib/tool/{number}").write_text("replaced\n")
    text = "1.0 with /usr/lib/tool/0, /usr/lib/tool/1, /usr/lib/tool/2 and 2 more altered"
    assert packages.observe([deb], closely=True) == {deb.key: text}
    packages.apply(deb, pin)
    assert packages.observe([deb], closely=True) == {deb.key: "1.0"}
    assert (host.root / "etc/tool.conf").read_text() == "mine\n"


def test_a_file_that_its_own_script_changed_is_no_drift(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(
        server, tmp_path, replace(TOOL, files=(("/usr/lib/tool/a", "a\n"), ("/usr/lib/tool/b", "b\n")))
    )
    pin = packages.resolve(deb)
    packages.fetch(deb, pin)
    dpkg(host, "--install", str(server.directory / "acme/tool/v1.0/tool_1.0_all.deb"))
    (host.root / "usr/lib/tool/a").write_text("as its postinst leaves it\n")
    assert packages.observe([deb], closely=True) == {deb.key: "1.0 with /usr/lib/tool/a altered"}
    assert packages.adopt(deb)
    assert packages.observe([deb], closely=True) == {deb.key: "1.0"}
    (host.root / "usr/lib/tool/b").unlink()
    assert packages.observe([deb], closely=True) == {deb.key: "1.0 with /usr/lib/tool/b altered"}


def test_without_a_pin_a_repair_takes_what_was_installed_before(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    install(packages, deb)
    release(server, tmp_path, replace(TOOL, files=(("/usr/share/tool/other", "moved"),)))
    dpkg(host, "--remove", "tool")
    packages.fetch(deb, None)
    packages.apply(deb, None)
    assert packages.observe([deb]) == {deb.key: "1.0"}
    assert not (host.root / "usr/share/tool/other").exists()


@pytest.mark.parametrize("link", ["usr/share", "usr/share/tool", "var/lib/dpkg"])
def test_a_link_in_the_hosts_root_leads_no_package_out(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    deb = release(server, tmp_path, TOOL)
    pin = packages.resolve(deb)
    packages.fetch(deb, pin)
    place = host.root / link
    if place.exists():
        place.rename(host.root / "aside")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    with pytest.raises(HostError, match="leads out of"):
        packages.apply(deb, pin)
    assert list(outside.iterdir()) == []


def test_a_link_that_stays_in_the_hosts_root_is_followed(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    (host.root / "inside").mkdir()
    (host.root / "usr/share").symlink_to("../inside")
    install(packages, release(server, tmp_path, TOOL))
    assert (host.root / "inside/tool/version").read_text() == "1.0\n"


# --- a host that is not as it should be -----------------------------------------------------------------------------


def test_half_of_a_package_is_seen_as_such_and_repaired(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    dpkg(host, "--unpack", str(server.directory / "acme/tool/v1.0/tool_1.0_all.deb"))
    assert packages.observe([deb]) == {deb.key: "1.0 unpacked"}
    install(packages, deb)
    assert packages.observe([deb]) == {deb.key: "1.0"}


def test_a_package_that_must_be_installed_anew_is_repaired_from_what_is_kept(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    pin = install(packages, deb)
    break_package(host, "tool")
    assert packages.observe([deb]) == {deb.key: "1.0 half-installed, to be reinstalled"}
    server.fail("/", "404")
    packages.fetch(deb, pin)
    packages.apply(deb, pin)
    assert (state(host, "tool"), audit(host)) == ("ii 1.0", "")


def test_a_broken_package_can_be_removed(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    install(packages, deb)
    break_package(host, "tool")
    packages.remove(deb.key)
    assert (state(host, "tool"), audit(host)) == ("", "")


def break_package(host: Host, name: str) -> None:
    """What a power cut in the middle of unpacking leaves in dpkg's database."""
    status = host.root / "var/lib/dpkg/status"
    text = status.read_text()
    assert "Status: install ok installed" in text
    status.write_text(
        text.replace("Status: install ok installed", "Status: install reinstreq half-installed")
    )


def test_a_package_on_hold_is_left_and_reported(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    old, new = release(server, tmp_path, TOOL), release(server, tmp_path, TOOL.at("1.1"))
    pin = install(packages, old)
    subprocess.run(
        ["dpkg", f"--root={host.root}", "--set-selections"], input="tool hold\n", text=True, check=True
    )
    assert packages.observe([old]) == {old.key: "1.0"}
    packages.apply(old, pin)
    with pytest.raises(HostError, match=r"from 1\.0 to 1\.1: it is on hold"):
        packages.fetch(new, packages.resolve(new))
    with pytest.raises(HostError, match=r"from 1\.0 to 1\.1: it is on hold"):
        packages.apply(new, packages.resolve(new))
    with pytest.raises(HostError, match="apt-mark unhold tool"):
        packages.remove(old.key)
    assert state(host, "tool") == "hi 1.0"


def test_dpkgs_lock_is_waited_for_and_its_holder_named(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    pin = packages.resolve(deb)
    packages.fetch(deb, pin)
    with lock_holder(host) as holder:
        with pytest.raises(HeldBack, match=rf"\(process {holder.pid}\) has held dpkg's lock"):
            packages.apply(deb, pin)
        assert state(host, "tool") == ""
        threading.Timer(0.2, holder.kill).start()
        packages.apply(deb, pin)
    assert state(host, "tool") == "ii 1.0"


def lock_holder(host: Host) -> subprocess.Popen[str]:
    """A process of its own that holds dpkg's frontend lock, as an apt that somebody else runs does."""
    lock = host.root / "var/lib/dpkg/lock-frontend"
    program = "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


# --- removal --------------------------------------------------------------------------------------------------------


def test_what_is_not_in_the_ledger_is_not_removed(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    dpkg(host, "--install", str(server.directory / "acme/tool/v1.0/tool_1.0_all.deb"))
    with pytest.raises(HostError, match="not in this host's ledger"):
        packages.remove(deb.key)
    assert state(host, "tool") == "ii 1.0"
    assert packages.adopt(deb)
    packages.remove(deb.key)
    assert state(host, "tool") == ""


def test_what_is_not_there_cannot_be_adopted(host: Host, packages: Packages) -> None:
    assert not packages.adopt(Known(Key("deb", "tool"), "1.0"))
    assert Ledger.open(host).entries() == {}


@pytest.mark.parametrize("field", ["Essential", "Protected"])
def test_an_essential_package_stays(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path, field: str
) -> None:
    deb = release(server, tmp_path, replace(TOOL, fields=((field, "yes"),)))
    install(packages, deb)
    with pytest.raises(HostError, match="essential"):
        packages.remove(deb.key)
    assert state(host, "tool") == "ii 1.0"


def test_what_others_need_stays_and_they_are_named(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    deb = release(server, tmp_path, TOOL)
    install(packages, deb)
    for name in ("first", "second"):
        dpkg(host, "--install", str(build(DebSpec(name, "1", depends="tool (>= 1.0)"), tmp_path)))
    with pytest.raises(HostError, match="first, second need it"):
        packages.remove(deb.key)
    assert state(host, "tool") == "ii 1.0"


# --- files that are left --------------------------------------------------------------------------------------------


def test_only_what_is_installed_is_kept(
    server: ReleaseServer, host: Host, packages: Packages, tmp_path: Path
) -> None:
    debs = [release(server, tmp_path, TOOL.at(version)) for version in ("1.0", "1.1", "1.2")]
    for deb in debs:
        packages.fetch(deb, packages.resolve(deb))
    shelf = host.state_dir / "debs/tool"
    assert len(list(shelf.iterdir())) == 3
    packages.apply(debs[1], packages.resolve(debs[1]))
    assert sorted(path.name for path in shelf.glob("*/*")) == ["fetched.json", "tool_1.1_all.deb"]
    packages.tidy([])
    assert len(list(shelf.iterdir())) == 1
    packages.remove(debs[1].key)
    packages.fetch(debs[0], packages.resolve(debs[0]))
    packages.tidy([debs[0].key])
    assert shelf.exists()
    packages.tidy([])
    assert not shelf.exists()
