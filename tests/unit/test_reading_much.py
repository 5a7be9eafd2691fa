"""Reads of more bytes than one message carries: bounded in bytes, and quick all the same."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_memory import LimitExceededError, replies
from agent_memory.ids import uuid7
from agent_memory.messages import (
    BATCH_INLINE_LIMIT,
    INLINE_LIMIT,
    JSON,
    Batch,
    Blob,
    Chunk,
    CommitWrite,
    Entry,
    Found,
    Hit,
    List,
    Page,
    PrepareRead,
    PrepareWrite,
    PutChunk,
    Scope,
    Search,
)
from agent_memory.server.memory import reply_bytes
from agent_memory.service import StateService
from agent_memory.storage import finding
from agent_memory.storage.blobs import FileBlobs
from agent_memory.storage.finding import text_bytes
from agent_memory.storage.sqlite import apply as sqlite_apply
from agent_memory.storage.sqlite.catalog import SqliteCatalog

SCOPE = Scope("default", "app")
KEYS = [f"k{number:03}" for number in range(300)]
VALUE = b'{"text": "%s"}' % (b"x" * 60_000)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StateService]:
    service = StateService(
        SqliteCatalog(tmp_path / "store.db", durable=False), FileBlobs(tmp_path / "b", durable=False)
    )
    service.handle(Batch(SCOPE, tuple(CommitWrite(SCOPE, key, uuid7(), VALUE, None, JSON) for key in KEYS)))
    yield service
    service.close()


def read(key: str) -> PrepareRead:
    return PrepareRead(SCOPE, key, INLINE_LIMIT)


def test_what_has_no_room_is_put_beside_it_many_at_a_time(
    service: StateService, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = service.blobs.put
    together = threading.Barrier(8)
    calls = itertools.count()
    met: list[int] = []

    def meet(blob_id: str, index: int, data: memoryview) -> str:
        if next(calls) < together.parties:
            met.append(together.wait(timeout=10))
        return put(blob_id, index, data)

    monkeypatch.setattr(service.blobs, "put", meet)
    found = service.handle(Batch(SCOPE, tuple(map(read, KEYS))))
    aside = [one for one in found if one.data is None]

    assert len(aside) == 300 - BATCH_INLINE_LIMIT // len(VALUE)
    assert all(one.blob is not None for one in aside)
    assert len(met) == together.parties


def test_the_pages_of_a_batch_share_its_room(service: StateService) -> None:
    pages: list[Page] = service.handle(Batch(SCOPE, (List(SCOPE, "", limit=1_000, max_inline_size=INLINE_LIMIT),) * 10))
    carried = sum(len(found.data or b"") for page in pages for found in page.found)

    assert carried <= BATCH_INLINE_LIMIT
    assert sum(found.data is None for page in pages for found in page.found) <= len(pages)
    assert all(page.found and page.cursor == page.found[-1].entry.key for page in pages)


def test_a_cut_page_goes_on_where_it_ended(service: StateService) -> None:
    keys: list[str] = []
    cursor: str | None = None
    while True:
        other = List(SCOPE, "", limit=100, max_inline_size=INLINE_LIMIT)
        _, page = service.handle(Batch(SCOPE, (other, other._replace(cursor=cursor, limit=1_000))))
        keys += [found.entry.key for found in page.found]
        cursor = page.cursor
        if cursor is None:
            break

    assert keys == KEYS


def test_a_batch_that_finds_too_much_is_refused_and_writes_nothing(
    service: StateService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "READ_LIMIT", 30 * 1024 * 1024)
    monkeypatch.setattr(sqlite_apply, "BUSY_SECONDS", 60.0)
    search = Search(SCOPE, "", limit=1_000, max_inline_size=INLINE_LIMIT)
    assert len(service.handle(search)) == 300
    with pytest.raises(LimitExceededError):
        service.handle(Batch(SCOPE, (CommitWrite(SCOPE, "new", uuid7(), b"1", None, JSON), search, search)))

    assert service.handle(read("new")) is None


def test_an_answer_takes_room_for_the_chunks_that_it_names() -> None:
    """A read of one key may name 10,000."""
    entry = Entry("k", 1, "1-e", 1, "", "", None, None, None, 0, 0, None, None, False)
    chunks = tuple(Chunk("blob/1", 65_536) for _ in range(10_000))
    found = Found(entry, None, Blob("blob", chunks))

    assert reply_bytes(Found(entry, b"x" * 65_536, None)) == 0
    assert 8_000_000 < reply_bytes(found) < 16_000_000
    for reply in (Page([found] * 3, None), [Hit(found, None)] * 3, [found, Page([found], None), [Hit(found, 0.5)]]):
        assert reply_bytes(reply) == 3 * reply_bytes(found)


@pytest.mark.parametrize("letter", ["n", "é", "\u043a", "日", "🏃", "\x01"])
@pytest.mark.parametrize("often", [1, 100])
def test_a_text_takes_room_for_itself_and_its_json_and_no_other_letters(letter: str, often: int) -> None:
    """The reason of one change may have lines, dashes and an emoji among English words."""
    text = "They said:\n" + "prefers runs in the morning; " * 100 + letter * 30 * often
    least = sys.getsizeof(text) + 2 * len(json.dumps(text, ensure_ascii=False).encode())

    assert least <= text_bytes(text) <= 2.5 * least


def test_an_answer_names_no_more_chunks_than_a_client_takes(
    service: StateService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_MOST_CHUNKS", 6)
    for key in ("large/1", "large/2", "large/3"):
        place = service.handle(PrepareWrite(SCOPE, key, 3 * 65_536, 65_536))
        for chunk in place.chunks:
            service.handle(PutChunk(chunk, memoryview(bytes(65_536))))
        service.handle(CommitWrite(SCOPE, key, place.id, None, place))

    page = service.handle(List(SCOPE, "large/", limit=100, max_inline_size=0))
    rest = service.handle(List(SCOPE, "large/", page.cursor, limit=100, max_inline_size=0))
    assert [one.entry.key for one in page.found + rest.found] == ["large/1", "large/2", "large/3"]
    assert len(page.found) == 2
    assert len(service.handle(Batch(SCOPE, (read("large/1"), read("large/2"))))) == 2
    with pytest.raises(LimitExceededError):
        service.handle(Batch(SCOPE, tuple(read("large/1") for _ in range(3))))


@pytest.mark.parametrize(("size", "found"), [(100_000, True), (100_001, False)])
def test_a_filter_looks_into_no_value_that_would_take_too_much_memory(
    service: StateService, monkeypatch: pytest.MonkeyPatch, size: int, found: bool
) -> None:
    monkeypatch.setattr(finding, "FILTER_LIMIT", 100_000)
    data = b'{"a": 1' + b" " * (size - 8) + b"}"
    place = service.handle(PrepareWrite(SCOPE, "large/1", size, 65_536))
    for chunk, part in zip(place.chunks, (data[:65_536], data[65_536:]), strict=True):
        service.handle(PutChunk(chunk, memoryview(part)))
    service.handle(CommitWrite(SCOPE, "large/1", place.id, None, place, JSON))
    read: list[int] = []
    read_into = service.blobs.read_into
    monkeypatch.setattr(service.blobs, "read_into", lambda *a: read.append(len(a[3])) or read_into(*a))

    assert len(service.handle(Search(SCOPE, "large/", {"a": 1}))) == found
    assert sum(read) == size * found
    read.clear()
    assert len(service.handle(Search(SCOPE, "large/"))) == 1
    assert sum(read) == 1
