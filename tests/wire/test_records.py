"""etcd's JSON documents: both ways, Neco's own, what a newer program adds, and what is corrupt."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.artifact import Check, Container, Image, Key, Known, OsImage, Pin
from reconciler.core.state import (
    ABORTED,
    RUNNING,
    Agent,
    Detail,
    LeftOut,
    Machine,
    Notice,
    OpenPhase,
    Rollout,
    ServerStatus,
    StepRecord,
    Told,
    Wave,
)
from reconciler.errors import Corrupt
from reconciler.wire import records
from reconciler.wire.artifact import artifact_from_json, artifact_json
from reconciler.wire.document import decode, encode
from reconciler.wire.schema import violations
from tests.wire import values

KEY = "/neco/some/key"
IMAGE = Key("image", "etcd")
STARTED = "2026-01-02T03:04:05.000000006Z"

both_ways = settings(deadline=None, max_examples=50)


@both_ways
@given(values.rollouts)
def test_rollout(value: Rollout) -> None:
    assert records.decode_rollout(records.encode_rollout(value), KEY, value.mod_revision) == value


@both_ways
@given(values.phases)
def test_phase(value: OpenPhase) -> None:
    assert records.decode_phase(records.encode_phase(value), KEY, value.mod_revision) == value


@both_ways
@given(values.pins)
def test_pins(value: dict[str, Pin]) -> None:
    assert records.decode_pins(records.encode_pins(value), KEY) == value


@both_ways
@given(values.statuses)
def test_status(value: ServerStatus) -> None:
    assert records.decode_status(records.encode_status(value), KEY, value.mod_revision) == value


@both_ways
@given(values.details)
def test_detail(value: Detail) -> None:
    assert records.decode_detail(records.encode_detail(value), KEY, value.desired.key) == value


@both_ways
@given(values.steps)
def test_step(value: StepRecord) -> None:
    assert records.decode_step(records.encode_step(value), KEY, value.id, value.mod_revision) == value


@both_ways
@given(values.agents)
def test_agent(value: Agent) -> None:
    text = records.encode_agent(value)
    assert records.decode_agent(text, KEY, value.lrn, value.lease, value.create_revision) == value


@both_ways
@given(values.tolds)
def test_told(value: Told) -> None:
    assert records.decode_told(records.encode_told(value), KEY) == value


@both_ways
@given(values.machines)
def test_machine(value: Machine) -> None:
    assert records.decode_machine(records.encode_machine(value), KEY, value.lrn, value.mod_revision) == value


@both_ways
@given(values.notices)
def test_notice(value: Notice) -> None:
    assert records.decode_notice(records.encode_notice(value), KEY, value.mod_revision) == value


@both_ways
@given(values.finished)
def test_finished_rollout(value: records.FinishedRollout) -> None:
    assert records.decode_finished(records.encode_finished(value), KEY) == value


@both_ways
@given(values.fleets)
def test_snapshot(value: dict[int, Any]) -> None:
    text = records.encode_snapshot(value, 7)
    assert records.decode_snapshot(text, "snapshot.json") == dict(sorted(value.items()))
    assert not violations(json.loads(text), "snapshot")


@both_ways
@given(values.artifacts)
def test_artifact(value: Image) -> None:
    assert artifact_from_json(value.key.kind, json.loads(json.dumps(artifact_json(value)))) == value


def test_defaults_of_an_artifact_are_left_out() -> None:
    image = Image("a", "q.io/a", "v1", container=Container(health=Check("tcp", "a:1")))
    assert artifact_json(image) == {
        "name": "a",
        "repository": "q.io/a",
        "tag": "v1",
        "container": {"health": {"tcp": "a:1"}},
    }
    assert artifact_json(Image("a", "q.io/a", "v1", container=Container())) == {
        "name": "a",
        "repository": "q.io/a",
        "tag": "v1",
        "container": {},
    }
    assert artifact_json(Known(IMAGE, "3.5")) == {"name": "etcd", "version": "3.5"}
    assert artifact_json(OsImage("stable", "3139.2.1")) == {"channel": "stable", "version": "3139.2.1"}


def test_the_documents_have_the_keyspaces_names() -> None:
    rollout = Rollout(
        "1a2b",
        (0, 1),
        STARTED,
        (Wave((0, 1), 600.0, 1),),
        out={3: LeftOut("silent", "silent")},
        stopped_by="leader",
    )
    assert json.loads(records.encode_rollout(rollout)) == {
        "version": "1a2b",
        "servers": [0, 1],
        "stop": False,
        "started_at": STARTED,
        "plan_format": 1,
        "phases": ["prefetch", "debs", "stop", "containers", "os-image", "reboot", "verify"],
        "path": "desired-state",
        "waves": [{"servers": [0, 1], "soak": 600, "max_failures": 1}],
        "timeout": 3600,
        "stopped_by": "leader",
        "out": {"3": "silent"},
        "out_kinds": {"3": "silent"},
    }
    assert records.encode_agent(Agent(1, "boot-1", "m1", "1f")) == '{"host":"boot-1","machineID":"m1"}'
    assert records.encode_machine(Machine(1, "m1")) == '{"machineID":"m1","removed":false}'
    assert json.loads(records.encode_status(ServerStatus("1a2b", STARTED, 3, waiting="slot"))) == {
        "version": "1a2b",
        "step": 3,
        "cond": 1,
        "message": "",
        "rollout": STARTED,
        "waiting": "slot",
    }


@pytest.mark.parametrize(
    ("text", "kinds", "kind", "counts"),
    [
        ("failed: dpkg", None, "failed", True),
        ("silent in debs for 60 s", None, "silent", True),
        ("removed from the fleet", None, "removed", False),
        ("disabled by ann", None, "disabled", False),
        ("who knows", None, "failed", True),
        ("failed by decree", {"3": "disabled"}, "disabled", False),
        ("disabled the alarm and broke", {"3": "failed"}, "failed", True),
        ("disabled by ann", {"4": "failed"}, "disabled", False),
        ("went away", {"3": "what a newer program says"}, "failed", True),
    ],
)
def test_why_a_server_is_left_out_is_a_kind_and_an_older_program_wrote_only_a_sentence(
    text: str, kinds: dict[str, str] | None, kind: str, counts: bool
) -> None:
    document = json.loads(records.encode_rollout(Rollout("1a2b", (3,), STARTED, (Wave((3,)),))))
    document |= {"out": {"3": text}} | ({"out_kinds": kinds} if kinds else {})
    out = records.decode_rollout(json.dumps(document), KEY).out[3]
    assert (out.kind, out.text, out.counts) == (kind, text, counts)


# What Neco's updater and worker write: Go's encoding/json, nanoseconds without trailing zeros, nil slices as null.
NECO_ROLLOUT = (
    '{"version":"2022.05.23-1","servers":[0,1,2],"stop":false,"started_at":"2022-05-23T06:12:40.12345678Z"}'
)
NECO_STATUS = '{"version":"2022.05.23-1","step":2,"cond":2,"message":"failed to fetch image: 500"}'


def test_necos_rollout_reads_and_is_left_as_it_is() -> None:
    rollout = records.decode_rollout(NECO_ROLLOUT, KEY, 5)
    assert rollout == Rollout(
        "2022.05.23-1",
        (0, 1, 2),
        "2022-05-23T06:12:40.12345678Z",
        waves=(),
        phases=(),
        plan_format=None,
        mod_revision=5,
    )
    assert records.encode_rollout(rollout) == NECO_ROLLOUT


@pytest.mark.parametrize(
    "text",
    [
        '{"version":"1","servers":null,"stop":true,"started_at":"2018-10-29T13:26:25+09:00"}',
        '{"version":"1","stop":true,"started_at":"2018-10-29T13:26:25Z"}',
    ],
)
def test_neco_without_servers(text: str) -> None:
    rollout = records.decode_rollout(text, KEY)
    assert (rollout.servers, rollout.stop, rollout.plan_format) == ((), True, None)


def test_necos_status_reads_and_belongs_to_no_rollout() -> None:
    status = records.decode_status(NECO_STATUS, KEY)
    assert status == ServerStatus("2022.05.23-1", "", 2, ABORTED, "failed to fetch image: 500")
    assert records.encode_status(status) == NECO_STATUS


EXTRA = {"new": {"deep": [1, None]}, "other": 1.5}


@pytest.mark.parametrize(
    ("again", "document"),
    [
        (lambda text: records.encode_rollout(records.decode_rollout(text, KEY)), json.loads(NECO_ROLLOUT)),
        (lambda text: records.encode_phase(records.decode_phase(text, KEY)), {"rollout": STARTED, "wave": 0, "phase": 1}),
        (lambda text: records.encode_status(records.decode_status(text, KEY)), json.loads(NECO_STATUS)),
        (lambda text: records.encode_machine(records.decode_machine(text, KEY, 1)), {"machineID": "m", "removed": True}),
        (lambda text: records.encode_notice(records.decode_notice(text, KEY)), {"who": "a", "why": "b", "since": "c"}),
    ],
)  # fmt: skip
def test_a_newer_programs_fields_come_out_again(
    again: Callable[[str], str], document: dict[str, Any]
) -> None:
    whole = {**document, **EXTRA}
    assert json.loads(again(json.dumps(whole))) == whole


def test_a_newer_programs_word_for_waiting_is_no_error() -> None:
    status = records.decode_status('{"version":"a","step":1,"cond":1,"waiting":"approval"}', KEY)
    assert (status.waiting, status.cond) == (None, RUNNING)


def corrupt(problem: str) -> str:
    return f"cannot use {KEY}: {problem}; correct or delete it by hand, it is never overwritten"


ROLLOUT = json.loads(NECO_ROLLOUT)
CORRUPT: list[tuple[Callable[[Any, str], object], str | bytes | dict[str, Any], str]] = [
    (records.decode_rollout, "", "it is not JSON (Expecting value: line 1 column 1 (char 0)), but empty"),
    (records.decode_rollout, "3.5.4.1", 'it is not JSON (Extra data: line 1 column 4 (char 3)), but the text "3.5.4.1"'),
    (records.decode_rollout, b"\xff", "it is not UTF-8 text"),
    (records.decode_rollout, '{"version":"\\ud800"}', "it is not UTF-8 text"),
    (records.decode_rollout, "[1]", "it is a list, and must be a JSON object"),
    (records.decode_rollout, "null", "it is null, and must be a JSON object"),
    (records.decode_rollout, '{"a":NaN}', 'it is not JSON (NaN is no JSON number), but the text "{\\"a\\":NaN}"'),
    (records.decode_rollout, "[" * 100_000, f'it is not JSON (nested too deeply), but the text "{"[" * 60}…"'),
    (records.decode_rollout, {}, "version is missing, and must be text"),
    (records.decode_rollout, ROLLOUT | {"version": None}, "version is null, and must be text"),
    (records.decode_rollout, ROLLOUT | {"version": 1.5}, "version is the number 1.5, and must be text"),
    (records.decode_rollout, ROLLOUT | {"servers": "0,1"}, 'servers is the text "0,1", and must be a list'),
    (records.decode_rollout, ROLLOUT | {"servers": [0, "1"]}, 'servers holds the text "1", and must be a list of numbers from 0'),
    (records.decode_rollout, ROLLOUT | {"servers": [True]}, "servers holds true, and must be a list of numbers from 0"),
    (records.decode_rollout, ROLLOUT | {"servers": [-1]}, "servers holds the number -1, and must be a list of numbers from 0"),
    (records.decode_rollout, ROLLOUT | {"stop": "no"}, 'stop is the text "no", and must be true or false'),
    (records.decode_rollout, ROLLOUT | {"started_at": "now"}, 'started_at is the text "now", and must be a time such as "2026-01-02T03:04:05.000000006Z"'),
    (records.decode_rollout, ROLLOUT | {"waves": [3]}, "waves holds the number 3, and must be a list of objects"),
    (records.decode_rollout, ROLLOUT | {"waves": [{"soak": "10m"}]}, 'waves[0].soak is the text "10m", and must be a number of seconds'),
    (records.decode_rollout, ROLLOUT | {"out": {"a": "b"}}, 'out has the name the text "a", and must have server numbers'),
    (records.decode_rollout, ROLLOUT | {"out": {"1": 2}}, "out holds the number 2 for server 1, and must hold texts"),
    (records.decode_rollout, ROLLOUT | {"plan_format": "1"}, 'plan_format is the text "1", and must be a whole number'),
    (records.decode_phase, {"rollout": STARTED, "wave": 0, "phase": 0}, "phase is the number 0, and must be at least 1"),
    (records.decode_status, {"version": "a", "step": 1, "cond": 4}, "cond is the number 4, and must be from 0 to 3"),
    (records.decode_status, {"version": "a", "step": True}, "step is true, and must be a whole number"),
    (records.decode_pins, {"q.io/a:1": "sha256:0"}, 'q.io/a:1 is the text "sha256:0", and must be an object'),
    (records.decode_pins, {"q.io/a:1": {"digest": "sha256:0"}}, "q.io/a:1: address is missing, and must be text"),
    (lambda text, key: records.decode_detail(text, key, IMAGE), {}, "desired is missing, and must be an object"),
    (lambda text, key: records.decode_detail(text, key, IMAGE), {"desired": {"name": "etcd"}}, "desired.repository is missing, and must be text"),
    (
        lambda text, key: records.decode_detail(text, key, IMAGE),
        {"desired": {"name": "vault", "repository": "q.io/a", "tag": "1"}, "found": "x"},
        'desired.name is the text "vault", and must be the text "etcd"',
    ),
    (
        lambda text, key: records.decode_detail(text, key, IMAGE),
        {"desired": {"name": "etcd", "repository": "q.io/a", "tag": "1", "container": {"update": "soon"}}, "found": "x"},
        'desired.container.update is the text "soon", and must be one of rolling, parallel, stop-all',
    ),
    (
        lambda text, key: records.decode_detail(text, key, IMAGE),
        {"desired": {"name": "etcd", "repository": "q.io/a", "tag": "1", "container": {"health": {"tcp": "a:1", "timeout": "5"}}}, "found": "x"},
        "desired.container.health.timeout is no duration: '5' is no duration: write numbers with units, the largest first, each once: 1h30m, 10m, 60s or 500ms",
    ),
    (lambda text, key: records.decode_step(text, key, "id"), {"rollout": STARTED, "state": "over"}, 'state is the text "over", and must be one of running, done, failed'),
    (lambda text, key: records.decode_machine(text, key, 1), {"machineID": ["a"]}, "machineID is a list, and must be text"),
    (records.decode_notice, {"until": "tomorrow"}, 'until is the text "tomorrow", and must be a time such as "2026-01-02T03:04:05.000000006Z"'),
    (records.decode_snapshot, {"format_version": 2}, "format_version is the number 2, and this program reads 1"),
    (records.decode_snapshot, {"format_version": 1, "servers": [{"lrn": 1}, {"lrn": 1}]}, "servers[1].lrn 1 is there twice"),
    (
        records.decode_snapshot,
        {"format_version": 1, "servers": [{"lrn": 1, "installed": [{"kind": "rpm"}]}]},
        'servers[0].installed[0].kind is the text "rpm", and must be one of image, deb, os-image',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("read", "stored", "problem"), CORRUPT)
def test_what_is_corrupt_is_named_with_what_was_found(
    read: Callable[[Any, str], object], stored: str | bytes | dict[str, Any], problem: str
) -> None:
    text = json.dumps(stored) if isinstance(stored, dict) else stored
    with pytest.raises(Corrupt) as caught:
        read(text, KEY)
    assert str(caught.value) == corrupt(problem)


def test_a_number_of_many_digits_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="limit"):
        records.decode_phase('{"wave": ' + "9" * 5000 + "}", KEY)


@pytest.mark.parametrize("text", ["ä → 日本", "a\nb\t\x00", "\udcff"])
def test_any_message_can_be_stored(text: str) -> None:
    stored = encode({"message": text})
    assert stored.encode()
    assert decode(stored, KEY) == {"message": text.encode("utf-8", "replace").decode()}


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "version",
                    "servers",
                    "stop",
                    "started_at",
                    "waves",
                    "soak",
                    "out",
                    "step",
                    "cond",
                    "desired",
                    "found",
                    "name",
                    "repository",
                    "tag",
                    "container",
                    "health",
                    "timeout",
                    "machineID",
                    "rollout",
                    "state",
                    "who",
                    "until",
                    "format_version",
                    "lrn",
                    "installed",
                    "kind",
                ]
            ),
            inner,
            max_size=6,
        ),
    ),
    max_leaves=12,
)
READERS: list[Callable[[Any, str], object]] = [
    records.decode_rollout,
    records.decode_phase,
    records.decode_status,
    records.decode_pins,
    records.decode_notice,
    records.decode_finished,
    records.decode_snapshot,
    lambda text, key: records.decode_detail(text, key, IMAGE),
    lambda text, key: records.decode_detail(text, key, Key("deb", "etcd")),
    lambda text, key: records.decode_step(text, key, "id"),
    lambda text, key: records.decode_machine(text, key, 1),
    lambda text, key: records.decode_agent(text, key, 1, "1f"),
]


@settings(deadline=None)
@given(
    st.sampled_from(READERS),
    st.one_of(st.binary(max_size=30), JSON.map(lambda value: json.dumps(value).encode())),
)
def test_any_stored_bytes_read_or_are_corrupt(read: Callable[[Any, str], object], stored: bytes) -> None:
    try:
        read(stored, KEY)
    except Corrupt as error:
        assert str(error).startswith(f"cannot use {KEY}: ")
