"""The etcd client on a real etcd: what it reads and writes, and what it says when etcd is away, slow, full or shut."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import Ambiguous, ReconcilerError, Unavailable, UsageError
from reconciler.store.client import PAGE, Client, Compacted, EtcdOptions, LeaseGone
from reconciler.store.commit import Guard, commit
from reconciler.store.transaction import (
    Compare,
    Operation,
    absent,
    create_is,
    delete,
    delete_under,
    get,
    last_before,
    mod_is,
    none_under,
    oldest_under,
    one,
    put,
    unchanged_since,
    under,
    value_is,
)
from tests.conftest import Etcd
from tests.etcd_server import EtcdServer, etcdctl
from tests.ports import free_ports
from tests.proxy import Proxy


@pytest.fixture
def proxy(etcd: Etcd) -> Iterator[Proxy]:
    with Proxy(etcd.server.members[0].client_port) as between:
        yield between


def through(proxy: Proxy, timeout: float = 2.0) -> Client:
    return Client(EtcdOptions((proxy.endpoint,)), timeout)


class TestReadingAndWriting:
    def test_several_ranges_are_read_at_one_etcd_revision(self, etcd: Etcd) -> None:
        a, b = f"{etcd.prefix}a/1", f"{etcd.prefix}b"
        written = etcd.client.txn([], [put(a, "x"), put(b, "y")])
        etcd.client.txn([], [put(b, "z")])
        newest = etcd.client.read([under(f"{etcd.prefix}a/"), one(b)])
        assert [[item.value for item in items] for items in newest.items] == [[b"x"], [b"z"]]
        older = etcd.client.read([under(f"{etcd.prefix}a/"), one(b)], written.revision)
        assert older.revision == written.revision
        assert [[item.value for item in items] for items in older.items] == [[b"x"], [b"y"]]

    def test_more_keys_than_a_page_are_all_read(self, etcd: Etcd) -> None:
        names = [f"{etcd.prefix}many/{number:06}" for number in range(PAGE + 500)]
        for start in range(0, len(names), 100):
            etcd.client.txn([], [put(name, "") for name in names[start : start + 100]])
        (found, first) = etcd.client.read([under(f"{etcd.prefix}many/"), one(names[0])]).items
        assert [item.key for item in found] == names
        assert [item.key for item in first] == names[:1]

    def test_a_reply_over_every_limit_is_read_in_parts(self, etcd: Etcd) -> None:
        value = b"x" * 1_400_000
        for number in range(30):
            etcd.client.txn([], [put(f"{etcd.prefix}big/{number:02}", value)])
        (found,) = etcd.client.read([under(f"{etcd.prefix}big/")]).items
        assert [item.value == value for item in found] == [True] * 30
        etcd.client.txn([], [delete_under(f"{etcd.prefix}big/")])

    def test_a_range_of_one_server_is_not_that_of_another(self, etcd: Etcd) -> None:
        etcd.client.txn([], [put(f"{etcd.prefix}{number}/a", "") for number in (1, 10, 19)])
        etcd.client.txn([], [delete_under(f"{etcd.prefix}1/")])
        (left,) = etcd.client.read([under(etcd.prefix)]).items
        assert [item.key.removeprefix(etcd.prefix) for item in left] == ["10/a", "19/a"]
        with pytest.raises(ValueError, match="ends in a slash"):
            under(f"{etcd.prefix}1")

    def test_the_oldest_and_the_predecessor(self, etcd: Etcd) -> None:
        for name in "cab":
            etcd.client.txn([], [put(f"{etcd.prefix}line/{name}", "")])
        (oldest, line) = etcd.client.read(
            [oldest_under(f"{etcd.prefix}line/", 2), under(f"{etcd.prefix}line/")]
        ).items
        assert [item.key[-1] for item in oldest] == ["c", "a"]
        last = next(item for item in line if item.key.endswith("b"))
        (before,) = etcd.client.read([last_before(f"{etcd.prefix}line/", last.create_revision)]).items
        assert [item.key[-1] for item in before] == ["a"]

    def test_compares(self, etcd: Etcd) -> None:
        key, other = f"{etcd.prefix}d/k", f"{etcd.prefix}d/other"
        revision = etcd.client.txn([absent(key)], [put(key, "v")]).revision
        later = etcd.client.txn([], [put(key, "w")]).revision
        rows: list[tuple[Compare, bool]] = [
            (absent(key), False),
            (absent(other), True),
            (create_is(key, revision), True),
            (mod_is(key, revision), False),
            (mod_is(key, later), True),
            (mod_is(other, 0), True),
            (value_is(key, "w"), True),
            (value_is(key, "v"), False),
            (value_is(other, ""), False),
            (none_under(under(f"{etcd.prefix}d/")), False),
            (none_under(under(f"{etcd.prefix}empty/")), True),
            (unchanged_since(under(f"{etcd.prefix}d/"), later), True),
            (unchanged_since(under(f"{etcd.prefix}d/"), later - 1), False),
            (unchanged_since(under(f"{etcd.prefix}empty/"), 1), True),
        ]
        for compare, expected in rows:
            reply = etcd.client.txn([compare], [get(key)], [get(other)])
            assert (compare, reply.succeeded) == (compare, expected)

    def test_a_transaction_is_all_or_nothing(self, etcd: Etcd) -> None:
        key = f"{etcd.prefix}k"
        reply = etcd.client.txn([absent(f"{etcd.prefix}no"), mod_is(key, 7)], [put(key, "v")], [get(key)])
        assert (reply.succeeded, reply.responses) == (False, ((),))

    def test_too_many_operations_and_too_large_a_request(self, etcd: Etcd) -> None:
        operations: list[Operation] = [delete(f"{etcd.prefix}{number}") for number in range(129)]
        with pytest.raises(ValueError, match="128"):
            etcd.client.txn([], operations)
        with pytest.raises(ReconcilerError, match="too large"):
            etcd.client.txn([], [put(f"{etcd.prefix}k", b"x" * 1_700_000)])

    def test_a_compacted_revision_says_so(self, etcd_cluster: EtcdServer) -> None:
        with Client(EtcdOptions(etcd_cluster.endpoints)) as client:
            first = client.txn([], [put("/a", "1")]).revision
            last = client.txn([], [put("/a", "2")]).revision
            etcdctl(etcd_cluster.endpoint, "compact", str(last))
            with pytest.raises(Compacted):
                client.read([one("/a")], first)

    def test_it_counts_what_it_does(self, etcd: Etcd) -> None:
        with etcd.new_client() as client:
            client.txn([], [get(f"{etcd.prefix}a")])
            lease, _ = client.grant(5)
            client.revoke(lease)
            client.revoke(lease)
            assert client.counts == {"Txn": 1, "LeaseGrant": 1, "LeaseRevoke": 2, "error NOT_FOUND": 1}

    def test_cluster_id_is_what_etcdctl_says(self, etcd: Etcd) -> None:
        text = etcdctl(etcd.endpoint, "endpoint", "status", "--write-out", "fields")
        number = next(line.split(" : ")[1] for line in text.splitlines() if line.startswith('"ClusterID"'))
        with etcd.new_client() as client:
            assert client.cluster_id == f"{int(number):x}"

    def test_sixteen_threads_share_a_client(self, etcd: Etcd) -> None:
        key = f"{etcd.prefix}counter"
        etcd.client.txn([], [put(key, "0")])

        def add() -> None:
            for _ in range(5):
                while True:
                    (item,) = etcd.client.read([one(key)]).items[0]
                    write = put(key, str(int(item.value) + 1))
                    if etcd.client.txn([mod_is(key, item.mod_revision)], [write]).succeeded:
                        break

        threads = [threading.Thread(target=add) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert etcd.client.read([one(key)]).items[0][0].value == b"80"


class TestLeases:
    def test_a_lease_lives_and_ends(self, etcd: Etcd) -> None:
        key = f"{etcd.prefix}k"
        lease, ttl = etcd.client.grant(20)
        assert ttl == 20
        etcd.client.txn([], [put(key, "v", lease)])
        assert etcd.client.refresh(lease) == 20
        etcd.client.revoke(lease)
        assert etcd.client.read([one(key)]).items == ((),)
        assert etcd.client.refresh(lease) == 0
        with pytest.raises(LeaseGone):
            etcd.client.txn([], [put(key, "v", lease)])


class TestEtcdIsAway:
    def test_nothing_listens(self) -> None:
        (port,) = free_ports(1)
        with Client(EtcdOptions((f"http://127.0.0.1:{port}",)), timeout=1) as client:
            for call in (lambda: client.read([one("/a")]), lambda: client.txn([], [put("/a", "b")])):
                started = time.monotonic()
                with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}.*refused.*--etcd") as caught:
                    call()
                assert not isinstance(caught.value, Ambiguous)
                assert time.monotonic() - started < 2

    def test_it_accepts_and_says_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            with Client(EtcdOptions((endpoint,)), timeout=1) as client:
                started = time.monotonic()
                with pytest.raises(Unavailable) as caught:
                    client.txn([], [put("/a", "b")])
                # Nothing was sent: the endpoint was asked first whether it is there.
                assert not isinstance(caught.value, Ambiguous)
                assert time.monotonic() - started < 3

    def test_a_killed_member_costs_little(self, etcd_cluster: EtcdServer) -> None:
        with Client(EtcdOptions(etcd_cluster.endpoints)) as client:
            client.txn([], [put("/a", "0")])
            follower = next(m for m in etcd_cluster.members if m is not etcd_cluster.leader())
            follower.kill()
            for number in range(10):
                started = time.monotonic()
                with_settling(client, "/a", str(number))
                assert time.monotonic() - started < 3
            assert client.read([one("/a")]).items[0][0].value == b"9"

    def test_a_frozen_member_leaves_time_for_another(self, etcd_cluster: EtcdServer) -> None:
        frozen = next(m for m in etcd_cluster.members if m is not etcd_cluster.leader())
        others = [m.endpoint for m in etcd_cluster.members if m is not frozen]
        frozen.pause()
        try:
            for _ in range(3):  # wherever it begins
                with Client(EtcdOptions((frozen.endpoint, others[0])), timeout=4) as client:
                    with_settling(client, "/a", "x")
                    assert client.read([one("/a")]).items[0]
        finally:
            frozen.resume()

    def test_without_quorum_nothing_is_read_or_written(self, etcd_cluster: EtcdServer) -> None:
        with Client(EtcdOptions(etcd_cluster.endpoints), timeout=2) as client:
            revision = client.txn([], [put("/a", "0")]).revision
            for member in etcd_cluster.members[1:]:
                member.kill()
            with pytest.raises(Unavailable):
                client.read([one("/a")])
            with pytest.raises(Unavailable):
                client.txn([mod_is("/a", revision)], [put("/a", "1")])
            for member in etcd_cluster.members[1:]:
                member.start()
            etcd_cluster.wait_until_it_serves()
            assert with_settling(client, "/a", "2")

    def test_full(self, tmp_path: Path) -> None:
        with (
            EtcdServer(arguments=["--quota-backend-bytes", str(2 << 20)]) as server,
            Client(EtcdOptions(server.endpoints)) as client,
        ):
            with pytest.raises(
                Unavailable, match=r"NOSPACE alarm.*database space exceeded.*etcdctl alarm disarm"
            ):
                for number in range(100):  # etcd looks at its size now and then
                    client.txn([], [put(f"/{number}", b"x" * 500_000)])
                    time.sleep(0.02)
            assert client.read([one("/0")]).items[0]


def with_settling(client: Client, key: str, value: str) -> bool:
    """A compare-and-swap through `commit`, which settles a lost answer."""
    items = client.read([one(key)]).items[0]
    guard = Guard(mod_is(key, items[0].mod_revision if items else 0), "changed")
    write = put(key, value)
    return commit(client, [guard], [write], witness=write).made


class TestLostAnswers:
    def test_a_write_whose_answer_is_lost_is_ambiguous(self, etcd: Etcd, proxy: Proxy) -> None:
        key = f"{etcd.prefix}k"
        with through(proxy) as client:
            client.txn([], [put(key, "0")])
            proxy.lose_replies = True
            with pytest.raises(Ambiguous, match="read back"):
                client.txn([], [put(key, "1")])
        assert etcd.client.read([one(key)]).items[0][0].value == b"1"

    def test_commit_finds_out_that_it_was_made(self, etcd: Etcd, proxy: Proxy) -> None:
        key = f"{etcd.prefix}k"
        with through(proxy) as client:
            revision = client.txn([], [put(key, "0")]).revision
            proxy.lose_replies = True
            healed = threading.Timer(0.5, lambda: setattr(proxy, "lose_replies", False))
            healed.start()
            write = put(key, "1")
            outcome = commit(client, [Guard(mod_is(key, revision), "changed")], [write], witness=write)
            assert outcome.made
        (item,) = etcd.client.read([one(key)]).items[0]
        assert (item.value, item.mod_revision) == (b"1", outcome.revision)

    def test_commit_finds_out_that_somebody_else_was_faster(self, etcd: Etcd, proxy: Proxy) -> None:
        key = f"{etcd.prefix}k"
        with through(proxy, timeout=0.5) as client:
            revision = client.txn([], [put(key, "0")]).revision
            proxy.hold()
            threading.Timer(0.2, lambda: etcd.client.txn([], [put(key, "theirs")])).start()
            write = put(key, "ours")
            outcome = commit(client, [Guard(mod_is(key, revision), "changed")], [write], witness=write)
            assert [guard.otherwise for guard in outcome.failed] == ["changed"]
        assert etcd.client.read([one(key)]).items[0][0].value == b"theirs"

    def test_a_request_that_arrives_late_has_no_second_effect(self, etcd: Etcd, proxy: Proxy) -> None:
        key = f"{etcd.prefix}k"
        with through(proxy, timeout=0.5) as client:
            revision = client.txn([], [put(key, "0")]).revision
            proxy.hold()
            write = put(key, "ours")
            outcome = commit(client, [Guard(mod_is(key, revision), "changed")], [write], witness=write)
            assert outcome.made
            assert client.counts["error DEADLINE_EXCEEDED"] == 1
            following = client.txn([mod_is(key, outcome.revision)], [put(key, "next")])
            assert following.succeeded
            proxy.let_go()
            time.sleep(0.3)
        (item,) = etcd.client.read([one(key)]).items[0]
        assert (item.value, item.mod_revision) == (b"next", following.revision)

    def test_a_held_request_does_arrive(self, etcd: Etcd, proxy: Proxy) -> None:
        """What the tests beside this one rest on: a request that its client gave up lands later."""
        key = f"{etcd.prefix}k"
        with through(proxy, timeout=0.5) as client:
            client.txn([], [put(key, "0")])
            proxy.hold()
            with pytest.raises(Ambiguous):
                client.txn([], [put(key, "late")])
        assert etcd.client.read([one(key)]).items[0][0].value == b"0"
        proxy.let_go()
        time.sleep(0.3)
        assert etcd.client.read([one(key)]).items[0][0].value == b"late"

    def test_the_key_is_written_once_before_it_says_no(self, etcd: Etcd, proxy: Proxy) -> None:
        """A held request whose other guard failed would land when that guard holds again: the key is written, so it cannot."""
        key, pause = f"{etcd.prefix}k", f"{etcd.prefix}pause"
        with through(proxy, timeout=0.5) as client:
            revision = client.txn([], [put(key, "0")]).revision
            proxy.hold()
            pausing = threading.Timer(0.2, lambda: etcd.client.txn([], [put(pause, "")]))
            pausing.start()
            write = put(key, "ours")
            guards = [Guard(mod_is(key, revision), "changed"), Guard(absent(pause), "paused")]
            outcome = commit(client, guards, [write], witness=write)
            assert [guard.otherwise for guard in outcome.failed] == ["paused"]
        etcd.client.txn([], [delete(pause)])
        proxy.let_go()
        time.sleep(0.3)
        assert etcd.client.read([one(key)]).items[0][0].value == b"0"

    def test_reads_are_repeated(self, etcd: Etcd, proxy: Proxy) -> None:
        key = f"{etcd.prefix}k"
        etcd.client.txn([], [put(key, "0")])
        with through(proxy) as client:
            client.read([one(key)])
            proxy.lose_replies = True
            threading.Timer(0.5, lambda: setattr(proxy, "lose_replies", False)).start()
            assert client.read([one(key)]).items[0][0].value == b"0"


def openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


def make_authority(directory: Path, name: str) -> None:
    openssl(
        directory,
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
        *("-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"),
    )


def make_certificate(directory: Path, name: str, authority: str) -> None:
    (directory / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        directory,
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"),
    )
    openssl(
        directory,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key"),
        *("-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt"),
    )


@pytest.mark.needs("openssl")
class TestTls:
    def test_certificates_on_both_sides_and_new_ones_without_a_restart(self, tmp_path: Path) -> None:
        for authority in ("ca", "other"):
            make_authority(tmp_path, authority)
        for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
            make_certificate(tmp_path, name, authority)
        arguments = [
            *("--cert-file", str(tmp_path / "server.crt"), "--key-file", str(tmp_path / "server.key")),
            *("--trusted-ca-file", str(tmp_path / "ca.crt"), "--client-cert-auth"),
        ]
        cert, key = tmp_path / "used.crt", tmp_path / "used.key"
        with EtcdServer(arguments=arguments, scheme="https") as server:
            options = EtcdOptions(server.endpoints, str(tmp_path / "ca.crt"), str(cert), str(key))
            cert.write_bytes((tmp_path / "stranger.crt").read_bytes())
            key.write_bytes((tmp_path / "stranger.key").read_bytes())
            with Client(options, timeout=1) as client:
                with pytest.raises(Unavailable):
                    client.read([one("/a")])
                cert.write_bytes((tmp_path / "client.crt").read_bytes())
                key.write_bytes((tmp_path / "client.key").read_bytes())
                time.sleep(1.1)  # the files are looked at once a second
                assert client.txn([], [put("/a", "b")]).succeeded
            wrong = EtcdOptions(server.endpoints, str(tmp_path / "other.crt"), str(cert), str(key))
            with Client(wrong, timeout=1) as client, pytest.raises(Unavailable):
                client.read([one("/a")])


class TestAuthentication:
    def test_user_and_password_tokens_that_expire_and_roles(self, tmp_path: Path) -> None:
        password = tmp_path / "password"
        password.write_text("secret\n")
        with EtcdServer(arguments=["--auth-token-ttl", "1"]) as server:
            for words in (
                ("user", "add", "root:rootpw"),
                ("user", "grant-role", "root", "root"),
                ("user", "add", "agent:secret"),
                ("role", "add", "agent"),
                ("role", "grant-permission", "agent", "readwrite", "/mine/", "--prefix=true"),
                ("user", "grant-role", "agent", "agent"),
                ("auth", "enable"),
            ):
                etcdctl(server.endpoint, *words)
            options = EtcdOptions(server.endpoints, user="agent", password_file=str(password))
            with Client(options) as client:
                assert client.txn([], [put("/mine/a", "b")]).succeeded
                time.sleep(2.5)  # the token has expired
                assert client.txn([], [put("/mine/a", "c")]).succeeded
                with pytest.raises(ReconcilerError, match=r"permission denied.*etcd-roles"):
                    client.txn([], [put("/theirs/a", "b")])
                with pytest.raises(ReconcilerError, match="permission denied"):
                    client.read([under("/theirs/")])
                root = ("--user", "root:rootpw")
                etcdctl(
                    server.endpoint, *root, "user", "passwd", "agent", "--interactive=false", stdin="new\n"
                )
                password.write_text("new\n")
                assert client.txn([], [put("/mine/a", "d")]).succeeded
            password.write_text("wrong")
            with (
                Client(options) as client,
                pytest.raises(ReconcilerError, match=r"log in to etcd.*--etcd-user"),
            ):
                client.read([one("/mine/a")])
            with (
                Client(EtcdOptions(server.endpoints)) as client,
                pytest.raises(ReconcilerError, match="wants --etcd-user"),
            ):
                client.read([one("/mine/a")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EtcdOptions(()), "no endpoint"),
        (EtcdOptions(("localhost:2379",)), "must be http://host:port"),
        (EtcdOptions(("http://localhost",)), "must be http://host:port"),
        (EtcdOptions(("ftp://localhost:1",)), "must be http://host:port"),
        (EtcdOptions(("http://u:p@localhost:1",)), "'localhost:1'"),
        (EtcdOptions(("http://localhost:x",)), "must be http://host:port"),
        (EtcdOptions(("https://h:1",), cert="c"), "go together"),
        (EtcdOptions(("http://h:1",), user="u"), "go together"),
        (EtcdOptions(("http://h:1",), ca="c"), "they would be ignored"),
    ],
)
def test_options_that_cannot_work(options: EtcdOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Client(options)
