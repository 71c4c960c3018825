"""Writes the pages of `docs/` that are made from the program itself: the manual page from its commands, the fields from its schemas.

Called by people after a command, an option or a schema has changed; `tests/test_docs.py` says when it was forgotten.
The texts are pure functions; `main` writes the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from reconciler.cli.program import program

ROOT: Final = Path(__file__).parent.parent
MANUAL: Final = "docs/reconcile.1"
FIELDS: Final = "docs/fields.md"

Schema = Mapping[str, Any]

# --- the manual page ------------------------------------------------------------------------------------------------

_EXIT_STATUS: Final = (
    ("0", "Done, or nothing to do."),
    ("1", "An error."),
    ("2", "With --dry-run --detailed-exitcode: changes are pending. With drift: something differs."),
    ("3", "Held back by a window, the lock, a pause or another agent."),
    ("4", "The plan is not the one that --expect names."),
    (
        "5",
        "The revision was refused: schema, signature, rewound history, the host's policy, too many removals.",
    ),
    ("64", "A wrong call."),
)
_FILES: Final = (
    ("/etc/reconciler/config.yaml", "The options of this server, spelled as the flags without their dashes."),
    ("/etc/reconciler/policy.yaml", "What this host allows, whatever git or etcd say."),
    (
        "/etc/reconciler/hooks/",
        "The programs that the desired state may name: root's own, writable by nobody else.",
    ),
    ("/etc/neco/rack", "This server's number, where --lrn is not given."),
    ("/var/lib/reconciler/", "Git mirror, downloads, ledger and embedded etcd (--state-dir)."),
    ("/run/reconciler.lock", "Held by the one agent of this host, and by what it has started."),
)
_ENVIRONMENT: Final = (
    (
        "RECONCILER_<OPTION>",
        "Each option of every verb, in capitals, its dashes as underscores: RECONCILER_STATE_DIR.",
    ),
    ("NO_COLOR", "No colours, on a terminal either."),
)


def manual_page() -> str:
    """`reconcile.1`, in the man macros."""
    lines = [
        '.\\" Made from the commands by tools/make_docs.py: change the commands, not this page.',
        '.TH RECONCILE 1 "" "reconciler" "User Commands"',
        ".SH NAME",
        "reconcile \\- bring the servers that come before Kubernetes to the desired state in git",
        ".SH SYNOPSIS",
        ".B reconcile",
        "[\\fIOPTION\\fR]... [\\fIVERB\\fR [\\fIOPTION\\fR]...]",
        ".SH DESCRIPTION",
        *_paragraphs(program.help or ""),
        ".SH OPTIONS OF A PASS",
        *_own_options(program),
        ".SH VERBS",
        *(line for name, command in _verbs(program) for line in _verb(name, command)),
        ".SH OPTIONS OF EVERY VERB",
        "In this order of precedence: the flag, the variable, the key of the configuration file, the default.",
        *(line for option in _options(program, common=True) for line in _option(option)),
        ".SH EXIT STATUS",
        *_table(_EXIT_STATUS),
        ".SH ENVIRONMENT",
        *_table(_ENVIRONMENT),
        ".SH FILES",
        *_table(_FILES),
        ".SH SEE ALSO",
        ".BR etcdctl (1),",
        ".BR podman (1),",
        ".BR dpkg (1)",
    ]
    return "\n".join(lines) + "\n"


def _verbs(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every verb with its whole name: `status`, `server add`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _verbs(command, f"{prefix}{name} ")
        elif command is not None:
            yield prefix + name, command


def _verb(name: str, command: click.Command) -> Iterator[str]:
    usage = [f"\\fB{_roff(f'reconcile {name}')}\\fR"]
    if _options(command, common=False):
        usage.append("[\\fIOPTION\\fR]...")
    for argument in _arguments(command):
        shown = f"\\fI{_metavar(argument)}\\fR"
        usage.append(shown if argument.required else f"[{shown}]")
    yield from (".SS " + _roff(name), " ".join(usage), ".PP")
    yield from _paragraphs(command.help or "")
    yield from _own_options(command)


def _own_options(command: click.Command) -> Iterator[str]:
    for option in _options(command, common=False):
        yield from _option(option)


def _options(command: click.Command, *, common: bool) -> list[click.Option]:
    """The options of every verb, or those of this one alone."""
    found = [each for each in command.params if isinstance(each, click.Option)]
    return [each for each in found if (each.name or "").startswith("option_") == common]


def _arguments(command: click.Command) -> list[click.Argument]:
    return [each for each in command.params if isinstance(each, click.Argument)]


def _metavar(argument: click.Argument) -> str:
    return _roff((argument.metavar or (argument.name or "").upper()).strip("[]"))


def _option(option: click.Option) -> Iterator[str]:
    value = "" if option.is_flag else f" \\fI{_roff(option.metavar or 'TEXT')}\\fR"
    yield ".TP"
    yield f"\\fB{_roff(', '.join(option.opts))}\\fR{value}"
    yield _roff(option.help or "")


def _table(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, meaning in rows:
        yield from (".TP", f".B {_roff(name)}", _roff(meaning))


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.strip().split("\n\n"):
        yield _roff(" ".join(paragraph.split()))
        yield ".PP"


def _roff(text: str) -> str:
    """Text in which nothing means anything to roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


