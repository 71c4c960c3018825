"""One JSON object read field by field, and written: what `records`, `lock` and `settings` share. Pure.

A reader ignores fields that it does not know and a writer keeps them: they travel in a value's `extra`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from reconciler.errors import Corrupt

_SHOWN = 60
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def corrupt(key: str, problem: str) -> NoReturn:
    """Say that the value stored at `key` is not what it must be."""
    raise Corrupt(f"cannot use {key}: {problem}; correct or delete it by hand, it is never overwritten")


def shown(value: object) -> str:
    """A found value in people's words and never long: `the text "abc"`, `the number 3`, `a list`, `null`."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            text = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
            return f"the text {json.dumps(text, ensure_ascii=False)}"
        case int() | float():
            text = _number(value)
            return f"the number {text}"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case dict():
            return "an object" if value else "an empty object"
        case _:
            return f"a {type(value).__name__}"


def _number(value: float) -> str:
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:
        return f"of {value.bit_length()} bits"
    return json.dumps(value)


def encode(document: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> str:
    """The object as JSON text on one line, its fields in the order given, then those of `extra` that it does not have."""
    whole = (
        {**document, **{name: value for name, value in extra.items() if name not in document}}
        if extra
        else document
    )
    text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    # A message may quote a program's output whose bytes are no UTF-8; etcd's values must be.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def decode(text: str | bytes, key: str) -> dict[str, Any]:
    """The JSON object stored at `key`. Raises `Corrupt`."""
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        document = _DECODER.decode(decoded)
        if _ESCAPED_SURROGATE.search(decoded):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeError:
        corrupt(key, "it is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        corrupt(key, f"it is not JSON ({_reason(error)}), but {_beginning(text)}")
    if not isinstance(document, dict):
        corrupt(key, f"it is {shown(document)}, and must be a JSON object")
    return document


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_not_json)
"""Made once: `json.loads` with an option makes one for each of a fleet's values."""


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _beginning(text: str | bytes) -> str:
    whole = text.decode(errors="replace") if isinstance(text, bytes) else text
    return shown(whole) if whole else "empty"


class Fields:
    """The fields of one JSON object, each asked for by name and type; `rest` are those that nobody asked for.

    A field that is absent is its default, or `Corrupt` where there is none; `null` counts as absent.
    """

    __slots__ = ("_asked", "_document", "_key", "_place")

    def __init__(self, document: Mapping[str, Any], key: str, place: str = "") -> None:
        self._document = document
        self._key = key
        self._place = place
        self._asked: set[str] = set()

    def wrong(self, name: str, problem: str) -> NoReturn:
        corrupt(self._key, f"{self._place}{name} {problem}")

    def _take(self, name: str, wanted: str, required: bool) -> Any:
        self._asked.add(name)
        value = self._document.get(name)
        if value is None and required:
            if name in self._document:
                self.wrong(name, f"is null, and must be {wanted}")
            self.wrong(name, f"is missing, and must be {wanted}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._take(name, "text", default is None)
        if value is None:
            return default or ""
        if not isinstance(value, str):
            self.wrong(name, f"is {shown(value)}, and must be text")
        return value

    def optional_text(self, name: str) -> str | None:
        return self.text(name, "") if self._take(name, "text", False) is not None else None

    def one_of(self, name: str, words: Iterable[str], default: str | None = None) -> str:
        value = self.text(name, default)
        if value not in words:
            self.wrong(name, f"is {shown(value)}, and must be one of {', '.join(words)}")
        return value

    def time(self, name: str) -> str:
        """A time, kept as it is written."""
        value = self.text(name)
        if not _RFC3339.fullmatch(value):
            self.wrong(
                name, f'is {shown(value)}, and must be a time such as "2026-01-02T03:04:05.000000006Z"'
            )
        return value

    def integer(self, name: str, default: int | None = None, least: int = 0) -> int:
        value = self._take(name, "a whole number", default is None)
        if value is None:
            return default or 0
        if type(value) is not int:
            self.wrong(name, f"is {shown(value)}, and must be a whole number")
        if value < least:
            self.wrong(name, f"is {shown(value)}, and must be at least {least}")
        return value

    def optional_integer(self, name: str) -> int | None:
        return self.integer(name, 0) if self._take(name, "a whole number", False) is not None else None

    def seconds(self, name: str, default: float) -> float:
        value = self._take(name, "seconds", False)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 <= value < 1e12:
            self.wrong(name, f"is {shown(value)}, and must be a number of seconds")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._take(name, "true or false", False)
        if value is None:
            return default
        if type(value) is not bool:
            self.wrong(name, f"is {shown(value)}, and must be true or false")
        return value

    def sequence(self, name: str) -> list[Any]:
        value = self._take(name, "a list", False)
        if value is None:
            return []
        if not isinstance(value, list):
            self.wrong(name, f"is {shown(value)}, and must be a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        found = self.sequence(name)
        for value in found:
            if not isinstance(value, str):
                self.wrong(name, f"holds {shown(value)}, and must be a list of texts")
        return tuple(found)

    def integers(self, name: str) -> tuple[int, ...]:
        found = self.sequence(name)
        for value in found:
            if type(value) is not int or value < 0:
                self.wrong(name, f"holds {shown(value)}, and must be a list of numbers from 0")
        return tuple(found)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._take(name, "an object", False)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.wrong(name, f"is {shown(value)}, and must be an object")
        return value

    def objects(self, name: str) -> list[Fields]:
        """A list of objects."""
        found = []
        for index, value in enumerate(self.sequence(name)):
            if not isinstance(value, dict):
                self.wrong(name, f"holds {shown(value)}, and must be a list of objects")
            found.append(Fields(value, self._key, f"{self._place}{name}[{index}]."))
        return found

    def object(self, name: str) -> Fields | None:
        """An object; None where it is absent."""
        value = self._take(name, "an object", False)
        return None if value is None else Fields(self.mapping(name), self._key, f"{self._place}{name}.")

    def by_server(self, name: str) -> dict[int, str]:
        """An object of server number → text."""
        found: dict[int, str] = {}
        for server, value in self.mapping(name).items():
            if not (server.isascii() and server.isdecimal() and len(server) <= 9):
                self.wrong(name, f"has the name {shown(server)}, and must have server numbers")
            if not isinstance(value, str):
                self.wrong(name, f"holds {shown(value)} for server {server}, and must hold texts")
            found[int(server)] = value
        return dict(sorted(found.items()))

    @property
    def rest(self) -> dict[str, Any]:
        """The fields that were not asked for: a newer program's."""
        if len(self._asked) >= len(self._document) and self._asked.issuperset(self._document):
            return {}
        return {name: value for name, value in self._document.items() if name not in self._asked}
