"""Push webhooks of GitHub, GitLab and Gitea: whether one is genuine, and whether it is about what is followed. Called by `app`.

A genuine one means "fetch now" and nothing else: nothing in it is believed, so an old one sent again does no harm. Pure,
but for `Deliveries`, which lives in the server's event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, urlsplit

log = logging.getLogger(__name__)

GITHUB_SIGNATURE = "x-hub-signature-256"
GITEA_SIGNATURE = "x-gitea-signature"
GITLAB_TOKEN = "x-gitlab-token"  # noqa: S105 (a header's name)
_EVENTS = ("x-gitea-event", "x-github-event", "x-gitlab-event")
_PUSHES = ("push", "push hook", "tag push hook", "system hook")
_URLS = (
    *("clone_url", "ssh_url", "git_url", "html_url", "url"),
    *("git_http_url", "git_ssh_url", "http_url", "web_url", "homepage", "git_http", "git_ssh"),
)
_NAMES = ("full_name", "path_with_namespace")

QUIET = 0.5
"""Seconds without another delivery after which a burst is over."""
LONGEST = 2.0
"""Seconds that a delivery waits at most for the end of its burst."""
GAP = 5.0
"""Seconds between two fetches at least, however many deliveries come."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What is followed, in words of the options: which repository, and which branch, tag or tags in it."""

    repo: str
    ref: str | None = None
    tag_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a webhook is about: its event, the paths by which it names its repository, and the ref that was pushed."""

    event: str
    repositories: frozenset[str]
    ref: str | None


def is_genuine(secret: bytes, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether `body` was signed with `secret`, or came with it. Constant time; an empty secret signs nothing."""
    if not secret:
        return False
    signature = hmac.new(secret, body, hashlib.sha256).hexdigest().encode()
    wanted = {
        GITEA_SIGNATURE: signature,
        GITHUB_SIGNATURE: b"sha256=" + signature,
        GITLAB_TOKEN: secret,
    }
    # Gitea sends GitHub's header too: whoever made one of them right knows the secret.
    return any(
        hmac.compare_digest(headers[name].encode("latin-1", "replace"), value)
        for name, value in wanted.items()
        if name in headers
    )


def read_delivery(headers: Mapping[str, str], body: bytes) -> Delivery:
    """What a genuine delivery is about. Raises ValueError where its body is not JSON, nor a form with JSON in `payload`."""
    document = _document(headers.get("content-type", ""), body)
    event = next((headers[name].lower() for name in _EVENTS if name in headers), "push")
    places = [document.get("repository"), document.get("project")]
    named = [
        path
        for place in places
        if isinstance(place, dict)
        for name in (*_URLS, *_NAMES)
        if isinstance(value := place.get(name), str)
        and (path := repository_path(value) if name in _URLS else _plain(value))
    ]
    ref = document.get("ref")
    return Delivery(event, frozenset(named), ref if isinstance(ref, str) else None)


def why_ignored(delivery: Delivery, followed: Followed) -> str | None:
    """Why a delivery means nothing here; None where it means "fetch now"."""
    if delivery.event not in _PUSHES or delivery.ref is None:
        return "it is no push"
    ours = repository_path(followed.repo)
    if ours and delivery.repositories and ours not in delivery.repositories:
        return "it is about another repository"
    if not _is_followed(delivery.ref, followed):
        return "it is about another branch or tag"
    return None


def repository_path(url: str) -> str | None:
    """The path in a git URL, by which its hosts' other names (ssh or https, inside or outside) name it too; None for a local one."""
    if "://" in url:
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        return _plain(parts.path) if parts.scheme != "file" else None
    host, colon, path = url.partition(":")
    return _plain(path) if colon and host and "/" not in host else None


def _plain(path: str) -> str:
    return path.strip("/").removesuffix(".git").lower()


def _is_followed(ref: str, followed: Followed) -> bool:
    if followed.tag_pattern is not None:
        tag = ref.removeprefix("refs/tags/")
        return tag != ref and fnmatchcase(tag, followed.tag_pattern)
    if followed.ref is None and repository_path(followed.repo) is None:
        return True  # a local repository's HEAD: what it points to is not known here
    wanted = followed.ref or "main"
    return ref in (wanted, f"refs/heads/{wanted}", f"refs/tags/{wanted}")


def _document(content_type: str, body: bytes) -> dict[str, Any]:
    text = body.decode()
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
        text = _only(parse_qs(text, max_num_fields=16).get("payload", ()))
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def _only(values: Iterable[str]) -> str:
    found = list(values)
    if len(found) != 1:
        raise ValueError("the form has no payload")
    return found[0]


def ring_at(now: float, first: float, last: float | None) -> float:
    """When to ring for a burst that began at `first` and goes on `now`; it last rang at `last`. In seconds of one clock."""
    after_burst = min(now + QUIET, first + LONGEST)
    return after_burst if last is None else max(after_burst, last + GAP)


class Deliveries:
    """Makes one ring of a burst. Used in the event loop only."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._first = 0.0
        self._count = 0
        self._last: float | None = None

    def note(self) -> None:
        """One more delivery came."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._count += 1
        if self._timer is None:
            self._first = now
        else:
            self._timer.cancel()
        self._timer = loop.call_at(ring_at(now, self._first, self._last), self._over)

    def _over(self) -> None:
        log.info("fetches for %d webhook%s", self._count, "s" if self._count > 1 else "")
        self._timer, self._count = None, 0
        self._last = asyncio.get_running_loop().time()
        self._ring()
