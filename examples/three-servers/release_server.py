"""A release server that speaks as much of GitHub's API as installing a package needs. Used by `demo.py`.

`GET /repos/<owner>/<repository>/releases/tags/<tag>` answers with the release and its assets, and an asset's address with
its bytes, as the public server does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Releases = Mapping[tuple[str, str, str], Path]
"""Owner, repository and tag → the package's file."""


class _Handler(BaseHTTPRequestHandler):
    releases: Releases
    address: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match self.path.strip("/").split("/"):
            case ["repos", owner, repository, "releases", "tags", tag] if (
                owner,
                repository,
                tag,
            ) in self.releases:
                path = self.releases[owner, repository, tag]
                self._answer(
                    200, "application/json", json.dumps(self._release(owner, repository, tag, path)).encode()
                )
            case ["download", owner, repository, tag, name] if (owner, repository, tag) in self.releases:
                path = self.releases[owner, repository, tag]
                if path.name == name:
                    self._answer(200, "application/vnd.debian.binary-package", path.read_bytes())
                else:
                    self._absent()
            case _:
                self._absent()

    def _release(self, owner: str, repository: str, tag: str, path: Path) -> dict[str, object]:
        content = path.read_bytes()
        asset = {
            "name": path.name,
            "content_type": "application/vnd.debian.binary-package",
            "size": len(content),
            "state": "uploaded",
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "browser_download_url": f"{self.address}/download/{owner}/{repository}/{tag}/{path.name}",
        }
        return {"tag_name": tag, "draft": False, "prerelease": False, "assets": [asset]}

    def _absent(self) -> None:
        self._answer(404, "application/json", b'{"message": "Not Found"}')

    def _answer(self, status: int, media_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the demo tells its own story."""


@contextlib.contextmanager
def release_server(releases: Releases) -> Iterator[str]:
    """Serve `releases` on a free port of loopback for as long as the block runs; its address."""

    class Handler(_Handler):
        pass

    Handler.releases = releases
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.address = address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()
