"""FleetLock over the reboot lock, for hosts that run no agent. `serve_fleetlock` is called by `cli/fleetlock`, a process of its own.

The protocol has no authentication, so a client gets little: only the lock groups that were named, only slots that
FleetLock took, and with `client_ca` only the id that its certificate names. Both calls may be made again at will.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.core.semaphore import Holder
from reconciler.errors import ReconcilerError, Unavailable, UsageError
from reconciler.store.client import Client
from reconciler.store.keys import Keys
from reconciler.store.lock import RebootLock
from reconciler.store.lock_view import Taken
from reconciler.web.asking import Bodies, client_of
from reconciler.web.listener import Listen, Server, bind

log = logging.getLogger(__name__)

HEADER = "fleet-lock-protocol"
FULL = "failed_lock_semaphore_full"
_GROUP = re.compile(r"[a-zA-Z0-9.-]{1,128}")
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:@-]{0,127}")
_PATIENCE = 8.0
"""Seconds that a request waits for those before it, and then for etcd."""


@dataclass(frozen=True, slots=True)
class FleetLockOptions:
    """Where to serve, and which lock groups: `default` too is served only where it is named."""

    listen: Listen
    groups: tuple[str, ...]


class Refusal(Exception):
    """A request that is not granted: the status, and FleetLock's `kind` and `value`."""

    def __init__(self, status: int, kind: str, value: str) -> None:
        super().__init__(value)
        self.status, self.kind, self.value = status, kind, value


def serve_fleetlock(options: FleetLockOptions, client: Client, keys: Keys) -> Server:
    """Serve in a thread of this process. Raises `UsageError` for an address, a file or a group that is wrong."""
    if not options.groups:
        raise UsageError("cannot serve FleetLock: name the lock groups that it may use, with --lock-groups")
    for group in options.groups:
        if not _GROUP.fullmatch(group):
            raise UsageError(
                f"cannot serve lock group {group!r} by FleetLock: its groups are letters, digits, dots and hyphens"
            )
    server = bind(options.listen)
    if not server.only_local and options.listen.client_ca is None:
        log.warning(
            "%s is not loopback and no --client-ca is given: whoever reaches it may hold the slots of %s",
            options.listen.address,
            ", ".join(options.groups),
        )
    slots = {group: Slots(RebootLock(client, keys, group, _PATIENCE)) for group in options.groups}
    server.start(application(slots, named=options.listen.client_ca is not None))
    return server


def application(slots: Mapping[str, Slots], *, named: bool) -> Starlette:
    """FleetLock's two calls. With `named`, a client's certificate has to name its id."""
    calls = _Calls(slots, named)
    app = Starlette(
        routes=[
            Route("/v1/pre-reboot", calls.pre_reboot, methods=["POST"]),
            Route("/v1/steady-state", calls.steady_state, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _no_call, Exception: _failed},
    )
    app.router.redirect_slashes = False
    return app


class Slots:
    """One lock group's slots, as far as FleetLock may change them. For any number of threads: one at a time."""

    def __init__(self, lock: RebootLock) -> None:
        self._lock = lock
        self._mutex = threading.Lock()

    def take(self, id: str, client: str) -> None:
        """Take a slot for `id`; it is fine if it has one. Raises `Refusal`."""
        holder = Holder(id, "fleetlock", start_time=int(time.time()), reason=f"FleetLock, from {client}")
        with self._turn():
            answer = self._lock.take(holder)
        if isinstance(answer, Taken):
            if not answer.again:
                log.info("%s takes a slot of lock group %s, from %s", id, self._lock.group, client)
            return
        if answer.waits:
            raise Refusal(409, FULL, answer.reason)
        log.warning("%s asks for a slot that is not FleetLock's, from %s: %s", id, client, answer.reason)
        raise Refusal(409, "failed_lock_other_holder", answer.reason)

    def give_back(self, id: str, client: str) -> None:
        """Give back the slot that FleetLock took for `id`; it is fine if it took none. Another's is left alone."""
        with self._turn():
            held = self._lock.holder_of(id)
            if held is None:
                return
            if held.owner != (id, "fleetlock", None):
                log.warning(
                    "%s reports a steady state, from %s; its slot of lock group %s stays, it is the %s's",
                    id, client, self._lock.group, held.source,
                )  # fmt: skip
                return
            if self._lock.release(held):
                log.info("%s gives its slot of lock group %s back, from %s", id, self._lock.group, client)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """This process's clients take turns, and do not fight over the document in etcd."""
        if not self._mutex.acquire(timeout=_PATIENCE):
            raise Refusal(503, "failed_lock_unavailable", "too many ask at the same time: ask again")
        try:
            yield
        finally:
            self._mutex.release()


class _Calls:
    def __init__(self, slots: Mapping[str, Slots], named: bool) -> None:
        self._slots, self._named, self._bodies = slots, named, Bodies()

    async def pre_reboot(self, request: Request) -> Response:
        return await self._answer(request, Slots.take)

    async def steady_state(self, request: Request) -> Response:
        return await self._answer(request, Slots.give_back)

    async def _answer(self, request: Request, call: Callable[[Slots, str, str], None]) -> Response:
        body = await self._bodies.read(request)
        try:
            slots, id = self._asked(request, body)
            await run_in_threadpool(call, slots, id, client_of(request))
        except Refusal as refusal:
            return _refusal(refusal)
        except Unavailable as error:
            return _refusal(Refusal(503, "failed_lock_unavailable", str(error)))
        except ReconcilerError as error:
            log.error("%s", error)
            return _refusal(Refusal(500, "failed_lock", str(error)))
        return Response(status_code=200)

    def _asked(self, request: Request, body: bytes) -> tuple[Slots, str]:
        """The slots and the id that a request is about. Raises `Refusal`."""
        if request.headers.get(HEADER) != "true":
            raise Refusal(400, "bad_request", f"the header {HEADER}: true is missing")
        id, group = _identity(body)
        names = request.state.client_names
        if self._named and id not in names:
            log.warning("%s is asked for by a client whose certificate names %s", id, ", ".join(names))
            raise Refusal(400, "bad_identity", "the id is not the one that the client's certificate names")
        if group not in self._slots:
            raise Refusal(400, "bad_group", "this lock group is not served here")
        return self._slots[group], id


def _identity(body: bytes) -> tuple[str, str]:
    """Id and group in `{"client_params": {"id", "group"}}`. Raises `Refusal`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "bad_request", "the body is not JSON") from None
    params = document.get("client_params") if isinstance(document, dict) else None
    if not isinstance(params, dict):
        raise Refusal(400, "bad_request", "the body has no client_params")
    id, group = params.get("id"), params.get("group")
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise Refusal(400, "bad_identity", "client_params.id is no identity: letters, digits and ._:@- are")
    if not isinstance(group, str) or not _GROUP.fullmatch(group):
        raise Refusal(400, "bad_group", "client_params.group is no group: letters, digits, . and - are")
    return id, group


_KINDS = {404: "no_such_call", 405: "method_not_allowed"}


async def _no_call(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    kind = _KINDS.get(error.status_code, "bad_request")
    return _refusal(Refusal(error.status_code, kind, str(error.detail).lower()))


async def _failed(request: Request, error: Exception) -> Response:
    return _refusal(Refusal(500, "failed_unexpectedly", "an unexpected error: the log says more"))


def _refusal(refusal: Refusal) -> Response:
    return JSONResponse({"kind": refusal.kind, "value": refusal.value}, status_code=refusal.status)
