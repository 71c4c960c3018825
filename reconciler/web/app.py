"""The agent's HTTP interface. `serve` is called by `cli/compose`; what it shows is what the loops have published.

The handlers are plain functions, run by a pool of threads, but for those of the probes: they look at one value, and no
crowd of slow requests may hold them up. Nothing here changes anything: a webhook rings the bell of the loop that fetches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.core.published import Published
from reconciler.errors import Refused
from reconciler.web import openapi
from reconciler.web.asking import Bodies, client_of
from reconciler.web.files import Secret
from reconciler.web.listener import Listen, Server, bind
from reconciler.web.metrics import CONTENT_TYPE, Metrics
from reconciler.web.status import NotYet, Plans, missed, status_body, why_not_alive, why_not_ready
from reconciler.web.webhook import Deliveries, Delivery, Followed, is_genuine, read_delivery, why_ignored

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where and how to serve, and what a webhook may be about."""

    listen: Listen
    followed: Followed
    token_file: Path | None = None
    webhook_secret_file: Path | None = None


def serve(options: ServeOptions, published: Callable[[], Published], fetch_now: Callable[[], None]) -> Server:
    """Serve in a thread of this process. `fetch_now` is called for a push, once for a burst, and must not block.

    Raises `UsageError` for an address that cannot be taken, and for files that are not there.
    """
    token = Secret(options.token_file, "--token-file") if options.token_file else None
    secret = (
        Secret(options.webhook_secret_file, "--webhook-secret-file") if options.webhook_secret_file else None
    )
    server = bind(options.listen)
    if token is None and not server.only_local:
        log.warning(
            "%s is not loopback and no --token-file is given: only livez, readyz and hooks are served to anybody",
            options.listen.address,
        )
    service = _Service(published, Deliveries(fetch_now), secret, options.followed)
    server.start(application(service, token, guarded=token is not None or not server.only_local))
    return server


def application(service: _Service, token: Secret | None, *, guarded: bool) -> Starlette:
    """The routes. With `guarded`, all but livez, readyz and hooks want `token`; without one nobody is let in."""

    def shielded(endpoint: Endpoint) -> Endpoint:
        async def ask(request: Request) -> Response:
            if not _has_token(request, token):
                return _error(
                    401, "this wants the bearer token of --token-file", {"www-authenticate": "Bearer"}
                )
            return await endpoint(request)

        return ask if guarded else endpoint

    app = Starlette(
        routes=[
            Route("/livez", service.livez, methods=["GET"]),
            Route("/readyz", service.readyz, methods=["GET"]),
            Route("/hooks/git", service.hook, methods=["POST"]),
            Route("/metrics", shielded(service.metrics), methods=["GET"]),
            Route("/api/v1/status", shielded(service.status), methods=["GET"]),
            Route("/api/v1/plan", shielded(service.plan), methods=["GET"]),
            Route("/openapi.json", shielded(service.openapi), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    app.router.redirect_slashes = False
    return app


class _Service:
    """The handlers, over what is published."""

    def __init__(
        self,
        published: Callable[[], Published],
        deliveries: Deliveries,
        secret: Secret | None,
        followed: Followed,
    ) -> None:
        self._published, self._deliveries = published, deliveries
        self._secret, self._followed = secret, followed
        self._plans, self._bodies = Plans(), Bodies()
        self._metrics = Metrics(published)

    async def livez(self, request: Request) -> Response:
        return _health(why_not_alive(self._published(), time.monotonic()))

    async def readyz(self, request: Request) -> Response:
        published = self._published()
        return _health(why_not_ready(published, time.monotonic()), missed(published, vital=False))

    async def metrics(self, request: Request) -> Response:
        return Response(await run_in_threadpool(self._metrics.text), headers={"content-type": CONTENT_TYPE})

    async def status(self, request: Request) -> Response:
        return await _document(lambda: status_body(self._published()))

    async def plan(self, request: Request) -> Response:
        return await _document(lambda: self._plans.body(self._published()))

    async def openapi(self, request: Request) -> Response:
        return await _document(openapi.body)

    async def hook(self, request: Request) -> Response:
        if self._secret is None:
            return _error(404, "webhooks are off: no --webhook-secret-file is given")
        try:
            body = await self._bodies.read(request)
        except HTTPException:
            self._metrics.delivered("malformed")
            raise
        headers = dict(request.headers)
        if not await run_in_threadpool(is_genuine, self._secret.value(), headers, body):
            log.warning("a webhook with a wrong signature or token came from %s", client_of(request))
            self._metrics.delivered("forged")
            return _error(401, "the signature or token is wrong")
        try:
            delivery = await run_in_threadpool(read_delivery, headers, body)
        except ValueError as error:
            self._metrics.delivered("malformed")
            return _error(400, f"cannot read the body: {error}")
        return self._answer(delivery)

    def _answer(self, delivery: Delivery) -> Response:
        reason = why_ignored(delivery, self._followed)
        self._metrics.delivered("ignored" if reason else "accepted")
        if not reason:
            self._deliveries.note()
        return JSONResponse({"fetch": not reason, "reason": reason}, status_code=202)


# --- parts ---------------------------------------------------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    """A path or a method that is not there, in the form of all errors."""
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.status_code, str(error.detail).lower(), error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """A fault of ours: the log has it, the client does not."""
    return _error(500, "an unexpected error: the log says more")


def _health(reasons: tuple[str, ...], missing: tuple[str, ...] = ()) -> Response:
    """503 for `reasons` alone: no probe takes an agent out of service because git or a registry is away."""
    body = {"ok": not reasons, "reasons": [*reasons, *missing]}
    return JSONResponse(body, status_code=503 if reasons else 200)


async def _document(make: Callable[[], bytes]) -> Response:
    try:
        return Response(await run_in_threadpool(make), media_type="application/json")
    except NotYet as missing:
        return _error(503, str(missing))
    except Refused as error:
        return _error(409, str(error))


def _has_token(request: Request, token: Secret | None) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return token is not None and scheme.lower() == "bearer" and token.matches(given.strip().encode("latin-1"))


def _error(status: int, reason: str, headers: object = None) -> Response:
    return JSONResponse(
        {"error": reason}, status_code=status, headers=headers if isinstance(headers, dict) else None
    )
