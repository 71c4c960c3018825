"""The agent's HTTP as its options have it now: served anew where they change. Called by `agent`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from reconciler.agent.publisher import Publisher
from reconciler.cli.options import Options
from reconciler.errors import ReconcilerError
from reconciler.web.app import ServeOptions, serve
from reconciler.web.listener import Listen, Server
from reconciler.web.webhook import Followed

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:8470"


class Served:
    """What it cannot serve it says; the agent, and what was served before, go on."""

    def __init__(self, options: Options, publisher: Publisher, fetch_now: Callable[[], None]) -> None:
        self._publisher, self._fetch_now = publisher, fetch_now
        self._options = _serve_options(options)
        self._server: Server | None = self._serve(self._options)

    def take(self, options: Options) -> None:
        """Serve by these options from now on. An address cannot be taken twice: the old server ends first."""
        wanted = _serve_options(options)
        if wanted == self._options and self._server is not None:
            return
        self.close()
        try:
            self._server = self._serve(wanted)
            self._options = wanted
        except ReconcilerError as error:
            log.error("HTTP is served as before: %s", error)
            self._go_on()

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _go_on(self) -> None:
        try:
            self._server = self._serve(self._options)
        except ReconcilerError as error:
            log.error("HTTP is not served any more: %s", error)

    def _serve(self, options: ServeOptions) -> Server:
        return serve(options, self._publisher, self._fetch_now)


def _serve_options(options: Options) -> ServeOptions:
    return ServeOptions(
        Listen(options.listen or DEFAULT_LISTEN, options.tls_cert, options.tls_key),
        Followed(options.repo, options.ref, options.tag_pattern),
        options.token_file,
        options.webhook_secret_file,
    )
