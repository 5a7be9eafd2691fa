"""Tensorlake's own client, unmodified, keeps its request state in our server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tensorlake.applications.blob_store import BLOBStore
from tensorlake.applications.internal_logger import InternalLogger
from tensorlake.applications.request_context.http_client.context import RequestContextHTTPClient

from tests.support.server import ServerProcess


@dataclass
class Draft:
    title: str
    pages: int


@pytest.fixture
def state(server: ServerProcess) -> Iterator[Any]:
    with _context(server, "request-1") as context:
        yield context.state


class _context:  # noqa: N801  (reads as a function)
    def __init__(self, server: ServerProcess, request_id: str, application: str | None = None) -> None:
        url = f"{server.url}/v1/namespaces/acme/applications/{application or 't' + uuid.uuid4().hex}"
        self.http = RequestContextHTTPClient.create_http_client(url)
        self.blobs = BLOBStore(available_cpu_count=2)
        self.context = RequestContextHTTPClient(
            request_id=request_id,
            allocation_id="allocation-1",
            function_name="function",
            function_run_id="run-1",
            server_base_url=url,
            http_client=self.http,
            blob_store=self.blobs,
            logger=InternalLogger.get_logger(),
        )

    def __enter__(self) -> Any:
        return self.context

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.blobs._s3._client.close()
        self.blobs.close()


@pytest.mark.parametrize(
    "value",
    [1, "text", "", b"", None, [1, {"a": [2.5, True, None]}], {"naïve": "☃"}, (1, 2), {1, 2}],
    ids=repr,
)
def test_what_is_set_comes_back(state: Any, value: object) -> None:
    state.set("key", value)

    assert state.get("key") == value


def test_an_instance_comes_back_as_its_class(state: Any) -> None:
    state.set("draft", Draft("Memory", 12))

    assert state.get("draft") == Draft("Memory", 12)


def test_five_mebibytes_come_back_whole(state: Any) -> None:
    value = bytes(range(256)) * (5 * 1024 * 1024 // 256)

    state.set("large", value)

    assert state.get("large") == value


def test_a_smaller_value_replaces_a_larger_one(state: Any) -> None:
    state.set("key", b"x" * 300_000)
    state.set("key", "small")

    assert state.get("key") == "small"


def test_a_missing_key_gives_the_default(state: Any) -> None:
    assert state.get("missing") is None
    assert state.get("missing", "default") == "default"


def test_keys_may_hold_any_text(state: Any) -> None:
    key = "naïve/../key with % and ☃"

    state.set(key, 1)

    assert state.get(key) == 1


def test_two_requests_do_not_see_each_other(server: ServerProcess) -> None:
    application = f"t{uuid.uuid4().hex}"
    with _context(server, "a", application) as first, _context(server, "b", application) as second:
        first.state.set("key", "of a")

        assert second.state.get("key") is None
        assert first.state.get("key") == "of a"
