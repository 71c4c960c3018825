"""The files of a revision to `Desired`: read strictly, checked against the schemas and against each other. Pure.

Called by `desired/repository`'s users with what was read from the commit's tree. Everything that is wrong with a revision is said
at once, sorted by file and place; one bad document refuses the whole revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reconciler.core.artifact import Check, Kind
from reconciler.core.duration import parse_duration
from reconciler.core.state import (
    ArtifactSet,
    Budget,
    Desired,
    OsDriver,
    RebootPolicy,
    Revision,
    RolloutPolicy,
    ServerGroup,
    WavePolicy,
)
from reconciler.core.window import Window, parse_timezone, parse_window
from reconciler.errors import Finding, Refused
from reconciler.wire.agreement import Named, Stated, disagreements
from reconciler.wire.artifact import CHECK_TIMEOUT, artifact_from_json
from reconciler.wire.schema import found, nearest, validate
from reconciler.wire.yaml import FINDING_LIMIT, NODE_LIMIT, SIZE_LIMIT, Document, Path, count, scan

SCHEMAS: Mapping[str, str] = {
    "ArtifactSet": "artifact-set",
    "ServerGroup": "server-group",
    "RolloutPolicy": "rollout-policy",
}
"""Each kind of document, with the name of its schema."""

SERVER_LIMIT = 200_000
"""Servers that the groups and waves of one revision may name in all: a range is short to write."""

_NETBOOT_DIRECTORY = "/var/lib/netboot"


def read(files: Sequence[tuple[str, bytes]], revision: Revision) -> Desired:
    """The desired state of `revision`, from its files by name. Raises `Refused` with every finding."""
    documents, findings = _documents(files)
    # What is no good as YAML was left out of the value: that it is missing there is no finding of its own.
    said = {(finding.file, finding.line, finding.column) for finding in findings}
    valid: list[Document] = []
    for document in documents:
        wrong = _unfit(document)
        findings += [finding for finding in wrong if (finding.file, finding.line, finding.column) not in said]
        if not wrong:
            valid.append(document)
    reader = _Reader()
    sets = [reader.artifact_set(document) for document in _of_kind(valid, "ArtifactSet")]
    groups = [reader.server_group(document) for document in _of_kind(valid, "ServerGroup")]
    policies = [reader.rollout_policy(document) for document in _of_kind(valid, "RolloutPolicy")]
    findings += reader.findings
    findings += disagreements(sets, groups, policies, _named(documents))
    if findings:
        raise _refused(revision, findings)
    if not any(_of_kind(documents, "ArtifactSet")):
        raise Refused(
            f"cannot use {_short(revision)}: there is no ArtifactSet in it, and that must not mean to remove everything: "
            "check the path, or say so with one that is empty"
        )
    return Desired(
        revision,
        tuple(stated.value for stated in sets),
        tuple(stated.value for stated in groups),
        policies[0].value if policies else RolloutPolicy(),
    )


def _refused(revision: Revision, findings: Iterable[Finding]) -> Refused:
    ordered = sorted(set(findings))
    shown = ordered[:FINDING_LIMIT]
    number = f"{len(ordered)} things are wrong" if len(ordered) > 1 else "one thing is wrong"
    more = f", the first {len(shown)} are shown" if len(shown) < len(ordered) else ""
    return Refused(f"cannot use {_short(revision)}: {number}{more}", shown)


def _short(revision: Revision) -> str:
    if revision.id.startswith("sha256:"):
        return f"directory {revision.repo or revision.id[:19]}"
    return f"revision {revision.id[:12]}"


# --- documents ------------------------------------------------------------------------------------------------------


def _documents(files: Sequence[tuple[str, bytes]]) -> tuple[list[Document], list[Finding]]:
    """All documents, and what is wrong with them as YAML; bounded over all files together."""
    documents: list[Document] = []
    findings: list[Finding] = []
    bytes_left, nodes_left = SIZE_LIMIT, NODE_LIMIT
    for file, data in files:
        bytes_left -= len(data)
        if bytes_left < 0:
            findings.append(
                Finding(file, 1, 1, f"with this file the desired state is over {SIZE_LIMIT >> 20} MiB")
            )
            break
        found_here, wrong = scan(data, file, nodes_left)
        nodes_left -= sum(map(count, found_here))
        documents += found_here
        findings += wrong
        if len(findings) >= FINDING_LIMIT:
            break
    return documents, findings


def _unfit(document: Document) -> list[Finding]:
    """What is wrong with one document by itself."""
    value = document.value
    if not isinstance(value, dict):
        return [
            document.finding((), f"found {found(value)}; a document is a mapping with apiVersion and kind")
        ]
    kind = value.get("kind")
    if kind is None:
        return [document.finding((), f"kind is missing; wanted: {', '.join(SCHEMAS)}")]
    if not isinstance(kind, str) or kind not in SCHEMAS:
        return [document.finding(("kind",), f"found {found(kind)}; {nearest(str(kind), SCHEMAS)}")]
    return validate(document, SCHEMAS[kind])


def _of_kind(documents: Iterable[Document], kind: str) -> Iterable[Document]:
    return (
        document
        for document in documents
        if isinstance(document.value, dict) and document.value.get("kind") == kind
    )


def _named(documents: Iterable[Document]) -> Named:
    """The names of all groups and images, also of documents that are refused: so that none counts as unknown only for that."""
    documents = list(documents)
    groups = {_name(document.value) for document in _of_kind(documents, "ServerGroup")}
    images = {
        _name(image)
        for document in _of_kind(documents, "ArtifactSet")
        for image in _list(document.value.get("images"))
    }
    return Named(groups - {""}, images - {""})


def _name(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# --- values ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Values from documents that fit their schemas; what a schema cannot say about one value is found here."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._servers_left = SERVER_LIMIT

    def artifact_set(self, document: Document) -> Stated[ArtifactSet]:
        value = document.value
        places: list[tuple[Kind, Path]] = [
            ("image", ("images", index)) for index in range(len(value.get("images", ())))
        ]
        places += [("deb", ("debs", index)) for index in range(len(value.get("debs", ())))]
        places += [("os-image", ("osImage",))] if "osImage" in value else []
        right = [(kind, path) for kind, path in places if self._health_is_right(document, path)]
        artifacts = [artifact_from_json(kind, document.at(path), document.file) for kind, path in right]
        groups = frozenset(value.get("groups", ()))
        return Stated(ArtifactSet(tuple(artifacts), groups), document, tuple(path for _, path in right))

    def _health_is_right(self, document: Document, path: Path) -> bool:
        health = (*path, "container", "health")
        value = document.at(health)
        before = len(self.findings)
        if value is not None:
            self._check(document, health, value)
        return len(self.findings) == before

    def server_group(self, document: Document) -> Stated[ServerGroup]:
        value = document.value
        if value["name"] == "default":
            self._wrong(
                document,
                ("name",),
                "default is the group of the servers that are in no other: give this one another name",
            )
        group = ServerGroup(
            name=value["name"],
            servers=self._servers(document, ("servers",), value["servers"]),
            os_image=_os_driver(value.get("osImage", {})),
            reboot=self._reboot(document, value.get("reboot", {})),
        )
        return Stated(group, document)

    def _reboot(self, document: Document, value: dict[str, Any]) -> RebootPolicy:
        path: Path = ("reboot",)
        timezone = value.get("timezone", "UTC")
        try:
            parse_timezone(timezone)
        except ValueError as error:
            self._wrong(document, (*path, "timezone"), str(error))
        return RebootPolicy(
            strategy=value.get("strategy", "etcd-lock"),
            lock_group=value.get("lockGroup", "default"),
            slots=value.get("slots"),
            windows=tuple(self._windows(document, (*path, "windows"), value.get("windows", ()))),
            timezone=timezone,
            before=tuple(value.get("before", ())),
            after=tuple(value.get("after", ())),
            warn=self._duration(document, (*path, "warn"), value.get("warn", "0")),
            health=tuple(
                self._check(document, (*path, "health", index), check)
                for index, check in enumerate(value.get("health", ()))
            ),
        )

    def _windows(self, document: Document, path: Path, values: Iterable[dict[str, str]]) -> Iterable[Window]:
        for index, value in enumerate(values):
            try:
                yield parse_window(value["start"], value["length"])
            except ValueError as error:
                self._wrong(document, (*path, index), str(error))

    def rollout_policy(self, document: Document) -> Stated[RolloutPolicy]:
        value = document.value
        timeout = value.get("timeout")
        failures = value.get("maxFailures", 0)
        policy = RolloutPolicy(
            waves=tuple(
                self._wave(document, index, wave) for index, wave in enumerate(value.get("waves", ()))
            ),
            timeout=None
            if timeout is None
            else self._duration(document, ("timeout",), timeout, positive=True),
            max_failures=Budget(int(failures.rstrip("%")), True)
            if isinstance(failures, str)
            else Budget(failures),
            prune=value.get("prune", True),
            max_removals=value.get("maxRemovals", 3),
            require_pins=value.get("requirePins", False),
            drift=value.get("drift", "report"),
        )
        return Stated(policy, document)

    def _wave(self, document: Document, index: int, value: dict[str, Any]) -> WavePolicy:
        path: Path = ("waves", index)
        return WavePolicy(
            servers=self._servers(document, (*path, "servers"), value.get("servers", ())),
            groups=frozenset(value.get("groups", ())),
            soak=self._duration(document, (*path, "soak"), value.get("soak", "0")),
        )

    def _servers(self, document: Document, path: Path, values: Iterable[int | str]) -> frozenset[int]:
        servers: set[int] = set()
        for index, value in enumerate(values):
            first, last = map(int, value.split("-")) if isinstance(value, str) else (value, value)
            if last < first:
                self._wrong(
                    document, (*path, index), f'the range "{value}" runs backwards: write "{last}-{first}"'
                )
                continue
            if self._servers_left < 0:
                break
            self._servers_left -= last - first + 1
            if self._servers_left < 0:
                self._wrong(
                    document, (*path, index), f"with this more than {SERVER_LIMIT:,} servers are named in all"
                )
                break
            servers.update(range(first, last + 1))
        return frozenset(servers)

    def _check(self, document: Document, path: Path, value: dict[str, str]) -> Check:
        timeout = CHECK_TIMEOUT
        if "timeout" in value:
            timeout = self._duration(document, (*path, "timeout"), value["timeout"], positive=True)
        if "http" in value:
            return Check("http", value["http"], timeout)
        if "tcp" in value:
            return Check("tcp", value["tcp"], timeout)
        return Check("hook", value["hook"], timeout)

    def _duration(self, document: Document, path: Path, text: str, *, positive: bool = False) -> float:
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            self._wrong(document, path, str(error))
            return 0.0
        if positive and not seconds:
            self._wrong(document, path, "is 0; it must be longer")
        return seconds

    def _wrong(self, document: Document, path: Path, problem: str) -> None:
        self.findings.append(document.finding(path, problem))


def _os_driver(value: dict[str, Any]) -> OsDriver:
    """An image that a command installs runs only after a boot, unless it says otherwise; one for netboot is other machines'."""
    if value.get("driver", "netboot") == "command":
        return OsDriver("command", _NETBOOT_DIRECTORY, value.get("reboot", True))
    return OsDriver("netboot", value.get("directory", _NETBOOT_DIRECTORY), False)
