"""Bad input: a clear message, the exit status of the design, nothing changed and no traceback.

Each is tried with the command that would apply it, and what etcd and the host have is compared before and after.
"""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.cli.program import run
from reconciler.host.driver import Host
from tests.cli.command import Command, Ran
from tests.cli.git import FILE, SET, Repository, artifacts
from tests.conftest import Etcd
from tests.debs import DebSpec, build, state
from tests.disks import small_disk
from tests.etcd_server import etcdctl
from tests.ports import free_ports
from tests.registry import registry
from tests.release_server import ReleaseServer

REFUSED, USAGE = 5, 64
NOT_TEXT = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 128 characters"


def everything(etcd: Etcd, host: Host) -> tuple[object, ...]:
    """All that etcd has below the test's keys, and all files of the host."""
    stored = [
        etcdctl(etcd.endpoint, "get", "--prefix", prefix, "--write-out", "json")
        for prefix in (etcd.prefix, etcd.lock_prefix)
    ]
    files = {str(path): path.read_bytes() for path in sorted(host.root.rglob("*")) if path.is_file()}
    return ([text.partition('"kvs"')[2] for text in stored], files)


@pytest.fixture
def unchanged(etcd: Etcd, host: Host) -> Iterator[None]:
    """What etcd and the host have is the same after the test."""
    before = everything(etcd, host)
    yield
    assert everything(etcd, host) == before


# --- revisions ------------------------------------------------------------------------------------------------------

IMAGE = '  - {name: a, repository: quay.io/a/a, tag: "1"}\n'
BAD_REVISIONS = [
    # what, the document, each line of the findings
    ("broken YAML", SET + "images: [a, b\n", ["4:1: this is no YAML: did not find expected ',' or ']'"]),
    ("not UTF-8", "\udcff", ["1:1: the byte 0xff is not UTF-8: save the file as UTF-8"]),
    (
        "a duplicate key",
        SET + "images: []\nimages: []\n",
        ["4:1: images is there twice; first on line 3, column 1"],
    ),
    (
        "an alias bomb",
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
        [
            "1:4: an anchor (&a) is not allowed: write the value out where it is used",
            "2:8: an alias (*a) is not allowed: write the value out",
        ],
    ),
    ("100,000 nested brackets", SET + "images: " + "[" * 100_000, ["3:72: this is nested more than 64 deep"]),
    (
        "a wrong type and an unknown field",
        SET + "images:\n  - {name: a, repository: quay.io/a/a, tag: [1], colour: red}\n",
        [
            f"4:45: images[0].tag: found a list; wanted: {NOT_TEXT}",
            "4:50: images[0].colour: this field is not known; known here: container, digest, name, private, "
            "repository, tag",
        ],
    ),
    (
        "a number for a tag",
        SET + "images:\n  - {name: a, repository: quay.io/a/a, tag: 1.10}\n",
        [
            "4:45: images[0].tag: found 1.10, which YAML reads as a number; tag is text: quote it "
            '(tag: "1.10")'
        ],
    ),
    (
        "a tag that begins with -",
        SET + 'images:\n  - {name: a, repository: quay.io/a/a, tag: "-x"}\n',
        [f'4:45: images[0].tag: found the text "-x"; wanted: {NOT_TEXT}'],
    ),
    (
        "two artifacts of one name",
        SET + "images:\n" + IMAGE + IMAGE,
        ["5:5: images[1]: image/a is there twice for every server; first at "],
    ),
    (
        "a kind that is nearly right",
        "apiVersion: reconciler/v1\nkind: ArtifactSets\n",
        ['2:7: kind: found the text "ArtifactSets"; did you mean ArtifactSet?'],
    ),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("text", "findings"), [row[1:] for row in BAD_REVISIONS], ids=[row[0] for row in BAD_REVISIONS]
)
def test_a_revision_is_refused_whole_with_every_finding(
    command: Command, repository: Repository, text: str, findings: list[str]
) -> None:
    place = repository.path / FILE
    place.parent.mkdir()
    place.write_bytes(text.encode(errors="surrogateescape"))
    commit = repository.commit_all()
    ran = command("--yes")
    assert (ran.status, ran.out) == (REFUSED, "")
    assert ran.err.startswith(f"reconcile: cannot use revision {commit[:12]}: ")
    for finding in findings:
        assert f"\n{FILE}:{finding}" in ran.err
    # `validate` says the same of the directory, before it is committed.
    checked = command("validate", repository.path)
    assert (checked.status, checked.out) == (REFUSED, "")
    for finding in findings:
        assert f"{FILE}:{finding}" in checked.err


