"""`reconcile config`: the fleet's settings in etcd, and each option's value here with where it comes from."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reconciler.cli import compose
from reconciler.cli.options import EMBEDDED, TABLE, hide_password, nearest, shown
from reconciler.cli.program import Call, Noun
from reconciler.errors import ReconcilerError, UsageError

_VALUE_LIMIT = 64 << 10
SECRET = ("github-token", "notification/slack")
"""Settings that are never taken from the command line, where every user of the machine could read them."""


@click.group("config", cls=Noun)
def config() -> None:
    """The fleet's settings in etcd (`get`, `set`, `unset`, `list`), and this server's options (`explain`)."""


@config.command("list")
@click.pass_obj
def list_settings(call: Call) -> int:
    """List the settings; secrets are masked."""
    from reconciler.wire.settings import SETTINGS, shown_setting

    stored = _stored(call)
    shown = {name: shown_setting(name, stored[name]) if name in stored else None for name in SETTINGS}
    if call.options.output == "json":
        compose.print_json(shown)
    else:
        width = max(map(len, shown))
        for name, value in shown.items():
            click.echo(f"{name:<{width}}  {'(not set)' if value is None else value}")
    return 0


@config.command("get")
@click.argument("name")
@click.pass_obj
def get(call: Call, name: str) -> int:
    """Print one setting; a secret is masked. Exit status 1 where it is not set."""
    from reconciler.wire.settings import shown_setting

    _known(name)
    stored = _stored(call)
    if name not in stored:
        raise ReconcilerError(f"{name} is not set")
    value = shown_setting(name, stored[name])
    if call.options.output == "json":
        compose.print_json({name: value})
    else:
        click.echo(value)
    return 0


@config.command("set")
@click.argument("name")
@click.argument("value", required=False)
@click.option(
    "--from-file", metavar="FILE", type=click.Path(path_type=Path), help="Read the value from a file."
)
@click.pass_obj
def set_setting(call: Call, name: str, value: str | None, from_file: Path | None) -> int:
    """Set NAME to VALUE; without VALUE it is read from standard input, as a secret has to be (or --from-file)."""
    from reconciler.wire.settings import stored_setting

    _known(name)
    if value is not None and name in SECRET:
        raise UsageError(
            f"{name} is a secret: give it on standard input or with --from-file, not on the command line"
        )
    if value is not None and name == "proxy" and hide_password(value) != value:
        raise UsageError(
            "the proxy has a password in it: give it on standard input or with --from-file, not on the command line"
        )
    if value is not None and from_file is not None:
        raise UsageError("give VALUE or --from-file, not both")
    text = value if value is not None else _read(from_file)
    try:
        stored = stored_setting(name, text)
    except ValueError as error:
        raise UsageError(f"cannot set {name}: {error}") from None
    with compose.store_to_write(call.options) as store:
        store.administration.set_config(name, stored)
    return _say(call, name, f"{name} is set; agents take it up without a restart.")


@config.command("unset")
@click.argument("name")
@click.pass_obj
def unset(call: Call, name: str) -> int:
    """Delete one setting."""
    _known(name)
    with compose.store_to_write(call.options) as store:
        there = store.administration.unset_config(name)
    return _say(call, name, f"{name} is not set any more." if there else f"{name} was not set.")


@config.command("explain")
@click.pass_obj
def explain(call: Call) -> int:
    """Show every option's value here, and where it comes from: flag, environment, file, etcd or default."""
    options = call.options
    if options.etcd != EMBEDDED or options.given("etcd"):
        try:
            options = options.with_settings(compose.settings(options))
        except ReconcilerError as error:
            click.echo(f"etcd's settings are not shown: {error}", err=True)
    rows = [(name, shown(name, options), options.origin(name)) for name in TABLE]
    if options.output == "json":
        compose.print_json(
            [{"option": name, "value": value, "origin": origin} for name, value, origin in rows]
        )
        return 0
    names, values = max(len(row[0]) for row in rows), max(min(len(row[1]), 48) for row in rows)
    for name, value, origin in rows:
        click.echo(f"{name:<{names}}  {value:<{values}}  {origin}")
    return 0


def _stored(call: Call) -> dict[str, str]:
    from reconciler.store.view import read_settings

    with compose.store(call.options) as store:
        return dict(read_settings(store.client, store.keys)[1]) if store else {}


def _known(name: str) -> None:
    from reconciler.wire.settings import SETTINGS

    if name not in SETTINGS:
        raise UsageError(
            f"nothing knows the setting {name}{nearest(name, list(SETTINGS))}; there are {', '.join(SETTINGS)}"
        )


def _read(from_file: Path | None) -> str:
    try:
        if from_file is not None:
            with from_file.open() as file:
                text = file.read(_VALUE_LIMIT + 1)
        else:
            text = sys.stdin.read(_VALUE_LIMIT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the value: {error}") from None
    if len(text) > _VALUE_LIMIT:
        raise UsageError(f"the value has more than {_VALUE_LIMIT} characters")
    return text.rstrip("\n")


def _say(call: Call, name: str, text: str) -> int:
    if call.options.output == "json":
        compose.print_json({"name": name})
    else:
        click.echo(text)
    return 0
