"""Identifiers that sort by the time of their making: UUIDs of version 7 (RFC 9562, section 5.7)."""

from __future__ import annotations

import os
import threading
import time

_lock = threading.Lock()
_last = 0


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def uuid7() -> str:
    """Return a new UUIDv7 as text, larger than every earlier one of this process.

    48 bits of milliseconds, then 12 bits that count on within one (RFC 9562, section 6.2, method 3),
    then 62 random ones.
    """
    global _last
    with _lock:
        # 12 bits split a millisecond into steps of a quarter of a microsecond.
        _last = max(time.time_ns() * 4096 // 1_000_000, _last + 1)
        moment = _last
    random = int.from_bytes(os.urandom(8), "big") & (2**62 - 1)
    digits = f"{(moment >> 12) << 80 | 0x7 << 76 | (moment & 0xFFF) << 64 | 0b10 << 62 | random:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