@pytest.mark.usefixtures("unchanged")
def test_both_faults_of_one_document_are_all_that_is_said(command: Command, repository: Repository) -> None:
    repository.commit(SET + "images:\n  - {name: a, repository: quay.io/a/a, tag: [1], colour: red}\n")
    ran = command("--dry-run")
    assert ran.status == REFUSED
    assert ran.err.splitlines()[0].endswith(": 2 things are wrong")
    assert len(ran.err.splitlines()) == 3


def a_link(repository: Repository) -> None:
    (repository.path / "desired-state").mkdir()
    (repository.path / FILE).symlink_to("/etc/passwd")


def an_empty_directory(repository: Repository) -> None:
    (repository.path / "desired-state").mkdir()
    (repository.path / "desired-state/notes.txt").write_text("nothing here\n")


def no_documents(repository: Repository) -> None:
    (repository.path / "desired-state").mkdir()
    (repository.path / FILE).write_text("# nothing but this\n")


def too_much(repository: Repository) -> None:
    (repository.path / "desired-state").mkdir()
    (repository.path / FILE).write_text(SET + "#" * (10 << 20))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_link, f"{FILE}:1:1: is a symbolic link; put the file itself there"),
        (an_empty_directory, "an empty desired state would mean to remove everything"),
        (no_documents, "there is no ArtifactSet in it, and that must not mean to remove everything"),
        (too_much, f"{FILE}:1:1: with its 10,485,804 bytes the YAML files hold more than 10,485,760 bytes"),
        (lambda repository: None, "desired-state"),
    ],
    ids=["a link", "an empty directory", "no documents", "too much", "no directory"],
)
def test_a_tree_is_refused(
    command: Command, repository: Repository, make: Callable[[Repository], None], message: str
) -> None:
    make(repository)
    repository.commit_all()
    ran = command("--yes")
    assert (ran.status, ran.out) == (REFUSED, "")
    assert message in ran.err


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (
            "0123456789012345678901234567890123456789",
            "it has no such commit; it was never pushed there, or history was rewritten",
        ),
        ("mian", "no branch, tag or commit is called so; there are: main"),
    ],
)
def test_a_commit_that_does_not_exist(
    command: Command, repository: Repository, ref: str, message: str
) -> None:
    repository.commit(artifacts(images=[]))
    ran = command("--yes", "--ref", ref)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == f"reconcile: cannot find {ref} in {repository.path}: {message}\n"


# --- where it comes from --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("repo", "status", "message"),
    [
        (
            "ext::sh -c 'touch pwned'",
            USAGE,
            "it names a program to run; write a path, or a URL that begins with",
        ),
        (
            "https://ops:hunter2@git.example/x",
            USAGE,
            "put it into a file and name that with --git-password-file",
        ),
        ("https://127.0.0.1:1/x", 1, "cannot fetch https://127.0.0.1:1/x:"),
        ("ssh://127.0.0.1:1/x", 1, "cannot fetch ssh://127.0.0.1:1/x:"),
        ("/nowhere", 1, "it is not there; --repo takes a git URL, a repository or a directory"),
    ],
)
def test_a_repository_that_cannot_be_used(
    command: Command, tmp_path: Path, repo: str, status: int, message: str
) -> None:
    ran = command("--yes", env={"RECONCILER_REPO": repo})
    assert (ran.status, ran.out) == (status, "")
    assert message in ran.err
    assert "hunter2" not in ran.err
    assert not (tmp_path / "pwned").exists()


@pytest.mark.usefixtures("unchanged")
def test_etcd_out_of_reach_is_said_within_ten_seconds(command: Command, repository: Repository) -> None:
    repository.commit(artifacts(images=[]))
    (port,) = free_ports(1)
    began = time.monotonic()
    ran = command("--dry-run", "--etcd", f"http://127.0.0.1:{port}")
    assert time.monotonic() - began < 10
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"reconcile: cannot reach etcd at http://127.0.0.1:{port}: ")
    assert "look whether it runs and --etcd is right" in ran.err


