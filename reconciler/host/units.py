"""The systemd service of a container: its text, and bringing it to the host. Called by `host/containers`.

The texts are pure functions. Where podman has Quadlet (4.4 and later) the file is a `.container` unit, from which
systemd's generator makes the service; else it is the service itself.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import HostError
from reconciler.ground import process
from reconciler.ground.process import ProcessFailed
from reconciler.host import place
from reconciler.host.definition import Definition
from reconciler.host.driver import Host

_DIRECTORY = "/etc/systemd/system"
_QUADLET = "/etc/containers/systemd"
_GENERATORS = ("/usr/libexec/podman/quadlet", "/usr/lib/podman/quadlet")
_UNKNOWN_FLAG = 2
"""With which Go's programs end where they do not know a flag: podman 4.4's generator has no dry run yet."""
_START = 300
_CHANGE = 600.0
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./~^-]+")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit file: the service that it makes, where it stands on the host, its text, and whether systemd must be told to enable it."""

    service: str
    path: str
    text: str
    enable: bool


def service_unit(
    definition: Definition, command: Sequence[str], *, notify: bool, stop: int, environment: Mapping[str, str]
) -> Unit:
    """The service itself. `command` runs the container; with `notify` it says when it is up; `stop` in seconds."""
    program = command[0]
    name = definition.name
    lines = [
        *_head(definition),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        f"Type={'notify' if notify else 'exec'}",
        *(["NotifyAccess=all"] if notify else []),
        *(
            f"Environment={quote(f'{key}={value}', variables=False)}"
            for key, value in sorted(environment.items())
        ),
        *([] if notify else [f"ExecStartPre=-{quoted([program, 'rm', '--force', name])}"]),
        f"ExecStart={quoted(command)}",
        f"ExecStop=-{quoted([program, 'stop', '--time', str(stop), name])}",
        f"ExecStopPost=-{quoted([program, 'rm', '--force', name])}",
        *_restarts(stop),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    service = f"{definition.unit}.service"
    return Unit(service, f"{_DIRECTORY}/{service}", "\n".join(lines) + "\n", enable=True)


def quadlet_unit(definition: Definition, stop: int, seen: Callable[[str], str]) -> Unit:
    """The same as a Quadlet. Its generator reads `[Install]` by itself."""
    lines = [
        *_head(definition),
        "StartLimitIntervalSec=0",
        "",
        "[Container]",
        f"Image={definition.image}",
        f"ContainerName={definition.name}",
        "Network=host",
        *(f"Label={quote(f'{key}={value}')}" for key, value in definition.labels),
        *(f"Environment={quote(f'{key}={value}')}" for key, value in definition.environment),
        *([f"EnvironmentFile={seen(definition.environment_file)}"] if definition.environment_file else []),
        *(
            f"Volume={quote(f'{seen(bind.source)}:{bind.dest}:' + ('ro' if bind.read_only else 'rw'))}"
            for bind in definition.binds
        ),
        *([f"Exec={quoted(definition.args)}"] if definition.args else []),
        "",
        "[Service]",
        *_restarts(stop),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    path = f"{_QUADLET}/{definition.unit}.container"
    return Unit(f"{definition.unit}.service", path, "\n".join(lines) + "\n", enable=False)


def quote(word: str, *, variables: bool = True) -> str:
    """One word of a unit file that stands for itself. `variables` says whether systemd would replace `$NAME` there."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    escaped = escaped.replace("%", "%%")
    if variables:
        escaped = escaped.replace("$", "$$")
    return escaped if _PLAIN.fullmatch(word) else f'"{escaped}"'


def quoted(words: Sequence[str]) -> str:
    return " ".join(quote(word) for word in words)


def has_systemd(host: Host) -> bool:
    """Whether systemd is process 1 there, by the test of its own `sd_booted`."""
    found = place.status(host, "/run/systemd/system")
    return found is not None and stat.S_ISDIR(found.st_mode)


def has_quadlet(host: Host) -> bool:
    """Whether the host's podman brings systemd's generator for `.container` units."""
    return any(
        place.status(host, f"{directory}/systemd/system-generators/podman-system-generator") is not None
        for directory in ("/usr/lib", "/lib", "/usr/local/lib")
    )


def installed(host: Host, unit: Unit) -> bool:
    """Whether the unit file has exactly this text."""
    return place.read(host, unit.path) == unit.text.encode()


def install(host: Host, unit: Unit, scratch: Path) -> None:
    """Check the unit, write it if it differs, enable it and restart its service: afterwards it runs from this text."""
    if not installed(host, unit):
        (_verify if unit.enable else _verify_quadlet)(host, unit, scratch)
        place.write(host, unit.path, unit.text)
    _systemctl(host, "daemon-reload")
    if unit.enable:
        _systemctl(host, "enable", "--quiet", unit.service)
    _systemctl(host, "restart", unit.service)


def with_image(text: str, repository: str, image: str) -> str | None:
    """A unit that a person wrote, with `image` wherever it names one of `repository` (or of its `-secret` twin). None where it names none."""
    named = re.compile(
        rf"(?<![\w./:-]){re.escape(repository)}(?:-secret)?(?::[\w.-]+)?(?:@sha256:[0-9a-f]{{64}})?(?![\w./:@-])"
    )
    lines, found = [], False
    for line in text.splitlines(keepends=True):
        changed, count = (line, 0) if line.lstrip().startswith(("#", ";")) else named.subn(image, line)
        lines.append(changed)
        found = found or count > 0
    return "".join(lines) if found else None


def names_image(host: Host, name: str, repository: str, image: str) -> bool:
    """Whether the unit that a person wrote for `name` runs this image of `repository`."""
    text = _written(host, name)[1]
    return text is not None and with_image(text, repository, image) == text


def prepared(host: Host, name: str, repository: str, image: str) -> tuple[str, str]:
    """Where the unit that a person wrote for `name` stands, and its text with another image of `repository`. Raises `HostError` where it has none."""
    path, text = _written(host, name)
    new = with_image(text, repository, image) if text is not None else None
    if new is None:
        lacks = f"does not run an image of {repository}" if text is not None else "is not there"
        raise HostError(
            f"cannot run {image} on server {host.lrn}: {path} {lacks}; the agent is replaced in the unit that it was "
            "installed with, as examples/sidecar has one, and in no other"
        )
    return path, new


def change_image(host: Host, name: str, repository: str, image: str, *, wait: bool) -> None:
    """Have a service whose unit a person wrote run another image of `repository`; all else in the unit stands.

    Without `wait`, systemd has only been asked for the restart: for who is ended by it.
    """
    place.write(host, *prepared(host, name, repository, image))
    _systemctl(host, "daemon-reload")
    _systemctl(host, "restart", *([] if wait else ["--no-block"]), f"{name}.service")


def _written(host: Host, name: str) -> tuple[str, str | None]:
    """Where the unit of `name` stands, a Quadlet or the service itself, and its text; None where neither is there."""
    quadlet, service = f"{_QUADLET}/{name}.container", f"{_DIRECTORY}/{name}.service"
    for path in (quadlet, service):
        data = place.read(host, path)
        if data is not None:
            return path, data.decode(errors="surrogateescape")
    return quadlet if has_quadlet(host) else service, None


def stop(host: Host, service: str) -> None:
    """Stop a service; one that is not there is no error."""
    _systemctl_unless_absent(host, "stop", service)


def uninstall(host: Host, unit_name: str) -> None:
    """Stop the service of `unit_name` and take its file away, whichever form it has."""
    service = f"{unit_name}.service"
    _systemctl_unless_absent(host, "stop", service)
    _systemctl_unless_absent(host, "disable", "--quiet", service)
    removed = [
        place.remove(host, path) for path in (f"{_DIRECTORY}/{service}", f"{_QUADLET}/{unit_name}.container")
    ]
    if any(removed):
        _systemctl(host, "daemon-reload")


def _head(definition: Definition) -> list[str]:
    return [
        "# Written by reconciler: it is written anew when the desired state changes.",
        "[Unit]",
        f"Description={definition.name} ({definition.image.replace('%', '%%')})",
        "Wants=network-online.target",
        "After=network-online.target",
    ]


def _restarts(stop: int) -> list[str]:
    return [
        "Restart=always",
        "RestartSec=2",
        f"TimeoutStartSec={_START}",
        f"TimeoutStopSec={stop + 60}",
    ]


def _verify(host: Host, unit: Unit, scratch: Path) -> None:
    """Let systemd read the text before it is put in place, where `systemd-analyze` is installed."""
    root = Path("/") if host.exec == "direct" else host.root
    if not process.exists("systemd-analyze", root):
        return
    # systemd takes the unit's name from the file's: the text stands under its own name in a directory of its own.
    file = scratch / unit.service
    place.publish(file, unit.text, 0o644)
    done = process.run(
        place.command(host, ["systemd-analyze", "verify", "--man=no", place.seen(host, file)]),
        timeout=60,
        check=False,
    )
    # It looks at the units that this one needs as well; only what it says of this one counts.
    problems = [line for line in done.stderr.splitlines() if unit.service in line]
    if done.status != 0 and problems:
        raise _not_taken(host, unit, "systemd", problems)


def _verify_quadlet(host: Host, unit: Unit, scratch: Path) -> None:
    """Let podman's generator make the service before the text is put in place, where it is installed and can do so without writing."""
    found = next((path for path in _GENERATORS if place.status(host, path) is not None), None)
    if found is None:
        return
    program = str(place.inside(host, found)) if host.exec == "direct" else found
    directory = scratch / "quadlet"
    place.publish(directory / Path(unit.path).name, unit.text, 0o644)
    done = process.run(
        place.command(host, ["env", f"QUADLET_UNIT_DIRS={place.seen(host, directory)}", program, "-dryrun"]),
        timeout=60,
        check=False,
    )
    # Older ones end with 0 whatever they could not use: what counts is whether the service was made.
    made = re.search(rf"^---(?:.*/)?{re.escape(unit.service)}---$", done.stdout, re.MULTILINE)
    if done.status != _UNKNOWN_FLAG and not made:
        raise _not_taken(host, unit, "podman's generator", done.stderr.splitlines())


def _not_taken(host: Host, unit: Unit, who: str, problems: Sequence[str]) -> HostError:
    return HostError(
        f"cannot write {unit.path} on server {host.lrn}: {who} would not take it:"
        + "".join(f"\n    {line}" for line in problems[:20])
    )


def _systemctl(host: Host, *argv: str) -> None:
    process.run(place.command(host, ["systemctl", *argv]), timeout=_CHANGE, pass_fds=place.inherited(host))


def _systemctl_unless_absent(host: Host, *argv: str) -> None:
    try:
        _systemctl(host, *argv)
    except ProcessFailed as error:
        said = error.output.lower()
        if not ("not loaded" in said or "does not exist" in said or "not be found" in said):
            raise
