"""The routes: scope and verb from the path, a message from the body, the service's reply as the answer."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import anyio
import anyio.to_thread
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import AgentMemoryError, ProtocolError, UnavailableError
from ..keys import check_scope_name
from ..messages import Batch, Blob, Chunk, CommitWrite, Found, Hit, List, ListParents, Page, PrepareWrite, Search
from ..messages import Message as StateMessage
from ..service import StateService
from ..storage.blobs import URL_SECONDS, FileBlobs, chunk_name
from ..storage.object_blobs import ObjectBlobs
from ..transports.local import LocalTransport
from ..wire import BODY_LIMIT, VERBS, decode_request, encode_reply, parts_of
from .asgi import (
    KEPT,
    Disconnected,
    MethodNotAllowedError,
    Pace,
    answer,
    header,
    read_body,
    record_of,
    refuse,
    wait_until_gone,
)
from .auth import Gate, LoopbackGate, host_of
from .blob_urls import BlobUrls
from .blobs import BlobEndpoint
from .log import RequestLog
from .memory import ANSWER_BYTES, BODY_BYTES, SMALL_BODY, answer_bytes, body_bytes, reply_bytes
from .openapi import document
from .shares import Shares

if TYPE_CHECKING:
    from .metrics import Metrics

# Of which one tenant, alone, gets 128: a client of ours opens up to 100 connections.
_REQUESTS: Final = 192
# They compute, much of it in Python: more of them at once only hold up each other and all else.
_SEARCHES: Final = 4
# Each reads all that was uploaded, on one of the threads for whatever is neither a read of a key nor a quick write.
_COMMITS: Final = 16
# What a body is while it is parsed, in text of up to four bytes a letter, is none of the room for bodies.
_PARSERS: Final = 2
_CALL_SECONDS: Final = 10.0
_SWEEP_SECONDS: Final = 60.0
_PING_SECONDS: Final = 2.0
# JSON of this size takes about a millisecond, for which nothing else would be served.
_LARGE: Final = 256 * 1024
_SMALL_BATCH: Final = 4
_SMALL_PAGE: Final = 100
_JSON: Final = b"application/json"


class Settings(NamedTuple):
    """How a server presents itself; ``public_url`` is the address that clients see, by default the one they used."""

    gate: Gate
    log: RequestLog
    public_url: str | None = None
    metrics: Metrics | None = None


def create_app(service: StateService, settings: Settings | None = None) -> ASGIApp:
    """Return the server as an ASGI application; it sweeps the store once a minute while it runs.

    Without settings it answers whatever runs on this machine, without tokens.
    """
    settings = settings or Settings(LoopbackGate(), RequestLog(sys.stderr))
    urls = BlobUrls(service.catalog.secret("blob-urls"))
    transport = LocalTransport(service)
    shared = _Shared(
        Shares(_REQUESTS),
        Shares(_SEARCHES),
        Shares(_COMMITS),
        Shares(BODY_BYTES),
        Shares(ANSWER_BYTES),
        Shares(_PARSERS),
    )
    routes = [
        Route(
            f"/v1/namespaces/{{namespace}}/applications/{{application}}/{state}/{{verb}}",
            VerbEndpoint(transport, settings, urls, state, shared),
        )
        for state in ("app_state", "request_state")
    ]
    if isinstance(service.blobs, FileBlobs):
        routes.append(Route("/v1/blobs/{blob}/{chunk}", BlobEndpoint(service, service.blobs, urls)))
    routes += [
        Route("/healthz", Fixed("/healthz", b'{"status":"ok"}')),
        Route("/readyz", ReadyEndpoint(service)),
        Route("/openapi.json", Fixed("/openapi.json", document())),
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
            self._gate.admit(scope["headers"])
            if b"%" in scope["raw_path"]:
                # Nothing here needs an escape, and a slash behind one could reach another scope.
                raise _no_route()
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


class _Shared(NamedTuple):
    """What all tenants share, in requests, searches and commits of uploads at once and in bytes."""

    requests: Shares
    searches: Shares
    commits: Shares
    bodies: Shares
    answers: Shares
    parsers: Shares


class VerbEndpoint:
    """One message a request, one reply an answer."""

    def __init__(
        self,
        transport: LocalTransport,
        settings: Settings,
        urls: BlobUrls,
        state: str,
        shared: _Shared,
    ) -> None:
        self._transport = transport
        self._blobs = transport.service.blobs
        # Signing for an object store may have to fetch credentials first.
        self._remote = isinstance(self._blobs, ObjectBlobs)
        self._gate = settings.gate
        self._public_url = settings.public_url
        self._urls = urls
        self._state = state
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        path: dict[str, str] = scope["path_params"]
        namespace, application, verb = path["namespace"], path["application"], path["verb"]
        record.namespace, record.application = namespace, application
        if verb not in VERBS:
            raise _no_route()
        record.route = f"/v1/namespaces/{{namespace}}/applications/{{application}}/{self._state}/{verb}"
        if scope["method"] != "POST":
            raise MethodNotAllowedError("the verbs take POST", "POST")
        record.token = self._gate.authorize(scope["headers"], namespace, application)
        check_scope_name(namespace, "a namespace")
        check_scope_name(application, "an application")
        _check_json(scope)
        with self._shared.requests.place(namespace, "requests"):
            async with contextlib.AsyncExitStack() as large:
                message = await self._message(scope, receive, large)
                expected = answer_bytes(message)
                change = await self._make_room(large, namespace, expected) if expected else None
                reply = await self._reply(receive, namespace, message)
                made = reply_bytes(reply)
                if change is not None:
                    change(made)
                elif made:
                    change = await self._make_room(large, namespace, made, seconds=0)
                body = await self._body(scope, message, reply)
                if len(body) > KEPT:
                    # With its places still taken: who is slow to fetch it keeps it in memory, and nothing else.
                    del message, reply
                    if change is not None:
                        change(len(body))
                    return await answer(Pace().of(send), 200, body, _JSON)
        # The clock of each step is a fifth of a small request.
        await answer(send, 200, body, _JSON)

    async def _message(self, scope: Scope, receive: Receive, large: contextlib.AsyncExitStack) -> StateMessage:
        path: dict[str, str] = scope["path_params"]
        namespace, application, verb = path["namespace"], path["application"], path["verb"]

        change: Callable[[int], None] | None = None

        async def make_room(count: int) -> None:
            nonlocal change
            turn = self._shared.bodies.turn(namespace, "large bodies", _CALL_SECONDS, count)
            change = await large.enter_async_context(turn)

        raw = await read_body(scope, receive, BODY_LIMIT, SMALL_BODY, lambda size: make_room(body_bytes(size)))
        kept = body_bytes(len(raw), parts_of(raw))
        if change is not None:
            change(kept)
        elif kept:
            await make_room(kept)
        else:
            return decode_request(verb, namespace, application, self._state, raw)
        async with self._shared.parsers.turn(namespace, "large bodies", _CALL_SECONDS):
            return await anyio.to_thread.run_sync(decode_request, verb, namespace, application, self._state, raw)

    def _make_room(
        self, large: contextlib.AsyncExitStack, namespace: str, count: int, seconds: float = _CALL_SECONDS
    ) -> Awaitable[Callable[[int], None]]:
        return large.enter_async_context(self._shared.answers.turn(namespace, "large answers", seconds, count))

    async def _body(self, scope: Scope, message: StateMessage, reply: Any) -> bytes:
        return await _heavy(
            _is_large(message, reply) or (self._remote and _names_chunks(reply)),
            lambda: encode_reply(message, reply, self._address(scope, message)),
        )

    async def _reply(self, receive: Receive, namespace: str, message: StateMessage) -> Any:
        deadline = time.monotonic() + _CALL_SECONDS
        if _searches(message):
            turn = self._shared.searches.turn(namespace, "searches", _CALL_SECONDS)
        elif _commits_uploads(message):
            turn = self._shared.commits.turn(namespace, "commits of uploads", _CALL_SECONDS)
        else:
            return await self._transport.asend(message, deadline)
        leaving = asyncio.ensure_future(wait_until_gone(receive))
        try:
            async with turn:
                if leaving.done():
                    # Who has left may have asked again, and would wait for what nobody waits for.
                    raise Disconnected
                return await self._transport.asend(message, deadline)
        finally:
            leaving.cancel()

    def _address(self, scope: Scope, message: StateMessage) -> Callable[[Chunk], str]:
        method = "PUT" if isinstance(message, PrepareWrite) else "GET"
        if isinstance(self._blobs, ObjectBlobs):
            store = self._blobs
            return lambda chunk: store.url(method, *chunk_name(chunk), URL_SECONDS)
        base = self._public_url or f"{scope['scheme']}://{host_of(scope['headers'])}"
        return lambda chunk: self._urls.sign(base, method, chunk)


class ReadyEndpoint:
    """Says whether requests can be served: 503 while the catalog or the blob store does not answer, or takes no writes.

    A server that could only read is not ready: another may be able to write, and what it reads from a standby is old.
    """

    def __init__(self, service: StateService) -> None:
        self._service = service
        self._pinging: asyncio.Task[UnavailableError | None] | None = None

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        record_of(scope).route = "/readyz"
        _check_get(scope)
        # Probes share one look at the store: while it hangs, each would leave a thread behind.
        if self._pinging is None or self._pinging.done():
            self._pinging = asyncio.ensure_future(anyio.to_thread.run_sync(self._ping, abandon_on_cancel=True))
        pinging = self._pinging
        await asyncio.wait([pinging], timeout=_PING_SECONDS)
        failure = pinging.result() if pinging.done() else UnavailableError("the store does not answer")
        if failure is not None:
            await refuse(scope, send, failure, status=503)
            return
        await answer(send, 200, b'{"status":"ready"}', _JSON)

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
        await answer(send, 200, self._body, _JSON)


async def _heavy(large: bool, work: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(work) if large else work()


def _searches(message: StateMessage) -> bool:
    """Say whether a message may look at all that a tenant has."""
    if isinstance(message, Batch):
        return any(map(_searches, message.operations))
    return isinstance(message, Search | ListParents)


def _commits_uploads(message: StateMessage) -> bool:
    if isinstance(message, Batch):
        return any(map(_commits_uploads, message.operations))
    return isinstance(message, CommitWrite) and message.blob is not None


def _is_large(message: Any, reply: Any) -> bool:
    if isinstance(message, List):
        return len(reply.found) > _SMALL_PAGE or sum(_inline_size(found) for found in reply.found) > _LARGE
    if isinstance(message, Search):
        return len(reply) > _SMALL_PAGE or sum(_inline_size(hit.found) for hit in reply) > _LARGE
    if isinstance(message, Batch):
        return len(message.operations) > _SMALL_BATCH or any(map(_is_large, message.operations, reply))
    return False


def _names_chunks(reply: Any) -> bool:
    match reply:
        case Blob():
            return True
        case Found():
            return reply.blob is not None
        case Page():
            return any(found.blob is not None for found in reply.found)
        case Hit():
            return reply.found.blob is not None
        case list():
            return any(_names_chunks(one) for one in cast(list[Any], reply))
        case _:
            return False


def _inline_size(reply: Any) -> int:
    return len(reply.data) if isinstance(reply, Found) and reply.data is not None else 0


async def _unknown(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise _no_route()


def _no_route() -> ProtocolError:
    return ProtocolError(
        "there is nothing at this path; the address that clients take ends before /v1", code="unknown_route"
    )


def _check_json(scope: Scope) -> None:
    kind, _, parameters = (header(scope["headers"], b"content-type") or "").lower().partition(";")
    if kind.strip() != "application/json" or parameters.strip() not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise ProtocolError("the verbs take application/json in UTF-8", code="unsupported_media_type")
    if header(scope["headers"], b"content-encoding") not in (None, "identity"):
        raise ProtocolError("the verbs take bodies that are not compressed", code="unsupported_media_type")


def _check_get(scope: Scope) -> None:
    if scope["method"] not in ("GET", "HEAD"):
        raise MethodNotAllowedError("this path takes GET", "GET", "HEAD")


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
            report = await anyio.to_thread.run_sync(service.sweep)
        except Exception as error:
            # Of what is not ours the text may hold a value: the type must do.
            line: dict[str, str | int | float] = {"event": "sweep", "error": type(error).__name__}
            if isinstance(error, AgentMemoryError):
                line["code"] = error.code
            settings.log.event(line)
            if metrics is not None:
                metrics.sweep_failed()
        else:
            if metrics is not None:
                metrics.swept(report)