@pytest.mark.usefixtures("unchanged")
def test_etcd_that_never_answers_is_said_within_ten_seconds(command: Command, repository: Repository) -> None:
    """A machine that takes the connection and is silent: a wrong port, a frozen process."""
    repository.commit(artifacts(images=[]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        began = time.monotonic()
        ran = command("status", "--etcd", f"http://127.0.0.1:{port}")
        assert time.monotonic() - began < 10
    assert (ran.status, ran.out) == (1, "")
    assert f"etcd at http://127.0.0.1:{port}" in ran.err


CORRUPT = [
    # the key below the prefix, what stands there, the verbs that must say so
    ("install/0/details/deb/a", "no JSON", ["--dry-run", "snapshot", "drift"]),
    ("install/0/details/image/a", '{"desired": 7}', ["--dry-run"]),
    ("status/current", "{", ["--dry-run", "status", "stop", "recover"]),
    ("pause", "[]", ["status", "resume"]),
    ("config/worker-timeout", "soon", ["config list"]),
]


@pytest.mark.parametrize(("key", "value", "verbs"), CORRUPT, ids=[row[0] for row in CORRUPT])
def test_a_corrupt_value_in_etcd_is_named_and_left_as_it_is(
    command: Command, repository: Repository, etcd: Etcd, host: Host, key: str, value: str, verbs: list[str]
) -> None:
    repository.commit(artifacts(images=[{"name": "a", "repository": "quay.io/a/a", "tag": "1"}]))
    # The short key that the detail belongs to: without it the detail counts for nothing.
    etcdctl(etcd.endpoint, "put", f"{etcd.prefix}install/0/debs/a", "v1")
    etcdctl(etcd.endpoint, "put", f"{etcd.prefix}install/0/containers/a", "1")
    etcdctl(etcd.endpoint, "put", f"{etcd.prefix}{key}", "--", value)
    before = everything(etcd, host)
    for verb in verbs:
        ran = command(*verb.split())
        assert (ran.status, ran.out) == (1, ""), (verb, ran)
        assert f"{etcd.prefix}{key}" in ran.err, verb
    assert everything(etcd, host) == before


def test_a_semaphore_that_is_none_is_named_and_never_overwritten(
    command: Command, etcd: Etcd, host: Host
) -> None:
    etcdctl(etcd.endpoint, "put", f"{etcd.lock_prefix}/semaphore", "--", "one")
    before = everything(etcd, host)
    for verb in ("lock status", "lock acquire", "lock release", "lock set-max 2"):
        ran = command(*verb.split())
        assert (ran.status, ran.out) == (1, ""), (verb, ran)
        assert f"{etcd.lock_prefix}/semaphore" in ran.err
        assert '"one"' in ran.err or "one" in ran.err
    assert everything(etcd, host) == before


# --- artifacts that do not exist, or are not what they should be ---------------------------------------------------


def deb(**more: str) -> dict[str, str]:
    return {"name": "a", "owner": "o", "repository": "a", "release": "v1.0", **more}


def released(releases: ReleaseServer, tmp_path: Path, version: str = "1.0") -> Path:
    file = build(DebSpec("a", version), tmp_path, f"a_{version}_amd64.deb")
    releases.add("o", "a", f"v{version}", file)
    return file


def check_nothing_installed(etcd: Etcd, host: Host, *names: str) -> None:
    for name in names:
        assert state(host, name) == ""
    assert etcdctl(etcd.endpoint, "get", "--prefix", "--keys-only", f"{etcd.prefix}install/") == ""


@pytest.mark.needs("dpkg")
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (deb(release="v9"), "v9"),
        (deb(name="b"), "b"),
        (deb(sha256="0" * 64), "0" * 64),
    ],
    ids=["a release that does not exist", "a package that the release has not", "a checksum that is wrong"],
)
def test_what_cannot_be_fetched_stops_the_pass_before_anything_changes(
    command: Command,
    repository: Repository,
    etcd: Etcd,
    host: Host,
    releases: ReleaseServer,
    tmp_path: Path,
    asked: dict[str, str],
    message: str,
) -> None:
    released(releases, tmp_path)
    other = build(DebSpec("c", "2.0"), tmp_path, "c_2.0_amd64.deb")
    releases.add("o", "c", "v2.0", other)
    there = {"name": "c", "owner": "o", "repository": "c", "release": "v2.0"}
    repository.commit(artifacts(debs=[asked, there]))
    ran = command("--yes")
    assert ran.status == 1
    problem = ran.err[ran.err.index("reconcile: ") :]
    assert asked["name"] in problem
    assert message in problem
    check_nothing_installed(etcd, host, "a", "b", "c")
    # What is mended and tried again goes through, as the message says.
    repository.commit(artifacts(debs=[deb(), there]))
    command("--yes").ok()
    assert state(host, "a") == "ii 1.0"


