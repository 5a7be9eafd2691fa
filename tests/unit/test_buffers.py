"""What is asked of the system for the memory of large values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent_memory import buffers

HUGE_PAGE = 2 * 1024 * 1024


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Lists where advice begins, and for how many bytes it is."""
    asked: list[tuple[int, int]] = []

    def madvise(start: Any, length: Any, _: int) -> None:
        asked.append((start.value, length.value))

    monkeypatch.setattr(buffers, "_ADVICE", 14)
    monkeypatch.setattr(buffers, "_libc", SimpleNamespace(madvise=madvise))
    return asked


def test_huge_pages_are_asked_for_within_a_large_buffer(advice: list[tuple[int, int]]) -> None:
    size = 3 * HUGE_PAGE + 1
    buffer = buffers.zeroed(size)

    [(start, length)] = advice
    address = buffers.ctypes.addressof(buffers.ctypes.c_char.from_buffer(buffer.getbuffer()))
    assert start % HUGE_PAGE == 0, "the system takes no other"
    assert address <= start < address + HUGE_PAGE
    assert start + length == address + size, "and not a byte of others"


def test_nothing_is_asked_for_a_small_buffer(advice: list[tuple[int, int]]) -> None:
    assert buffers.zeroed(1000).getvalue() == bytes(1000)
    assert advice == []
