"""Options: flag before environment before file before default, where each comes from, and what nothing knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reconciler.cli.options import RACK, TABLE, Options, must_be_given, resolve
from reconciler.core.state import Settings
from reconciler.errors import UsageError


def configuration(tmp_path: Path, text: str) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return str(file)


def test_precedence(tmp_path: Path) -> None:
    file = configuration(tmp_path, "prefix: /file/\nref: from-file\nlrn: 3\nallow-demo-etcd: true\n")
    environment = {"RECONCILER_PREFIX": "/environment/", "RECONCILER_REF": "from-environment"}
    options = resolve({"config": file, "prefix": "/flag/"}, environment)
    assert (options.prefix, options.origin("prefix")) == ("/flag/", "flag")
    assert (options.ref, options.origin("ref")) == ("from-environment", "environment RECONCILER_REF")
    assert (options.lrn, options.origin("lrn")) == (3, f"{file}:3")
    assert options.allow_demo_etcd is True
    assert (options.interval, options.origin("interval")) == (60.0, "default")


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = configuration(tmp_path, "grace: 90s\netcd: http://127.0.0.1:2379,http://[::1]:2379\n")
    options = resolve({}, {"RECONCILER_CONFIG": file})
    assert options.grace == 90.0
    assert options.endpoints == ("http://127.0.0.1:2379", "http://[::1]:2379")


def test_the_documentation_says_what_a_running_agent_takes_up() -> None:
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text()
    (sentence,) = re.findall(r"takes up without a restart: (.*?)\.", page, re.DOTALL)
    assert re.findall(r"`([a-z-]+)`", sentence) == [name for name, row in TABLE.items() if row.live]


def test_the_fleets_settings_come_after_the_file_and_before_the_default() -> None:
    settings = Settings(check_update_interval=600.0)
    assert resolve({}, {}).with_settings(settings).interval == 600.0
    assert resolve({}, {}).with_settings(settings).origin("interval") == "etcd config/check-update-interval"
    assert resolve({"interval": "5s"}, {}).with_settings(settings).interval == 5.0


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        (
            {},
            {"RECONCILER_PREFFIX": "x"},
            "nothing knows the variable RECONCILER_PREFFIX; did you mean RECONCILER_PREFIX?",
        ),
        ({}, {"RECONCILER_ETCD": ""}, "RECONCILER_ETCD is empty: give it a value or unset it"),
        ({}, {"RECONCILER_LRN": "x"}, 'RECONCILER_LRN: found "x"; a number from 0 is wanted'),
        ({"lrn": "-1"}, {}, '--lrn: found "-1"; a number from 0 is wanted'),
        (
            {"etcd": "127.0.0.1:2379"},
            {},
            '--etcd: found "127.0.0.1:2379"; http://host:port or https://host:port is wanted',
        ),
        (
            {"etcd": "http://a:1,https://b:1"},
            {},
            "--etcd: some endpoints are http and some https; all must be the same",
        ),
        ({"verify": "pgp"}, {}, '--verify: found "pgp"; one of none, ssh, gpg is wanted'),
        ({"listen": "8470"}, {}, '--listen: found "8470"; host:port is wanted, as in 127.0.0.1:8470'),
        (
            {"allow-demo-etcd": "yes"},
            {},
            '--allow-demo-etcd: found "yes"; true or false is wanted',
        ),
        ({"prefix": "neco"}, {}, '--prefix: found "neco"; a prefix begins with a slash'),
        (
            {"github-api": "api.github.com"},
            {},
            '--github-api: found "api.github.com"; an address that begins with http:// or https:// is wanted',
        ),
        (
            {"config": "/nowhere/config.yaml"},
            {},
            "cannot read the configuration file /nowhere/config.yaml: it does not exist",
        ),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(given, environment)
    assert str(caught.value) == message


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"lrn": "x", "runtime": "lxc"}, {"RECONCILER_FOO": "1"})
    assert len(str(caught.value).splitlines()) == 3


def test_an_unknown_key_of_the_file_suggests_the_nearest(tmp_path: Path) -> None:
    file = configuration(tmp_path, "prefix: /neco/\nstate-dri: /tmp\n")
    with pytest.raises(UsageError) as caught:
        resolve({"config": file}, {})
    assert f"{file}:2:1" in str(caught.value)
    assert "state-dir" in str(caught.value)


def test_every_key_of_the_file_is_an_option_and_every_option_a_key() -> None:
    from reconciler.wire.schema import load

    assert set(load("configuration")["properties"]) == set(TABLE)


def test_this_servers_number_may_stand_in_necos_file(tmp_path: Path) -> None:
    (tmp_path / RACK).parent.mkdir(parents=True)
    (tmp_path / RACK).write_text("12\n")
    options = resolve({"host-root": str(tmp_path)}, {})
    assert (options.lrn, options.origin("lrn")) == (12, str(tmp_path / RACK))
    assert resolve({"host-root": str(tmp_path), "lrn": "4"}, {}).lrn == 4
    (tmp_path / RACK).write_text("rack 12")
    with pytest.raises(UsageError, match='found "rack 12"'):
        resolve({"host-root": str(tmp_path)}, {})


def test_an_ordinary_user_keeps_state_at_home(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert resolve({}, home, ordinary_user=True).state_dir == tmp_path / ".local/state/reconciler"
    assert resolve({}, home, ordinary_user=False).state_dir == Path("/var/lib/reconciler")
    elsewhere = {**home, "XDG_STATE_HOME": "/xdg"}
    assert resolve({}, elsewhere, ordinary_user=True).state_dir == Path("/xdg/reconciler")
    assert resolve({"state-dir": "/s"}, elsewhere, ordinary_user=True).state_dir == Path("/s")


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ["--repo", "--etcd", "--lrn"]),
        ({"repo": "/srv/fleet.git", "etcd": "embedded", "lrn": "0"}, []),
        ({"repo": "file:///srv/fleet.git", "etcd": "embedded", "lrn": "0"}, []),
        ({"repo": "https://git.example/fleet", "etcd": "embedded", "lrn": "0"}, ["--verify"]),
        ({"repo": "git@git.example:fleet", "etcd": "embedded", "lrn": "0"}, ["--verify"]),
        ({"repo": "https://git.example/fleet", "etcd": "embedded", "lrn": "0", "verify": "none"}, []),
    ],
)
def test_what_agent_must_be_told(given: dict[str, str], missing: list[str]) -> None:
    options = resolve(given, {})
    if not missing:
        must_be_given(options)
        return
    with pytest.raises(UsageError) as caught:
        must_be_given(options)
    assert [line.split("give ")[1].split(",")[0] for line in str(caught.value).splitlines()] == missing


def test_every_option_has_a_meaning_and_a_default_that_it_accepts() -> None:
    defaults = Options()
    for row in TABLE.values():
        assert row.meaning
        value = getattr(defaults, row.attribute)
        if isinstance(value, str) and row.default == value:
            assert row.read(value) == value
