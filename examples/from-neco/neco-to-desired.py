#!/usr/bin/env python3
"""Turn Neco's `artifacts.go` into a desired state: `neco-to-desired.py artifacts.go > desired-state/artifacts.yaml`.

Run by a person who takes a fleet over from Neco. Needs nothing but Python. It reads the one shape that `artifacts.go`
has, a composite literal of strings and booleans, and refuses everything else with its place: what a converter leaves
out without a word would be removed from the servers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Record = dict[str, str | bool]

IMAGE = {"Name": str, "Repository": str, "Tag": str, "Private": bool}
DEB = {"Name": str, "Owner": str, "Repository": str, "Release": str}
OS_IMAGE = {"Channel": str, "Version": str}
OPTIONAL = {"Private"}
"""Go leaves a false boolean out."""

# The operating system's image has had two names: before Flatcar it was CoreOS.
TYPES = {"Images": "ContainerImage", "Debs": "DebianPackage", "OSImage": "OSImage", "CoreOS": "CoreOSImage"}

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|//[^\n]*|/\*.*?\*/)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>[{}\[\]:,=])""",
    re.VERBOSE | re.DOTALL,
)
# What every YAML reads as text without quotes: it begins with a letter and is none of these words.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*\Z")
_SPECIAL = {"y", "yes", "n", "no", "on", "off", "true", "false", "null"}


class Unreadable(Exception):
    """The source does not have the shape that `artifacts.go` has; says where and what was expected."""

    def __init__(self, line: int, column: int, problem: str) -> None:
        super().__init__(f"{line}:{column}: {problem}")


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    line: int
    column: int

    def refuse(self, problem: str) -> Unreadable:
        return Unreadable(self.line, self.column, problem)

    def __str__(self) -> str:
        return "the end of the file" if self.kind == "end" else self.text


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Neco's ArtifactSet; each record has the fields of its Go type."""

    images: tuple[Record, ...] = ()
    debs: tuple[Record, ...] = ()
    os_image: Record | None = None


def tokens(source: str) -> Iterator[Token]:
    """Go's tokens without comments, and at last one of kind `end`."""
    position, line, line_start = 0, 1, 0
    while position < len(source):
        found = _TOKEN.match(source, position)
        column = position - line_start + 1
        if not found or not found.lastgroup:
            raise Unreadable(line, column, f"{source[position]} has no place in an artifacts.go")
        if found.lastgroup != "space":
            yield Token(found.lastgroup, found[0], line, column)
        if newlines := found[0].count("\n"):
            line += newlines
            line_start = position + found[0].rindex("\n") + 1
        position = found.end()
    yield Token("end", "", line, position - line_start + 1)


