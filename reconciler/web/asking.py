"""What is asked of a request, whatever it is for: its body, within bounds, and who sent it. Called by `app` and `fleetlock`."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

BODY_LIMIT = 1 << 20
"""Bytes of one request's body. How long it may take to come is `connection`'s."""

ALL_BODIES_LIMIT = 32 << 20
"""Bytes of all bodies that are being read: many clients together must not fill the memory either."""


class Bodies:
    """Reads requests' bodies. Used in the event loop only."""

    def __init__(self) -> None:
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The whole body. Raises `HTTPException`: 413 where it is too large, 503 where too much is being read already."""
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > BODY_LIMIT:
            raise _too_large()
        body = bytearray()
        try:
            async for part in request.stream():
                if self._held + len(part) > ALL_BODIES_LIMIT:
                    raise HTTPException(503, "too many bodies are being read: send it again")
                self._held += len(part)
                body += part
                if len(body) > BODY_LIMIT:
                    raise _too_large()
        except ClientDisconnect:
            raise HTTPException(400, "the body has not come to its end") from None
        finally:
            self._held -= len(body)
        return bytes(body)


def _too_large() -> HTTPException:
    return HTTPException(413, f"the body is larger than {BODY_LIMIT >> 20} MiB")


def client_of(request: Request) -> str:
    """Who is connected, for the log."""
    return request.client.host if request.client else "somebody"
