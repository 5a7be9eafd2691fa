"""Identifiers that sort by the time of their making: UUIDs of version 7 (RFC 9562, section 5.7)."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from datetime import datetime

from .checks import check_type
from .errors import InvalidRequestError
from .messages import to_us

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
    return _text(moment, os.urandom(8))


def made_us(uuid: str) -> int:
    """Return when a UUIDv7 was made, in microseconds since 1970, to the millisecond."""
    return int(uuid[:8] + uuid[9:13], 16) * 1000


def item_id(at: datetime, name: str) -> str:
    """Return the id of a collection's item that happened at a time and has a name elsewhere, such as ``strava-991``.

    The same time and name give the same id, so importing twice adds nothing; the ids of a collection sort by time,
    those that ``add`` makes included. Raises InvalidRequestError for a time without a zone, or before 1970.
    """
    check_type(at, datetime, "the time of an item is a datetime")
    check_type(name, str, "the name of an item is a str")
    if at.tzinfo is None:
        raise InvalidRequestError("the time of an item needs a time zone")
    microseconds = to_us(at)
    if microseconds < 0:
        raise InvalidRequestError("the time of an item must be after 1970")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return _text(microseconds * 4096 // 1000, digest[:8])


def _text(moment: int, random: bytes) -> str:
    """Return the UUIDv7 of a moment in 4,096ths of a millisecond, with the low 62 bits of 8 random bytes."""
    when, low = f"{moment:015x}", random.hex()
    # The variant takes the place of the random bytes' highest two bits.
    return f"{when[:8]}-{when[8:12]}-7{when[12:]}-{'89ab'[random[0] >> 4 & 3]}{low[1:4]}-{low[4:]}"
