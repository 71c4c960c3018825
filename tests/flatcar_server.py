"""A release server as Flatcar's: small files with their checksums (and signatures), served from a directory.

Used by the tests of OS images and of whole agents.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KERNEL, INITRD = "flatcar_production_pxe.vmlinuz", "flatcar_production_pxe_image.cpio.gz"


@dataclass(frozen=True, slots=True)
class ReleaseServer:
    """A server that is running: `url` is what `--flatcar-url` takes, `directory` what it serves."""

    url: str
    directory: Path

    def release(self, channel: str, version: str, text: str = "") -> Path:
        """Put a release there; its directory."""
        place = self.directory / channel / version
        place.mkdir(parents=True, exist_ok=True)
        for name in (KERNEL, INITRD):
            content = f"{name} {channel} {version} {text}\n".encode() * 100
            (place / name).write_bytes(content)
            (place / f"{name}.DIGESTS").write_text(
                f"# MD5 HASH\n{hashlib.md5(content, usedforsecurity=False).hexdigest()}  {name}\n"
                f"# SHA512 HASH\n{hashlib.sha512(content).hexdigest()}  {name}\n"
            )
        return place


@contextlib.contextmanager
def release_server(directory: Path) -> Iterator[ReleaseServer]:
    """A server of `directory`, for as long as the block runs."""
    directory.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield ReleaseServer(f"http://127.0.0.1:{server.server_port}", directory)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@dataclass(frozen=True, slots=True)
class Signer:
    """A key pair of its own: `public` is the file for the host."""

    home: Path
    public: Path

    def sign(self, release: Path) -> None:
        for name in (KERNEL, INITRD):
            (release / f"{name}.sig").unlink(missing_ok=True)
            self._gpg("--output", str(release / f"{name}.sig"), "--detach-sign", str(release / name))

    def _gpg(self, *argv: str) -> None:
        base = ["gpg", "--batch", "--quiet", "--homedir", str(self.home), "--pinentry-mode", "loopback"]
        subprocess.run([*base, "--passphrase", "", *argv], check=True, capture_output=True)


@contextlib.contextmanager
def signer(home: Path) -> Iterator[Signer]:
    """A signer; its agent process ends with the block."""
    home.mkdir(mode=0o700, parents=True)
    made = Signer(home, home / "public.asc")
    try:
        made._gpg("--quick-generate-key", "release@reconciler.test", "ed25519", "sign", "never")
        made._gpg("--armor", "--output", str(made.public), "--export")
        yield made
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=False)
