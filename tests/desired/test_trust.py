"""Signatures, made by the real ssh-keygen and gpg."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.desired.repository import Source, resolve
from reconciler.desired.trust import Trust, verify
from reconciler.errors import Refused, Unavailable, UsageError
from tests.desired.conftest import Repository
from tests.gpg_keys import GpgKeys, gpg_keys
from tests.ssh_keys import SshKeys

STATE = {"desired-state/a.yaml": "a: 1\n"}
NO_SIGNATURE = r"has no good signature by a trusted key"


def signer_of(repository: Repository, trust: Trust, tag_pattern: str | None = None) -> str | None:
    source = Source(str(repository.path), tag_pattern=tag_pattern)
    return verify(source, resolve(source), trust)


def test_no_signature_is_asked_for_unless_one_is(repository: Repository) -> None:
    repository.commit(STATE)
    assert signer_of(repository, Trust()) is None


@pytest.mark.parametrize("kind", ["ssh", "gpg"])
def test_a_trust_needs_its_keys(kind: str) -> None:
    with pytest.raises(UsageError, match=r"--allowed-signers|--keyring"):
        Trust(kind)  # type: ignore[arg-type]  # what the command line gives


# --- SSH ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ssh(tmp_path: Path) -> SshKeys:
    return SshKeys(tmp_path / "ssh")


needs_ssh = pytest.mark.needs("ssh-keygen")


@needs_ssh
def test_a_commit_signed_by_an_allowed_key_names_its_signer(repository: Repository, ssh: SshKeys) -> None:
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    assert signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed)) == "ops@example.org"


@needs_ssh
def test_a_commit_without_a_signature_is_refused(repository: Repository, ssh: SshKeys) -> None:
    repository.commit(STATE)
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed))


@needs_ssh
def test_a_commit_signed_by_another_key_is_refused(repository: Repository, ssh: SshKeys) -> None:
    ssh.sign_with(repository.path, "mallory")
    repository.commit(STATE, "signed", "-S")
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed))


@needs_ssh
def test_a_signature_on_another_commit_is_refused(repository: Repository, ssh: SshKeys) -> None:
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    text = repository.git("cat-file", "commit", "HEAD") + "\nand more\n"
    forged = repository.git("hash-object", "-t", "commit", "-w", "--stdin", input=text)
    repository.git("update-ref", "refs/heads/main", forged)
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed))


@needs_ssh
def test_a_revoked_key_is_refused(repository: Repository, ssh: SshKeys, tmp_path: Path) -> None:
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    revoked = tmp_path / "revoked"
    trust = Trust("ssh", allowed_signers=ssh.allowed, revoked_keys=revoked)
    revoked.write_text(ssh.public("mallory"))
    assert signer_of(repository, trust) == "ops@example.org"
    revoked.write_text(ssh.public("ops"))
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, trust)


@needs_ssh
def test_a_key_that_was_allowed_until_before_the_commit_is_refused(
    repository: Repository, ssh: SshKeys
) -> None:
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    ssh.allow("ops@example.org", "ops", 'valid-before="20200101"')
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed))


@needs_ssh
def test_what_the_repository_says_of_trust_counts_for_nothing(
    repository: Repository, ssh: SshKeys, tmp_path: Path
) -> None:
    ssh.sign_with(repository.path, "mallory")
    evil = tmp_path / "evil"
    evil.write_text(f"mallory {ssh.public('mallory')}")
    always = tmp_path / "always"
    always.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/run\necho 'Good \"git\" signature for ops with key'\nexit 0\n"
    )
    always.chmod(0o755)
    repository.commit({**STATE, "allowed": evil.read_text()}, "signed", "-S")
    repository.git("config", "gpg.ssh.allowedSignersFile", str(evil))
    repository.git("config", "gpg.ssh.program", str(always))
    repository.git("config", "gpg.minTrustLevel", "undefined")
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=r"stands in the repository that it is to judge"):
        signer_of(repository, Trust("ssh", allowed_signers=repository.path / "allowed"))


@needs_ssh
def test_a_tag_must_be_signed_too_where_tags_are_followed(repository: Repository, ssh: SshKeys) -> None:
    trust = Trust("ssh", allowed_signers=ssh.allowed)
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    repository.git("tag", "release-1")
    with pytest.raises(Refused, match=r"tag release-1 is refused: it is no annotated tag"):
        signer_of(repository, trust, "release-*")
    repository.git("tag", "--annotate", "--message", "x", "release-2")
    with pytest.raises(Refused, match=rf"tag release-2 is refused: it {NO_SIGNATURE}"):
        signer_of(repository, trust, "release-*")
    repository.git("tag", "--sign", "--message", "x", "release-3")
    assert signer_of(repository, trust, "release-*") == "ops@example.org"
    ssh.sign_with(repository.path, "mallory")
    repository.git("tag", "--sign", "--message", "x", "release-4")
    with pytest.raises(Refused, match=rf"tag release-4 is refused: it {NO_SIGNATURE}"):
        signer_of(repository, trust, "release-*")


@needs_ssh
def test_a_signed_tag_on_an_unsigned_commit_is_refused(repository: Repository, ssh: SshKeys) -> None:
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE)
    repository.git("tag", "--sign", "--message", "x", "release-1")
    with pytest.raises(Refused, match=rf"commit .* is refused: it {NO_SIGNATURE}"):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed), "release-*")


@needs_ssh
def test_a_signed_tag_under_another_name_is_refused(repository: Repository, ssh: SshKeys) -> None:
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    repository.git("tag", "--sign", "--message", "x", "test-1")
    repository.git("update-ref", "refs/tags/release-9", "refs/tags/test-1")
    with pytest.raises(Refused, match=r"what was signed there is a tag of another name"):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed), "release-*")


@needs_ssh
def test_a_tag_that_moved_since_it_was_found_is_refused(repository: Repository, ssh: SshKeys) -> None:
    trust = Trust("ssh", allowed_signers=ssh.allowed)
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    repository.git("tag", "--sign", "--message", "x", "release-1")
    source = Source(str(repository.path), tag_pattern="release-*")
    revision = resolve(source)
    repository.commit({"desired-state/a.yaml": "a: 2\n"}, "signed", "-S")
    repository.git("tag", "--force", "--sign", "--message", "x", "release-1")
    with pytest.raises(Refused, match=r"it has moved away"):
        verify(source, revision, trust)


@needs_ssh
def test_the_mirror_of_a_remote_is_verified(repository: Repository, ssh: SshKeys, state_dir: Path) -> None:
    from reconciler.desired.repository import fetch

    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    source = Source(f"file://{repository.path}", state_dir=state_dir)
    fetch(source)
    assert verify(source, resolve(source), Trust("ssh", allowed_signers=ssh.allowed)) == "ops@example.org"


def test_a_plain_directory_cannot_be_signed(tmp_path: Path) -> None:
    (tmp_path / "desired-state").mkdir()
    (tmp_path / "desired-state/a.yaml").touch()
    source = Source(str(tmp_path))
    with pytest.raises(Refused, match=r"a plain directory has no signature"):
        verify(source, resolve(source), Trust("ssh", allowed_signers=tmp_path / "allowed"))


@pytest.mark.parametrize("missing", ["allowed_signers", "revoked_keys"])
def test_a_missing_file_is_named(repository: Repository, tmp_path: Path, missing: str) -> None:
    repository.commit(STATE)
    (tmp_path / "there").touch()
    trust = Trust("ssh", allowed_signers=tmp_path / "there")
    with pytest.raises(Unavailable, match=r"gone cannot be read"):
        signer_of(repository, replace(trust, **{missing: tmp_path / "gone"}))  # type: ignore[arg-type]  # both are paths


@needs_ssh
def test_an_empty_list_of_signers_trusts_nobody(repository: Repository, ssh: SshKeys) -> None:
    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    ssh.allowed.write_text("")
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed))


# --- GPG ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpg() -> Iterator[GpgKeys]:
    with gpg_keys() as keys:
        yield keys


needs_gpg = pytest.mark.needs("gpg", "gpgconf")


@needs_gpg
def test_gpg_signatures(repository: Repository, gpg: GpgKeys, ssh: SshKeys, tmp_path: Path) -> None:
    ops, mallory = gpg.make("ops"), gpg.make("mallory")
    keyring = tmp_path / "keys.asc"
    keyring.write_text(gpg.export(ops, "--armor"))
    trust = Trust("gpg", keyring=keyring)
    before = set(Path(tempfile.gettempdir()).glob("reconciler-gpg-*"))

    gpg.sign_with(repository.path, ops)
    repository.commit(STATE, "signed", "-S")
    assert signer_of(repository, trust) == "ops <ops@example.org>"
    repository.git("tag", "--sign", "--message", "x", "release-1")
    assert signer_of(repository, trust, "release-*") == "ops <ops@example.org>"
    # A GPG signature counts for nothing where SSH's is asked for.
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, Trust("ssh", allowed_signers=ssh.allowed))

    revoked = tmp_path / "revoked.asc"
    certificate = (gpg.home / "openpgp-revocs.d" / f"{ops}.rev").read_text()
    revoked.write_text(certificate.replace(":-----BEGIN", "-----BEGIN"))
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, replace(trust, revoked_keys=revoked))

    gpg.sign_with(repository.path, mallory)
    repository.commit(STATE, "signed", "-S")
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, trust)

    ssh.sign_with(repository.path, "ops")
    repository.commit(STATE, "signed", "-S")
    with pytest.raises(Refused, match=NO_SIGNATURE):
        signer_of(repository, trust)

    assert set(Path(tempfile.gettempdir()).glob("reconciler-gpg-*")) == before


@needs_gpg
def test_a_keyring_without_keys_is_named(repository: Repository, tmp_path: Path) -> None:
    repository.commit(STATE)
    (tmp_path / "keys").write_text("no keys")
    with pytest.raises(Unavailable, match=r"(?s)cannot verify .*keys"):
        signer_of(repository, Trust("gpg", keyring=tmp_path / "keys"))
