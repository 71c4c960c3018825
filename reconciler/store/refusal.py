"""What an error of gRPC or etcd means: whether it is final, whether the request was sent. Pure; called by `client`, `login`, `stream`."""

from __future__ import annotations

from typing import Any

from reconciler.errors import Fenced, NoEtcd, ReconcilerError


class Compacted(ReconcilerError):
    """The etcd revision that was asked for has been compacted: read the newest state instead."""


class LeaseGone(Fenced):
    """etcd does not know the lease (any more): what hangs on it is gone, and nothing more can be hung on it."""


class ReplyTooLarge(Exception):
    """A reply over the limit: ask for fewer keys at once."""


_UNSENT = (
    "failed to connect",
    "connection refused",
    "dns resolution failed",
    "name resolution",
    "no such file or directory",
    "handshake",
    "no leader",
    "too many requests",
)


def is_unsent(error: Any) -> bool:
    """Whether etcd surely did nothing: the request never left, or was refused before it was proposed."""
    words = (error.details() or "").lower()
    return any(word in words for word in _UNSENT)


def must_authenticate(error: Any) -> bool:
    return error.code().name == "UNAUTHENTICATED" or is_about_token(error.details() or "")


def is_about_token(words: str) -> bool:
    """Whether a new token may help: the old one has expired, its member has forgotten it, rights were changed since, or it
    is none because etcd had no authentication then.
    """
    return any(
        phrase in words
        for phrase in ("invalid auth token", "revision of auth store is old", "user name is empty")
    )


def raise_if_final(error: Any, endpoint: str) -> None:
    """Raise what no repetition changes; return where another attempt may help."""
    code, words = error.code().name, error.details() or ""
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in words:
        raise ReplyTooLarge
    if "compacted" in words or "future revision" in words:
        raise Compacted(f"cannot read etcd at {endpoint} at the revision asked for: {words}") from None
    if "requested lease not found" in words:
        raise LeaseGone(f"cannot use the lease at etcd at {endpoint}: {words}") from None
    if "database space exceeded" in words:
        raise NoEtcd(
            f"cannot write to etcd at {endpoint}: it has raised the NOSPACE alarm ({words}); "
            "compact and defragment it, then `etcdctl alarm disarm`"
        ) from None
    if code == "PERMISSION_DENIED":
        raise ReconcilerError(
            f"cannot do this in etcd at {endpoint}: {words}; `reconcile etcd-roles` shows what the user's role needs"
        ) from None
    if code == "UNAUTHENTICATED" or "user name is empty" in words:
        raise ReconcilerError(
            f"cannot log in to etcd at {endpoint}: {words}; it wants --etcd-user and --etcd-password-file"
        ) from None
    if code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "OUT_OF_RANGE", "UNIMPLEMENTED"):
        raise ReconcilerError(f"etcd at {endpoint} refuses the request: {words}") from None


def words_of(error: Any) -> str:
    """etcd's own words, or gRPC's, on one line."""
    words = " ".join((error.details() or "").split())
    return words or error.code().name.lower().replace("_", " ")
