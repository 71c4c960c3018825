"""Strict YAML: one pass over libyaml's events, every finding with its place, nothing that grows beyond its input.

Called by `desired` and `settings`. Pure. What is refused: duplicate and complex keys, anchors, aliases, merge keys, tags, nesting and
size beyond the limits. A plain scalar that YAML 1.1 or 1.2 would read as something else than text, a whole
number, true, false or null (`1.10`, `yes`, `0o17`, `12:30`, `2026-01-02`) becomes a `Bare`, which no schema takes: so the message can
show what was written, and say to quote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reconciler.errors import Finding, Refused
from reconciler.wire.masking import masked_line

SIZE_LIMIT = 10 << 20
"""Bytes of one input."""
NODE_LIMIT = 500_000
"""Values (keys not counted) of one input; `desired` counts them over all files of a revision."""
DEPTH_LIMIT = 64
FINDING_LIMIT = 1_000
"""Findings of one input; what comes after as many adds nothing for a person."""

Path = tuple[str | int, ...]

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTHS = {"true": True, "false": False}
_WORDS = {
    word: truth
    for truth, words in (("true", ("yes", "on", "true")), ("false", ("no", "off", "false")))
    for lower in words
    for word in (lower, lower.capitalize(), lower.upper())
    if word not in _TRUTHS
}
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?[ \t]*(?:Z|[-+][0-9:]+)?)?"
)
_NUMBER = re.compile(
    r"[-+]?(?:0[xX][0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|\.(?:inf|Inf|INF)"
    r"|(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?)|\.(?:nan|NaN|NAN)"
)
_MAYBE_SPECIAL = frozenset("-+.0123456789~nNtTfFyYoO=<")


@dataclass(frozen=True, slots=True)
class Bare:
    """A plain scalar that is not what it looks like: `text` as written, `read_as` what YAML makes of it."""

    text: str
    read_as: str


class Mark(NamedTuple):
    """A place: line and column, from 1."""

    line: int
    column: int


class _Node(NamedTuple):
    """Where a mapping or a list begins, and where what is in it does. A scalar is only its mark: there are many."""

    mark: Any
    keys: dict[str, Any]
    children: dict[str, Any] | list[Any]


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its value as plain dict, list, str, int, bool, None and `Bare`; and where each part stands."""

    value: Any
    file: str
    root: Any

    def at(self, path: Sequence[str | int]) -> Any:
        """The value at `path`; None where there is none."""
        value = self.value
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def place(self, path: Sequence[str | int] = ()) -> Mark:
        """Where the value at `path` begins; where that is not there, the innermost value around it."""
        return _mark(self._walk(path)[0])

    def key_place(self, path: Sequence[str | int]) -> Mark:
        """Where the key of the value at `path` begins; the value itself in a list."""
        parent, missing = self._walk(path[:-1])
        if path and not missing and isinstance(parent, _Node) and path[-1] in parent.keys:
            return _mark(parent.keys[str(path[-1])])
        return self.place(path)

    def finding(self, path: Sequence[str | int], problem: str) -> Finding:
        """`problem` at the value at `path`, with the path in words before it."""
        mark = self.place(path)
        return Finding(self.file, mark.line, mark.column, said(path, problem))

    def where(self, path: Sequence[str | int]) -> str:
        """`file:line:column` of the value at `path`."""
        mark = self.place(path)
        return f"{self.file}:{mark.line}:{mark.column}"

    @property
    def positions(self) -> dict[Path, Mark]:
        """Every value's place by its path."""
        return dict(_positions(self.root, ()))

    def _walk(self, path: Sequence[str | int]) -> tuple[Any, bool]:
        node = self.root
        for part in path:
            try:
                node = node.children[part]
            except (AttributeError, KeyError, IndexError, TypeError):
                return node, True
        return node, False


def said(path: Sequence[str | int], problem: str) -> str:
    """`problem` with the path in words before it: `images[2].tag: …`."""
    words = spelled(path)
    return f"{words}: {problem}" if words else problem


