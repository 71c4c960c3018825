"""Artifacts to and from JSON, in the YAML's own field names, defaults left out. Pure.

Called by `records` (details in etcd, snapshots), by `plan` and by `desired`, which has checked the shape by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from reconciler.core.artifact import (
    AptDeb,
    Artifact,
    Bind,
    Check,
    Container,
    Image,
    Kind,
    Known,
    OsImage,
    ReleaseDeb,
    Update,
)
from reconciler.core.duration import format_duration, parse_duration
from reconciler.wire.document import Fields

_UPDATES: dict[str, Update] = {"rolling": "rolling", "parallel": "parallel", "stop-all": "stop-all"}
_CHECKS: tuple[Literal["http", "tcp", "hook"], ...] = ("http", "tcp", "hook")
CHECK_TIMEOUT = 60.0


def artifact_json(artifact: Artifact | Known) -> dict[str, Any]:
    """The artifact as the YAML would have it, without the fields that have their default."""
    match artifact:
        case Image():
            document: dict[str, Any] = {
                "name": artifact.name,
                "repository": artifact.repository,
                "tag": artifact.tag,
            }
            if artifact.digest is not None:
                document["digest"] = artifact.digest
            if artifact.private:
                document["private"] = True
            if artifact.container is not None:
                document["container"] = container_json(artifact.container)
            return document
        case ReleaseDeb():
            document = {
                "name": artifact.name,
                "owner": artifact.owner,
                "repository": artifact.repository,
                "release": artifact.release,
            }
            return document if artifact.sha256 is None else {**document, "sha256": artifact.sha256}
        case AptDeb() | Known():
            return {"name": artifact.name, "version": artifact.version}
        case OsImage():
            return {"channel": artifact.channel, "version": artifact.release}


def container_json(container: Container) -> dict[str, Any]:
    """How an image is run, as the YAML has it."""
    whole: dict[str, Any] = {
        "args": list(container.args),
        "binds": [_bind_json(bind) for bind in container.binds],
        "environment": dict(container.environment),
        "environmentFile": container.environment_file,
        "unit": container.unit,
        "update": None if container.update == "rolling" else container.update,
        "after": list(container.after),
        "started": list(container.started),
        "health": check_json(container.health) if container.health else None,
    }
    return {name: value for name, value in whole.items() if value}


def _bind_json(bind: Bind) -> dict[str, Any]:
    document: dict[str, Any] = {"name": bind.name, "source": bind.source, "dest": bind.dest}
    return {**document, "readOnly": True} if bind.read_only else document


def check_json(check: Check) -> dict[str, Any]:
    """A health check, as the YAML has it."""
    document: dict[str, Any] = {check.kind: check.target}
    if check.timeout != CHECK_TIMEOUT:
        document["timeout"] = format_duration(check.timeout)
    return document


def artifact_from_json(kind: Kind, document: Mapping[str, Any], where: str = "artifact") -> Artifact:
    """The artifact of `kind` that `artifact_json` wrote; fields that are not known are ignored. Raises `Corrupt`, naming `where`."""
    return artifact_from_fields(kind, Fields(document, where))


def artifact_from_fields(kind: Kind, fields: Fields) -> Artifact:
    """The same, from an object inside another one."""
    if kind == "image":
        container = fields.object("container")
        return Image(
            name=fields.text("name"),
            repository=fields.text("repository"),
            tag=fields.text("tag"),
            digest=fields.optional_text("digest"),
            private=fields.boolean("private", False),
            container=None if container is None else container_from_fields(container),
        )
    if kind == "os-image":
        return OsImage(fields.text("channel"), fields.text("version"))
    if fields.optional_text("release") is None:
        return AptDeb(fields.text("name"), fields.text("version"))
    return ReleaseDeb(
        name=fields.text("name"),
        owner=fields.text("owner"),
        repository=fields.text("repository"),
        release=fields.text("release"),
        sha256=fields.optional_text("sha256"),
    )


def container_from_fields(fields: Fields) -> Container:
    """How an image is run. The environment is sorted by name, so that its order in the YAML is no difference."""
    environment = fields.mapping("environment")
    for name, value in environment.items():
        if not isinstance(value, str):
            fields.wrong(f"environment.{name}", "must be text")
    health = fields.object("health")
    return Container(
        args=fields.texts("args"),
        binds=tuple(_bind(bind) for bind in fields.objects("binds")),
        environment=tuple(sorted(environment.items())),
        environment_file=fields.optional_text("environmentFile"),
        unit=fields.optional_text("unit"),
        update=_UPDATES[fields.one_of("update", _UPDATES, "rolling")],
        after=fields.texts("after"),
        started=fields.texts("started"),
        health=None if health is None else check_from_fields(health),
    )


def _bind(fields: Fields) -> Bind:
    return Bind(
        fields.text("name"), fields.text("source"), fields.text("dest"), fields.boolean("readOnly", False)
    )


def check_from_fields(fields: Fields) -> Check:
    """A health check: `http`, `tcp` or `hook`, and how long it may take to pass."""
    timeout = CHECK_TIMEOUT
    text = fields.optional_text("timeout")
    if text is not None:
        try:
            timeout = parse_duration(text)
        except ValueError as error:
            fields.wrong("timeout", f"is no duration: {error}")
    for kind in _CHECKS:
        if (target := fields.optional_text(kind)) is not None:
            return Check(kind, target, timeout)
    return fields.wrong("http", "is missing, and so are tcp and hook: one of them must be there")
