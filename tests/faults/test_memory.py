"""However much tenants ask for at once, a worker takes no more memory than the documents say."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from agent_memory import AgentMemory
from tests.support.api import Api, inline, problem
from tests.support.server import ROOT, ServerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file tells how much a process took")

TENANTS = [f"t{number}" for number in range(8)]
VALUE = b'"' + b"x" * 64_000 + b'"'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path) as server:
        yield server


def taken(server: ServerProcess) -> int:
    """Return the most memory that the server has had, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def documented() -> int:
    """Return what the documents say of a worker's memory, in MiB."""
    found = re.search(r"up to ([\d.]+) GiB of memory", (ROOT / "docs" / "operation.md").read_text())
    assert found is not None
    return int(float(found[1]) * 1024)


class Crowd:
    """Many connections that each send a request, which one of eight tenants makes, and fetch no answer."""

    def __init__(self, server: ServerProcess, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack
        self._moved = 0

    def ask(self, count: int, verb: str, body: bytes, *, missing: int = 0) -> None:
        """Send as much of the requests as the server takes until it takes nothing for two seconds."""
        parts = urlsplit(self._server.url)
        for number in range(count):
            connection = self._stack.enter_context(socket.create_connection((parts.hostname, parts.port), 5))
            path = f"/v1/namespaces/{TENANTS[number % 8]}/applications/any/app_state/{verb}"
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            threading.Thread(
                target=self._send, args=(connection, head.encode() + body[: len(body) - missing]), daemon=True
            ).start()

    def _send(self, connection: socket.socket, request: bytes) -> None:
        view = memoryview(request)
        try:
            while view:
                sent = connection.send(view[: 256 * 1024])
                self._moved += sent
                view = view[sent:]
        except OSError:
            return

    def settle(self) -> None:
        deadline, before, quiet = time.monotonic() + 20, (0, 0), 0
        while quiet < 20 and time.monotonic() < deadline and taken(self._server) < 3 * 1024:
            time.sleep(0.1)
            now = (self._moved, taken(self._server))
            quiet, before = (quiet + 1 if now == before else 0), now


def test_a_worker_takes_no_more_memory_than_the_documents_say(server: ServerProcess) -> None:
    write = json.dumps(
        {"operations": [{"verb": "commit_write", "state_key": f"k{i:03}", "blob": inline(VALUE)} for i in range(130)]}
    ).encode()
    with httpx.Client(trust_env=False, timeout=20) as http:
        for tenant in TENANTS:
            assert Api(http, server.url, tenant, "any").send("batch", write).status_code == 200
        page = b'{"prefix": "", "limit": 1000, "max_inline_size": 65536}'
        pages = b'{"operations": [' + b", ".join([b'{"verb": "list", ' + page[1:]] * 15) + b"]}"
        for count, verb, body, missing in (
            (64, "batch", pages, 0),
            (150, "list", page, 0),
            (190, "batch", write, 1),
        ):
            with ExitStack() as stack:
                crowd = Crowd(server, stack)
                crowd.ask(count, verb, body, missing=missing)
                crowd.settle()
                api = Api(http, server.url, "small", "any")
                assert api.set("key", b"value").status_code == 200, "what is small is not held up"
                assert api.get("key")["entry"]["size"] == 5

    assert 256 < taken(server) < documented()


def test_a_batch_of_listings_finds_no_more_than_fits(server: ServerProcess) -> None:
    with httpx.Client(trust_env=False, timeout=20) as http:
        api = Api(http, server.url, "acme", "any")
        for start in range(0, 1000, 500):
            api.post(
                "batch",
                {
                    "operations": [
                        {
                            "verb": "commit_write",
                            "state_key": f"k/{i}",
                            "blob": inline(b"{}"),
                            "content_type": "application/json",
                            "provenance": {"reason": "y" * 4_000},
                        }
                        for i in range(start, start + 500)
                    ]
                },
            )
        listing = {"verb": "list", "prefix": "", "limit": 1_000}
        assert api.post("batch", {"operations": [listing] * 5}).status_code == 200
        assert problem(api.post("batch", {"operations": [listing] * 100})) == (413, "limit_exceeded")


def test_entries_take_what_they_are_in_json(server: ServerProcess) -> None:
    """A control character of a key is six in JSON, of which there are several copies while it is made."""
    odd = "\1" * 2_000
    with httpx.Client(trust_env=False, timeout=20) as http:
        api = Api(http, server.url, "acme", "any")
        for start in range(0, 1000, 50):
            writes = [
                {
                    "verb": "commit_write",
                    "state_key": f"{number:04}{odd}",
                    "blob": inline(b"{}"),
                    "provenance": {odd: odd},
                }
                for number in range(start, start + 50)
            ]
            assert api.post("batch", {"operations": writes}).status_code == 200
        listing = {"verb": "list", "prefix": "", "limit": 1_000}
        assert len(api.post("batch", {"operations": [listing]}).json()["results"][0]["entries"]) == 1000
        assert problem(api.post("batch", {"operations": [listing] * 10})) == (413, "limit_exceeded")

    assert taken(server) < 256


def test_a_search_looks_into_no_large_value_of_many_parts(server: ServerProcess) -> None:
    """As values of Python each of its three bytes takes more than twenty."""
    with httpx.Client(trust_env=False, timeout=60) as http:
        api = Api(http, server.url, "acme", "any")
        for parts in (20_000_000, 1_398_000):
            value = b'{"a": [' + b"{}," * parts + b"0]}"
            place = api.place("k", len(value))
            place["chunks"][0]["etag"] = http.put(place["chunks"][0]["uri"], content=value).headers["etag"]
            body = {"state_key": "k", "blob": place, "content_type": "application/json"}
            assert api.post("commit_write", body).status_code == 200
            assert api.post("search", {"prefix": "", "filter": {"b": 2}}).json() == {"hits": []}

    assert taken(server) < 384


def test_clients_that_send_and_fetch_much_at_once_are_all_served(server: ServerProcess) -> None:
    failed: list[Exception] = []

    def work(tenant: str) -> None:
        from agent_memory.operations import Get, Set

        try:
            with AgentMemory(server.url, application="any", namespace=tenant) as memory:
                for _ in range(3):
                    memory.app_state.batch([Set(f"k{number}", "x" * 60_000) for number in range(120)])
                    assert len(memory.app_state.batch([Get(f"k{number}") for number in range(120)])) == 120
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(TENANTS[number % 2],)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