@pytest.mark.needs("podman", "docker-registry", "busybox")
@pytest.mark.usefixtures("podman_environment")
def test_a_tag_that_does_not_exist_stops_the_pass_before_anything_changes(
    command: Command, repository: Repository, etcd: Etcd, host: Host, tmp_path: Path
) -> None:
    with registry(tmp_path / "registry") as images:
        images.push("web", "1")
        wanted = {"name": "web", "repository": images.repository("web"), "tag": "7"}
        repository.commit(artifacts(images=[wanted]))
        ran = command("--yes")
        assert ran.status == 1
        assert f"{images.repository('web')}:7" in ran.err[ran.err.index("reconcile: ") :]
    check_nothing_installed(etcd, host)


@pytest.fixture(name="small_disk")
def full_soon(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "256k") as place:
        yield place


@pytest.mark.needs("dpkg")
def test_a_full_disk_stops_the_pass_before_anything_changes(
    command: Command,
    repository: Repository,
    etcd: Etcd,
    host: Host,
    releases: ReleaseServer,
    small_disk: Path,
    tmp_path: Path,
) -> None:
    """The state directory's: not even what is looked at to choose the release's file fits."""
    large = DebSpec(
        "a", "1.0", files=(("/usr/share/a/noise", "".join(f"{n * n % 99991:x}" for n in range(150_000))),)
    )
    releases.add("o", "a", "v1.0", build(large, tmp_path, "a_1.0_amd64.deb"))
    repository.commit(artifacts(debs=[deb()]))
    ran = command("--yes", "--state-dir", small_disk / "state")
    assert ran.status == 1
    problem = ran.err[ran.err.index("reconcile: ") :]
    assert (
        f"cannot write below {small_disk}/state/releases: No space left on device; make room there" in problem
    )
    check_nothing_installed(etcd, host, "a")
    command("--yes", "--state-dir", tmp_path / "room").ok()
    assert state(host, "a") == "ii 1.0"


@pytest.mark.needs("dpkg")
def test_a_host_without_room_stops_the_pass_before_anything_changes(
    command: Command,
    repository: Repository,
    etcd: Etcd,
    host: Host,
    releases: ReleaseServer,
    small_disk: Path,
    tmp_path: Path,
) -> None:
    """The whole root of the host is a small disk: the download would fit, and what it unpacks would not."""
    shutil.copytree(host.root, small_disk, dirs_exist_ok=True)
    for name, size in (("a", "1"), ("b", "50000")):
        spec = DebSpec(name, "1.0", fields=(("Installed-Size", size),))
        releases.add("o", name, "v1.0", build(spec, tmp_path, f"{name}_1.0_amd64.deb"))
    repository.commit(artifacts(debs=[deb(), {**deb(), "name": "b", "repository": "b"}]))
    ran = command("--yes", "--host-root", small_disk)
    assert ran.status == 1
    # Both are fetched at once: where a came first, it is counted with b.
    said = r"cannot put deb b 1\.0( and 1 more)? into .*: it takes 51\.2 MB and .* are free; make room there"
    assert re.search(said, ran.err), ran.err
    check_nothing_installed(etcd, Host(small_disk), "a", "b")


