"""Asks a container registry what a tag is and whether a digest is there. Called by `host/containers`; not pure, changes nothing.

The registry's HTTP API, version 2, with its token authentication:
https://github.com/opencontainers/distribution-spec and https://distribution.github.io/distribution/spec/auth/token/.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import ipaddress
import json
import re
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.errors import HostError, Unavailable, Unfetchable

if TYPE_CHECKING:
    from reconciler.ground.download import Answer

_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'([a-zA-Z]+)="([^"]*)"')
_BODY_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's two parts: `host` (with the port, if any) and `path`. `str` gives the whole name, never a short one."""

    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"

    @property
    def loopback(self) -> bool:
        """On this machine itself: spoken to without TLS, as docker and podman's documentation have it for tests."""
        name = urllib.parse.urlsplit(f"//{self.host}").hostname or ""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(name).is_loopback
        return name == "localhost"

    @property
    def api(self) -> str:
        """Where its API is. Docker Hub's is not at the name that its images carry."""
        scheme = "http" if self.loopback else "https"
        return f"{scheme}://{'registry-1.docker.io' if self.host == 'docker.io' else self.host}"


def repository_of(name: str) -> Repository:
    """A repository from its name. A first part without a dot, a colon or `localhost` is no host, as for docker."""
    host, slash, path = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = "docker.io", name
    if host in ("docker.io", "index.docker.io"):
        host, path = "docker.io", path if "/" in path else f"library/{path}"
    return Repository(host, path)


@dataclass(frozen=True, slots=True)
class Login:
    """Who one is at a registry. Never shown."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Login(…)"

    @property
    def header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def login_from(file: Path | None, repository: Repository) -> Login | None:
    """The login for a repository in a credentials file (`auths`, as `podman login` and `docker login` write it).

    The longest entry that the repository's name begins with counts; an empty one (docker's, where a helper has the
    login) is none. Raises `HostError` for a file that is none.
    """
    if file is None or not file.exists():
        return None
    try:
        entries = json.loads(file.read_bytes()).get("auths", {})
        names = {_without_scheme(name): entry for name, entry in entries.items()}
        for candidate in _prefixes(repository):
            if entry := names.get(candidate):
                user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
                if not (user and colon):
                    raise ValueError("no user and password")
                return Login(user, password)
    except (OSError, ValueError, binascii.Error, AttributeError, KeyError, TypeError) as error:
        # The error's own text could quote a password.
        raise HostError(
            f"cannot read the registry credentials in {file}: it is not what `podman login --authfile` writes "
            f"({type(error).__name__}); log in again"
        ) from None
    return None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one image for this machine: bytes to download, and how many layers."""

    download: int
    layers: int


