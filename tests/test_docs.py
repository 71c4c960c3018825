"""What the pages say is true of the program: each `reconcile` line, metric, option and generated page; and examples/sidecar.

Lines in blocks of README.md and docs/ are run, in a fleet of one whose etcd is real; those that would go on without end, and
those in the middle of a sentence, are parsed by the program itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from reconciler.cli.options import TABLE, resolve
from reconciler.cli.program import Call, program, run
from reconciler.core.state import Revision
from reconciler.store.administration import Administration
from reconciler.web.metrics import Metrics
from reconciler.wire.desired import read
from reconciler.wire.settings import read_policy
from tests.conftest import Etcd
from tests.debs import bare_host
from tests.web.agent import published

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
SIDECAR = ROOT / "examples" / "sidecar"
ENDLESS = ("agent", "fleetlock", "--watch")
"""Words of the lines that are parsed only: they would go on until somebody ends them."""
WHERE = ("--repo", "--etcd", "--config", "--host-root", "--state-dir", "--lrn")
"""Options by which a line would leave the test's own fleet."""


@dataclass(frozen=True, slots=True)
class Line:
    """One call of the command, and where it stands."""

    page: Path
    number: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.number}: reconcile {' '.join(self.words)}"


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """The line's number, the language and the text of every line in a fenced block; what a backslash continues is one line."""
    language: str | None = None
    for number, text in enumerate(page.read_text().replace("\\\n", " ").splitlines(), 1):
        if text.startswith("```"):
            language = None if language is not None else text.removeprefix("```").strip()
        elif language is not None:
            yield number, language, text


def calls(text: str) -> Iterator[tuple[str, ...]]:
    """The words after `reconcile` of each call in a line of shell."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    command: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif word in (">", ">>", "<"):
            skip = True  # the file that follows is the shell's
        elif set(word) <= set("|&;"):
            if command[:1] == ["reconcile"]:
                yield tuple(command[1:])
            command = []
        elif not ("=" in word and not command):  # a variable before the command
            command.append(word)


def in_blocks() -> list[Line]:
    found = []
    for page in PAGES:
        for number, language, text in blocks(page):
            shell = text if language == "sh" else text.removeprefix("$ ") if text.startswith("$ ") else ""
            if "reconcile" in shell and not shell.lstrip().startswith("#"):
                found += [Line(page, number, words) for words in calls(shell)]
    return found


def in_sentences() -> list[Line]:
    """Calls in the text itself, `reconcile` first in its backquotes. A vertical bar stands for several verbs."""
    found = []
    for page in PAGES:
        text = re.sub(
            r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page.read_text(), flags=re.M | re.S
        )
        for match in re.finditer(r"`reconcile( [^`]*)?`", text):
            number = text[: match.start()].count("\n") + 1
            found.append(Line(page, number, tuple(shlex.split((match[1] or "").replace("…", "")))))
    return found


def parse(words: tuple[str, ...]) -> click.Context:
    """Every verb and option of a call, resolved by the program, which is not run."""
    context = program.make_context("reconcile", list(words), obj=Call(environment={}))
    command: click.Command = program
    while isinstance(command, click.Group) and (rest := unparsed(context)):
        name, found, arguments = command.resolve_command(context, rest)
        assert found is not None and name is not None
        context, command = found.make_context(name, arguments, parent=context), found
    return context


def unparsed(context: click.Context) -> list[str]:
    """What a group has left for its verbs; click 8 keeps the verb's own name apart, and click 9 will not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [*getattr(context, "protected_args", ()), *context.args]


@pytest.mark.parametrize("line", in_sentences(), ids=str)
def test_what_a_sentence_names_is_there(line: Line) -> None:
    try:
        parse(line.words)
    except click.MissingParameter:
        pass  # a sentence may name a verb without what it is applied to
    except click.exceptions.NoArgsIsHelpError:
        pass  # or a noun without its verb


