"""The verbs: a message from a request's body, the service's reply as the answer, and what tenants share of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

from starlette.types import Receive, Scope, Send

from ..errors import ProtocolError
from ..executors import on_thread
from ..keys import check_scope_name
from ..messages import Batch, Blob, Chunk, CommitWrite, Found, Hit, List, Page, PrepareWrite, Search, searches
from ..messages import Message as StateMessage
from ..storage.blobs import URL_SECONDS, chunk_name
from ..storage.object_blobs import ObjectBlobs
from ..transports.local import LocalTransport
from ..wire import BODY_LIMIT, VERBS, decode_request, encode_reply, parts_of
from .asgi import (
    JSON,
    KEPT,
    Disconnected,
    MethodNotAllowedError,
    Pace,
    answer,
    header,
    no_route,
    read_body,
    record_of,
    wait_until_gone,
)
from .auth import Gate, host_of
from .blob_urls import BlobUrls
from .memory import ANSWER_BYTES, BODY_BYTES, SMALL_BODY, answer_bytes, body_bytes, reply_bytes
from .shares import Shares

# Of which one tenant, alone, gets 128: a client of ours opens up to 100 connections.
_REQUESTS: Final = 192
# They compute, much of it in Python: more of them at once only hold up each other and all else.
_SEARCHES: Final = 4
# Each reads all that was uploaded, on one of the threads for whatever is neither a read of a key nor a quick write.
_COMMITS: Final = 16
# What a body is while it is parsed, in text of up to four bytes a letter, is none of the room for bodies.
_PARSERS: Final = 2
_CALL_SECONDS: Final = 10.0
# JSON of this size takes about a millisecond, for which nothing else would be served.
_LARGE: Final = 256 * 1024
_SMALL_BATCH: Final = 4
# Signing a URL takes 4 µs, and a value may have 10,000 chunks.
_FEW_CHUNKS: Final = 100
_SMALL_PAGE: Final = 100


class Shared:
    """What all tenants share: how many requests, searches, commits of uploads and parsers at once, and bytes."""

    def __init__(self) -> None:
        self.requests = Shares(_REQUESTS)
        self.searches = Shares(_SEARCHES)
        self.commits = Shares(_COMMITS)
        self.parsers = Shares(_PARSERS)
        self.bodies = Shares(BODY_BYTES)
        self.answers = Shares(ANSWER_BYTES)


class VerbEndpoint:
    """One message a request, one reply an answer."""

    def __init__(
        self,
        transport: LocalTransport,
        gate: Gate,
        urls: BlobUrls,
        shared: Shared,
        state: str,
        public_url: str | None = None,
    ) -> None:
        self._transport = transport
        self._blobs = transport.service.blobs
        # Signing for an object store may have to fetch credentials first.
        self._remote = isinstance(self._blobs, ObjectBlobs)
        self._gate = gate
        self._public_url = public_url
        self._urls = urls
        self._state = state
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        path: dict[str, str] = scope["path_params"]
        namespace, application, verb = path["namespace"], path["application"], path["verb"]
        record.namespace, record.application = namespace, application
        if verb not in VERBS:
            raise no_route()
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
                heavy = _is_large(message, reply)
                made = await _on_thread_if(heavy, lambda: reply_bytes(reply))
                if change is not None:
                    change(made)
                elif made:
                    change = await self._make_room(large, namespace, made, seconds=0)
                body = await _on_thread_if(
                    heavy or _chunks(reply) > (0 if self._remote else _FEW_CHUNKS),
                    lambda: encode_reply(message, reply, self._address(scope, message)),
                )
                if len(body) > KEPT:
                    # With its places still taken: who is slow to fetch it keeps it in memory, and nothing else.
                    del message, reply
                    if change is not None:
                        change(len(body))
                    return await answer(Pace().of(send), 200, body, JSON)
        # The clock of each step is a fifth of a small request.
        await answer(send, 200, body, JSON)

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
            return await on_thread(partial(decode_request, verb, namespace, application, self._state, raw))

    def _make_room(
        self, large: contextlib.AsyncExitStack, namespace: str, count: int, seconds: float = _CALL_SECONDS
    ) -> Awaitable[Callable[[int], None]]:
        return large.enter_async_context(self._shared.answers.turn(namespace, "large answers", seconds, count))

    async def _reply(self, receive: Receive, namespace: str, message: StateMessage) -> Any:
        deadline = time.monotonic() + _CALL_SECONDS
        if searches(message):
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


async def _on_thread_if(heavy: bool, work: Callable[[], Any]) -> Any:
    return await on_thread(work) if heavy else work()


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


def _chunks(reply: Any) -> int:
    """Return how many chunks a reply names, each by a URL of its own."""
    match reply:
        case Blob():
            return len(reply.chunks)
        case Found():
            return 0 if reply.blob is None else len(reply.blob.chunks)
        case Page():
            return sum(map(_chunks, reply.found))
        case Hit():
            return _chunks(reply.found)
        case list():
            return sum(map(_chunks, cast(list[Any], reply)))
        case _:
            return 0


def _inline_size(found: Found) -> int:
    return len(found.data or b"")


def _check_json(scope: Scope) -> None:
    kind, _, parameters = (header(scope["headers"], b"content-type") or "").lower().partition(";")
    if kind.strip() != "application/json" or parameters.strip() not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise ProtocolError("the verbs take application/json in UTF-8", code="unsupported_media_type")
    if header(scope["headers"], b"content-encoding") not in (None, "identity"):
        raise ProtocolError("the verbs take bodies that are not compressed", code="unsupported_media_type")
