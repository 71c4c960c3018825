"""Servers that answer nonsense to what this program asks, and clients that ask it nonsense: over real HTTP."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.core.artifact import OsImage, ReleaseDeb
from reconciler.errors import ReconcilerError
from reconciler.host.flatcar import Flatcar
from reconciler.host.registry import Registry
from reconciler.host.releases import Releases
from reconciler.web.fleetlock import FleetLockOptions, serve_fleetlock
from reconciler.web.listener import Listen
from tests.conftest import Etcd
from tests.fuzz.test_doors import ODD, shapes

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

DIGEST = "sha256:" + "0" * 64
MANIFEST = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{"digest": DIGEST, "size": 1, "platform": {"architecture": "amd64"}}], "layers": [{"size": 1, "digest": DIGEST}], "config": {"size": 1}}  # fmt: skip
RELEASE = {"assets": [{"name": "x_1_amd64.deb", "browser_download_url": "http://h/x", "size": 1, "digest": DIGEST, "id": 1, "url": "http://h/1"}]}  # fmt: skip


class _Server(ThreadingHTTPServer):
    """Answers every request alike. Never an error that is worth a retry: that would only take time."""

    daemon_threads = True
    said: tuple[int, tuple[tuple[str, str], ...], bytes] = (200, (), b"")


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    server: _Server

    def do_GET(self) -> None:
        status, headers, body = self.server.said
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _answering() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    with _answering() as server:
        yield server


def _bodies(good: object) -> st.SearchStrategy[bytes]:
    whole = json.dumps(good).encode()
    return st.one_of(
        shapes.map(lambda shape: json.dumps(shape).encode()),
        st.tuples(st.integers(0, len(whole)), st.sampled_from(ODD)).map(
            lambda cut: whole[: cut[0]] + cut[1] + whole[cut[0] + 3 :]
        ),
        st.tuples(st.sampled_from(["manifests", "assets", "layers"]), shapes).map(
            lambda pair: json.dumps({**MANIFEST, **RELEASE, pair[0]: pair[1]}).encode()
        ),
        st.sampled_from(["name", "size", "digest", "browser_download_url", "url", "id", "platform"]).flatmap(
            lambda name: shapes.map(lambda shape: _with(name, shape))
        ),
        st.binary(max_size=200),
    )


def _with(name: str, shape: object) -> bytes:
    """The good answers, with another value in the one entry that they have."""
    manifests = [{**MANIFEST["manifests"][0], name: shape}]  # type: ignore[index]
    return json.dumps(
        {**MANIFEST, "manifests": manifests, "assets": [{**RELEASE["assets"][0], name: shape}]}
    ).encode()


heads = st.lists(
    st.tuples(
        st.sampled_from(["Docker-Content-Digest", "Content-Type", "WWW-Authenticate", "Location", "Link", "Content-Length", "Retry-After"]),
        st.sampled_from(
            [DIGEST, "sha256:", "application/vnd.oci.image.manifest.v1+json", 'Bearer realm="http://127.0.0.1:1/",service="x"', "Bearer realm=", "Basic", "-1", "1e9", "99999999999999999999", "http://[::", "é" * 5, "x" * 5000]
        ),
    ),
    max_size=2,
).map(tuple)  # fmt: skip
statuses = st.sampled_from([200, 200, 200, 200, 204, 206, 304, 400, 401, 403, 404, 410, 416])


def _asked(server: _Server, ask: Callable[[str], object], good: object) -> None:
    """`ask` the server, told its address, whatever it says."""

    @few
    @given(statuses, heads, _bodies(good))
    def asked(status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        server.said = (
            status,
            tuple((name, value.encode().decode("latin-1")) for name, value in headers),
            body,
        )
        try:
            ask(f"127.0.0.1:{server.server_address[1]}")
        except ReconcilerError as error:
            assert str(error)

    asked()


def test_a_registry(server: _Server) -> None:
    registry = Registry(timeout=2.0)
    _asked(server, lambda at: registry.digest(f"{at}/x", "1"), MANIFEST)
    _asked(server, lambda at: registry.sizes(f"{at}/x", DIGEST, "amd64"), MANIFEST)


def test_a_release_server(server: _Server, tmp_path: Path) -> None:
    deb = ReleaseDeb("x", "owner", "repository", "v1")
    _asked(server, lambda at: Releases(tmp_path, f"http://{at}").resolve(deb, "amd64"), RELEASE)


def test_a_server_of_os_images(server: _Server) -> None:
    _asked(
        server, lambda at: Flatcar(f"http://{at}").resolve(OsImage("stable", "1.2.3")), {"sha512": "0" * 128}
    )


@pytest.mark.needs("etcd", "etcdctl")
def test_fleetlock_is_asked_nonsense(etcd: Etcd) -> None:
    """Whatever is asked, it is granted or refused: never a 500, and a slot only for who asked as the protocol says."""
    serving = serve_fleetlock(FleetLockOptions(Listen("127.0.0.1:0"), ("default",)), etcd.client, etcd.keys)
    good = {"client_params": {"id": "m1", "group": "default"}}

    @few
    @given(
        st.sampled_from(["/v1/pre-reboot", "/v1/steady-state", "/v1/", "/", "/v1/pre-reboot/../x", "//v1/pre-reboot"]),
        st.sampled_from(["POST", "GET", "PUT", "OPTIONS"]),
        st.dictionaries(
            st.sampled_from(["fleet-lock-protocol", "Content-Type", "X-Forwarded-For", "Expect"]),
            st.sampled_from(["true", "false", "", "application/json", "1" * 3000]),
        ),
        st.one_of(_bodies(good), shapes.map(lambda shape: json.dumps({"client_params": shape}).encode()),
                  st.tuples(shapes, shapes).map(lambda two: json.dumps({"client_params": {"id": two[0], "group": two[1]}}).encode())),
    )  # fmt: skip
    def asked(path: str, method: str, headers: dict[str, str], body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            status = connection.getresponse().status
        finally:
            connection.close()
        assert status < 500, f"{method} {path} {headers} {body!r}"
        if status == 200:
            assert (method, headers.get("fleet-lock-protocol")) == ("POST", "true")

    try:
        asked()
    finally:
        serving.close()
