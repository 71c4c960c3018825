"""How a fetch proves who it is: keys, passwords and certificates, read from their files at each fetch. Called by `mirror`.

Nothing of it is in an argument, so nothing is in the process list. A password goes out only to the host of the URL: it is
a header for that address, and redirections are not followed while there is one.
"""

from __future__ import annotations

import base64
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.desired.source import Source, host_of, user_of
from reconciler.errors import Unavailable, UsageError

_PASSWORD_LIMIT = 64 << 10


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a fetch adds to git's environment and settings; `secret` must never be shown."""

    environment: dict[str, str] = field(repr=False)
    config: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secret: str | None = field(default=None, repr=False)


def credentials(source: Source) -> Credentials:
    """The credentials of a source, as its files say now. Raises `Unavailable` where a file cannot be read."""
    environment = {
        # git knows no other way to pass options to ssh than one text; every word in it is quoted.
        "GIT_SSH_COMMAND": shlex.join(_ssh(source)),
        "GIT_SSH_VARIANT": "ssh",
    }
    host = host_of(source.repo)
    if source.ca is not None:
        environment["GIT_SSL_CAINFO"] = str(_present(source.ca, "certificate authority"))
    if source.password_file is None:
        return Credentials(environment)
    if host is None:
        raise UsageError(
            f"cannot send a password to {source.shown}: --git-password-file is for https:// URLs"
        )
    password = _password(source.password_file)
    user = source.username or user_of(source.repo) or "git"
    header = base64.b64encode(f"{user}:{password}".encode()).decode()
    config = (
        (f"http.{host}/.extraHeader", f"Authorization: Basic {header}"),
        ("http.followRedirects", "false"),
    )
    return Credentials(environment, config, password)


def _ssh(source: Source) -> list[str]:
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": str(max(1, int(source.timeout))),
        # A connection that outlives the fetch would be an orphan.
        "ControlMaster": "no",
        "ControlPath": "none",
    }
    if source.ssh_key is not None:
        options |= {"IdentityFile": _ssh_path(source.ssh_key, "SSH key"), "IdentitiesOnly": "yes"}
    if source.known_hosts is not None:
        options["UserKnownHostsFile"] = _ssh_path(source.known_hosts, "list of known hosts")
    words = ["ssh"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    if source.username and user_of(source.repo) is None:
        words += ["-o", f"User={source.username}"]
    return words


def _ssh_path(path: Path, what: str) -> str:
    """A path as ssh's configuration takes it: quoted, and with no `%` that it would expand."""
    text = str(_present(path, what))
    if '"' in text or "\\" in text or "${" in text:
        raise UsageError(f"cannot use {text} as {what}: ssh takes no such character in a path")
    return '"' + text.replace("%", "%%") + '"'


def _present(path: Path, what: str) -> Path:
    absolute = path.absolute()
    try:
        with absolute.open("rb"):
            return absolute
    except OSError as error:
        raise Unavailable(f"cannot fetch: the {what} {path} cannot be read: {error.strerror}") from None


def _password(path: Path) -> str:
    _present(path, "password file")
    with path.open("rb") as file:
        content = file.read(_PASSWORD_LIMIT + 1)
    try:
        password = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        password = ""
    if not password or len(content) > _PASSWORD_LIMIT or not password.isprintable():
        raise Unavailable(f"cannot fetch: the password file {path} must hold one line of text")
    return password
