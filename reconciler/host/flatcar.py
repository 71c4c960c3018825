"""Flatcar's release server: what a release's netboot files must be, and fetching them. Called by `host/os_image`; not pure.

The public server has `https://<channel>.release.flatcar-linux.net/amd64-usr/<version>/<file>`. An address with
`{channel}` in it is read like that one (`…/<version>/<file>` follows); one without, as a mirror may have it, is followed
by `/<channel>/<version>/<file>`. Beside each file stand `<file>.DIGESTS`, with its SHA-512, and `<file>.sig`.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.artifact import OsImage, Pin
from reconciler.errors import HostError, Unavailable, Unfetchable
from reconciler.ground import process
from reconciler.ground.process import ProcessFailed

PUBLIC = "https://{channel}.release.flatcar-linux.net/amd64-usr"

FILES = ("flatcar_production_pxe.vmlinuz", "flatcar_production_pxe_image.cpio.gz")
"""The kernel and the initrd."""

_SHA512 = re.compile(r"([0-9a-f]{128})\s+\*?(\S+)")
_DIGESTS_LIMIT = 1 << 20
_FILE_LIMIT = 8 << 30
_QUICK = 60.0
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Checksums:
    """The SHA-512 of each file of a release, in the order of `FILES`."""

    sha512: tuple[str, ...]

    @property
    def digest(self) -> str:
        """One digest over all of them, as a pin has it."""
        text = "".join(f"{digits}  {name}\n" for digits, name in zip(self.sha512, FILES, strict=True))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Flatcar:
    """A release server. `key` is a file with the public key that releases are signed with; None: not looked at. `limit` in seconds a file."""

    url: str = PUBLIC
    key: Path | None = None
    proxy: str | None = None
    limit: float = 3600.0

    def address(self, image: OsImage) -> str:
        """The directory of a release."""
        url = self.url.rstrip("/")
        if "{channel}" in url:
            return f"{url.replace('{channel}', image.channel)}/{image.release}"
        return f"{url}/{image.channel}/{image.release}"

    def resolve(self, image: OsImage) -> Pin:
        """What the release is now: a digest over its files' checksums. Raises `Unfetchable` where there is no such release."""
        address = self.address(image)
        return Pin(self.checksums(address).digest, address)

    def checksums(self, address: str) -> Checksums:
        """The checksums in a release's directory."""
        return Checksums(tuple(self._sha512(address, name) for name in FILES))

    def fetch(
        self, address: str, name: str, sha512: str, to: Path, progress: Callable[[int, int | None], None]
    ) -> None:
        """Download one file of a release into `to` and check it: its checksum, and its signature where a key is given."""
        from reconciler.ground.download import download, shown

        download(
            f"{address}/{name}",
            to,
            timeout=self.limit,
            max_bytes=_FILE_LIMIT,
            proxy=self.proxy,
            progress=progress,
        )
        try:
            found = file_sha512(to)
            if found != sha512:
                raise Unfetchable(
                    f"cannot use {shown(f'{address}/{name}')}: its SHA-512 is {found[:16]}…, and must be {sha512[:16]}…; "
                    "it was damaged on its way, or changed on the server"
                )
            if self.key:
                self._check_signature(self._text(f"{address}/{name}.sig"), to, self.key)
        except Unfetchable:
            to.unlink(missing_ok=True)
            raise

    def _sha512(self, address: str, name: str) -> str:
        from reconciler.ground.download import shown

        url = f"{address}/{name}.DIGESTS"
        found = {
            match[1]
            for line in self._text(url).decode(errors="replace").splitlines()
            if (match := _SHA512.fullmatch(line.strip())) and match[2] == name
        }
        if len(found) != 1:
            raise Unfetchable(
                f"cannot use {shown(url)}: it has {len(found)} SHA-512 checksums for {name}, and must have one"
            )
        return found.pop()

    def _text(self, url: str) -> bytes:
        from reconciler.ground.download import ask, raise_for_status

        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = ask(url, timeout=_QUICK, max_bytes=_DIGESTS_LIMIT, proxy=self.proxy)
                raise_for_status(url, answer.status, answer.headers)
                return answer.body
            except Unavailable:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(0.5 * attempt)
        raise AssertionError("the last attempt returns or raises")

    def _check_signature(self, signature: bytes, file: Path, key: Path) -> None:
        with tempfile.TemporaryDirectory() as home:
            Path(home).chmod(0o700)
            signed = Path(home) / "signature"
            signed.write_bytes(signature)
            gpg = [
                "gpg",
                "--batch",
                "--no-autostart",
                "--quiet",
                "--homedir",
                home,
                "--trust-model",
                "always",
            ]
            try:
                process.run([*gpg, "--import", key], timeout=_QUICK)
            except ProcessFailed as error:
                raise HostError(f"cannot read the key {key} that releases are signed with: {error}") from None
            try:
                process.run([*gpg, "--verify", signed, file], timeout=300.0)
            except ProcessFailed as error:
                raise Unfetchable(
                    f"cannot use {file.name}: it is not signed by the key in {key}: {error}"
                ) from None


def file_sha512(path: Path) -> str:
    """The SHA-512 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()
