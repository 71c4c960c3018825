"""The doors through which input comes from outside, in one table: what reads it, what good input looks like, what may be raised.

| door | who writes it |
| --- | --- |
| desired documents, YAML, schemas | git |
| references, versions, tags, Debian versions | git, etcd |
| windows, cron lines, durations, time zones | git, etcd |
| git URLs, refs, paths, tag patterns | options |
| webhooks: headers and bodies | HTTP |
| etcd values: rollout, phase, pins, statuses, steps, details, machines, agents, notices, history, settings | etcd |
| semaphore, holders, waiters, released slots | etcd, Locksmith |
| keys | etcd |
| snapshot | `--recorded FILE` |
| configuration, policy, options | the host |
| ledger, what this host accepted last, registry credentials | the host's disk |

A registry's, a release server's and FleetLock's HTTP have a server or client of their own in `test_http`.
`test_doors` throws hypothesis at each door; `guided` does so with coverage, where `atheris` is installed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reconciler.cli.options import TABLE, resolve
from reconciler.core.artifact import Image, Key, Known
from reconciler.core.duration import parse_duration
from reconciler.core.schedule import may_open, next_time, parse_schedule
from reconciler.core.state import Revision
from reconciler.core.version import compare_debian, direction, highest, parse_tag
from reconciler.core.window import is_open, next_opening, parse_timezone, parse_window
from reconciler.desired.memory import recall
from reconciler.desired.source import Source, host_of, is_url, masked, user_of
from reconciler.errors import ReconcilerError
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from reconciler.host.registry import login_from, repository_of
from reconciler.store.keys import Keys, artifact_in, number_in
from reconciler.web.webhook import Followed, is_genuine, read_delivery, repository_path, why_ignored
from reconciler.wire import lock, records
from reconciler.wire.desired import read
from reconciler.wire.settings import (
    SETTINGS,
    decode_settings,
    read_configuration,
    read_policy,
    stored_setting,
)
from reconciler.wire.yaml import parse

WALL = 1_700_000_000.0
_SET = b"apiVersion: reconciler/v1\nkind: ArtifactSet\n"


@dataclass(frozen=True, slots=True)
class Door:
    """`read` takes bytes; besides a `ReconcilerError` it may raise `also`, as what calls it expects. `seeds` are good input."""

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    also: tuple[type[Exception], ...] = ()

    def opened(self, data: bytes) -> None:
        """Read `data`; returns where it was read, or refused as it should be."""
        try:
            self.read(data)
        except Exception as error:
            if not self.refuses(error):
                raise

    def refuses(self, error: Exception) -> bool:
        """Whether `error` is one that those who knock here expect."""
        return isinstance(error, (ReconcilerError, *self.also))


def _text(read: Callable[[str], object], data: bytes) -> object:
    return read(data.decode("utf-8", "surrogateescape"))


def _texts(read: Callable[[list[str]], object], data: bytes) -> object:
    """Several texts, one a line."""
    return read(data.decode("utf-8", "replace").split("\n"))


def _window(parts: list[str]) -> object:
    start, length, zone = [*parts, "", "", ""][:3]
    windows = (parse_window(start, length),)
    parse_timezone(zone)
    return is_open(windows, zone, WALL), next_opening(windows, zone, WALL)


def _schedule(text: str) -> object:
    parse_schedule(text)
    return may_open(text, "UTC", WALL), next_time(text, "UTC", WALL)


def _versions(parts: list[str]) -> object:
    before, after = [*parts, "", ""][:2]
    key = Key("image", "x")
    tags = Image("x", "r/x", before), Image("x", "r/x", after)
    return (
        direction(*tags), direction(Known(key, before), Known(key, after)), parse_tag(before), highest(parts),
        compare_debian(before, after) == -compare_debian(after, before),
    )  # fmt: skip


def _source(parts: list[str]) -> object:
    repo, ref, path, pattern, rewind = [*parts, *[""] * 5][:5]
    source = Source(repo, ref or None, path or "x", pattern or None, allow_rewind=rewind or None)
    return source.local, source.shown, source.identity, source.mirror, source.wanted, source.directory


def _url(text: str) -> object:
    return is_url(text), masked(text), host_of(text), user_of(text), repository_path(text)


def _delivery(data: bytes) -> object:
    """Lines of headers, an empty one, and the body."""
    head, _, body = data.partition(b"\n\n")
    lines = (line.partition(":") for line in head.decode("latin-1").split("\n"))
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    is_genuine(b"secret", headers, body)
    delivery = read_delivery(headers, body)
    return [why_ignored(delivery, Followed(repo, "main", pattern)) for repo, pattern in _FOLLOWED]


_FOLLOWED = (("https://git.example.com/ops/fleet.git", None), ("git@h:ops/fleet", "v*"), (".", None))


def _key(text: str) -> object:
    keys = Keys()
    return keys.lock_key(text), keys.agent_in(text), number_in(text), artifact_in(text)


def _settings(parts: list[str]) -> object:
    return decode_settings(dict(zip(SETTINGS, parts, strict=False)))


def _setting(parts: list[str]) -> object:
    name, text = [*parts, "", ""][:2]
    return stored_setting(name, text)


def _options(parts: list[str]) -> object:
    """One option's value: which, and its text."""
    name, text = [*parts, "", ""][:2]
    chosen = name if name in TABLE else sorted(TABLE)[len(name) % len(TABLE)]
    return resolve({chosen: text, "config": "/dev/null"}, {}, ordinary_user=True)


