"""The JSON Schemas, and what is wrong with a document in people's words. Called by `desired`, `settings`, tests and the web.

`validate` first asks the schema compiled to a quick yes or no (`shape`); only where that says no is `jsonschema` imported to
say what. Reads the schemas once from the package, and nothing else: a `$ref` never leaves its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.errors import Finding
from reconciler.wire.document import shown
from reconciler.wire.masking import HIDDEN, is_secret, masked
from reconciler.wire.shape import Shape, compiled
from reconciler.wire.yaml import FINDING_LIMIT, Bare, Document, said, spelled

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

_PACKAGE = Path(__file__).parent.parent
# In the wheel the schemas are in the package; in a checkout beside it.
_PLACES = (_PACKAGE / "schemas", _PACKAGE.parent / "schemas")
_TYPE_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}

Place = tuple[str | int, ...]


@cache
def load(name: str) -> dict[str, Any]:
    """The schema `name`: `artifact-set`, `plan`, ….  Not to be changed: it is the same one for all."""
    for place in _PLACES:
        file = place / f"{name}.json"
        if file.is_file():
            schema: dict[str, Any] = json.loads(file.read_bytes())
            return schema
    raise FileNotFoundError(f"there is no schema {name} in {' or '.join(map(str, _PLACES))}")


@cache
def _shape(name: str) -> Shape:
    return compiled(load(name))


@cache
def _validator(name: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # With a registry of its own, and an empty one, a `$ref` to somewhere else is an error and not a download.
    return Draft202012Validator(load(name), registry=Registry())


def fits(value: Any, name: str) -> bool:
    """Whether `value` is as schema `name` says."""
    return _shape(name)(value)


def validate(document: Document, name: str) -> list[Finding]:
    """All that schema `name` has against `document`, with the place of each."""
    if fits(document.value, name):
        return []
    errors: Iterable[ValidationError] = _validator(name).iter_errors(document.value)
    findings = {finding for error in islice(errors, FINDING_LIMIT) for finding in _findings(document, error)}
    return sorted(findings)


def violations(value: Any, name: str) -> list[str]:
    """All that schema `name` has against a value that stands in no file."""
    if fits(value, name):
        return []
    errors: Iterable[ValidationError] = _validator(name).iter_errors(value)
    return sorted(
        {
            said(path, problem)
            for error in islice(errors, FINDING_LIMIT)
            for path, problem, _ in _problems(error)
        }
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """A question that suggests the nearest known word, or else all of them."""
    from difflib import get_close_matches

    names = sorted(known)
    found = get_close_matches(word[:200], names, n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else f"known here: {', '.join(names)}"


def found(value: Any, path: Sequence[str | int] = ()) -> str:
    """A value of a document in people's words; hidden where it may be a secret."""
    if is_secret(path) and not isinstance(value, dict | list | type(None)):
        return HIDDEN
    if isinstance(value, Bare):
        return f"{masked(value.text)}, which YAML reads as {value.read_as}"
    return shown(masked(value) if isinstance(value, str) else value)


def _findings(document: Document, error: ValidationError) -> Iterable[Finding]:
    for path, problem, at_key in _problems(error):
        mark = document.key_place(path) if at_key else document.place(path)
        yield Finding(document.file, mark.line, mark.column, said(path, problem))


def _problems(error: ValidationError) -> Iterable[tuple[Place, str, bool]]:
    """What one error of `jsonschema` means: the path, the problem, and whether it is the key that is wrong."""
    path: Place = tuple(error.absolute_path)
    value: Any = error.instance
    argument: Any = error.validator_value
    schema = _mapping(error.schema)
    match error.validator:
        case "additionalProperties":
            known = schema.get("properties", {})
            for name in value:
                if name not in known:
                    yield (*path, name), f"this field is not known; {nearest(name, known)}", True
        case "required":
            # jsonschema makes one error of each missing field, and names it only in its message.
            for name in argument:
                if name not in value and error.message.startswith(repr(name)):
                    yield path, f"{name} is missing{_purpose(schema, name)}", False
        case "propertyNames":
            yield path, error.message, False
        case _ if "propertyNames" in error.absolute_schema_path:
            yield (*path, str(value)), f"this name is not allowed; wanted: {_wanted(schema)}", True
        case "type":
            yield path, _mistyped(value, schema, path), False
        case _:
            yield path, _unfit(str(error.validator), value, schema, argument, path), False


def _mapping(schema: Any) -> Mapping[str, Any]:
    return schema if isinstance(schema, Mapping) else {}


def _purpose(schema: Mapping[str, Any], name: str) -> str:
    description = schema.get("properties", {}).get(name, {}).get("description", "")
    return f" ({description.rstrip('.')})" if description else ""


def _mistyped(value: Any, schema: Mapping[str, Any], path: Place) -> str:
    """A value of another type, and what would be right: most often it only wants quotes."""
    name = _last(path)
    text = _plain_text(value)
    types = schema.get("type", ())
    if value is None:
        return f"is empty; wanted: {_wanted(schema)}"
    if text is None or "string" not in types or not re.search(schema.get("pattern", ""), text):
        return f"found {found(value, path)}; wanted: {_wanted(schema)}"
    if is_secret(path):
        return f"found {HIDDEN}; {name} is text: quote it"
    quoted = f'"{text}"' if isinstance(path[-1] if path else 0, int) else f'{name}: "{text}"'
    return f"found {found(value, path)}; {name} is text: quote it ({quoted})"


def _last(path: Place) -> str:
    """The innermost name: `tag`, `args[0]`."""
    for start in range(len(path) - 1, -1, -1):
        if isinstance(path[start], str):
            return spelled(path[start:])
    return "this"


def _plain_text(value: Any) -> str | None:
    """A scalar as it was written; None for what is no scalar."""
    match value:
        case Bare():
            return value.text
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case _:
            return None


def _unfit(keyword: str, value: Any, schema: Mapping[str, Any], argument: Any, path: Place) -> str:
    match keyword:
        case "const":
            return f"found {found(value, path)}; wanted: {argument}"
        case "enum":
            choices = [str(choice) for choice in argument if choice is not None]
            suggestion = (
                nearest(value, choices) if isinstance(value, str) else f"wanted: {', '.join(choices)}"
            )
            return f"found {found(value, path)}; {suggestion}"
        case "minimum":
            return f"found {found(value, path)}; at least {argument} is wanted"
        case "maximum":
            return f"found {found(value, path)}; at most {argument} is wanted"
        case "maxLength":
            return f"has {len(value)} characters; at most {argument} are allowed"
        case "minLength":
            return "is empty"
        case "minItems":
            return "is empty; give at least one, or leave the field out"
        case "maxItems" | "maxProperties":
            return f"has {len(value)} entries; at most {argument} are allowed"
        case "uniqueItems":
            twice = next(item for index, item in enumerate(value) if item in value[:index])
            return f"{found(twice, path).removeprefix('the text ')} is there twice"
        case _:
            return f"found {found(value, path)}; wanted: {_wanted(schema)}"


def _wanted(schema: Mapping[str, Any]) -> str:
    """What a schema takes: a definition's description says it; a field's own tells what the field is for."""
    if "title" not in schema and "description" in schema:
        return str(schema["description"])
    types = schema.get("type", ())
    names = [types] if isinstance(types, str) else list(types)
    return " or ".join(_TYPE_WORDS[name] for name in names) or "another value"
