"""Chunks at the server: signed URLs in every wrong form, uploads and ranges."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import select
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from agent_memory.messages import MAX_VALUE_BYTES, Chunk, PrepareWrite, Scope
from agent_memory.opening import open_service
from agent_memory.server import asgi
from agent_memory.server.app import BrokenAnswerError, Settings, create_app
from agent_memory.server.auth import LoopbackGate
from agent_memory.server.blob_urls import BlobUrls
from agent_memory.server.log import RequestLog
from agent_memory.server.run import _listen
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from tests.support.api import Api, part_files, problem, wait_for
from tests.support.server import ServerProcess

SIZE = 20_000_000


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture
def api(http: httpx.Client, server: ServerProcess) -> Api:
    return Api(http, server.url, "acme", f"t{uuid.uuid4().hex}")


@pytest.fixture
def stored(api: Api) -> tuple[str, str, bytes]:
    """A committed value of 300,000 bytes: the URL it was put to, the URL to get it from, and the bytes."""
    data = bytes(range(250)) * 1200
    blob = api.place("large", len(data))
    put = api.http.put(blob["chunks"][0]["uri"], content=data)
    chunk = {**blob["chunks"][0], "etag": put.headers["etag"]}
    committed = api.post("commit_write", {"state_key": "large", "blob": {**blob, "chunks": [chunk]}})
    assert committed.status_code == 200
    return blob["chunks"][0]["uri"], api.get("large")["blob"]["chunks"][0]["uri"], data


def test_every_altered_byte_of_a_signed_query_is_refused(stored: tuple[str, str, bytes], http: httpx.Client) -> None:
    base, _, query = stored[1].partition("?")
    for position, character in enumerate(query):
        # Another digit in the place of one leaves the form as it is: a later end, another size.
        others = [str(int(character) % 9 + 1)] if character.isdigit() else []
        for other in ("x" if character != "x" else "y", *others):
            altered = query[:position] + other + query[position + 1 :]
            response = http.get(f"{base}?{altered}")
            assert problem(response) == (403, "url_invalid"), altered


def test_every_cut_of_a_signed_query_is_refused(stored: tuple[str, str, bytes], http: httpx.Client) -> None:
    base, _, query = stored[1].partition("?")
    for length in range(0, len(query), 7):
        assert problem(http.get(f"{base}?{query[:length]}")) == (403, "url_invalid")


@pytest.mark.parametrize(
    "alter",
    [
        lambda query: query + "&x=1",
        lambda query: query + "&" + query,
        lambda query: query + "&size=300000",
        lambda query: "&".join(reversed(query.split("&"))),
        lambda query: query.replace("size=3", "size=03"),
        lambda query: query.replace("size=3", "size=%33"),
        lambda query: query.replace("size=3", "size=+3"),
        lambda query: query.upper(),
        lambda query: query + "&",
        lambda query: query.replace("&", ";"),
    ],
)
def test_a_query_in_another_form_is_refused(
    stored: tuple[str, str, bytes], http: httpx.Client, alter: Callable[[str], str]
) -> None:
    base, _, query = stored[1].partition("?")

    assert problem(http.get(f"{base}?{alter(query)}")) == (403, "url_invalid")


def test_a_url_opens_no_other_chunk_and_no_other_blob(stored: tuple[str, str, bytes], api: Api) -> None:
    other = urlsplit(api.place("other", 300_000)["chunks"][0]["uri"]).path
    path, _, query = stored[1].partition("?")

    for altered in (f"{path[:-1]}1", f"{path}0", f"{path[:-2]}/00", path.rpartition("/v1")[0] + other):
        assert problem(api.http.get(f"{altered}?{query}")) == (403, "url_invalid")


def test_a_url_serves_its_method_alone(stored: tuple[str, str, bytes], api: Api) -> None:
    put, get, data = stored

    assert problem(api.http.get(put)) == (403, "url_invalid")
    assert problem(api.http.put(get, content=data)) == (403, "url_invalid")
    assert problem(api.http.post(get, content=data)) == (405, "method_not_allowed")
    assert problem(refused := api.http.delete(get)) == (405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD, PUT"


def test_an_expired_url_says_so(stored: tuple[str, str, bytes], server: ServerProcess, http: httpx.Client) -> None:
    catalog = SqliteCatalog(server.data)
    try:
        urls = BlobUrls(catalog.secret("blob-urls"), clock=lambda: time.time() - 301)
    finally:
        catalog.close()
    blob_id, number = urlsplit(stored[1]).path.split("/")[-2:]
    chunk = Chunk(f"blob:{blob_id}/{number}", len(stored[2]))

    assert problem(http.get(urls.sign(server.url, "GET", chunk))) == (403, "url_expired")
    assert problem(http.put(urls.sign(server.url, "PUT", chunk), content=stored[2])) == (403, "url_expired")


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=299990-", 299_990, 300_000), ("bytes=-5", 299_995, 300_000),
     ("bytes=100-9999999", 100, 300_000), ("bytes=0-299999", None, None), ("bytes=5-2", None, None),
     ("bytes=0-1,5-6", None, None), ("lines=0-9", None, None), ("bytes=-", None, None)],
)  # fmt: skip
def test_a_range_gives_those_bytes_or_the_whole(
    stored: tuple[str, str, bytes], http: httpx.Client, header: str, start: int | None, end: int | None
) -> None:
    response = http.get(stored[1], headers={"Range": header})

    assert response.content == stored[2][start:end]
    assert response.status_code == (200 if start is None else 206)
    if start is not None:
        assert response.headers["content-range"] == f"bytes {start}-{(end or 0) - 1}/300000"


def test_a_range_beyond_the_end_is_refused(stored: tuple[str, str, bytes], http: httpx.Client) -> None:
    assert problem(http.get(stored[1], headers={"Range": "bytes=300000-"})) == (416, "range_not_satisfiable")


def test_head_gives_the_size_alone(stored: tuple[str, str, bytes], http: httpx.Client) -> None:
    response = http.head(stored[1])

    assert (response.status_code, response.headers["content-length"], response.content) == (200, "300000", b"")
    assert (response.headers["x-content-type-options"], response.headers["cache-control"]) == ("nosniff", "no-store")


def test_the_same_bytes_may_be_put_again_until_the_commit(api: Api) -> None:
    blob = api.place("key", 5)
    url = blob["chunks"][0]["uri"]

    first = api.http.put(url, content=b"value")
    again = api.http.put(url, content=b"value")
    other = api.http.put(url, content=b"other")
    committed = api.post("commit_write", {"state_key": "key", "blob": blob})
    late = api.http.put(url, content=b"value")

    assert first.status_code == again.status_code == 200
    assert first.headers["etag"] == again.headers["etag"]
    assert problem(other) == (409, "chunk_exists")
    assert committed.status_code == 200
    assert problem(late) == (410, "blob_gone")


@pytest.mark.parametrize("data", [b"", b"valu", b"values"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_chunk_of_another_size_is_refused_and_not_kept(api: Api, data: bytes, chunked: bool) -> None:
    blob = api.place("key", 5)

    refused = api.http.put(blob["chunks"][0]["uri"], content=iter([data]) if chunked else data)

    assert problem(refused) == (400, "wrong_size")
    assert problem(api.post("commit_write", {"state_key": "key", "blob": blob})) == (409, "blob_incomplete")


def test_an_upload_that_is_too_long_takes_no_room_on_the_disk(api: Api, server: ServerProcess) -> None:
    largest = 0

    def endless() -> Iterator[bytes]:
        nonlocal largest
        for _ in range(32):
            yield b"x" * 1024 * 1024
            for file in part_files(server):
                with contextlib.suppress(FileNotFoundError):  # The server has removed it since it was listed.
                    largest = max(largest, file.stat().st_size)

    try:
        refused = api.http.put(api.place("key", 5)["chunks"][0]["uri"], content=endless())
    except httpx.WriteError:
        pytest.fail("the refusal did not arrive")
    assert problem(refused) == (400, "wrong_size")
    assert largest <= 1024 * 1024


def test_an_upload_that_breaks_off_leaves_no_file(api: Api, server: ServerProcess) -> None:
    url = urlsplit(api.place("key", 4_000_000)["chunks"][0]["uri"])
    with socket.create_connection((url.hostname, url.port), 5) as connection:
        connection.sendall(
            f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n".encode()
        )
        connection.sendall(b"x" * 2_000_000)
        wait_for(lambda: part_files(server) != [])

    wait_for(lambda: part_files(server) == [])


def test_a_renewed_upload_keeps_its_blob(api: Api) -> None:
    blob = api.place("key", 100_000, chunk_size=65_536)

    renewed = api.place("key", 100_000, chunk_size=65_536, write_id=blob["id"])

    assert renewed["id"] == blob["id"]
    assert [chunk["size"] for chunk in renewed["chunks"]] == [65_536, 34_464]


def test_what_a_signed_url_answers_is_what_the_description_says(
    stored: tuple[str, str, bytes], api: Api, server: ServerProcess
) -> None:
    put, get, data = stored
    new = api.place("new", 5)["chunks"][0]["uri"]
    path = api.http.get(f"{server.url}/openapi.json").json()["paths"]["/v1/blobs/{blob}/{chunk}"]
    answers = [
        api.http.get(get),
        api.http.get(get, headers={"Range": "bytes=0-9"}),
        api.http.get(get, headers={"Range": "bytes=300000-"}),
        api.http.get(put),
        api.http.put(new, content=b"valu"),
        api.http.put(new, content=b"value"),
        api.http.put(new, content=b"other"),
        api.http.put(get, content=data),
        api.http.put(put, content=data),
    ]
    blob_id, number = urlsplit(get).path.split("/")[-2:]
    (server.data.with_name("server.db.blobs") / blob_id[-2:] / f"{blob_id}.{number}").unlink()
    answers.append(api.http.get(get))

    assert [answer.status_code for answer in answers] == [200, 206, 416, 403, 400, 200, 409, 403, 410, 404]
    for answer in answers:
        described = path[answer.request.method.lower()]["responses"][str(answer.status_code)]
        assert set(map(str.lower, described.get("headers", ()))) <= set(answer.headers)
        assert not answer.content or answer.headers["content-type"] in described["content"]
    assert "retry-after" in map(str.lower, path["get"]["responses"]["503"]["headers"])


# -- the other side stops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["takes nothing", "leaves", "sends nothing", "sends little", "sends little of much"])
def test_a_transfer_ends_when_the_other_side_does_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Without sockets, whose buffers would have to be filled first."""
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(asgi, "_SLOWEST", SIZE)
    service = open_service(str(tmp_path / "store.db"), None)
    size = SIZE if way != "sends little of much" else MAX_VALUE_BYTES
    place = service.prepare_write(PrepareWrite(Scope("acme", "shop"), "large", size))
    if size == SIZE:
        service.blobs.put(place.id, 0, memoryview(bytes(SIZE)))
    log = io.StringIO()
    app = create_app(service, Settings(LoopbackGate(()), RequestLog(log), None))
    method = "PUT" if way.startswith("sends") else "GET"
    signed = urlsplit(BlobUrls(service.catalog.secret("blob-urls")).sign("http://localhost", method, place.chunks[0]))
    sent: list[Any] = []

    async def receive() -> Any:
        while way != "leaves" or len(sent) < 2:
            await asyncio.sleep(0.01)
            if way.startswith("sends little"):
                return {"type": "http.request", "body": b"x", "more_body": True}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if way == "takes nothing" and message["type"] == "http.response.body":
            await asyncio.sleep(60)
        await asyncio.sleep(0.01)

    scope = {
        "type": "http", "method": method, "path": signed.path, "raw_path": signed.path.encode(),
        "query_string": signed.query.encode(), "headers": [(b"host", b"localhost")],
    }  # fmt: skip

    async def run() -> None:
        with contextlib.suppress(BrokenAnswerError):
            await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(run(), 5))
    service.close()
    assert sum(len(message.get("body", b"")) for message in sent) < SIZE
    line = json.loads(log.getvalue())
    assert line.get("error" if way == "leaves" else "code") == (
        "disconnected" if way == "leaves" else "request_timeout"
    )


