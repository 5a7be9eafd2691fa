"""The server as other programs meet it: raw requests to a real process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client as http_client
import io
import json
import logging
import os
import re
import resource
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from agent_memory import AgentMemory, InvalidRequestError, UnavailableError
from agent_memory.messages import Batch, Blob, Chunk, Entry, Found, Hit, List, Page, Scope, Search
from agent_memory.opening import open_service
from agent_memory.operations import Set
from agent_memory.server import app, connections, probes, verbs
from agent_memory.server.asgi import refuse
from agent_memory.server.auth import LoopbackGate, host_of
from agent_memory.server.blob_urls import BlobUrls
from agent_memory.server.log import RequestLog, ServerEvents
from agent_memory.server.memory import reply_bytes
from agent_memory.server.openapi import document
from agent_memory.server.verbs import _is_large
from tests.support.api import Api, inline, part_files, problem, raw, wait_for
from tests.support.server import ServerProcess

TOKEN, APP_TOKEN, HASHED_TOKEN = "token-of-acme-0123", "token-of-one-app-4567", "token-kept-as-hash-89"
VERBS = [
    "prepare_read",
    "prepare_write",
    "commit_write",
    "delete",
    "list",
    "list_segments",
    "list_parents",
    "search",
    "batch",
]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture
def api(http: httpx.Client, server: ServerProcess) -> Api:
    return Api(http, server.url, "acme", f"t{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants tokens."""
    import hashlib

    folder = tmp_path_factory.mktemp("guarded")
    tokens = folder / "tokens"
    digest = hashlib.sha256(HASHED_TOKEN.encode()).hexdigest()
    tokens.write_text(f"# who may what\n\n{TOKEN} acme\n{APP_TOKEN} acme shop\nsha256:{digest} other\n")
    tokens.chmod(0o600)
    with ServerProcess(folder, "--token-file", str(tokens)) as server:
        yield server


# -- values ----------------------------------------------------------------------------------------------------------


def test_a_small_value_is_set_and_read_in_one_round_trip_each(api: Api) -> None:
    entry = api.set("key", b"value", content_type="text/plain").json()["entry"]
    found = api.get("key")

    assert found["entry"] == entry
    assert found["blob"]["chunks"] == [{"uri": "data:;base64,dmFsdWU=", "size": 5, "etag": None}]
    assert entry["created_at"].endswith("Z")
    assert len(entry["created_at"]) == len("2026-01-01T00:00:00.000000Z")


def test_a_missing_key_is_no_error(api: Api) -> None:
    assert api.get("missing") == {"blob": None, "entry": None}


def test_a_failed_condition_carries_what_stands_there(api: Api) -> None:
    etag = api.set("key", b"theirs").json()["entry"]["etag"]

    refused = api.set("key", b"mine", if_match="other", max_inline_size=100)

    assert problem(refused) == (412, "condition_failed")
    assert refused.json()["entry"]["etag"] == etag
    assert refused.json()["blob"]["chunks"][0]["uri"] == "data:;base64,dGhlaXJz"


def test_a_failed_condition_on_an_absent_key_says_that_it_is_absent(api: Api) -> None:
    refused = api.set("key", b"mine", if_match="other", max_inline_size=100)

    assert problem(refused) == (412, "condition_failed")
    assert refused.json()["entry"] is None


def test_a_repeated_write_makes_one_version(api: Api) -> None:
    body = {"state_key": "key", "blob": inline(b"value"), "write_id": "w"}

    assert api.post("commit_write", body).json() == api.post("commit_write", body).json()


def test_a_write_id_with_other_bytes_is_refused(api: Api) -> None:
    api.set("key", b"value", write_id="w")

    assert problem(api.set("key", b"other", write_id="w")) == (409, "write_id_reused")


def test_a_batch_answers_every_operation_in_order(api: Api) -> None:
    operations = [
        {"verb": "commit_write", "state_key": "a", "blob": inline(b"1")},
        {"verb": "prepare_read", "state_key": "a", "max_inline_size": 10},
        {"verb": "list", "prefix": "", "max_inline_size": 10},
        {"verb": "delete", "state_key": "a"},
        {"verb": "prepare_read", "state_key": "a"},
    ]

    results = api.post("batch", {"operations": operations}).json()["results"]

    assert results[0]["entry"]["version"] == 1
    assert results[1]["blob"]["chunks"][0]["uri"] == "data:;base64,MQ=="
    assert [entry["key"] for entry in results[2]["entries"]] == ["a"]
    assert results[2]["blobs"][0]["chunks"][0]["size"] == 1
    assert results[3]["entry"]["deleted"] is True
    assert results[4] == {"blob": None, "entry": None}


def test_a_request_id_beside_application_state_becomes_its_provenance(api: Api) -> None:
    entry = api.set("key", b"value", request_id="r1", allocation_id="ignored").json()["entry"]

    assert entry["provenance"] == {"request_id": "r1"}
    assert api.get("key")["entry"]["key"] == "key"


def test_request_state_is_apart_from_application_state(api: Api) -> None:
    body = {"state_key": "key", "blob": inline(b"value"), "request_id": "r1"}

    assert api.post("commit_write", body, "request_state").status_code == 200
    assert api.get("key")["entry"] is None
    assert problem(api.post("prepare_read", {"state_key": "key"}, "request_state")) == (422, "malformed")


def test_health_readiness_and_the_api_description_are_served(server: ServerProcess, http: httpx.Client) -> None:
    assert http.get(f"{server.url}/healthz").json() == {"status": "ok"}
    assert http.get(f"{server.url}/readyz").json() == {"status": "ready"}
    described = http.get(f"{server.url}/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert len(described["paths"]) == 2 * len(VERBS) + len(["blobs", "healthz", "readyz", "openapi.json"])


@pytest.mark.parametrize("keeps_blobs", [True, False])
def test_the_description_has_the_routes_of_the_server_and_no_others(tmp_path: Path, keeps_blobs: bool) -> None:
    service = open_service(str(tmp_path / "store.db"))
    if not keeps_blobs:
        service.blobs = cast(Any, SimpleNamespace(close=service.blobs.close))
    served = cast(Any, app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO()))))
    service.close()
    routes = {route.path: route.app for route in served._app.routes}
    described = json.loads(document(blobs=keeps_blobs))

    paths = {path.replace("{verb}", verb) for path in routes for verb in (VERBS if "{verb}" in path else [""])}

    assert set(described["paths"]) == paths
    assert ("/v1/blobs/{blob}/{chunk}" in paths) == keeps_blobs
    assert routes["/openapi.json"]._body == document(blobs=keeps_blobs)


def test_the_description_has_the_methods_that_each_route_takes(server: ServerProcess, http: httpx.Client) -> None:
    for path, methods in http.get(f"{server.url}/openapi.json").json()["paths"].items():
        refused = http.delete(server.url + re.sub("[{}]", "", path))

        assert problem(refused) == (405, "method_not_allowed")
        allowed = set(refused.headers["allow"].lower().split(", ")) - {"head"}
        assert allowed == set(methods) - {"parameters", "description"}


def test_the_description_has_a_schema_for_every_body() -> None:
    for methods in json.loads(document(blobs=True))["paths"].values():
        for operation in (methods[method] for method in ("get", "put", "post") if method in methods):
            places = [operation.get("requestBody", {}), *operation["responses"].values()]

            assert all("schema" in body for place in places for body in place.get("content", {}).values())


_INLINE = {"id": "", "chunks": [{"uri": "data:;base64,", "size": 0}]}


