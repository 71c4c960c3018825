"""A remote repository, fetched into the state directory. Called by `repository`.

A fetch that fails leaves the mirror as it was: git moves the refs last and together. A mirror that git can no longer work
with (a damaged pack, a lock that a killed git left behind) is replaced by a new one once that is complete.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from reconciler.desired.calls import Calls, GitTimeout
from reconciler.desired.credentials import Credentials, credentials
from reconciler.desired.exclusive import exclusive
from reconciler.desired.source import Source
from reconciler.errors import ReconcilerError, Unavailable

_REFS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_DAMAGED = "damaged"
_FETCHED = "fetched"
_PACK_LIMIT = 1 << 30

_HINTS = (
    (
        "terminal prompts disabled",
        "the server wants a login, or another one: --git-username and --git-password-file",
    ),
    ("Authentication failed", "the server wants another login: --git-username and --git-password-file"),
    ("Permission denied (publickey", "the server does not take this SSH key: --git-ssh-key"),
    ("Host key verification failed", "the server's SSH key is not among the known ones: --git-known-hosts"),
    ("certificate", "the server's certificate is not trusted: --git-ca"),
    ("returned error: 30", "the server redirects: give the address that it redirects to as --repo"),
    ("Could not resolve host", "see that the name is right and that this host's DNS answers"),
    (
        "signal 25",
        "it has more than 1 GiB in one pack: the desired state belongs into a repository of its own",
    ),
    ("dubious ownership", "name the repository by its path, without file://"),
)

# The remote's own reasons: a new mirror would not get further.
_REMOTE = (*(text for text, _ in _HINTS), "unable to access", "Could not read from remote repository")


class _FetchFailed(ReconcilerError):
    """A fetch failed, for a reason that may lie in the mirror."""


def fetch(source: Source) -> None:
    """Bring the mirror up to what the remote has now. Raises `Unavailable`, and gives up after `source.timeout` seconds."""
    end = time.monotonic() + source.timeout
    try:
        source.mirror.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = credentials(source)
        with exclusive(source.mirror.with_suffix(".lock"), source.timeout):
            _tidy(source.mirror)
            _renew(source, known, end)
            (source.mirror / _FETCHED).touch()
            _pack(source.mirror, source.timeout)
    except OSError as error:
        raise Unavailable(
            f"cannot fetch {source.shown} into {source.mirror}: {error.strerror}; see --state-dir"
        ) from None
    except GitTimeout:
        raise Unavailable(
            f"cannot fetch {source.shown}: no answer within {source.timeout:g} s; "
            "what was fetched before stays in use, and it is tried again"
        ) from None


def fetched_at(mirror: Path) -> float | None:
    """When the last fetch succeeded, in Unix seconds; None before the first."""
    try:
        return (mirror / _FETCHED).stat().st_mtime
    except OSError:
        return None


def note_damage(mirror: Path) -> None:
    """Have the next fetch make the mirror anew: something in it could not be read."""
    with contextlib.suppress(OSError):
        (mirror / _DAMAGED).touch()


def _renew(source: Source, known: Credentials, end: float) -> None:
    """Fetch into the mirror; where that fails for another reason than the remote's, into a new one."""
    failure: _FetchFailed | None = None
    if source.mirror.is_dir() and not (source.mirror / _DAMAGED).exists():
        try:
            _fetch_into(source.mirror, source, known, end)
            return
        except _FetchFailed as error:
            if any(text in str(error) for text in _REMOTE):
                raise _unavailable(source, error) from None
            failure = error
    new = source.mirror.with_suffix(".new")
    try:
        _make(new)
        _fetch_into(new, source, known, end)
    except (_FetchFailed, GitTimeout) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise _unavailable(source, failure or error) from None
    old = source.mirror.with_suffix(".old")
    if source.mirror.exists():
        source.mirror.rename(old)
    new.rename(source.mirror)
    shutil.rmtree(old, ignore_errors=True)


def _make(mirror: Path) -> None:
    mirror.mkdir(mode=0o700)
    answer = Calls(mirror).run(
        "init", "--quiet", "--bare", "--template=", "--initial-branch=main", timeout=30
    )
    if answer.status != 0:
        raise _FetchFailed(answer.error)


def _fetch_into(mirror: Path, source: Source, known: Credentials, end: float) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise GitTimeout("no time is left")
    config = [("core.fsync", "committed,loose-object"), ("transfer.bundleURI", "false"), *known.config]
    calls = Calls(mirror, environment=known.environment, config=config, secret=known.secret)
    answer = calls.run(
        "fetch",
        "--quiet",
        "--atomic",
        "--prune",
        "--force",
        "--no-tags",
        "--no-write-fetch-head",
        "--no-recurse-submodules",
        "--no-auto-maintenance",
        "--",
        source.repo,
        *_REFS,
        timeout=left,
        file_limit=_PACK_LIMIT,
    )
    if answer.status != 0:
        raise _FetchFailed(answer.error)


def _unavailable(source: Source, failure: ReconcilerError) -> ReconcilerError:
    if isinstance(failure, GitTimeout):
        return failure
    said = str(failure)
    hint = next((hint for text, hint in _HINTS if text in said), None)
    lines = [f"cannot fetch {source.shown}:", said or "    git gave no reason"]
    return Unavailable("\n".join([*lines, *([f"    {hint}"] if hint else [])]))


def _tidy(mirror: Path) -> None:
    """Take away what a killed fetch left behind, and put back what a killed replacement had moved aside."""
    old = mirror.with_suffix(".old")
    if old.exists() and not mirror.exists():
        old.rename(mirror)
    for leftover in (old, mirror.with_suffix(".new")):
        shutil.rmtree(leftover, ignore_errors=True)
    for pattern in ("objects/pack/tmp_*", "objects/pack/.tmp-*"):
        for file in mirror.glob(pattern):
            file.unlink(missing_ok=True)


def _pack(mirror: Path, timeout: float) -> None:
    """Let git pack what many fetches have brought, when it finds that there is enough of it."""
    settings = {
        "gc.auto": "2000",
        "gc.autoPackLimit": "50",
        "gc.autoDetach": "false",
        "gc.pruneExpire": "never",
    }
    calls = Calls(mirror, config=settings.items())
    # It saves room and nothing else: what does not succeed now does later.
    with contextlib.suppress(ReconcilerError):
        calls.run("gc", "--auto", "--quiet", timeout=timeout)
