"""What a host's policy allows, as tables; and which hooks are safe to run, on real files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.core.artifact import AptDeb, Artifact, Bind, Check, Container, Image, Key, OsImage, ReleaseDeb
from reconciler.core.state import ArtifactSet, Desired, OsDriver, RebootPolicy, Revision, ServerGroup
from reconciler.errors import HostError
from reconciler.host.driver import Host
from reconciler.host.policy import (
    EVERYTHING,
    HostPolicy,
    check_artifact,
    check_driver,
    check_hook,
    check_removal,
    check_source,
    hook_path,
    may_remove,
    problems,
)

ETCD = Image("etcd", "quay.io/cybozu/etcd", "3.5")
TOOL = ReleaseDeb("tool", "acme", "tools", "v1")
CHRONY = AptDeb("chrony", "4.3")


def with_bind(source: str) -> Image:
    return Image("etcd", "q/etcd", "1", container=Container(binds=(Bind("data", source, "/data"),)))


@pytest.mark.parametrize(
    ("policy", "artifact", "wrong"),
    [
        (EVERYTHING, ETCD, []),
        (EVERYTHING, with_bind("/"), []),
        (HostPolicy(images=()), ETCD, ["image etcd: the repository quay.io/cybozu/etcd", "images"]),
        (HostPolicy(images=("quay.io/cybozu/*",)), ETCD, []),
        (HostPolicy(images=("quay.io/cybozu",)), ETCD, ["quay.io/cybozu/etcd", "images"]),
        (HostPolicy(images=("*",)), ETCD, []),
        (HostPolicy(images=("Quay.io/*",)), ETCD, ["images"]),
        (HostPolicy(images=("quay.io/cybozu/etc[a-d]",)), ETCD, ["images"]),
        (HostPolicy(images=("evil.example/quay.io/*",)), ETCD, ["images"]),
        (HostPolicy(release_owners=("acme",)), TOOL, []),
        (HostPolicy(release_owners=("acme/tools",)), TOOL, []),
        (
            HostPolicy(release_owners=("acme/other", "acm")),
            TOOL,
            ["a release of acme/tools", "releaseOwners"],
        ),
        (HostPolicy(packages=("chrony*",)), TOOL, ["deb tool", "packages"]),
        (HostPolicy(packages=("chrony*",)), CHRONY, []),
        (HostPolicy(packages=("?hrony",)), CHRONY, []),
        (HostPolicy(packages=("tool",)), CHRONY, ["deb chrony", "packages"]),
        (HostPolicy(images=(), packages=(), release_owners=()), OsImage("stable", "1"), []),
    ],
)
def test_what_is_not_allowed_is_named_with_its_list(
    policy: HostPolicy, artifact: Artifact, wrong: list[str]
) -> None:
    found = check_artifact(policy, artifact)
    assert bool(found) == bool(wrong)
    assert all(words in " ".join(found) for words in wrong)


@pytest.mark.parametrize(
    ("globs", "source", "allowed"),
    [
        (("/var/lib/*",), "/var/lib/etcd", True),
        (("/var/lib/etcd",), "/var/lib/etcd/member", True),
        (("/var/lib/etcd/",), "/var/lib/etcd", False),
        (("/var/lib/etcd",), "/var/lib/etcd-other", False),
        (("/var/lib/*",), "/var", False),
        (("/var/lib/*",), "/var/lib", False),
        (("/var/lib/*",), "/", False),
        (("/var/lib/*",), "//", False),
        (("/",), "/", True),
        (("/",), "/etc/shadow", False),
        (("/var/lib/*",), "/var/lib/../../etc/shadow", False),
        (("/var/lib/*",), "//var/lib/etcd", True),
        (("/var/lib/*",), "var/lib/etcd", False),
        ((), "/var/lib/etcd", False),
        (None, "/", True),
    ],
)
def test_binds(globs: tuple[str, ...] | None, source: str, allowed: bool) -> None:
    assert (check_artifact(HostPolicy(binds=globs), with_bind(source)) == []) == allowed


def test_a_containers_files_and_hooks_are_looked_at_too() -> None:
    container = Container(
        environment_file="/etc/shadow", started=("unseal",), health=Check("hook", "answers"), binds=()
    )
    found = check_artifact(HostPolicy(binds=(), hooks=("drain",)), Image("a", "b", "1", container=container))
    assert found == [
        "image a: the environment file /etc/shadow is not allowed by this host's policy (binds)",
        "image a: the hook unseal is not allowed by this host's policy (hooks)",
        "image a: the hook answers is not allowed by this host's policy (hooks)",
    ]


def test_sources_hooks_drivers_and_removals() -> None:
    policy = HostPolicy(
        sources=("https://git.example/*",), hooks=("drain*",), drivers=("netboot",), never_remove=("ssh*",)
    )
    assert check_source(policy, "https://git.example/fleet") == []
    assert check_source(policy, "https://me@evil.example/fleet") == [
        "the git source https://evil.example/fleet is not allowed by this host's policy (sources)"
    ]
    assert check_hook(policy, "drain-all") == []
    assert check_hook(policy, "mine") == ["the hook mine is not allowed by this host's policy (hooks)"]
    assert check_driver(policy, OsDriver("netboot")) == []
    assert len(check_driver(policy, OsDriver("command"))) == 4  # the driver, and its three hooks
    assert may_remove(policy, CHRONY.key)
    assert not may_remove(policy, Key("deb", "sshd"))
    assert check_removal(policy, Key("deb", "sshd")) == [
        "deb/sshd: this host's policy never lets it be removed (neverRemove)"
    ]


def test_a_revision_is_judged_for_the_server_that_is_asked_about() -> None:
    workers = ServerGroup("workers", frozenset({5}), OsDriver("command"), RebootPolicy(before=("mine",)))
    desired = Desired(
        Revision("abc", repo="https://git.example/fleet"),
        (ArtifactSet((TOOL, OsImage("stable", "1"))), ArtifactSet((ETCD,), frozenset({"workers"}))),
        (workers,),
    )
    policy = HostPolicy(images=(), hooks=())
    assert problems(policy, desired, 0) == []
    assert [problem.partition(" is not")[0] for problem in problems(policy, desired, 5)] == [
        "image etcd: the repository quay.io/cybozu/etcd",
        "server group workers: the hook mine",
        "server group workers: the hook os-current",
        "server group workers: the hook os-rollback",
        "server group workers: the hook os-stage",
    ]
    assert problems(policy, desired) == problems(policy, desired, 5)
    assert problems(EVERYTHING, desired) == []
    assert problems(HostPolicy(sources=()), desired, 0) == [
        "the git source https://git.example/fleet is not allowed by this host's policy (sources)"
    ]


# --- hooks ----------------------------------------------------------------------------------------------------------

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="a hook must be root's")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    hooks = tmp_path / "root/etc/reconciler/hooks"
    hooks.mkdir(parents=True)
    (hooks / "drain").write_text("#!/bin/sh\n")
    (hooks / "drain").chmod(0o755)
    return Host(root=tmp_path / "root")


@root_only
def test_a_hook_that_is_roots_own_is_found(host: Host) -> None:
    assert hook_path(host, "drain") == host.root / "etc/reconciler/hooks/drain"


@root_only
@pytest.mark.parametrize(
    "path", ["etc/reconciler/hooks/drain", "etc/reconciler/hooks", "etc/reconciler", "etc", ""]
)
def test_nobody_else_may_change_it_or_a_directory_above(host: Host, path: str) -> None:
    place = host.root / path
    mode = place.stat().st_mode
    for wrong in (0o775, 0o777, 0o1777):
        place.chmod(wrong)
        with pytest.raises(HostError, match=f"/{path} .* may be written by others"):
            hook_path(host, "drain")
    place.chmod(mode)
    os.chown(place, 1000, 0)
    with pytest.raises(HostError, match=f"/{path} is not owned by root"):
        hook_path(host, "drain")


@root_only
@pytest.mark.parametrize(
    "name", ["../hooks/drain", "/bin/sh", "", "-x", "Drain", "a/b", "drain\n", "x" * 129]
)
def test_a_hook_is_named_and_never_a_path(host: Host, name: str) -> None:
    with pytest.raises(HostError, match="a hook's name is"):
        hook_path(host, name)


@root_only
def test_neither_missing_nor_linked_nor_a_directory_nor_without_its_mode(host: Host) -> None:
    hooks = host.root / "etc/reconciler/hooks"
    with pytest.raises(HostError, match="there is no /etc/reconciler/hooks/other"):
        hook_path(host, "other")
    (hooks / "linked").symlink_to("drain")
    with pytest.raises(HostError, match="a link on the way"):
        hook_path(host, "linked")
    (hooks / "directory").mkdir()
    with pytest.raises(HostError, match="no regular file"):
        hook_path(host, "directory")
    (hooks / "drain").chmod(0o644)
    with pytest.raises(HostError, match="not executable"):
        hook_path(host, "drain")
    hooks.rename(host.root / "hooks")
    hooks.symlink_to("/hooks")
    with pytest.raises(HostError, match="a link on the way"):
        hook_path(host, "drain")
