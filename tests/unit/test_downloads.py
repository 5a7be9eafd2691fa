"""Downloads over real connections: what was asked for comes in the caller's time, or there is an error of its kind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import json
import logging
import random
import re
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trustme

from agent_memory import AgentMemory
from agent_memory.buffers import zeroed
from agent_memory.drivers import Flow, run, run_async
from agent_memory.errors import (
    AgentMemoryError,
    AuthenticationError,
    IntegrityError,
    PermissionDeniedError,
    ProtocolError,
    TimedOutError,
    UnavailableError,
)
from agent_memory.flows import Transfer, fetch
from agent_memory.messages import Blob, Chunk, Entry, Found, GetRange, PrepareRead
from agent_memory.transports import downloads
from agent_memory.transports.http import HttpTransport
from tests.support.api import wait_for
from tests.support.wire import (
    BUCKET,
    DATA,
    ENTRY,
    PLACE,
    S3_EXPIRED,
    SCOPE,
    Peer,
    Wire,
    black_hole,
    peer_wire,
    problem,
    times_out,
    trickling,
)

both = pytest.mark.parametrize("face", ["sync", "async"])


class Asked:
    """The heads of the requests that a peer was sent, and on how many connections."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.connections = 0


def raw(answer: httpx.Response) -> bytes:
    """Return an answer as it looks on the wire; the pieces of one without a length are sent in chunks."""
    lines = [f"HTTP/1.1 {answer.status_code} -", *(f"{name}: {value}" for name, value in answer.headers.items())]
    pieces = list(cast(Iterable[bytes], answer.stream))
    if "transfer-encoding" in answer.headers:
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""]]
    elif "content-length" not in answer.headers:
        lines.append("content-length: 0")
    return "\r\n".join([*lines, "", ""]).encode() + b"".join(pieces)


def partial_answer(content: bytes | Iterable[bytes], content_range: str) -> bytes:
    return raw(httpx.Response(206, content=content, headers={"content-range": content_range}))


