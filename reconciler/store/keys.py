"""All keys in etcd, built and read. Pure; called by everything in `store`, and nothing else builds a key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote_plus, unquote_plus

from reconciler.core.artifact import KINDS, OS_IMAGE, Key, Kind
from reconciler.errors import UsageError
from reconciler.store.transaction import KeyRange
from reconciler.wire.settings import SETTINGS

DEFAULT_PREFIX = "/neco/"
DEFAULT_LOCK_PREFIX = "coreos.com/updateengine/rebootlock"
DEFAULT_GROUP = "default"

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_FOLDERS: dict[Kind, str] = {"image": "containers", "deb": "debs"}
_KINDS: dict[str, Kind] = {folder: kind for kind, folder in _FOLDERS.items()}
_quoted = lru_cache(quote_plus)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys below `prefix` (ends in `/`) and, for the reboot lock, below `lock_prefix` (does not)."""

    prefix: str = DEFAULT_PREFIX
    lock_prefix: str = DEFAULT_LOCK_PREFIX

    def __post_init__(self) -> None:
        if not self.prefix.endswith("/"):
            raise UsageError(f"cannot use the prefix {self.prefix!r}: it must end in a slash")
        if not self.lock_prefix or self.lock_prefix.endswith("/"):
            raise UsageError(f"cannot use the lock prefix {self.lock_prefix!r}: it must not end in a slash")

    # --- status/ ----------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        return f"{self.prefix}status/"

    @property
    def rollout(self) -> str:
        return f"{self.prefix}status/current"

    @property
    def phase(self) -> str:
        return f"{self.prefix}status/phase"

    @property
    def pins(self) -> str:
        return f"{self.prefix}status/pins"

    @property
    def server_statuses(self) -> str:
        return f"{self.prefix}status/bootservers/"

    def server_status(self, lrn: int) -> str:
        return f"{self.server_statuses}{lrn}"

    # --- leader/ ----------------------------------------------------------------------------------------------------

    @property
    def election(self) -> str:
        """The line of those who would lead. What `etcdctl elect` is told ends in a slash, and etcd's recipe adds another."""
        return f"{self.prefix}leader/updater//"

    def candidate(self, lease: int) -> str:
        return f"{self.election}{lease:x}"

    @property
    def agents(self) -> str:
        return f"{self.prefix}leader/agents/"

    def agents_of(self, lrn: int) -> str:
        return f"{self.agents}{lrn}//"

    def agent(self, lrn: int, lease: int) -> str:
        return f"{self.agents_of(lrn)}{lease:x}"

    def agent_in(self, key: str) -> tuple[int, str] | None:
        """Number and lease (hex) of an agent's key."""
        number, _, lease = key.removeprefix(self.agents).partition("//")
        lrn = number_in(number)
        return (lrn, lease) if lrn is not None and lease else None

    @property
    def told(self) -> str:
        """What people have been told of: so that the next leader does not tell them again."""
        return f"{self.prefix}leader/told"

    @property
    def neco_workers(self) -> str:
        """Where Neco's workers show themselves: read for this only."""
        return f"{self.prefix}leader/worker/"

    # --- info/ ------------------------------------------------------------------------------------------------------

    @property
    def servers(self) -> str:
        return f"{self.prefix}info/bootservers/"

    def server(self, lrn: int) -> str:
        return f"{self.servers}{lrn}"

    @property
    def machines(self) -> str:
        return f"{self.prefix}info/machines/"

    def machine(self, lrn: int) -> str:
        return f"{self.machines}{lrn}"

    @property
    def all_disabled(self) -> str:
        return f"{self.prefix}info/disabled/"

    def disabled(self, lrn: int) -> str:
        return f"{self.all_disabled}{lrn}"

    @property
    def noted(self) -> str:
        return f"{self.prefix}info/neco-release"

    # --- install/, steps/ -------------------------------------------------------------------------------------------

    @property
    def installed(self) -> str:
        return f"{self.prefix}install/"

    def installed_on(self, lrn: int) -> str:
        return f"{self.installed}{lrn}/"

    def version(self, lrn: int, artifact: Key) -> str:
        """Neco's short key: the truth about the version."""
        if artifact == OS_IMAGE:
            return f"{self.installed_on(lrn)}os-image"
        return f"{self.installed_on(lrn)}{_FOLDERS[artifact.kind]}/{artifact.name}"

    def detail(self, lrn: int, artifact: Key) -> str:
        return f"{self.installed_on(lrn)}details/{artifact.kind}/{artifact.name}"

    @property
    def all_steps(self) -> str:
        return f"{self.prefix}steps/"

    def steps_of(self, lrn: int) -> str:
        return f"{self.all_steps}{lrn}/"

    def step(self, lrn: int, id: str) -> str:
        return f"{self.steps_of(lrn)}{id}"

    # --- the rest ---------------------------------------------------------------------------------------------------

    @property
    def pause(self) -> str:
        return f"{self.prefix}pause"

    @property
    def history(self) -> str:
        return f"{self.prefix}history/"

    def finished(self, started_at: str) -> str:
        return f"{self.history}{started_at}"

    @property
    def lock_history(self) -> str:
        return f"{self.prefix}lock-history/"

    def released(self, at: str) -> str:
        return f"{self.lock_history}{at}"

    def setting(self, name: str) -> str:
        return f"{self.prefix}config/{name}"

    # --- the reboot lock --------------------------------------------------------------------------------------------

    def _group(self, group: str) -> str:
        return self.lock_prefix if group == DEFAULT_GROUP else f"{self.lock_groups}{_quoted(group)}"

    @property
    def lock_groups(self) -> str:
        return f"{self.lock_prefix}/groups/"

    @property
    def lock(self) -> str:
        """All lock groups' keys are under this."""
        return f"{self.lock_prefix}/"

    def semaphore(self, group: str) -> str:
        return f"{self._group(group)}/semaphore"

    def holders(self, group: str) -> str:
        return f"{self._group(group)}/holders/"

    def holder(self, group: str, machine_id: str) -> str:
        return f"{self.holders(group)}{machine_id}"

    def waiters(self, group: str) -> str:
        return f"{self._group(group)}/waiters/"

    def waiter(self, group: str, lease: int) -> str:
        return f"{self.waiters(group)}{lease:x}"

    def lock_key(self, key: str) -> tuple[str, str, str] | None:
        """Group, `semaphore`/`holders`/`waiters` and what follows, of a key of the lock; None for one that is not."""
        rest = key.removeprefix(self.lock)
        group = DEFAULT_GROUP
        if rest.startswith("groups/"):
            escaped, _, rest = rest.removeprefix("groups/").partition("/")
            group = unquote_plus(escaped)
        part, _, name = rest.partition("/")
        known = (part == "semaphore" and not name) or (part in ("holders", "waiters") and name)
        return (group, part, name) if known else None

    # --- ranges -----------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> tuple[KeyRange, ...]:
        return tuple(KeyRange(self.setting(name)) for name in SETTINGS)


# A fleet has many servers and few names: what its keys repeat is taken apart once.


@lru_cache(maxsize=65_536)
def number_in(text: str) -> int | None:
    """A server's number as a part of a key; None for a stranger's."""
    return int(text) if _NUMBER.fullmatch(text) else None


@lru_cache(maxsize=8_192)
def artifact_in(rest: str) -> tuple[Key, bool] | None:
    """The artifact of what follows `install/<lrn>/` in a key, and whether it is the detail; None for a stranger's key."""
    if rest == "os-image":
        return OS_IMAGE, False
    folder, _, name = rest.partition("/")
    if folder == "details":
        word, _, name = name.partition("/")
        kind = next((kind for kind in KINDS if kind == word), None)
        return (Key(kind, name), True) if kind and name and "/" not in name else None
    if folder in _KINDS and name and "/" not in name:
        return Key(_KINDS[folder], name), False
    return None
