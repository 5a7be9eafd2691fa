"""What flows send again, and what they do not, seen from the messages that they yield."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from agent_memory import buffers as buffers_module
from agent_memory import flows
from agent_memory.drivers import Flow, run, run_async
from agent_memory.errors import AgentMemoryError, ConflictError, IntegrityError, UnavailableError
from agent_memory.flows import Transfer, alone, batch, delete_all, read, upload, write
from agent_memory.messages import (
    Batch,
    Blob,
    Chunk,
    CommitWrite,
    Delete,
    Entry,
    Found,
    GetRange,
    List,
    Page,
    PrepareRead,
    PrepareWrite,
    PutChunk,
    Scope,
)
from agent_memory.storage.blobs import MAX_CHUNKS
from agent_memory.wire import BODY_LIMIT, encode_request

SCOPE = Scope("default", "any")
DATA = b"x" * 100_000
BLOB = Blob("b", (Chunk("blob:b/0", len(DATA)),))
ENTRY = Entry(
    "key", 1, "1-e", len(DATA), hashlib.sha256(DATA).hexdigest(), "", None, None, None, 0, 0, None, None, False
)
READ = PrepareRead(SCOPE, "key", 0)
WRITE = CommitWrite(SCOPE, "key", None, b"1", None)
DELETE = Delete(SCOPE, "other", None)


class Script:
    """A transport whose answers a function gives; keeps what was sent."""

    loses_replies = True

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self._answer = answer
        self.sent: list[Any] = []

    def send(self, message: Any, deadline: float) -> Any:
        self.sent.append(message)
        return self._answer(message)

    async def asend(self, message: Any, deadline: float) -> Any:
        return self.send(message, deadline)

    def close(self) -> None: ...

    async def aclose(self) -> None: ...

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(message, kind) for message in self.sent)


def fails(flow: Flow[Any], transport: Script, kind: type[AgentMemoryError]) -> None:
    with pytest.raises(kind):
        run(flow, transport, time.monotonic() + 5)


def test_writes_beside_reads_are_named_for_a_read_may_fail_after_them() -> None:
    failed: list[bool] = []

    def answer(message: Any) -> Any:
        if not failed:
            failed.append(True)
            raise UnavailableError("the read failed")
        return [None, None, None]

    transport = Script(answer)
    run(batch(SCOPE, [WRITE, DELETE, READ], Transfer()), transport, time.monotonic() + 5)

    first, again = transport.sent
    assert first == again
    assert None not in {operation.write_id for operation in first.operations[:2]}


def test_writes_alone_stay_as_they_are() -> None:
    transport = Script(lambda _: [None, None])
    run(batch(SCOPE, [WRITE, DELETE], Transfer()), transport, time.monotonic() + 5)

    assert transport.sent == [Batch(SCOPE, (WRITE, DELETE))]


def test_a_write_beside_reads_keeps_the_id_that_it_has() -> None:
    transport = Script(lambda _: [None, None])
    run(batch(SCOPE, [WRITE._replace(write_id="mine"), READ], Transfer()), transport, time.monotonic() + 5)

    assert transport.sent[0].operations[0].write_id == "mine"


def lose_first(kind: type[Any], transport: Script) -> None:
    if transport.count(kind) == 1:
        raise UnavailableError("lost")


def test_an_operation_alone_is_sent_again_and_uploaded_where_it_is_large() -> None:
    transport = Script(lambda _: lose_first(Delete, transport))
    run(alone(DELETE, Transfer()), transport, time.monotonic() + 5)

    assert transport.sent == [DELETE, DELETE]
    assert isinstance(next(alone(WRITE._replace(data=DATA), Transfer())), PrepareWrite)


def test_clearing_goes_on_after_losses_and_names_each_deletion() -> None:
    def answer(message: Any) -> Any:
        lose_first(type(message), transport)
        is_first = transport.count(List) == 2
        return Page([Found(ENTRY._replace(key=key), None, None) for key in ("a", "b") if is_first], None)

    transport = Script(answer)
    assert run(delete_all(SCOPE, "", 10, lambda: "id"), transport, time.monotonic() + 5) == 2
    assert [one for one in transport.sent if isinstance(one, Batch)] == 2 * [
        Batch(SCOPE, (Delete(SCOPE, "a", "id"), Delete(SCOPE, "b", "id")))
    ]
    assert [one.cursor for one in transport.sent if isinstance(one, List)] == [None, None, "b", None]


def test_damaged_bytes_are_fetched_once() -> None:
    transport = Script(lambda message: Found(ENTRY, None, BLOB) if isinstance(message, PrepareRead) else None)
    fails(read(READ, Transfer()), transport, IntegrityError)

    assert (transport.count(PrepareRead), transport.count(GetRange)) == (1, 1)


def test_bytes_whose_url_expired_are_fetched_by_another() -> None:
    def answer(message: Any) -> Any:
        if isinstance(message, PrepareRead):
            return Found(ENTRY, None, BLOB)
        if transport.count(GetRange) == 1:
            raise UnavailableError("expired", code="url_expired")
        message.into[:] = DATA

    transport = Script(answer)
    assert run(read(READ, Transfer()), transport, time.monotonic() + 5) == (DATA, ENTRY)
    assert [message.version for message in transport.sent if isinstance(message, PrepareRead)] == [None, 1]


def test_a_read_whose_urls_always_expire_ends() -> None:
    def answer(message: Any) -> Any:
        if isinstance(message, PrepareRead):
            return Found(ENTRY, None, BLOB)
        raise UnavailableError("expired", code="url_expired")

    transport = Script(answer)
    fails(read(READ, Transfer()), transport, UnavailableError)

    assert (transport.count(PrepareRead), transport.count(GetRange)) == (21, 21)


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize("part", [10_000, len(DATA)], ids=["parts", "whole"])
def test_what_an_attempt_was_to_fill_is_not_kept_beside_the_next(
    face: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers: weakref.WeakSet[Any] = weakref.WeakSet()
    kept: list[int] = []

    def zeroed(size: int) -> Any:
        buffers.add(buffer := buffers_module.zeroed(size))
        return buffer

    def answer(message: Any) -> Any:
        transport.sent.clear()
        if isinstance(message, PrepareRead):
            return Found(ENTRY, None, BLOB)
        kept.append(len(buffers))
        if message.offset == 0:
            raise UnavailableError("expired", code="url_expired")

    async def reading() -> None:
        await run_async(read(READ, Transfer(part)), transport, time.monotonic() + 5)

    transport = Script(answer)
    monkeypatch.setattr(flows, "zeroed", zeroed)
    gc.disable()
    try:
        if face == "sync":
            fails(read(READ, Transfer(part)), transport, UnavailableError)
        else:
            with pytest.raises(UnavailableError):
                asyncio.run(reading())
    finally:
        gc.enable()
    assert len(kept) > 20
    assert max(kept) == 1


def test_a_large_chunk_is_fetched_in_parts_of_the_readers_own_size() -> None:
    flow = read(READ, Transfer(chunk_size=40_000, parallelism=3))
    next(flow)
    parts = flow.send(Found(ENTRY, None, BLOB))

    assert parts.limit == 3
    asked = [next(part) for part in parts.flows]
    assert [(one.offset, len(one.into)) for one in asked] == [(0, 40_000), (40_000, 40_000), (80_000, 20_000)]


def test_a_large_value_is_uploaded_in_chunks() -> None:
    flow = write(WRITE._replace(data=DATA), Transfer(chunk_size=40_000, parallelism=3))
    assert next(flow).chunk_size == 40_000
    chunks = flow.send(Blob("b", tuple(Chunk(f"blob:b/{n}", size) for n, size in enumerate([40_000, 40_000, 20_000]))))

    assert chunks.limit == 3
    asked = [next(chunk) for chunk in chunks.flows]
    assert [(one.chunk.uri, len(one.data)) for one in asked] == [
        ("blob:b/0", 40_000), ("blob:b/1", 40_000), ("blob:b/2", 20_000),
    ]  # fmt: skip


def test_the_commit_of_as_many_chunks_as_there_may_be_is_no_longer_than_a_request_however_long_their_urls_are() -> None:
    chunks = tuple(Chunk(f"https://bucket/{n}?" + "t" * 2_500, 1) for n in range(MAX_CHUNKS))
    transport = Script(lambda message: Blob("b", chunks) if isinstance(message, PrepareWrite) else "e" * 64)
    commit = run(upload(WRITE, bytes(MAX_CHUNKS), Transfer(1, 4)), transport, time.monotonic() + 60)
    assert len(encode_request(commit)[1]) < BODY_LIMIT


def test_an_upload_whose_urls_expired_goes_on_with_others_for_all_its_chunks() -> None:
    old, new = (Blob("b", tuple(Chunk(f"{name}:b/{n}", 50_000) for n in range(2))) for name in ("old", "new"))

    def answer(message: Any) -> Any:
        if isinstance(message, PutChunk):
            if message.chunk.uri.startswith("old"):
                raise UnavailableError("expired", code="url_expired")
            return "etag"
        if transport.count(PrepareWrite) == 2:
            raise UnavailableError("lost")
        return old if transport.count(PrepareWrite) == 1 else new

    transport = Script(answer)
    run(upload(WRITE._replace(data=DATA), DATA, Transfer(50_000, 1)), transport, time.monotonic() + 5)

    assert [one.chunk.uri for one in transport.sent if isinstance(one, PutChunk)] == ["old:b/0", "new:b/0", "new:b/1"]
    assert [one.write_id for one in transport.sent if isinstance(one, PrepareWrite)] == [None, "b", "b"]


@pytest.mark.parametrize(("code", "places"), [("url_expired", 21), ("disk_full", 1)])
def test_an_upload_is_given_other_urls_only_where_they_expired(code: str, places: int) -> None:
    def answer(message: Any) -> Any:
        if isinstance(message, PrepareWrite):
            return BLOB
        raise UnavailableError("no", code=code)

    transport = Script(answer)
    fails(write(WRITE._replace(data=DATA), Transfer()), transport, UnavailableError)

    assert (transport.count(PrepareWrite), transport.count(PutChunk)) == (places, places)


@pytest.mark.parametrize(("code", "places"), [("blob_gone", 3), ("condition_failed", 1)])
def test_a_large_value_is_uploaded_again_only_where_its_catalog_forgot_the_upload(code: str, places: int) -> None:
    def answer(message: Any) -> Any:
        if isinstance(message, CommitWrite):
            if places == 3 and transport.count(CommitWrite) == 3:
                return ENTRY
            raise ConflictError("no", code=code)
        return BLOB if isinstance(message, PrepareWrite) else "etag"

    transport = Script(answer)
    flow = write(WRITE._replace(data=DATA), Transfer())
    if places == 3:
        assert run(flow, transport, time.monotonic() + 5) is ENTRY
    else:
        fails(flow, transport, ConflictError)

    assert (transport.count(PrepareWrite), transport.count(PutChunk), transport.count(CommitWrite)) == (places,) * 3


def test_what_a_batch_uploads_is_uploaded_again_where_its_catalog_forgot_the_upload() -> None:
    sent: list[Batch] = []

    def answer(message: Any) -> Any:
        if isinstance(message, Batch):
            sent.append(message)
            if len(sent) < 3:
                raise ConflictError("no", code="blob_gone")
            return [ENTRY, None]
        return BLOB if isinstance(message, PrepareWrite) else "etag"

    transport = Script(answer)
    operations = [WRITE._replace(data=DATA, write_id=None), READ]
    assert run(batch(SCOPE, operations, Transfer()), transport, time.monotonic() + 5) == [ENTRY, None]
    assert (transport.count(PrepareWrite), transport.count(PutChunk)) == (3, 3)
    assert len({one.operations[0].write_id for one in sent} | {None}) == 2, "however often it is sent, it is one change"


def test_an_upload_that_is_always_forgotten_ends() -> None:
    def answer(message: Any) -> Any:
        if isinstance(message, CommitWrite):
            raise ConflictError("no", code="blob_gone")
        return BLOB if isinstance(message, PrepareWrite) else "etag"

    transport = Script(answer)
    fails(write(WRITE._replace(data=DATA), Transfer()), transport, ConflictError)
    assert transport.count(CommitWrite) == 3
