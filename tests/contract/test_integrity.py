"""What is read is what was written, of one version, or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent_memory import ConflictError, IntegrityError
from agent_memory.messages import Found, GetRange, PrepareRead, Scope
from tests.support.faults import Meddling, put_between

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


def test_a_large_value_that_arrives_altered_is_an_error(store: Any) -> None:
    memory = store.open(chunk_size=65_536)
    memory.app_state.set("key", OLD)

    def flip(message: Any, reply: Any) -> Any:
        if type(message) is GetRange:
            message.into[-1] ^= 1
        return reply

    put_between(memory, lambda inner: Meddling(inner, alter=flip))
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
