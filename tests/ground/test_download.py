"""Downloads from a real HTTP server that behaves, and one that does not."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import HostError, ReconcilerError, Unavailable, Unfetchable
from reconciler.ground import download as fetching
from reconciler.ground.download import NotAllowed, NotThere, RateLimited, ask, download, fetch_json, shown
from tests.release_server import Fault, ReleaseServer

CONTENT = random.Random(7).randbytes(3 << 20)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = "/files/o/r/v1/thing.bin"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReleaseServer]:
    releases = ReleaseServer(tmp_path / "releases")
    place = tmp_path / "releases/o/r/v1"
    place.mkdir(parents=True)
    (place / "thing.bin").write_bytes(CONTENT)
    with releases.serving() as serving:
        yield serving


def fetch(server: ReleaseServer, to: Path, timeout: float = 10.0, sha256: str | None = SHA256) -> Path:
    return download(server.url + FILE, to, timeout=timeout, max_bytes=16 << 20, sha256=sha256, stall=0.5)


def test_is_published_whole_and_leaves_nothing_else(server: ReleaseServer, tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    to = tmp_path / "cache/thing"
    download(
        server.url + FILE,
        to,
        timeout=10,
        max_bytes=16 << 20,
        sha256="sha256:" + SHA256.upper(),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert to.read_bytes() == CONTENT
    assert list(to.parent.iterdir()) == [to]
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert steps == sorted(steps)


def test_asking_again_fetches_nothing(server: ReleaseServer, tmp_path: Path) -> None:
    fetch(server, tmp_path / "thing")
    fetch(server, tmp_path / "thing")
    assert server.paths() == [FILE]


def test_a_file_that_was_damaged_is_fetched_anew(server: ReleaseServer, tmp_path: Path) -> None:
    fetch(server, tmp_path / "thing").write_bytes(b"damaged")
    assert fetch(server, tmp_path / "thing").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT[: 1 << 20], CONTENT], ids=["a part", "all of it"])
def test_goes_on_with_what_an_interrupted_one_left(
    server: ReleaseServer, tmp_path: Path, left: bytes
) -> None:
    (tmp_path / "thing.part").write_bytes(left)
    assert fetch(server, tmp_path / "thing").read_bytes() == CONTENT
    assert [request.headers.get("range") for request in server.seen] == [f"bytes={len(left)}-"]


@pytest.mark.parametrize("left", [b"something else", CONTENT + b"more"], ids=["else", "longer"])
def test_begins_anew_where_something_else_was_left(
    server: ReleaseServer, tmp_path: Path, left: bytes
) -> None:
    (tmp_path / "thing.part").write_bytes(left)
    assert fetch(server, tmp_path / "thing").read_bytes() == CONTENT


def test_goes_on_after_a_connection_broke(server: ReleaseServer, tmp_path: Path) -> None:
    server.fail("/files/", "truncate", times=2)
    assert fetch(server, tmp_path / "thing").read_bytes() == CONTENT
    ranges = [request.headers.get("range") for request in server.seen]
    assert ranges == [None, f"bytes={len(CONTENT) // 2}-", f"bytes={len(CONTENT) * 3 // 4}-"]


def test_without_a_checksum_a_broken_one_begins_anew(server: ReleaseServer, tmp_path: Path) -> None:
    server.fail("/files/", "truncate", times=1)
    assert fetch(server, tmp_path / "thing", sha256=None).read_bytes() == CONTENT
    assert [request.headers.get("range") for request in server.seen] == [None, None]


def test_a_server_error_passes(server: ReleaseServer, tmp_path: Path) -> None:
    server.fail("/files/", "500", times=2)
    assert fetch(server, tmp_path / "thing").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("404", NotThere, "answered 404 Not Found"),
        ("403", NotAllowed, "wants a token"),
        ("rate-limit", RateLimited, "too many requests"),
        ("500", Unavailable, "answered 500"),
        ("hang", Unavailable, "nothing came for too long|in the time that it may take"),
        ("close", Unavailable, "closed in the middle"),
        ("truncate", Unavailable, "it ended after"),
        ("corrupt", Unfetchable, f"must be {SHA256}"),
        ("drip", Unavailable, "in the time that it may take"),
        ("hang-headers", Unavailable, "in the time that it may take"),
        ("endless", Unfetchable, "more than"),
    ],
)
def test_what_goes_wrong_is_told_apart_within_the_deadline(
    server: ReleaseServer, tmp_path: Path, fault: Fault, error: type[ReconcilerError], words: str
) -> None:
    server.fail("/files/", fault)
    began = time.monotonic()
    with pytest.raises(error, match=words) as caught:
        fetch(server, tmp_path / "thing", timeout=1.2)
    assert type(caught.value) is error
    assert time.monotonic() - began < 2.0
    assert not (tmp_path / "thing").exists()
    assert "thing.bin" in str(caught.value)


def test_a_rate_limit_says_when_to_come_back(server: ReleaseServer, tmp_path: Path) -> None:
    server.fail("/files/", "rate-limit")
    with pytest.raises(RateLimited) as caught:
        fetch(server, tmp_path / "thing")
    assert caught.value.wait is not None
    assert 60 < caught.value.wait <= 90
    assert len(server.seen) == 1


def test_too_large_is_refused_before_it_is_fetched(server: ReleaseServer, tmp_path: Path) -> None:
    with pytest.raises(Unfetchable, match="more than 1000 bytes"):
        download(server.url + FILE, tmp_path / "thing", timeout=5, max_bytes=1000)
    assert list(tmp_path.glob("thing*")) == []


def test_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/x: Connection refused"):
        download("http://127.0.0.1:1/x", tmp_path / "thing", timeout=1, max_bytes=10)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd", "gopher://x/"])
def test_only_http_is_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(Unfetchable, match="only http and https"):
        download(url, tmp_path / "thing", timeout=1, max_bytes=10)


def test_a_token_goes_to_its_own_host_only(server: ReleaseServer, tmp_path: Path) -> None:
    server.token = "t0k3n"
    download(
        f"{server.url}/repos/o/r/releases/assets/v1/thing.bin",
        tmp_path / "thing",
        timeout=5,
        max_bytes=16 << 20,
        sha256=SHA256,
        headers={"Authorization": "Bearer t0k3n", "Accept": "application/octet-stream"},
    )
    asked, stored = server.seen
    assert asked.headers["authorization"] == "Bearer t0k3n"
    assert "authorization" not in stored.headers
    assert stored.headers["accept"] == "application/octet-stream"


def test_no_secret_is_in_a_message(server: ReleaseServer, tmp_path: Path) -> None:
    server.fail("/files/", "404")
    address = server.url.replace("http://", "http://me:pa55@") + FILE + "?signature=s3cr3t#f"
    with pytest.raises(NotThere) as caught:
        download(
            address, tmp_path / "thing", timeout=5, max_bytes=10, headers={"Authorization": "Bearer t0k3n"}
        )
    assert not any(secret in str(caught.value) for secret in ("pa55", "s3cr3t", "t0k3n"))
    assert shown(address) == server.url + FILE
    assert server.seen[0].headers["authorization"] == "Bearer t0k3n"


def test_a_proxy_is_used(server: ReleaseServer, tmp_path: Path) -> None:
    # A proxy is asked with the whole address in the request's line: the server, used as one, sees it.
    with pytest.raises(NotThere):
        download("http://198.18.0.1/x", tmp_path / "thing", timeout=5, max_bytes=10, proxy=server.url)
    assert server.paths() == ["http://198.18.0.1/x"]


def test_two_at_once_do_not_write_into_one_file(server: ReleaseServer, tmp_path: Path) -> None:
    server.fail("/files/", "hang", times=1)
    first = threading.Thread(target=lambda: fetch(server, tmp_path / "thing"))
    first.start()
    while not server.seen:
        time.sleep(0.01)
    with pytest.raises(Unavailable, match="being fetched already"):
        fetch(server, tmp_path / "thing")
    first.join()
    assert (tmp_path / "thing").read_bytes() == CONTENT


def test_the_disk_is_named(server: ReleaseServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(HostError, match=r"cannot write .*file/thing"):
        fetch(server, tmp_path / "file/thing")


def test_json_and_what_is_none(server: ReleaseServer) -> None:
    found = fetch_json(f"{server.url}/repos/o/r/releases/tags/v1", timeout=5)
    assert found["assets"][0]["digest"] == f"sha256:{SHA256}"
    with pytest.raises(NotThere):
        fetch_json(f"{server.url}/repos/o/r/releases/tags/v2", timeout=5)
    with pytest.raises(Unavailable, match="no JSON"):
        fetch_json(server.url + FILE, timeout=5)
    with pytest.raises(Unfetchable, match="more than 10 bytes"):
        fetch_json(server.url + FILE, timeout=5, max_bytes=10)


def test_a_single_request_tells_any_status(server: ReleaseServer) -> None:
    assert ask(server.url + "/nothing", timeout=5).status == 404
    head = ask(server.url + FILE, method="HEAD", timeout=5)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(CONTENT)))
    assert ask(server.url + FILE, timeout=5, max_bytes=100, cut=True).body == CONTENT[:100]


def test_a_digest_that_is_none() -> None:
    with pytest.raises(Unfetchable, match="no SHA-256"):
        fetching.digest_hex("md5:abc")
