"""Every option once: flag, `RECONCILER_…` variable, key of the configuration file, meaning, default, and how it is read.

Called by `cli/program` (the flags), `cli/compose` and `agent` (the values) and `reconcile config explain` (the origins).
`resolve` reads the configuration file and `/etc/neco/rack` and nothing else; the rest is pure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconciler.errors import Refused, UsageError

if TYPE_CHECKING:
    from reconciler.core.state import Settings

ENVIRONMENT: Final = "RECONCILER_"
CONFIGURATION: Final = Path("/etc/reconciler/config.yaml")
RACK: Final = "etc/neco/rack"
EMBEDDED: Final = "embedded"
_CONFIGURATION_LIMIT = 1 << 20
LEAST_INTERVAL: Final = 0.1


def option(
    default: Any,
    meaning: str,
    read: Callable[[str], Any] = str,
    metavar: str = "TEXT",
    shown: str | None = None,
    live: bool = False,
) -> Any:
    """A field of `Options`: `read` makes its value from text and raises ValueError with what would be right.

    `shown` is how help and `config explain` show the default where that is not simply its text. `live`: a running
    agent takes up a new value of it; what names a source, a trust, a server or its keys wants a restart.
    """
    return field(
        default=default,
        metadata={"meaning": meaning, "read": read, "metavar": metavar, "shown": shown, "live": live},
    )


def as_duration(text: str) -> float:
    from reconciler.core.duration import parse_duration

    return parse_duration(text)


def as_interval(text: str) -> float:
    """A duration that something is repeated after: none would be repeated without end."""
    seconds = as_duration(text)
    if seconds < LEAST_INTERVAL:
        raise ValueError(f'found "{text}"; at least {LEAST_INTERVAL * 1000:g}ms is wanted')
    return seconds


def as_command(text: str) -> str:
    """A program and its arguments, with a shell's quotes and nothing else of a shell."""
    import shlex

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f'found "{text}"; its quotes do not match: {error}') from None
    if not words:
        raise ValueError("found no program; as in `systemctl reboot`")
    return text


def as_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f'found "{text}"; a number from 0 is wanted')
    return int(text)


def as_truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f'found "{text}"; true or false is wanted')
    return text == "true"


def as_path(text: str) -> Path:
    if "\0" in text:
        raise ValueError(f"found {text!r}; a path has no such character")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f'found "{text}"; there is no such user here: write the whole path') from None


def one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f'found "{text}"; one of {", ".join(choices)} is wanted')
        return text

    return read


def as_endpoints(text: str) -> str:
    """`embedded`, or comma separated `http(s)://host:port`."""
    if text == EMBEDDED:
        return text
    for endpoint in text.split(","):
        if not re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}", endpoint):
            raise ValueError(
                f'found "{hide_password(endpoint)}"; http://host:port or https://host:port is wanted'
            )
    if len({endpoint.partition("://")[0] for endpoint in text.split(",")}) > 1:
        raise ValueError("some endpoints are http and some https; all must be the same")
    return text


def as_address(text: str) -> str:
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*):[0-9]{1,5}", text):
        raise ValueError(f'found "{text}"; host:port is wanted, as in 127.0.0.1:8470')
    return text


def as_url(text: str) -> str:
    if not re.match(r"https?://[^\s]+$", text):
        raise ValueError(
            f'found "{hide_password(text)}"; an address that begins with http:// or https:// is wanted'
        )
    return text


def as_prefix(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f'found "{text}"; a prefix begins with a slash')
    return text.rstrip("/") + "/"