# --- the fields -----------------------------------------------------------------------------------------------------

_SCHEMAS: Final = ("artifact-set", "server-group", "rollout-policy", "policy", "configuration")
_HEAD: Final = """# Every field

Made from [the schemas](../schemas) by `tools/make_docs.py`: change the schemas, not this page. [desired-state.md](desired-state.md)
explains what belongs together. `[]` stands for each entry of a list; **bold** fields must be there.
"""


def fields_page() -> str:
    """A table of every field for each schema that people write documents for."""
    parts = [_HEAD]
    for name in _SCHEMAS:
        schema = json.loads((ROOT / "schemas" / f"{name}.json").read_text())
        head = ("| field | means | example |", "| --- | --- | --- |")
        parts += [f"## {schema['title']}", "", schema["description"], "", *head]
        parts += [f"| {' | '.join(map(_cell, row))} |" for row in _rows(schema, schema, "")]
        parts.append("")
    return "\n".join(parts)


def _rows(root: Schema, schema: Schema, path: str) -> Iterator[tuple[str, str, str]]:
    """Each field below `schema`, at `path`, as its name, its meaning and an example."""
    forms = [_followed(root, form) for form in (schema, *schema.get("oneOf", ()), *_conditional(schema))]
    forms = [form for form in forms if "properties" in form]
    seen: set[str] = set()
    for name, found in ((name, found) for form in forms for name, found in form["properties"].items()):
        if name in seen or (name in ("apiVersion", "kind") and not path) or "description" not in found:
            continue
        seen.add(name)
        where = f"{path}.{name}" if path else name
        needed = all(name in form.get("required", ()) for form in forms)
        examples = found.get("examples", [])
        example = f"`{json.dumps(examples[0], ensure_ascii=False)}`" if examples else ""
        yield f"**`{where}`**" if needed else f"`{where}`", _meaning(root, found), example
        yield from _below(root, found, where)


def _conditional(schema: Schema) -> Iterator[Schema]:
    """The forms that an object has by what stands in it."""
    yield from (schema[word] for word in ("if", "then", "else") if isinstance(schema.get(word), dict))


def _below(root: Schema, schema: Schema, path: str) -> Iterator[tuple[str, str, str]]:
    """The fields of an object or of a list's entries."""
    schema = _followed(root, schema)
    if "items" in schema:
        yield from _below(root, schema["items"], f"{path}[]")
    else:
        yield from _rows(root, schema, path)


def _meaning(root: Schema, schema: Schema) -> str:
    """What a field means, the values that it may have where they are few, and its default."""
    text: str = schema["description"]
    whole = {**_followed(root, schema), **schema}
    if "enum" in whole:
        text += f" One of {', '.join(f'`{each}`' for each in whole['enum'])}."
    if "default" in whole and "Default:" not in text:
        text += f" Default: `{json.dumps(whole['default'], ensure_ascii=False)}`."
    return text


def _followed(root: Schema, schema: Schema) -> Schema:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    found: Schema = root["$defs"][reference.removeprefix("#/$defs/")]
    return found


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Write both pages."""
    (ROOT / MANUAL).write_text(manual_page())
    (ROOT / FIELDS).write_text(fields_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
