"""Which of two versions is later: Debian's order for packages from APT, one of our own for tags and releases.

Pure; `difference` says *upgrade* or *downgrade* by it, `desired` picks the highest of the tags that match a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from reconciler.core.artifact import AptDeb, Artifact, Known, ReleaseDeb

Direction = Literal["upgrade", "downgrade", "replace"]

_Number = tuple[int, str]
"""A number of any length, comparable without arithmetic: how many digits (leading zeros aside), and which."""

_ZERO: _Number = (0, "")
_TAG = re.compile(
    r"(?P<prefix>[^0-9]*)(?P<numbers>[0-9]+(?:[.-][0-9]+)*)"
    r"(?:-(?P<stage>alpha|beta|rc)(?:[.-]?(?P<stage_numbers>[0-9]+(?:[.-][0-9]+)*))?)?"
)
_DATE = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?![0-9])")
_STAGES = {"alpha": 0, "beta": 1, "rc": 2, None: 3}


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag or release that has an order. Two compare only where `prefix` and `dated` are equal; then by `order`."""

    prefix: str
    dated: bool
    order: tuple[tuple[_Number, ...], int, tuple[_Number, ...]]


def parse_tag(text: str) -> Tag | None:
    """The order of a tag such as `v1.4.0`, `3.3.10-1`, `2.1.0-rc.1.1` or `release-2019.09.27-6738`; None for any other form.

    Numbers compare alike whether `.` or `-` joins them, and missing ones count as 0.
    """
    found = _TAG.fullmatch(text)
    if not found:
        return None
    order = (_numbers(found["numbers"]), _STAGES[found["stage"]], _numbers(found["stage_numbers"] or ""))
    return Tag(found["prefix"], _DATE.match(found["numbers"]) is not None, order)


def highest(tags: Iterable[str]) -> str | None:
    """The tag with the highest version; None where none has an order (see `parse_tag`).

    Prefixes are not compared: the pattern has chosen them. Of two spellings of one version the later text is taken,
    so that the answer does not depend on the order of `tags`.
    """
    parsed = [(tag.order, text) for text in tags if (tag := parse_tag(text))]
    return max(parsed)[1] if parsed else None


def compare_debian(a: str, b: str) -> int:
    """Below 0, 0 or above 0 as `a` is before, level with or after `b` in Debian's order (Debian Policy, 5.6.12).

    Never fails: what `dpkg` would not take as a version has a place in the order all the same.
    """
    first, second = _debian_key(a), _debian_key(b)
    return (first > second) - (first < second)


def direction(before: Artifact | Known, after: Artifact | Known) -> Direction:
    """What going from `before` to `after`, which have one key, is by their versions.

    *replace* is what has no order: an equal version, a release that became an APT version, another prefix, scheme or
    channel. A package that is only known by its version is of the kind that the other one is; two such carry what dpkg
    says, and have Debian's order.
    """
    old, new = before.version, after.version
    if before.key.kind == "os-image":
        old_channel, _, old = old.rpartition("/")
        new_channel, _, new = new.rpartition("/")
        return _by_tag(old, new) if old_channel == new_channel else "replace"
    if before.key.kind == "deb":
        kinds = {type(artifact) for artifact in (before, after)} - {Known}
        if kinds == {ReleaseDeb, AptDeb}:
            return "replace"
        return _by_tag(old, new) if kinds == {ReleaseDeb} else _toward(compare_debian(new, old))
    return _by_tag(old, new)


def _by_tag(before: str, after: str) -> Direction:
    old, new = parse_tag(before), parse_tag(after)
    if not old or not new or (old.prefix, old.dated) != (new.prefix, new.dated):
        return "replace"
    return _toward((new.order > old.order) - (new.order < old.order))


def _toward(order: int) -> Direction:
    return "upgrade" if order > 0 else "downgrade" if order < 0 else "replace"


def _number(digits: str) -> _Number:
    significant = digits.lstrip("0")
    return (len(significant), significant)


def _numbers(text: str) -> tuple[_Number, ...]:
    """The numbers in `text`, without the zeros at its end, so that missing ones are 0."""
    numbers = [_number(digits) for digits in re.findall("[0-9]+", text)]
    while numbers and numbers[-1] == _ZERO:
        numbers.pop()
    return tuple(numbers)


# --- Debian ---------------------------------------------------------------------------------------------------------

_EPOCH = re.compile(r"([0-9]+):(.*)", re.DOTALL)
_PAIR = re.compile(r"([^0-9]*)([0-9]*)")
_Part = tuple[tuple[tuple[int, ...], _Number], ...]

_END, _TILDE = 0, -1
_AFTER_LETTERS = 0x110000
_EMPTY = ((_END,), _ZERO)


def _debian_key(version: str) -> tuple[_Number, _Part, _Part]:
    with_epoch = _EPOCH.fullmatch(version)
    epoch, rest = with_epoch.groups() if with_epoch else ("0", version)
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (_number(epoch), _debian_part(upstream), _debian_part(revision))


def _debian_part(text: str) -> _Part:
    """`text` as pairs of non-digits and number, with one empty pair at its end, which is what a shorter version is compared
    with: `1.0~` is before `1.0`, which is before `1.0a`, and `1.` is level with `1.0`."""
    pairs = [(_debian_text(match[1]), _number(match[2])) for match in _PAIR.finditer(text) if match[0]]
    return (*(pairs or [_EMPTY]), _EMPTY)


def _debian_text(text: str) -> tuple[int, ...]:
    return (*(_debian_character(character) for character in text), _END)


def _debian_character(character: str) -> int:
    """`~` is before the end, the end before letters, letters before all others."""
    if character == "~":
        return _TILDE
    return ord(character) if character.isascii() and character.isalpha() else ord(character) + _AFTER_LETTERS