@pytest.mark.parametrize(
    ("verb", "body", "field", "most", "more"),
    [
        ("prepare_read", {}, "state_key", "k" * 2048, "k" * 2049),
        ("prepare_read", {}, "state_key", "k", ""),
        ("list", {}, "prefix", "k" * 2048, "k" * 2049),
        ("list", {"prefix": ""}, "cursor", "k" * 2048, "k" * 2049),
        ("list", {"prefix": ""}, "limit", 1000, 1001),
        ("list_segments", {"prefix": ""}, "limit", 1, 0),
        ("list_parents", {"prefix": ""}, "patterns", [{"segments": ["a"]}] * 100, [{"segments": ["a"]}] * 101),
        ("prepare_write", {"state_key": "k"}, "size", 5 * 1024**3, 5 * 1024**3 + 1),
        ("prepare_write", {"state_key": "k", "size": 1}, "chunk_size", 65_536, 65_535),
        ("delete", {"state_key": "none"}, "write_id", "i" * 128, "i" * 129),
        ("delete", {"state_key": "none"}, "write_id", "i", ""),
        ("delete", {"state_key": "none"}, "if_match", "any", ""),
        ("commit_write", {"state_key": "k", "blob": _INLINE, "write_id": "c"}, "content_type", "t" * 255, "t" * 256),
        ("commit_write", {"state_key": "k", "blob": _INLINE, "write_id": "t"}, "ttl_seconds", 3.1e9, 3.2e9),
        ("search", {"prefix": ""}, "limit", 1000, 1001),
        ("batch", {}, "operations", [{"verb": "list", "prefix": ""}], []),
        ("batch", {}, "operations", [{"verb": "list", "prefix": "", "limit": 1}],
         [{"verb": "list", "prefix": "", "limit": 0}]),
    ],
)  # fmt: skip
def test_the_description_takes_what_the_server_takes_and_no_more(
    server: ServerProcess, http: httpx.Client, verb: str, body: dict[str, Any], field: str, most: Any, more: Any
) -> None:
    described = http.get(f"{server.url}/openapi.json").json()
    for state in ("app_state", "request_state"):
        path = f"/v1/namespaces/{{namespace}}/applications/{{application}}/{state}/{verb}"
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        fits = jsonschema.Draft202012Validator({**schema, "components": described["components"]}).is_valid
        url = server.url + path.format(namespace="acme", application="limits")
        for value, taken in ((most, True), (more, False)):
            request = {**body, field: value, "request_id": "r"}
            assert (http.post(url, json=request).status_code not in (400, 413, 422), fits(request)) == (taken, taken)


@pytest.mark.parametrize("verb", VERBS)
def test_the_description_says_which_fields_a_request_needs_and_what_a_refusal_is(
    server: ServerProcess, http: httpx.Client, verb: str
) -> None:
    paths = http.get(f"{server.url}/openapi.json").json()["paths"]
    scope = "/v1/namespaces/{namespace}/applications/{application}"
    for state, needed in (("app_state", False), ("request_state", True)):
        operation = paths[f"{scope}/{state}/{verb}"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        # One whole shape: two that are to be merged are more than some generators of clients can do.
        assert ("request_id" in schema.get("required", [])) == needed
        assert ("$ref" in schema) != needed
        assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]


