"""The packages and images that the demo installs, made on the spot and without the network. Used by `demo.py`.

A package is one file built by `dpkg-deb`; an image is a static busybox and one page, pushed to the registry as it is
specified (OCI's image and distribution specifications, version 1).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def build_package(directory: Path, name: str, version: str) -> Path:
    """A package that installs one file; its path."""
    tree = directory / f"{name}_{version}"
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
        f"Maintainer: Example <example@example.invalid>\nDescription: {name} of the demo\n"
    )
    content = tree / "usr" / "share" / name / "version"
    content.parent.mkdir(parents=True)
    content.write_text(f"{version}\n")
    package = directory / f"{name}_{version}_all.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, package],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=30,
    )
    shutil.rmtree(tree)
    return package


def static_busybox() -> Path | None:
    """This machine's busybox, if it needs no library: nothing else is in the images."""
    found = shutil.which("busybox", path="/bin:/usr/bin")
    if not found:
        return None
    # A dynamic program names its loader, at the head of the file.
    return None if b"/ld-" in Path(found).read_bytes()[:4096] else Path(found)


def push_image(registry: str, name: str, tag: str, busybox: Path) -> None:
    """Push `registry/name:tag`: busybox as the entry point, and a page at /www that says the tag."""
    layer = _layer(
        {"bin/busybox": (busybox.read_bytes(), 0o755), "www/index.html": (f"{name} {tag}\n".encode(), 0o644)}
    )
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        # As process 1 of a container, busybox hears nothing but SIGKILL; otherwise each stop would wait ten seconds for it.
        "config": {"Entrypoint": ["/bin/busybox"], "Cmd": ["sleep", "3600"], "StopSignal": "SIGKILL"},
        "rootfs": {"type": "layers", "diff_ids": [_sha256(layer)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _push_blob(registry, name, json.dumps(config).encode(), _CONFIG),
        "layers": [_push_blob(registry, name, gzip.compress(layer, 1, mtime=0), _LAYER)],
    }
    _put(f"http://{registry}/v2/{name}/manifests/{tag}", json.dumps(manifest).encode(), _MANIFEST)


def _layer(files: dict[str, tuple[bytes, int]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, (content, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _push_blob(registry: str, name: str, content: bytes, media_type: str) -> dict[str, str | int]:
    begin = urllib.request.Request(f"http://{registry}/v2/{name}/blobs/uploads/", b"", method="POST")
    with urllib.request.urlopen(begin, timeout=10) as answer:
        address = answer.headers["Location"]
    digest = _sha256(content)
    _put(f"{address}{'&' if '?' in address else '?'}digest={digest}", content, "application/octet-stream")
    return {"mediaType": media_type, "size": len(content), "digest": digest}


def _put(address: str, content: bytes, media_type: str) -> None:
    request = urllib.request.Request(address, content, {"Content-Type": media_type}, method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        pass


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
