"""The HTTP transport, sent to from a thread or from an event loop, and servers that do what a test says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import Any

import httpx
import pytest

from agent_memory.errors import AgentMemoryError, TimedOutError
from agent_memory.messages import Message, PrepareRead, Scope
from agent_memory.transports.http import HttpTransport

BASE = "http://127.0.0.1:8420"
TOKEN = "the-secret-token"
SCOPE = Scope("acme", "shop")
READ = PrepareRead(SCOPE, "key", max_inline_size=100)
ROUTE = f"{BASE}/v1/namespaces/acme/applications/shop/app_state/prepare_read"
PLACE = f"{BASE}/v1/blobs/b/0?signature=the-secret-signature"
BUCKET = "https://bucket.example/object?X-Amz-Signature=the-secret-signature"
DATA = b"0123456789"
ENTRY = {
    "key": "key", "version": 1, "etag": "1-a", "size": 10, "sha256": hashlib.sha256(DATA).hexdigest(),
    "content_type": "application/octet-stream", "created_at": "2026-01-02T03:04:05.678901Z",
    "updated_at": "2026-01-02T03:04:05.678901Z",
}  # fmt: skip
INLINE = {"id": "b", "chunks": [{"uri": "data:;base64," + base64.b64encode(DATA).decode(), "size": 10, "etag": None}]}
S3_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


class Wire:
    """The transport, sent to from a thread or from an event loop."""

    def __init__(self, face: str) -> None:
        self.face = face
        self.transport = HttpTransport(
            BASE, "acme", "shop", token=TOKEN, blob_hosts=["Bucket.example", "127.0.0.1:9000", "[::1]:9000"]
        )

    def send(self, message: Message, seconds: float = 5) -> Any:
        deadline = time.monotonic() + seconds
        if self.face == "sync":
            return self.transport.send(message, deadline)

        async def run() -> Any:
            try:
                return await self.transport.asend(message, deadline)
            finally:
                pool = self.transport._async_pools.pop(asyncio.get_running_loop(), None)
                if pool is not None:
                    await pool.transport.aclose()

        return asyncio.run(run())

    def fails(self, message: Message, kind: type[AgentMemoryError], seconds: float = 5) -> Any:
        with pytest.raises(AgentMemoryError) as caught:
            self.send(message, seconds)
        assert type(caught.value) is kind
        check_silence(caught.value)
        return caught.value


def check_silence(error: BaseException) -> None:
    """Assert that nothing of an error, or of what led to it, holds a secret or another library's exception."""
    shown = "".join(traceback.format_exception(error)).replace("  ", "")
    told = [repr(error), str(error), repr(error.args)]
    cause: BaseException | None = error
    while cause is not None:
        assert not type(cause).__module__.startswith(("httpx", "httpcore", "h11", "ssl"))
        told += [repr(cause), str(cause)]
        cause = cause.__cause__ or cause.__context__
    assert "secret" not in "".join(told)
    assert "httpx." not in shown


def problem(status: int, code: str, **more: Any) -> httpx.Response:
    body = {"type": "about:blank", "status": status, "code": code, "detail": "what is wrong", **more}
    return httpx.Response(status, content=json.dumps(body), headers={"content-type": "application/problem+json"})


class Peer:
    """A server that does with each connection what a function says."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._handle = handle
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            try:
                self._handle(connection)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()
        self._thread.join(5)


@contextlib.contextmanager
def peer_wire(face: str, handle: Callable[[socket.socket], object]) -> Generator[Wire]:
    """Give a wire to a peer, which ends with the block."""
    peer, wire = Peer(handle), Wire(face)
    wire.transport.close()
    wire.transport = HttpTransport(peer.url, "acme", "shop", token=TOKEN)
    try:
        yield wire
    finally:
        wire.transport.close()
        peer.close()


@contextlib.contextmanager
def trickling(face: str, beginning: bytes, drop: bytes) -> Generator[Wire]:
    """Give a wire to a peer that answers with a beginning, and then with a drop every 20 ms while the block lasts."""
    stop = threading.Event()

    def handle(connection: socket.socket) -> None:
        connection.sendall(beginning)
        while not stop.wait(0.02):
            connection.sendall(drop)

    with peer_wire(face, handle) as wire:
        # Also where a client would wait for ever.
        last = threading.Timer(4, stop.set)
        last.start()
        try:
            yield wire
        finally:
            last.cancel()
            stop.set()


def times_out(wire: Wire, message: Any, seconds: float = 0.3) -> None:
    """Check that a call ends at its deadline, neither before nor long after."""
    started = time.monotonic()
    wire.fails(message, TimedOutError, seconds=seconds)
    assert seconds - 0.05 < time.monotonic() - started < 2


@contextlib.contextmanager
def black_hole() -> Generator[str]:
    """Give an address of which connections are neither taken nor refused."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        for _ in range(4):  # more than fit: the next to come waits
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"
