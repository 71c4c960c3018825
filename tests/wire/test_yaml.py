"""Strict YAML: what is read, what is refused and with which words, and that no input harms."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.errors import Refused
from reconciler.wire.yaml import DEPTH_LIMIT, Bare, count, parse, scan

FINDINGS: list[tuple[bytes, list[str]]] = [
    (b"a: 1\na: 2\n", ["f:2:1: a is there twice; first on line 1, column 1"]),
    (b"x: {a: 1, b: 2, a: 3}", ["f:1:17: a is there twice; first on line 1, column 5"]),
    (
        b"a: &x 1\nb: *x\n",
        [
            "f:1:4: an anchor (&x) is not allowed: write the value out where it is used",
            "f:2:4: an alias (*x) is not allowed: write the value out",
        ],
    ),
    (b"<<: {a: 1}", ["f:1:1: a merge key (<<) is not allowed: write the fields out"]),
    (b"a: !!str 1.10", ["f:1:4: a tag (!!str) is not allowed: quote what is text"]),
    (b"a: !!python/object:os.system x", ["f:1:4: a tag (!!python/object:os.system) is not allowed: quote what is text"]),
    (b"a: ! 1", ["f:1:4: a tag (!) is not allowed: quote what is text"]),
    (b"? [a]\n: 1", ["f:1:3: a key must be text: a list, a mapping or an alias cannot be one"]),
    (b"{[a]: 1, *b : 2}", [
        "f:1:2: a key must be text: a list, a mapping or an alias cannot be one",
        "f:1:10: a key must be text: a list, a mapping or an alias cannot be one",
    ]),
    (b"!!str a: 1", ["f:1:1: the key a has an anchor or a tag, which is not allowed"]),
    (b"a: b\n  \xff\n", ["f:2:3: the byte 0xff is not UTF-8: save the file as UTF-8"]),
    ("ä: \x00".encode(), ["f:1:4: this is no YAML: control characters are not allowed"]),
    ("a: 1".encode("utf-16"), ["f:1:1: the byte 0xff is not UTF-8: save the file as UTF-8"]),
    (
        b"a: [1, 2\nb: 3\n",
        ["f:2:2: this is no YAML: did not find expected ',' or ']' (while parsing a flow sequence); found: b: 3"],
    ),
    (
        b"a: b: c",
        ["f:1:5: this is no YAML: mapping values are not allowed in this context; found: a: b: c"],
    ),
    (
        b"password: b: c",
        ["f:1:12: this is no YAML: mapping values are not allowed in this context; found: password: (hidden)"],
    ),
    (b"a:\n\t- b", [
        "f:2:1: this is no YAML: found character that cannot start any token (while scanning for the next token); found: - b"
    ]),
    (b"a: 1\n---\nb: 1\nb: 2\n---\nc: *d\n", [
        "f:4:1: b is there twice; first on line 3, column 1",
        "f:6:4: an alias (*d) is not allowed: write the value out",
    ]),
    (b"[" * 100_000, [f"f:1:{DEPTH_LIMIT + 1}: this is nested more than {DEPTH_LIMIT} deep"]),
    (b"[" * 100_000 + b"]" * 100_000, [f"f:1:{DEPTH_LIMIT + 1}: this is nested more than {DEPTH_LIMIT} deep"]),
    (b"{a: " * 100_000, [f"f:1:{4 * DEPTH_LIMIT + 1}: this is nested more than {DEPTH_LIMIT} deep"]),
    (b"- " * 100_000, [f"f:1:{2 * DEPTH_LIMIT + 1}: this is nested more than {DEPTH_LIMIT} deep"]),
    (b"a" * (11 << 20), ["f:1:1: is 11.0 MiB; at most 10 MiB are read"]),
    (b"[" + b"1," * 600_000 + b"]", ["f:1:1000000: there are more than 500,000 values: divide them, or drop some"]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "messages"), FINDINGS, ids=[repr(data[:24]) for data, _ in FINDINGS])
def test_what_is_refused_is_named_with_its_place(data: bytes, messages: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        parse(data, "f")
    assert [str(finding) for finding in caught.value.findings] == messages


SCALARS: list[tuple[str, object]] = [
    ("text", "text"),
    ("3.5.4.1", "3.5.4.1"),
    ("4.3-2+deb12u1", "4.3-2+deb12u1"),
    ("v1.10", "v1.10"),
    ('"1.10"', "1.10"),
    ("'yes'", "yes"),
    ('""', ""),
    ("12", 12),
    ("-3", -3),
    ("0", 0),
    ("true", True),
    ("false", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("1.10", Bare("1.10", "a number")),
    ("1.", Bare("1.", "a number")),
    (".5", Bare(".5", "a number")),
    ("1e3", Bare("1e3", "a number")),
    ("+1", Bare("+1", "a number")),
    ("1_000", Bare("1_000", "a number")),
    ("0x1f", Bare("0x1f", "a number")),
    ("-.inf", Bare("-.inf", "a number")),
    (".nan", Bare(".nan", "a number")),
    ("9" * 5000, Bare("9" * 5000, "a number")),
    ("0123", Bare("0123", "an octal number")),
    ("0o17", Bare("0o17", "an octal number")),
    ("12:30", Bare("12:30", "a number in base 60")),
    ("1:2.3", Bare("1:2.3", "a number in base 60")),
    ("2026-01-02", Bare("2026-01-02", "a date")),
    ("2026-01-02T03:04:05Z", Bare("2026-01-02T03:04:05Z", "a date")),
    ("yes", Bare("yes", "true")),
    ("Off", Bare("Off", "false")),
    ("TRUE", Bare("TRUE", "true")),
    ("=", Bare("=", "a word of its own")),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_only_what_cannot_be_misread_is_more_than_text(text: str, value: object) -> None:
    [document] = parse(f"a: {text}".encode(), "f")
    assert document.value == {"a": value}
    assert type(document.value["a"]) is type(value)


@pytest.mark.parametrize("text", [text for text, value in SCALARS if not isinstance(value, Bare)])
def test_what_is_read_is_what_other_parsers_read(text: str) -> None:
    [document] = parse(f"a: {text}".encode(), "f")
    assert document.value == yaml.safe_load(f"a: {text}")


def test_each_value_and_key_has_its_place() -> None:
    [document] = parse(b"images:\n  - name: etcd\n    args: [a, b]\n", "f.yaml")
    assert document.positions == {
        (): (1, 1),
        ("images",): (2, 3),
        ("images", 0): (2, 5),
        ("images", 0, "name"): (2, 11),
        ("images", 0, "args"): (3, 11),
        ("images", 0, "args", 0): (3, 12),
        ("images", 0, "args", 1): (3, 15),
    }
    assert document.key_place(("images", 0, "args")) == (3, 5)
    assert document.place(("images", 0, "tag")) == (2, 5)
    assert document.where(("images", 7, "tag")) == "f.yaml:2:3"
    assert document.at(("images", 0, "args", 1)) == "b"
    assert document.at(("images", 0, "args", 2)) is None
    assert count(document) == len(document.positions)


def test_columns_count_characters_and_not_bytes() -> None:
    [document] = parse("{ä: é, b: c}".encode(), "f")
    assert document.place(("b",)) == (1, 11)


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (b"", []),
        (b"# only a comment\n", []),
        (b"---\n---\n", []),
        (b"a: 1\n---\n---\nb: 2\n...\n", [{"a": 1}, {"b": 2}]),
        (b"\xef\xbb\xbfa: 1", [{"a": 1}]),
        (b"%YAML 1.2\n---\na: 1", [{"a": 1}]),
    ],
)
def test_documents_that_are_empty_are_none(data: bytes, values: list[object]) -> None:
    assert [document.value for document in parse(data, "f")] == values


def test_what_can_be_read_beside_a_finding_is_there_for_other_checks() -> None:
    documents, findings = scan(b"a: &x 1\nb: !!int 2\nb: 3\nc: *x\n", "f")
    assert [document.value for document in documents] == [{"a": 1, "b": "2", "c": None}]
    assert len(findings) == 4


HARMFUL = {
    "alias bomb": "b'a: &a [x,x,x,x,x,x,x,x,x]\\n' + b''.join(b'%c: &%c [%s]\\n' % (c, c, b','.join([b'*%c' % (c - 1)] * 9)) for c in range(98, 123))",
    "merge keys": "b'a: &a {x: 1}\\n' + b'b: {<<: [*a, *a]}\\n' * 1000",
    "100 MB": "b'a: b\\n' * (20 << 20)",
    "10 MB of brackets": "b'[' * (10 << 20)",
    "10 MB of nested mappings": "b'{a: ' * (5 << 19)",
    "10 MB of question marks": "b'? ' * (5 << 20)",
    "10 MB of lists": "b'[]\\n---\\n' * 1200000",
    "10 MB of keys": "b''.join(b'k%d: 1\\n' % n for n in range(900000))",
    "10 MB of anchors": "b'- &a\\n' * 1500000",
    "a 10 MB key": "b'a' * (9 << 20) + b': 1'",
}


@pytest.mark.parametrize("made", HARMFUL.values(), ids=HARMFUL.keys())
def test_harmful_input_is_refused_soon_and_in_little_memory(made: str) -> None:
    program = f"""