def _file(read: Callable[[Path], object], name: str, data: bytes) -> object:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        (Path(directory) / name).write_bytes(data)
        return read(Path(directory))


def _credentials(directory: Path) -> object:
    return login_from(directory / "auth.json", repository_of("quay.io/cybozu/etcd"))


def _ledger(directory: Path) -> object:
    return Ledger.open(Host(root=directory, state_dir=directory)).entries()


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


_ARTIFACT = {"name": "x", "repository": "r.example/x", "tag": "1"}
_FULL_SET = (
    _SET
    + b"images:\n- {name: a, repository: r.example/a, tag: '1', container: {update: stop-all, after: [b], health: {http: 'http://h/', timeout: 1m}}}\n"
    b"- {name: b, repository: r.example/b, tag: '2', container: {binds: [{name: d, source: /d, dest: /d}]}}\n"
    b"debs: [{name: c, version: '1:2-3'}, {name: d, owner: o, repository: r, release: v1}]\nosImage: {channel: stable, version: 1.2.3}\n"
)
_GROUP = (
    b"---\napiVersion: reconciler/v1\nkind: ServerGroup\nname: g\nservers: ['0-4', 7]\nreboot: {strategy: etcd-lock, slots: 2, "
    b"windows: [{start: 'Thu 23:00', length: 1h}], timezone: Europe/Berlin, before: [h], health: [{tcp: '1:2', timeout: 5m}]}\n"
)
_POLICY = b"---\napiVersion: reconciler/v1\nkind: RolloutPolicy\nwaves: [{servers: [0], soak: 1m}]\nmaxFailures: 2%\n"
_ROLLOUT = _json(
    {"version": "1a", "servers": [0, 1], "stop": False, "started_at": "2026-01-02T03:04:05.000000006Z", "plan_format": 1,
     "phases": ["prefetch"], "path": "d", "waves": [{"servers": [0, 1], "soak": 0, "max_failures": 0}], "timeout": 60,
     "out": {"1": "failed: x"}, "outcome": "complete", "message": ""}
)  # fmt: skip
_STEP = _json(
    {
        "rollout": "r",
        "state": "running",
        "attempt": 1,
        "boot_id": "b",
        "target": "1",
        "message": "",
        "at": "t",
    }
)
_DETAIL = _json(
    {"desired": _ARTIFACT, "found": "sha256:0", "revision": "1a", "installed_at": "2026-01-02T03:04:05Z"}
)
_NOTICE = _json({"who": "a", "why": "b", "since": "2026-01-02T03:04:05Z", "until": "2026-01-02T03:04:05Z"})
_HOLDER = _json(
    {
        "machineID": "m",
        "startTime": 1,
        "lrn": 0,
        "bootID": "b",
        "reason": "r",
        "revision": "1",
        "source": "agent",
    }
)
_FINISHED = _json(
    {"revision": "1", "servers": [0], "failures": {"0": "x"}, "outcome": "complete", "message": "", "started": "a", "finished": "b"}
)  # fmt: skip
_SNAPSHOT = _json(
    {"format_version": 1, "etcd_revision": 5, "servers": [{"lrn": 0, "installed": [{"kind": "image", "name": "x", "version": "1"}]}]}
)  # fmt: skip
_HOOK = (
    b"X-GitHub-Event: push\nX-Hub-Signature-256: sha256=00\nX-Gitlab-Token: a\nContent-Type: application/json\n\n"
    b'{"ref": "refs/heads/main", "repository": {"clone_url": "https://h/ops/fleet.git", "full_name": "ops/fleet"}}'
)
_LEDGER = _json(
    {"format": 1, "entries": [{"kind": "image", "artifact": _ARTIFACT, "found": "x", "digest": "sha256:0", "file": "r@d",
                               "origin": "installed", "previous": []}]}
)  # fmt: skip
_MEMORY = _json(
    {"format": 1, "accepted": [{"source": "s", "revision": "0" * 40, "rewinds": []}], "etcd": {"cluster": "1a", "revision": 5}}
)  # fmt: skip

