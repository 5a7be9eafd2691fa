"""Replies as bodies, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_json

from ..errors import InvalidRequestError, ProtocolError
from ..messages import (
    Batch,
    Blob,
    CommitWrite,
    Delete,
    Entry,
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
    from_us,
    to_us,
)
from .blobs import Address, blob_body, blob_of, inline, inline_bytes
from .bodies import VERB_OF, VERBS

# -- on the server ---------------------------------------------------------------------------------------------------


def encode_reply(message: Message, reply: Any, address: Address) -> bytes:
    """Return the body that answers a message; ``address`` says where its chunks are to be found."""
    return to_json(_ENCODERS[type(message)](message, reply, address))


def found_body(found: Found | None, address: Address) -> dict[str, Any]:
    """Return a value that stands somewhere as JSON; None is an absent one."""
    if found is None:
        return {"blob": None, "entry": None}
    return {"blob": _bytes_body(found, address), "entry": _entry_body(found.entry)}


def _bytes_body(found: Found, address: Address) -> dict[str, Any] | None:
    if found.data is not None:
        blob = inline(found.entry.etag, found.data)
        return {"id": blob.id, "chunks": [{"uri": blob.chunks[0].uri, "size": blob.chunks[0].size, "etag": None}]}
    return None if found.blob is None else blob_body(found.blob, address)


def _entry_body(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "version": entry.version,
        "etag": entry.etag,
        "size": entry.size,
        "sha256": entry.sha256,
        "content_type": entry.content_type,
        "signature": entry.signature,
        "schema_name": entry.schema_name,
        "schema_version": entry.schema_version,
        "created_at": _time(entry.created_us),
        "updated_at": _time(entry.updated_us),
        "expires_at": None if entry.expires_us is None else _time(entry.expires_us),
        "provenance": None if entry.provenance is None else dict(entry.provenance),
        "deleted": entry.deleted,
    }


def _time(us: int) -> str:
    return from_us(us).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _encode_found(_: Message, reply: Found | None, address: Address) -> dict[str, Any]:
    return found_body(reply, address)


def _encode_place(_: Message, reply: Any, address: Address) -> dict[str, Any]:
    return {"blob": blob_body(reply, address)}


def _encode_entry(_: Message, reply: Entry | None, _address: Address) -> dict[str, Any]:
    return {"entry": None if reply is None else _entry_body(reply)}


def _encode_page(message: List, reply: Page, address: Address) -> dict[str, Any]:
    body: dict[str, Any] = {
        "entries": [_entry_body(found.entry) for found in reply.found],
        "next_cursor": reply.cursor,
    }
    if message.max_inline_size is not None:
        body["blobs"] = [_bytes_body(found, address) for found in reply.found]
    return body


def _encode_segments(_: Message, reply: SegmentPage, _address: Address) -> dict[str, Any]:
    return {"segments": reply.segments, "next_cursor": reply.cursor}


def _encode_hits(_: Search, reply: list[Hit], address: Address) -> dict[str, Any]:
    return {"hits": [{**found_body(hit.found, address), "score": hit.score} for hit in reply]}


def _encode_batch(message: Batch, reply: list[Any], address: Address) -> dict[str, Any]:
    pairs = zip(message.operations, reply, strict=True)
    return {"results": [_ENCODERS[type(operation)](operation, one, address) for operation, one in pairs]}


_ENCODERS: Final[Mapping[type, Callable[[Any, Any, Address], dict[str, Any]]]] = {
    PrepareRead: _encode_found,
    PrepareWrite: _encode_place,
    CommitWrite: _encode_entry,
    Delete: _encode_entry,
    List: _encode_page,
    ListSegments: _encode_segments,
    ListParents: _encode_segments,
    Search: _encode_hits,
    Batch: _encode_batch,
}

# -- on the client ---------------------------------------------------------------------------------------------------


def decode_reply(message: Message, raw: bytes) -> Any:
    """Return what a body answers a message with; raise ProtocolError if it is not an answer to this message."""
    shape = VERBS[VERB_OF[type(message)]].reply.validator
    return _DECODERS[type(message)](message, _validated(shape.validate_json, raw))


def found_of(body: Any) -> Found | None:
    """Return the value that a validated body stands for; its bytes may be left out."""
    if body.get("entry") is None:
        return None
    return _found(body["entry"], body.get("blob"))


def _validated(validate: Callable[[Any], Any], body: Any) -> Any:
    try:
        return validate(body)
    except ValidationError:
        # Its text would repeat what the server sent.
        pass
    raise ProtocolError("the server's answer is not one of this protocol")


def _found(entry: Any, blob: Any) -> Found:
    if blob is None:
        return Found(_entry(entry), None, None)
    found = blob_of(blob)
    try:
        data = inline_bytes(found)
    except InvalidRequestError:
        data = found = None
    if found is None:
        raise ProtocolError("the server sent inline bytes that are not sound")
    return Found(_entry(entry), data, found if data is None else None)


def _entry(body: Any) -> Entry:
    expires: datetime | None = body.get("expires_at")
    return Entry(
        body["key"],
        body["version"],
        body["etag"],
        body["size"],
        body["sha256"],
        body["content_type"],
        body.get("signature"),
        body.get("schema_name"),
        body.get("schema_version"),
        to_us(body["created_at"]),
        to_us(body["updated_at"]),
        None if expires is None else to_us(expires),
        body.get("provenance"),
        body.get("deleted", False),
    )


def _decode_found(message: PrepareRead, body: Any) -> Found | None:
    if (body["entry"] is None) != (body["blob"] is None):
        raise ProtocolError("the server sent a value without its entry, or an entry without its value")
    if body["entry"] is None:
        return None
    found = _found(body["entry"], body["blob"])
    _check_key(message.key, found.entry)
    return found


def _check_key(key: str, entry: Entry) -> None:
    if entry.key != key:
        raise ProtocolError("the server answered for another key")


def _decode_place(message: PrepareWrite, body: Any) -> Blob:
    place = blob_of(body["blob"])
    if place.size != message.size:
        raise ProtocolError("the server offered chunks that do not add up to the value's size")
    return place


def _decode_entry(message: CommitWrite | Delete, body: Any) -> Entry | None:
    if body["entry"] is None:
        return None
    entry = _entry(body["entry"])
    _check_key(message.key, entry)
    return entry


def _decode_page(message: List, body: Any) -> Page:
    entries = body["entries"]
    blobs = body.get("blobs") if message.max_inline_size is not None else [None] * len(entries)
    if blobs is None or len(blobs) != len(entries) or (message.max_inline_size is not None and None in blobs):
        raise ProtocolError("the server listed entries without their values")
    found = [_found(entry, blob) for entry, blob in zip(entries, blobs, strict=True)]
    _check_prefix(message.prefix, found)
    return Page(found, body["next_cursor"])


def _check_prefix(prefix: str, found: Sequence[Found]) -> None:
    if not all(one.entry.key.startswith(prefix) for one in found):
        raise ProtocolError("the server listed a key that was not asked for")


def _decode_segments(_: Message, body: Any) -> SegmentPage:
    return SegmentPage(body["segments"], body["next_cursor"])


def _decode_hits(message: Search, body: Any) -> list[Hit]:
    hits = [Hit(_found(one["entry"], one["blob"]), one.get("score")) for one in body["hits"]]
    _check_prefix(message.prefix, [hit.found for hit in hits])
    return hits


def _decode_batch(message: Batch, body: Any) -> list[Any]:
    results = body["results"]
    if len(results) != len(message.operations):
        raise ProtocolError("the server did not answer every operation of the batch")
    return [_decode_result(operation, one) for operation, one in zip(message.operations, results, strict=True)]


def _decode_result(operation: Message, result: Any) -> Any:
    shape = VERBS[VERB_OF[type(operation)]].reply.validator
    return _DECODERS[type(operation)](operation, _validated(shape.validate_python, result))


_DECODERS: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    PrepareRead: _decode_found,
    PrepareWrite: _decode_place,
    CommitWrite: _decode_entry,
    Delete: _decode_entry,
    List: _decode_page,
    ListSegments: _decode_segments,
    ListParents: _decode_segments,
    Search: _decode_hits,
    Batch: _decode_batch,
}