# --- lines that are run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as docs/install.md makes one, and the files that lines name."""
    directory = tmp_path_factory.mktemp("docs")
    (directory / "desired-state").mkdir()
    (directory / "desired-state" / "packages.yaml").write_text(
        "apiVersion: reconciler/v1\nkind: ArtifactSet\ndebs:\n  - {name: chrony, version: 4.3-2+deb12u1}\n"
    )
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "."],
        ["commit", "--quiet", "--message=The clock"],
        ["commit", "--quiet", "--allow-empty", "--message=Nothing"],
    ):
        subprocess.run(["git", *identity, *words], cwd=directory, check=True, timeout=30)
    host = bare_host(directory)
    (host.root / "etc" / "machine-id").write_text("0" * 32 + "\n")
    (directory / "token").write_text("ghp_0123456789\n")
    (directory / "recorded.json").write_text(
        '{"format_version": 1, "servers": [{"lrn": 0, "installed": []}]}'
    )
    return directory


@pytest.mark.needs("git", "etcd", "dpkg")
@pytest.mark.parametrize("line", in_blocks(), ids=str)
def test_a_line_is_a_right_call(
    line: Line, fleet: Path, etcd: Etcd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends well, or says what the little fleet has not (a stopped rollout, a slot, a terminal)."""
    if set(line.words) & {*ENDLESS, *WHERE}:
        parse(line.words)
        return
    Administration(etcd.client, etcd.keys).add_server(0)
    monkeypatch.chdir(fleet)
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        status = run(line.words, surroundings(fleet, etcd))
    said = capsys.readouterr().err
    wanted = [why for words, why in LACKING if line.words[: len(words)] == words]
    assert status == 0 or any(why in said for why in wanted), said
    assert "an error in reconcile itself" not in said


LACKING = [
    ((), "standard input is no terminal"),
    (("config", "set", "notification/slack"), "cannot set notification/slack"),
    (("recover",), "no rollout"),
    (("stop",), "no rollout"),
    (("server",), "not registered"),
    (("lock", "release"), "holds no slot"),
]
"""What some calls want and the little fleet has not, in the words of the message."""


def surroundings(fleet: Path, etcd: Etcd) -> dict[str, str]:
    """What a line's call is told by variables."""
    return {
        "RECONCILER_REPO": str(fleet),
        "RECONCILER_ETCD": etcd.endpoint,
        "RECONCILER_PREFIX": etcd.prefix,
        "RECONCILER_LOCK_PREFIX": etcd.lock_prefix,
        "RECONCILER_LRN": "0",
        "RECONCILER_HOST_ROOT": str(fleet / "root"),
        "RECONCILER_HOST_EXEC": "direct",
        "RECONCILER_STATE_DIR": str(fleet / "state"),
        "HOME": str(fleet),
    }


@pytest.mark.needs("git", "etcd", "dpkg")
@pytest.mark.parametrize("line", [each for each in in_blocks() if set(each.words) & {*ENDLESS}], ids=str)
def test_a_line_without_end_runs_until_it_is_ended(line: Line, fleet: Path, etcd: Etcd) -> None:
    """On loopback, where the line has an address of a network that is not here."""
    words = [re.sub(r"^10\.0\.0\.10:[0-9]+$", "127.0.0.1:0", word) for word in line.words]
    with subprocess.Popen(
        [sys.executable, "-m", "reconciler", *words],
        env={**surroundings(fleet, etcd), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        cwd=fleet, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.readline()
        process.terminate()
        said += process.stdout.read()
        assert process.wait(60) == 0, said
    assert "serves http" in said


def test_there_are_lines() -> None:
    assert len(in_blocks()) > 30 and len(in_sentences()) > 30
    verbs = {line.words[0] for line in [*in_blocks(), *in_sentences()] if line.words}
    missing = set(program.list_commands(click.Context(program))) - verbs
    assert not missing, f"no page names the verbs {missing}"


# --- documents in the pages -----------------------------------------------------------------------------------------


def documents() -> list[tuple[str, str]]:
    """The YAML blocks of the pages that are documents of ours, by where they begin."""
    found = []
    for page in PAGES:
        for match in re.finditer(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.M | re.S):
            number = page.read_text()[: match.start()].count("\n") + 1
            if "apiVersion: reconciler/v1" in match[1]:
                found.append((f"{page.relative_to(ROOT)}:{number}", match[1]))
    return found


@pytest.mark.parametrize(("where", "text"), documents(), ids=[where for where, _ in documents()])
def test_a_document_is_valid(where: str, text: str) -> None:
    """With the groups that it names and something to install, where it has none itself."""
    found = list(yaml.safe_load_all(text))
    named = {group for document in found for group in document.get("groups", [])}
    more = [
        f"---\napiVersion: reconciler/v1\nkind: ServerGroup\nname: {name}\nservers: [{number}]\n"
        for number, name in enumerate(sorted(named), 90)
    ]
    if not any(document["kind"] == "ArtifactSet" for document in found):
        more.append("---\napiVersion: reconciler/v1\nkind: ArtifactSet\n")
    read([("page.yaml", (text + "".join(more)).encode())], Revision("0" * 40, "", "main"))


# --- metrics --------------------------------------------------------------------------------------------------------


def test_the_pages_metrics_are_the_programs() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    text = Metrics(published).text().decode()
    there = set(re.findall(r"^# TYPE (reconciler_\w+)", text, flags=re.M))
    rows = [row for row in page.splitlines() if row.startswith("| `reconciler_")]
    named = {name for row in rows for name in re.findall(r"`(reconciler_\w+)`", row.split("|")[1])}
    assert named == there


def test_alerts_ask_for_metrics_that_are_there() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    (rules,) = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.M | re.S)
    text = Metrics(published).text().decode()
    there = set(re.findall(r"^# TYPE (\w+)", text, flags=re.M)) | {"up"}
    for rule in yaml.safe_load(rules)["groups"][0]["rules"]:
        asked = set(re.findall(r"\b(reconciler_\w+|up)\b", re.sub(r'"[^"]*"', "", rule["expr"])))
        assert asked and asked <= there, rule["alert"]


@pytest.mark.needs("promtool")
def test_prometheus_takes_the_alerts(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    (rules,) = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.M | re.S)
    (tmp_path / "rules.yaml").write_text(rules)
    subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yaml"], check=True, timeout=60)


# --- pages that are made ----------------------------------------------------------------------------------------------


def made() -> Mapping[str, str]:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        tool = __import__("make_docs")
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return {tool.MANUAL: tool.manual_page(), tool.FIELDS: tool.fields_page()}


@pytest.mark.parametrize("page", ["docs/reconcile.1", "docs/fields.md"])
def test_a_page_that_is_made_is_up_to_date(page: str) -> None:
    assert (ROOT / page).read_text() == made()[page], "run `python tools/make_docs.py`"


def test_the_manual_has_every_verb_and_option() -> None:
    manual = (ROOT / "docs" / "reconcile.1").read_text().replace("\\-", "-")
    assert [name for name in TABLE if f"\\fB--{name}\\fR" not in manual] == []
    assert [
        name for name in program.list_commands(click.Context(program)) if f".SS {name}" not in manual
    ] == []


@pytest.mark.needs("groff")
def test_groff_sets_the_manual_without_a_word() -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Kutf8", "-Tutf8", ROOT / "docs" / "reconcile.1"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert "Bring this server to the desired state in git" in done.stdout


# --- completion -----------------------------------------------------------------------------------------------------


def complete(*words: str, asked: str = "bash_complete") -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "_RECONCILE_COMPLETE": asked,
        "COMP_WORDS": " ".join(("reconcile", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from reconciler.cli import main; sys.exit(main())"],
        env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.stdout


def test_the_shell_completes_verbs_and_options() -> None:
    assert complete("hist") == "plain,history\n"
    assert complete("lock", "a") == "plain,acquire\n"
    assert complete("--etcd-p") == "plain,--etcd-password-file\n"
    assert "plain,--watch" in complete("status", "--")
    assert complete("agent", "--drift-i") == "plain,--drift-interval\n"
    assert complete("lock", "acquire", "--etcd-u") == "plain,--etcd-user\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    assert "_reconcile_completion" in complete(asked=f"{shell}_source")
    assert f"_RECONCILE_COMPLETE={shell}_source" in (ROOT / "docs" / "install.md").read_text()


# --- examples/sidecar -----------------------------------------------------------------------------------------------

GRACE = 300
"""The default of `--grace` in seconds: what ends a container or service must wait longer."""


def sidecar(name: str) -> Any:
    return yaml.safe_load((SIDECAR / name).read_text())


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit file by section and name."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (SIDECAR / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


def test_the_grace_is_what_the_examples_think() -> None:
    assert resolve({}, {}).grace == GRACE


def test_the_configuration_is_one_that_the_command_takes(tmp_path: Path) -> None:
    options = resolve({"config": str(SIDECAR / "config.yaml")}, {})
    assert options.verify == "ssh" and options.lrn == 0 and len(options.endpoints) == 3


def test_the_policy_is_one_that_the_host_takes() -> None:
    policy = read_policy((SIDECAR / "policy.yaml").read_bytes(), "policy.yaml")
    assert policy.sources == (sidecar("config.yaml")["repo"],)


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", ["reconciler.service", "reconciler.container"])
def test_systemd_takes_the_service(tmp_path: Path, name: str) -> None:
    """With a program that is there, for it looks. What is systemd's in a Quadlet goes into its service as it stands."""
    text = (SIDECAR / name).read_text()
    text = text.replace("/opt/reconciler/bin/reconcile", "/bin/true").replace(
        "Documentation=man:reconcile(1)\n", ""
    )
    text = re.sub(r"\[Container\].*?(?=\[Service\])", "", text, flags=re.S)
    if "ExecStart=" not in text:
        text = text.replace("[Service]", "[Service]\nExecStart=/bin/true")
    assert "StateDirectory=reconciler" in text, "what it mounts is there"
    (tmp_path / "reconciler.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "reconciler.service"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "reconciler" in line]
    assert (done.returncode, ours) == (0, [])


def test_stop_limits_are_above_the_grace() -> None:
    service, quadlet = unit("reconciler.service"), unit("reconciler.container")
    assert int(service["Service.TimeoutStopSec"][0]) > GRACE
    (stop,) = re.findall(r"--stop-timeout=(\d+)", " ".join(quadlet["Container.PodmanArgs"]))
    assert GRACE < int(stop) < int(quadlet["Service.TimeoutStopSec"][0])
    assert (
        int(sidecar("compose.yaml")["services"]["reconciler"]["stop_grace_period"].removesuffix("s")) > GRACE
    )
    assert sidecar("pod.yaml")["spec"]["terminationGracePeriodSeconds"] > GRACE


def test_quadlet_knows_the_keys() -> None:
    """Those of podman 4.4's podman-systemd.unit(5), the first that had them."""
    known = {"ContainerName", "Image", "Exec", "Environment", "Volume", "Network", "ReadOnly", "PodmanArgs"}
    used = {key.partition(".")[2] for key in unit("reconciler.container") if key.startswith("Container.")}
    assert used <= known


def variables() -> dict[str, dict[str, str]]:
    """The variables that each example sets."""
    pod = sidecar("pod.yaml")["spec"]["containers"][0]["env"]
    words = " ".join(unit("reconciler.container")["Container.Environment"]).split()
    services = sidecar("compose.yaml")["services"]
    return {
        "pod": {each["name"]: each["value"] for each in pod},
        "quadlet": dict(word.split("=", 1) for word in words),
        **{name: service["environment"] for name, service in services.items()},
    }


@pytest.mark.parametrize("name", sorted(variables()))
def test_the_command_knows_the_variables(name: str, tmp_path: Path) -> None:
    told = variables()[name]
    if "RECONCILER_CONFIG" in told:
        (tmp_path / "config.yaml").write_text("etcd: http://127.0.0.1:2379\n")
        told = {**told, "RECONCILER_CONFIG": str(tmp_path / "config.yaml")}
    options = resolve({}, told)
    assert {key.removeprefix("RECONCILER_").lower() for key in told} - {"config"} <= {
        origin.replace("-", "_") for origin in options.origins
    }


def test_each_container_has_the_mounts_and_no_other_writable_root() -> None:
    """The same three mounts, the configuration read-only, and a read-only root."""
    wanted = {"/host", "/var/lib/reconciler", "/etc/reconciler"}
    quadlet = unit("reconciler.container")
    assert {volume.split(":")[1] for volume in quadlet["Container.Volume"]} == wanted
    assert quadlet["Container.ReadOnly"] == ["true"]
    agent = sidecar("compose.yaml")["services"]["reconciler"]
    assert {volume["target"] for volume in agent["volumes"]} == wanted and agent["read_only"]
    pod = sidecar("pod.yaml")["spec"]["containers"][0]
    assert {mount["mountPath"] for mount in pod["volumeMounts"]} == wanted
    assert pod["securityContext"]["readOnlyRootFilesystem"]
    assert "/etc/reconciler:/etc/reconciler:ro" in quadlet["Container.Volume"]


@pytest.mark.parametrize("name", ["reconciler", "fleetlock"])
def test_a_service_runs_a_call_that_is_right(name: str) -> None:
    service = sidecar("compose.yaml")["services"][name]
    parse(tuple(service["command"]))


# --- what the image is built from -----------------------------------------------------------------------------------


def test_the_locked_versions_are_those_that_the_project_allows() -> None:
    """Each dependency of the wheel once, with a hash, in a version that pyproject.toml allows."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    text = (ROOT / "requirements" / "image.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, flags=re.M))
    assert len(locked) == len(re.findall(r"^\w", text, flags=re.M)), "every version has a hash"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


# --- examples/ci ----------------------------------------------------------------------------------------------------


@pytest.mark.needs("git")
def test_the_hook_refuses_what_is_staged_and_the_fleet_would_refuse(tmp_path: Path) -> None:
    """And looks at nothing else: what lies in the work tree beside it is another matter."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "reconcile").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m reconciler "$@"\n')
    (programs / "reconcile").chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    work = tmp_path / "fleet"
    (work / "desired-state").mkdir(parents=True)
    document = work / "desired-state" / "fleet.yaml"

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        return subprocess.run(
            ["git", *identity, *words], cwd=work, env=environment, capture_output=True, text=True, check=False
        )

    def stage(tag: str) -> None:
        image = f"{{name: squid, repository: quay.io/cybozu/squid, tag: {tag}}}"
        document.write_text(f"apiVersion: reconciler/v1\nkind: ArtifactSet\nimages:\n  - {image}\n")
        git("add", "--all")

    git("init", "--quiet", "--initial-branch=main")
    shutil.copy(ROOT / "examples" / "ci" / "pre-commit", work / ".git" / "hooks" / "pre-commit")
    stage("5.4")
    refused = git("commit", "--message", "a number")
    assert refused.returncode != 0
    assert "desired-state/fleet.yaml:4:" in refused.stderr and "quote it" in refused.stderr
    stage('"5.4"')
    document.write_text("not: staged\n")
    accepted = git("commit", "--message", "text")
    assert accepted.returncode == 0, accepted.stderr
    assert git("rev-list", "--count", "HEAD").stdout == "1\n"


@pytest.mark.parametrize("name", ["github-actions.yaml", "gitlab-ci.yml"])
def test_the_pipelines_run_the_check_and_show_its_report(name: str) -> None:
    text = (ROOT / "examples" / "ci" / name).read_text()
    yaml.safe_load(text)
    assert "./check-desired-state " in text and text.count("report.txt") >= 3
    # What failed is commented, too: the report is written first, and the status told at the end.
    assert "|| status=$?" in text and 'exit "$status"' in text


def test_each_test_that_the_promises_name_is_there() -> None:
    """`docs/promises.md` names tests by file and function; each row of the faults has one."""
    page = (ROOT / "docs/promises.md").read_text()
    named = re.findall(r"`([a-z]+/test_\w+\.py)::(test_\w+)`", page)
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^ *def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)
    ]
    assert not missing
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| `", page, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 49))
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", page)) <= files