DOORS: tuple[Door, ...] = (
    Door("desired", lambda data: read([("f.yaml", data)], Revision("1a2b")), (_FULL_SET + _GROUP + _POLICY, _FULL_SET, _SET + _GROUP)),
    Door("yaml", lambda data: parse(data, "f.yaml"), (_FULL_SET + _GROUP, b"a: [1, {b: 'c'}]\n", b"? x\n: &y z\n", b"%YAML 1.1\n---\n!!str x")),
    Door("versions", partial(_texts, _versions), (b"3.5.4.1\n3.5.4-1", b"v1.4.0-rc1\nv1.4.0", b"1:2.0~rc1-1\n2.0+b1", b"20200101\n1.0"), ()),
    Door("windows", partial(_texts, _window), (b"Thu 23:00\n1h30m\nUTC", b"02:30\n23h\nEurope/Berlin"), (ValueError,)),
    Door("schedule", partial(_text, _schedule), (b"0 0 * * 1-5\n*/5 1-3,7 1 1 0", b"59 23 31 12 *"), (ValueError,)),
    Door("durations", partial(_text, parse_duration), (b"1h30m", b"500ms", b"1.5s", b"0"), (ValueError,)),
    Door("sources", partial(_texts, _source), (b"https://h/r.git\nmain\nd\nrelease-*", b"git@h:r\nv1\nd", b"file:///r\nmain", b"ssh://u@h:22/r")),
    Door("urls", partial(_text, _url), (b"https://u:p@h:1/a/b.git", b"git@h:a/b", b"ext::sh -c x", b"http://[::1]/x")),
    Door("webhooks", _delivery, (_HOOK, b"Content-Type: application/x-www-form-urlencoded\n\npayload=%7B%22ref%22%3A%22x%22%7D"), (ValueError,)),
    Door("keys", partial(_text, _key), (b"coreos.com/updateengine/rebootlock/groups/a%2Fb/holders/m", b"/neco/leader/agents/0//1a", b"details/image/x", b"10")),
    Door("rollout", lambda data: records.decode_rollout(data, "k"), (_ROLLOUT,)),
    Door("phase", lambda data: records.decode_phase(data, "k"), (_json({"rollout": "2026-01-02T03:04:05.000000006Z", "wave": 1, "phase": 2}),)),
    Door("pins", lambda data: records.decode_pins(data, "k"), (_json({"r/x:1": {"digest": "sha256:0", "address": "a"}}),)),
    Door("status", lambda data: records.decode_status(data, "k"), (_json({"version": "1", "step": 1, "cond": 1, "message": "", "rollout": "r", "waiting": "slot"}),)),
    Door("step", lambda data: records.decode_step(data, "k", "debs:deb/a:change"), (_STEP,)),
    Door("detail", lambda data: records.decode_detail(data, "k", Key("image", "x")), (_DETAIL,)),
    Door("agent", lambda data: records.decode_agent(data, "k", 0, "1a"), (_json({"host": "h", "machineID": "m", "trouble": "", "drift": 1}),)),
    Door("machine", lambda data: records.decode_machine(data, "k", 0), (_json({"machineID": "m", "removed": False}),)),
    Door("notice", lambda data: records.decode_notice(data, "k"), (_NOTICE,)),
    Door("history", lambda data: records.decode_finished(data, "k"), (_FINISHED,)),
    Door("snapshot", lambda data: records.decode_snapshot(data, "f"), (_SNAPSHOT,)),
    Door("settings", partial(_texts, _settings), (b"https://h/x\nhttp://p:1\ntoken\n600000000000\n60\n0 0 * * *\nUTC",)),
    Door("a setting", partial(_texts, _setting), (b"check-update-interval\n10m", b"release-time\n0 0 * * *", b"proxy\nhttp://p:1")),
    Door("semaphore", lambda data: lock.decode_semaphore(data, "k"), (_json({"semaphore": 1, "max": 1, "holders": ["a"]}), b'{"holders": null}')),
    Door("holder", lambda data: lock.decode_holder(data, "k"), (_HOLDER,)),
    Door("waiter", lambda data: lock.decode_waiter(data, "k"), (_json({"machineID": "m", "lrn": 0, "reason": "r"}),)),
    Door("released slot", lambda data: lock.decode_released(data, "k"), (_json({"lock_group": "g", "holder": json.loads(_HOLDER), "who": "a", "why": "b", "at": "t"}),)),
    Door("configuration", lambda data: read_configuration(data, "f"), (b"repo: https://h/r\netcd: 'http://h:1'\ninterval: 1m\n",)),
    Door("policy", lambda data: read_policy(data, "f"), (b"apiVersion: reconciler/v1\nkind: HostPolicy\nallow: {images: ['quay.io/*'], hooks: [a], binds: [/var]}\nneverRemove: ['*']\n",)),
    Door("options", partial(_texts, _options), tuple(f"{name}\n{row.default}".encode() for name, row in TABLE.items())),
    Door("ledger", partial(_file, _ledger, "ledger.json"), (_LEDGER,)),
    Door("memory", partial(_file, recall, "accepted.json"), (_MEMORY,)),
    Door("registry credentials", partial(_file, _credentials, "auth.json"), (_json({"auths": {"quay.io": {"auth": "YTpi"}}}),)),
    Door("repositories", partial(_text, repository_of), (b"quay.io/cybozu/etcd", b"localhost:5000/x", b"[::1]:5/x", b"x"), ()),
)  # fmt: skip
