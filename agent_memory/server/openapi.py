"""The OpenAPI document, made from the shapes that requests and replies are checked with."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_core import to_json

from ..wire.bodies import PROBLEM, VERBS

_REFUSALS: Final = {
    "400": "a key, a name or a field with a value that is not allowed",
    "401": "no valid token",
    "403": "outside the token's scope",
    "409": "a write id, a blob or a version that cannot be used",
    "412": "a condition failed; the problem carries the current entry",
    "413": "too large",
    "422": "the body is not one of this verb's",
    "503": "try again later",
}
_NAMES_A_REQUEST: Final = {"required": ["request_id"], "properties": {"request_id": {"type": "string"}}}


def document() -> bytes:
    """Return the document as JSON."""
    inputs: list[tuple[str, Any, TypeAdapter[Any]]] = [("problem", "validation", PROBLEM)]
    for name, verb in VERBS.items():
        inputs += [(f"{name}.request", "validation", verb.request), (f"{name}.reply", "validation", verb.reply)]
    schemas, shared = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    paths = {
        f"/v1/namespaces/{{namespace}}/applications/{{application}}/{state}/{name}": {
            "parameters": [_parameter("namespace"), _parameter("application")],
            "post": _operation(name, state, verb.message.__doc__ or "", schemas),
        }
        for state in ("app_state", "request_state")
        for name, verb in VERBS.items()
    }
    return to_json(
        {
            "openapi": "3.1.0",
            "info": {"title": "agent-memory", "version": "1"},
            "paths": paths,
            "components": {
                "schemas": shared.get("$defs", {}),
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"token": []}, {}],
        }
    )


def _operation(name: str, state: str, text: str, schemas: Any) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": schemas["problem", "validation"]}}
    request = schemas[f"{name}.request", "validation"]
    if state == "request_state":
        request = {"allOf": [request, _NAMES_A_REQUEST]}
    return {
        "operationId": f"{state}_{name}",
        "summary": text.partition(" -> ")[0].strip(),
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {
            "200": {"description": "done", "content": _json(schemas[f"{name}.reply", "validation"])},
            **{status: {"description": why, "content": problem} for status, why in _REFUSALS.items()},
            "default": {"description": "any other refusal", "content": problem},
        },
    }


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _parameter(name: str) -> dict[str, Any]:
    pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}
