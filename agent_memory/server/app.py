"""The server as an ASGI application: its routes, what stands before each of them, and the sweeping beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import AgentMemoryError, UnavailableError
from ..executors import on_thread
from ..service import StateService
from ..storage.blobs import FileBlobs
from ..transports.local import LocalTransport
from .asgi import Disconnected, no_route, record_of, refuse
from .auth import Gate
from .blob_urls import BlobUrls
from .blobs import BlobEndpoint
from .log import RequestLog
from .openapi import document
from .probes import HEALTHZ, READYZ, Fixed, ReadyEndpoint, is_bare_probe
from .verbs import Shared, VerbEndpoint

if TYPE_CHECKING:
    from .metrics import Metrics

_SWEEP_SECONDS: Final = 60.0


class Settings(NamedTuple):
    """How a server presents itself; ``public_url`` is the address that clients see, by default the one they used."""

    gate: Gate
    log: RequestLog
    public_url: str | None = None
    metrics: Metrics | None = None


def create_app(service: StateService, settings: Settings) -> ASGIApp:
    """Return the server as an ASGI application; it sweeps the store once a minute while it runs."""
    urls = BlobUrls(service.catalog.secret("blob-urls"))
    transport, shared = LocalTransport(service), Shared()
    routes = [
        Route(
            f"/v1/namespaces/{{namespace}}/applications/{{application}}/{state}/{{verb}}",
            VerbEndpoint(transport, settings.gate, urls, shared, state, settings.public_url),
        )
        for state in ("app_state", "request_state")
    ]
    if isinstance(service.blobs, FileBlobs):
        routes.append(Route("/v1/blobs/{blob}/{chunk}", BlobEndpoint(service, service.blobs, urls)))
    routes += [
        Route(HEALTHZ, Fixed(HEALTHZ, b'{"status":"ok"}')),
        Route(READYZ, ReadyEndpoint(service)),
        Route("/openapi.json", Fixed("/openapi.json", document(blobs=isinstance(service.blobs, FileBlobs)))),
    ]
    router = Router(routes, redirect_slashes=False, default=_unknown, lifespan=lambda _: _sweeping(service, settings))
    return Front(router, settings)


class Front:
    """What stands before every route: who is let in, what becomes of errors, and the log."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._gate = settings.gate
        self._log = settings.log
        self._metrics = settings.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = record_of(scope)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            else:
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            if not is_bare_probe(scope):
                self._gate.admit(scope["headers"])
            if b"%" in scope["raw_path"]:
                # Nothing here needs an escape, and a slash behind one could reach another scope.
                raise no_route()
            await self._app(scope, receive, counted)
        except Disconnected:
            record.error = "disconnected"
        except AgentMemoryError as error:
            await self._refuse(error, scope, counted)
        except asyncio.CancelledError:
            # The server stops, and this took too long to be waited for.
            record.error = "stopped"
            await self._refuse(UnavailableError("the server is shutting down"), scope, counted)
            raise
        except Exception as error:
            # Its text may hold a value: the type must do.
            record.error = type(error).__name__
            await self._refuse(UnavailableError("the server failed", code="internal"), scope, counted)
        finally:
            self._log.write(record)
            if self._metrics is not None:
                self._metrics.finished(record)

    async def _refuse(self, error: AgentMemoryError, scope: Scope, send: Send) -> None:
        record = record_of(scope)
        if record.status == 0:
            await refuse(scope, send, error)
            return
        record.code = error.code
        # The answer has begun: only breaking it off tells the client that it is not whole.
        raise BrokenAnswerError from None


class BrokenAnswerError(Exception):
    """An answer could not be finished."""


async def _unknown(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise no_route()


@contextlib.asynccontextmanager
async def _sweeping(service: StateService, settings: Settings) -> AsyncGenerator[None]:
    task = asyncio.create_task(_sweep_forever(service, settings))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _sweep_forever(service: StateService, settings: Settings) -> None:
    metrics = settings.metrics
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            report = await on_thread(service.sweep)
        except Exception as error:
            # Of what is not ours the text may hold a value: the type must do.
            line: dict[str, str | int | float] = {"event": "sweep", "error": type(error).__name__}
            if isinstance(error, AgentMemoryError):
                line |= {"code": error.code, "message": str(error)}
            settings.log.event(line)
            if metrics is not None:
                metrics.sweep_failed()
        else:
            if metrics is not None:
                metrics.swept(report)