def head_of(connection: socket.socket) -> str:
    """Read a request with its body and return its head; an empty one where the connection ended."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if end and len(body) >= (int(length[1]) if length else 0):
            return (head + end).decode()
        part = connection.recv(65_536)
        if not part:
            return ""
        data += part


def answering(
    *answers: bytes, asked: Asked | None = None, after: Callable[[socket.socket], object] = lambda _: None
) -> Callable[[socket.socket], None]:
    """Return what a peer does: answer the requests of a connection in turn, the last answer again and again."""
    asked = asked or Asked()

    def handle(connection: socket.socket) -> None:
        asked.connections += 1
        while head := head_of(connection):
            asked.heads.append(head)
            connection.sendall(answers[min(len(asked.heads), len(answers)) - 1])
            after(connection)

    return handle


def place(wire: Wire) -> str:
    return f"{wire.transport._root.partition('/v1/')[0]}/v1/blobs/b/0?signature=the-secret-signature"


def whole(wire: Wire, into: bytearray, **more: Any) -> GetRange:
    return GetRange(Chunk(place(wire), len(into)), 0, memoryview(into), **more)


def part(wire: Wire, into: bytearray) -> GetRange:
    """Ask for the third byte of ten and the ones behind it."""
    return GetRange(Chunk(place(wire), 10), 2, memoryview(into))


OK = raw(httpx.Response(200, content=DATA))


# -- what is asked for -----------------------------------------------------------------------------------------------


@both
def test_a_chunk_is_asked_for_without_the_token(face: str, caplog: pytest.LogCaptureFixture) -> None:
    asked, into = Asked(), bytearray(10)
    with caplog.at_level(logging.DEBUG), peer_wire(face, answering(OK, asked=asked)) as wire:
        wire.send(whole(wire, into))
        host = httpx.URL(place(wire)).netloc.decode()

    assert into == DATA
    line, *headers = asked.heads[0].splitlines()
    assert line == "GET /v1/blobs/b/0?signature=the-secret-signature HTTP/1.1"
    sent = dict(header.lower().split(": ") for header in headers if header)
    assert sent == {"host": host, "user-agent": "agent-memory", "accept-encoding": "identity"}
    assert "secret" not in caplog.text


@both
@pytest.mark.parametrize("total", ["10", "*"])
def test_a_part_of_a_chunk_is_asked_for_by_its_range(face: str, total: str) -> None:
    asked, into = Asked(), bytearray(3)
    answer = httpx.Response(206, content=DATA[2:5], headers={"content-range": f"bytes 2-4/{total}"})
    with peer_wire(face, answering(raw(answer), asked=asked)) as wire:
        wire.send(part(wire, into))

    assert into == b"234"
    assert "\r\nrange: bytes=2-4\r\n" in asked.heads[0].lower()


@both
@pytest.mark.parametrize(
    "uri",
    [PLACE, BUCKET, "http://127.0.0.1:9000/object", "http://[::1]:9000/x", "https://BUCKET.example:443/x"],
)
def test_chunks_lie_at_the_api_and_on_blob_hosts(face: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[tuple[str, int]] = []

    def resolve(host: str, port: int, **_: Any) -> Any:
        reached.append((host, port))
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    wire = Wire(face)
    wire.fails(GetRange(Chunk(uri, 10), 0, memoryview(bytearray(10))), UnavailableError)
    wire.transport.close()

    url = httpx.URL(uri)
    assert reached == [(url.host, url.port or {"http": 80, "https": 443}[url.scheme])]


# -- what comes instead ----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (raw(httpx.Response(200, content=DATA)), IntegrityError, "range_ignored"),
        (partial_answer(b"234", "bytes 3-5/10"), IntegrityError, "wrong_range"),
        (partial_answer(b"234", "bytes 2-4/11"), IntegrityError, "wrong_range"),
        (partial_answer(b"234", "nonsense"), IntegrityError, "wrong_range"),
        (raw(httpx.Response(206, content=b"234")), IntegrityError, "wrong_range"),
        (partial_answer(b"23", "bytes 2-4/10"), IntegrityError, "wrong_length"),
        (partial_answer(b"2345", "bytes 2-4/10"), IntegrityError, "wrong_length"),
        (partial_answer(iter([b"23"]), "bytes 2-4/10"), UnavailableError, "truncated"),
        (partial_answer(iter([b"2345"]), "bytes 2-4/10"), IntegrityError, "wrong_length"),
        (
            raw(
                httpx.Response(
                    206, content=iter([b"234"]), headers={"content-range": "bytes 2-4/10", "content-encoding": "gzip"}
                )
            ),
            ProtocolError,
            "protocol",
        ),
        (raw(httpx.Response(302, headers={"location": "http://127.0.0.1:8420/the-secret"})), ProtocolError, "redirect"),
        (raw(httpx.Response(403, text=S3_EXPIRED)), UnavailableError, "url_expired"),
        (
            raw(httpx.Response(403, text="Signature not valid in the specified time frame")),
            UnavailableError,
            "url_expired",
        ),
        (raw(problem(403, "url_expired")), UnavailableError, "url_expired"),
        (raw(problem(403, "url_invalid")), PermissionDeniedError, "url_invalid"),
        (raw(httpx.Response(403, text="no")), PermissionDeniedError, "permission_denied"),
        (raw(httpx.Response(401)), AuthenticationError, "unauthenticated"),
        (raw(problem(404, "chunk_missing")), IntegrityError, "chunk_missing"),
        (raw(httpx.Response(404, text="<Code>NoSuchKey</Code>")), IntegrityError, "chunk_missing"),
        (raw(httpx.Response(404, text="<Code>BlobNotFound</Code>")), IntegrityError, "chunk_missing"),
        (raw(httpx.Response(404, text="no")), ProtocolError, "protocol"),
        (raw(problem(416, "range_not_satisfiable")), IntegrityError, "range_not_satisfiable"),
        (raw(problem(500, "integrity")), IntegrityError, "integrity"),
        (raw(httpx.Response(500)), UnavailableError, "unavailable"),
        (raw(httpx.Response(503, text="<Code>SlowDown</Code>")), UnavailableError, "unavailable"),
    ],
)
def test_a_download_that_is_not_the_range_asked_for_is_an_error_of_its_kind(
    face: str, answer: bytes, kind: type[AgentMemoryError], code: str
) -> None:
    with peer_wire(face, answering(answer)) as wire:
        assert wire.fails(part(wire, bytearray(3)), kind).code == code


@both
def test_a_part_instead_of_the_whole_is_an_integrity_error(face: str) -> None:
    answer = httpx.Response(206, content=DATA, headers={"content-range": "bytes 0-9/10"})
    with peer_wire(face, answering(raw(answer))) as wire:
        wire.fails(whole(wire, bytearray(10)), IntegrityError)


@both
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "no_answer"),
        (b"SSH-2.0-OpenSSH\r\n", "no_answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234", "truncated"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01", "no_answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n01", "no_answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 1000, "no_answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"1" * 100_000, "no_answer"),
    ],
)
def test_an_answer_that_breaks_off_or_is_none_may_be_asked_for_again(face: str, sent: bytes, code: str) -> None:
    def handle(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_RDWR)

    with peer_wire(face, handle) as wire:
        assert wire.fails(whole(wire, bytearray(10)), UnavailableError).code == code


@both
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nX-Amz-Meta-Name: caf\xe9\r\n\r\n" + DATA,
    ],
    ids=["hints", "header"],
)
def test_hints_before_an_answer_and_headers_in_any_bytes_are_passed_over(face: str, answer: bytes) -> None:
    asked = Asked()
    with peer_wire(face, answering(answer, asked=asked)) as wire:
        for _ in range(2):
            into = bytearray(10)
            wire.send(whole(wire, into))
            assert into == DATA

    assert asked.connections == 1


@both
@pytest.mark.parametrize("size", [b"-1", b"-5"])
def test_a_chunk_of_less_than_nothing_is_none(face: str, size: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 403 -\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nno\r\n0\r\n\r\n")
        connection.shutdown(socket.SHUT_RDWR)

    with peer_wire(face, handle) as wire:
        wire.fails(whole(wire, bytearray(10)), UnavailableError)


@both
@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 503 -\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["body", "chunks", "header", "continue", "refusal"],
)
def test_a_download_that_trickles_ends_with_the_deadline(face: str, beginning: bytes, drop: bytes) -> None:
    with trickling(face, beginning, drop) as wire:
        times_out(wire, whole(wire, bytearray(100_000)))


@both
def test_a_store_that_says_nothing_is_waited_for_until_the_deadline(face: str) -> None:
    with peer_wire(face, lambda _: None) as wire:
        times_out(wire, whole(wire, bytearray(10)))


@both
def test_a_store_that_says_nothing_for_half_a_minute_is_asked_again_before_the_deadline(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_memory.transports.http._TRANSFER_SECONDS", 0.2)
    with peer_wire(face, lambda _: None) as wire:
        assert wire.fails(whole(wire, bytearray(10)), UnavailableError).code == "no_answer"


@both
def test_an_authority_that_nobody_trusts_is_named(face: str, tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)

    def handle(connection: socket.socket) -> None:
        tls.wrap_socket(connection, server_side=True)

    peer = Peer(handle)
    host = peer.url.removeprefix("http://")
    wire = Wire(face)
    wire.transport.close()
    wire.transport = HttpTransport("http://127.0.0.1:9", "acme", "shop", blob_hosts=[host])
    error = wire.fails(GetRange(Chunk(f"https://{host}/x", 10), 0, memoryview(bytearray(10))), UnavailableError)
    wire.transport.close()
    peer.close()

    assert error.code == "tls_failed"
    assert "certificate" in str(error)


def test_a_connection_for_whose_tls_no_time_is_left_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def late(*_: Any, **__: Any) -> Any:
        raise TimeoutError

    def handle(connection: socket.socket) -> None:
        if connection.recv(1) == b"":
            ended.set()

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", late)
    peer = Peer(handle)
    host = peer.url.removeprefix("http://")
    transport = HttpTransport("http://127.0.0.1:9", "acme", "shop", blob_hosts=[host])
    with pytest.raises(UnavailableError):
        # Of one that is only forgotten, Python warns.
        transport.send(GetRange(Chunk(f"https://{host}/x", 10), 0, memoryview(bytearray(10))), time.monotonic() + 5)
    assert ended.wait(5)
    transport.close()
    peer.close()


# -- connections -----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "answer", [OK, raw(httpx.Response(200, content=iter([DATA[:4], DATA[4:]])))], ids=["length", "chunks"]
)
def test_a_connection_is_used_again(face: str, answer: bytes) -> None:
    asked = Asked()
    with peer_wire(face, answering(answer, asked=asked)) as wire:
        for _ in range(3):
            into = bytearray(10)
            wire.send(whole(wire, into))
            assert into == DATA

    assert (len(asked.heads), asked.connections) == (3, 1)


@both
def test_a_kept_connection_has_nothing_of_the_time_of_an_earlier_call(face: str) -> None:
    asked = Asked()

    def handle(connection: socket.socket) -> None:
        asked.connections += 1
        for pause in (0, 0.6):
            head_of(connection)
            time.sleep(pause)
            connection.sendall(OK)

    with peer_wire(face, handle) as wire:
        wire.send(whole(wire, bytearray(10)), seconds=0.3)
        wire.send(whole(wire, bytearray(10)))

    assert asked.connections == 1


@both
@pytest.mark.parametrize(("status", "kind"), [(403, PermissionDeniedError), (503, UnavailableError)])
def test_a_connection_is_used_again_after_a_refusal(face: str, status: int, kind: type[AgentMemoryError]) -> None:
    asked = Asked()
    with peer_wire(face, answering(raw(httpx.Response(status, text="no " * 50_000)), OK, asked=asked)) as wire:
        wire.fails(whole(wire, bytearray(10)), kind)
        wire.send(whole(wire, bytearray(10)))

    assert (len(asked.heads), asked.connections) == (2, 1)


@both
@pytest.mark.parametrize("headers", [b"Connection: close\r\nContent-Length: 10\r\n", b"Connection: close\r\n", b""])
def test_an_answer_may_end_with_its_connection(face: str, headers: bytes) -> None:
    asked = Asked()

    def close(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    answer = b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + DATA
    with peer_wire(face, answering(answer, asked=asked, after=close)) as wire:
        for _ in range(2):
            into = bytearray(10)
            wire.send(whole(wire, into))
            assert into == DATA

    assert asked.connections == 2


@both
def test_a_connection_that_the_store_will_close_is_not_kept(face: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\n" + DATA
    with peer_wire(face, answering(answer)) as wire:
        wire.send(whole(wire, bytearray(10)))
        assert not wire.transport._downloads._idle


@both
def test_a_kept_connection_that_the_store_has_closed_is_not_used_again(face: str) -> None:
    asked, closed = Asked(), threading.Semaphore(0)

    def close(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RDWR)
        closed.release()

    with peer_wire(face, answering(OK, asked=asked, after=close)) as wire:
        for _ in range(3):
            wire.send(whole(wire, bytearray(10)))
            assert closed.acquire(timeout=5)

    assert asked.connections == 3


@both
def test_a_connection_on_which_more_came_than_was_asked_for_is_not_kept(face: str) -> None:
    with peer_wire(face, answering(raw(httpx.Response(200, content=DATA + b"more")))) as wire:
        wire.fails(whole(wire, bytearray(10)), IntegrityError)
        assert not wire.transport._downloads._idle


def test_connections_that_nobody_used_for_long_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "KEPT_SECONDS", 0.1)
    first, second = Peer(answering(OK)), Peer(answering(OK))
    transport = HttpTransport(first.url, "acme", "shop", blob_hosts=[second.url.removeprefix("http://")])
    for peer in (first, second):
        transport.send(GetRange(Chunk(f"{peer.url}/x", 10), 0, memoryview(bytearray(10))), time.monotonic() + 5)
        time.sleep(0.2)
        assert [one.port for one in transport._downloads._idle] == [int(peer.url.rpartition(":")[2])]
    transport.close()
    first.close()
    second.close()


def test_no_more_connections_are_kept_than_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "KEPT", 2)
    peers = [Peer(answering(OK)) for _ in range(4)]
    hosts = [peer.url.removeprefix("http://") for peer in peers]
    transport = HttpTransport("http://127.0.0.1:9", "acme", "shop", blob_hosts=hosts)
    for host in hosts:
        transport.send(GetRange(Chunk(f"http://{host}/x", 10), 0, memoryview(bytearray(10))), time.monotonic() + 5)
    assert [f"127.0.0.1:{one.port}" for one in transport._downloads._idle] == hosts[2:]
    transport.close()
    assert not transport._downloads._idle
    for peer in peers:
        peer.close()


@both
def test_who_waits_for_a_place_waits_until_the_deadline(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "CONNECTIONS", 1)
    with peer_wire(face, lambda _: None) as wire, ThreadPoolExecutor(1) as thread:
        other = thread.submit(wire.fails, whole(wire, bytearray(10)), TimedOutError, seconds=1)
        time.sleep(0.2)
        times_out(wire, whole(wire, bytearray(10)))
        other.result(5)


def test_closing_leaves_a_download_its_connection_and_keeps_none() -> None:
    release = threading.Event()

    def handle(connection: socket.socket) -> None:
        head_of(connection)
        release.wait(5)
        connection.sendall(OK)

    into = bytearray(10)
    with peer_wire("sync", handle) as wire, ThreadPoolExecutor(1) as thread:
        call = thread.submit(wire.send, whole(wire, into))
        wait_for(lambda: wire.transport._downloads._places._value < downloads.CONNECTIONS)
        wire.transport.close()
        release.set()
        call.result(5)
        assert into == DATA
        assert not wire.transport._downloads._idle
        wire.fails(whole(wire, into), UnavailableError)


# -- beside an event loop --------------------------------------------------------------------------------------------


def test_a_cancelled_download_is_broken_off_and_its_connection_not_kept() -> None:
    begun, ended = threading.Event(), threading.Event()

    def handle(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123")
        begun.set()
        if connection.recv(1) == b"":
            ended.set()

    async def cancelled(wire: Wire) -> None:
        call = asyncio.ensure_future(wire.transport.asend(whole(wire, bytearray(10)), time.monotonic() + 30))
        await asyncio.to_thread(begun.wait, 5)
        call.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - began < 1

    with peer_wire("async", handle) as wire:
        asyncio.run(cancelled(wire))
        assert ended.wait(5), "the thread still reads"
        pool = wire.transport._downloads
        wait_for(lambda: pool._places._value == downloads.CONNECTIONS)
        assert not pool._idle


def test_a_download_that_is_cancelled_before_it_is_connected_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, connecting, go_on = Asked(), threading.Event(), threading.Event()
    resolve = socket.getaddrinfo

    def slow(*arguments: Any, **options: Any) -> Any:
        connecting.set()
        go_on.wait(5)
        return resolve(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def cancelled(wire: Wire) -> None:
        call = asyncio.ensure_future(wire.transport.asend(whole(wire, bytearray(10)), time.monotonic() + 30))
        await asyncio.to_thread(connecting.wait, 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()

    with peer_wire("async", answering(OK, asked=asked)) as wire:
        asyncio.run(cancelled(wire))
        pool = wire.transport._downloads
        wait_for(lambda: pool._places._value == downloads.CONNECTIONS)
        assert not asked.heads
        assert not pool._idle


@contextlib.contextmanager
def mute() -> Iterator[str]:
    """Give the address of a server that takes connections and never says anything."""
    peer = Peer(lambda _: None)
    yield peer.url.removeprefix("http://")
    peer.close()


@pytest.mark.parametrize(
    ("scheme", "nowhere"), [("http", black_hole), ("https", black_hole), ("http", mute), ("https", mute)]
)
def test_downloads_from_nowhere_take_no_place_once_they_are_cancelled(
    scheme: str, nowhere: Callable[[], contextlib.AbstractContextManager[str]]
) -> None:
    with nowhere() as host:
        transport = HttpTransport("http://127.0.0.1:9", "acme", "shop", blob_hosts=[host])
        pool = transport._downloads

        async def cancelled() -> None:
            chunk = Chunk(f"{scheme}://{host}/x", 10)
            calls = [
                asyncio.ensure_future(
                    transport.asend(GetRange(chunk, 0, memoryview(bytearray(10))), time.monotonic() + 30)
                )
                for _ in range(20)
            ]
            while pool._places._value > downloads.CONNECTIONS - 20:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

        asyncio.run(cancelled())
        began = time.monotonic()
        wait_for(lambda: pool._places._value == downloads.CONNECTIONS)
        assert time.monotonic() - began < 1, "less than connecting may take"
        transport.close()


@both
def test_an_address_that_cannot_be_reached_gives_way_to_the_next(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def three(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        hosts = ("127.0.0.2", "127.0.0.1", "127.0.0.2") if host == "three.test" else (host,)
        return [found for one in hosts for found in resolve(one, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", three)
    with peer_wire(face, answering(OK)) as wire:
        port = wire.transport._origin.port
        wire.transport.close()
        wire.transport = HttpTransport(f"http://three.test:{port}", "acme", "shop")
        into = bytearray(10)
        wire.send(whole(wire, into))
        assert into == DATA


@both
def test_many_addresses_that_do_not_answer_are_given_up_at_the_deadline(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    with black_hole() as host, monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *arguments, **options: resolve(*arguments, **options) * 8)
        wire = Wire(face)
        wire.transport.close()
        wire.transport = HttpTransport("http://127.0.0.1:9", "acme", "shop", blob_hosts=[host])
        times_out(wire, GetRange(Chunk(f"http://{host}/x", 10), 0, memoryview(bytearray(10))), seconds=0.5)
        wire.transport.close()


@both
def test_that_there_are_no_files_left_is_said(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with peer_wire(face, answering(OK)) as wire:
        monkeypatch.setattr(downloads._Connection, "_reach", none_left)
        error = wire.fails(whole(wire, bytearray(10)), UnavailableError)
        assert "too many open files" in str(error)
        assert error.code == "overloaded"


@both
def test_a_name_that_nobody_knows_cannot_be_reached(face: str) -> None:
    wire = Wire(face)
    wire.transport.close()
    wire.transport = HttpTransport("http://127.0.0.1:9", "acme", "shop", blob_hosts=["unknown.invalid"])
    chunk = Chunk("https://unknown.invalid/x", 10)
    error = wire.fails(GetRange(chunk, 0, memoryview(bytearray(10))), UnavailableError)
    assert "cannot be reached" in str(error)
    wire.transport.close()


def test_an_event_loop_goes_on_while_much_arrives() -> None:
    size = 32 * 1024 * 1024
    answer = raw(httpx.Response(200, content=bytes(size)))

    async def beside(wire: Wire) -> None:
        call = asyncio.ensure_future(wire.transport.asend(whole(wire, bytearray(size)), time.monotonic() + 30))
        beats = 0
        while not call.done():
            await asyncio.sleep(0)
            beats += 1
        await call
        assert beats > 20

    with peer_wire("async", answering(answer)) as wire:
        asyncio.run(beside(wire))


# -- hashes ----------------------------------------------------------------------------------------------------------


def read_through(wire: Wire, data: bytes, chunk_size: int) -> bytes:
    got = run(read_flow(wire, data, chunk_size), wire.transport, time.monotonic() + 20)
    assert got is not None
    return got[0]


def read_flow(wire: Wire, data: bytes, chunk_size: int) -> Flow[tuple[bytes, Entry] | None]:
    """Return what fetches a value of one chunk in ranges, as ``get`` does."""
    sha256 = hashlib.sha256(data).hexdigest()
    entry = Entry("key", 1, "1-a", len(data), sha256, "application/octet-stream", None, None, None, 1, 1, None, None)
    found = Found(entry, None, Blob("b", (Chunk(place(wire), len(data)),)))
    return fetch(found, PrepareRead(SCOPE, "key"), Transfer(chunk_size, 4))


def serving(data: bytes, spoil: Callable[[int, bytes], tuple[bytes, int]]) -> Callable[[socket.socket], None]:
    """Return what a peer does: serve ranges; ``spoil`` changes each answer and says how much of it is sent."""
    count = iter(range(1_000_000))
    lock = threading.Lock()

    def handle(connection: socket.socket) -> None:
        def serve() -> None:
            with contextlib.suppress(OSError):
                while head := head_of(connection):
                    low, high = 0, len(data)
                    if "range: bytes=" in head.lower():
                        low, high = map(int, head.lower().partition("range: bytes=")[2].splitlines()[0].split("-"))
                        high += 1
                    with lock:
                        body, sent = spoil(next(count), data[low:high])
                    status = "206 -" if high - low < len(data) else "200 OK"
                    text = f"HTTP/1.1 {status}\r\nContent-Range: bytes {low}-{high - 1}/{len(data)}\r\n"
                    connection.sendall(f"{text}Content-Length: {high - low}\r\n\r\n".encode() + body[:sent])
                    if sent < len(body):
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        time.sleep(0.1)
                        connection.close()

        threading.Thread(target=serve, daemon=True).start()

    return handle


BIG = random.Random(1).randbytes(9 * 1024 * 1024)


@pytest.mark.parametrize("chunk_size", [1_000_000, 3_000_001, len(BIG)])
def test_parts_are_hashed_while_they_arrive(chunk_size: int) -> None:
    with peer_wire("sync", serving(BIG, lambda _, body: (body, len(body)))) as wire:
        assert read_through(wire, BIG, chunk_size) == BIG


def test_a_download_that_breaks_off_is_begun_anew() -> None:
    with peer_wire("sync", serving(BIG, lambda n, body: (body, len(body) - 100 if n < 3 else len(body)))) as wire:
        assert read_through(wire, BIG, 3_000_000) == BIG


def test_bytes_that_came_in_the_place_of_hashed_ones_are_hashed_themselves() -> None:
    def spoil(number: int, body: bytes) -> tuple[bytes, int]:
        # The first attempt is right, and hashed, as far as it goes; the second is not.
        return (body, len(body) - 100) if number == 0 else (b"\0" + body[1:], len(body))

    with peer_wire("sync", serving(BIG, spoil)) as wire, pytest.raises(IntegrityError):
        read_through(wire, BIG, len(BIG))


@both
@pytest.mark.parametrize(
    "answer",
    [
        raw(httpx.Response(200, content=bytes(5_000_000))),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n800000\r\n" + bytes(4_000_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + bytes(4_000_000),
    ],
    ids=["altered", "chunks", "length"],
)
def test_a_failure_that_somebody_keeps_keeps_no_memory_of_the_value(
    face: str, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[object]] = []

    def noted(size: int) -> Any:
        buffer = zeroed(size)
        made.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr("agent_memory.flows.zeroed", noted)

    def handle(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)

    gc.disable()
    try:
        with peer_wire("sync", handle) as wire:
            flow, deadline = read_flow(wire, bytes([1]) * 5_000_000, len(BIG)), time.monotonic() + 0.5
            if face == "sync":
                with pytest.raises(AgentMemoryError) as kept:
                    run(flow, wire.transport, deadline)
            else:
                with pytest.raises(AgentMemoryError) as kept:
                    asyncio.run(run_async(flow, wire.transport, deadline))
        assert len(made) == 1
        # The thread that failed may still be on its way out.
        wait_for(lambda: made[0]() is None)
        assert kept.value is not None
    finally:
        gc.enable()


def test_bytes_with_another_hash_are_never_returned() -> None:
    def api(peer: Peer) -> bytes:
        chunk = {"uri": f"{peer.url}/v1/blobs/b/0", "size": 10}
        body = json.dumps({"blob": {"id": "b", "chunks": [chunk]}, "entry": ENTRY})
        return raw(httpx.Response(200, content=body, headers={"content-type": "application/json"}))

    def handle(connection: socket.socket) -> None:
        head = head_of(connection)
        if head.startswith("POST"):
            connection.sendall(api(peer))
        else:
            connection.sendall(raw(httpx.Response(200, content=b"9876543210")))

    peer = Peer(handle)
    with AgentMemory(peer.url, application="shop", namespace="acme") as memory, pytest.raises(IntegrityError):
        memory.app_state.get("key", default="default")
    peer.close()
