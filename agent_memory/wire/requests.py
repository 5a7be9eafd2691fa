"""Messages as request bodies, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic_core import to_json

from ..errors import InvalidRequestError
from ..ids import uuid7
from ..keys import check_request_id
from ..messages import (
    BYTES,
    Batch,
    CommitWrite,
    Delete,
    List,
    ListParents,
    ListSegments,
    Message,
    Pattern,
    PrepareRead,
    PrepareWrite,
    Scope,
    Search,
)
from .blobs import as_is, blob_body, blob_of, from_base64, inline, inline_bytes, to_base64
from .bodies import VERB_OF, VERBS
from .parsing import malformed, parse, validated


def encode_request(message: Message) -> tuple[str, bytes]:
    """Return the verb and the body that stand for a message; raise InvalidRequestError if no JSON can hold it."""
    verb = VERB_OF[type(message)]
    body = _ENCODERS[verb](message)
    request_id = scope_of(message).request_id
    if request_id is not None:
        body["request_id"] = request_id
    try:
        return verb, to_json(body)
    except ValueError as error:
        # Its text would repeat the value.
        deep = "depth exceeded" in str(error)
    raise InvalidRequestError(f"a field of the request is {'nested too deeply' if deep else 'not valid Unicode'}")


def scope_of(message: Message) -> Scope:
    """Return the scope of a message that has a verb: they all have one."""
    scope: Scope = getattr(message, "scope")  # noqa: B009  (the transfer messages have none)
    return scope


def _encode_read(message: PrepareRead) -> dict[str, Any]:
    body: dict[str, Any] = {"state_key": message.key, "max_inline_size": message.max_inline_size}
    if message.version is not None:
        body["version"] = message.version
    if message.refresh_ttl:
        body["refresh_ttl"] = True
    return body


def _encode_place(message: PrepareWrite) -> dict[str, Any]:
    body: dict[str, Any] = {"state_key": message.key, "size": message.size}
    if message.if_none_match:
        body["if_none_match"] = "*"
    _add(body, chunk_size=message.chunk_size, write_id=message.write_id, if_match=message.if_match)
    return body


def _encode_commit(message: CommitWrite) -> dict[str, Any]:
    blob = message.blob if message.data is None else inline(message.write_id or uuid7(), message.data)
    if blob is None:
        raise InvalidRequestError("a write needs inline data or a prepared blob")
    body: dict[str, Any] = {
        "state_key": message.key,
        "blob": blob_body(blob, as_is),
        "content_type": message.content_type,
    }
    if message.if_none_match:
        body["if_none_match"] = "*"
    if message.keep_ttl:
        body["keep_ttl"] = True
    if message.vectors:
        body["vectors"] = [to_base64(vector) for vector in message.vectors]
    if message.max_inline_size:
        body["max_inline_size"] = message.max_inline_size
    _add(
        body,
        write_id=message.write_id,
        # Bytes that leave the process say what they were.
        sha256=message.sha256 or (None if message.data is None else hashlib.sha256(message.data).hexdigest()),
        signature=message.signature,
        schema_name=message.schema_name,
        schema_version=message.schema_version,
        if_match=message.if_match,
        ttl_seconds=message.ttl_seconds,
        provenance=message.provenance and dict(message.provenance),
    )
    return body


def _encode_delete(message: Delete) -> dict[str, Any]:
    body: dict[str, Any] = {"state_key": message.key}
    if message.max_inline_size:
        body["max_inline_size"] = message.max_inline_size
    _add(
        body,
        write_id=message.write_id,
        if_match=message.if_match,
        provenance=message.provenance and dict(message.provenance),
    )
    return body


def _encode_list(message: List) -> dict[str, Any]:
    body: dict[str, Any] = {"prefix": message.prefix, "limit": message.limit}
    if message.reverse:
        body["reverse"] = True
    _add(body, cursor=message.cursor, max_inline_size=message.max_inline_size)
    return body


def _encode_search(message: Search) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prefix": message.prefix,
        "limit": message.limit,
        "max_inline_size": message.max_inline_size,
    }
    if message.offset:
        body["offset"] = message.offset
    if message.refresh_ttl:
        body["refresh_ttl"] = True
    if message.nested:
        body["nested"] = True
    _add(body, filter=message.filter, vector=None if message.vector is None else to_base64(message.vector))
    return body


def _encode_names(message: ListSegments | ListParents) -> dict[str, Any]:
    body: dict[str, Any] = {"prefix": message.prefix, "limit": message.limit}
    _add(body, cursor=message.cursor)
    return body


def _encode_parents(message: ListParents) -> dict[str, Any]:
    body = _encode_names(message)
    if message.patterns:
        body["patterns"] = [{"segments": list(one.segments), "at_end": one.at_end} for one in message.patterns]
    if message.offset:
        body["offset"] = message.offset
    _add(body, depth=message.depth)
    return body


def _encode_batch(message: Batch) -> dict[str, Any]:
    verbs = [VERB_OF[type(operation)] for operation in message.operations]
    return {
        "operations": [
            {"verb": verb, **_ENCODERS[verb](operation)}
            for verb, operation in zip(verbs, message.operations, strict=True)
        ]
    }


_ENCODERS: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "prepare_read": _encode_read,
    "prepare_write": _encode_place,
    "commit_write": _encode_commit,
    "delete": _encode_delete,
    "list": _encode_list,
    "list_segments": _encode_names,
    "list_parents": _encode_parents,
    "search": _encode_search,
    "batch": _encode_batch,
}


def decode_request(verb: str, namespace: str, application: str, state: str, raw: bytes) -> Message:
    """Return the message that a body stands for.

    ``state`` is ``app_state`` or ``request_state``; ``verb`` is one of VERBS. Raises InvalidRequestError with the code
    ``malformed`` for a body that is not one of this verb's, naming places and never values.
    """
    body = validated(VERBS[verb].request, parse(raw))
    request_id: str | None = body.get("request_id")
    if state != "request_state":
        return _DECODERS[verb](Scope(namespace, application), body, request_id)
    if request_id is None:
        raise malformed("request_id is missing")
    return _DECODERS[verb](Scope(namespace, application, check_request_id(request_id)), body, None)


def _decode_read(scope: Scope, body: Any, _: str | None) -> PrepareRead:
    return PrepareRead(
        scope,
        body["state_key"],
        body.get("max_inline_size") or 0,
        body.get("version"),
        body.get("refresh_ttl") or False,
    )


def _decode_place(scope: Scope, body: Any, _: str | None) -> PrepareWrite:
    return PrepareWrite(
        scope,
        body["state_key"],
        body["size"],
        body.get("chunk_size"),
        body.get("write_id"),
        body.get("if_match"),
        "if_none_match" in body,
    )


def _decode_commit(scope: Scope, body: Any, request_id: str | None) -> CommitWrite:
    blob = blob_of(body["blob"])
    data = inline_bytes(blob)
    write_id = body.get("write_id")
    return CommitWrite(
        scope,
        body["state_key"],
        blob.id if write_id is None else write_id,
        data,
        blob if data is None else None,
        content_type=body.get("content_type") or BYTES,
        sha256=body.get("sha256"),
        signature=body.get("signature"),
        schema_name=body.get("schema_name"),
        schema_version=body.get("schema_version"),
        if_match=body.get("if_match"),
        if_none_match="if_none_match" in body,
        ttl_seconds=body.get("ttl_seconds"),
        provenance=_provenance(body, request_id),
        max_inline_size=body.get("max_inline_size") or 0,
        keep_ttl=body.get("keep_ttl") or False,
        vectors=tuple(_vector(text) for text in body.get("vectors") or ()),
    )


def _vector(text: str) -> bytes:
    vector = from_base64(text)
    if vector is None:
        raise malformed("a vector is 32-bit floats in base64")
    return vector


def _decode_delete(scope: Scope, body: Any, request_id: str | None) -> Delete:
    return Delete(
        scope,
        body["state_key"],
        body.get("write_id"),
        body.get("if_match"),
        _provenance(body, request_id),
        body.get("max_inline_size") or 0,
    )


def _provenance(body: Any, request_id: str | None) -> dict[str, str] | None:
    """Return who writes; a request id beside application state says in which request."""
    given: dict[str, str] | None = body.get("provenance")
    return given if request_id is None else {"request_id": request_id, **(given or {})}


def _decode_list(scope: Scope, body: Any, _: str | None) -> List:
    return List(
        scope,
        body["prefix"],
        body.get("cursor"),
        _limit(body),
        body.get("reverse") or False,
        body.get("max_inline_size"),
    )


def _decode_segments(scope: Scope, body: Any, _: str | None) -> ListSegments:
    return ListSegments(scope, body["prefix"], body.get("cursor"), _limit(body))


def _decode_parents(scope: Scope, body: Any, _: str | None) -> ListParents:
    patterns = tuple(Pattern(tuple(one["segments"]), one.get("at_end") or False) for one in body.get("patterns") or ())
    return ListParents(
        scope, body["prefix"], body.get("cursor"), _limit(body), patterns, body.get("depth"), body.get("offset") or 0
    )


def _decode_search(scope: Scope, body: Any, _: str | None) -> Search:
    vector: str | None = body.get("vector")
    return Search(
        scope,
        body["prefix"],
        body.get("filter"),
        10 if body.get("limit") is None else body["limit"],
        body.get("offset") or 0,
        None if vector is None else _vector(vector),
        body.get("max_inline_size") or 0,
        body.get("refresh_ttl") or False,
        body.get("nested") or False,
    )


def _limit(body: Any) -> int:
    return 100 if body.get("limit") is None else body["limit"]


def _decode_batch(scope: Scope, body: Any, request_id: str | None) -> Batch:
    return Batch(scope, tuple(_DECODERS[one["verb"]](scope, one, request_id) for one in body["operations"]))


_DECODERS: Final[Mapping[str, Callable[[Scope, Any, str | None], Any]]] = {
    "prepare_read": _decode_read,
    "prepare_write": _decode_place,
    "commit_write": _decode_commit,
    "delete": _decode_delete,
    "list": _decode_list,
    "list_segments": _decode_segments,
    "list_parents": _decode_parents,
    "search": _decode_search,
    "batch": _decode_batch,
}


def _add(body: dict[str, Any], **fields: Any) -> None:
    """Put the fields that have a value into a body."""
    body |= {name: value for name, value in fields.items() if value is not None}
