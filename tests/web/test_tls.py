"""HTTPS: a certificate that is rotated while it is served, files that do not fit, and what is refused."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from reconciler.errors import UsageError
from reconciler.web.listener import Listen, bind
from tests.web.agent import Authority, ask, serving


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca")


def served_name(port: int, authority: Authority) -> str:
    """The common name of the certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        authority.trusting().wrap_socket(raw, server_hostname="127.0.0.1") as secured,
    ):
        certificate = secured.getpeercert() or {}
        return next(str(entry[1]) for entry in certificate["subjectAltName"] if entry[0] == "DNS")


def install(pair: tuple[Path, Path], cert: Path, key: Path) -> None:
    """Put a certificate and key in place as a rotation does: by renaming, one after the other."""
    for source, target in zip(pair, (cert, key), strict=True):
        new = target.with_suffix(".new")
        shutil.copy(source, new)
        new.rename(target)


def test_a_rotated_certificate_is_served_to_the_next_connection(authority: Authority, tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    install(authority.issue("old", "old"), cert, key)
    with serving(tls_cert=cert, tls_key=key) as server:
        assert served_name(server.port, authority) == "old"
        assert ask(server, "/livez", tls=authority.trusting()).status == 200
        open_before = ssl_connection(server.port, authority)
        install(authority.issue("new", "new"), cert, key)
        assert served_name(server.port, authority) == "new"
        assert ask(server, "/livez", tls=authority.trusting()).status == 200
        with open_before:
            open_before.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert open_before.recv(4096).startswith(b"HTTP/1.1 200 ")


def ssl_connection(port: int, authority: Authority) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    return authority.trusting().wrap_socket(raw, server_hostname="127.0.0.1")


def test_while_a_rotation_is_half_done_the_last_good_one_is_served(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    install(authority.issue("old", "old"), cert, key)
    new_cert, new_key = authority.issue("new", "new")
    with serving(tls_cert=cert, tls_key=key) as server:
        shutil.copy(new_cert, cert)
        assert [served_name(server.port, authority) for _ in range(3)] == ["old"] * 3
        assert caplog.text.count("the last good ones stay") == 1
        shutil.copy(new_key, key)
        assert served_name(server.port, authority) == "new"
        key.unlink()
        assert served_name(server.port, authority) == "new"


def test_a_key_that_is_encrypted_or_anothers_is_said_and_nobody_is_asked(
    authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue("boot-0", "server")
    _, other = authority.issue("boot-1", "other")
    with pytest.raises(UsageError, match="do certificate and key belong together"):
        bind(Listen("127.0.0.1:0", cert, other))
    locked = tmp_path / "locked.key"
    authority.encrypt(key, locked)
    with pytest.raises(UsageError, match=r"cannot serve HTTPS with --tls-cert .*locked\.key"):
        bind(Listen("127.0.0.1:0", cert, locked))


def test_plain_http_and_old_tls_get_nothing(authority: Authority) -> None:
    cert, key = authority.issue("boot-0", "server")
    with serving(tls_cert=cert, tls_key=key) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
            plain.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"HTTP/1.1 200" not in plain.recv(4096)
        old = authority.trusting()
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError):
            ask(server, "/livez", tls=old)
        assert ask(server, "/livez", tls=authority.trusting()).status == 200


def test_what_comes_together_with_the_end_of_the_handshake_is_answered(authority: Authority) -> None:
    cert, key = authority.issue("boot-0", "server")
    request = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with serving(tls_cert=cert, tls_key=key) as server:
        for _ in range(20):
            assert b"HTTP/1.1 200" in early(server.port, authority, request)


def early(port: int, authority: Authority, request: bytes) -> bytes:
    """The answer to a request that leaves in one packet with the client's last word of the handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.trusting().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(65536))
        client.write(request)
        raw.sendall(outgoing.read())
        answer = b""
        while part := raw.recv(65536):
            incoming.write(part)
            with contextlib.suppress(ssl.SSLWantReadError):
                while piece := client.read(65536):
                    answer += piece
                break
        return answer
