"""The systemd units of containers: their text, what systemd says of it, and how they are installed.

No systemd runs as process 1 here, so the service is run by a script that does what `systemctl` is documented to do.
"""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.core.artifact import Bind, Container, Image, Key
from reconciler.core.plan import OWN
from reconciler.errors import HostError
from reconciler.ground.process import ProcessFailed
from reconciler.host import units
from reconciler.host.containers import Containers
from reconciler.host.definition import Definition, run_options
from reconciler.host.driver import Host
from reconciler.host.ledger import Ledger
from tests.podman import podman, podman_below
from tests.ports import free_port
from tests.registry import Registry, registry
from tests.systemd import Systemd

DIGEST = f"sha256:{'ab' * 32}"

ETCD = Definition(
    name="etcd",
    address="quay.io/cybozu/etcd",
    digest=DIGEST,
    args=("--name", "boot 1", "--cost=100%", "$HOME"),
    binds=(
        Bind("data", "/var/lib/etcd-container", "/var/lib/etcd"),
        Bind("etc", "/etc/etcd", "/etc/etcd", True),
    ),
    environment=(("QUOTED", 'say "it"'),),
    environment_file="/etc/etcd/env",
    unit="etcd-container",
)


def _command(definition: Definition) -> list[str]:
    options = run_options(definition, lambda path: path)
    return ["/usr/bin/podman", "run", "--name", definition.name, *options, definition.image, *definition.args]


def _service(definition: Definition = ETCD) -> units.Unit:
    return units.service_unit(
        definition,
        _command(definition),
        notify=True,
        stop=10,
        environment={"CONTAINERS_CONF": "/etc/some place/$x"},
    )


def test_the_service_as_text() -> None:
    unit = _service()
    assert unit.path == "/etc/systemd/system/etcd-container.service"
    assert unit.text == (
        f"""# Written by reconciler: it is written anew when the desired state changes.
[Unit]
Description=etcd (quay.io/cybozu/etcd@{DIGEST})
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=all
Environment="CONTAINERS_CONF=/etc/some place/$x"
ExecStart=/usr/bin/podman run --name etcd --network host"""
        f" --label reconciler.name=etcd --label reconciler.digest={DIGEST}"
        f" --label reconciler.definition={ETCD.hash}"
        r' --env "QUOTED=say \"it\"" --env-file /etc/etcd/env'
        " --volume /var/lib/etcd-container:/var/lib/etcd:rw --volume /etc/etcd:/etc/etcd:ro"
        f' quay.io/cybozu/etcd@{DIGEST} --name "boot 1" --cost=100%% "$$HOME"\n'
        """ExecStop=-/usr/bin/podman stop --time 10 etcd
ExecStopPost=-/usr/bin/podman rm --force etcd
Restart=always
RestartSec=2
TimeoutStartSec=300
TimeoutStopSec=70

[Install]
WantedBy=multi-user.target
"""
    )


