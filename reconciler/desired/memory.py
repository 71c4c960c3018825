"""What this host remembers: the newest revision whose rollout it entered, and which etcd it saw how far.

Called by the agent's loop and the commands. It stands in the state directory and not in etcd, so that whoever can
write to git or etcd can neither take a host back to an old revision nor put an old etcd in place unseen. Checks only read;
`entered` and `saw_etcd` write, whole and atomically.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reconciler.desired.exclusive import exclusive
from reconciler.desired.repository import is_descendant
from reconciler.desired.source import COMMIT, CONTENT, Source
from reconciler.errors import Corrupt, HostError, Refused

_FORMAT = 1
_LIMIT = 1 << 20
_SOURCES = 100
_REWINDS = 100
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was accepted from one source. `rewinds`: the commits that `--allow-rewind` has let through, oldest first."""

    revision: str
    rewinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """All that is remembered. `accepted` by the source's identity, the latest last; `etcd_cluster` is hex, as etcd shows it."""

    accepted: tuple[tuple[str, Accepted], ...] = ()
    etcd_cluster: str | None = None
    etcd_revision: int = 0

    def of(self, source: Source) -> Accepted | None:
        return dict(self.accepted).get(source.identity)


def memory_file(state_dir: Path) -> Path:
    """Where it is kept."""
    return state_dir / "accepted.json"


def recall(state_dir: Path) -> Memory:
    """What is remembered; nothing where there is no file yet. Raises `Corrupt` for a file that cannot be understood."""
    path = memory_file(state_dir)
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return Memory()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    try:
        if len(content) > _LIMIT:
            raise ValueError(f"it has more than {_LIMIT} bytes")
        return _parsed(json.loads(content))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(
            f"cannot use {path}: {_why(error)}. It says which revision this host accepted last; "
            "repair it, or remove it if no older revision can be offered to this host"
        ) from None


def check_forward(source: Source, revision: str, memory: Memory) -> None:
    """Raise `Refused` unless `revision` is the one accepted last, comes after it, or may be gone back to this once."""
    accepted = memory.of(source)
    if accepted is None or is_descendant(source, revision, accepted.revision):
        return
    if source.allow_rewind == revision:
        if revision not in accepted.rewinds:
            return
        raise Refused(
            f"revision {revision} of {source.shown} is refused: --allow-rewind {revision} was used once, and this host has "
            f"since entered {accepted.revision}; going back again needs a new commit that reverts"
        )
    raise Refused(
        f"revision {revision} of {source.shown} is refused: it does not come after {accepted.revision}, which this host "
        f"entered last (history was rewritten, or the ref moved back); if that is meant, allow it once with "
        f"--allow-rewind {revision}"
    )


def check_etcd(state_dir: Path, memory: Memory, cluster: str, revision: int) -> None:
    """Raise `Refused` for another etcd than the one seen before, or for one that has lost what was seen."""
    if memory.etcd_cluster is None:
        return
    path = memory_file(state_dir)
    remedy = f"if that is meant, take `etcd` out of {path}"
    if cluster != memory.etcd_cluster:
        raise Refused(
            f"this etcd is refused: its cluster id is {cluster}, and this host worked with {memory.etcd_cluster}; {remedy}"
        )
    if revision < memory.etcd_revision:
        raise Refused(
            f"this etcd is refused: it is at etcd revision {revision}, and this host has seen {memory.etcd_revision}: "
            f"it lost data or was restored from a snapshot; see that the reboot lock's holders are true, and {remedy}"
        )


def entered(source: Source, revision: str, state_dir: Path) -> None:
    """Remember that this host entered the rollout of `revision`; a rewind that let it in is used up by that."""
    with _writing(state_dir):
        memory = recall(state_dir)
        accepted = memory.of(source)
        rewinds = accepted.rewinds if accepted else ()
        if accepted and accepted.revision == revision:
            return
        if source.allow_rewind == revision:
            rewinds = (*(each for each in rewinds if each != revision), revision)[-_REWINDS:]
        others = tuple(item for item in memory.accepted if item[0] != source.identity)
        newest = (source.identity, Accepted(revision, rewinds))
        _write(state_dir, replace(memory, accepted=(*others, newest)[-_SOURCES:]))


def saw_etcd(state_dir: Path, cluster: str, revision: int) -> None:
    """Remember etcd's cluster id and the highest etcd revision. Does nothing where that is known already."""
    with _writing(state_dir):
        memory = recall(state_dir)
        check_etcd(state_dir, memory, cluster, revision)
        if (cluster, revision) != (memory.etcd_cluster, memory.etcd_revision):
            _write(state_dir, replace(memory, etcd_cluster=cluster, etcd_revision=revision))


def _writing(state_dir: Path) -> AbstractContextManager[None]:
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise HostError(f"cannot make {state_dir}: {error.strerror}; see --state-dir") from None
    return exclusive(state_dir / "accepted.lock", _TIMEOUT)


def _write(state_dir: Path, memory: Memory) -> None:
    path = memory_file(state_dir)
    new = path.with_suffix(".new")
    try:
        with new.open("w", encoding="utf-8") as file:
            json.dump(_document(memory), file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None


def _document(memory: Memory) -> dict[str, Any]:
    accepted = [
        {"source": source, "revision": each.revision, "rewinds": list(each.rewinds)}
        for source, each in memory.accepted
    ]
    document: dict[str, Any] = {"format": _FORMAT, "accepted": accepted}
    if memory.etcd_cluster is not None:
        document["etcd"] = {"cluster": memory.etcd_cluster, "revision": memory.etcd_revision}
    return document


def _parsed(document: Any) -> Memory:
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    if document.get("format") != _FORMAT:
        raise ValueError(f"its format is {document.get('format')!r}, and this program knows {_FORMAT}")
    etcd = document.get("etcd")
    return Memory(
        accepted=tuple(
            (
                _text(each["source"]),
                Accepted(_revision(each["revision"]), tuple(map(_revision, each["rewinds"]))),
            )
            for each in document["accepted"]
        ),
        etcd_cluster=_text(etcd["cluster"]) if etcd is not None else None,
        etcd_revision=_number(etcd["revision"]) if etcd is not None else 0,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} stands where a text is due")
    return value


def _revision(value: Any) -> str:
    if not isinstance(value, str) or not (COMMIT.fullmatch(value) or CONTENT.fullmatch(value)):
        raise ValueError(f"{value!r} is no revision")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} stands where a number is due")
    return value


def _why(error: Exception) -> str:
    match error:
        case KeyError():
            return f"{error} is missing"
        case json.JSONDecodeError():
            return f"it is no JSON: {error}"
        case _:
            return str(error)
