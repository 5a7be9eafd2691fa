"""Blobs and found values as JSON, and the one form in which bytes travel inside a message."""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ..errors import InvalidRequestError
from ..messages import Blob, Chunk

Address: TypeAlias = Callable[[Chunk], str]
"""Says under which URI a chunk can be fetched or stored; only servers rename."""

_DATA: Final = "data:"
_DATA_URI: Final = "data:;base64,"


def as_is(chunk: Chunk) -> str:
    """Return the URI that a chunk has."""
    return chunk.uri


def to_base64(data: bytes) -> str:
    """Return bytes as base64."""
    return binascii.b2a_base64(data, newline=False).decode()


def from_base64(text: str) -> bytes | None:
    """Return the bytes that base64 stands for; None if it is not sound."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None


def inline(blob_id: str, data: bytes) -> Blob:
    """Return bytes as a blob whose one chunk carries them."""
    return Blob(blob_id, (Chunk(_DATA_URI + to_base64(data), len(data)),))


def inline_bytes(blob: Blob) -> bytes | None:
    """Return the bytes that a blob carries itself, None if they are to be fetched.

    Raises InvalidRequestError with the code ``malformed`` for any other data URI and for a size that is not theirs.
    """
    if not any(chunk.uri[:5].lower() == _DATA for chunk in blob.chunks):
        return None
    if len(blob.chunks) != 1 or not blob.chunks[0].uri.startswith(_DATA_URI):
        raise InvalidRequestError(f"inline bytes are exactly one chunk, {_DATA_URI}…", code="malformed")
    chunk = blob.chunks[0]
    data = from_base64(chunk.uri[len(_DATA_URI) :])
    if data is None or len(data) != chunk.size:
        raise InvalidRequestError("a chunk's base64 is not sound, or not of the chunk's size", code="malformed")
    return data


def blob_body(blob: Blob, address: Address) -> dict[str, Any]:
    """Return a blob as JSON."""
    chunks = [{"uri": address(chunk), "size": chunk.size, "etag": chunk.etag} for chunk in blob.chunks]
    return {"id": blob.id, "chunks": chunks}


def blob_of(body: Any) -> Blob:
    """Return the blob that a validated body stands for."""
    return Blob(body["id"], tuple(Chunk(one["uri"], one["size"], one.get("etag")) for one in body["chunks"]))
