"""What requests take of a worker's memory, reckoned before they take it: few large ones at once, any number of small.

In bytes of memory, not of JSON: a body is there as text and as values too, of which the smallest take the most, what an
answer carries as rows, in base64 and as JSON.
"""

from __future__ import annotations

from typing import Any, Final, cast

from ..messages import (
    BATCH_INLINE_LIMIT,
    INLINE_LIMIT,
    Batch,
    Blob,
    Found,
    Hit,
    List,
    ListParents,
    ListSegments,
    Message,
    Page,
    PrepareRead,
    PrepareWrite,
    Search,
    SegmentPage,
)
from ..storage.finding import READ_LIMIT, entry_bytes, text_bytes

SMALL_BODY: Final = 128 * 1024
"""A body up to this takes no part, if it has few parts: each verb but a batch needs less."""

SMALL_PARTS: Final = 1_000

BODY_BYTES: Final = 256 * 1024**2
ANSWER_BYTES: Final = 512 * 1024**2

# A key, provenance and the rest of an entry.
_ENTRY: Final = 8 * 1024
_CHUNK: Final = 1024
_SMALL: Final = 512 * 1024
# An object of one field, and its place in a list.
_PART: Final = 200
# A batch of a thousand writes has about 20,000.
_USUAL_PARTS: Final = 25_000


def body_bytes(size: int, parts: int = _USUAL_PARTS) -> int:
    """Return what a body takes until it is answered, 0 if that is little."""
    return 3 * size + parts * _PART if size > SMALL_BODY or parts > SMALL_PARTS else 0


def answer_bytes(message: Message) -> int:
    """Return what may be found for a message and made into an answer, or 0 if that is little."""
    operations = message.operations if isinstance(message, Batch) else (message,)
    # What asks for more is refused when it is carried out, with its reason: it must not wait here for room.
    found = min(sum(map(_found_bytes, operations)), READ_LIMIT)
    most = found + 4 * min(found, BATCH_INLINE_LIMIT)
    return most if most > _SMALL else 0


def reply_bytes(reply: Any) -> int:
    """Return what a reply and the answer that is made of it take, or 0 if that is little."""
    most = _made_bytes(reply)
    return most if most > _SMALL else 0


def _made_bytes(reply: Any) -> int:
    match reply:
        case Found(entry, data, blob):
            return entry_bytes(entry) + 4 * len(data or b"") + _made_bytes(blob)
        case Blob():
            return len(reply.chunks) * _CHUNK
        case Hit():
            return _made_bytes(reply.found)
        case Page():
            return sum(map(_made_bytes, reply.found))
        case SegmentPage():
            return sum(map(text_bytes, reply.segments))
        case list():
            return sum(map(_made_bytes, cast("list[Any]", reply)))
        case _:
            return 0


def _found_bytes(message: Message) -> int:
    match message:
        case PrepareRead():
            return _ENTRY + INLINE_LIMIT
        case PrepareWrite(size=size, chunk_size=int(chunk_size)) if chunk_size > 0:
            return size // chunk_size * _CHUNK
        case List(limit=limit, max_inline_size=None) | ListParents(limit=limit) | ListSegments(limit=limit):
            return limit * _ENTRY
        case List(limit=limit):
            return limit * _ENTRY + min(limit * INLINE_LIMIT, BATCH_INLINE_LIMIT)
        case Search(limit=limit):
            return limit * (_ENTRY + INLINE_LIMIT)
        case _:
            return _ENTRY