def spelled(path: Sequence[str | int]) -> str:
    """A path as people write it: `images[2].container.args[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _mark(node: Any) -> Mark:
    mark = node.mark if isinstance(node, _Node) else node
    return Mark(mark.line + 1, mark.column + 1)


def _inside(node: Any) -> Iterable[tuple[str | int, Any]]:
    if not isinstance(node, _Node):
        return ()
    return node.children.items() if isinstance(node.children, dict) else enumerate(node.children)


def _positions(node: Any, path: Path) -> Iterator[tuple[Path, Mark]]:
    yield path, _mark(node)
    for part, child in _inside(node):
        yield from _positions(child, (*path, part))


def parse(data: bytes, file: str) -> list[Document]:
    """All documents of one input. Raises `Refused` with every finding."""
    documents, findings = scan(data, file)
    if findings:
        raise Refused(f"cannot use {file}", sorted(findings))
    return documents


def scan(data: bytes, file: str, node_limit: int = NODE_LIMIT) -> tuple[list[Document], list[Finding]]:
    """The documents that could be built, and all that is wrong: so that other checks can add to the findings.

    Where something is refused but readable (an anchor, a second value for a key), reading goes on without it. What cannot
    be read at all, or is beyond a limit, ends it.
    """
    if len(data) > SIZE_LIMIT:
        megabytes = len(data) / (1 << 20)
        return [], [Finding(file, 1, 1, f"is {megabytes:.1f} MiB; at most {SIZE_LIMIT >> 20} MiB are read")]
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line, column = _at(data, error.start)
        problem = f"the byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        return [], [Finding(file, line, column, problem)]
    return _Reader(text, file, node_limit).read()


def count(document: Document) -> int:
    """How many values a document has."""
    return _count(document.root)


def _count(node: Any) -> int:
    return 1 + sum(_count(child) for _, child in _inside(node))


def _at(data: bytes, offset: int) -> tuple[int, int]:
    before = data[:offset]
    line_start = before.rfind(b"\n") + 1
    return before.count(b"\n") + 1, len(before[line_start:].decode(errors="replace")) + 1


class _Stopped(Exception):
    """Reading cannot go on; the finding that says why is there."""


class _Reader:
    """Builds the documents of one input from the parser's events."""

    def __init__(self, text: str, file: str, node_limit: int) -> None:
        import yaml

        self._yaml = yaml
        self._scalar, self._alias = yaml.ScalarEvent, yaml.AliasEvent
        self._mapping_start, self._mapping_end = yaml.MappingStartEvent, yaml.MappingEndEvent
        self._sequence_end = yaml.SequenceEndEvent
        self._text = text
        self._file = file
        self._left = node_limit
        self._node_limit = node_limit
        self._findings: list[Finding] = []
        self._parser: Any = None

    def read(self) -> tuple[list[Document], list[Finding]]:
        yaml = self._yaml
        documents: list[Document] = []
        # libyaml is eight times faster; where PyYAML was built without it, its own parser has the same events.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            self._parser = loader(self._text)
            self._next = self._parser.get_event
            while (event := self._next()) is not None:
                if type(event) is yaml.DocumentStartEvent:
                    value, node = self._value(self._next(), 0)
                    if value is not None:
                        documents.append(Document(value, self._file, node))
        except _Stopped:
            pass
        except yaml.YAMLError as error:
            self._unreadable(error)
        finally:
            if self._parser is not None:
                self._parser.dispose()
        return documents, self._findings

    def _refuse(self, mark: Any, problem: str) -> None:
        self._findings.append(Finding(self._file, mark.line + 1, mark.column + 1, problem))
        if len(self._findings) >= FINDING_LIMIT:
            raise _Stopped

    def _unreadable(self, error: Exception) -> None:
        """What the parser itself says, in one line with the line that it met."""
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        context = getattr(error, "context", None)
        said = f"{problem} ({context})" if context and mark else problem
        if mark is None:
            line, column = self._character(getattr(error, "position", 0))
            self._findings.append(Finding(self._file, line, column, f"this is no YAML: {said}"))
            return
        lines = self._text.splitlines()
        found = masked_line(lines[mark.line]) if mark.line < len(lines) else ""
        shown = f"; found: {found}" if found else ""
        self._findings.append(
            Finding(self._file, mark.line + 1, mark.column + 1, f"this is no YAML: {said}{shown}")
        )

    def _character(self, position: int) -> tuple[int, int]:
        """The place of the first character that YAML forbids; the parser's own position is in bytes or characters."""
        forbidden = re.search(
            "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufeff\uff00-\ufffd\U00010000-\U0010ffff]", self._text
        )
        return _at(
            self._text.encode(), len(self._text[: forbidden.start()].encode()) if forbidden else position
        )

    def _value(self, event: Any, depth: int) -> tuple[Any, Any]:
        """The value that begins with `event`, and its place: for a scalar the mark alone."""
        mark, kind = event.start_mark, type(event)
        self._left -= 1
        if self._left < 0:
            self._refuse(mark, f"there are more than {self._node_limit:,} values: divide them, or drop some")
            raise _Stopped
        if kind is self._alias:
            self._refuse(mark, f"an alias (*{_short(event.anchor)}) is not allowed: write the value out")
            return None, mark
        if event.anchor is not None:
            problem = (
                f"an anchor (&{_short(event.anchor)}) is not allowed: write the value out where it is used"
            )
            self._refuse(mark, problem)
        if event.tag is not None:
            self._refuse(mark, f"a tag ({_tag(event.tag)}) is not allowed: quote what is text")
        if kind is self._scalar:
            return (_plain(event.value) if event.implicit[0] else event.value), mark
        if depth >= DEPTH_LIMIT:
            self._refuse(mark, f"this is nested more than {DEPTH_LIMIT} deep")
            raise _Stopped
        return (
            self._mapping(mark, depth + 1) if kind is self._mapping_start else self._sequence(mark, depth + 1)
        )

    def _mapping(self, mark: Any, depth: int) -> tuple[dict[str, Any], _Node]:
        values: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        children: dict[str, Any] = {}
        while type(event := self._next()) is not self._mapping_end:
            key = self._key(event, depth, keys)
            value, node = self._value(self._next(), depth)
            if key is not None:
                values[key], keys[key], children[key] = value, event.start_mark, node
        return values, _Node(mark, keys, children)

    def _sequence(self, mark: Any, depth: int) -> tuple[list[Any], _Node]:
        values: list[Any] = []
        children: list[Any] = []
        while type(event := self._next()) is not self._sequence_end:
            value, node = self._value(event, depth)
            values.append(value)
            children.append(node)
        return values, _Node(mark, {}, children)

    def _key(self, event: Any, depth: int, seen: dict[str, Any]) -> str | None:
        """The key that `event` is; None, with a finding, where its value must not be used."""
        mark = event.start_mark
        if type(event) is not self._scalar:
            self._refuse(mark, "a key must be text: a list, a mapping or an alias cannot be one")
            if type(event) is not self._alias:
                self._value(event, depth)
            return None
        key: str = event.value
        if event.anchor is not None or event.tag is not None:
            self._refuse(mark, f"the key {_short(key)} has an anchor or a tag, which is not allowed")
        if key == "<<" and event.implicit[0]:
            self._refuse(mark, "a merge key (<<) is not allowed: write the fields out")
            return None
        if key in seen:
            first = _mark(seen[key])
            self._refuse(
                mark, f"{_short(key)} is there twice; first on line {first.line}, column {first.column}"
            )
            return None
        return key


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"


def _tag(tag: str) -> str:
    return _short(tag.replace("tag:yaml.org,2002:", "!!"))


def _plain(text: str) -> Any:
    """What a scalar without quotes is."""
    if text and text[0] not in _MAYBE_SPECIAL:
        return text
    if text in _NULLS:
        return None
    if text in _TRUTHS:
        return _TRUTHS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return _surprise(text) or text


def _surprise(text: str) -> Bare | None:
    """What YAML 1.1 or 1.2 makes of a text that is not what it looks like; None for ordinary text."""
    if text in _WORDS:
        return Bare(text, _WORDS[text])
    if text in ("=", "<<"):
        return Bare(text, "a word of its own")
    if _BASE_60.fullmatch(text):
        return Bare(text, "a number in base 60")
    if _DATE.fullmatch(text):
        return Bare(text, "a date")
    if _NUMBER.fullmatch(text):
        octal = re.fullmatch(r"[-+]?0o?[0-7_]+", text)
        return Bare(text, "an octal number" if octal else "a number")
    return None
