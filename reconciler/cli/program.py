"""The command `reconcile`: its verbs, imported only when they run, its options before and after the verb, its exit status.

Called by `main`. What it prints on an error is lines on standard error and never a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from click.core import ParameterSource

from reconciler import __version__
from reconciler.cli.options import TABLE, Options, resolve
from reconciler.errors import ReconcilerError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _NumberType = click.ParamType[int]
else:
    _NumberType = click.ParamType  # generic only since click 8.2

USAGE: Final = UsageError.exit_status
INTERRUPTED: Final = 130
PASS_OPTIONS: Final = ("dry_run", "detailed_exitcode", "server", "all_servers", "recorded", "expect", "yes")


class Place(NamedTuple):
    """Where a verb's command is, and its line in the help: neither needs the module."""

    module: str
    summary: str


VERBS: Final[Mapping[str, Place]] = {
    "adopt": Place("adopt", "Take over what a stopped Neco, or a person, installed."),
    "agent": Place("agent", "Run the daemon: follow git, lead when elected, work for this server."),
    "config": Place("config", "The fleet's settings in etcd, and where each option comes from."),
    "diff": Place("diff", "What changes between two commits of the desired state."),
    "drift": Place("drift", "Recorded against observed on this server."),
    "etcd-roles": Place("etcd_roles", "Print the etcdctl commands for users and roles."),
    "fleetlock": Place("fleetlock", "Serve FleetLock over the reboot lock."),
    "history": Place("history", "Finished rollouts."),
    "lock": Place("lock", "The reboot lock: status, acquire, release, set-max."),
    "pause": Place("pause", "Hold new rollouts."),
    "recover": Place("rollout", "Clear a stopped rollout, so that its revision is tried again."),
    "resume": Place("pause", "Let new rollouts open again."),
    "server": Place("server", "The fleet's servers: add, remove, disable, enable, list."),
    "snapshot": Place("snapshot", "The recorded state as JSON, for --recorded."),
    "status": Place("status", "Leader, rollout, each server's step, and what is waited for."),
    "stop": Place("rollout", "Stop the running rollout between steps."),
    "validate": Place("validate", "Check a desired state against the schemas."),
}


