"""Builds the parts from the options, in one place: source, trust, etcd, host, ledger, policy, drivers. Called by the verbs and `agent`.

Each part's module is imported where the part is built: a command pays only for what it uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from reconciler.core.artifact import Artifact, Key, Kind, Pin
from reconciler.core.state import Desired, Fleet, Now, Revision, Settings
from reconciler.errors import ReconcilerError

if TYPE_CHECKING:
    from reconciler.cli.options import Options
    from reconciler.cli.render import Paint
    from reconciler.desired.repository import Source
    from reconciler.desired.trust import Trust
    from reconciler.store.administration import Administration
    from reconciler.store.client import Client, EtcdOptions
    from reconciler.store.keys import Keys


# --- desired --------------------------------------------------------------------------------------------------------


def source(options: Options) -> Source:
    from reconciler.desired.source import Source

    return Source(
        repo=options.repo,
        ref=options.ref,
        path=options.path,
        tag_pattern=options.tag_pattern,
        ssh_key=options.git_ssh_key,
        known_hosts=options.git_known_hosts,
        username=options.git_username,
        password_file=options.git_password_file,
        ca=options.git_ca,
        state_dir=options.state_dir,
        allow_rewind=options.allow_rewind,
    )


def trust(options: Options) -> Trust:
    from reconciler.desired.trust import Trust

    kinds: dict[str, Literal["none", "ssh", "gpg"]] = {"none": "none", "ssh": "ssh", "gpg": "gpg"}
    return Trust(kinds[options.verify], options.allowed_signers, options.keyring, options.revoked_keys)


def desired(options: Options, ref: str | None = None) -> Desired:
    """The newest desired state, or that of `ref` (a branch, tag or commit), fetched and checked as the agent would.

    Raises `Refused` with every reason, `Unavailable` where git cannot be reached or has no such revision.
    """
    import reconciler.wire.desired as documents
    from reconciler.desired import repository

    where = source(options)
    repository.fetch(where)
    revision = repository.resolve(where, ref)
    if ref is None:
        revision = accepted(options, where, revision)
    return documents.read(repository.read(where, revision.id), revision)


def accepted(options: Options, where: Source, revision: Revision) -> Revision:
    """`revision` with who signed it, once the host's policy, the signature and this host's memory allow it. Raises `Refused`."""
    if options.verify != "none":
        from reconciler.desired.trust import verify

        revision = replace(revision, signer=verify(where, revision, trust(options)))
    from reconciler.desired.memory import check_forward, recall

    check_forward(where, revision.id, recall(options.state_dir))
    return revision


def desired_in(directory: Path) -> Desired:
    """The desired state of a directory of documents, as it stands."""
    import reconciler.wire.desired as documents
    from reconciler.desired.directory import revision_of, yaml_files

    files = yaml_files(directory, ())
    placed = [(str(directory / name), content) for name, content in files]
    return documents.read(placed, Revision(revision_of(files), str(directory)))


# --- what is printed ------------------------------------------------------------------------------------------------


def paint(options: Options) -> Paint:
    """Colours on a terminal, unless NO_COLOR is set."""
    from reconciler.cli.render import coloured, plain

    return coloured if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else plain


def print_json(document: Any) -> None:
    """One JSON document on standard output: for a person's eyes on a terminal, on one line elsewhere."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def on_terminal() -> bool:
    return sys.stdout.isatty()


# --- etcd -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Store:
    """etcd, as the options say where it is."""

    client: Client
    keys: Keys

    def fleet(self, *, recorded: bool = True) -> Fleet:
        from reconciler.store.view import read_fleet

        return read_fleet(self.client, self.keys, recorded=recorded, steps=recorded)

    def fleet_of_one(self, lrn: int) -> Fleet:
        """The fleet, with what is recorded of server `lrn` only: its cost does not grow with the fleet's artifacts."""
        from reconciler.store.view import read_fleet, read_server

        fleet = read_fleet(self.client, self.keys, recorded=False, steps=False)
        server = read_server(self.client, self.keys, lrn, "", "", revision=fleet.etcd_revision)
        return replace(fleet, recorded={lrn: server.recorded}, steps={lrn: server.steps})

    @property
    def administration(self) -> Administration:
        from reconciler.store.administration import Administration

        return Administration(self.client, self.keys)