# --- calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dry-run --etdc x", "nothing knows the option --etdc; did you mean --etcd?\n`reconcile --help`"),
        ("--dryrun", "nothing knows the option --dryrun; did you mean --dry-run?"),
        (
            "status --wach",
            "nothing knows the option --wach; did you mean --watch?\n`reconcile status --help`",
        ),
        ("statsu", "nothing knows the verb statsu; did you mean status?"),
        ("server ad 1", "nothing knows the verb ad; did you mean add?\n`reconcile server --help`"),
        ("server", "server wants one of add, disable, enable, list, remove\n`reconcile server --help`"),
        ("server add x", 'N: found "x"; a number from 0 is wanted'),
        ("server add -- -1", 'N: found "-1"; a number from 0 is wanted'),
        ("server add", "Missing argument 'N'"),
        ("status extra", "unexpected extra argument (extra)"),
        ("--dry-run --server x", '--server: found "x"; a number from 0 is wanted'),
        ("--dry-run --server 1 --all", "--server and --all: one server, or all of them"),
        ("--server 1", "--server: only with --dry-run; a pass is for this server"),
        ("--dry-run --yes", "--yes and --dry-run: a dry run applies nothing"),
        ("--yes status", "--yes: for a pass only, not for `reconcile status`"),
        (
            "--dry-run --recorded nowhere.json",
            "cannot read the snapshot nowhere.json: No such file or directory",
        ),
        ("--dry-run --etcd 127.0.0.1:2379", "--etcd: found"),
        ("lock set-max -- -1", 'N: found "-1"; a number from 0 is wanted'),
        ("lock acquire --machine-id=", "an empty machine id cannot hold a slot"),
        ("lock release --machine-id=", "an empty machine id cannot hold a slot"),
        ("lock acquire --wait soon", "--wait: 'soon' is no duration"),
        ("fleetlock --lock-groups a", "cannot serve FleetLock: say where, with --listen HOST:PORT"),
        ("config set poll 1m", "nothing knows the setting poll"),
        ("config get check-update-intervall", "did you mean check-update-interval?"),
        (
            "config set check-update-interval soon",
            "cannot set check-update-interval to the text \"soon\": 'soon' is no duration",
        ),
        ("config set github-token hunter2", "github-token is a secret: give it on standard input"),
        ("pause --reason x --until yesterday", "cannot read --until yesterday: give RFC 3339"),
        (
            "pause --reason x --until 2020-01-01T00:00:00Z",
            "cannot pause until 2020-01-01T00:00:00Z: that is over",
        ),
        ("pause", "Missing option '--reason'"),
        ("etcd-roles --servers 0,a", "cannot read --servers: 'a' is no server's number; write it as 0,1,2"),
        (
            "etcd-roles --servers 0=12",
            "'12' is no machine id; it is what stands in the server's /etc/machine-id",
        ),
        ("etcd-roles --servers 0,1 --no-lead 3", "cannot read --no-lead 3: server 3 is none of --servers"),
        ("etcd-roles --name a/b", "cannot use the name 'a/b'"),
        ("validate /nowhere", "cannot validate /nowhere: it is no directory, and no revision is called so"),
        (
            "agent --etcd http://127.0.0.1:2379",
            "agent must be told which desired state this server follows: give --repo",
        ),
    ],
)
def test_a_wrong_call(
    command: Command,
    repository: Repository,
    capsys: pytest.CaptureFixture[str],
    words: str,
    message: str,
) -> None:
    repository.commit(artifacts(images=[]))
    environment = command.whole_environment({"RECONCILER_REPO": ""} if words.startswith("agent") else {})
    # In this process: a wrong call ends before anything is imported that minds.
    status = run(words.split(), environment)
    shown = capsys.readouterr()
    assert (status, shown.out) == (USAGE, "")
    assert message in shown.err
    assert "hunter2" not in shown.err


@pytest.mark.usefixtures("unchanged")
def test_a_variable_that_nothing_knows(command: Command) -> None:
    ran = command("--dry-run", env={"RECONCILER_ETDC": "http://127.0.0.1:1"})
    assert (ran.status, ran.out) == (USAGE, "")
    assert "nothing knows the variable RECONCILER_ETDC; did you mean RECONCILER_ETCD?" in ran.err


@pytest.mark.usefixtures("unchanged")
def test_a_key_of_the_configuration_file_that_nothing_knows(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("lrn: 1\nreop: /srv/fleet\n")
    ran = command("--dry-run", "--config", file)
    assert (ran.status, ran.out) == (USAGE, "")
    assert f"{file}:2:1: reop: this field is not known; did you mean repo?" in ran.err


def test_a_snapshot_that_is_none(command: Command, repository: Repository, tmp_path: Path) -> None:
    repository.commit(artifacts(images=[]))
    file = tmp_path / "snapshot.json"
    for text in ("", "{}", '{"format_version": 1, "servers": 7}', "[" * 100_000):
        file.write_text(text)
        ran: Ran = command("--dry-run", "--recorded", file)
        assert (ran.status in (1, USAGE), ran.out) == (True, ""), (text[:40], ran)
        assert str(file) in ran.err
