"""Releases at GitHub, or at a server that speaks its API: which file of a release is the package for this machine, and its checksum.

Called by `packages`. Not pure. The file is chosen by what stands in its control file, of which the first part of a .deb
is enough, and not by its own name alone, which anybody may give as they like.
"""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reconciler.core.artifact import Pin, ReleaseDeb
from reconciler.errors import HostError, ReconcilerError, Unavailable, Unfetchable
from reconciler.ground.download import (
    NotAllowed,
    NotThere,
    ask,
    digest_hex,
    download,
    fetch_json,
    file_sha256,
    raise_for_status,
    shown,
)
from reconciler.host.dpkg import Control, control
from reconciler.host.driver import Progress, silent

GITHUB = "https://api.github.com"
MAX_BYTES = 4 << 30
"""Bytes that a package may have."""

_API_LIMIT = 30.0
_FETCH_LIMIT = 1800.0
_BEGINNING = 1 << 20
_MOST_ASSETS = 1000
_MOST_LOOKED_AT = 12
_ARCHITECTURES = frozenset(
    (
        "amd64",
        "arm64",
        "armel",
        "armhf",
        "i386",
        "loong64",
        "mips64el",
        "mipsel",
        "powerpc",
        "ppc64",
        "ppc64el",
        "riscv64",
        "s390x",
        "sparc64",
        "x32",
    )
)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of a release: `address` is where to fetch it, `digest` its SHA-256 in hex where the API gives it."""

    name: str
    address: str
    size: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class Releases:
    """A server of releases. The token is sent to it and to no other host. `scratch`: where files are looked into."""

    scratch: Path
    api: str = GITHUB
    token: str | None = field(default=None, repr=False)
    proxy: str | None = field(default=None, repr=False)

    def resolve(self, deb: ReleaseDeb, architecture: str) -> Pin:
        """The file that is `deb` for `architecture`: its checksum and address. Raises `Unfetchable` or `Unavailable`."""
        asset = self._choose(deb, architecture, self._assets(deb))
        digest = asset.digest or (digest_hex(deb.sha256) if deb.sha256 else None) or self._digest(asset)
        if deb.sha256 and digest_hex(deb.sha256) != digest:
            raise Unfetchable(
                f"cannot use {_named(deb)}: {asset.name} has the SHA-256 {digest}, and the desired state says "
                f"{digest_hex(deb.sha256)}; correct the sha256, or find out who changed the release"
            )
        return Pin(f"sha256:{digest}", asset.address)

    def fetch(self, pin: Pin, to: Path, subject: str, progress: Progress = silent) -> None:
        """Fetch what `pin` says into `to`, checked. Raises `Unfetchable`, `Unavailable` or `HostError`."""
        download(
            pin.address,
            to,
            timeout=_FETCH_LIMIT,
            max_bytes=MAX_BYTES,
            sha256=pin.digest,
            headers=self._headers(pin.address, "application/octet-stream"),
            proxy=self.proxy,
            progress=lambda done, total: progress(subject, done, total),
        )

    def _headers(self, address: str, accept: str) -> dict[str, str]:
        ours = address.startswith(self.api.rstrip("/") + "/")
        login = {"Authorization": f"Bearer {self.token}"} if self.token and ours else {}
        return {"Accept": accept, **login}

    def _assets(self, deb: ReleaseDeb) -> list[Asset]:
        path = "/".join(quote(part, safe="") for part in (deb.owner, deb.repository))
        url = f"{self.api.rstrip('/')}/repos/{path}/releases/tags/{quote(deb.release, safe='')}"
        try:
            document = fetch_json(
                url,
                timeout=_API_LIMIT,
                headers=self._headers(url, "application/vnd.github+json"),
                proxy=self.proxy,
            )
        except NotThere:
            raise NotThere(
                f"cannot find {_named(deb)}: {shown(url)} says that there is no such release; check owner, repository and "
                f"release{'' if self.token else ', and give a token if it is private'}"
            ) from None
        except NotAllowed as error:
            raise type(error)(f"cannot find {_named(deb)}: {error}") from None
        return self._read(deb, document)

    def _read(self, deb: ReleaseDeb, document: Any) -> list[Asset]:
        found = document.get("assets") if isinstance(document, Mapping) else None
        if not isinstance(found, list):
            raise Unavailable(
                f"cannot find {_named(deb)}: the answer of {shown(self.api)} has no list of assets"
            )
        return [asset for item in found[:_MOST_ASSETS] if (asset := self._asset(item)) is not None]

    def _asset(self, item: Any) -> Asset | None:
        # With a token the API's own address is taken: the browser's does not serve a private repository.
        address = (
            item.get("url" if self.token else "browser_download_url") if isinstance(item, Mapping) else None
        )
        name = item.get("name") if isinstance(item, Mapping) else None
        if not isinstance(name, str) or not isinstance(address, str) or not name.endswith(".deb"):
            return None
        digest, size = item.get("digest"), item.get("size")
        checked = digest if isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest) else None
        return Asset(
            name, address, size if isinstance(size, int) else 0, checked and checked.removeprefix("sha256:")
        )

    def _choose(self, deb: ReleaseDeb, architecture: str, assets: list[Asset]) -> Asset:
        if not assets:
            raise Unfetchable(f"cannot use {_named(deb)}: the release has no .deb file")
        likely = [asset for asset in assets if _meant_for(asset.name, architecture)]
        if len(likely) > _MOST_LOOKED_AT:
            # Only where there are very many: the file's name then decides which are looked at.
            likely = [asset for asset in likely if asset.name.startswith(deb.name)][:_MOST_LOOKED_AT]
        looked = {asset: self._control(asset) for asset in likely}
        right = [
            asset
            for asset, found in looked.items()
            if isinstance(found, Control)
            and found.package == deb.name
            and found.architecture in (architecture, "all")
        ]
        if len(right) == 1:
            return right[0]
        if not right and (unread := [found for found in looked.values() if isinstance(found, Unavailable)]):
            raise unread[0]
        wanted = f"package {deb.name} for {architecture}"
        problem = f"{len(right)} of its files are {wanted}" if right else f"none of its files is {wanted}"
        lines = [_line(asset, looked.get(asset)) for asset in (right or assets)[:20]]
        raise Unfetchable(f"cannot use {_named(deb)}: {problem}\n" + "\n".join(lines))

    def _control(self, asset: Asset) -> Control | ReconcilerError:
        """What the asset says of itself, from its beginning; or why that cannot be had."""
        try:
            answer = ask(
                asset.address,
                headers={
                    **self._headers(asset.address, "application/octet-stream"),
                    "Range": f"bytes=0-{_BEGINNING - 1}",
                },
                timeout=_API_LIMIT,
                max_bytes=_BEGINNING,
                proxy=self.proxy,
                cut=True,
            )
            raise_for_status(asset.address, answer.status, answer.headers)
            with self._directory() as directory:
                file = directory / "beginning.deb"
                file.write_bytes(answer.body)
                return control(file)
        except (Unfetchable, Unavailable) as error:
            return error

    def _digest(self, asset: Asset) -> str:
        """The checksum of an asset for which the API gives none: the leader fetches it, once for the whole fleet."""
        with self._directory() as directory:
            file = download(
                asset.address,
                directory / "asset.deb",
                timeout=_FETCH_LIMIT,
                max_bytes=MAX_BYTES,
                headers=self._headers(asset.address, "application/octet-stream"),
                proxy=self.proxy,
            )
            return file_sha256(file)

    @contextlib.contextmanager
    def _directory(self) -> Iterator[Path]:
        """A directory for one file, gone afterwards; below the state directory, whose room is looked at, and not in /tmp."""
        try:
            self.scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = tempfile.TemporaryDirectory(dir=self.scratch)
        except OSError as error:
            raise HostError(f"cannot make a directory in {self.scratch}: {error.strerror or error}") from None
        with made as directory:
            try:
                yield Path(directory)
            except OSError as error:
                hint = "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
                raise HostError(
                    f"cannot write below {self.scratch}: {error.strerror or error}{hint}"
                ) from None


def _named(deb: ReleaseDeb) -> str:
    return f"deb {deb.name}, release {deb.release} of {deb.owner}/{deb.repository}"


def _meant_for(name: str, architecture: str) -> bool:
    """Whether a file's name does not say that it is for another architecture."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return not words & (_ARCHITECTURES - {architecture}) or architecture in words


def _line(asset: Asset, found: Control | ReconcilerError | None) -> str:
    match found:
        case Control():
            return f"    {asset.name}: package {found.package} {found.version} for {found.architecture}"
        case None:
            return f"    {asset.name}: for another architecture, by its name"
        case _:
            return f"    {asset.name}: {found}"
