"""Users and roles for a real etcd: what `reconcile etcd-roles` prints, run by a shell at a terminal, as a person would.

It is done once, in an etcd of its own; its snapshot is what every etcd with authentication starts from, which costs a
tenth of a second and not the hundred calls of `etcdctl`.
"""

from __future__ import annotations

import os
import pty
import re
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.store.client import EtcdOptions
from reconciler.store.keys import Keys

ROOT, OPERATOR = "root", "operator"
SERVERS, FOLLOWERS = range(8), (6, 7)
"""Numbers whose agents have a user, and those of them that have no right to lead."""

_WITHIN = 120.0
_PROMPT = re.compile(rb"(Password of (\S+)|again for confirmation): ")


def agent(lrn: int) -> str:
    """The user of server `lrn`'s agent."""
    return f"agent-{lrn}"


@dataclass(frozen=True)
class Users:
    """What is in `directory`: each user's password in a file, and a snapshot of an etcd that knows them."""

    directory: Path

    @property
    def snapshot(self) -> Path:
        return self.directory / "snapshot.db"

    def password_file(self, user: str) -> Path:
        return self.directory / f"{user}.password"

    def password(self, user: str) -> str:
        return self.password_file(user).read_text().strip()

    def login(self, user: str) -> str:
        """As `etcdctl` has it."""
        return f"{user}:{self.password(user)}"

    def options(self, endpoints: Sequence[str], user: str) -> EtcdOptions:
        return EtcdOptions(tuple(endpoints), user=user, password_file=str(self.password_file(user)))

    def flags(self, user: str) -> list[str]:
        return ["--etcd-user", user, "--etcd-password-file", str(self.password_file(user))]

    def copied(self, directory: Path, *users: str) -> Users:
        """The same users, with password files that a test may change."""
        found = Users(directory)
        found.snapshot.symlink_to(self.snapshot)
        for user in users:
            found.password_file(user).write_text(self.password(user))
        return found

    def invent(self, user: str) -> str:
        """A new password for `user`, in its file."""
        file = self.password_file(user)
        file.touch(mode=0o600)
        file.write_text(f"{secrets.token_hex(8)}\n")
        return self.password(user)


def make_users(
    endpoint: str,
    directory: Path,
    keys: Keys = Keys(),
    words: Sequence[str] = (),  # frozen
) -> Users:
    """Make the users and roles of a fleet in the etcd at `endpoint`, which has none, and turn authentication on."""
    users = Users(directory)
    printed = subprocess.run(
        [sys.executable, "-m", "reconciler", "etcd-roles", *(words or words_for_all())],
        env={**os.environ, "RECONCILER_PREFIX": keys.prefix, "RECONCILER_LOCK_PREFIX": keys.lock_prefix},
        capture_output=True,
        text=True,
        timeout=_WITHIN,
        check=True,
    ).stdout
    (directory / "roles.sh").write_text(printed)
    script = (
        "etcdctl user add root && etcdctl user grant-role root root && sh roles.sh && etcdctl auth enable"
    )
    _at_a_terminal(script, endpoint, directory, users.invent)
    return users


def words_for_all() -> list[str]:
    """The servers of the tests, whose machine ids are their numbers."""
    servers = ",".join(f"{lrn}={lrn:032x}" for lrn in SERVERS)
    return ["--servers", servers, "--no-lead", ",".join(map(str, FOLLOWERS))]


def _at_a_terminal(script: str, endpoint: str, directory: Path, password: Callable[[str], str]) -> None:
    """Run `script` where `etcdctl` asks for each password and is answered."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        ["sh", "-c", script],
        cwd=directory,
        env={**os.environ, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": endpoint},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said, read_to, answer = b"", 0, ""
    end = time.monotonic() + _WITHIN
    try:
        while time.monotonic() < end and select.select([ours], [], [], end - time.monotonic())[0]:
            try:
                said += os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed: the script has ended
                break
            while (prompt := _PROMPT.search(said, read_to)) is not None:
                read_to = prompt.end()
                if prompt[2]:
                    answer = password(prompt[2].decode())
                os.write(ours, f"{answer}\n".encode())
        status = child.wait(max(0.1, end - time.monotonic()))
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    shown = said.decode(errors="replace")
    assert status == 0 and "Authentication Enabled" in shown, shown[-4000:]
