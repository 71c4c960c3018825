"""The schemas themselves, the quick answer against `jsonschema`, and messages in people's words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from reconciler.wire.schema import fits, load, validate, violations
from reconciler.wire.shape import compiled
from reconciler.wire.yaml import Bare, parse

SCHEMAS = sorted(file.stem for file in (Path(__file__).parents[2] / "schemas").glob("*.json"))
IN_GIT = ["artifact-set", "server-group", "rollout-policy"]

FULL = """
apiVersion: reconciler/v1
kind: ArtifactSet
groups: [boot]
images:
  - name: etcd
    repository: quay.io/cybozu/etcd
    tag: 3.5.4.1
    digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    private: false
    container:
      args: [--name, "boot-$(lrn)", --config-file, /etc/etcd/etcd.conf.yml]
      binds: [{name: data, source: /var/lib/etcd-container, dest: /var/lib/etcd, readOnly: false}]
      environment: {ETCD_NAME: boot}
      environmentFile: /etc/etcd/env
      unit: etcd-container
      update: rolling
      after: [vault]
      started: [unseal]
      health: {http: "http://127.0.0.1:2379/health", timeout: 60s}
debs:
  - {name: etcdpasswd, owner: cybozu-go, repository: etcdpasswd, release: v1.4.0}
  - {name: chrony, version: 4.3-2+deb12u1}
