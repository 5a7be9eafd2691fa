"""The OpenAPI document, made from the shapes that requests and replies are checked with, and the store's limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_core import to_json

from ..checks import MAX_PATTERNS, MAX_TTL_SECONDS, MAX_VECTORS
from ..keys import MAX_KEY_BYTES
from ..messages import BATCH_OPERATIONS, BYTES, JSON, MAX_VALUE_BYTES, PAGE_LIMIT
from ..uploads import MIN_CHUNK_BYTES
from ..wire.bodies import PROBLEM, VERBS
from ..wire.problems import PROBLEM_TYPE

# What the service refuses in requests whose shape is right. Of keys it counts the bytes, one or more a letter.
_LIMITS: Final[Mapping[str, Mapping[str, Any]]] = {
    "state_key": {"minLength": 1, "maxLength": MAX_KEY_BYTES},
    "prefix": {"maxLength": MAX_KEY_BYTES},
    "cursor": {"maxLength": MAX_KEY_BYTES},
    "limit": {"minimum": 1, "maximum": PAGE_LIMIT},
    "size": {"maximum": MAX_VALUE_BYTES},
    "chunk_size": {"minimum": MIN_CHUNK_BYTES},
    "write_id": {"minLength": 1, "maxLength": 128},
    "if_match": {"minLength": 1},
    "content_type": {"maxLength": 255},
    "ttl_seconds": {"maximum": MAX_TTL_SECONDS},
    "vectors": {"maxItems": MAX_VECTORS},
    "patterns": {"maxItems": MAX_PATTERNS},
    "operations": {"minItems": 1, "maxItems": BATCH_OPERATIONS},
}
_REFUSALS: Final = {
    "400": "a key, a name or a field with a value that is not allowed",
    "401": "no valid token",
    "403": "outside the token's scope",
    "409": "a write id, a blob or a version that cannot be used",
    "412": "a condition failed; the problem carries the current entry",
    "413": "too large",
    "422": "the body is not one of this verb's",
}
_BLOB_REFUSALS: Final = {
    "403": "the URL was not signed by this server for this method, or its time is over",
    "500": "the stored chunk is damaged, or the server failed",
}
_GET_REFUSALS: Final = {
    "404": "the chunk is not there any more: prepare the read again",
    "416": "the chunk has no such range",
}
_PUT_REFUSALS: Final = {
    "400": "not as many bytes as were prepared",
    "408": "the bytes did not travel in time",
    "409": "other bytes were uploaded before",
    "410": "the prepared write is committed or has expired",
}
# Generators of clients leave out an operation that has a body without a schema.
_BYTES: Final[dict[str, Any]] = {BYTES: {"schema": {"type": "string", "format": "binary"}}}
_PART_HEADERS: Final = ("Accept-Ranges", "Content-Length")
_REQUEST_ID: Final = {"title": "Request Id", "type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES}


def document(*, blobs: bool) -> bytes:
    """Return the document as JSON; ``blobs`` says whether the server itself keeps what lies behind signed URLs."""
    inputs: list[tuple[str, Any, TypeAdapter[Any]]] = [("problem", "validation", PROBLEM)]
    for name, verb in VERBS.items():
        inputs += [(f"{name}.request", "validation", verb.request), (f"{name}.reply", "validation", verb.reply)]
    schemas, shared = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    for shape in shared["$defs"].values():
        # Of the shapes those of requests take no other fields.
        if shape.get("additionalProperties") is False:
            _limit(shape["properties"])
    problem = {PROBLEM_TYPE: {"schema": schemas["problem", "validation"]}}
    paths: dict[str, Any] = {
        f"/v1/namespaces/{{namespace}}/applications/{{application}}/{state}/{name}": {
            "parameters": [_scope_parameter("namespace"), _scope_parameter("application")],
            "post": _verb(name, state, verb.message.__doc__ or "", schemas, shared["$defs"], problem),
        }
        for state in ("app_state", "request_state")
        for name, verb in VERBS.items()
    }
    if blobs:
        paths["/v1/blobs/{blob}/{chunk}"] = _blob(problem)
    paths |= {
        "/healthz": {"get": _probe("healthz", "Say that the process lives.", problem)},
        "/readyz": {"get": _probe("readyz", "Say whether requests can be served.", problem, {"503": "they cannot"})},
        "/openapi.json": {"get": _probe("openapi", "Return this document.", problem)},
    }
    return to_json(
        {
            "openapi": "3.1.0",
            "info": {"title": "agent-memory", "version": "1"},
            "paths": paths,
            "components": {
                "schemas": shared["$defs"],
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"token": []}, {}],
        }
    )


def _limit(properties: dict[str, Any]) -> None:
    for name in _LIMITS.keys() & properties.keys():
        # What may be null has two shapes, of which null is the second.
        properties[name].get("anyOf", [properties[name]])[0].update(_LIMITS[name])


def _verb(name: str, state: str, text: str, schemas: Any, shapes: Any, problem: Any) -> dict[str, Any]:
    request = schemas[f"{name}.request", "validation"]
    if state == "request_state":
        request = _in_a_request(shapes[request["$ref"].rpartition("/")[2]])
    return {
        "operationId": f"{state}_{name}",
        "summary": text.partition(" -> ")[0].strip(),
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {
            "200": {"description": "done", "content": _json(schemas[f"{name}.reply", "validation"])},
            **_refused(problem, _REFUSALS, busy=True),
        },
    }


def _in_a_request(shape: Any) -> dict[str, Any]:
    """Return the shape of a body that has to name its request; generators of clients cannot merge two shapes."""
    return {
        **shape,
        "title": f"Request{shape['title']}",
        "required": [*shape["required"], "request_id"],
        "properties": {**shape["properties"], "request_id": _REQUEST_ID},
    }


def _blob(problem: Any) -> dict[str, Any]:
    """Return the path of signed URLs, which hold all that a request needs but the bytes."""
    range_header = {"name": "Range", "in": "header", "schema": {"type": "string"}, "description": "one range of bytes"}
    return {
        "description": "Only as a signed URL that came in a blob, unchanged.",
        "parameters": [
            *(_parameter(name, "path", "string") for name in ("blob", "chunk")),
            *(_parameter(name, "query", "integer") for name in ("expires", "size")),
            _parameter("signature", "query", "string"),
        ],
        "get": {
            "operationId": "get_chunk",
            "summary": "Fetch a chunk, or a part of it; HEAD gives its size.",
            "security": [],
            "parameters": [range_header],
            "responses": {
                "200": {"description": "the chunk", "headers": _headers(*_PART_HEADERS), "content": _BYTES},
                "206": {
                    "description": "the part that was asked for",
                    "headers": _headers(*_PART_HEADERS, "Content-Range"),
                    "content": _BYTES,
                },
                **_refused(problem, _BLOB_REFUSALS | _GET_REFUSALS, busy=True),
            },
        },
        "put": {
            "operationId": "put_chunk",
            "summary": "Store a chunk; repeating it with the same bytes changes nothing.",
            "security": [],
            "requestBody": {"required": True, "content": _BYTES},
            "responses": {
                "200": {"description": "stored", "headers": _headers("ETag")},
                **_refused(problem, _BLOB_REFUSALS | _PUT_REFUSALS, busy=True),
            },
        },
    }


def _probe(name: str, summary: str, problem: Any, refusals: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "security": [],
        "responses": {
            "200": {"description": "yes", "content": _json({"type": "object"})},
            **_refused(problem, refusals or {}),
        },
    }


def _refused(problem: Any, refusals: Mapping[str, str], *, busy: bool = False) -> dict[str, Any]:
    answers: dict[str, Any] = {status: {"description": why, "content": problem} for status, why in refusals.items()}
    if busy:
        headers = _headers("Retry-After")
        answers["503"] = {"description": "try again later", "headers": headers, "content": problem}
    return {**answers, "default": {"description": "any other refusal", "content": problem}}


def _json(schema: Any) -> dict[str, Any]:
    return {JSON: {"schema": schema}}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"schema": {"type": "string"}} for name in names}


def _parameter(name: str, place: str, kind: str, **more: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": True, "schema": {"type": kind, **more}}


def _scope_parameter(name: str) -> dict[str, Any]:
    return _parameter(name, "path", "string", pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