def test_the_quadlet_as_text() -> None:
    unit = units.quadlet_unit(ETCD, 10, lambda path: path)
    assert unit.path == "/etc/containers/systemd/etcd-container.container"
    assert not unit.enable
    assert unit.service == "etcd-container.service"
    assert unit.text == (
        f"""# Written by reconciler: it is written anew when the desired state changes.
[Unit]
Description=etcd (quay.io/cybozu/etcd@{DIGEST})
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Container]
Image=quay.io/cybozu/etcd@{DIGEST}
ContainerName=etcd
Network=host
Label=reconciler.name=etcd
Label=reconciler.digest={DIGEST}
Label=reconciler.definition={ETCD.hash}
"""
        r"""Environment="QUOTED=say \"it\""
EnvironmentFile=/etc/etcd/env
Volume=/var/lib/etcd-container:/var/lib/etcd:rw
Volume=/etc/etcd:/etc/etcd:ro
Exec=--name "boot 1" --cost=100%% "$$HOME"

[Service]
Restart=always
RestartSec=2
TimeoutStartSec=300
TimeoutStopSec=70

[Install]
WantedBy=multi-user.target
"""
    )


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("plain-word_1", "plain-word_1"),
        ("", '""'),
        ("two words", '"two words"'),
        ("50%", "50%%"),
        ("$HOME", '"$$HOME"'),
        ('a"b', r'"a\"b"'),
        ("a\\b", r'"a\\b"'),
        ("a\nb", r'"a\nb"'),
        ("it's", '"it\'s"'),
        (";", '";"'),
    ],
)
def test_a_word_stands_for_itself(word: str, text: str) -> None:
    assert units.quote(word) == text


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("Image=q.io/a/agent:0.1.0", "Image=NEW"),
        (f"Image=q.io/a/agent@{DIGEST}", "Image=NEW"),
        (f"Image=q.io/a/agent-secret:0.1@{DIGEST}", "Image=NEW"),
        ("ExecStart=docker run --name x q.io/a/agent agent --lrn 1", "ExecStart=docker run --name x NEW agent --lrn 1"),
        ('ExecStart=docker run "q.io/a/agent:1"', 'ExecStart=docker run "NEW"'),
        ("Image=q.io/a/agents:1", None),
        ("Image=q.io/a/agent/other:1", None),
        ("Image=mirror.q.io/a/agent:1", None),
        ("Image=q.io:5000/a/agent:1", None),
        ("# Image=q.io/a/agent:1", None),
    ],
)  # fmt: skip
def test_only_the_image_of_a_persons_unit_becomes_another(line: str, wanted: str | None) -> None:
    text = f"; q.io/a/agent:1\n[Container]\n{line}\nPodmanArgs=--privileged\n"
    found = units.with_image(text, "q.io/a/agent", "NEW")
    assert found == (text.replace(line, wanted) if wanted else None)


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_the_text(tmp_path: Path) -> None:
    unit = _service()
    file = tmp_path / unit.service
    file.write_text(unit.text.replace("/usr/bin/podman", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if unit.service in line] == []


@pytest.mark.needs("systemd-analyze")
def test_a_text_that_systemd_would_not_take_is_not_written(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    host = Host(root=root, state_dir=tmp_path / "state")
    unit = replace(_service(), text=_service().text.replace("ExecStart=/usr/bin/podman", "ExecStart=podman/"))
    with pytest.raises(HostError, match="systemd would not take it"):
        units.install(host, unit, tmp_path / "scratch")
    assert not (root / unit.path.lstrip("/")).exists()


_QUADLET = """#!/bin/sh
# What podman's generator does with -dryrun, as its source has it: a service for each unit it can use, and what is wrong with the others.
[ "$1" = -dryrun ] && [ -e "$0.knows-dryrun" ] || { echo "flag provided but not defined: $1" >&2; exit 2; }
status=0
for unit in "$QUADLET_UNIT_DIRS"/*.container; do
  name=$(basename "$unit" .container)
  if key=$(sed -n '/^\\[Container\\]/,/^\\[Service\\]/s/^\\(Nonsense\\)=.*/\\1/p' "$unit") && [ -n "$key" ]; then
    echo "quadlet-generator[1]: converting \\"$name.container\\": unsupported key '$key' in group 'Container' in $unit" >&2; status=1
  else
    printf -- '---%s.service---\\n[Service]\\n\\n' "$name"
  fi
done
exit $status
"""


def test_a_quadlet_that_podman_would_not_take_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not run here: Debian 12's podman has no Quadlet. Where the generator cannot try it (podman 4.4), it is written unseen."""
    root = tmp_path / "root"
    Systemd(tmp_path / "bin").boot(root)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    generator = root / "usr/libexec/podman/quadlet"
    generator.parent.mkdir(parents=True)
    generator.write_text(_QUADLET)
    generator.chmod(0o755)
    host = Host(root=root, state_dir=tmp_path / "state")
    good = units.quadlet_unit(ETCD, 10, lambda path: path)
    wrong = replace(good, text=good.text.replace("Network=host", "Nonsense=host"))
    file = root / good.path.lstrip("/")

    generator.with_name("quadlet.knows-dryrun").touch()
    with pytest.raises(
        HostError, match=r"podman's generator would not take it:\n.*unsupported key 'Nonsense'"
    ):
        units.install(host, wrong, tmp_path / "scratch")
    assert not file.exists()
    _write(host, good, tmp_path)
    assert file.read_text() == good.text

    generator.with_name("quadlet.knows-dryrun").unlink()
    _write(host, wrong, tmp_path)
    assert file.read_text() == wrong.text


def _write(host: Host, unit: units.Unit, tmp_path: Path) -> None:
    """The script that is systemd here knows no service that a generator would make."""
    with pytest.raises(ProcessFailed, match="restart"):
        units.install(host, unit, tmp_path / "scratch")


# --- installed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        running.push("web", "1")
        running.push("web", "2")
        yield running


@pytest.mark.needs("podman", "runc", "docker-registry", "busybox")
@pytest.mark.skipif(os.getuid() != 0, reason="a server's podman is root's")
def test_a_container_with_a_unit_is_run_by_its_service(
    tmp_path: Path, images: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    systemd = Systemd(tmp_path / "bin")
    systemd.boot(root)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    host = Host(root=root, state_dir=tmp_path / "state")
    with podman_below(tmp_path / "podman") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        containers = Containers(host, Ledger.open(host), stop_timeout=1, settle=0.2)
        key, port = Key("image", "web"), free_port()

        def web(tag: str, unit: str | None) -> Image:
            script = f"trap 'exit 0' TERM; httpd -p {port} -h /www; while :; do sleep 0.1; done"
            container = Container(args=("sh", "-c", script), unit=unit)
            return Image("web", images.repository("web"), tag, container=container)

        def install(image: Image) -> None:
            pin = containers.resolve(image)
            containers.fetch(image, pin)
            containers.apply(image, pin)
            assert containers.observe([image])[key] == containers.target(image, pin)

        service = root / "etc/systemd/system/web.service"
        install(web("1", "web"))
        assert systemd.calls[-3:] == ["daemon-reload", "enable --quiet web.service", "restart web.service"]
        assert service.with_name("web.service.enabled").exists()
        assert "1" in service.read_text()

        before = len(systemd.calls)
        install(web("1", "web"))
        assert len(systemd.calls) == before, "applying again restarts nothing"

        install(web("2", "web"))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as reply:
            assert reply.read() == b"2"

        service.write_text(service.read_text().replace("RestartSec=2", "RestartSec=3"))
        assert containers.observe([web("2", "web")])[key].endswith("unit file changed")
        install(web("2", "web"))

        containers.restore(key)
        assert containers.observe([web("1", "web")])[key] == containers.target(web("1", "web"), None)

        install(web("2", "other"))
        assert not service.exists()
        assert (root / "etc/systemd/system/other.service").exists()

        containers.stop(key)
        assert "running" not in containers.observe([web("2", "other")]).get(key, "")

        install(web("2", None))
        assert not (root / "etc/systemd/system/other.service").exists()
        containers.remove(key)
        assert podman(environment, "ps", "--all", "--quiet") == ""

        # The agent's own container: its unit is a person's, of which only the image is another one afterwards.
        def own(tag: str) -> Image:
            return Image(OWN, repository, tag, container=Container(unit=OWN))

        repository, unit = images.repository("web"), root / "etc/systemd/system/reconciler.service"
        written = "\n".join(
            [
                f"# {repository}:1 at first",
                "[Service]",
                *(f"Environment={name}={value}" for name, value in environment.items()),
                f"ExecStart=podman run --rm --detach --name {OWN} --privileged {repository}:1 sleep 1000",
                f"ExecStop=-podman rm --force --time 0 {OWN}",
                "TimeoutStopSec=345\n",
            ]
        )
        unit.write_text(written)
        key, pin = own("1").key, containers.resolve(own("1"))
        containers.fetch(own("1"), pin)
        podman(environment, "tag", f"{repository}@{pin.digest}", f"{repository}:1")
        subprocess.run(["systemctl", "restart", unit.name], check=True, timeout=60)
        assert containers.observe([own("1")])[key] == containers.target(own("1"), pin), "as it was installed"

        pin, before = containers.resolve(own("2")), len(systemd.calls)
        containers.fetch(own("2"), pin)
        containers.hand_to_systemd(own("2"), pin)
        assert systemd.calls[before:] == ["daemon-reload", "restart --no-block reconciler.service"]
        assert containers.observe([own("2")])[key] == containers.target(own("2"), pin)
        assert unit.read_text() == written.replace(":1 sleep", f"@{pin.digest} sleep")

        unit.write_text(written.replace(repository, "registry.example.com/another"))
        assert containers.observe([own("2")])[key].endswith("unit file changed")
        with pytest.raises(HostError, match=r"reconciler\.service does not run an image of .*/web"):
            containers.fetch(own("2"), pin)
        containers.remove(key)
        assert unit.exists(), "it is not the agent's to take away"
        assert podman(environment, "ps", "--format", "{{.Names}}").strip() == OWN
