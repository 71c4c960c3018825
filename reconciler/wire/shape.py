"""A JSON Schema made into one quick yes or no. Pure; called by `schema`.

The schema stays the one truth: this answers only whether all is well, which is the ordinary case, without importing
`jsonschema`; what is wrong, and where, `jsonschema` says. It knows the keywords that our schemas use and refuses any other,
so that a schema cannot say something that is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Shape = Callable[[Any], bool]

_ANNOTATIONS = frozenset({"$schema", "$id", "$defs", "title", "description", "examples", "default"})
_TYPES: Mapping[str, Shape] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


def compiled(schema: Mapping[str, Any]) -> Shape:
    """A function that says whether a value fits `schema`. Raises ValueError for a keyword that it does not know."""
    return _Compiler(schema).shape(schema)


class _Compiler:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._definitions: Mapping[str, Any] = root.get("$defs", {})
        self._known: dict[str, Shape] = {}

    def shape(self, schema: Mapping[str, Any]) -> Shape:
        tests = list(self._tests(schema))
        if len(tests) == 1:
            return tests[0]
        return lambda value: all(test(value) for test in tests)

    def _tests(self, schema: Mapping[str, Any]) -> Iterable[Shape]:
        words = {word: argument for word, argument in schema.items() if word not in _ANNOTATIONS}
        if "type" in words:
            yield _typed(words.pop("type"))
        if "$ref" in words:
            yield self._reference(words.pop("$ref"))
        yield from _scalar(words)
        yield from self._array(words)
        yield from self._object(words)
        yield from self._combined(words)
        if words:
            raise ValueError(f"the schema has keywords that nothing looks at: {', '.join(sorted(words))}")

    def _reference(self, address: str) -> Shape:
        name = address.removeprefix("#/$defs/")
        if name not in self._known:
            # A definition may hold itself: what is asked for meanwhile looks it up when it is called.
            self._known[name] = lambda value: self._known[name](value)
            self._known[name] = self.shape(self._definitions[name])
        return self._known[name]

    def _array(self, words: dict[str, Any]) -> Iterable[Shape]:
        if "items" in words:
            item = self.shape(words.pop("items"))
            yield lambda value: not isinstance(value, list) or all(map(item, value))
        least, most = words.pop("minItems", 0), words.pop("maxItems", None)
        if least or most is not None:
            most = float("inf") if most is None else most
            yield lambda value: not isinstance(value, list) or least <= len(value) <= most
        if words.pop("uniqueItems", False):
            yield lambda value: not isinstance(value, list) or _unique(value)

    def _object(self, words: dict[str, Any]) -> Iterable[Shape]:
        required = words.pop("required", ())
        if required:
            yield lambda value: not isinstance(value, dict) or all(name in value for name in required)
        if "maxProperties" in words:
            most = words.pop("maxProperties")
            yield lambda value: not isinstance(value, dict) or len(value) <= most
        if "propertyNames" in words:
            named = self.shape(words.pop("propertyNames"))
            yield lambda value: not isinstance(value, dict) or all(map(named, value))
        if "properties" not in words and "additionalProperties" not in words:
            return
        properties = {name: self.shape(schema) for name, schema in words.pop("properties", {}).items()}
        more = words.pop("additionalProperties", True)
        other = self.shape(more) if isinstance(more, dict) else (lambda _: more is True)
        yield (
            lambda value: (
                not isinstance(value, dict)
                or all(properties.get(name, other)(member) for name, member in value.items())
            )
        )

    def _combined(self, words: dict[str, Any]) -> Iterable[Shape]:
        if "anyOf" in words:
            any_of = [self.shape(schema) for schema in words.pop("anyOf")]
            yield lambda value: any(shape(value) for shape in any_of)
        if "oneOf" in words:
            one_of = [self.shape(schema) for schema in words.pop("oneOf")]
            yield lambda value: sum(shape(value) for shape in one_of) == 1
        if "if" in words:
            condition = self.shape(words.pop("if"))
            then, other = self.shape(words.pop("then", {})), self.shape(words.pop("else", {}))
            yield lambda value: then(value) if condition(value) else other(value)


def _typed(names: str | list[str]) -> Shape:
    if isinstance(names, str):
        return _TYPES[names]
    types = [_TYPES[name] for name in names]
    return lambda value: any(fits(value) for fits in types)


def _scalar(words: dict[str, Any]) -> Iterable[Shape]:
    if "const" in words:
        yield _among([words.pop("const")])
    if "enum" in words:
        yield _among(words.pop("enum"))
    if "pattern" in words:
        search = re.compile(words.pop("pattern")).search
        yield lambda value: not isinstance(value, str) or search(value) is not None
    shortest, longest = words.pop("minLength", 0), words.pop("maxLength", None)
    if shortest or longest is not None:
        longest = float("inf") if longest is None else longest
        yield lambda value: not isinstance(value, str) or shortest <= len(value) <= longest
    if "minimum" in words:
        least = words.pop("minimum")
        yield lambda value: type(value) not in (int, float) or value >= least
    if "maximum" in words:
        most = words.pop("maximum")
        yield lambda value: type(value) not in (int, float) or value <= most


def _among(choices: list[Any]) -> Shape:
    """True is not 1 in JSON, though it is in Python."""
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def _unique(values: list[Any]) -> bool:
    try:
        return len({(type(value), value) for value in values}) == len(values)
    except TypeError:
        return all(value not in values[:index] for index, value in enumerate(values))