@dataclass(slots=True)
class Call:
    """One call of the command: the options as they were given; what they come to is worked out when a verb asks."""

    given: dict[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    _options: Options | None = None

    @property
    def options(self) -> Options:
        if self._options is None:
            self._options = resolve(self.given, self.environment)
        return self._options

    @property
    def debug(self) -> bool:
        return (self.given.get("log-level") or self.environment.get("RECONCILER_LOG_LEVEL")) == "debug"


def _take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep what was given of an option that every verb has; the last one given wins."""
    if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
        name = parameter.opts[0].removeprefix("--")
        context.ensure_object(Call).given[name] = "true" if value is True else str(value)


def _common_options(hidden: bool) -> list[click.Parameter]:
    """The options of every verb. Their help stands with the program, so that a verb's own help stays short."""
    made: list[click.Parameter] = [
        _common_option("config", "the configuration file", "FILE", "/etc/reconciler/config.yaml", hidden)
    ]
    for row in TABLE.values():
        made.append(
            _common_option(row.name, row.meaning, row.metavar, row.default, hidden, is_flag=row.is_flag)
        )
    return made


def _common_option(
    name: str, meaning: str, metavar: str, default: str, hidden: bool, *, is_flag: bool = False
) -> click.Option:
    help_text = meaning[0].upper() + meaning[1:] + (f" [{default}]" if default and not is_flag else "")
    attribute = f"option_{name.replace('-', '_')}"
    return click.Option(
        [f"--{name}", attribute],
        is_flag=is_flag,
        metavar=None if is_flag else metavar,
        help=help_text,
        hidden=hidden,
        expose_value=False,
        callback=_take,
    )


def _completed(parameters: Sequence[click.Parameter], incomplete: str) -> list[CompletionItem]:
    """The options of every verb that begin with `incomplete`: click itself passes over what the help does not show."""
    from click.shell_completion import CompletionItem

    hidden = [option for option in parameters if isinstance(option, click.Option) and option.hidden]
    return [
        CompletionItem(name, help=option.help)
        for option in hidden
        for name in option.opts
        if name.startswith(incomplete)
    ]


class Number(_NumberType):
    """A whole number from `least`, refused in the words that every other option has."""

    name = "number"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
        if number < self.least:
            name = (
                param.human_readable_name
                if isinstance(param, click.Argument)
                else f"--{param.name}"
                if param
                else ""
            )
            raise UsageError(f'{name}: found "{value}"; a number from {self.least} is wanted')
        return number


class Verb(click.Command):
    """A verb: its own options, and those of every verb, which its help leaves out and a shell completes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_common_options(hidden=True)]
        if not self.epilog:
            self.epilog = "Every verb takes the options that `reconcile --help` lists, too."

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            found += _completed(self.params, incomplete)
        return found


class Noun(click.Group):
    """A verb with verbs of its own (`server add`)."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_common_options(hidden=True)]


class Program(click.Group):
    """The program itself; a verb's module is imported when the verb is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_common_options(hidden=False)]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = VERBS.get(cmd_name)
        if place is None:
            return None
        module = importlib.import_module(f"reconciler.cli.{place.module}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, place.summary) for name, place in VERBS.items()])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                (common if (parameter.name or "").startswith("option_") else own).append(record)
        with formatter.section("Options of a pass"):
            formatter.write_dl(own)
        self.format_commands(ctx, formatter)
        with formatter.section(
            "Options of every verb (also RECONCILER_… and keys of the configuration file)"
        ):
            formatter.write_dl(common)


@click.group(
    "reconcile",
    cls=Program,
    invoke_without_command=True,
    no_args_is_help=False,
    subcommand_metavar="[VERB …]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="reconcile %(version)s")
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@click.option("--detailed-exitcode", is_flag=True, help="With --dry-run: exit 2 where changes are pending.")
@click.option("--server", metavar="N", type=Number(), help="With --dry-run: the plan of server N.")
@click.option("--all", "all_servers", is_flag=True, help="With --dry-run: the plans of all servers.")
@click.option(
    "--recorded", metavar="FILE", help="With --dry-run: the recorded state from a snapshot, not from etcd."
)
@click.option("--expect", metavar="DIGEST", help="Apply only the plan with this digest.")
@click.option("--yes", is_flag=True, help="Apply without asking.")
@click.pass_context
def program(context: click.Context, /, **asked: Any) -> int | None:
    """Bring this server to the desired state in git: read it, plan, show the plan, ask, apply.

    Without a verb it does one pass for this server and exits.
    """
    if context.invoked_subcommand is not None:
        misplaced = [name for name in PASS_OPTIONS if asked[name] not in (None, False)]
        if misplaced:
            flags = ", ".join(f"--{name.removesuffix('_servers').replace('_', '-')}" for name in misplaced)
            raise UsageError(f"{flags}: for a pass only, not for `reconcile {context.invoked_subcommand}`")
        return None
    from reconciler.cli.apply import one_pass
    from reconciler.cli.planning import Asked

    return one_pass(context.ensure_object(Call), Asked(**asked))


def run(arguments: Sequence[str] | None, environment: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit status; every error becomes lines on standard error."""
    call = Call(environment=os.environ if environment is None else environment)
    status = _guarded(call, lambda: _invoke(call, arguments))
    flushed = _guarded(call, sys.stdout.flush)
    return status or flushed


def _invoke(call: Call, arguments: Sequence[str] | None) -> int:
    words = None if arguments is None else list(arguments)
    status = program.main(words, prog_name="reconcile", standalone_mode=False, obj=call)
    return status if isinstance(status, int) else 0


def _guarded(call: Call, work: Callable[[], int | None]) -> int:
    try:
        return work() or 0
    except ReconcilerError as error:
        return _say(str(error), error.exit_status, call)
    except click.UsageError as error:
        return _say(_usage_text(error), USAGE, call)
    except click.ClickException as error:
        return _say(error.format_message(), 1, call)
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted", INTERRUPTED, call)
    except BrokenPipeError:
        _abandon_output()
        return 1
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except Exception as error:
        where = "" if call.debug else " (--log-level debug shows where)"
        return _say(f"an error in reconcile itself: {type(error).__name__}: {error}{where}", 1, call)


def _say(message: str, status: int, call: Call) -> int:
    if call.debug:
        import traceback

        traceback.print_exc()
    click.echo(
        "\n".join(
            f"reconcile: {line}" if not index else line for index, line in enumerate(message.splitlines())
        ),
        err=True,
    )
    return status


def _usage_text(error: click.UsageError) -> str:
    """What was wrong with the call, in one line, and where its help is."""
    problem = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        from reconciler.cli.options import nearest

        known = [opt for p in (error.ctx.command.params if error.ctx else []) for opt in p.opts]
        problem = f"nothing knows the option {error.option_name}{nearest(error.option_name, known)}"
    elif error.ctx and isinstance(error.ctx.command, click.Group) and problem.startswith("No such command"):
        from reconciler.cli.options import nearest

        word = problem.split("'")[1] if "'" in problem else problem
        verbs = error.ctx.command.list_commands(error.ctx)
        problem = f"nothing knows the verb {word}{nearest(word, verbs)}"
    elif isinstance(error, click.exceptions.NoArgsIsHelpError) and isinstance(error.ctx.command, click.Group):
        verbs = error.ctx.command.list_commands(error.ctx)
        problem = f"{error.ctx.info_name} wants one of {', '.join(verbs)}"
    path = error.ctx.command_path if error.ctx else "reconcile"
    return f"{problem}\n`{path} --help` lists what it takes"


def _abandon_output() -> None:
    """Nobody reads what we print: let Python's own flush at exit have nowhere to fail."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
