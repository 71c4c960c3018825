"""A container as it is to run on one server: substituted, and as the arguments of `podman` and `docker`. Pure.

Called by `host/containers` and `host/units`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from reconciler.core.artifact import Bind, Image
from reconciler.host.driver import Host

LABEL_NAME = "reconciler.name"
LABEL_DIGEST = "reconciler.digest"
LABEL_DEFINITION = "reconciler.definition"


@dataclass(frozen=True, slots=True)
class Definition:
    """What runs: an image by digest, and how. `address` is the repository that it was pulled from; paths are the host's."""

    name: str
    address: str
    digest: str
    args: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    environment_file: str | None = None
    unit: str | None = None

    @property
    def image(self) -> str:
        return f"{self.address}@{self.digest}"

    @property
    def hash(self) -> str:
        """Twelve hex digits that two equal definitions share, whatever address the image came from."""
        fields = [
            self.digest,
            self.args,
            sorted((bind.source, bind.dest, bind.read_only) for bind in self.binds),
            sorted(self.environment),
            self.environment_file,
            self.unit,
        ]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:12]

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        return ((LABEL_NAME, self.name), (LABEL_DIGEST, self.digest), (LABEL_DEFINITION, self.hash))

    @property
    def running(self) -> str:
        """What `observe` says of it while it runs as asked."""
        return f"{self.digest} running {self.hash}"


def substitute(text: str, host: Host) -> str:
    """`$(lrn)` and `$(hostname)` replaced; nothing else is."""
    return text.replace("$(lrn)", str(host.lrn)).replace("$(hostname)", host.hostname)


def define(image: Image, address: str, digest: str, host: Host) -> Definition | None:
    """How `image` runs on `host`; None where it is only kept."""
    container = image.container
    if container is None:
        return None

    def text(value: str) -> str:
        return substitute(value, host)

    return Definition(
        image.name,
        address,
        digest,
        tuple(text(argument) for argument in container.args),
        tuple(
            Bind(bind.name, text(bind.source), text(bind.dest), bind.read_only) for bind in container.binds
        ),
        tuple((name, text(value)) for name, value in container.environment),
        text(container.environment_file) if container.environment_file else None,
        container.unit,
    )


def run_options(definition: Definition, seen: Callable[[str], str]) -> list[str]:
    """The options that `create` and `run` share, without the name; `seen` gives a host's path as the program sees it.

    The network is the host's: these are the services that a machine needs before anything else is set up on it.
    """
    options = ["--network", "host"]
    for name, value in definition.labels:
        options += ["--label", f"{name}={value}"]
    for name, value in definition.environment:
        options += ["--env", f"{name}={value}"]
    if definition.environment_file:
        options += ["--env-file", seen(definition.environment_file)]
    for bind in definition.binds:
        options += ["--volume", f"{seen(bind.source)}:{bind.dest}:{'ro' if bind.read_only else 'rw'}"]
    return options
