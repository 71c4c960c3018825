"""What this host allows, whatever git says: its policy, and which hooks may run. Called at planning and by what runs hooks.

`hook_path` looks at the host; the rest is pure. The document is `wire/settings`'. A list that is None allows everything;
`*` in a pattern stands for any text, slashes too, `?` for one character, and case counts.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from reconciler.core.artifact import AptDeb, Artifact, Check, Container, Image, Key, OsImage, ReleaseDeb
from reconciler.core.state import Desired, OsDriver, ServerGroup
from reconciler.errors import HostError
from reconciler.host import place
from reconciler.host.driver import Host
from reconciler.wire.settings import HostPolicy

__all__ = [
    "EVERYTHING",
    "HOOKS",
    "HostPolicy",
    "check_artifact",
    "check_driver",
    "check_hook",
    "check_removal",
    "check_source",
    "hook_path",
    "may_remove",
    "problems",
]

HOOKS = "/etc/reconciler/hooks"
OS_HOOKS = ("os-current", "os-stage", "os-rollback")
"""The hooks of the OS image driver `command`."""

EVERYTHING = HostPolicy()
"""What stands where the host has no policy."""

Globs = tuple[str, ...] | None
_HOOK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def problems(policy: HostPolicy, desired: Desired, lrn: int | None = None) -> list[str]:
    """What in a revision this host does not allow, each by name, sorted; of server `lrn`'s part where that is given."""
    if policy == EVERYTHING:
        return []
    if lrn is None:
        artifacts = [artifact for artifact_set in desired.sets for artifact in artifact_set.artifacts]
        groups = list(desired.groups)
    else:
        artifacts, groups = list(desired.artifacts_of(lrn).values()), [desired.group_of(lrn)]
    found = check_source(policy, desired.revision.repo) if desired.revision.repo else []
    found += [problem for artifact in artifacts for problem in check_artifact(policy, artifact)]
    # Without an OS image its driver does nothing; the default one is in every group.
    with_os = any(isinstance(artifact, OsImage) for artifact in artifacts)
    found += [problem for group in groups for problem in _check_group(policy, group, with_os)]
    return sorted(set(found))


def _check_group(policy: HostPolicy, group: ServerGroup, with_os: bool) -> list[str]:
    where = f"server group {group.name}: "
    reboot = group.reboot
    names = [*reboot.before, *reboot.after, *_hooks_of(reboot.health)]
    found = [problem for name in names for problem in check_hook(policy, name, where)]
    return found + (check_driver(policy, group.os_image, where) if with_os else [])


def check_source(policy: HostPolicy, repository: str) -> list[str]:
    """What speaks against following this git repository (URL or path); empty where nothing does."""
    return _unless(repository, policy.sources, f"the git source {_without_user(repository)}", "sources")


def check_artifact(policy: HostPolicy, artifact: Artifact) -> list[str]:
    """What speaks against having this artifact here, each by name; empty where nothing does."""
    match artifact:
        case Image():
            what = f"image {artifact.name}"
            found = _unless(
                artifact.repository, policy.images, f"{what}: the repository {artifact.repository}", "images"
            )
            return found + (_check_container(policy, what, artifact.container) if artifact.container else [])
        case ReleaseDeb():
            both = f"{artifact.owner}/{artifact.repository}"
            found = _unless(artifact.name, policy.packages, f"deb {artifact.name}", "packages")
            if _allows(policy.release_owners, artifact.owner) or _allows(policy.release_owners, both):
                return found
            return [*found, _said(f"deb {artifact.name}: a release of {both}", "releaseOwners")]
        case AptDeb():
            return _unless(artifact.name, policy.packages, f"deb {artifact.name}", "packages")
        case OsImage():
            return []


def _check_container(policy: HostPolicy, what: str, container: Container) -> list[str]:
    paths = [(f"{what}: the bind {bind.name} of {bind.source}", bind.source) for bind in container.binds]
    if file := container.environment_file:
        # The file's content ends up in the container: it is as much a look at the host as a bind.
        paths.append((f"{what}: the environment file {file}", file))
    found = [_said(text, "binds") for text, path in paths if not _allows_path(policy.binds, path)]
    names = [*container.started, *_hooks_of([container.health] if container.health else [])]
    return found + [problem for name in names for problem in check_hook(policy, name, f"{what}: ")]