class Registry:
    """Questions to registries, each with a deadline in seconds over all."""

    def __init__(
        self, credentials: Path | None = None, *, proxy: str | None = None, timeout: float = 30.0
    ) -> None:
        self.credentials = credentials
        self._proxy = proxy
        self._timeout = timeout

    def login(self, name: str) -> Login | None:
        """The login for a repository, None where there is none."""
        return login_from(self.credentials, repository_of(name))

    def digest(self, name: str, reference: str) -> str:
        """The digest (`sha256:…`) of a tag, or of a digest if the registry has it.

        Raises `Unfetchable` where it does not exist, `HostError` where the login does not do, `Unavailable` otherwise.
        """
        repository = repository_of(name)
        reply = self._manifest(repository, reference, "HEAD")
        found = reply.headers.get("docker-content-digest", "")
        if not _DIGEST.fullmatch(found):
            body = self._manifest(repository, reference, "GET").body
            found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if _DIGEST.fullmatch(reference) and found != reference:
            raise Unfetchable(f"cannot use {name}@{reference}: the registry answers with {found}")
        return found

    def sizes(self, name: str, digest: str, architecture: str) -> Sizes:
        """How much is to be downloaded for `digest` on this machine's `architecture` (`amd64`). Raises as `digest`."""
        repository = repository_of(name)
        manifest = self._document(repository, digest)
        if "manifests" in manifest:
            chosen = _for_machine(manifest["manifests"], architecture)
            if chosen is None:
                raise Unfetchable(f"cannot use {name}@{digest}: it has no image for linux/{architecture}")
            manifest = self._document(repository, chosen)
        try:
            layers = [int(layer["size"]) for layer in manifest["layers"]]
        except (KeyError, TypeError, ValueError):
            raise Unfetchable(
                f"cannot use {name}@{digest}: its manifest lists no layers (an image of before 2016 or no image)"
            ) from None
        return Sizes(sum(layers), len(layers))

    def _document(self, repository: Repository, digest: str) -> dict[str, Any]:
        body = self._manifest(repository, digest, "GET").body
        if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
            raise Unfetchable(
                f"cannot use {repository}@{digest}: the registry sent a manifest with another digest"
            )
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise Unfetchable(f"cannot use {repository}@{digest}: its manifest is no JSON object")
        return document

    def _manifest(self, repository: Repository, reference: str, method: str) -> Answer:
        url = f"{repository.api}/v2/{repository.path}/manifests/{urllib.parse.quote(reference, safe=':')}"
        what = f"{repository}{'@' if _DIGEST.fullmatch(reference) else ':'}{reference}"
        deadline = time.monotonic() + self._timeout
        login = login_from(self.credentials, repository)
        reply = self._ask(repository, method, url, None, deadline)
        if reply.status == 401:
            authorization = self._authorize(what, repository, reply, login, deadline)
            if authorization:
                reply = self._ask(repository, method, url, authorization, deadline)
        self._check(what, repository, reply, login)
        return reply

    def _authorize(
        self, what: str, repository: Repository, reply: Answer, login: Login | None, deadline: float
    ) -> str | None:
        """The `Authorization` that a 401 asks for: the login itself, or a token, which needs no login where all may read."""
        scheme, _, rest = reply.headers.get("www-authenticate", "").partition(" ")
        if scheme.lower() == "basic":
            return login.header if login else None
        challenge = dict(_CHALLENGE.findall(rest))
        realm = challenge.get("realm", "")
        if scheme.lower() != "bearer" or not realm:
            return None
        if urllib.parse.urlsplit(realm).scheme != "https" and not repository.loopback:
            raise HostError(
                f"cannot log in for {what}: the registry names {realm} for it, which is not https"
            )
        query = {"scope": challenge.get("scope") or f"repository:{repository.path}:pull"}
        if service := challenge.get("service"):
            query["service"] = service
        joint = "&" if "?" in realm else "?"
        url = f"{realm}{joint}{urllib.parse.urlencode(query)}"
        answer = self._ask(repository, "GET", url, login.header if login else None, deadline)
        self._check(what, repository, answer, login)
        try:
            found = json.loads(answer.body)
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError):
            token = None
        return f"Bearer {token}" if isinstance(token, str) and token.isprintable() else None

    def _check(self, what: str, repository: Repository, reply: Answer, login: Login | None) -> None:
        """Raise what the status of a reply means."""
        if reply.status == 200:
            return
        if reply.status == 404:
            raise Unfetchable(
                f"cannot use {what}: the registry does not have it (404); check name, tag and digest"
            )
        if reply.status in (401, 403):
            place = self.credentials or "a credentials file"
            advice = (
                f"the login in {place} may not read it, or it does not exist"
                if login
                else f"it is private or does not exist; if private, log in: podman login --authfile {place} {repository.host}"
            )
            raise HostError(f"cannot use {what}: the registry does not allow it ({reply.status}): {advice}")
        if reply.status == 429:
            raise Unavailable(f"cannot ask for {what} now: the registry's rate limit is reached (429)")
        raise Unavailable(f"cannot ask for {what} now: the registry answered {reply.status}")

    def _ask(
        self, repository: Repository, method: str, url: str, authorization: str | None, deadline: float
    ) -> Answer:
        from reconciler.ground.download import ask

        headers = {"Accept": ", ".join(_MANIFESTS)}
        if authorization:
            headers["Authorization"] = authorization
        return ask(
            url,
            method=method,
            headers=headers,
            timeout=max(0.1, deadline - time.monotonic()),
            max_bytes=_BODY_LIMIT,
            proxy="" if repository.loopback else self._proxy,
        )


def _for_machine(entries: Any, architecture: str) -> str | None:
    """The digest of the first image in a list of images that is for this machine."""
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(platform := entry.get("platform"), dict):
            found = (platform.get("os"), platform.get("architecture"))
            if found == ("linux", architecture) and _DIGEST.fullmatch(str(entry.get("digest"))):
                return str(entry["digest"])
    return None


def _without_scheme(name: str) -> str:
    """`https://index.docker.io/v1/` is how docker writes its own registry down."""
    bare = name.removeprefix("https://").removeprefix("http://")
    bare = bare.removesuffix("/v1/").removesuffix("/v2/").rstrip("/")
    return "docker.io" if bare in ("index.docker.io", "docker.io") else bare


def _prefixes(repository: Repository) -> list[str]:
    parts = str(repository).split("/")
    return ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
