"""The server's TLS certificate, read again when its file changes. Called by `listener`, for each connection that comes."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from reconciler.errors import UsageError
from reconciler.web.files import Stamp, stamp

log = logging.getLogger(__name__)


class Certificates:
    """Certificate and key, and with `client_ca` who may connect at all. Used by one thread."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._stamps = self._look()
        try:
            self._context = self._load()
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot serve HTTPS with {self._named()}: {_words(error)}") from None

    def context(self) -> ssl.SSLContext:
        """What a new connection is secured with. Files that do not fit together yet leave the last good ones in use."""
        found = self._look()
        if found != self._stamps:
            self._stamps = found
            try:
                self._context = self._load()
                log.info("the certificate has changed and was read again")
            except (OSError, ValueError) as error:
                log.error("cannot use %s: %s; the last good ones stay", self._named(), _words(error))
        return self._context

    def _named(self) -> str:
        files = [f"--tls-cert {self._cert}", f"--tls-key {self._key}"]
        return ", ".join([*files, f"--client-ca {self._client_ca}"] if self._client_ca else files)

    def _look(self) -> tuple[Stamp, ...]:
        return tuple(stamp(path) for path in (self._cert, self._key, self._client_ca) if path)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # With a password at hand, a wrong one, an encrypted key is an error and not a question on the terminal.
        context.load_cert_chain(self._cert, self._key, password="-")  # noqa: S106 (none is meant)
        context.set_alpn_protocols(["http/1.1"])
        if self._client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._client_ca)
        return context


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{error.reason or error} (do certificate and key belong together?)"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