@dataclass(frozen=True, slots=True)
class Options:
    """What a command was told, from wherever: `origins` has for each option where its value comes from."""

    repo: str = option(".", "git URL or path of the desired state", metavar="URL|PATH")
    ref: str | None = option(
        None, "branch, tag or commit", metavar="REF", shown="main; for a local path HEAD"
    )
    tag_pattern: str | None = option(
        None, "the highest version among these tags, as in 'release-*'", metavar="GLOB"
    )
    path: str = option("desired-state", "directory in the repository", metavar="DIR")
    git_ssh_key: Path | None = option(None, "private key for git over SSH", as_path, "FILE", live=True)
    git_known_hosts: Path | None = option(None, "the git hosts' SSH keys", as_path, "FILE", live=True)
    git_username: str | None = option(None, "user for git over HTTPS", metavar="NAME", live=True)
    git_password_file: Path | None = option(
        None, "password or token for git over HTTPS", as_path, "FILE", live=True
    )
    git_ca: Path | None = option(None, "certificate authority of the git host", as_path, "FILE", live=True)
    verify: str = option(
        "none", "signatures that a revision needs", one_of("none", "ssh", "gpg"), "none|ssh|gpg"
    )
    allowed_signers: Path | None = option(None, "who may sign, with --verify ssh", as_path, "FILE")
    keyring: Path | None = option(None, "who may sign, with --verify gpg", as_path, "FILE")
    revoked_keys: Path | None = option(None, "keys that are good no more, with --verify ssh", as_path, "FILE")
    allow_rewind: str | None = option(
        None,
        "accept this one commit although it is no descendant of the newest accepted",
        metavar="COMMIT",
        live=True,
    )
    interval: float = option(60.0, "how often git is polled", as_interval, "TIME", "1m", live=True)
    etcd: str = option(
        EMBEDDED,
        "endpoints, comma separated http(s)://host:port, or a private etcd",
        as_endpoints,
        "ENDPOINTS",
    )
    etcd_ca: Path | None = option(None, "certificate authority of etcd", as_path, "FILE")
    etcd_cert: Path | None = option(None, "client certificate for etcd", as_path, "FILE")
    etcd_key: Path | None = option(None, "key of the client certificate", as_path, "FILE")
    etcd_user: str | None = option(None, "user in etcd", metavar="NAME")
    etcd_password_file: Path | None = option(None, "that user's password", as_path, "FILE")
    prefix: str = option("/neco/", "of the keys in etcd", as_prefix)
    lock_prefix: str = option("coreos.com/updateengine/rebootlock", "of the reboot lock's keys in etcd")
    lrn: int = option(0, "this server's number", as_number, "N")
    host_root: Path = option(Path("/"), "where this server's file system is", as_path, "DIR")
    host_exec: str = option(
        "auto",
        "how commands run on it",
        one_of("auto", "direct", "chroot", "nsenter"),
        "auto|direct|chroot|nsenter",
    )
    state_dir: Path = option(
        Path("/var/lib/reconciler"),
        "git mirror, downloads, ledger, embedded etcd",
        as_path,
        "DIR",
        "/var/lib/reconciler; for an ordinary user $XDG_STATE_HOME/reconciler",
    )
    policy: Path = option(Path("/etc/reconciler/policy.yaml"), "what this host allows", as_path, "FILE")
    runtime: str = option(
        "auto", "what runs containers", one_of("auto", "podman", "docker"), "auto|podman|docker"
    )
    reboot_command: str = option("systemctl reboot", "what reboots this server", as_command, "COMMAND")
    reboot_required_file: Path = option(
        Path("/var/run/reboot-required"), "exists when this server wants a reboot", as_path, "FILE"
    )
    github_api: str = option("https://api.github.com", "GitHub's API or a mirror", as_url, "URL")
    flatcar_url: str | None = option(
        None, "Flatcar's release server or a mirror", as_url, "URL", "the public one"
    )
    drift_interval: float = option(600.0, "between two drift checks", as_interval, "TIME", "10m", live=True)
    grace: float = option(
        300.0, "how long SIGTERM waits for the step in flight", as_duration, "TIME", "5m", live=True
    )
    alarm_after: float = option(
        600.0,
        "when a holder that stays away, or a git that does not answer, is an alarm",
        as_interval,
        "TIME",
        "10m",
        live=True,
    )
    lease_ttl: float = option(10.0, "the leader's lease", as_interval, "TIME", "10s")
    notify_webhook: str | None = option(None, "a JSON webhook for notifications", as_url, "URL", live=True)
    allow_demo_etcd: bool = option(
        False,
        "let `agent` use the etcd of the Python wheel, which is for demonstrations",
        as_truth,
        shown="false",
    )
    listen: str | None = option(
        None, "serve HTTP here", as_address, "HOST:PORT", "nowhere; 127.0.0.1:8470 for agent", live=True
    )
    tls_cert: Path | None = option(None, "certificate of the HTTP server", as_path, "FILE", live=True)
    tls_key: Path | None = option(None, "key of that certificate", as_path, "FILE", live=True)
    token_file: Path | None = option(
        None, "bearer token that HTTP clients must show", as_path, "FILE", live=True
    )
    webhook_secret_file: Path | None = option(
        None, "secret of the git host's webhook", as_path, "FILE", live=True
    )
    output: str = option("text", "form of what is printed", one_of("text", "json"), "text|json")
    log_format: str | None = option(
        None,
        "form of the log on standard error",
        one_of("text", "json"),
        "text|json",
        "text on a terminal, else json",
    )
    log_level: str = option(
        "info",
        "least severe event that is logged",
        one_of("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        live=True,
    )
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where the value of option `name` (`git-ssh-key`) comes from; `default` where nobody said anything."""
        return self.origins.get(name, "default")

    def given(self, name: str) -> bool:
        return name in self.origins

    @property
    def endpoints(self) -> tuple[str, ...]:
        """etcd's endpoints; none where it is the embedded one."""
        return () if self.etcd == EMBEDDED else tuple(self.etcd.split(","))

    @property
    def remote(self) -> bool:
        """Whether the desired state comes over the network."""
        from reconciler.desired.source import is_url

        return is_url(self.repo) and not self.repo.startswith("file://")

    def with_settings(self, settings: Settings) -> Options:
        """With the fleet's settings from etcd for what neither flag, environment nor file says."""
        if settings.check_update_interval is None or self.given("interval"):
            return self
        origins = {**self.origins, "interval": "etcd config/check-update-interval"}
        return replace(self, interval=settings.check_update_interval, origins=origins)


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table: `name` is spelled as in the flag without its dashes."""

    name: str
    meaning: str
    metavar: str
    default: str
    read: Callable[[str], Any]
    live: bool

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return ENVIRONMENT + self.attribute.upper()

    @property
    def is_flag(self) -> bool:
        return self.read is as_truth


def _default_text(value: object) -> str:
    return "" if value is None else str(value)


TABLE: Final[Mapping[str, Option]] = {
    name: Option(
        name,
        entry.metadata["meaning"],
        entry.metadata["metavar"],
        entry.metadata["shown"] or _default_text(entry.default),
        entry.metadata["read"],
        entry.metadata["live"],
    )
    for entry in fields(Options)
    if entry.metadata
    for name in [entry.name.replace("_", "-")]
}
"""Every option by its name, in the order of the help."""


def resolve(
    given: Mapping[str, str], environment: Mapping[str, str], *, ordinary_user: bool | None = None
) -> Options:
    """Options from flags (`given`, with `config` among them), environment, configuration file and `/etc/neco/rack`.

    Raises `UsageError` for what nothing knows and for values that are not right, all of them at once.
    """
    variables, problems = _from_environment(environment)
    named = given.get("config") or variables.get("config")
    from_file = _from_file(configuration_file(given, environment), wanted=named is not None)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, row in TABLE.items():
        sources = (
            (given.get(name), "flag"),
            (variables.get(name), f"environment {row.variable}"),
            from_file.get(name, (None, "")),
        )
        text, origin = next(((text, origin) for text, origin in sources if text is not None), (None, ""))
        if text is None:
            continue
        try:
            values[row.attribute] = row.read(text)
            origins[name] = origin
        except ValueError as error:
            problems.append(f"{_named(row, origin)}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    _places(values, origins, environment, os.geteuid() != 0 if ordinary_user is None else ordinary_user)
    return Options(**values, origins=origins)


def configuration_file(given: Mapping[str, str], environment: Mapping[str, str]) -> Path:
    """Where the configuration file is, if there is one."""
    named = given.get("config") or environment.get(f"{ENVIRONMENT}CONFIG")
    return as_path(named) if named else CONFIGURATION


def must_be_given(options: Options) -> None:
    """What `agent` does not take from a default: a wrong guess there would change a server. Raises `UsageError`."""
    reasons = {
        "repo": "which desired state this server follows",
        "etcd": "which etcd its fleet shares, or `embedded` for a fleet of one",
        "lrn": f"this server's number (or /{RACK})",
    }
    if options.remote:
        reasons["verify"] = "whether a revision from a remote repository must be signed, if only as `none`"
    missing = [
        f"agent must be told {reason}: give --{name}, {TABLE[name].variable} or `{name}:` in the configuration file"
        for name, reason in reasons.items()
        if not options.given(name)
    ]
    if missing:
        raise UsageError("\n".join(missing))


def nearest(word: str, known: list[str]) -> str:
    """A question that suggests the nearest known word; empty where none is near."""
    from difflib import get_close_matches

    found = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def shown(name: str, options: Options) -> str:
    """The value of option `name` as it may be shown: no password, and of a webhook's address, whose path is its secret, the host."""
    from reconciler.core.duration import format_duration

    row = TABLE[name]
    value = getattr(options, row.attribute)
    if value is None or options.origin(name) == "default":
        return row.default or "(none)"
    if name == "notify-webhook":
        from urllib.parse import urlsplit

        address = urlsplit(str(value))
        return f"{address.scheme}://{address.hostname}/…"
    if isinstance(value, bool):
        return "true" if value else "false"
    return format_duration(value) if isinstance(value, float) else hide_password(str(value))


def hide_password(text: str) -> str:
    """`text` without the password of a URL in it."""
    from reconciler.desired.source import masked

    return masked(text)


def _named(row: Option, origin: str) -> str:
    if origin == "flag":
        return f"--{row.name}"
    if origin.startswith("environment"):
        return row.variable
    return f"{origin}: {row.name}"


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Values by option name, and what is wrong with variables that look like ours."""
    names = {row.variable: name for name, row in TABLE.items()} | {f"{ENVIRONMENT}CONFIG": "config"}
    found: dict[str, str] = {}
    problems: list[str] = []
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT):
            continue
        if variable not in names:
            problems.append(f"nothing knows the variable {variable}{nearest(variable, sorted(names))}")
        elif not environment[variable]:
            problems.append(f"{variable} is empty: give it a value or unset it")
        else:
            found[names[variable]] = environment[variable]
    return found, problems


def _from_file(file: Path, *, wanted: bool) -> dict[str, tuple[str | None, str]]:
    """Values of the configuration file with their places; nothing where it is absent and nobody asked for it."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_CONFIGURATION_LIMIT + 1)
    except FileNotFoundError:
        if not wanted:
            return {}
        raise UsageError(f"cannot read the configuration file {file}: it does not exist") from None
    except OSError as error:
        raise UsageError(f"cannot read the configuration file {file}: {error.strerror}") from None
    from reconciler.wire.settings import read_configuration

    try:
        return read_configuration(data, str(file))
    except Refused as refused:
        raise UsageError(str(refused)) from None


def _places(
    values: dict[str, Any], origins: dict[str, str], environment: Mapping[str, str], ordinary_user: bool
) -> None:
    """Fill in what depends on who calls and where: the state directory, the server's number in Neco's file."""
    if "state_dir" not in values and ordinary_user:
        base = environment.get("XDG_STATE_HOME") or str(Path(environment.get("HOME", "~"), ".local/state"))
        values["state_dir"] = Path(base).expanduser() / "reconciler"
    if "lrn" not in values:
        rack = values.get("host_root", Path("/")) / RACK
        try:
            text = rack.read_text("ascii").strip()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read this server's number from {rack}: {error}") from None
        try:
            values["lrn"] = as_number(text)
        except ValueError as error:
            raise UsageError(f"{rack}: {error}") from None
        origins["lrn"] = str(rack)