def test_a_transfer_at_the_slowest_pace_comes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times as fast as it may be, and without sockets, whose buffers would have to be filled first."""
    monkeypatch.setattr(asgi, "BODY_SECONDS", asgi.BODY_SECONDS / 100)
    slowest = asgi._SLOWEST * 100
    monkeypatch.setattr(asgi, "_SLOWEST", slowest)
    size = 4 * asgi.BLOCK
    service = open_service(str(tmp_path / "store.db"), None)
    place = service.prepare_write(PrepareWrite(Scope("acme", "shop"), "large", size))
    service.blobs.put(place.id, 0, memoryview(bytes(size)))
    app = create_app(service, Settings(LoopbackGate(()), RequestLog(io.StringIO()), None))
    signed = urlsplit(BlobUrls(service.catalog.secret("blob-urls")).sign("http://localhost", "GET", place.chunks[0]))
    sent: list[int] = []
    begun = time.monotonic()

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(len(message.get("body", b"")))
        # So much is sent by then at a pace that is a little faster.
        await asyncio.sleep(begun + sum(sent) / slowest * 0.98 - time.monotonic())

    scope = {
        "type": "http", "method": "GET", "path": signed.path, "raw_path": signed.path.encode(),
        "query_string": signed.query.encode(), "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    service.close()
    assert sum(sent) == size


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system does not bound what is not sent yet")
def test_who_reads_slowly_is_seen_to_read_before_there_is_room_for_megabytes() -> None:
    with _listen("127.0.0.1", 0) as listener, socket.socket() as reader:
        listener.listen()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        reader.connect(listener.getsockname())
        with listener.accept()[0] as writer:
            writer.setblocking(False)
            for _ in range(2):
                # Until nothing more goes off by itself.
                while select.select([], [writer], [], 0.3)[1]:
                    writer.send(bytes(1024 * 1024))
                fetched = 0
                while not select.select([], [writer], [], 0.1)[1]:
                    fetched += len(reader.recv(65_536))
    assert fetched < 500_000


def test_more_transfers_than_fit_are_told_to_come_back(tmp_path: Path, http: httpx.Client) -> None:
    data = b"x" * 300_000
    with ServerProcess(tmp_path) as server, contextlib.ExitStack() as stack:
        api = Api(http, server.url, "acme", "shop")
        place = urlsplit(server.url).hostname, urlsplit(server.url).port
        own, *others = [api.place(f"k{number}", len(data))["chunks"][0]["uri"] for number in range(100)]
        for uri in others:
            # It begins an upload and says no more.
            connection = stack.enter_context(socket.create_connection(place, 5))
            url = urlsplit(uri)
            head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode())
            refused = http.put(own, content=data)
            if refused.status_code != 200:
                break
        assert problem(refused) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert api.post("list", {"prefix": ""}).status_code == 200, "small requests go on"
        theirs = Api(http, server.url, "another", "shop").place("k", len(data))["chunks"][0]["uri"]
        assert http.put(theirs, content=data).status_code == 200, "other tenants' transfers too"
        stack.close()
        wait_for(lambda: http.put(own, content=data).status_code == 200)