osImage: {channel: stable, version: 3139.2.1}
"""


def properties(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        for name, entry in schema.get("properties", {}).items():
            if "if" not in place.split("/"):
                yield f"{place}/{name}", entry
        for word, inner in schema.items():
            if word != "examples":
                yield from properties(inner, f"{place}/{word}")
    elif isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from properties(inner, f"{place}/{index}")


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for inner in schema.values():
            yield from objects(inner)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    schema = load(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] and schema["description"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_editor_can_complete_every_property(name: str) -> None:
    schema = load(name)
    for place, entry in properties(schema):
        assert entry.get("title"), place
        assert entry.get("description", "").endswith("."), place
        assert entry.get("examples"), place
        validator = Draft202012Validator({"$defs": schema.get("$defs", {}), **entry}, registry=Registry())
        for example in entry["examples"]:
            errors = [error.message for error in validator.iter_errors(example)]
            assert not errors, (place, example)
            assert compiled({"$defs": schema.get("$defs", {}), **entry})(example), (place, example)


@pytest.mark.parametrize("name", SCHEMAS)
def test_objects_are_closed(name: str) -> None:
    for schema in objects(load(name)):
        # A detail keeps what a newer program wrote; an artifact in it is what was asked for then, by whatever program.
        kept = name == "snapshot" and (
            "found" in schema.get("properties", {}) or schema.get("title") == "Desired"
        )
        assert kept or schema.get("additionalProperties", True) is not True, schema


def test_an_unknown_keyword_is_refused_and_not_ignored() -> None:
    with pytest.raises(ValueError, match="minContains"):
        compiled({"type": "array", "minContains": 1})


def test_a_reference_never_leaves_its_file() -> None:
    validator = Draft202012Validator({"$ref": "http://127.0.0.1:1/x"}, registry=Registry())
    with pytest.raises(Exception) as caught:
        validator.validate(1)
    assert isinstance(caught.value.__cause__, Unresolvable)
    with pytest.raises(KeyError):
        compiled({"$ref": "http://127.0.0.1:1/x"})


MESSAGES: list[tuple[str, list[str]]] = [
    ("images: [{name: a, repository: q.io/a, tag: 1.10}]", [
        'f:3:45: images[0].tag: found 1.10, which YAML reads as a number; tag is text: quote it (tag: "1.10")'
    ]),
    ("images: [{name: a, repository: q.io/a, tag: 3}]", [
        'f:3:45: images[0].tag: found the number 3; tag is text: quote it (tag: "3")'
    ]),
    ("images: [{name: true, repository: q.io/a, tag: v1}]", [
        'f:3:17: images[0].name: found true; name is text: quote it (name: "true")'
    ]),
    ("images: [{name: a, repository: q.io/a, tag: 2022-05-23}]", [
        'f:3:45: images[0].tag: found 2022-05-23, which YAML reads as a date; tag is text: quote it (tag: "2022-05-23")'
    ]),
    ("debs: [{name: a, version: 1:2.3}]", [
        'f:3:27: debs[0].version: found 1:2.3, which YAML reads as a number in base 60; version is text: quote it (version: "1:2.3")'
    ]),
    ("images: [{name: a, repository: q.io/a, tag: -x}]", [
        "f:3:45: images[0].tag: found the text \"-x\"; wanted: letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 128 characters"
    ]),
    ("images: [{name: a, repository: q.io/a, tag: v1, tags: x}]", [
        "f:3:49: images[0].tags: this field is not known; did you mean tag?"
    ]),
    ("images: [{name: 3.0, repository: q.io/a, tags: x}]", [
        "f:3:10: images[0]: tag is missing (The version. Text: quote it where it looks like a number)",
        'f:3:17: images[0].name: found 3.0, which YAML reads as a number; name is text: quote it (name: "3.0")',
        "f:3:42: images[0].tags: this field is not known; did you mean tag?",
    ]),
    ("images: {a: 1}", ["f:3:9: images: found an object; wanted: a list"]),
    ("images:", ["f:3:8: images: is empty; wanted: a list"]),
    ("colour: 1", ["f:3:1: colour: this field is not known; known here: apiVersion, debs, groups, images, kind, osImage"]),
    ("groups: [a, b, a]", ['f:3:9: groups: "a" is there twice']),
    ("images: [{name: a, repository: q.io/a, tag: v1, private: yes}]", [
        "f:3:58: images[0].private: found yes, which YAML reads as true; wanted: true or false"
    ]),
    ("images: [{name: a, repository: q.io/a, tag: v1, container: {update: roling}}]", [
        'f:3:69: images[0].container.update: found the text "roling"; did you mean rolling?'
    ]),
    ("images: [{name: a, repository: q.io/a, tag: v1, container: {args: [a, 1.0]}}]", [
        'f:3:71: images[0].container.args[1]: found 1.0, which YAML reads as a number; args[1] is text: quote it ("1.0")'
    ]),
    ("images: [{name: a, repository: q.io/a, tag: v1, container: {environment: {DB_PASSWORD: 1234, B-C: x}}}]", [
        "f:3:88: images[0].container.environment.DB_PASSWORD: found (hidden); DB_PASSWORD is text: quote it",
        "f:3:94: images[0].container.environment.B-C: this name is not allowed; wanted: letters, digits and '_', not beginning with a digit",
    ]),
    ("images: [{name: a, repository: q.io/a, tag: v1, container: {health: {timeout: 60}}}]", [
        "f:3:69: images[0].container.health: found an object; wanted: exactly one of http, tcp and hook, and a timeout",
        "f:3:79: images[0].container.health.timeout: found the number 60; wanted: a duration such as 1h30m, 10m, 60s or 500ms",
    ]),
    ("debs: [{name: a, version: v1, release: v1}]", [
        "f:3:31: debs[0].release: this field is not known; known here: name, version"
    ]),
    ("debs: [3]", ["f:3:8: debs[0]: found the number 3; wanted: a mapping"]),
    ('osImage: {channel: stable, version: "1\\n"}', [
        "f:3:37: osImage.version: found the text \"1\\n\"; wanted: letters, digits, '.', '_', '+' and '-', beginning with a letter or digit"
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "messages"), MESSAGES, ids=[text for text, _ in MESSAGES])
def test_what_does_not_fit_is_said_in_peoples_words(text: str, messages: list[str]) -> None:
    [document] = parse(f"apiVersion: reconciler/v1\nkind: ArtifactSet\n{text}\n".encode(), "f")
    assert [str(finding) for finding in validate(document, "artifact-set")] == messages


@pytest.mark.parametrize(
    ("field", "value", "taken"),
    [
        ("repository", "quay.io/cybozu/etcd", True),
        ("repository", "127.0.0.1:5000/a/b-c_d.e/f__g", True),
        ("repository", "registry:5000/a", True),
        ("repository", "[::1]:5000/a", True),
        ("repository", "localhost/a", True),
        ("repository", "cybozu/etcd", False),
        ("repository", "quay.io/etcd:v1", False),
        ("repository", "quay.io/../etcd", False),
        ("repository", "quay.io/Etcd", False),
        ("repository", "-quay.io/etcd", False),
        ("repository", "quay.io/etcd\n", False),
        ("tag", "v1_2.3-4", True),
        ("tag", "-v1", False),
        ("tag", "v1/2", False),
        ("tag", "a" * 129, False),
        ("name", "a" * 128, True),
        ("name", "a" * 129, False),
        ("name", "a+b", False),
        ("name", "../a", False),
        ("digest", "sha256:" + "a" * 64, True),
        ("digest", "sha512:" + "a" * 64, False),
        ("digest", "sha256:" + "a" * 64 + "\n", False),
    ],
)
def test_an_images_fields(field: str, value: str, taken: bool) -> None:
    image = {"name": "a", "repository": "q.io/a", "tag": "v1", field: value}
    document = {"apiVersion": "reconciler/v1", "kind": "ArtifactSet", "images": [image]}
    assert fits(document, "artifact-set") is taken
    assert bool(violations(document, "artifact-set")) is not taken


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/var/lib/etcd", True),
        ("/", True),
        ("/a/..b", True),
        ("relative", False),
        ("/a/../b", False),
        ("/..", False),
        ("/a:b", False),
        ("/a,b", False),
        ("/a\nb", False),
    ],
)
def test_a_path_is_absolute_and_stays_where_it_says(path: str, taken: bool) -> None:
    container = {"binds": [{"name": "a", "source": path, "dest": "/a"}]}
    image = {"name": "a", "repository": "q.io/a", "tag": "v1", "container": container}
    document = {"apiVersion": "reconciler/v1", "kind": "ArtifactSet", "images": [image]}
    assert fits(document, "artifact-set") is taken


def test_a_message_is_never_long() -> None:
    document = {"apiVersion": "x" * 1_000_000, "kind": ["y"] * 100_000}
    assert all(len(message) < 300 for message in violations(document, "artifact-set"))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 200_000),
    st.sampled_from(["a", "", "v1", "0-4", "2%", "100%", "101%", "10m", "5", "boot", "command", "a\n", "/a/../b", "http://a"]),
    st.text(max_size=6),
    st.just(Bare("1.10", "a number")),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["name", "driver", "tcp", "http", "a b", "servers", "version"]), inner
        ),
    ),
    max_leaves=4,
)


def example_of(name: str) -> Any:
    """A document made of the examples of each property; a list has one entry."""
    schema = load(name)
    if schema["type"] == "array":
        (entry,) = schema["$defs"].values()
        return [_example(entry)]
    return _example(schema)


def _example(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        field: json.loads(json.dumps(entry["examples"][0])) for field, entry in schema["properties"].items()
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


@settings(deadline=None)
@given(st.data())
def test_the_quick_answer_is_that_of_jsonschema(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(SCHEMAS))
    document = example_of(name)
    if name == "artifact-set":
        [full] = parse(FULL.encode(), "f")
        document = json.loads(json.dumps(full.value))
    assert fits(document, name)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(places(document), key=str)))
        value = data.draw(VALUES)
        if not path:
            continue
        target = document
        for part in path[:-1]:
            target = target[part]
        if isinstance(target, dict) and data.draw(st.booleans()):
            target[data.draw(st.sampled_from(["name", "servers", "directory", "x"]))] = value
        else:
            target[path[-1]] = value
    validator = Draft202012Validator(load(name), registry=Registry())
    assert fits(document, name) is validator.is_valid(document)
    assert bool(violations(document, name)) is not fits(document, name)