def test_a_store_that_hangs_is_not_ready_and_keeps_one_thread_however_often_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probes, "_PING_SECONDS", 0.02)
    service = open_service(str(tmp_path / "store.db"))
    hanging = threading.Event()
    monkeypatch.setattr(service.blobs, "ping", hanging.wait)
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))
    scope = {
        "type": "http", "method": "GET", "path": "/readyz", "raw_path": b"/readyz", "query_string": b"",
        "http_version": "1.1", "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    statuses: list[int] = []

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def go() -> None:
        before = threading.active_count()
        for _ in range(20):
            await served(dict(scope), asyncio.Queue().get, send)
        assert threading.active_count() <= before + 1
        hanging.set()

    try:
        asyncio.run(go())
    finally:
        hanging.set()
        service.close()
    assert statuses == [503] * 20


# -- malformed requests ----------------------------------------------------------------------------------------------

CHUNK = {"uri": "data:;base64,QQ==", "size": 1, "etag": None}


def case_id(value: Any) -> str:
    """Return a test's name for a body; ids that are made anew each time would make names that nobody can ask for."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}", "ID", text)[:60]


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("prepare_read", {}),
        ("prepare_read", {"state_key": 1}),
        ("prepare_read", {"state_key": None}),
        ("prepare_read", {"state_key": ["a"]}),
        ("prepare_read", {"state_key": "a", "max_inline_size": "1"}),
        ("prepare_read", {"state_key": "a", "max_inline_size": True}),
        ("prepare_read", {"state_key": "a", "max_inline_size": -1}),
        ("prepare_read", {"state_key": "a", "max_inline_size": 1.0}),
        ("prepare_read", {"state_key": "a", "version": 0}),
        ("prepare_read", {"state_key": "a", "version": 2**63}),
        ("prepare_read", {"state_key": "a", "version": 10**30}),
        ("prepare_read", {"state_key": "a", "unknown": 1}),
        ("prepare_read", {"state_key": "a", "request_id": 1}),
        ("prepare_read", [{"state_key": "a"}]),
        ("prepare_read", "state_key"),
        ("prepare_write", {"state_key": "a"}),
        ("prepare_write", {"state_key": "a", "size": -1}),
        ("prepare_write", {"state_key": "a", "size": "1"}),
        ("prepare_write", {"state_key": "a", "size": 2**60}),
        ("commit_write", {"state_key": "a"}),
        ("commit_write", {"state_key": "a", "blob": None}),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": {}}}),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": [CHUNK, CHUNK]}}),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": [{**CHUNK, "size": 2}]}}),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": [{**CHUNK, "uri": "data:,A"}]}}),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": [{**CHUNK, "uri": "DATA:;base64,QQ=="}]}}),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": [{**CHUNK, "uri": "data:;base64,QQ"}]}}),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": [{**CHUNK, "uri": "data:;base64,Q Q="}]}}),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": [{**CHUNK, "uri": "data:;base64,Q Q=="}]}}),
        (
            "commit_write",
            {"state_key": "a", "blob": {"id": "b", "chunks": [{**CHUNK, "uri": "data:text/plain;base64,QQ=="}]}},
        ),
        ("commit_write", {"state_key": "a", "blob": {"id": "b", "chunks": [{**CHUNK, "extra": 1}]}}),
        ("prepare_write", {"state_key": "a", "size": 1, "if_match": None}),
        ("prepare_write", {"state_key": "a", "size": 1, "if_none_match": None}),
        ("prepare_write", {"state_key": "a", "size": 1, "if_none_match": "x"}),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "if_match": None}),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "if_none_match": "x"}),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "sha256": "A" * 64}),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "provenance": {"a": 1}}),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "provenance": ["a"]}),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "ttl_seconds": 0}),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "ttl_seconds": "5"}),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "vectors": ["not base64"]}),
        ("delete", {"state_key": "a", "if_match": None}),
        ("list", {}),
        ("list", {"prefix": "a", "limit": "1"}),
        ("list", {"prefix": "a", "reverse": 1}),
        ("search", {"prefix": "a", "filter": []}),
        ("search", {"prefix": "a", "filter": {"n": 2**63}}),
        ("batch", {}),
        ("batch", {"operations": [{"verb": "prepare_write", "state_key": "a", "size": 1}]}),
        ("batch", {"operations": [{"verb": "batch", "operations": []}]}),
        ("batch", {"operations": [{"state_key": "a"}]}),
        ("batch", {"operations": [{"verb": "delete", "state_key": "a", "request_id": "other"}]}),
        ("batch", {"operations": {"verb": "delete"}}),
    ],
    ids=case_id,
)
def test_a_body_of_the_wrong_shape_is_malformed(api: Api, verb: str, body: Any) -> None:
    assert problem(api.post(verb, body)) == (422, "malformed")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"nonsense",
        b'{"state_key": "a"} trailing',
        b'{"state_key": "a", "state_key": "b"}',
        b'{"state_key": "a", "max_inline_size": NaN}',
        b'{"state_key": "a", "max_inline_size": 1e999}',
        b'{"state_key": "a", "max_inline_size": ' + b"9" * 10_000 + b"}",
        b'{"state_key": "\\ud800"}',
        b'{"state_key": "\xff"}',
        b'\xff\xfe{\x00"\x00',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"state_key": "a", "filter": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_bytes_that_are_not_one_sound_json_object_are_malformed(api: Api, content: bytes) -> None:
    assert problem(api.send("prepare_read", content)) == (422, "malformed")


@pytest.mark.parametrize(
    ("verb", "body", "expected"),
    [
        ("prepare_read", {"state_key": ""}, (400, "invalid_key")),
        ("prepare_read", {"state_key": "a\0b"}, (400, "invalid_key")),
        ("prepare_read", {"state_key": "x" * 2049}, (400, "invalid_key")),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "if_match": ""}, (400, "invalid_request")),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "if_match": " "}, (400, "invalid_request")),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "write_id": ""}, (400, "invalid_request")),
        ("commit_write", {"state_key": "a", "blob": inline(b"1"), "write_id": "x" * 129}, (400, "invalid_request")),
        (
            "commit_write",
            {"state_key": "a", "blob": inline(b"1"), "provenance": {"x": "y" * 4096}},
            (413, "limit_exceeded"),
        ),
        ("commit_write", {"state_key": "a", "blob": inline(b"x" * 65_537)}, (413, "limit_exceeded")),
        ("delete", {"state_key": "a", "if_match": ""}, (400, "invalid_request")),
        ("prepare_write", {"state_key": "a", "size": 2**50}, (413, "limit_exceeded")),
        ("prepare_write", {"state_key": "a", "size": 10, "chunk_size": 1}, (400, "invalid_request")),
        ("prepare_write", {"state_key": "a", "size": 2**30, "chunk_size": 65_536}, (413, "limit_exceeded")),
        ("list", {"prefix": "", "limit": 0}, (400, "invalid_request")),
        ("list", {"prefix": "", "limit": 1_001}, (400, "invalid_request")),
        # More than there is room for in the server: waiting for room would not help.
        ("list", {"prefix": "", "limit": 2**40}, (400, "invalid_request")),
        ("list_segments", {"prefix": "", "limit": 2**40}, (400, "invalid_request")),
        ("list_parents", {"prefix": "", "limit": 2**40}, (400, "invalid_request")),
        ("search", {"prefix": "", "limit": 5_000}, (400, "invalid_request")),
        ("prepare_write", {"state_key": "a", "size": 2**50, "chunk_size": 65_536}, (413, "limit_exceeded")),
        ("list", {"prefix": "a", "cursor": "b"}, (400, "invalid_request")),
        ("list", {"prefix": "a\0"}, (400, "invalid_key")),
        ("list_parents", {"prefix": "a\0"}, (400, "invalid_key")),
        ("search", {"prefix": "a\0"}, (400, "invalid_key")),
        ("search", {"prefix": "", "filter": {"n": {"$near": 1}}}, (400, "invalid_request")),
        *(
            (verb, {**body, **floats}, (400, "invalid_request"))
            for count in (0, 3, 4 * 8_192 + 4)
            for vector in [base64.b64encode(bytes(count)).decode()]
            for verb, body, floats in [
                ("search", {"prefix": ""}, {"vector": vector}),
                ("commit_write", {"state_key": "a", "blob": inline(b"1")}, {"vectors": [vector]}),
            ]
        ),
        *(
            ("commit_write", {"state_key": "a", "blob": inline(b"1"), **wrong}, (status, code))
            for wrong, status, code in [
                ({"vectors": ["AAAAAA=="] * 257, "content_type": "application/json"}, 413, "limit_exceeded"),
                ({"vectors": ["AAAAAA=="], "content_type": "text/plain"}, 400, "invalid_request"),
                ({"if_match": "1-a", "if_none_match": "*"}, 400, "invalid_request"),
                ({"content_type": "x" * 256}, 400, "invalid_request"),
                ({"ttl_seconds": 101 * 366 * 86_400}, 400, "invalid_request"),
                ({"provenance": {"é" * 1_025: "é" * 1_024}}, 413, "limit_exceeded"),
            ]
        ),
        ("batch", {"operations": []}, (413, "limit_exceeded")),
        ("batch", {"operations": [{"verb": "delete", "state_key": "a"}] * 1_001}, (413, "limit_exceeded")),
        (
            "commit_write",
            {"state_key": "a", "blob": {"id": "unknown", "chunks": [{"uri": "x", "size": 1}]}},
            (409, "blob_gone"),
        ),
    ],
    ids=case_id,
)
def test_values_that_make_no_sense_are_refused(api: Api, verb: str, body: Any, expected: tuple[int, str]) -> None:
    assert problem(api.post(verb, body)) == expected


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_python_takes_for_a_number_and_json_does_not_is_malformed(api: Api, number: bytes) -> None:
    assert problem(api.send("search", b'{"prefix": "", "filter": {"n": %b}}' % number)) == (422, "malformed")


# For so many as the larger one has there would be no room, however long the client waited.
@pytest.mark.parametrize("parts", [300_000, 3_000_000])
def test_a_body_of_too_many_parts_is_refused_before_it_is_parsed(api: Api, parts: int) -> None:
    body = b'{"prefix": "", "filter": {"a": [%s]}}' % b",".join([b"{}"] * parts)

    assert problem(api.send("search", body)) == (413, "limit_exceeded")


def test_half_a_surrogate_pair_is_named_as_the_reason(api: Api) -> None:
    """As JavaScript makes one where it cuts a text in the middle of an emoji."""
    assert "half a surrogate pair" in api.send("prepare_read", b'{"state_key": "\\ud83d"}').json()["detail"]


def test_a_blob_that_was_prepared_for_another_key_is_not_called_expired(api: Api) -> None:
    blob = api.post("prepare_write", {"state_key": "one", "size": 1}).json()["blob"]
    refused = api.post("commit_write", {"state_key": "another", "blob": blob})

    assert problem(refused) == (409, "blob_gone")
    assert "no write of this id, key and size" in refused.json()["detail"]


def test_a_compressed_body_is_refused(api: Api) -> None:
    refused = api.post("list", {"prefix": ""}, **{"Content-Encoding": "gzip"})

    assert problem(refused) == (415, "unsupported_media_type")


def test_nothing_in_between_may_keep_an_answer(api: Api) -> None:
    assert api.set("key", b"1").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("most", "inline_there"), [(0, False), (2, False), (3, True)])
def test_a_failed_condition_carries_the_value_only_where_it_fits(api: Api, most: int, inline_there: bool) -> None:
    api.set("key", b"old")
    refused = api.set("key", b"new", if_none_match="*", max_inline_size=most)

    assert problem(refused) == (412, "condition_failed")
    assert refused.json()["entry"]["version"] == 1
    assert (refused.json()["blob"] is not None) == inline_there


def test_what_the_server_did_not_foresee_is_told_to_its_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = open_service(str(tmp_path / "store.db"))

    def fail(_: object) -> object:
        raise RuntimeError("the-secret-value")

    monkeypatch.setattr(service.catalog, "list", fail)
    log = io.StringIO()
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(log)))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/namespaces/a/applications/b/app_state/list", json={"prefix": ""})

    response = asyncio.run(ask())
    service.close()
    assert problem(response) == (500, "internal")
    assert "RuntimeError" in log.getvalue()
    assert "the-secret-value" not in response.text + log.getvalue()


def test_a_batch_of_which_one_operation_is_malformed_changes_nothing(api: Api) -> None:
    operations = [{"verb": "commit_write", "state_key": "a", "blob": inline(b"1")}, {"verb": "delete"}]

    assert api.post("batch", {"operations": operations}).status_code == 422
    assert api.get("a")["entry"] is None


def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(api: Api, server: ServerProcess) -> None:
    head = f"POST {api.path}/app_state/list HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    received = raw(server.url, f"{head}Connection: close\r\nContent-Length: 13000000\r\n\r\n".encode())

    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"limit_exceeded" in received


def test_a_body_without_an_end_is_refused_while_it_streams(api: Api) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            sent += 65_536
            yield b" " * 65_536

    try:
        response = api.send("list", endless())
    except httpx.WriteError:
        pytest.fail("the refusal did not arrive")
    assert problem(response) == (413, "limit_exceeded")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
def test_anything_but_json_is_an_unsupported_type(api: Api, content_type: str) -> None:
    assert problem(api.send("list", b'{"prefix": ""}', content_type)) == (415, "unsupported_media_type")


def test_a_header_that_stands_there_twice_is_the_clients_fault(api: Api, http: httpx.Client) -> None:
    twice = [("Content-Type", "application/json")] * 2
    response = http.post(f"{api.url}/app_state/list", content=b'{"prefix": ""}', headers=twice)
    assert problem(response) == (400, "malformed_headers")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "state_key", "size", "chunk_size", "blob", "write_id", "if_match", "prefix", "cursor", "limit", "offset", "filter",
    "vector", "vectors", "operations", "version", "max_inline_size", "refresh_ttl", "ttl_seconds", "provenance",
]  # fmt: skip


@given(verb=st.sampled_from(VERBS), body=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5))
@settings(max_examples=150)
def test_no_body_makes_the_server_fail(api: Api, verb: str, body: Any) -> None:
    full = {"state_key": "a", "prefix": "a", **body}
    for given_body in (body, {name: value for name, value in full.items() if name in body or _wants(verb, name)}):
        response = api.send(verb, json.dumps(given_body).encode())

        assert response.status_code < 500


def _wants(verb: str, name: str) -> bool:
    return name == ("prefix" if verb in ("list", "list_segments", "list_parents", "search") else "state_key")


# -- routes and scopes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/healthz/", "/v1/blobs", "/v1/blobs/", "/v2/namespaces/a", "/docs", "//healthz"]
)
def test_an_unknown_path_is_a_problem(server: ServerProcess, http: httpx.Client, path: str) -> None:
    assert problem(http.get(server.url + path)) == (404, "unknown_route")


def test_an_unknown_verb_is_a_problem(api: Api) -> None:
    assert problem(api.post("erase", {})) == (404, "unknown_route")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_verbs_take_post_alone(api: Api, method: str) -> None:
    response = api.http.request(method, f"{api.url}/app_state/list")

    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("request_id", ["", "a\0b", "x" * 2_049])
@pytest.mark.parametrize("verb", ["prepare_read", "list"])
def test_a_request_id_that_no_client_may_use_is_refused(api: Api, verb: str, request_id: str) -> None:
    body = {"request_id": request_id, **({"state_key": "a"} if verb == "prepare_read" else {"prefix": ""})}
    assert problem(api.http.post(f"{api.url}/request_state/{verb}", json=body)) == (400, "invalid_key")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/namespaces/acme/applications/{app}%2Fx/app_state/list",
        "/v1/namespaces/acme/applications/%7B/app_state/list",
        "/v1/namespaces/acme%2Fapplications%2F{app}/app_state/list",
        "/v1/namespaces/other/../acme/applications/{app}/app_state/list",
        "/v1/namespaces/other/%2e%2e/acme/applications/{app}/app_state/list",
        "/v1/namespaces/acme/applications/./{app}/app_state/list",
        "/v1/namespaces/acme/applications//{app}/app_state/list",
        "/v1/namespaces/acme/applications/{app}/app_state/list/",
        "/v1/namespaces/acme/applications/{app}/app_state/../app_state/list",
        "/v1/namespaces/acme/applications/{app}/app_state/%6cist",
        "/v1//namespaces/acme/applications/{app}/app_state/list",
        "/V1/namespaces/acme/applications/{app}/app_state/list",
    ],
)
def test_escapes_and_dots_reach_no_scope(api: Api, server: ServerProcess, path: str) -> None:
    api.set("secret", b"value")
    target = path.replace("{app}", api.path.rpartition("/")[2])
    body = b'{"prefix":""}'

    received = raw(
        server.url,
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body,
    )

    assert received.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in received


@pytest.mark.parametrize("name", ["..", ".", "-a", "a" * 64, "a b", "a\u00e9"])
def test_a_scope_with_a_name_that_is_not_allowed_is_refused(server: ServerProcess, name: str) -> None:
    body = b'{"prefix":""}'
    path = f"/v1/namespaces/acme/applications/{name}/app_state/list"

    received = raw(
        server.url,
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body,
    )

    assert received.startswith(b"HTTP/1.1 400 ")


# -- who is let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "0.0.0.0", "[::2]", "127.0.0.1:1:2", ""]
)
@pytest.mark.parametrize("path", ["/healthz", "/openapi.json", "/v1/blobs/a/0"])
def test_another_host_is_refused_without_tokens(
    server: ServerProcess, http: httpx.Client, host: str, path: str
) -> None:
    assert http.get(server.url + path, headers={"Host": host}).status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:99", "[::1]", "[::1]:8420"])
def test_this_machine_has_three_names(server: ServerProcess, http: httpx.Client, host: str) -> None:
    assert http.get(f"{server.url}/healthz", headers={"Host": host}).status_code == 200


def test_another_name_that_is_allowed_is_one_in_any_case() -> None:
    gate = LoopbackGate(["Memory.Local"])
    for host in (b"memory.local", b"MEMORY.local:8420"):
        gate.admit([(b"host", host)])


@pytest.mark.parametrize("host", [b"", b"a b", b"a/b", b"me@a", b"a:", b"a:b", b"a:123456", b"[::1", b"a\xff"])
def test_a_host_that_could_be_none_is_refused_with_tokens_too(host: bytes) -> None:
    # It stands in the URLs that an answer names.
    with pytest.raises(InvalidRequestError):
        host_of([(b"host", host)])


def test_a_request_without_a_host_or_with_two_is_refused(server: ServerProcess) -> None:
    for line in (b"GET /openapi.json HTTP/1.0", b"GET /healthz HTTP/1.1"):
        assert raw(server.url, line + b"\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    two = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(server.url, two).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost", ""])
def test_a_web_page_is_refused_without_tokens(api: Api, origin: str) -> None:
    assert problem(api.post("list", {"prefix": ""}, Origin=origin)) == (403, "origin_refused")


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer", "Basic dG9rZW4=", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"]
)
def test_no_valid_token_is_unauthenticated(
    guarded: ServerProcess, http: httpx.Client, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    url = f"{guarded.url}/v1/namespaces/acme/applications/shop/app_state/list"

    response = http.post(url, json={"prefix": ""}, headers=headers)

    assert problem(response) == (401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_request_with_two_tokens_has_none(guarded: ServerProcess) -> None:
    head = (
        "POST /v1/namespaces/acme/applications/shop/app_state/list HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    )
    tokens = f"Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer wrong\r\n"

    assert raw(guarded.url, f"{head}{tokens}\r\n".encode()).startswith(b"HTTP/1.1 401 ")


def test_with_tokens_too_a_request_names_one_host(guarded: ServerProcess) -> None:
    assert raw(guarded.url, b"GET /openapi.json HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz"])
def test_a_load_balancer_may_ask_for_health_without_naming_a_host(
    server: ServerProcess, guarded: ServerProcess, path: bytes
) -> None:
    # As HAProxy does; a web page's request names its Origin or a Host.
    for url in (server.url, guarded.url):
        assert raw(url, b"GET %s HTTP/1.0\r\n\r\n" % path).startswith(b"HTTP/1.1 200 ")
    assert raw(server.url, b"GET %s HTTP/1.0\r\nOrigin: null\r\n\r\n" % path).startswith(b"HTTP/1.1 400 ")
    assert raw(server.url, b"GET %s HTTP/1.0\r\nHost: evil.example\r\n\r\n" % path).startswith(b"HTTP/1.1 403 ")


def test_a_token_opens_its_namespace_and_no_other(guarded: ServerProcess, http: httpx.Client) -> None:
    assert Api(http, guarded.url, "acme", "any", TOKEN).set("key", b"value").status_code == 200
    assert Api(http, guarded.url, "other", "any", HASHED_TOKEN).set("key", b"value").status_code == 200
    existing = Api(http, guarded.url, "other", "any", TOKEN).post("list", {"prefix": ""})
    absent = Api(http, guarded.url, "nobody", "any", TOKEN).post("list", {"prefix": ""})
    assert problem(existing) == (403, "permission_denied")
    assert existing.content == absent.content


def test_a_token_can_be_bound_to_one_application(guarded: ServerProcess, http: httpx.Client) -> None:
    assert Api(http, guarded.url, "acme", "shop", APP_TOKEN).post("list", {"prefix": ""}).status_code == 200
    refused = Api(http, guarded.url, "acme", "any", APP_TOKEN).post("list", {"prefix": ""})
    assert problem(refused) == (403, "permission_denied")


def test_a_token_is_checked_before_the_body_is_read(guarded: ServerProcess, http: httpx.Client) -> None:
    assert Api(http, guarded.url, "acme", "any", "wrong").send("list", b"{").status_code == 401


# -- the process -----------------------------------------------------------------------------------------------------


def test_headers_without_an_end_close_the_connection(server: ServerProcess) -> None:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), 5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")

        with pytest.raises(OSError, match=r"reset|Broken"):
            connection.sendall(b"x" * 64 * 1024 * 1024)


def test_a_limit_of_files_that_the_system_does_not_let_us_raise_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)

    connections.raise_file_limit()


def test_connections_that_ask_nothing_leave_files_for_those_that_are_served(tmp_path: Path, http: httpx.Client) -> None:
    with ServerProcess(tmp_path) as server, contextlib.ExitStack() as stack:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (300, 300))
        api = Api(http, server.url, "acme", "shop")
        place = api.place("large", 300_000)["chunks"][0]["uri"]
        parts = urlsplit(server.url)
        for _ in range(400):
            stack.enter_context(socket.create_connection((parts.hostname, parts.port), 5))

        assert http.put(place, content=bytes(300_000)).status_code == 200


@pytest.mark.parametrize("start", [b"", b"X: "], ids=["many", "one"])
def test_trailers_without_an_end_close_the_connection(server: ServerProcess, start: bytes) -> None:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), 5) as connection:
        connection.sendall(
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + start
        )

        # More than the system keeps for a server that is slow to read.
        with pytest.raises(OSError, match=r"reset|Broken"):
            connection.sendall((b"x" * 6 if start else b"a: b\r\n") * 20 * 1024 * 1024)


def test_a_trailer_is_none_of_the_headers(guarded: ServerProcess) -> None:
    path = "/v1/namespaces/acme/applications/any/app_state/list"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    trailer = f"Authorization: Bearer {TOKEN}\r\n"
    request = f'{head}Transfer-Encoding: chunked\r\n\r\ne\r\n{{"prefix": ""}}\r\n0\r\n{trailer}\r\n'

    assert _statuses(guarded, request.encode()) == [401]


def test_the_body_of_a_request_that_asks_for_another_protocol_is_no_second_request(server: ServerProcess) -> None:
    body = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"

    assert _statuses(server, head + b"Content-Length: %d\r\n\r\n" % len(body), body) == [400]


def _statuses(server: ServerProcess, *pieces: bytes) -> list[int]:
    """Return the statuses of all that is answered to these bytes; each piece is sent after an answer to the last."""
    parts = urlsplit(server.url)
    answers = b""
    # The server may close the connection at any time.
    with socket.create_connection((parts.hostname, parts.port), 5) as connection, contextlib.suppress(OSError):
        for piece in pieces:
            connection.sendall(piece)
            answers += connection.recv(65536)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            answers += part
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3})", answers)]


def test_a_head_of_very_many_headers_is_refused(server: ServerProcess) -> None:
    """Kept, a header of four bytes takes forty times as many."""
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"

    assert _statuses(server, head + b"a:\r\n" * 127 + b"\r\n") == [200]
    assert _statuses(server, head + b"a:\r\n" * 128 + b"\r\n") == [400]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (b"a:\r\n" * 128, b"a request has too many headers"),
        (b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n", b"asks for another protocol"),
        (b"Transfer-Encoding: gzip, chunked\r\n", b"a body is chunked or as it is"),
        (b"no header\r\n", b"Invalid HTTP request received."),
    ],
    ids=["headers", "upgrade", "encoding", "no HTTP"],
)
def test_the_refusal_of_a_head_says_why(server: ServerProcess, fields: bytes, reason: bytes) -> None:
    assert reason in raw(server.url, b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n")


def test_some_requests_may_wait_for_those_before_them_and_come_in_order(server: ServerProcess) -> None:
    paths = (b"healthz", b"nowhere", b"readyz", b"openapi.json", b"nowhere")
    requests = b"".join(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in paths)
    answers = raw(server.url, requests.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n")

    assert re.findall(rb"HTTP/1\.1 ([0-9]{3})", answers) == [b"200", b"404", b"200", b"200", b"404"]


@pytest.mark.parametrize(
    "waiting",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5,
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 80000\r\n\r\n" + bytes(80_000),
        b"no HTTP\r\n\r\n",
    ],
    ids=["many", "much", "no HTTP"],
)
def test_what_may_not_wait_for_an_answer_closes_the_connection_and_is_no_answer(
    waiting: bytes,
) -> None:
    assert asyncio.run(_behind_a_request_without_an_answer(waiting)) == b""


async def _behind_a_request_without_an_answer(waiting: bytes) -> bytes:
    """Return what is answered to bytes that come behind a request which takes for ever."""

    async def never(scope: Any, receive: Any, send: Any) -> None:
        while True:
            # As what waits for a client to leave does.
            for one in state.connections:
                cast(connections.BoundedProtocol, one).flow.resume_reading()
            await asyncio.sleep(0.01)

    config = uvicorn.Config(never, log_config=None, lifespan="off", ws="none")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: connections.BoundedProtocol(config, state, {}), "127.0.0.1", 0)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + waiting)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        except ConnectionError:
            return b""
        finally:
            writer.close()
            for task in state.tasks:
                task.cancel()


@pytest.mark.parametrize(
    "encodings", ["Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"]
)
def test_a_body_in_an_encoding_that_is_not_undone_is_refused(server: ServerProcess, encodings: str) -> None:
    path = "/v1/namespaces/acme/applications/shop/app_state/list"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{encodings}\r\n"
    answer = raw(server.url, head.encode() + b'd\r\n{"prefix":""}\r\n0\r\n\r\n')

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"malformed_http"' in answer


def test_a_refused_body_without_an_end_closes_the_connection(server: ServerProcess) -> None:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), 5) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        with pytest.raises((ConnectionError, TimeoutError)):
            connection.sendall(piece * 200)


def test_whatever_logs_writes_lines_of_the_same_log_and_repeats_no_value() -> None:
    lines = io.StringIO()
    logger = logging.Logger("asyncio")
    logger.addHandler(ServerEvents(RequestLog(lines)))
    try:
        raise ValueError("a value")
    except ValueError:
        logger.exception("Task exception was never retrieved\nfuture: <Task exception=ValueError('a value')>")
    logger.warning("error ignored in %s", "a value")

    first, second = map(json.loads, lines.getvalue().splitlines())
    assert (first["message"], first["error"]) == ("Task exception was never retrieved", "ValueError")
    assert second["message"] == "error ignored in %s"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (0, b""),
        (0, b"\r\n"),
        (0, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "),
        (1, b"\r\n"),
        (1, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "),
    ],
)
def test_headers_that_do_not_come_to_their_end_close_the_connection(
    monkeypatch: pytest.MonkeyPatch, asked: int, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.3)

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)  # an answer may take longer than a head
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def go() -> None:
        config = uvicorn.Config(answer, http=connections.BoundedProtocol, ws="none", lifespan="off", interface="asgi3")
        loop, state = asyncio.get_running_loop(), ServerState()
        protocol = partial(connections.BoundedProtocol, config, state, {})
        async with await loop.create_server(protocol, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for _ in range(asked):
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert await reader.readuntil(b"\r\n\r\n")
            writer.write(sent)
            while not (reader.at_eof() or reader.exception()):
                writer.write(sent[-1:])
                await asyncio.sleep(0.02)
            writer.close()

    asyncio.run(asyncio.wait_for(go(), 5))


def test_what_is_no_http_is_refused_and_logged_like_everything_else(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        parts = urlsplit(server.url)
        for request in (
            b"\x16\x03\x01the-secret\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
        ):
            with socket.create_connection((parts.hostname, parts.port), 5) as connection:
                connection.sendall(request)
                answer = http_client.HTTPResponse(connection)
                answer.begin()
                body = json.loads(answer.read())
            assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
            assert (body["status"], body["code"]) == (400, "malformed_http")
        server.stop()
        log = server.log.splitlines()[1:]
    assert [json.loads(line)["event"] for line in log] == ["server"] * 3
    assert "the-secret" not in server.log


def test_a_log_that_nobody_reads_stops_no_server_and_tells_later_what_is_missing() -> None:
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as reader, open(write, "w") as pipe:
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(write, b" " * 4096):
                pass
        os.set_blocking(write, True)
        log = RequestLog(pipe)
        writer = threading.Thread(target=lambda: [log.event({"event": f"{number}"}) for number in range(3)])
        writer.start()
        writer.join(10)
        stuck = writer.is_alive()
        reader.read(1024 * 1024)
        writer.join(10)
        assert not stuck
        log.event({"event": "last"})
        line = json.loads(reader.read(1024 * 1024))
        assert (line["event"], line["dropped"]) == ("last", 3)


def test_a_sweep_that_fails_is_logged_with_its_time_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def sweep(self) -> None:
            raise UnavailableError("the store is read-only", code="read_only")

    async def sweep_once(log: RequestLog) -> None:
        task = asyncio.create_task(app._sweep_forever(cast(Any, Broken()), app.Settings(LoopbackGate(), log)))
        while not written.getvalue():
            await asyncio.sleep(0)
        task.cancel()

    monkeypatch.setattr(app, "_SWEEP_SECONDS", 0.0)
    written = io.StringIO()
    asyncio.run(sweep_once(RequestLog(written)))
    line = json.loads(written.getvalue().splitlines()[0])
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line.pop("message") == "the store is read-only"
    assert line == {"event": "sweep", "error": "UnavailableError", "code": "read_only"}


def test_the_log_names_requests_and_repeats_nothing_of_them(tmp_path: Path, http: httpx.Client) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN} acme\n")
    with ServerProcess(tmp_path, "--token-file", str(tokens)) as server:
        api = Api(http, server.url, "acme", "shop", TOKEN)
        api.set("the-secret-key", b"the-secret-value")
        url = api.place("the-secret-key", 5)["chunks"][0]["uri"]
        http.put(url, content=b"value")
        http.get(f"{server.url}/the-secret-path?the-secret-query")
        Api(http, server.url, "the%0asecret", "x", "the-secret-token").post("list", {})
        server.stop()
        log = server.log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]

    assert "others can read the token file" in log
    assert [line["status"] for line in lines] == [200, 200, 200, 404, 404]
    assert lines[0]["route"].endswith("/app_state/commit_write")
    assert (lines[0]["namespace"], lines[0]["application"]) == ("acme", "shop")
    for secret in ("the-secret", TOKEN, "signature=", base64.b64encode(b"the-secret-value").decode()[:12]):
        assert secret not in log


def test_the_log_says_from_where_and_with_which_line_of_the_token_file_a_request_came(
    guarded: ServerProcess, http: httpx.Client
) -> None:
    Api(http, guarded.url, "other", "audited", HASHED_TOKEN).post("list", {"prefix": ""})
    wait_for(lambda: '"application": "audited"' in guarded.log)
    line = json.loads(next(one for one in guarded.log.splitlines() if '"audited"' in one))

    assert line["client"] == "127.0.0.1"
    assert line["token"] in (guarded.data.parent / "tokens").read_text()
    assert len(line["token"]) == 8


def test_the_log_shows_the_id_of_the_request_that_is_open_at_the_client(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, AgentMemory(server.url, application="any") as memory:
        memory.app_state.get("key")
        for request_id in ("order-17/3", "white space", "x" * 129):
            with memory.request(request_id):
                memory.app_state.get("key")
        wait_for(lambda: server.log.count("prepare_read") == 4)
        lines = [json.loads(line) for line in server.log.splitlines() if "prepare_read" in line]

    assert [line.get("request_id") for line in lines] == [None, "order-17/3", None, None]


def test_a_request_that_has_begun_is_finished_when_the_server_is_told_to_stop(
    tmp_path: Path, http: httpx.Client
) -> None:
    with ServerProcess(tmp_path) as server:
        url = urlsplit(Api(http, server.url, "acme", "shop").place("key", 10)["chunks"][0]["uri"])
        with socket.create_connection((url.hostname, url.port), 5) as connection:
            connection.sendall(
                f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345".encode()
            )
            wait_for(lambda: part_files(server) != [])
            server.process.terminate()
            wait_for(lambda: not accepts(server))
            connection.sendall(b"67890")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(10) == 0


def test_a_request_that_outlasts_the_server_is_told_so(tmp_path: Path, http: httpx.Client) -> None:
    with ServerProcess(tmp_path) as server:
        api = Api(http, server.url, "acme", "shop")
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), 20) as connection:
            head = f"POST {api.path}/app_state/list HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 13\r\n\r\n{{".encode())
            assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n", "its body is waited for"
            server.process.terminate()
            answer = http_client.HTTPResponse(connection)
            answer.begin()
            body = json.loads(answer.read())
        assert (answer.status, body["code"]) == (503, "unavailable")
        assert server.process.wait(10) == 0
        server.stop()
        lines = [json.loads(line) for line in server.log.splitlines()[1:]]
    assert [line["status"] for line in lines if "status" in line] == [503]
    assert all("time" in line for line in lines)


def accepts(server: ServerProcess) -> bool:
    parts = urlsplit(server.url)
    try:
        with socket.create_connection((parts.hostname, parts.port), 1):
            return True
    except OSError:
        return False


def test_more_requests_than_fit_are_told_to_come_back(tmp_path: Path, http: httpx.Client) -> None:
    with ServerProcess(tmp_path) as server:
        api = Api(http, server.url, "acme", "shop")
        parts = urlsplit(server.url)
        waiting = [socket.create_connection((parts.hostname, parts.port), 5) for _ in range(192)]
        try:
            head = f"POST {api.path}/app_state/list HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            for connection in waiting:
                connection.sendall(f"{head}Content-Length: 13\r\n\r\n".encode())
            wait_for(lambda: api.post("list", {"prefix": ""}).status_code == 503)
            refused = api.post("list", {"prefix": ""})
            assert problem(refused) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert http.get(f"{server.url}/healthz").status_code == 200
        finally:
            for connection in waiting:
                connection.close()
        wait_for(lambda: api.post("list", {"prefix": ""}).status_code == 200)


def test_a_tenant_with_as_many_requests_as_it_may_have_leaves_room_for_others(
    server: ServerProcess, http: httpx.Client
) -> None:
    parts = urlsplit(server.url)
    hog, other = Api(http, server.url, "hog", "any"), Api(http, server.url, "other", "any")
    head = f"POST {hog.path}/app_state/list HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(128):
            connection = stack.enter_context(socket.create_connection((parts.hostname, parts.port), 5))
            connection.sendall(f"{head}Content-Length: 13\r\n\r\n".encode())
        wait_for(lambda: hog.post("list", {"prefix": ""}).status_code == 503)

        assert other.post("list", {"prefix": ""}).status_code == 200


def test_searches_of_one_tenant_leave_threads_for_those_of_another(tmp_path: Path) -> None:
    service = open_service(str(tmp_path / "store.db"), None)
    searching: list[str] = []
    over = threading.Event()

    def search(request: Search) -> list[Hit]:
        searching.append(request.scope.namespace)
        over.wait(10)
        return []

    service._methods = {**service._methods, Search: search}  # type: ignore[misc]
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))

    async def go() -> None:
        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            asked = [
                asyncio.create_task(
                    http.post(
                        f"/v1/namespaces/{tenant}/applications/any/{state}/search",
                        json={"prefix": "", "request_id": "r"} if state == "request_state" else {"prefix": ""},
                    )
                )
                for tenant, state in [("hog", "app_state"), ("hog", "request_state")] * 25 + [("other", "app_state")]
            ]
            while "other" not in searching:
                await asyncio.sleep(0.01)
            before = len(searching)
            over.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 51
            assert before == 4

    try:
        asyncio.run(asyncio.wait_for(go(), 9))
    finally:
        over.set()
        service.close()


def test_commits_of_uploads_of_one_tenant_leave_threads_for_others(tmp_path: Path) -> None:
    service = open_service(str(tmp_path / "store.db"), None)
    over = threading.Event()
    commits: list[str] = []

    def digest(blob_id: str, _: list[int], _sha256: str | None = None) -> None:
        commits.append(blob_id)
        over.wait(10)

    service.blobs.digest = digest  # type: ignore[method-assign]
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))

    async def go() -> None:
        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            hog = "/v1/namespaces/hog/applications/any/app_state"
            place = (await http.post(f"{hog}/prepare_write", json={"state_key": "k", "size": 100_000})).json()["blob"]
            write = {"state_key": "k", "blob": place}
            batch = {"operations": [{"verb": "commit_write", **write}]}
            asked = [
                asyncio.create_task(http.post(f"{hog}/{verb}", json=body))
                for verb, body in [("commit_write", write), ("batch", batch)] * 30
            ]
            while not commits:
                await asyncio.sleep(0.01)
            others = await http.post("/v1/namespaces/other/applications/any/app_state/list", json={"prefix": ""})
            assert others.status_code == 200
            assert len(commits) <= 11
            over.set()
            assert {problem(one) for one in await asyncio.gather(*asked)} == {(409, "blob_incomplete")}

    try:
        asyncio.run(asyncio.wait_for(go(), 9))
    finally:
        over.set()
        service.close()


def test_a_search_that_nobody_waits_for_any_more_is_not_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "_SEARCHES", 1)
    service = open_service(str(tmp_path / "store.db"), None)
    searching: list[str] = []
    over = threading.Event()

    def search(request: Search) -> list[Hit]:
        searching.append(request.prefix)
        over.wait(10)
        return []

    service._methods = {**service._methods, Search: search}  # type: ignore[misc]
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))
    path = "/v1/namespaces/default/applications/any/app_state/search"
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]

    async def ask(prefix: str, gone: asyncio.Event) -> None:
        messages: list[Any] = [{"type": "http.request", "body": json.dumps({"prefix": prefix}).encode()}]

        async def receive() -> Any:
            if not messages:
                await gone.wait()
                return {"type": "http.disconnect"}
            return messages.pop()

        async def send(_: Any) -> None:
            pass

        scope = {
            "type": "http", "scheme": "http", "method": "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": headers,
        }  # fmt: skip
        await served(scope, receive, send)

    async def go() -> None:
        left, never = asyncio.Event(), asyncio.Event()
        left.set()
        asked = [asyncio.create_task(ask("first", never))]
        while not searching:
            await asyncio.sleep(0.01)
        asked += [asyncio.create_task(ask("left", left)), asyncio.create_task(ask("waits", never))]
        await asyncio.sleep(0.1)
        over.set()
        await asyncio.gather(*asked)

    try:
        asyncio.run(asyncio.wait_for(go(), 9))
    finally:
        over.set()
        service.close()
    assert searching == ["first", "waits"]


@pytest.mark.parametrize(("parts", "size"), [(200_000, 1), (18_000, 1), (9, 60_000)], ids=["many", "small", "few"])
def test_bodies_of_many_parts_take_the_memory_that_these_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, size: int
) -> None:
    monkeypatch.setattr(verbs, "BODY_BYTES", 60 * 1024 * 1024)
    monkeypatch.setattr(verbs, "_CALL_SECONDS", 1.0)
    service = open_service(str(tmp_path / "store.db"), None)
    service._methods = {**service._methods, Search: lambda _: time.sleep(2) or []}  # type: ignore[misc]
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))
    body = json.dumps({"prefix": "", "filter": {"a": [{"": "x" * size}] * parts}})
    kept, most = len(body) * 3 + parts * 200, 40 * 1024 * 1024

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://localhost") as http:
            path, headers = (
                "/v1/namespaces/acme/applications/any/app_state/search",
                {"Content-Type": "application/json"},
            )
            return await asyncio.gather(*(http.post(path, content=body, headers=headers) for _ in range(40)))

    answers = asyncio.run(ask())
    service.close()
    reasons = [answer.json().get("detail", "") for answer in answers]
    assert len(reasons) - reasons.count("too many large bodies at once") <= most // kept
    if kept * 40 > most:
        assert "too many large bodies at once" in reasons


def test_an_answer_that_names_many_chunks_takes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "ANSWER_BYTES", 12 * 1024 * 1024)
    service = open_service(str(tmp_path / "store.db"), None)
    entry = Entry("k", 1, "1-e", 1, "", "", None, None, None, 0, 0, None, None, False)
    place = uuid.uuid4()
    found = Found(entry, None, Blob("b", tuple(Chunk(f"blob:{place}/{number}", 65_536) for number in range(10_000))))
    monkeypatch.setattr(service, "read_at_once", lambda _: (True, found))
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://localhost") as http:
            path = "/v1/namespaces/acme/applications/any/app_state/prepare_read"
            return await http.post(path, json={"state_key": "k"})

    assert problem(asyncio.run(ask())) == (503, "overloaded")
    service.close()


def test_a_long_answer_is_not_reckoned_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a batch may name 100,000 entries, which take a quarter of a second."""
    reckoned: list[int] = []

    def reckon(reply: Any) -> int:
        reckoned.append(threading.get_ident())
        return reply_bytes(reply)

    monkeypatch.setattr(verbs, "reply_bytes", reckon)
    with AgentMemory(str(tmp_path / "store.db"), application="any") as memory:
        memory.app_state.batch([Set(f"k{number}", number) for number in range(200)])
    service = open_service(str(tmp_path / "store.db"), None)
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))

    async def ask(verb: str, body: dict[str, Any]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://localhost") as http:
            return await http.post(f"/v1/namespaces/default/applications/any/app_state/{verb}", json=body)

    assert len(asyncio.run(ask("list", {"prefix": "", "limit": 200})).json()["entries"]) == 200
    assert asyncio.run(ask("prepare_read", {"state_key": "k1"})).status_code == 200
    service.close()

    long, short = reckoned
    assert long != short == threading.get_ident()


def test_the_urls_of_many_chunks_are_not_signed_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of a hundred bytes may ask for 10,000 of them, which take 40 ms."""
    threads: list[int] = []

    def sign(self: BlobUrls, base: str, method: str, chunk: Chunk) -> str:
        threads.append(threading.get_ident())
        return f"{base}/{method}/{chunk.size}"

    monkeypatch.setattr(BlobUrls, "sign", sign)
    service = open_service(str(tmp_path / "store.db"), None)
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))

    async def place(chunks: int) -> httpx.Response:
        body = {"state_key": "k", "size": chunks * 65_536, "chunk_size": 65_536}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://localhost") as http:
            return await http.post("/v1/namespaces/default/applications/any/app_state/prepare_write", json=body)

    assert len(asyncio.run(place(10_000)).json()["blob"]["chunks"]) == 10_000
    assert threading.get_ident() not in threads

    threads.clear()
    assert asyncio.run(place(2)).status_code == 200
    assert set(threads) == {threading.get_ident()}
    service.close()


@pytest.mark.parametrize(("piece", "status"), [(20_000, 200), (1, 408)], ids=["moves", "dribbles"])
def test_a_body_may_take_as_long_as_it_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, status: int
) -> None:
    monkeypatch.setattr("agent_memory.server.asgi.BODY_SECONDS", 0.3)
    service = open_service(str(tmp_path / "store.db"), None)
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO())))
    writes = [{"verb": "commit_write", "state_key": str(n), "blob": inline(b"x" * 30_000)} for n in range(20)]
    body = json.dumps({"operations": writes}).encode()

    async def pieces() -> Any:
        for start in range(0, len(body), piece):
            await asyncio.sleep(0.02)
            yield body[start : start + piece]

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://localhost") as http:
            path, headers = "/v1/namespaces/acme/applications/any/app_state/batch", {"content-type": "application/json"}
            return (await http.post(path, content=pieces(), headers=headers)).status_code

    assert asyncio.run(asyncio.wait_for(ask(), 10)) == status
    service.close()


@pytest.mark.parametrize("values", [2, 100])
def test_an_answer_that_nobody_fetches_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    monkeypatch.setattr("agent_memory.server.asgi.BODY_SECONDS", 0.3)
    with AgentMemory(str(tmp_path / "store.db"), application="any") as memory:
        memory.app_state.batch([Set(f"k{number}", "x" * 60_000) for number in range(values)])
    service = open_service(str(tmp_path / "store.db"), None)
    log = io.StringIO()
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(log)))
    body = b'{"prefix": "", "max_inline_size": 65536}'
    path = "/v1/namespaces/default/applications/any/app_state/list"
    scope = {
        "type": "http", "scheme": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    sent = 0

    async def send(message: Any) -> None:
        nonlocal sent
        if sent > 64 * 1024:
            # As the server's does, it waits before it takes more.
            await asyncio.sleep(60)
        sent += len(message.get("body", b""))
        assert len(message.get("body", b"")) <= 1024 * 1024

    async def go() -> None:
        with contextlib.suppress(app.BrokenAnswerError):
            await served(scope, receive, send)

    asyncio.run(asyncio.wait_for(go(), 5))
    service.close()
    assert json.loads(log.getvalue())["code"] == "request_timeout"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnavailableError("PostgreSQL closed the connection"), None),
        (UnavailableError("cannot connect to PostgreSQL", code="unreachable"), None),
        (UnavailableError("PostgreSQL has no connection left", code="overloaded"), "1"),
        (UnavailableError("all connections are in use", code="overloaded", retry_after=1.5), "2"),
    ],
)
def test_only_where_there_is_too_much_to_do_a_client_is_told_when_to_come_back(
    error: UnavailableError, expected: str | None
) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await refuse(scope, send, error)

    async def answered() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(fails), base_url="http://server") as http:
            return await http.post("/")

    answer = asyncio.run(answered())
    assert problem(answer) == (503, error.code)
    assert answer.headers.get("retry-after") == expected


def test_a_long_answer_is_made_beside_the_event_loop_whatever_asked_for_it() -> None:
    scope = Scope("acme", "shop")
    entry = Entry("k", 1, "1-e", 1, "", "", None, None, None, 0, 0, None, None, False)
    search, listing = Search(scope, ""), List(scope, "")
    for size, large in ((100, False), (101, True)):
        found = [Found(entry, b"1", None)] * size
        hits = [Hit(one, None) for one in found]
        assert _is_large(search, hits) is large
        assert _is_large(listing, Page(found, None)) is large
        assert _is_large(Batch(scope, (search, listing)), [hits, Page([], None)]) is large


def test_many_clients_at_once_are_all_served(api: Api) -> None:
    statuses: list[int] = []

    def work(number: int) -> None:
        with httpx.Client(trust_env=False, timeout=20) as http:
            mine = Api(http, api.url.removesuffix(api.path), *api.path.split("/")[3::2])
            statuses.extend([mine.set(f"key-{number}", str(turn).encode()).status_code for turn in range(10)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * 80
    assert [entry["version"] for entry in api.post("list", {"prefix": "key-"}).json()["entries"]] == [10] * 8