def _hooks_of(checks: Iterable[Check]) -> list[str]:
    return [check.target for check in checks if check.kind == "hook"]


def check_driver(policy: HostPolicy, driver: OsDriver, where: str = "") -> list[str]:
    """What speaks against installing OS images in this way; empty where nothing does."""
    found = _unless(driver.driver, policy.drivers, f"{where}the OS image driver {driver.driver}", "drivers")
    if driver.driver == "command":
        found += [problem for name in OS_HOOKS for problem in check_hook(policy, name, where)]
    return found


def check_hook(policy: HostPolicy, name: str, where: str = "") -> list[str]:
    """What speaks against running this hook; empty where nothing does."""
    return _unless(name, policy.hooks, f"{where}the hook {name}", "hooks")


def check_removal(policy: HostPolicy, key: Key) -> list[str]:
    """What speaks against removing this; empty where nothing does."""
    if may_remove(policy, key):
        return []
    return [f"{key.subject}: this host's policy never lets it be removed (neverRemove)"]


def may_remove(policy: HostPolicy, key: Key) -> bool:
    """Whether the host's policy lets this be removed."""
    return not _allows(policy.never_remove, key.name)


def _unless(value: str, globs: Globs, what: str, list_name: str) -> list[str]:
    return [] if _allows(globs, value) else [_said(what, list_name)]


def _said(what: str, list_name: str) -> str:
    return f"{what} is not allowed by this host's policy ({list_name})"


def _allows(globs: Globs, value: str) -> bool:
    return globs is None or any(_pattern(glob).fullmatch(value) for glob in globs)


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as the policy has it: `*` is any text and `?` one character, and nothing else means anything but itself."""
    parts = [".*" if letter == "*" else "." if letter == "?" else re.escape(letter) for letter in glob]
    return re.compile("".join(parts), re.DOTALL)


def _allows_path(globs: Globs, path: str) -> bool:
    """Whether a path is allowed: itself, or a directory above it. `..` is never: what it leads to is not in the text."""
    if globs is None:
        return True
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts:
        return False
    # To pathlib a path that begins with two slashes is another one; to the kernel it is the same.
    whole, *above = ("/" + str(part).lstrip("/") for part in (pure, *pure.parents))
    # `/` in the list allows `/` only: as the directory above all others it would allow everything by accident.
    return _allows(globs, whole) or any(_allows(globs, directory) for directory in above if directory != "/")


def _without_user(repository: str) -> str:
    if "://" not in repository:
        return repository
    parts = urlsplit(repository)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


# --- hooks ----------------------------------------------------------------------------------------------------------


def hook_path(host: Host, name: str) -> Path:
    """Where the hook is, as this process sees it; raises `HostError` unless it is safe to run as root.

    It and every directory down to it must be root's own and writable by nobody else, and no link is on the way: whoever
    may change one of them would be root on this host.
    """
    what = f"cannot run hook {name!r} on server {host.lrn}"
    if not _HOOK_NAME.fullmatch(name):
        raise HostError(f"{what}: a hook's name is small letters, digits, dots, dashes and underscores")
    path = f"{HOOKS}/{name}"
    found = place.status(host, path)
    if found is None:
        raise HostError(f"{what}: there is no {path} on the host; install it there, owned by root, mode 0755")
    if place.inside(host, path) != host.root / path.lstrip("/"):
        raise HostError(f"{what}: there is a link on the way to {path}; install the program itself there")
    if not stat.S_ISREG(found.st_mode):
        raise HostError(f"{what}: {path} is no regular file")
    for directory in (*reversed(PurePosixPath(path).parents), PurePosixPath(path)):
        _require_roots_own(host, str(directory), what)
    if not found.st_mode & stat.S_IXUSR:
        raise HostError(f"{what}: {path} is not executable; `chmod 0755` it")
    return host.root / path.lstrip("/")


def _require_roots_own(host: Host, path: str, what: str) -> None:
    found = place.status(host, path)
    if found is None or found.st_uid != 0:
        raise HostError(f"{what}: {path} is not owned by root, so others could change what root runs")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise HostError(
            f"{what}: {path} (mode {mode:04o}) may be written by others than root; `chmod go-w` it"
        )
