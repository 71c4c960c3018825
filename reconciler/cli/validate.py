"""`reconcile validate [PATH]`: a directory as it stands, or a revision, against the schemas. Needs no etcd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reconciler.cli.program import Call, Verb
from reconciler.core.state import Desired
from reconciler.errors import Refused, UsageError


@click.command("validate", cls=Verb)
@click.argument("where", metavar="[PATH|REV]", required=False)
@click.pass_obj
def validate(call: Call, where: str | None) -> int:
    """Check a desired state and show everything that is wrong with it, each with its place.

    PATH is a directory, read as it stands and not as it was committed: that of the documents, or one that has --path
    below it. REV is a revision of --repo. Without either, it is what --repo and --ref name.
    """
    from reconciler.cli import compose

    options = call.options
    directory = Path(where) if where is not None and Path(where).is_dir() else None
    if where is not None and directory is None and where.startswith(("/", "./", "../", "~")):
        raise UsageError(f"cannot validate {where}: it is no directory, and no revision is called so")
    as_json = options.output == "json"
    try:
        desired = (
            compose.desired_in(_documents(directory, options.path))
            if directory
            else compose.desired(options, where)
        )
    except Refused as refused:
        if not as_json:
            raise
        compose.print_json(_refusal(refused))
        return refused.exit_status
    if as_json:
        compose.print_json({"valid": True, "revision": desired.revision.id, **_counts(desired)})
    else:
        click.echo(_text(desired))
    return 0


def _documents(directory: Path, path: str) -> Path:
    """The directory of the documents: `directory` itself, or the desired state's directory below it."""
    below = directory / path
    return below if below.is_dir() else directory


def _refusal(refused: Refused) -> dict[str, Any]:
    findings = [
        {
            "file": finding.file,
            "line": finding.line,
            "column": finding.column,
            "problem": finding.problem,
        }
        for finding in refused.findings
    ]
    return {"valid": False, "summary": refused.summary, "findings": findings}


def _counts(desired: Desired) -> dict[str, int]:
    artifacts = {(entry.key, tuple(sorted(part.groups))) for part in desired.sets for entry in part.artifacts}
    return {
        "artifacts": len(artifacts),
        "server_groups": len(desired.groups),
        "waves": len(desired.policy.waves),
    }


def _text(desired: Desired) -> str:
    from reconciler.cli.render import counted, revision_text

    counts = _counts(desired)
    parts = [counted(counts["artifacts"], "artifact")]
    if counts["server_groups"]:
        parts.append(counted(counts["server_groups"], "server group"))
    if counts["waves"]:
        parts.append(counted(counts["waves"], "wave"))
    return f"{revision_text(desired.revision)} is valid: {', '.join(parts)}"
