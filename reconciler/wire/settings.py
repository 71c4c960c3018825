"""What the fleet, this command and this host are told: `config/` in etcd, the configuration file, the host's policy. Pure.

Called by `store/view` (settings), `cli/config` (one setting, to be written or shown), `cli/options` (the file) and
`host/policy` (the policy).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reconciler.core.duration import format_duration, parse_duration
from reconciler.core.schedule import parse_schedule
from reconciler.core.state import Settings
from reconciler.core.window import parse_timezone
from reconciler.errors import Refused, UsageError
from reconciler.wire.document import corrupt, shown
from reconciler.wire.masking import HIDDEN, masked
from reconciler.wire.schema import nearest, validate
from reconciler.wire.yaml import Document, scan

_NANOSECONDS = 1_000_000_000
_NUMBER = re.compile(r"[0-9]{1,19}")
_URL = re.compile(r"https?://[^\s\x00-\x1f\x7f]+")
_WORD = re.compile(r"[\x21-\x7e]{1,1024}")

# --- config/ in etcd ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """One key under `config/`. `check` raises ValueError for a text that is no value of it."""

    name: str
    form: Literal["text", "duration", "secret"]
    check: Callable[[str], object]


def _address(text: str) -> str:
    if not _URL.fullmatch(text):
        raise ValueError("it is no address; write one that begins with http:// or https://")
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError("it has spaces, line ends or other characters that cannot be in one")
    return text


def _interval(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("it is 0, and must be longer")
    return seconds


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("notification/slack", "secret", _address),
        Setting("proxy", "text", _address),
        Setting("github-token", "secret", _word),
        Setting("check-update-interval", "duration", _interval),
        Setting("worker-timeout", "duration", _interval),
        Setting("release-time", "text", parse_schedule),
        Setting("release-timezone", "text", parse_timezone),
    )
}
"""The settings by name, which is the rest of their key after `config/`."""


def decode_settings(values: Mapping[str, str | bytes], prefix: str = "config/") -> Settings:
    """The fleet's settings from the stored texts by name; an empty one counts as absent. Raises `Corrupt`, naming `prefix` + name.

    Names that are no setting of ours are ignored: they are another program's.
    """
    texts = {
        name: text for name in SETTINGS if name in values and (text := _text(values[name], prefix + name))
    }
    for name, text in texts.items():
        if SETTINGS[name].form == "text":
            _checked(name, text, prefix)
    return Settings(
        slack=texts.get("notification/slack"),
        proxy=texts.get("proxy"),
        github_token=texts.get("github-token"),
        check_update_interval=_stored_seconds(texts, "check-update-interval", prefix),
        worker_timeout=_stored_seconds(texts, "worker-timeout", prefix),
        release_time=texts.get("release-time"),
        release_timezone=texts.get("release-timezone"),
    )


def _text(value: str | bytes, key: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        corrupt(key, "it is not UTF-8 text")


def _checked(name: str, text: str, prefix: str) -> None:
    try:
        SETTINGS[name].check(text)
    except ValueError as error:
        corrupt(prefix + name, f"found {shown(masked(text))}: {error}")


def _stored_seconds(texts: Mapping[str, str], name: str, prefix: str) -> float | None:
    if name not in texts:
        return None
    text = texts[name]
    if not _NUMBER.fullmatch(text) or not int(text):
        corrupt(prefix + name, f"it is {shown(text)}, and must be a number of nanoseconds")
    return int(text) / _NANOSECONDS


def setting(name: str) -> Setting:
    """The setting `name`. Raises `UsageError`, suggesting the nearest."""
    if name not in SETTINGS:
        raise UsageError(f"there is no setting {name}; {nearest(name, SETTINGS)}")
    return SETTINGS[name]


def stored_setting(name: str, text: str) -> str:
    """What is stored for `config set NAME TEXT`: a duration (`10m`) becomes decimal nanoseconds. Raises `UsageError`."""
    found = setting(name)
    try:
        found.check(text)
    except ValueError as error:
        what = "the value" if found.form == "secret" else shown(masked(text))
        raise UsageError(f"cannot set {name} to {what}: {error}") from None
    if found.form == "duration":
        return str(round(parse_duration(text) * _NANOSECONDS))
    return text


def shown_setting(name: str, stored: str) -> str:
    """A stored text as `config get` and `list` show it: `10m` for nanoseconds, a secret and a URL's password hidden."""
    match setting(name).form:
        case "secret":
            return HIDDEN if stored else ""
        case "duration":
            return format_duration(int(stored) / _NANOSECONDS) if _NUMBER.fullmatch(stored) else stored
        case "text":
            return "\n".join(masked(line) for line in stored.split("\n"))


# --- the configuration file -----------------------------------------------------------------------------------------


def read_configuration(data: bytes, file: str) -> dict[str, tuple[str | None, str]]:
    """The options in a configuration file: name → the text that a flag would have, and `file:line`. Raises `Refused`."""
    document = _single(data, file, "configuration")
    if document is None:
        return {}
    return {
        name: (_option_text(value), f"{file}:{document.key_place((name,)).line}")
        for name, value in document.value.items()
    }


def _option_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _single(data: bytes, file: str, schema: str) -> Document | None:
    """The one document of an input, which fits `schema`; None where there is none. Raises `Refused`."""
    documents, findings = scan(data, file)
    for second in documents[1:]:
        findings.append(second.finding((), "this is a second document; only one is read here"))
    if documents:
        findings += validate(documents[0], schema)
    if findings:
        raise Refused(f"cannot use {file}", sorted(set(findings)))
    return documents[0] if documents else None


# --- the host's policy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What a host allows, as patterns with `*` and `?`; None allows everything, an empty tuple nothing.

    `release_owners` are `owner` or `owner/repository`; `never_remove` are names of images and packages.
    """

    sources: tuple[str, ...] | None = None
    images: tuple[str, ...] | None = None
    release_owners: tuple[str, ...] | None = None
    packages: tuple[str, ...] | None = None
    binds: tuple[str, ...] | None = None
    drivers: tuple[str, ...] | None = None
    hooks: tuple[str, ...] | None = None
    never_remove: tuple[str, ...] = ()


def read_policy(data: bytes, file: str) -> HostPolicy:
    """The host's policy from its file. Raises `Refused`: a policy that cannot be read allows nothing."""
    document = _single(data, file, "policy")
    if document is None:
        raise Refused(
            f"cannot use {file}: it is empty; a policy that allows everything is a file that is not there"
        )
    allow = document.value.get("allow", {})

    def listed(name: str) -> tuple[str, ...] | None:
        return tuple(allow[name]) if name in allow else None

    return HostPolicy(
        sources=listed("sources"),
        images=listed("images"),
        release_owners=listed("releaseOwners"),
        packages=listed("packages"),
        binds=listed("binds"),
        drivers=listed("drivers"),
        hooks=listed("hooks"),
        never_remove=tuple(document.value.get("neverRemove", ())),
    )
