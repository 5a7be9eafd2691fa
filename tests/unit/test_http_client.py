"""What the HTTP transport makes of answers that are not the ones it asked for: an error each, never a default."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpcore
import httpx
import pytest
import respx

from agent_memory import AgentMemory, AsyncAgentMemory
from agent_memory.errors import (
    AgentMemoryError,
    AuthenticationError,
    ConflictError,
    IntegrityError,
    InvalidKeyError,
    InvalidRequestError,
    LimitExceededError,
    PermissionDeniedError,
    ProtocolError,
    TimedOutError,
    UnavailableError,
)
from agent_memory.messages import (
    Backup,
    Batch,
    Check,
    Chunk,
    CommitWrite,
    Delete,
    GetRange,
    List,
    ListParents,
    Message,
    PrepareRead,
    PrepareWrite,
    PutChunk,
    Scope,
    Search,
    SetTimes,
    Sweep,
)
from agent_memory.transports import async_pool, bounded, http
from agent_memory.transports.http import HttpTransport
from agent_memory.wire import encode_error
from agent_memory.wire.problems import PROBLEM_TYPE
from tests.support.wire import (
    BASE,
    BUCKET,
    DATA,
    ENTRY,
    INLINE,
    PLACE,
    READ,
    ROUTE,
    S3_EXPIRED,
    SCOPE,
    TOKEN,
    Wire,
    black_hole,
    check_silence,
    peer_wire,
    problem,
    times_out,
    trickling,
)


@pytest.fixture(params=["sync", "async"])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    wire = Wire(request.param)
    yield wire
    wire.transport.close()


@pytest.fixture
def routes() -> Iterator[respx.MockRouter]:
    with respx.mock(assert_all_called=False) as router:
        yield router


# -- answers of the API ----------------------------------------------------------------------------------------------


def test_an_inline_value_is_read(wire: Wire, routes: respx.MockRouter) -> None:
    routes.post(ROUTE).respond(json={"blob": INLINE, "entry": {**ENTRY, "later": 1}, "later": 1})

    found = wire.send(READ)

    assert found.data == DATA
    assert found.entry.created_at.isoformat() == "2026-01-02T03:04:05.678901+00:00"


def test_an_absent_key_is_none(wire: Wire, routes: respx.MockRouter) -> None:
    routes.post(ROUTE).respond(json={"blob": None, "entry": None})

    assert wire.send(READ) is None


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (problem(400, "invalid_key"), InvalidKeyError, "invalid_key"),
        (problem(400, "invalid_request"), InvalidRequestError, "invalid_request"),
        (problem(401, "unauthenticated"), AuthenticationError, "unauthenticated"),
        (problem(403, "permission_denied"), PermissionDeniedError, "permission_denied"),
        (problem(404, "unknown_route"), ProtocolError, "unknown_route"),
        (problem(405, "method_not_allowed"), ProtocolError, "method_not_allowed"),
        (problem(409, "write_id_reused"), ConflictError, "write_id_reused"),
        (problem(409, "version_gone"), ConflictError, "version_gone"),
        (problem(412, "condition_failed", entry=None, blob=None), ConflictError, "condition_failed"),
        (problem(413, "limit_exceeded"), LimitExceededError, "limit_exceeded"),
        (problem(415, "unsupported_media_type"), ProtocolError, "unsupported_media_type"),
        (problem(422, "malformed"), InvalidRequestError, "malformed"),
        (problem(429, "slow_down"), UnavailableError, "slow_down"),
        (problem(500, "integrity"), IntegrityError, "integrity"),
        (problem(500, "internal"), UnavailableError, "internal"),
        (problem(503, "disk_full"), UnavailableError, "disk_full"),
        (problem(503, "closed"), UnavailableError, "unavailable"),
        (problem(504, "timeout"), UnavailableError, "unavailable"),
        (httpx.Response(401), AuthenticationError, "unauthenticated"),
        (httpx.Response(403, text="no"), PermissionDeniedError, "permission_denied"),
        (httpx.Response(404, text="no"), ProtocolError, "protocol"),
        (httpx.Response(409), ProtocolError, "protocol"),
        (httpx.Response(412), ProtocolError, "protocol"),
        (httpx.Response(418), ProtocolError, "protocol"),
        (httpx.Response(429), UnavailableError, "unavailable"),
        (httpx.Response(500, text="the-secret-token"), UnavailableError, "unavailable"),
        (httpx.Response(502, html="<h1>the-secret-token</h1>"), UnavailableError, "unavailable"),
        (httpx.Response(503), UnavailableError, "unavailable"),
        (httpx.Response(201, json={"blob": None, "entry": None}), ProtocolError, "protocol"),
        (httpx.Response(204), ProtocolError, "protocol"),
        (httpx.Response(302, headers={"location": "http://elsewhere/the-secret"}), ProtocolError, "redirect"),
        (httpx.Response(307, headers={"location": ROUTE}), ProtocolError, "redirect"),
    ],
    ids=lambda value: str(value),
)
def test_a_refusal_is_an_error_of_its_kind(
    wire: Wire, routes: respx.MockRouter, answer: httpx.Response, kind: type[AgentMemoryError], code: str
) -> None:
    route = routes.post(ROUTE).mock(return_value=answer)

    assert wire.fails(READ, kind).code == code
    assert route.call_count == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200),
        httpx.Response(200, html="<h1>Welcome to the secret hotel</h1>"),
        httpx.Response(200, json={}),
        httpx.Response(200, json=None),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"blob": None}),
        httpx.Response(200, json={"entry": None}),
        httpx.Response(200, json={"blob": INLINE, "entry": None}),
        httpx.Response(200, json={"blob": None, "entry": ENTRY}),
        httpx.Response(200, json={"blob": INLINE, "entry": {**ENTRY, "key": "other"}}),
        httpx.Response(200, json={"blob": INLINE, "entry": {**ENTRY, "version": "1"}}),
        httpx.Response(200, json={"blob": INLINE, "entry": {**ENTRY, "created_at": "2026-01-02T03:04:05"}}),
        httpx.Response(200, json={"blob": {**INLINE, "chunks": [{**INLINE["chunks"][0], "size": 9}]}, "entry": ENTRY}),
        httpx.Response(200, json={"blob": {"id": "b", "chunks": [{"uri": "data:,x", "size": 1}]}, "entry": ENTRY}),
        httpx.Response(200, content=b'{"blob": null, "entry": null', headers={"content-type": "application/json"}),
        httpx.Response(200, content=b'{"blob": null, "entry": null}', headers={"content-type": "text/plain"}),
        httpx.Response(200, json={"blob": None, "entry": None}, headers={"content-encoding": "br"}),
    ],
    ids=lambda answer: repr(answer.content[:60]),
)
def test_an_answer_that_is_none_of_the_protocol_is_never_an_absence(
    wire: Wire, routes: respx.MockRouter, answer: httpx.Response
) -> None:
    routes.post(ROUTE).mock(return_value=answer)

    wire.fails(READ, ProtocolError)


def test_a_failed_condition_carries_what_the_server_found(wire: Wire, routes: respx.MockRouter) -> None:
    routes.post(f"{ROUTE.rpartition('/')[0]}/delete").mock(
        return_value=problem(412, "condition_failed", entry=ENTRY, blob=INLINE)
    )

    error = wire.fails(Delete(SCOPE, "key", "w", if_match="other"), ConflictError)

    assert error.found.entry.etag == "1-a"
    assert error.found.data == DATA


@pytest.mark.parametrize(
    ("message", "more"),
    [
        (Delete(SCOPE, "mine", "w"), {}),
        (Delete(SCOPE, "mine", "w"), {"key": "mine"}),
        (Delete(SCOPE, "mine", "w"), {"key": "key"}),
        (Batch(SCOPE, (Delete(SCOPE, "mine", "v"), Delete(SCOPE, "key", "w"))), {"key": "mine"}),
        (List(SCOPE, "k"), {}),
    ],
)
def test_a_failed_condition_of_another_key_is_a_protocol_error(
    wire: Wire, routes: respx.MockRouter, message: Message, more: dict[str, str]
) -> None:
    routes.post(url__startswith=ROUTE.rpartition("/")[0]).mock(
        return_value=problem(412, "condition_failed", entry=ENTRY, blob=INLINE, **more)
    )

    wire.fails(message, ProtocolError)


def test_a_failed_condition_may_carry_the_largest_inline_value(wire: Wire, routes: respx.MockRouter) -> None:
    data = bytes(65_536)
    chunk = {"uri": "data:;base64," + base64.b64encode(data).decode(), "size": len(data)}
    found = {"entry": {**ENTRY, "size": len(data)}, "blob": {"id": "b", "chunks": [chunk]}}
    routes.post(ROUTE).mock(return_value=problem(412, "condition_failed", **found))

    assert wire.fails(READ, ConflictError).found.data == data


@pytest.mark.parametrize(
    ("header", "seconds"), [("3", 3.0), ("0", None), ("900", 60.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None)]
)
def test_the_server_may_say_when_to_come_back(
    wire: Wire, routes: respx.MockRouter, header: str, seconds: float | None
) -> None:
    routes.post(ROUTE).respond(503, headers={"retry-after": header})

    assert wire.fails(READ, UnavailableError).retry_after == seconds


@pytest.mark.parametrize("detail", ["the-secret-token was wrong", "see https://x/?signature=1", "a\nb", "x" * 1000])
def test_the_server_cannot_put_a_secret_into_an_error(wire: Wire, routes: respx.MockRouter, detail: str) -> None:
    routes.post(ROUTE).mock(return_value=problem(401, "unauthenticated", detail=detail))

    assert detail not in str(wire.fails(READ, AuthenticationError))


@pytest.mark.parametrize("code", [TOKEN, f"x {TOKEN}", "a\nb", "\x1b[31m", "x" * 1000, "the_secret_token"])
def test_the_server_cannot_put_a_secret_into_a_code(routes: respx.MockRouter, code: str) -> None:
    routes.post(ROUTE).mock(return_value=problem(401, code, detail=""))
    transport = HttpTransport(BASE, "acme", "shop", token="the_secret_token" if "_" in code else TOKEN)

    with pytest.raises(AuthenticationError) as caught:
        transport.send(READ, time.monotonic() + 5)

    assert code not in str(caught.value)
    assert caught.value.code == "unauthenticated"


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("https://the-secret"), UnavailableError),
        (httpx.ConnectTimeout("the-secret"), UnavailableError),
        (httpx.ReadTimeout("the-secret"), UnavailableError),
        (httpx.PoolTimeout("the-secret"), UnavailableError),
        (httpx.ReadError("the-secret"), UnavailableError),
        (httpx.RemoteProtocolError("the-secret"), UnavailableError),
        (OSError("the-secret"), UnavailableError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_no_answer_is_unavailable(
    wire: Wire, routes: respx.MockRouter, failure: Exception, kind: type[AgentMemoryError]
) -> None:
    routes.post(ROUTE).mock(side_effect=failure)

    assert wire.fails(READ, kind).code == "no_answer"


def test_a_call_whose_time_is_over_is_not_sent(wire: Wire, routes: respx.MockRouter) -> None:
    route = routes.post(ROUTE).respond(json={"blob": None, "entry": None})

    wire.fails(READ, TimedOutError, seconds=-1) if wire.face == "sync" else None
    assert route.call_count == 0


def test_what_is_sent_is_a_small_request_with_the_token(wire: Wire, routes: respx.MockRouter) -> None:
    route = routes.post(ROUTE).respond(json={"blob": None, "entry": None})

    wire.send(READ)

    request = route.calls.last.request
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["accept-encoding"] == "identity"
    assert json.loads(request.content) == {"state_key": "key", "max_inline_size": 100}


def test_a_message_of_another_application_is_refused(wire: Wire) -> None:
    error = InvalidRequestError
    with pytest.raises(error):
        wire.transport.send(PrepareRead(Scope("acme", "other"), "key"), time.monotonic() + 5)


@pytest.mark.parametrize("message", [Sweep(), Check(), Backup("copy.db"), SetTimes(SCOPE, [])])
def test_looking_after_the_store_belongs_to_the_server(wire: Wire, message: Message) -> None:
    with pytest.raises(PermissionDeniedError, match="agent-memory sweep"):
        wire.transport.send(message, time.monotonic() + 5)


def test_text_that_is_no_unicode_is_refused_before_it_is_sent(wire: Wire) -> None:
    commit = CommitWrite(SCOPE, "key", "w", b"", None, provenance={"reason": "\ud800the-secret"})
    with pytest.raises(InvalidRequestError) as caught:
        wire.transport.send(commit, time.monotonic() + 5)
    check_silence(caught.value)


@pytest.mark.parametrize(
    ("message", "verb", "answer"),
    [
        (PrepareWrite(SCOPE, "key", 10), "prepare_write", {"blob": None}),
        (PrepareWrite(SCOPE, "key", 10), "prepare_write", {"blob": {"id": "b", "chunks": []}}),
        (PrepareWrite(SCOPE, "key", 10), "prepare_write", {"blob": {"id": "b", "chunks": [{"uri": PLACE, "size": 9}]}}),
        (CommitWrite(SCOPE, "key", "w", b"1", None), "commit_write", {"entry": None}),
        (CommitWrite(SCOPE, "key", "w", b"1", None), "commit_write", {}),
        (Delete(SCOPE, "key", "w"), "delete", {}),
        (Batch(SCOPE, (READ, READ)), "batch", {"results": [{"blob": None, "entry": None}]}),
        (List(SCOPE, "k"), "list", {"entries": []}),
        (List(SCOPE, "k"), "list", {"entries": [{**ENTRY, "key": "other"}], "next_cursor": None}),
        (List(SCOPE, "k", max_inline_size=10), "list", {"entries": [ENTRY], "next_cursor": None}),
        (List(SCOPE, "k", max_inline_size=10), "list", {"entries": [ENTRY], "next_cursor": None, "blobs": [None]}),
        (Search(SCOPE, "k"), "search", {"hits": [{"entry": {**ENTRY, "key": "other"}, "blob": INLINE}]}),
        (READ, "prepare_read", {"entry": {**ENTRY, "size": 2**50}, "blob": {"id": "b", "chunks": []}}),
        (READ, "prepare_read", {"entry": {**ENTRY, "created_at": "0001-01-01T00:00:00+23:59"}, "blob": INLINE}),
        (READ, "prepare_read", {"entry": {**ENTRY, "expires_at": "9999-12-31T23:59:59-23:59"}, "blob": INLINE}),
    ],
)
def test_half_an_answer_is_a_protocol_error(
    wire: Wire, routes: respx.MockRouter, message: Message, verb: str, answer: Any
) -> None:
    routes.post(f"{ROUTE.rpartition('/')[0]}/{verb}").respond(json=answer)

    wire.fails(message, ProtocolError)


def test_an_answer_that_is_longer_than_any_is_a_protocol_error(
    wire: Wire, routes: respx.MockRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_memory.transports.exchanges._LONGEST_REPLY", 10)
    routes.post(ROUTE).respond(json={"blob": None, "entry": None})

    wire.fails(READ, ProtocolError)


# -- chunks ----------------------------------------------------------------------------------------------------------


def test_one_blob_host_is_not_taken_for_those_of_its_letters() -> None:
    with pytest.raises(InvalidRequestError, match="list of hosts"):
        AgentMemory(BASE, application="shop", blob_hosts="bucket.example")


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "file://127.0.0.1/etc/passwd",
        "data:;base64,QQ==",
        "s3://bucket/key",
        "ftp://127.0.0.1:8420/x",
        "http://127.0.0.1:8421/v1/blobs/b/0",
        "https://127.0.0.1:8420/v1/blobs/b/0",
        "http://localhost:8420/v1/blobs/b/0",
        "http://bucket.example/object",
        "https://bucket.example:8443/object",
        "https://evil.example/object",
        "https://bucket.example.evil.example/object",
        "https://bucket.example@evil.example/object",
        "http://user:password@127.0.0.1:8420/x",
        "//127.0.0.1:8420/x",
        "/v1/blobs/b/0",
        "http://",
        "http://[::1",
        "http://xn--zz/x",
        "",
        "blob:b/0",
    ],
)
@pytest.mark.parametrize("kind", ["get", "put"])
def test_a_chunk_anywhere_else_is_refused_before_any_connection(wire: Wire, uri: str, kind: str) -> None:
    chunk = Chunk(uri, 10)
    message = PutChunk(chunk, memoryview(DATA)) if kind == "put" else GetRange(chunk, 0, memoryview(bytearray(10)))
    with respx.mock, pytest.raises(ProtocolError) as caught:
        wire.transport.send(message, time.monotonic() + 5)
    check_silence(caught.value)
    assert not uri or uri not in str(caught.value)


@pytest.mark.parametrize("status", [200, 201, 204])
def test_an_upload_gives_the_etag(wire: Wire, routes: respx.MockRouter, status: int) -> None:
    data = bytes(range(256)) * 2000
    route = routes.put(BUCKET).respond(status, headers={"etag": '"abc"'})

    assert wire.send(PutChunk(Chunk(BUCKET, len(data)), memoryview(data))) == '"abc"'
    request = route.calls.last.request
    assert request.content == data
    assert request.headers["content-length"] == str(len(data))
    assert "authorization" not in request.headers
    assert request.headers["x-ms-blob-type"] == "BlockBlob"


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (httpx.Response(200), ProtocolError, "protocol"),
        (httpx.Response(200, headers={"etag": ""}), ProtocolError, "protocol"),
        (httpx.Response(202, headers={"etag": "a"}), ProtocolError, "protocol"),
        (httpx.Response(200, text="<Error><Code>SlowDown</Code></Error>"), UnavailableError, "unavailable"),
        (httpx.Response(307, headers={"location": BUCKET}), ProtocolError, "redirect"),
        (httpx.Response(403, text=S3_EXPIRED), UnavailableError, "url_expired"),
        (httpx.Response(400, text="<Code>ExpiredToken</Code>"), UnavailableError, "url_expired"),
        (httpx.Response(400, text="<Code>RequestTimeout</Code>"), UnavailableError, "truncated"),
        (httpx.Response(400, text="<Code>IncompleteBody</Code>"), UnavailableError, "truncated"),
        (problem(409, "chunk_exists"), ConflictError, "chunk_exists"),
        (problem(410, "blob_gone"), ConflictError, "blob_gone"),
        (problem(400, "wrong_size"), InvalidRequestError, "wrong_size"),
        (httpx.Response(500), UnavailableError, "unavailable"),
    ],
    ids=lambda value: str(value),
)
def test_an_upload_that_is_not_taken_is_an_error_of_its_kind(
    wire: Wire, routes: respx.MockRouter, answer: httpx.Response, kind: type[AgentMemoryError], code: str
) -> None:
    routes.put(PLACE).mock(return_value=answer)

    assert wire.fails(PutChunk(Chunk(PLACE, 10), memoryview(DATA)), kind).code == code


# -- through the public API ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 409, 412, 413, 422])
def test_a_default_never_hides_a_refusal(routes: respx.MockRouter, status: int) -> None:
    routes.post(ROUTE).respond(status)

    with AgentMemory(BASE, application="shop", namespace="acme") as memory, pytest.raises(AgentMemoryError):
        memory.app_state.get("key", default="default")


def test_a_server_that_fails_for_a_while_is_asked_again(routes: respx.MockRouter) -> None:
    answer = httpx.Response(200, json={"blob": INLINE, "entry": ENTRY})
    route = routes.post(ROUTE).mock(side_effect=[httpx.Response(502), httpx.ReadError(""), answer])

    with AgentMemory(BASE, application="shop", namespace="acme") as memory:
        assert memory.app_state.get("key") == DATA
    assert route.call_count == 3


def test_what_a_call_waits_for_is_told_once(routes: respx.MockRouter, caplog: pytest.LogCaptureFixture) -> None:
    routes.post(ROUTE).mock(side_effect=httpx.ConnectError("refused at the-secret"))

    with (
        AgentMemory(BASE, application="shop", namespace="acme", timeout=4) as memory,
        pytest.raises(UnavailableError, match="cannot be reached"),
    ):
        memory.app_state.get("key")
    assert caplog.messages == [
        "the server at 127.0.0.1:8420 cannot be reached; trying again until the call's time is over"
    ]


def test_that_nobody_answers_is_told_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(http, "_SMALL_SECONDS", 0.8)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with AgentMemory(address, application="shop", timeout=3) as memory, pytest.raises(UnavailableError):
            memory.app_state.get("key")

    assert len(caplog.messages) == 1


def test_a_short_trouble_is_not_told(routes: respx.MockRouter, caplog: pytest.LogCaptureFixture) -> None:
    answer = httpx.Response(200, json={"blob": INLINE, "entry": ENTRY})
    routes.post(ROUTE).mock(side_effect=[httpx.ConnectError(""), httpx.ConnectError(""), answer])

    with AgentMemory(BASE, application="shop", namespace="acme") as memory:
        assert memory.app_state.get("key") == DATA
    assert caplog.messages == []


def test_a_pause_that_the_server_asked_for_is_not_told(
    routes: respx.MockRouter, caplog: pytest.LogCaptureFixture
) -> None:
    answer = httpx.Response(200, json={"blob": INLINE, "entry": ENTRY})
    routes.post(ROUTE).mock(side_effect=[httpx.Response(503, headers={"Retry-After": "1"}), answer])

    with AgentMemory(BASE, application="shop", namespace="acme") as memory:
        assert memory.app_state.get("key") == DATA
    assert caplog.messages == []


# -- real sockets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", ["sync", "async"])
def test_a_server_that_says_nothing_is_waited_for_until_the_deadline(face: str) -> None:
    with peer_wire(face, lambda _: None) as wire:
        times_out(wire, READ)


@pytest.mark.parametrize("face", ["sync", "async"])
def test_the_answer_to_a_long_request_is_waited_for_while_that_may_still_be_on_its_way(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_memory.transports.http._SMALL_SECONDS", 0.2)

    def slow(connection: socket.socket) -> None:
        time.sleep(0.6)
        body = json.dumps({"blob": None, "entry": None}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    with peer_wire(face, slow) as wire:
        assert wire.send(READ._replace(key="k" * 60_000)) is None
    with peer_wire(face, slow) as wire:
        wire.fails(READ, UnavailableError)


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize(
    "message", [Search(SCOPE, ""), ListParents(SCOPE, ""), Batch(SCOPE, (READ, Search(SCOPE, "")))]
)
def test_a_search_is_waited_for_until_the_server_says_that_it_takes_too_long(
    face: str, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_memory.transports.http._SMALL_SECONDS", 0.2)

    def slow(connection: socket.socket) -> None:
        time.sleep(0.6)
        status, body = encode_error(TimedOutError("the search took too long", code="search_timeout"))
        head = f"HTTP/1.1 {status} -\r\nContent-Type: {PROBLEM_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    with peer_wire(face, slow) as wire:
        assert wire.fails(message, TimedOutError).code == "search_timeout"


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_no_answer(face: str, sent: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_RDWR)

    with peer_wire(face, handle) as wire:
        assert wire.fails(READ, UnavailableError).code == "no_answer"


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "header", "continue"],
)
def test_an_answer_that_trickles_ends_with_the_deadline(face: str, beginning: bytes, drop: bytes) -> None:
    with trickling(face, beginning, drop) as wire:
        times_out(wire, READ)


@pytest.mark.parametrize("face", ["sync", "async"])
def test_an_answer_that_stops_late_ends_with_the_deadline(face: str) -> None:
    def handle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        time.sleep(1)
        connection.sendall(b"X-Long: a")

    with peer_wire(face, handle) as wire:
        times_out(wire, READ, seconds=1.2)


@pytest.mark.parametrize("face", ["sync", "async"])
def test_many_addresses_that_do_not_answer_are_given_up_at_the_deadline(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with black_hole() as host:
        resolve = socket.getaddrinfo

        def many(host: Any, *arguments: Any, **options: Any) -> list[Any]:
            return resolve("127.0.0.1", *arguments, **options) * 8 if host in names else resolve(host, *arguments)

        names = ("many.test", b"many.test")
        monkeypatch.setattr(socket, "getaddrinfo", many)
        transport = HttpTransport(f"http://many.test:{host.rpartition(':')[2]}", "acme", "shop")
        wire = Wire(face)
        wire.transport.close()
        wire.transport = transport
        times_out(wire, READ, seconds=0.5)
        transport.close()


@pytest.mark.parametrize("face", ["sync", "async"])
def test_an_upload_to_a_slow_reader_ends_with_the_deadline(face: str) -> None:
    stop = threading.Event()

    def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        while not stop.wait(0.02):
            connection.recv(65_536)

    data = memoryview(bytes(32 * 1024 * 1024))
    with peer_wire(face, handle) as wire:
        url = f"{wire.transport._root.partition('/v1/')[0]}/v1/blobs/b/0"
        try:
            times_out(wire, PutChunk(Chunk(url, len(data)), data))
        finally:
            stop.set()


NOTHING = b'{"blob": null, "entry": null}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(NOTHING)


@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "does not answer"])
def test_an_address_that_cannot_be_reached_gives_way_to_the_next(
    is_silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, connect = socket.getaddrinfo, httpcore.SyncBackend.connect_tcp

    def late(backend: Any, host: str, *arguments: Any) -> Any:
        if is_silent and host == "127.0.0.2":
            raise httpcore.ConnectTimeout
        return connect(backend, host, *arguments)

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", late)

    def three(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        hosts = ("127.0.0.2", "127.0.0.1", "127.0.0.2") if host == "three.test" else (host,)
        return [found for one in hosts for found in resolve(one, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", three)
    with peer_wire("sync", lambda connection: connection.sendall(HEAD + NOTHING)) as wire:
        port = wire.transport._origin.port
        wire.transport.close()
        wire.transport = HttpTransport(f"http://three.test:{port}", "acme", "shop")
        assert wire.send(READ) is None


def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    is_closed = threading.Semaphore(0)

    def handle(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(HEAD + NOTHING)
        connection.shutdown(socket.SHUT_RDWR)
        is_closed.release()

    with peer_wire("sync", handle) as wire:
        for _ in range(3):
            assert wire.send(READ) is None
            assert is_closed.acquire(timeout=5)


def test_a_deadline_holds_under_tls() -> None:
    plain: Any = SimpleNamespace(read=lambda *_: b"")
    plain.start_tls = lambda *_: plain
    encrypted = bounded._Stream(plain).start_tls(ssl.create_default_context())
    assert encrypted.read(1) == b""
    with bounded.until(time.monotonic() - 1), pytest.raises(httpcore.ReadTimeout):
        encrypted.read(1)


def test_a_name_that_nobody_knows_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "the-secret")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    wire = Wire("sync")
    assert "cannot be reached" in str(wire.fails(READ, UnavailableError))
    wire.transport.close()


def test_a_deadline_holds_on_its_thread_alone() -> None:
    late = threading.Event()

    def handle(connection: socket.socket) -> None:
        connection.sendall(HEAD)
        late.wait(5)
        connection.sendall(NOTHING)

    with peer_wire("sync", handle) as wire, ThreadPoolExecutor(1) as thread:
        call = thread.submit(wire.send, READ)
        with bounded.until(time.monotonic() - 1):
            late.set()
            assert call.result(5) is None


@pytest.mark.parametrize("host", ["127.0.0.1", f"{'a' * 64}.test"], ids=["port", "name"])
def test_nobody_listening_is_unavailable(host: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    wire = Wire("sync")
    wire.transport.close()
    wire.transport = HttpTransport(f"http://{host}:{port}", "acme", "shop")

    assert wire.fails(READ, UnavailableError).code == "no_answer"
    wire.transport.close()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "http://",
        "https://user:the-secret@host",
        "http://host?the-secret",
        "http://[::1",
        "http://xn--zz",
        "host:80",
        "http://host#x",
    ],
)
def test_an_address_that_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        HttpTransport(url, "acme", "shop")
    check_silence(caught.value)


@pytest.mark.parametrize("token", ["", "a b", "the-secret\r\nX: 1", "naïve", "a\x7f"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        HttpTransport(BASE, "acme", "shop", token=token)
    check_silence(caught.value)


def test_after_closing_every_call_is_refused(wire: Wire) -> None:
    wire.transport.close()

    with pytest.raises(UnavailableError) as caught:
        wire.transport.send(READ, time.monotonic() + 5)
    assert caught.value.code == "closed"


def test_the_connections_of_an_event_loop_end_with_it(server: Any) -> None:
    memory = AsyncAgentMemory(server.url, application="loops")
    transport: Any = memory._client.transport()
    pools: list[Any] = []

    async def write() -> None:
        await memory.app_state.set("key", 1)
        pools.extend(transport._async_pools.values())

    for _ in range(3):
        asyncio.run(write())
    assert [pool.transport._pool.connections for pool in pools] == [[], [], []]
    assert not transport._async_pools
    memory.sync.close()


# asyncio says of each socket that nobody closed it.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_connections_of_event_loops_that_were_closed_by_hand_are_not_kept(server: Any) -> None:
    memory = AsyncAgentMemory(server.url, application="loops")
    transport: Any = memory._client.transport()
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(memory.app_state.set("key", 1))
        loop.close()
    assert len(transport._async_pools) == 1
    memory.sync.close()
    gc.collect()


@pytest.mark.parametrize("is_busy", [False, True])
def test_closing_from_outside_closes_the_connections_of_another_event_loop(
    server: Any, is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = AsyncAgentMemory(server.url, application="closing")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(memory.app_state.set("key", 1), loop).result(10)
        transport = memory._client.transport()
        pool = transport._async_pools[loop].transport  # type: ignore[attr-defined]
        busy = threading.Event()
        if is_busy:
            monkeypatch.setattr(async_pool, "_CLOSE_SECONDS", 0.2)
            loop.call_soon_threadsafe(busy.wait, 10)
        began = time.monotonic()
        memory.sync.close()
        assert time.monotonic() - began < 5, "a busy loop closes them when it comes to it"
        busy.set()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result(10)
        assert pool._pool.connections == []
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def test_closing_on_the_event_loop_itself_does_not_hold_it_up(server: Any) -> None:
    async def close() -> None:
        memory = AsyncAgentMemory(server.url, application="closing")
        await memory.app_state.set("key", 1)
        [pool] = memory._client.transport()._async_pools.values()  # type: ignore[attr-defined]
        began = time.monotonic()
        memory.sync.close()
        assert time.monotonic() - began < async_pool._CLOSE_SECONDS / 2
        async with asyncio.timeout(10):
            while pool.transport._pool.connections:
                await asyncio.sleep(0)

    asyncio.run(close())


def test_closing_beside_a_busy_event_loop_does_not_hold_this_one_up(server: Any) -> None:
    memory = AsyncAgentMemory(server.url, application="closing")
    other = asyncio.new_event_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    async def close() -> None:
        busy = threading.Event()
        other.call_soon_threadsafe(busy.wait, 10)
        closing = asyncio.create_task(memory.close())
        # The other one goes on only if this one does.
        asyncio.get_running_loop().call_later(0.05, busy.set)
        began = time.monotonic()
        await closing
        assert time.monotonic() - began < async_pool._CLOSE_SECONDS / 2

    try:
        asyncio.run_coroutine_threadsafe(memory.app_state.set("key", 1), other).result(10)
        asyncio.run(close())
    finally:
        other.call_soon_threadsafe(other.stop)
        thread.join(5)
        other.close()


def test_a_close_that_is_cancelled_closes_all_connections(server: Any) -> None:
    async def close() -> None:
        memory = AsyncAgentMemory(server.url, application="closing")
        await memory.app_state.set("key", 1)
        assert memory.sync.app_state.get("key") == 1
        transport: Any = memory._client.transport()
        [pool] = transport._async_pools.values()
        connections = [transport._pool._pool.connections, pool.transport._pool.connections]
        assert [len(one) for one in connections] == [1, 1]
        closing = asyncio.create_task(memory.close())
        # While it waits for the first of them.
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert all(connection.is_closed() for one in connections for connection in one)

    asyncio.run(close())


@pytest.mark.parametrize("is_another_thread", [False, True], ids=["this thread", "a thread that ended"])
def test_closing_closes_the_connections_of_an_event_loop_that_stands_still(
    server: Any, is_another_thread: bool
) -> None:
    memory = AsyncAgentMemory(server.url, application="closing")
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:
        use: Any = thread.submit if is_another_thread else lambda work, call: work(call)
        use(loop.run_until_complete, memory.app_state.set("key", 1))
    [pool] = memory._client.transport()._async_pools.values()  # type: ignore[attr-defined]
    memory.sync.close()
    assert pool.transport._pool.connections == []
    loop.close()


@pytest.mark.parametrize("is_run_again", [True, False], ids=["run again", "ended"])
def test_closing_on_one_event_loop_closes_the_connections_of_another_that_stands_still(
    server: Any, is_run_again: bool
) -> None:
    gc.collect()
    with warnings.catch_warnings(record=True) as unclosed:
        warnings.simplefilter("always")
        with asyncio.Runner() as outer:
            memory = AsyncAgentMemory(server.url, application="closing")
            outer.run(memory.app_state.set("key", 1))
            asyncio.run(memory.close())
            # Nobody but the event loop knows of them any more.
            del memory
            gc.collect()
            if is_run_again:
                outer.run(asyncio.sleep(0.1))
        gc.collect()
    assert [str(one.message) for one in unclosed] == []


def test_closing_beside_calls_lets_them_end_and_leaves_no_connection_open(server: Any) -> None:
    async def close_beside_calls() -> list[Any]:
        memory = AsyncAgentMemory(server.url, application="closing")
        await memory.app_state.set("key", 1)
        [pool] = memory._client.transport()._async_pools.values()  # type: ignore[attr-defined]
        calls = [asyncio.create_task(memory.app_state.get("key")) for _ in range(10)]
        async with asyncio.timeout(10):
            while pool._calls < 10:
                await asyncio.sleep(0)
        await memory.close()
        replies = await asyncio.gather(*calls)
        assert pool.transport._pool.connections == [], "they are closed with the last call, not with the event loop"
        return replies

    gc.collect()
    with warnings.catch_warnings(record=True) as unclosed:
        warnings.simplefilter("always")
        assert asyncio.run(close_beside_calls()) == [1] * 10
        gc.collect()
    assert not unclosed


def test_closing_beside_an_event_loop_that_ends_is_no_error(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = AsyncAgentMemory(server.url, application="closing")
    used, is_sent = threading.Event(), threading.Event()
    send = asyncio.run_coroutine_threadsafe

    def sent(closing: Any, loop: asyncio.AbstractEventLoop) -> Any:
        future = send(closing, loop)
        is_sent.set()
        return future

    async def end_while_it_closes() -> None:
        await memory.app_state.set("key", 1)
        used.set()
        is_sent.wait(10)

    monkeypatch.setattr(async_pool.asyncio, "run_coroutine_threadsafe", sent)
    thread = threading.Thread(target=asyncio.run, args=(end_while_it_closes(),))
    thread.start()
    used.wait(10)
    memory.sync.close()
    thread.join(10)
    assert is_sent.is_set()


def test_closing_never_runs_the_event_loop_of_another_thread(server: Any) -> None:
    memory = AsyncAgentMemory(server.url, application="closing")
    loop = asyncio.new_event_loop()
    stands_still, is_closed = threading.Event(), threading.Event()
    seen: list[Any] = []

    def run() -> None:
        loop.run_until_complete(memory.app_state.set("key", 1))
        seen.extend(memory._client.transport()._async_pools.values())  # type: ignore[attr-defined]
        loop.call_soon(lambda: seen.append(threading.current_thread()))
        stands_still.set()
        is_closed.wait(10)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    stands_still.wait(10)
    memory.sync.close()
    is_closed.set()
    thread.join(10)
    [pool, where] = seen
    assert where is thread
    assert pool.transport._pool.connections == []
