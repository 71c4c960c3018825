"""Settings in etcd, the configuration file and the host's policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.state import Settings
from reconciler.errors import Corrupt, Refused, UsageError
from reconciler.wire.masking import is_secret, masked, masked_line
from reconciler.wire.settings import (
    SETTINGS,
    HostPolicy,
    decode_settings,
    read_configuration,
    read_policy,
    shown_setting,
    stored_setting,
)

SLACK = "https://hooks.example.com/services/T0/B0/abcdef"


def test_necos_settings() -> None:
    stored: dict[str, str | bytes] = {
        "notification/slack": SLACK,
        "proxy": b"http://10.0.0.1:3128",
        "github-token": "ghp_0123",
        "check-update-interval": "600000000000",
        "worker-timeout": "3600000000000",
        "release-time": "* 1-5 * * mon-fri\n0 12 * * sat",
        "release-timezone": "Asia/Tokyo",
        "lb-address-default": "10.0.0.0/24",
    }
    assert decode_settings(stored) == Settings(
        SLACK,
        "http://10.0.0.1:3128",
        "ghp_0123",
        600.0,
        3600.0,
        "* 1-5 * * mon-fri\n0 12 * * sat",
        "Asia/Tokyo",
    )


def test_what_is_empty_is_absent() -> None:
    assert decode_settings({}) == Settings()
    assert decode_settings(dict.fromkeys(SETTINGS, "")) == Settings()


@pytest.mark.parametrize(
    ("name", "stored", "problem"),
    [
        ("worker-timeout", "60m", 'it is the text "60m", and must be a number of nanoseconds'),
        ("worker-timeout", "0", 'it is the text "0", and must be a number of nanoseconds'),
        ("check-update-interval", "-1", 'it is the text "-1", and must be a number of nanoseconds'),
        ("proxy", b"\xff", "it is not UTF-8 text"),
        ("proxy", "10.0.0.1", 'found the text "10.0.0.1": it is no address; write one that begins with http:// or https://'),
        ("release-timezone", "Mars", "found the text \"Mars\": 'Mars' is no time zone"),
        ("release-time", "soon", 'found the text "soon": '),
    ],
)  # fmt: skip
def test_a_corrupt_setting_is_named(name: str, stored: str | bytes, problem: str) -> None:
    with pytest.raises(Corrupt) as caught:
        decode_settings({name: stored}, "/neco/config/")
    assert str(caught.value).startswith(f"cannot use /neco/config/{name}: {problem}")


def test_a_token_that_is_not_text_is_not_shown() -> None:
    with pytest.raises(Corrupt) as caught:
        decode_settings({"github-token": b"ghp_0123\xff"})
    assert "ghp" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "stored", "shown"),
    [
        ("check-update-interval", "10m", "600000000000", "10m"),
        ("worker-timeout", "1h30m", "5400000000000", "1h30m"),
        ("worker-timeout", "1ns", "1", "1ns"),
        ("notification/slack", SLACK, SLACK, "(hidden)"),
        ("github-token", "ghp_0123", "ghp_0123", "(hidden)"),
        ("proxy", "http://user:secret@10.0.0.1:3128", "http://user:secret@10.0.0.1:3128", "http://user:***@10.0.0.1:3128"),
        ("release-time", "* 1-5 * * *\n0 12 * * sat", "* 1-5 * * *\n0 12 * * sat", "* 1-5 * * *\n0 12 * * sat"),
        ("release-timezone", "Asia/Tokyo", "Asia/Tokyo", "Asia/Tokyo"),
    ],
)  # fmt: skip
def test_a_setting_is_stored_as_neco_reads_it_and_shown_as_it_was_said(
    name: str, text: str, stored: str, shown: str
) -> None:
    assert stored_setting(name, text) == stored
    assert shown_setting(name, stored) == shown
    assert decode_settings({name: stored}) != Settings()


def test_what_a_person_broke_in_etcd_is_still_shown() -> None:
    assert shown_setting("worker-timeout", "60m") == "60m"
    assert shown_setting("github-token", "") == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("worker-timeot", "1m", "there is no setting worker-timeot; did you mean worker-timeout?"),
        ("worker-timeout", "600", "cannot set worker-timeout to the text \"600\": '600' is no duration"),
        ("worker-timeout", "0s", 'cannot set worker-timeout to the text "0s": it is 0, and must be longer'),
        ("github-token", "ghp 0123", "cannot set github-token to the value: it has spaces, line ends"),
        ("notification/slack", "hooks.example.com/abcdef", "cannot set notification/slack to the value: it is no address"),
        ("proxy", "socks5://u:secret@h", 'cannot set proxy to the text "socks5://u:***@h": it is no address'),
        ("release-time", "", 'cannot set release-time to the text "": there is no cron line'),
    ],
)  # fmt: skip
def test_a_setting_that_is_none_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        stored_setting(name, text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("# nothing\n", {}),
        (
            "repo: https://git.example.com/fleet.git\nlrn: 3\n\ninterval: 30s\nallow-demo-etcd: true\n",
            {
                "repo": ("https://git.example.com/fleet.git", "f:1"),
                "lrn": ("3", "f:2"),
                "interval": ("30s", "f:4"),
                "allow-demo-etcd": ("true", "f:5"),
            },
        ),
    ],
)
def test_a_configuration_file(text: str, options: dict[str, tuple[str, str]]) -> None:
    assert read_configuration(text.encode(), "f") == options


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("state-dri: /x", ["f:1:1: state-dri: this field is not known; did you mean state-dir?"]),
        ("interval: 60", ["f:1:11: interval: found the number 60; wanted: a duration such as 1h30m, 10m, 60s or 500ms"]),
        ("verify: sshd", ['f:1:9: verify: found the text "sshd"; did you mean ssh?']),
        ("lrn: -1\nref: 1.10", [
            "f:1:6: lrn: found the number -1; at least 0 is wanted",
            'f:2:6: ref: found 1.10, which YAML reads as a number; ref is text: quote it (ref: "1.10")',
        ]),
        ("lrn: 1\n---\nlrn: 2", ["f:3:1: this is a second document; only one is read here"]),
        ("lrn: 1\nlrn: 2", ["f:2:1: lrn is there twice; first on line 1, column 1"]),
        ("- lrn", ["f:1:1: found a list; wanted: a mapping"]),
        ("path: ''", ["f:1:7: path: is empty"]),
    ],
)  # fmt: skip
def test_a_configuration_file_that_is_wrong(text: str, messages: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        read_configuration(text.encode(), "f")
    assert str(caught.value) == "\n".join(["cannot use f", *messages])


POLICY = "apiVersion: reconciler/v1\nkind: HostPolicy\n"


def test_a_policy() -> None:
    text = f"""{POLICY}allow:
  sources: ["https://git.example.com/*"]
  images: ["quay.io/cybozu/*"]
  releaseOwners: [cybozu-go]
  packages: []
  binds: [/var/lib/*]
  drivers: [netboot]
  hooks: [drain, undrain]
neverRemove: [chrony]
"""
    assert read_policy(text.encode(), "f") == HostPolicy(
        sources=("https://git.example.com/*",),
        images=("quay.io/cybozu/*",),
        release_owners=("cybozu-go",),
        packages=(),
        binds=("/var/lib/*",),
        drivers=("netboot",),
        hooks=("drain", "undrain"),
        never_remove=("chrony",),
    )
    assert read_policy(POLICY.encode(), "f") == HostPolicy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot use f: it is empty; a policy that allows everything is a file that is not there"),
        (
            f"{POLICY}allows: {{}}",
            "cannot use f\nf:3:1: allows: this field is not known; did you mean allow?",
        ),
        (
            f"{POLICY}allow: {{drivers: [pxe]}}",
            'cannot use f\nf:3:19: allow.drivers[0]: found the text "pxe"; known here: command, netboot',
        ),
        (
            "apiVersion: reconciler/v1\nallow: {images: }",
            "cannot use f\nf:1:1: kind is missing (What this document is)\nf:2:17: allow.images: is empty; wanted: a list",
        ),
    ],
)
def test_a_policy_that_cannot_be_read_allows_nothing(text: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        read_policy(text.encode(), "f")
    assert str(caught.value) == message


@settings(deadline=None)
@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
)
def test_any_file_is_read_or_refused(data: bytes) -> None:
    for read in (read_configuration, read_policy):
        try:
            read(data, "f")
        except Refused as refused:
            assert str(refused).startswith("cannot use f")


@pytest.mark.parametrize(
    ("path", "secret"),
    [
        (("environment", "DB_PASSWORD"), True),
        (("github-token",), True),
        (("notify-webhook",), True),
        (("git-password-file",), False),
        (("webhook-secret-file",), False),
        (("images", 0, "tag"), False),
    ],
)
def test_a_secret_is_known_by_its_name(path: tuple[str | int, ...], secret: bool) -> None:
    assert is_secret(path) is secret


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  tag: v1", "tag: v1"),
        ("password: hunter2", "password: (hidden)"),
        ("- {name: DB_PASSWORD, value: hunter2}", "- {name: DB_PASSWORD, value: (hidden)"),
        ("repo: https://user:hunter2@host/x", "repo: https://user:***@host/x"),
        ("GITHUB_TOKEN=hunter2", "GITHUB_TOKEN=(hidden)"),
    ],
)
def test_a_line_is_shown_without_secrets(line: str, shown: str) -> None:
    assert masked_line(line) == shown


def test_what_is_long_is_shortened() -> None:
    assert len(masked("x" * 1000)) == 81
