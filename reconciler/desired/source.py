"""Where the desired state is: a git URL, a repository on this machine, or a plain directory.

Made by `cli/compose` from the options and handed to everything in `desired`. A `Source` that exists is safe: its URL,
ref and path have been matched against what git may be given, so no later call has to ask again. Looks at the file
system only to tell a path from `host:path`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from reconciler.errors import UsageError

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A whole commit id. Anything else may come to mean another commit."""

CONTENT = re.compile(r"sha256:[0-9a-f]{64}")
"""The revision of a plain directory."""

_HOST = r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
_URL = re.compile(
    rf"(?P<scheme>https|ssh)://(?:(?P<user>[^@/:]+)@)?(?P<host>{_HOST}(?::[0-9]{{1,5}})?)(?P<path>/.*)"
)
_FILE_URL = re.compile(r"file://(?:localhost)?(?P<path>/.*)")
_SCP = re.compile(rf"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?(?P<host>{_HOST}):(?P<path>[^-:].*)")
_SECRET = re.compile(r"(?P<before>://[^/@:]*):[^/@]*@")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# git's own rules for names (git-check-ref-format), and `~1` or `^` behind one, for looking back.
_REF = re.compile(r"[\w@][\w./+@=%,#-]*(?:[~^][0-9]*)*")
_PATTERN = re.compile(r"[\w*?\[][\w./+@=%,*?!\[\]-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """A repository, what is followed in it, and how it is reached. `timeout` (seconds) bounds each fetch and each read.

    `ref` None is `HEAD` for a path and `main` for a URL; `tag_pattern` takes the ref's place. `path` is the directory
    in the repository. `allow_rewind` is the one commit that may go back behind what was accepted before.
    """

    repo: str = "."
    ref: str | None = None
    path: str = "desired-state"
    tag_pattern: str | None = None
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    ca: Path | None = None
    timeout: float = 60.0
    state_dir: Path = Path("/var/lib/reconciler")
    allow_rewind: str | None = None

    def __post_init__(self) -> None:
        _check_repo(self.repo)
        if self.local is None and self.ref == "HEAD":
            raise UsageError(f"cannot follow HEAD of {self.shown}: name the branch, as in --ref main")
        if self.ref is not None:
            check_ref(self.ref)
        if self.tag_pattern is not None and not _PATTERN.fullmatch(self.tag_pattern):
            raise UsageError(
                f"cannot use the tag pattern {self.tag_pattern!r}: write a name with * and ?, as in 'release-*'"
            )
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or _UNPRINTABLE.search(self.path):
            raise UsageError(
                f"cannot use {self.path!r} as the desired state's directory: --path is relative to the repository, without .."
            )
        rewind = self.allow_rewind
        if rewind is not None and not (COMMIT.fullmatch(rewind) or CONTENT.fullmatch(rewind)):
            raise UsageError(
                f"cannot allow going back to {rewind!r}: --allow-rewind takes a whole commit id, 40 hex digits"
            )

    @property
    def local(self) -> Path | None:
        """The directory, where `repo` is a path on this machine; None for what has to be fetched (`file://` too)."""
        return None if is_url(self.repo) else Path(self.repo).absolute()

    @property
    def shown(self) -> str:
        """`repo` as it may be printed."""
        return masked(self.repo)

    @property
    def identity(self) -> str:
        """What is the same as long as the history is the same one: the URL, or the directory's real path."""
        local = self.local
        return str(local.resolve()) if local else self.repo

    @property
    def mirror(self) -> Path:
        """Where a fetched repository is kept."""
        return self.state_dir / "git" / hashlib.sha256(self.repo.encode()).hexdigest()[:32]

    @property
    def wanted(self) -> str:
        """The ref that is followed where no tag pattern is given."""
        return self.ref or ("HEAD" if self.local else "main")

    @property
    def directory(self) -> tuple[str, ...]:
        """The names that lead from the repository's top to the desired state; none where it is the top."""
        return PurePosixPath(self.path).parts


def is_url(repo: str) -> bool:
    """Whether git would have to fetch `repo`. `host:path` is a URL too, unless that very path is there."""
    return "://" in repo or (_SCP.fullmatch(repo) is not None and not _is_there(repo))


def masked(text: str) -> str:
    """`text` without the passwords of the URLs in it and without control characters."""
    return _UNPRINTABLE.sub("?", _SECRET.sub(r"\g<before>:***@", text))


def check_ref(ref: str) -> None:
    """Raise `UsageError` for what is no branch, tag or commit, or would be taken as an option."""
    if not _REF.fullmatch(ref) or ".." in ref or "@{" in ref or "//" in ref or ref.endswith((".lock", "/")):
        raise UsageError(f"cannot use {masked(ref)!r} as a ref: name a branch, a tag or a commit")


def host_of(repo: str) -> str | None:
    """`https://host:port` of an HTTPS URL; None for every other."""
    match = _URL.fullmatch(repo)
    return f"https://{match['host']}" if match and match["scheme"] == "https" else None


def user_of(repo: str) -> str | None:
    """The user named in a URL."""
    match = _URL.fullmatch(repo) or _SCP.fullmatch(repo)
    return match["user"] if match else None


def _is_there(path: str) -> bool:
    try:
        Path(path).lstat()
    except (OSError, ValueError):
        return False
    return True


def _check_repo(repo: str) -> None:
    allowed = "a path, or a URL that begins with https://, ssh:// or file://, or host:path"
    if not repo or repo.startswith("-") or _UNPRINTABLE.search(repo):
        raise UsageError(f"cannot use {masked(repo)!r} as the repository: write {allowed}")
    if _SECRET.search(repo):
        raise UsageError(
            f"cannot use {masked(repo)} as the repository: a password in a URL ends up in logs and process lists; "
            "put it into a file and name that with --git-password-file"
        )
    if "://" in repo:
        if not _URL.fullmatch(repo) and not _FILE_URL.fullmatch(repo):
            raise UsageError(f"cannot use {masked(repo)} as the repository: write {allowed}")
    elif "::" in repo.partition("/")[0]:
        raise UsageError(
            f"cannot use {masked(repo)} as the repository: it names a program to run; write {allowed}"
        )
    elif ":" in repo.partition("/")[0] and not _SCP.fullmatch(repo) and not _is_there(repo):
        raise UsageError(f"cannot use {masked(repo)} as the repository: write {allowed}")