import resource
from reconciler.errors import Refused
from reconciler.wire.yaml import parse
data = {made}
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
resource.setrlimit(resource.RLIMIT_AS, (len(data) + (400 << 20), -1))
try:
    parse(data, "f")
except Refused as refused:
    assert 1 <= len(refused.findings) <= 1000
    print("refused")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout, run.stderr, run.returncode) == ("refused\n", "", 0)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    documents, findings = scan(data, "f")
    assert all(document.positions for document in documents)
    assert all(finding.line >= 1 and finding.column >= 1 for finding in findings)


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@?,~<= \n\t01.", max_size=60))
def test_any_text_is_read_as_other_parsers_read_it_or_refused(text: str) -> None:
    documents, findings = scan(text.encode(), "f")
    if findings:
        return
    try:
        others = [value for value in yaml.safe_load_all(text) if value is not None]
    except (yaml.YAMLError, ValueError):
        return  # PyYAML's constructor refuses more: dates that are none, keys that we take as text
    assert len(documents) == len(others)
    for document, other in zip(documents, others, strict=True):
        assert same(document.value, other)


def same(ours: object, theirs: object) -> bool:
    """A `Bare` is what YAML would make something else of; keys are always text."""
    if isinstance(ours, Bare):
        return True
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and len(ours) >= len(theirs)
    if isinstance(ours, list):
        return isinstance(theirs, list) and all(map(same, ours, theirs)) and len(ours) == len(theirs)
    return ours == theirs and type(ours) is type(theirs)
