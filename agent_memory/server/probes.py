"""What watches a server, or describes it, without a token: is it alive, is it ready, what does it take."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import Receive, Scope, Send

from ..errors import AgentMemoryError, UnavailableError
from ..executors import on_thread
from ..service import StateService
from .asgi import JSON, MethodNotAllowedError, answer, record_of, refuse

HEALTHZ: Final = "/healthz"
READYZ: Final = "/readyz"
_PING_SECONDS: Final = 2.0


def is_bare_probe(scope: Scope) -> bool:
    """Say whether a probe names no Host, as HAProxy's in HTTP/1.0 do by default; no browser sends such a request."""
    if scope["path"] not in (HEALTHZ, READYZ) or scope["http_version"] != "1.0":
        return False
    return not any(name in (b"host", b"origin") for name, _ in scope["headers"])


class ReadyEndpoint:
    """Says whether requests can be served: 503 while the catalog or the blob store does not answer, or takes no writes.

    A server that could only read is not ready: another may be able to write, and what it reads from a standby is old.
    """

    def __init__(self, service: StateService) -> None:
        self._service = service
        self._pinging: asyncio.Task[UnavailableError | None] | None = None

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        record_of(scope).route = READYZ
        _check_get(scope)
        # Probes share one look at the store: while it hangs, each would leave a thread behind.
        if self._pinging is None or self._pinging.done():
            self._pinging = asyncio.ensure_future(on_thread(self._ping, abandon_on_cancel=True))
        pinging = self._pinging
        await asyncio.wait([pinging], timeout=_PING_SECONDS)
        failure = pinging.result() if pinging.done() else UnavailableError("the store does not answer")
        if failure is not None:
            await refuse(scope, send, failure, status=503)
            return
        await answer(send, 200, b'{"status":"ready"}', JSON)

    def _ping(self) -> UnavailableError | None:
        try:
            self._service.catalog.ping()
            self._service.blobs.ping()
        except AgentMemoryError as error:
            return UnavailableError(str(error), code=error.code)
        return None


class Fixed:
    """Always the same JSON."""

    def __init__(self, route: str, body: bytes) -> None:
        self._route = route
        self._body = body

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        record_of(scope).route = self._route
        _check_get(scope)
        await answer(send, 200, self._body, JSON)


def _check_get(scope: Scope) -> None:
    if scope["method"] not in ("GET", "HEAD"):
        raise MethodNotAllowedError("this path takes GET", "GET", "HEAD")
