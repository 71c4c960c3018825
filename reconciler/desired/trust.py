"""Whether a revision is signed by somebody whom this host trusts. Called by the agent's loop and the commands before they use it.

git checks the signature with the host's files; what is believed is git's exit status, and its text only for the signer's
name, once the signature is known to be good.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from reconciler.core.state import Revision
from reconciler.desired.calls import Calls, GitTimeout, Unreadable
from reconciler.desired.repository import is_directory
from reconciler.desired.source import Source, masked
from reconciler.errors import Refused, Unavailable, UsageError
from reconciler.ground import process

_TIMEOUT = 60.0
_IMPORT = ("gpg", "--batch", "--no-tty", "--no-autostart", "--quiet", "--import", "--")


@dataclass(frozen=True, slots=True)
class Trust:
    """Who may sign. With `ssh`: an allowed-signers file and, optionally, revoked keys (a list or a KRL), as ssh-keygen reads them.

    With `gpg`: a file of public keys, and optionally one of revocation certificates. All are files of the host.
    """

    kind: Literal["none", "ssh", "gpg"] = "none"
    allowed_signers: Path | None = None
    keyring: Path | None = None
    revoked_keys: Path | None = None

    def __post_init__(self) -> None:
        if self.kind == "ssh" and self.allowed_signers is None:
            raise UsageError("cannot verify SSH signatures without --allowed-signers")
        if self.kind == "gpg" and self.keyring is None:
            raise UsageError("cannot verify GPG signatures without --keyring")


def verify(source: Source, revision: Revision, trust: Trust) -> str | None:
    """The name of who signed the revision; None where no signature is asked for.

    With a tag pattern the tag must be signed as well. Raises `Refused` with the reason where either is not signed by a
    trusted key, `Unavailable` where git or a file of the host cannot be used.
    """
    if trust.kind == "none":
        return None
    if is_directory(source):
        raise Refused(
            f"{source.shown} is refused: a plain directory has no signature; use a git repository, or --verify none"
        )
    place = source.local or source.mirror
    _check_files(trust, source)
    try:
        with _settings(trust) as (environment, config):
            calls = Calls(place, environment=environment, config=config.items())
            _verify(calls, "commit", revision.id, f"commit {revision.id}")
            if source.tag_pattern is not None:
                _verify(calls, "tag", _tag_object(calls, revision), f"tag {revision.ref}")
            return _signer(calls, revision.id)
    except (GitTimeout, Unreadable, process.ProcessFailed) as error:
        raise Unavailable(f"cannot verify {revision.id} of {source.shown}: {error}") from None


def _verify(calls: Calls, kind: Literal["commit", "tag"], name: str, what: str) -> None:
    answer = calls.run(f"verify-{kind}", name, timeout=_TIMEOUT)
    if answer.status != 0:
        reason = answer.error or "    it is not signed"
        raise Refused(f"{what} is refused: it has no good signature by a trusted key:\n{reason}")


def _signer(calls: Calls, commit: str) -> str:
    answer = calls.run("log", "-1", "--no-show-signature", "--format=%GS", commit, "--", timeout=_TIMEOUT)
    return masked(answer.output.decode(errors="replace").strip()) if answer.status == 0 else ""


def _tag_object(calls: Calls, revision: Revision) -> str:
    """The id of the tag that the revision was found by: it points to the revision, and was signed under this very name."""
    with calls.objects(_TIMEOUT) as objects:
        header = objects.header(f"refs/tags/{revision.ref}")
        if header is None or header.kind != "tag":
            raise Refused(
                f"tag {revision.ref} is refused: it is no annotated tag, so nobody can have signed it"
            )
        commit = objects.header(f"{header.id}^{{commit}}")
        lines = objects.content(header).split(b"\n\n", 1)[0].splitlines()
    if commit is None or commit.id != revision.id:
        raise Refused(f"tag {revision.ref} is refused: it has moved away from {revision.id}; try again")
    if f"tag {revision.ref}".encode() not in lines:
        raise Refused(f"tag {revision.ref} is refused: what was signed there is a tag of another name")
    return header.id


@contextlib.contextmanager
def _settings(trust: Trust) -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
    """Environment and settings that let git use the trusted keys and no others, and only the one kind of signature."""
    config = {"gpg.minTrustLevel": "fully"}
    match trust.kind:
        case "ssh":
            config |= {
                "gpg.ssh.program": "ssh-keygen",
                "gpg.ssh.allowedSignersFile": str(trust.allowed_signers and trust.allowed_signers.absolute()),
                # Set in any case, or the repository's own setting would stand.
                "gpg.ssh.revocationFile": str(trust.revoked_keys.absolute())
                if trust.revoked_keys
                else "/dev/null",
            }
            yield {}, config
        case "gpg":
            with _keyring(trust) as home:
                yield {"GNUPGHOME": str(home)}, {**config, "gpg.program": "gpg", "gpg.openpgp.program": "gpg"}
        case "none":
            yield {}, config
        case _:
            assert_never(trust.kind)


@contextlib.contextmanager
def _keyring(trust: Trust) -> Iterator[Path]:
    """A GnuPG home of its own, with the trusted keys and nothing else, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="reconciler-gpg-", ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        for file in (trust.keyring, trust.revoked_keys):
            if file is not None:
                process.run([*_IMPORT, file.absolute()], timeout=_TIMEOUT, env={"GNUPGHOME": directory})
        # A key is in this keyring because the host's administrator put it there: that is the trust.
        (home / "gpg.conf").write_text("trust-model always\nno-auto-key-retrieve\nno-autostart\n")
        yield home


def _check_files(trust: Trust, source: Source) -> None:
    """The files are there, and not in the repository that they are to judge."""
    for file in (trust.allowed_signers, trust.keyring, trust.revoked_keys):
        if file is None:
            continue
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            raise Unavailable(
                f"cannot verify {source.shown}: {file} cannot be read: {error.strerror}"
            ) from None
        if source.local is not None and file.resolve().is_relative_to(source.local.resolve()):
            raise UsageError(
                f"cannot trust {file}: it stands in the repository that it is to judge; keep it outside"
            )