class Reader:
    """Reads `var CurrentArtifacts = ArtifactSet{…}`, token by token."""

    def __init__(self, source: str) -> None:
        self._tokens = list(tokens(source))
        self._index = 0

    def artifacts(self) -> Artifacts:
        self._expect("package")
        self._take("word", "the package's name")
        for text in ("var", "CurrentArtifacts", "=", "ArtifactSet"):
            self._expect(text)
        images: tuple[Record, ...] = ()
        debs: tuple[Record, ...] = ()
        os_image: Record | None = None
        for name in self._fields():
            match name.text:
                case "Images":
                    images = self._list(TYPES[name.text], IMAGE)
                case "Debs":
                    debs = self._list(TYPES[name.text], DEB)
                case "OSImage" | "CoreOS":
                    if os_image is not None:
                        raise name.refuse("a second operating system image")
                    self._expect(TYPES[name.text])
                    os_image = self._record(OS_IMAGE)
                case _:
                    raise name.refuse(f"ArtifactSet has no field {name}: it has {', '.join(TYPES)}")
        if self._now.kind != "end":
            raise self._now.refuse(f"{self._now} after the artifact set: nothing may follow it")
        return Artifacts(images, debs, os_image)

    def _list(self, type_name: str, shape: Mapping[str, type]) -> tuple[Record, ...]:
        for text in ("[", "]", type_name):
            self._expect(text)
        records: dict[str, Record] = {}
        self._expect("{")
        while self._now.text != "}":
            at = self._now
            if at.text == type_name:  # Go lets one write the type again; gofmt -s takes it away
                self._index += 1
            record = self._record(shape)
            if records.setdefault(str(record["Name"]), record) is not record:
                raise at.refuse(f"a second {type_name} of the name {record['Name']}")
            self._separator()
        self._expect("}")
        return tuple(records.values())

    def _record(self, shape: Mapping[str, type]) -> Record:
        at = self._now
        record: Record = {}
        for name in self._fields():
            if name.text not in shape:
                raise name.refuse(f"no field {name} is known here: there are {', '.join(shape)}")
            record[name.text] = self._boolean() if shape[name.text] is bool else self._string()
        if missing := [name for name in shape if name not in record and name not in OPTIONAL]:
            raise at.refuse(f"{' and '.join(missing)} is missing")
        return record

    def _fields(self) -> Iterator[Token]:
        """Each `Name:` between braces; the caller reads the value that follows it."""
        seen: set[str] = set()
        self._expect("{")
        while self._now.text != "}":
            name = self._take("word", "a field's name")
            if name.text in seen:
                raise name.refuse(f"a second {name}")
            seen.add(name.text)
            self._expect(":")
            yield name
            self._separator()
        self._expect("}")

    def _separator(self) -> None:
        if self._now.text == ",":
            self._index += 1
        elif self._now.text != "}":
            raise self._now.refuse(f"a comma or }} was expected, and not {self._now}")

    def _string(self) -> str:
        at = self._take("string", "a string")
        if at.text.startswith("`"):
            return at.text[1:-1]
        try:  # Go's usual escapes are JSON's; the others have no place in a name or a version
            return str(json.loads(at.text))
        except ValueError:
            raise at.refuse(f"an escape in {at} that has no place in a name or a version") from None

    def _boolean(self) -> bool:
        at = self._take("word", "true or false")
        if at.text not in ("true", "false"):
            raise at.refuse(f"true or false was expected, and not {at}")
        return at.text == "true"

    @property
    def _now(self) -> Token:
        return self._tokens[self._index]

    def _take(self, kind: str, wanted: str) -> Token:
        at = self._now
        if at.kind != kind:
            raise at.refuse(f"{wanted} was expected, and not {at}")
        self._index += 1
        return at

    def _expect(self, text: str) -> None:
        if self._now.text != text:
            raise self._now.refuse(f"{text} was expected, and not {self._now}")
        self._index += 1


def desired_state(artifacts: Artifacts) -> Iterator[str]:
    """The lines of one `ArtifactSet` document. Everything keeps its order, so that two revisions can be compared."""
    yield "apiVersion: reconciler/v1"
    yield "kind: ArtifactSet"
    yield from _section("images", (_image(image) for image in artifacts.images))
    yield from _section("debs", (_flow(deb) for deb in artifacts.debs))
    if artifacts.os_image is not None:
        yield f"osImage: {_flow(artifacts.os_image)}"


def _section(name: str, entries: Iterable[str]) -> Iterator[str]:
    for number, entry in enumerate(entries):
        if not number:
            yield f"{name}:"
        yield f"  - {entry}"


def _image(image: Record) -> str:
    return _flow({name: value for name, value in image.items() if value is not False})


def _flow(record: Record) -> str:
    return "{" + ", ".join(f"{name.lower()}: {_scalar(value)}" for name, value in record.items()) + "}"


def _scalar(value: str | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if _PLAIN.match(value) and value.lower() not in _SPECIAL:
        return value
    return json.dumps(value)


def main() -> int:
    parser = argparse.ArgumentParser(description="Print Neco's artifacts.go as a desired state.")
    parser.add_argument(
        "artifacts", type=Path, help="artifacts.go (or artifacts_release.go) of a checkout of Neco"
    )
    path: Path = parser.parse_args().artifacts
    try:
        artifacts = Reader(path.read_text(encoding="utf-8")).artifacts()
    except Unreadable as problem:
        print(f"{path}:{problem}", file=sys.stderr)
        return 1
    except (OSError, UnicodeDecodeError) as error:
        print(f"cannot read {path}: {error}", file=sys.stderr)
        return 1
    print("\n".join(desired_state(artifacts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