@contextlib.contextmanager
def store(options: Options) -> Iterator[Store | None]:
    """etcd for a command that reads; None where it is the embedded one and that has no data yet: nothing is started then."""
    if not options.endpoints:
        from reconciler.store.embedded import has_data

        if not has_data(options.state_dir):
            yield None
            return
    with store_to_write(options) as opened:
        yield opened


def etcd_options(options: Options) -> EtcdOptions:
    """Where etcd is and how to be let in, where it is not the embedded one."""
    from reconciler.store.client import EtcdOptions

    names = (options.etcd_ca, options.etcd_cert, options.etcd_key)
    ca, cert, key = (str(path) if path else None for path in names)
    password = str(options.etcd_password_file) if options.etcd_password_file else None
    return EtcdOptions(options.endpoints, ca, cert, key, options.etcd_user, password)


@contextlib.contextmanager
def store_to_write(options: Options) -> Iterator[Store]:
    """etcd for a command that writes: the embedded one is started where it does not run."""
    from reconciler.store.client import Client
    from reconciler.store.keys import Keys

    with contextlib.ExitStack() as stack:
        if options.endpoints:
            found = etcd_options(options)
        else:
            from reconciler.store.embedded import Embedded

            found = stack.enter_context(Embedded(options.state_dir)).options
        yield Store(stack.enter_context(Client(found)), Keys(options.prefix, options.lock_prefix))


def fleet(options: Options, *, server: int | None = None) -> Fleet | None:
    """The fleet as etcd has it, or what is known of one server; None where the embedded etcd has no data yet."""
    with store(options) as opened:
        if opened is None:
            return None
        return opened.fleet() if server is None else opened.fleet_of_one(server)


def settings(options: Options) -> Settings:
    """The fleet's settings; none where the embedded etcd has no data yet."""
    from reconciler.store.view import read_settings

    with store(options) as opened:
        return read_settings(opened.client, opened.keys)[0] if opened else Settings()


# --- this server ----------------------------------------------------------------------------------------------------


def observed_as_desired(
    options: Options, wanted_state: Desired, wanted: Sequence[Artifact], pins: Mapping[str, Pin]
) -> frozenset[Key]:
    """Those of `wanted` that this host has already as desired. A host that cannot be looked at has none, and a line says so."""
    from concurrent.futures import ThreadPoolExecutor

    from reconciler.cli.parts import host, server_parts

    if not wanted:
        return frozenset()
    group = wanted_state.group_of(options.lrn)
    hands = server_parts(options, host(options), lambda: group).hands

    def look(kind: Kind) -> frozenset[Key]:
        try:
            return hands.as_desired([artifact for artifact in wanted if artifact.key.kind == kind], pins)
        except ReconcilerError as error:
            click.echo(f"this host is not looked at for {kind}: {error}", err=True)
            return frozenset()

    # Each kind is other programs, and most of the time is theirs.
    kinds = sorted({artifact.key.kind for artifact in wanted})
    with ThreadPoolExecutor(len(kinds), thread_name_prefix="look") as pool:
        return frozenset(key for found in pool.map(look, kinds) for key in found)


def users_among(options: Options, gone: Sequence[Key]) -> Mapping[Key, frozenset[Key]]:
    """Which of the packages that are to be removed need which of them on this host: those go first."""
    from reconciler.cli.parts import host, server_parts

    if len([key for key in gone if key.kind == "deb"]) < 2:
        return {}
    try:
        return server_parts(options, host(options)).hands.users(gone)
    except ReconcilerError as error:
        click.echo(f"this host is not asked which packages need which: {error}", err=True)
        return {}


# --- who and when ---------------------------------------------------------------------------------------------------


def now() -> Now:
    return Now(time.time(), time.monotonic())


def timestamp() -> str:
    """Now, as etcd's documents have it."""
    from reconciler.core.duration import timestamp as as_text

    return as_text(time.time())


def who() -> str:
    """Who gives this command, for the record."""
    import getpass
    import socket

    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        name = str(os.geteuid())
    return f"{name}@{socket.gethostname()}"
