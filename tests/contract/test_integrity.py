"""What is read is what was written, of one version, or an error."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from agent_memory import ConflictError, IntegrityError, InvalidRequestError
from agent_memory.messages import (
    Blob,
    Chunk,
    CommitWrite,
    Found,
    GetRange,
    Hit,
    Message,
    Page,
    PrepareRead,
    PutChunk,
    Scope,
)
from agent_memory.operations import Get, Set
from tests.support.faults import Between, Meddling, put_between

OLD = bytes(range(256)) * 1_000

# What the design promises, not what the code says: twice the life of a URL and five minutes.
GRACE_SECONDS = 2 * 300 + 300
NEW = bytes(reversed(range(256))) * 1_200


def once(work: Callable[[], Any]) -> Callable[[Any], None]:
    """Return what does ``work`` before the first transfer of bytes."""
    done: list[bool] = []

    def act(message: Any) -> None:
        if type(message) is GetRange and not done:
            done.append(True)
            work()

    return act


def alter_found(change: Callable[[Found], Found]) -> Callable[[Any, Any], Any]:
    return lambda message, reply: change(reply) if type(message) is PrepareRead else reply


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found._replace(data=b"[2]"),
        lambda found: found._replace(data=b"[1"),
        lambda found: found._replace(data=b"[1] "),
        lambda found: found._replace(data=b""),
        lambda found: found._replace(entry=found.entry._replace(sha256="0" * 64)),
        lambda found: found._replace(entry=found.entry._replace(size=2)),
    ],
)
def test_a_small_value_that_arrives_altered_is_an_error(store: Any, change: Callable[[Found], Found]) -> None:
    memory = store.open()
    memory.app_state.set("key", [1])
    put_between(memory, lambda inner: Meddling(inner, alter=alter_found(change)))

    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")


class Altering(Between):
    """Alters small values wherever they come from: by themselves, in a page, among hits, in a batch, in a refusal."""

    def after(self, message: Message, reply: Any) -> Any:
        match reply:
            case Found():
                return reply if reply.data is None else reply._replace(data=reply.data[:-1] + b" ")
            case Page():
                return reply._replace(found=self.after(message, reply.found))
            case Hit():
                return reply._replace(found=self.after(message, reply.found))
            case list():
                return [self.after(message, one) for one in reply]
            case _:
                return reply

    def send(self, message: Message, deadline: float) -> Any:
        try:
            return super().send(message, deadline)
        except ConflictError as error:
            error.found = self.after(message, error.found)
            raise

    async def asend(self, message: Message, deadline: float) -> Any:
        try:
            return await super().asend(message, deadline)
        except ConflictError as error:
            error.found = self.after(message, error.found)
            raise


@pytest.mark.parametrize(
    "read",
    [
        lambda memory: memory.app_state.get_many(["user/1/note/a", "absent"]),
        lambda memory: memory.app_state.batch([Get("user/1/note/a")]),
        lambda memory: memory.app_state.batch([Get("user/1/note/a"), Get("absent")]),
        lambda memory: memory.app_state.search("user/"),
        lambda memory: memory.entity("user", "1").collection(dict, name="note").list(),
        lambda memory: memory.entity("user", "1").collection(dict, name="note").raw(),
        lambda memory: memory.entity("user", "1").collection(dict, name="note").item("a").create({}),
        lambda memory: memory.app_state.batch([Set("user/1/note/a", 1, expected=None)]),
        lambda memory: memory.app_state.batch([Set("user/1/note/a", 1, expected=None), Get("absent")]),
    ],
    ids=["many", "one", "batch", "search", "list", "raw", "conflict", "conflict of one", "conflict of a batch"],
)
def test_a_small_value_that_arrives_altered_is_an_error_on_every_way(store: Any, read: Callable[[Any], Any]) -> None:
    memory = store.open()
    memory.app_state.set("user/1/note/a", {"text": "knee"})
    put_between(memory, Altering)

    with pytest.raises(IntegrityError):
        read(memory)


class SpoilingDownloads(Between):
    """Alters chunks on their way: before anybody is told that their last byte is there."""

    def send(self, message: Message, deadline: float) -> Any:
        message, altered = self._told_late(message)
        reply = super().send(message, deadline)
        altered()
        return reply

    async def asend(self, message: Message, deadline: float) -> Any:
        message, altered = self._told_late(message)
        reply = await super().asend(message, deadline)
        altered()
        return reply

    def _told_late(self, message: Message) -> tuple[Message, Callable[[], None]]:
        if type(message) is not GetRange:
            return message, lambda: None
        into, progress, altered = message.into, message.progress, list[bool]()

        def alter() -> None:
            if not altered:
                altered.append(True)
                into[-1] ^= 1

        def tell(size: int) -> None:
            if size == len(into):
                alter()
            progress(size)

        return message._replace(progress=tell), alter


def test_a_large_value_that_arrives_altered_is_an_error(store: Any) -> None:
    memory = store.open(chunk_size=65_536)
    memory.app_state.set("key", OLD)

    put_between(memory, SpoilingDownloads)
    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")


def test_chunks_that_arrive_in_another_order_are_an_error(store: Any) -> None:
    memory = store.open(chunk_size=65_536)
    memory.app_state.set("key", OLD[: 2 * 65_536 - 1] + b"x")

    def swap(found: Found) -> Found:
        assert found.blob is not None
        return found._replace(blob=found.blob._replace(chunks=found.blob.chunks[::-1]))

    put_between(memory, lambda inner: Meddling(inner, alter=alter_found(swap)))
    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")


def test_chunks_that_do_not_add_up_are_an_error(store: Any) -> None:
    memory = store.open(chunk_size=65_536)
    memory.app_state.set("key", OLD)

    def drop(found: Found) -> Found:
        assert found.blob is not None
        return found._replace(blob=found.blob._replace(chunks=found.blob.chunks[:-1]))

    put_between(memory, lambda inner: Meddling(inner, alter=alter_found(drop)))
    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")


def test_chunks_of_an_absurd_size_are_an_error_before_there_is_memory_for_them(store: Any) -> None:
    memory = store.open()
    memory.app_state.set("key", OLD)

    def inflate(found: Found) -> Found:
        assert found.blob is not None
        return found._replace(blob=found.blob._replace(chunks=(found.blob.chunks[0]._replace(size=2**53),)))

    put_between(memory, lambda inner: Meddling(inner, alter=alter_found(inflate)))
    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")


def test_the_empty_value_may_be_offered_as_a_chunk(store: Any) -> None:
    memory = store.open()
    memory.app_state.set("key", b"")

    def offer(found: Found) -> Found:
        return found._replace(data=None, blob=Blob("id", (Chunk("nowhere", 0),)))

    put_between(memory, lambda inner: Meddling(inner, alter=alter_found(offer)))
    assert memory.app_state.get("key", default="absent") == b""


# -- the way to the store --------------------------------------------------------------------------------------------


class Spoiling(Between):
    """Alters chunks on their way to the store."""

    def send(self, message: Message, deadline: float) -> Any:
        return super().send(self._spoilt(message), deadline)

    async def asend(self, message: Message, deadline: float) -> Any:
        return await super().asend(self._spoilt(message), deadline)

    def _spoilt(self, message: Message) -> Message:
        if not isinstance(message, PutChunk):
            return message
        return message._replace(data=memoryview(bytes(message.data[:-1]) + b"?"))


def test_a_large_value_that_is_altered_on_its_way_to_the_store_is_no_value(store: Any) -> None:
    memory, reader = store.open(chunk_size=65_536), store.open()
    memory.app_state.set("key", OLD)
    put_between(memory, Spoiling)

    def travel() -> None:
        memory.app_state.set("key", NEW)
        # Bytes that an object store holds are not fetched for the commit: their hash is the reader's to compare.
        reader.app_state.get("key", default="absent")

    with pytest.raises((InvalidRequestError, IntegrityError)):
        travel()


def test_a_commit_names_the_hash_of_the_value_and_the_etags_of_its_chunks(store: Any) -> None:
    memory = store.open(chunk_size=65_536)
    between = put_between(memory, Between)
    memory.app_state.set("key", OLD)
    (commit,) = [message for message in between.sent if isinstance(message, CommitWrite)]

    assert commit.sha256 == hashlib.sha256(OLD).hexdigest()
    assert commit.blob is not None
    assert all(chunk.etag for chunk in commit.blob.chunks)


# -- one version -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["overwritten", "deleted"])
def test_a_read_is_pinned_to_its_version_while_the_key_moves_on(store: Any, end: str) -> None:
    memory, other = store.open(chunk_size=65_536), store.open_sync()
    old = memory.app_state.set("key", OLD)

    def move_on() -> None:
        if end == "deleted":
            other.app_state.delete("key")
        else:
            other.app_state.set("key", NEW)

    put_between(memory, lambda inner: Meddling(inner, act=once(move_on)))
    assert memory.app_state.snapshot("key") == (OLD, old)
    assert memory.app_state.get("key") == (None if end == "deleted" else NEW)


def test_a_small_value_offered_as_chunks_is_pinned_too(store: Any) -> None:
    memory = store.open()
    memory.app_state.set("key", b"old")
    found = store.send(memory, PrepareRead(Scope("default", store.application), "key", max_inline_size=0))
    memory.app_state.set("key", b"new")
    into = bytearray(3)
    store.send(memory, GetRange(found.blob.chunks[0], 0, memoryview(into)))

    assert into == b"old"


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 10), (65_535, 2), (199_999, 1), (7, 100_000)])
def test_any_range_of_a_chunk_is_read(store: Any, offset: int, size: int) -> None:
    memory = store.open()
    memory.app_state.set("key", OLD[:200_000])
    found = store.send(memory, PrepareRead(Scope("default", store.application), "key"))
    into = bytearray(size)
    store.send(memory, GetRange(found.blob.chunks[0], offset, memoryview(into)))

    assert into == OLD[offset : offset + size]


def test_a_range_beyond_the_end_is_an_error(store: Any) -> None:
    memory = store.open()
    memory.app_state.set("key", OLD[:200_000])
    found = store.send(memory, PrepareRead(Scope("default", store.application), "key"))

    with pytest.raises(IntegrityError):
        store.send(memory, GetRange(found.blob.chunks[0], 199_999, memoryview(bytearray(2))))


def test_another_version_than_the_one_asked_for_is_not_given(store: Any) -> None:
    memory = store.open()
    memory.app_state.set("key", 1)
    memory.app_state.set("key", 2)
    with pytest.raises(ConflictError) as caught:
        store.send(memory, PrepareRead(Scope("default", store.application), "key", version=1))

    assert caught.value.code == "version_gone"


# -- the files of a store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [65_536, 8 * 1024 * 1024])
def test_a_read_that_is_slower_than_the_sweep_starts_over_at_the_current_version(timed: Any, chunk_size: int) -> None:
    memory, other = timed.open(chunk_size=chunk_size), timed.open_sync()
    memory.app_state.set("key", OLD)

    def replace() -> None:
        other.app_state.set("key", NEW)
        timed.clock.advance(seconds=GRACE_SECONDS + 1)
        timed.sweep()

    put_between(memory, lambda inner: Meddling(inner, act=once(replace)))
    assert memory.app_state.get("key") == NEW


def test_a_read_that_is_always_slower_than_the_sweep_is_an_error(timed: Any) -> None:
    memory, other = timed.open(), timed.open_sync()
    memory.app_state.set("key", OLD)

    def replace(message: Message) -> None:
        if type(message) is GetRange:
            other.app_state.set("key", NEW)
            timed.clock.advance(seconds=GRACE_SECONDS + 1)
            timed.sweep()

    between = put_between(memory, lambda inner: Meddling(inner, act=replace))
    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")
    assert 2 < sum(type(message) is GetRange for message in between.sent) < 100


def test_a_read_that_is_slower_than_a_deletion_and_the_sweep_finds_nothing(timed: Any) -> None:
    memory, other = timed.open(), timed.open_sync()
    memory.app_state.set("key", OLD)

    def delete() -> None:
        other.app_state.delete("key")
        timed.clock.advance(seconds=GRACE_SECONDS + 1)
        timed.sweep()

    put_between(memory, lambda inner: Meddling(inner, act=once(delete)))
    assert memory.app_state.get("key", default="absent") == "absent"


HARM: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "truncated": lambda data: data[:-1],
    "altered": lambda data: b"\xff" + data[1:],
    "emptied": lambda _: b"",
}


@pytest.mark.parametrize("harm", HARM)
def test_a_file_that_was_harmed_is_an_error_and_not_absence(timed: Any, harm: str) -> None:
    memory = timed.open(chunk_size=65_536, timeout=5)
    memory.app_state.set("key", OLD)
    names = timed.files()
    timed.large.harm(names[len(names) // 2], HARM[harm])

    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")


def test_a_file_that_is_gone_is_told_at_once(timed: Any) -> None:
    memory = timed.open()
    memory.app_state.set("key", OLD)
    timed.large.harm(timed.files()[0], HARM["missing"])
    between = put_between(memory, Between)

    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")
    assert sum(type(message) is GetRange for message in between.sent) == 1


def test_what_a_failed_read_leaves_is_freed_in_silence(timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = timed.open()
    memory.app_state.set("key", OLD)
    timed.large.harm(timed.files()[0], HARM["missing"])
    gc.collect()
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: told.append(repr(report.exc_value)))

    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default="absent")
    gc.collect()
    assert told == []
