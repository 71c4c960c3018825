"""A revision's files to `Desired`: what a full one gives, and every way in which documents are wrong, alone and together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.artifact import AptDeb, Bind, Check, Container, Image, OsImage, ReleaseDeb
from reconciler.core.state import (
    ArtifactSet,
    Budget,
    Desired,
    OsDriver,
    RebootPolicy,
    Revision,
    RolloutPolicy,
    ServerGroup,
    WavePolicy,
)
from reconciler.core.window import Window
from reconciler.errors import Refused
from reconciler.wire.desired import read

REVISION = Revision("1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d", ".", "main")

SET = "apiVersion: reconciler/v1\nkind: ArtifactSet\n"
GROUP = "apiVersion: reconciler/v1\nkind: ServerGroup\n"
POLICY = "apiVersion: reconciler/v1\nkind: RolloutPolicy\n"
DIGEST = "sha256:" + "0123456789abcdef" * 4

FULL_SET = f"""{SET}groups: [boot]
images:
  - name: etcd
    repository: quay.io/cybozu/etcd
    tag: 3.5.4.1
    digest: {DIGEST}
    private: true
    container:
      args: [--name, "boot-$(lrn)"]
      binds:
        - {{name: data, source: /var/lib/etcd-container, dest: /var/lib/etcd, readOnly: true}}
        - {{name: etc, source: /etc/etcd, dest: /etc/etcd}}
      environment: {{B: "2", A: "1"}}
      environmentFile: /etc/etcd/env
      unit: etcd-container
      update: stop-all
      after: [vault]
      started: [unseal]
      health: {{http: "http://127.0.0.1:2379/health", timeout: 1m30s}}
  - {{name: vault, repository: quay.io/cybozu/vault, tag: 1.10.2.1, container: {{health: {{hook: up}}}}}}
debs:
  - {{name: etcdpasswd, owner: cybozu-go, repository: etcdpasswd, release: v1.4.0, sha256: {"0123456789abcdef" * 4}}}
  - {{name: chrony, version: 4.3-2+deb12u1}}
osImage: {{channel: stable, version: 3139.2.1}}
"""

FULL_GROUP = f"""{GROUP}name: boot
servers: ["0-2", 7]
osImage: {{driver: command}}
reboot:
  strategy: reboot
  lockGroup: Blue
  slots: 2
  windows: [{{start: "Thu 23:00", length: 1h30m}}, {{start: "14:00", length: 1h}}]
  timezone: Europe/Berlin
  before: [drain]
  after: [undrain]
  warn: 5m
  health: [{{tcp: "127.0.0.1:22", timeout: 5m}}]
