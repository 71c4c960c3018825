"""Names of repositories, and logins for them, as docker and podman have them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from reconciler.errors import HostError
from reconciler.host.registry import Login, login_from, repository_of


@pytest.mark.parametrize(
    ("name", "whole", "api"),
    [
        ("quay.io/cybozu/etcd", "quay.io/cybozu/etcd", "https://quay.io"),
        ("ghcr.io/a/b/c", "ghcr.io/a/b/c", "https://ghcr.io"),
        ("nginx", "docker.io/library/nginx", "https://registry-1.docker.io"),
        ("docker.io/nginx", "docker.io/library/nginx", "https://registry-1.docker.io"),
        ("cybozu/etcd", "docker.io/cybozu/etcd", "https://registry-1.docker.io"),
        ("index.docker.io/cybozu/etcd", "docker.io/cybozu/etcd", "https://registry-1.docker.io"),
        ("registry:5000/etcd", "registry:5000/etcd", "https://registry:5000"),
        ("localhost/etcd", "localhost/etcd", "http://localhost"),
        ("127.0.0.1:5000/etcd", "127.0.0.1:5000/etcd", "http://127.0.0.1:5000"),
        ("[::1]:5000/etcd", "[::1]:5000/etcd", "http://[::1]:5000"),
        ("127.0.0.1.example/etcd", "127.0.0.1.example/etcd", "https://127.0.0.1.example"),
    ],
)
def test_a_name_is_a_host_and_a_path(name: str, whole: str, api: str) -> None:
    found = repository_of(name)
    assert (str(found), found.api) == (whole, api)


def _coded(login: str) -> dict[str, str]:
    return {"auth": base64.b64encode(login.encode()).decode()}


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("quay.io/cybozu/etcd", "cybozu"),
        ("quay.io/cybozu-private/etcd", "all"),
        ("quay.io/other/etcd", "all"),
        ("nginx", "hub"),
        ("ghcr.io/a/b", None),
    ],
)
def test_the_longest_entry_counts(tmp_path: Path, name: str, user: str | None) -> None:
    file = tmp_path / "auth.json"
    auths = {
        "quay.io": _coded("all:x"),
        "quay.io/cybozu": _coded("cybozu:y"),
        "https://index.docker.io/v1/": _coded("hub:z:with:colons"),
        "ghcr.io": {},
    }
    file.write_text(json.dumps({"auths": auths}))
    found = login_from(file, repository_of(name))
    assert (found.user if found else None) == user
    if user == "hub":
        assert found == Login("hub", "z:with:colons")


def test_a_login_shows_nothing() -> None:
    assert "sesame" not in repr(Login("robot", "sesame"))


def test_without_a_file_there_is_no_login(tmp_path: Path) -> None:
    assert login_from(None, repository_of("nginx")) is None
    assert login_from(tmp_path / "nothing", repository_of("nginx")) is None


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"auths": {"quay.io": {"auth": ""}}}', '{"auths": {"quay.io": {"auth": 3}}}']
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "auth.json"
    file.write_text(text)
    with pytest.raises(HostError, match=r"auth\.json"):
        login_from(file, repository_of("quay.io/cybozu/etcd"))
