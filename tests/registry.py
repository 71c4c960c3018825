"""A real registry (`docker-registry serve`) on loopback, and tiny images pushed to it without any other program.

Used by the tests of containers and of whole agents. Images are built by hand from a static busybox: one layer, and
`/bin/busybox` as the entry point, so that a container's `args` name an applet (`httpd -f -p 8080 -h /www`).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ports import free_port

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def busybox() -> bytes:
    """The static busybox of this machine."""
    found = shutil.which("busybox")
    if not found:
        raise FileNotFoundError("busybox is not installed (Debian: busybox-static)")
    return Path(found).read_bytes()


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that is running. `address` is `127.0.0.1:port`, the first part of its repositories' names."""

    address: str
    pid: int

    def repository(self, name: str) -> str:
        return f"{self.address}/{name}"

    def push(self, name: str, tag: str, text: str = "", size: int = 0) -> str:
        """Push an image whose `/www/index.html` is `text` (default: the tag), padded by `size` random bytes; its digest."""
        manifest = self._image(name, text or tag, size)
        return self.put(f"{name}/manifests/{tag}", manifest, MANIFEST)

    def push_index(self, name: str, tag: str, text: str = "") -> str:
        """Push a list of images with one for this machine and one for another; the digest of the list."""
        entries = []
        for architecture, words in ((ARCHITECTURE, text or tag), ("s390x", "another machine's")):
            manifest = self._image(name, words, 0, architecture)
            digest = self.put(f"{name}/manifests/{_sha256(manifest)}", manifest, MANIFEST)
            entries.append(
                {
                    "mediaType": MANIFEST,
                    "digest": digest,
                    "size": len(manifest),
                    "platform": {"os": "linux", "architecture": architecture},
                }
            )
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        return self.put(f"{name}/manifests/{tag}", json.dumps(index).encode(), INDEX)

    def put(self, path: str, body: bytes, media_type: str) -> str:
        """Put a manifest; its digest."""
        request = urllib.request.Request(
            f"http://{self.address}/v2/{path}", body, {"Content-Type": media_type}, method="PUT"
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            digest: str = reply.headers["Docker-Content-Digest"]
            return digest

    def _image(self, name: str, text: str, size: int, architecture: str = ARCHITECTURE) -> bytes:
        layer = _layer(
            {
                "bin/busybox": (busybox(), 0o755),
                "www/index.html": (text.encode(), 0o644),
                "padding": (os.urandom(size), 0o644),
            }
        )
        packed = gzip.compress(layer, 1, mtime=0)
        config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Entrypoint": ["/bin/busybox"], "Cmd": ["echo", text], "Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [_sha256(layer)]},
            }
        ).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._blob(name, config, "application/vnd.docker.container.image.v1+json"),
            "layers": [self._blob(name, packed, "application/vnd.docker.image.rootfs.diff.tar.gzip")],
        }
        return json.dumps(manifest).encode()

    def _blob(self, name: str, body: bytes, media_type: str) -> dict[str, Any]:
        digest = _sha256(body)
        start = urllib.request.Request(f"http://{self.address}/v2/{name}/blobs/uploads/", b"", method="POST")
        with urllib.request.urlopen(start, timeout=10) as reply:
            location = reply.headers["Location"]
        joint = "&" if "?" in location else "?"
        upload = urllib.request.Request(
            f"{location}{joint}digest={digest}",
            body,
            {"Content-Type": "application/octet-stream"},
            method="PUT",
        )
        with urllib.request.urlopen(upload, timeout=10):
            return {"mediaType": media_type, "size": len(body), "digest": digest}


@contextlib.contextmanager
def registry(directory: Path, port: int | None = None) -> Iterator[Registry]:
    """A registry that keeps its blobs below `directory`, for as long as the block runs."""
    directory.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{port or free_port()}"
    config = directory / "registry.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'blobs'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    with (directory / "registry.log").open("wb") as log:
        child = subprocess.Popen(
            ["docker-registry", "serve", config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        _wait_until_up(address, child, directory / "registry.log")
        yield Registry(address, child.pid)
    finally:
        child.terminate()
        child.wait(10)


def _wait_until_up(address: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"docker-registry did not start: {log.read_text()}") from None
            time.sleep(0.05)


def _layer(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, (body, mode) in files.items():
            if not body:
                continue
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(body), mode
            archive.addfile(member, io.BytesIO(body))
    return packed.getvalue()


def _sha256(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