"""

FULL_POLICY = f"""{POLICY}waves: [{{servers: [0], soak: 10m}}, {{groups: [boot2], servers: ["1-2"]}}]
timeout: 60m
maxFailures: 2%
prune: false
maxRemovals: 0
requirePins: false
drift: repair
"""


def files(*texts: str) -> list[tuple[str, bytes]]:
    return [(name, text.encode()) for name, text in zip("abcdefgh", texts, strict=False)]


def test_a_full_revision() -> None:
    etcd = Container(
        args=("--name", "boot-$(lrn)"),
        binds=(
            Bind("data", "/var/lib/etcd-container", "/var/lib/etcd", True),
            Bind("etc", "/etc/etcd", "/etc/etcd"),
        ),
        environment=(("A", "1"), ("B", "2")),
        environment_file="/etc/etcd/env",
        unit="etcd-container",
        update="stop-all",
        after=("vault",),
        started=("unseal",),
        health=Check("http", "http://127.0.0.1:2379/health", 90.0),
    )
    group2 = f"{GROUP}name: boot2\nservers: [9]\nosImage: {{directory: /srv}}\n"
    assert read(files(FULL_SET, f"{FULL_GROUP}---\n{group2}", FULL_POLICY), REVISION) == Desired(
        REVISION,
        (
            ArtifactSet(
                (
                    Image("etcd", "quay.io/cybozu/etcd", "3.5.4.1", DIGEST, True, etcd),
                    Image(
                        "vault",
                        "quay.io/cybozu/vault",
                        "1.10.2.1",
                        container=Container(health=Check("hook", "up")),
                    ),
                    ReleaseDeb("etcdpasswd", "cybozu-go", "etcdpasswd", "v1.4.0", "0123456789abcdef" * 4),
                    AptDeb("chrony", "4.3-2+deb12u1"),
                    OsImage("stable", "3139.2.1"),
                ),
                frozenset({"boot"}),
            ),
        ),
        (
            ServerGroup(
                "boot",
                frozenset({0, 1, 2, 7}),
                OsDriver("command", reboot=True),
                RebootPolicy(
                    strategy="reboot",
                    lock_group="Blue",
                    slots=2,
                    windows=(Window(3, 23, 0, 5400.0), Window(None, 14, 0, 3600.0)),
                    timezone="Europe/Berlin",
                    before=("drain",),
                    after=("undrain",),
                    warn=300.0,
                    health=(Check("tcp", "127.0.0.1:22", 300.0),),
                ),
            ),
            ServerGroup("boot2", frozenset({9}), OsDriver("netboot", "/srv", False)),
        ),
        RolloutPolicy(
            waves=(
                WavePolicy(frozenset({0}), soak=600.0),
                WavePolicy(frozenset({1, 2}), frozenset({"boot2"})),
            ),
            timeout=3600.0,
            max_failures=Budget(2, True),
            prune=False,
            max_removals=0,
            drift="repair",
        ),
    )


def test_what_is_not_said_has_its_default() -> None:
    minimal = f"{SET}images: [{{name: a, repository: q.io/a, tag: v1}}]\n---\n{GROUP}name: g\nservers: [1]\n---\n{POLICY}"
    assert read(files(minimal), REVISION) == Desired(
        REVISION,
        (ArtifactSet((Image("a", "q.io/a", "v1"),)),),
        (ServerGroup("g", frozenset({1})),),
        RolloutPolicy(),
    )


@pytest.mark.parametrize(("text", "reboots"), [("reboot: false", False), ("reboot: true", True)])
def test_a_command_says_itself_whether_it_needs_a_reboot(text: str, reboots: bool) -> None:
    group = f"{GROUP}name: g\nservers: [1]\nosImage: {{driver: command, {text}}}\n"
    [found] = read(files(SET, group), REVISION).groups
    assert found.os_image == OsDriver("command", "/var/lib/netboot", reboots)


def image(name: str, more: str = "") -> str:
    return f"{{name: {name}, repository: q.io/a, tag: v1{more}}}"


WRONG: list[tuple[str, list[str], list[str]]] = [
    (
        "one image twice in a set",
        [f"{SET}images: [{image('a')}, {image('a')}]"],
        ["a:3:50: images[1]: image/a is there twice for every server; first at a:3:10"],
    ),
    (
        "one package twice, in two files",
        [f"{SET}debs: [{{name: a, version: v1}}]", f"{SET}groups: [g]\ndebs: [{{name: a, owner: o, repository: r, release: v1}}]\n---\n{GROUP}name: g\nservers: [1]"],
        ["b:4:8: debs[0]: deb/a is there twice for servers of g; first at a:3:8"],
    ),
    (
        "one package twice for the servers of two groups",
        [f"{SET}groups: [default, g]\ndebs: [{{name: a, version: v1}}]", f"{SET}groups: [g, default]\ndebs: [{{name: a, version: v2}}]", f"{GROUP}name: g\nservers: [1]"],
        ["b:4:8: debs[0]: deb/a is there twice for servers of default, g; first at a:4:8"],
    ),
    (
        "two OS images",
        [f"{SET}osImage: {{channel: a, version: b}}\n---\n{SET}osImage: {{channel: a, version: b}}"],
        ["a:7:10: osImage: os-image is there twice for every server; first at a:3:10"],
    ),
    (
        "one unit of two images",
        [f"{SET}images: [{image('a', ', container: {unit: x}')}, {image('b', ', container: {unit: x.service}')}]"],
        ["a:3:129: images[1].container.unit: x.service is the unit of a too, for every server; first at a:3:67"],
    ),
    (
        "an agent's own container that is more than its unit",
        [f"{SET}images: [{image('reconciler', ', container: {args: [x], environment: {A: b}, unit: x}')}]"],
        [
            "a:3:76: images[0].container.args: it stands in the agent's own unit on the host, and not in git: here is only `unit`",
            "a:3:94: images[0].container.environment: it stands in the agent's own unit on the host, and not in git: here is only `unit`",
        ],
    ),
    (
        "an agent that is stopped before anything is started",
        [f"{SET}images: [{image('reconciler', ', container: {unit: x, update: stop-all}')}]"],
        ["a:3:87: images[0].container.update: who stops the agent first has nobody who starts it: rolling or parallel"],
    ),
    (
        "a group that does not exist",
        [f"{SET}groups: [bot]", f"{GROUP}name: boot\nservers: [1]"],
        ["a:3:10: groups[0]: there is no server group bot; did you mean boot?"],
    ),
    (
        "a wave of a group that does not exist",
        [SET, f"{POLICY}waves: [{{groups: [boot]}}]"],
        ["b:3:19: waves[0].groups[0]: there is no server group boot; known here: default"],
    ),
    (
        "one group twice",
        [SET, f"{GROUP}name: a\nservers: [1]\n---\n{GROUP}name: a\nservers: [2]"],
        ["b:8:7: name: a is there twice; first at b:3:7"],
    ),
    (
        "the default group",
        [SET, f"{GROUP}name: default\nservers: [1]"],
        ["b:3:7: name: default is the group of the servers that are in no other: give this one another name"],
    ),
    (
        "servers in two groups",
        [SET, f"{GROUP}name: a\nservers: [\"0-20\"]", f"{GROUP}name: b\nservers: [7, 30]\n---\n{GROUP}name: c\nservers: [\"10-40\"]"],
        [
            "c:4:10: servers: server 7 is also in group a, at b:4:10; a server is in one group",
            "c:9:10: servers: server 30 is also in group b, at c:4:10; a server is in one group",
            "c:9:10: servers: servers 10, 11, 12, 13, 14 and 6 more are also in group a, at b:4:10; a server is in one group",
        ],
    ),
    (
        "a range that runs backwards",
        [SET, f"{GROUP}name: a\nservers: [\"4-0\"]"],
        ['b:4:11: servers[0]: the range "4-0" runs backwards: write "0-4"'],
    ),
    (
        "a server that is no number",
        [SET, f"{GROUP}name: a\nservers: [\"4\", 4.0, -1, 100000, \"0-100000\"]"],
        [
            'b:4:11: servers[0]: found the text "4"; wanted: a server\'s number from 0 to 99999, or a range such as "0-4"',
            "b:4:16: servers[1]: found 4.0, which YAML reads as a number; wanted: a server's number from 0 to 99999, or a range such as \"0-4\"",
            "b:4:21: servers[2]: found the number -1; at least 0 is wanted",
            "b:4:25: servers[3]: found the number 100000; at most 99999 is wanted",
            'b:4:33: servers[4]: found the text "0-100000"; wanted: a server\'s number from 0 to 99999, or a range such as "0-4"',
        ],
    ),
    (
        "more servers than there can be",
        [SET, "---\n".join(f"{GROUP}name: g{index}\nservers: [\"0-99999\"]\n" for index in range(3))],
        [
            "b:9:10: servers: servers 0, 1, 2, 3, 4 and 99995 more are also in group g0, at b:4:10; a server is in one group",
            "b:14:11: servers[0]: with this more than 200,000 servers are named in all",
        ],
    ),
    (
        "different slots for one lock group",
        [SET, f"{GROUP}name: a\nservers: [1]\nreboot: {{slots: 1}}\n---\n{GROUP}name: b\nservers: [2]\nreboot: {{slots: 2}}\n---\n{GROUP}name: c\nservers: [3]\n---\n{GROUP}name: d\nservers: [4]\nreboot: {{slots: 2, lockGroup: x}}"],
        ["b:11:17: reboot.slots: lock group default has 2 slots here and 1 at b:5:17"],
    ),
    (
        "an image after one that does not exist",
        [f"{SET}images: [{image('a', ', container: {after: [vaultt]}')}, {image('vault')}]"],
        ["a:3:69: images[0].container.after[0]: there is no image vaultt; did you mean vault?"],
    ),
    (
        "an image after itself",
        [f"{SET}images: [{image('a', ', container: {after: [a]}')}]"],
        ["a:3:68: images[0].container.after: this goes in a circle: a after a"],
    ),
    (
        "images that are after each other",
        [f"{SET}images:\n- {image('a', ', container: {after: [b]}')}\n- {image('b', ', container: {after: [c]}')}\n- {image('c', ', container: {after: [b]}')}"],
        ["a:5:61: images[1].container.after: this goes in a circle: b after c after b"],
    ),
    (
        "pins that are required",
        [f"{SET}images: [{image('a')}, {image('b', ', digest: ' + DIGEST)}]\ndebs: [{{name: a, version: v1}}, {{name: b, owner: o, repository: r, release: v1}}]", f"{POLICY}requirePins: true"],
        [
            "a:3:10: images[0]: image/a needs a digest: the RolloutPolicy has requirePins",
            "a:4:32: debs[1]: deb/b needs a sha256: the RolloutPolicy has requirePins",
        ],
    ),
    (
        "two policies",
        [SET, POLICY, POLICY],
        ["c:1:1: this is a second RolloutPolicy; the first is at b:1:1"],
    ),
    (
        "a server in two waves",
        [SET, f"{POLICY}waves: [{{servers: [0, 1]}}, {{servers: [2]}}, {{groups: [a], servers: [\"1-2\"]}}]", f"{GROUP}name: a\nservers: [0]"],
        [
            "b:3:44: waves[2]: server 2 is in wave 2 too, at b:3:28",
            "b:3:44: waves[2]: servers 0, 1 are in wave 1 too, at b:3:9",
        ],
    ),
    (
        "one group in two waves",
        [SET, f"{POLICY}waves: [{{groups: [default]}}, {{groups: [default]}}]"],
        ["b:3:30: waves[1]: group default is in wave 1 too, at b:3:9"],
    ),
    (
        "a server of no group, in a wave and in that of the group default",
        [SET, f"{POLICY}waves: [{{servers: [0, 1]}}, {{groups: [default]}}, {{servers: [2]}}]", f"{GROUP}name: a\nservers: [0]"],
        [
            "b:3:28: waves[1]: server 1 is in group default, and in wave 1 too, at b:3:9",
            "b:3:49: waves[2]: server 2 is in wave 2 too, at b:3:28",
        ],
    ),
    (
        "an empty wave",
        [SET, f"{POLICY}waves: [{{soak: 1m}}]"],
        ["b:3:9: waves[0]: found an object; wanted: a wave: servers or groups, and how long to soak"],
    ),
    (
        "a failure budget",
        [SET, f"{POLICY}maxFailures: 101%"],
        ['b:3:14: maxFailures: found the text "101%"; wanted: a number of servers, or a percentage of the wave such as 2%'],
    ),
    (
        "durations",
        [SET, f"{POLICY}timeout: 0s\nwaves: [{{servers: [0], soak: 30m1h}}]"],
        [
            "b:3:10: timeout: is 0; it must be longer",
            "b:4:30: waves[0].soak: '30m1h' has its units twice or out of order: write numbers with units, the largest first, each once: 1h30m, 10m, 60s or 500ms",
        ],
    ),
    (
        "a driver's fields with the other driver",
        [SET, f"{GROUP}name: a\nservers: [1]\nosImage: {{reboot: true}}\n---\n{GROUP}name: b\nservers: [2]\nosImage: {{driver: command, directory: /x}}\n---\n{GROUP}name: c\nservers: [3]\nosImage: {{driver: pxe}}"],
        [
            "b:5:11: osImage.reboot: this field is not known; known here: directory, driver",
            "b:11:28: osImage.directory: this field is not known; known here: driver, reboot",
            'b:17:19: osImage.driver: found the text "pxe"; known here: command, netboot',
        ],
    ),
    (
        "another kind",
        [f"{SET}---\napiVersion: reconciler/v1\nkind: ArtefactSet"],
        ['a:5:7: kind: found the text "ArtefactSet"; did you mean ArtifactSet?'],
    ),
    (
        "no kind, no mapping, another version",
        [f"a: 1\n---\n[a]\n---\nkind: 3\n---\nkind: ArtifactSet\napiVersion: v2"],  # noqa: F541
        [
            "a:1:1: kind is missing; wanted: ArtifactSet, ServerGroup, RolloutPolicy",
            "a:3:1: found a list; a document is a mapping with apiVersion and kind",
            "a:5:7: kind: found the number 3; known here: ArtifactSet, RolloutPolicy, ServerGroup",
            'a:8:13: apiVersion: found the text "v2"; wanted: reconciler/v1',
        ],
    ),
    (
        "YAML, schema and other documents at once, in the order of files and places",
        [f"{SET}groups: [nope]\nimages: [{image('a')}]\nimages: []", f"{SET}imagess: []\nosImage: *x", f"{GROUP}name: g\nservers: 1"],
        [
            "a:3:10: groups[0]: there is no server group nope; known here: default, g",
            "a:5:1: images is there twice; first on line 4, column 1",
            "b:3:1: imagess: this field is not known; did you mean images?",
            "b:4:10: an alias (*x) is not allowed: write the value out",
            "c:4:10: servers: found the number 1; wanted: server numbers and ranges of them",
        ],
    ),
    (
        "a name that is known only from a document that is refused counts as known",
        [f"{SET}groups: [g]\nimages: [{image('a', ', container: {after: [b]}')}]", f"{SET}images: [{image('b', ', x: 1')}]", f"{GROUP}name: g\nservers: []"],
        [
            "b:3:49: images[0].x: this field is not known; known here: container, digest, name, private, repository, tag",
            "c:4:10: servers: is empty; give at least one, or leave the field out",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "messages"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_said_with_its_place(texts: list[str], messages: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        read(files(*texts), REVISION)
    assert [str(finding) for finding in caught.value.findings] == messages
    number = f"{len(messages)} things are wrong" if len(messages) > 1 else "one thing is wrong"
    assert str(caught.value) == "\n".join([f"cannot use revision 1a2b3c4d5e6f: {number}", *messages])


WINDOWS: list[tuple[str, str]] = [
    ('{start: "2:00pm", length: 1h}', "'2:00pm' has '2:00pm' where a time of day belongs"),
    ('{start: "Thu 23:00", length: 169h}', "a window of '169h' every week never closes"),
    ('{start: "Someday 23:00", length: 1h}', "'Someday"),
    ('{start: "14:00", length: 0s}', "never opens"),
]


@pytest.mark.parametrize(("window", "message"), WINDOWS)
def test_windows_are_checked_where_they_stand(window: str, message: str) -> None:
    group = f"{GROUP}name: g\nservers: [1]\nreboot: {{windows: [{window}], timezone: Mars/Olympus}}"
    with pytest.raises(Refused) as caught:
        read(files(SET, group), REVISION)
    [first, second] = map(str, caught.value.findings)
    assert first.startswith("b:5:20: reboot.windows[0]: ")
    assert message in first
    assert "reboot.timezone: 'Mars/Olympus' is no time zone" in second


def test_the_same_name_may_stand_for_other_servers() -> None:
    texts = [
        f"{SET}groups: [a]\nimages: [{image('x', ', container: {unit: u}')}]",
        f"{SET}groups: [b, default]\nimages: [{image('x', ', container: {unit: u}')}]",
        f"{SET}debs: [{{name: x, version: v1}}]",
        f"{GROUP}name: a\nservers: [0]\n---\n{GROUP}name: b\nservers: [1]",
    ]
    assert len(read(files(*texts), REVISION).sets) == 3


@pytest.mark.parametrize(
    "texts", [[], [""], ["# nothing\n---\n"], [POLICY], [f"{GROUP}name: a\nservers: [0]"]]
)
def test_a_revision_without_an_artifact_set_is_refused(texts: list[str]) -> None:
    with pytest.raises(Refused, match="must not mean to remove everything"):
        read(files(*texts), REVISION)


def test_an_empty_artifact_set_says_that_nothing_is_wanted() -> None:
    assert read(files(SET), REVISION).sets == (ArtifactSet(()),)


def test_limits_hold_over_all_files_together() -> None:
    megabyte = (SET + "#" * (1 << 20)).encode()
    with pytest.raises(Refused, match=r"\n9:1:1: with this file the desired state is over 10 MiB$"):
        read([(str(number), megabyte) for number in range(12)], REVISION)
    many = (SET + f"x: [{'1,' * 300_000}]").encode()
    with pytest.raises(Refused) as caught:
        read([("a", many), ("b", many)], REVISION)
    assert any(finding.file == "b" and "more than" in finding.problem for finding in caught.value.findings)


def test_only_so_many_findings_are_shown() -> None:
    text = SET + "images:\n" + "- {name: 1, repository: 2, tag: 3}\n" * 2000
    with pytest.raises(Refused) as caught:
        read(files(text), REVISION)
    assert len(caught.value.findings) == 1000


def test_a_directory_is_named_by_its_place() -> None:
    with pytest.raises(Refused, match="cannot use directory /srv/fleet: there is no ArtifactSet"):
        read([], Revision("sha256:" + "0" * 64, "/srv/fleet"))


def test_a_long_chain_is_no_circle() -> None:
    chain = [f"- {image(f'i{n}', f', container: {{after: [i{n + 1}]}}')}" for n in range(5000)]
    desired = read(files(f"{SET}images:\n" + "\n".join(chain) + f"\n- {image('i5000')}"), REVISION)
    assert len(desired.sets[0].artifacts) == 5001


PIECES = st.sampled_from(
    [SET, GROUP, POLICY, FULL_SET, FULL_GROUP, FULL_POLICY, "---\n", "name: g\n", "servers: [1]\n", "images: []\n", "- a\n", "{", "&a ", "\t", "timeout: 1m\n"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=20)), max_size=6), st.data())
def test_any_input_is_read_or_refused(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    if text:
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut] + data.draw(st.text(max_size=3)) + text[cut + data.draw(st.integers(0, 5)) :]
    try:
        desired = read([("f", text.encode("utf-8", "replace"))], REVISION)
    except Refused as refused:
        assert str(refused).startswith("cannot use revision 1a2b3c4d5e6f: ")
    else:
        assert isinstance(desired, Desired)
