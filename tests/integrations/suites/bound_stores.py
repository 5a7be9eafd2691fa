"""A pytest plugin for LangGraph's own test suites: puts AgentMemoryStore where they expect LangGraph's stores.

Loaded into the process that runs a suite, before its modules are imported; the suites stay as they were downloaded.
What is about the inside of another store is skipped by name, with the reason. In its environment are the server to use,
if not an embedded store, and where to write the counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
import types
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import apsw
import langgraph.store.memory
import langgraph.store.postgres
import langgraph.store.sqlite
import langgraph.store.sqlite.aio
import psycopg
import pytest

from agent_memory import AgentMemory
from agent_memory_langchain import AgentMemoryStore

SUITE = os.environ["SUITE_NAME"]
URL = os.environ.get("SUITE_URL")
DATABASE = os.environ.get("SUITE_DATABASE")
REPORT = Path(os.environ["SUITE_REPORT"])

_INTERNALS = "tests the inside of LangGraph's store: its SQL, its migrations, its connections"
SKIPPED = {
    r"test_(nonnull_migrations|escape_glob_literal|escape_like_literal|namespace_match_pattern)$": _INTERNALS,
    r"test_list_namespaces_prefix_uses_indexable_condition$": _INTERNALS,
    r"test_abatch_uses_single_pool_checkout$": _INTERNALS,
    r"test_no_running_loop\b": "asserts that sync methods fail on the event loop; here both faces work anywhere",
    r"test_omit_expired_disabled_preserves_expired_rows\b": "asserts that expired items are returned; they never are",
    r"test_ttl_override_default$": "asserts that reads do not restart the time to live by default; TTLConfig documents "
    "that they do",
    r"test_scores\[.*-l2\]": "only cosine similarity is offered",
    r"sqlite: test_vector_store_initialization$": _INTERNALS,
    r"test_sql_injection_vulnerability\b": "asserts that a field name with a quote is an error; here names are bound,"
    " and any is taken",
    r"test_large_batches_async\[(pipe|pool)\]": "ways to connect to PostgreSQL; the same test runs as [default]",
}

if "SUITE_SOAK" not in os.environ:
    # The SQLite suite's own begins 6,000.
    SKIPPED |= {
        r"postgres: test_large_batches_async\b": "begins 60,000 calls at once, for a minute; with --soak it runs",
        r"test_large_batches\[(pipe|pool)\]": "ways to connect to PostgreSQL; with --soak they run",
    }
if URL:
    SKIPPED |= {
        r"_ttl(\[|$)|test_ttl_|test_async_ttl_": "waits for expiry by the clock of another process; it runs embedded",
        r"test_large_batches": "tens of thousands of requests; it runs embedded",
        r"test_numeric_filter_safety": "compares with infinity, which JSON cannot carry to a server",
    }


class Clock:
    """The system's, put forward by every sleep of a test: a suite's waits for expiry take no time."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000 + self.ahead_us


CLOCK = Clock()
_SHORTEST = 0.4
"""Seconds: shorter sleeps are for other tasks and threads, not for expiry."""

_real_sleep, _real_async_sleep = time.sleep, asyncio.sleep


def _sleep(seconds: float) -> None:
    if seconds < _SHORTEST or URL:
        _real_sleep(seconds)
    else:
        CLOCK.ahead_us += round(seconds * 1_000_000)


async def _async_sleep(seconds: float, result: Any = None) -> Any:
    if seconds < _SHORTEST or URL:
        return await _real_async_sleep(seconds, result)
    CLOCK.ahead_us += round(seconds * 1_000_000)
    return result


time.sleep = _sleep
asyncio.sleep = _async_sleep  # type: ignore[assignment]  # without its overloads

# -- the stores ------------------------------------------------------------------------------------------------------

_opened: list[AgentMemory] = []


def open_memory() -> AgentMemory:
    """Open an empty memory; it is closed after the test."""
    application = f"s{uuid.uuid4().hex}"
    # One test begins 60,000 calls at once, the last of which waits for all others.
    memory = AgentMemory(URL or "memory://", application=application, timeout=180)
    if not URL:
        catalog: Any = memory._client.transport().service.catalog  # type: ignore[attr-defined]
        catalog._clock = CLOCK
    _opened.append(memory)
    return memory


class Bound(AgentMemoryStore):
    """An AgentMemoryStore that is opened, and looked into, the way the suites do it with theirs."""

    def __init__(self, *, index: Any = None, ttl: Any = None) -> None:
        self.memory = open_memory()
        if index:
            fields = index.get("fields") or index.get("text_fields")
            index = {**index, "fields": [fields] if isinstance(fields, str) else fields}
        super().__init__(self.memory, index=index, ttl=ttl)
        self.MIGRATIONS: list[Any] = []

    def setup(self) -> None:
        """There are no tables to make."""

    @classmethod
    @contextmanager
    def from_conn_string(cls, _: str, *, index: Any = None, ttl: Any = None, **__: Any) -> Iterator[Bound]:
        yield cls(index=index, ttl=ttl)

    @contextmanager
    def _cursor(self) -> Iterator[Cursor]:
        # Through apsw: another SQLite in this process would take away the locks of the store's own.
        connection = apsw.Connection(DATABASE or self.memory._client.config.url)
        try:
            with connection:
                yield Cursor(connection, f"{self.memory.namespace}/{self.memory.application}")
        finally:
            connection.close()


class AsyncBound(Bound):
    """The same, where a suite awaits what is not async here."""

    async def setup(self) -> None:  # type: ignore[override]
        pass

    async def sweep_ttl(self) -> int:  # type: ignore[override]
        return await asyncio.to_thread(super().sweep_ttl)

    async def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> Any:  # type: ignore[override]
        return super().start_ttl_sweeper(sweep_interval_minutes)

    async def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        return super().stop_ttl_sweeper(timeout)

    @classmethod
    @asynccontextmanager
    async def from_conn_string(  # type: ignore[override]
        cls, _: str, *, index: Any = None, ttl: Any = None, **__: Any
    ) -> AsyncIterator[AsyncBound]:
        yield cls(index=index, ttl=ttl)

    @asynccontextmanager
    async def _cursor(self) -> AsyncIterator[AsyncCursor]:  # type: ignore[override]
        with super()._cursor() as cursor:
            yield AsyncCursor(cursor)


class Cursor:
    """Does in our tables what the Postgres suite's few statements do in its own."""

    def __init__(self, connection: apsw.Connection, scope: str) -> None:
        self._connection = connection
        self._scope = scope
        self._row: dict[str, Any] = {}

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> None:
        if statement.startswith("DROP TABLE"):
            return
        *first, prefix, key = parameters
        where = (self._scope, f"{prefix.replace('.', '/')}/{key}")
        now = CLOCK()
        if statement.startswith("UPDATE store SET expires_at = NOW() - INTERVAL '1 minute'"):
            self._run("UPDATE entry SET expires_us = ? WHERE scope = ? AND key = ?", now - 60_000_000, *where)
        elif statement.startswith("UPDATE store SET updated_at = NOW() - (%s * INTERVAL '1 second')"):
            self._run("UPDATE entry SET updated_us = ? WHERE scope = ? AND key = ?", now - first[0] * 1_000_000, *where)
        elif statement.startswith("SELECT COUNT(*) AS n"):
            rows = self._run("SELECT count(*) FROM entry WHERE scope = ? AND key = ? AND NOT deleted", *where)
            self._row = {"n": rows[0][0]}
        elif statement.startswith("SELECT expires_at"):
            rows = self._run("SELECT expires_us FROM entry WHERE scope = ? AND key = ?", *where)
            self._row = {"expires_at": rows[0][0]}
        else:
            raise NotImplementedError(statement)

    def fetchone(self) -> dict[str, Any]:
        return self._row

    def _run(self, statement: str, *parameters: Any) -> list[Any]:
        return self._connection.execute(statement, parameters).fetchall()


class AsyncCursor:
    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    async def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> None:
        self._cursor.execute(statement, parameters)

    async def fetchone(self) -> dict[str, Any]:
        return self._cursor.fetchone()


class NoDatabase:
    """Stands for the connection that makes and drops the Postgres suite's databases: none are needed."""

    def execute(self, *_: Any) -> None: ...

    def __enter__(self) -> NoDatabase:
        return self

    def __exit__(self, *_: object) -> None: ...


class NoAsyncDatabase:
    async def execute(self, *_: Any) -> None: ...

    async def __aenter__(self) -> NoAsyncDatabase:
        return self

    async def __aexit__(self, *_: object) -> None: ...


def _connect(*_: Any, **__: Any) -> NoDatabase:
    return NoDatabase()


async def _async_connect(*_: Any, **__: Any) -> NoAsyncDatabase:
    return NoAsyncDatabase()


def _put_in_place() -> None:
    langgraph.store.memory.InMemoryStore = Bound  # type: ignore[assignment,misc]
    langgraph.store.sqlite.SqliteStore = Bound  # type: ignore[assignment,misc]
    langgraph.store.sqlite.AsyncSqliteStore = AsyncBound  # type: ignore[assignment,misc]
    langgraph.store.sqlite.aio.AsyncSqliteStore = AsyncBound  # type: ignore[assignment,misc]
    langgraph.store.postgres.PostgresStore = Bound  # type: ignore[assignment,misc]
    langgraph.store.postgres.AsyncPostgresStore = AsyncBound  # type: ignore[assignment,misc]
    psycopg.Connection.connect = _connect  # type: ignore[method-assign,assignment]
    psycopg.AsyncConnection.connect = _async_connect  # type: ignore[method-assign,assignment]


_put_in_place()

# The fixture of pytest-mock, with the two methods that the suites use.
if "pytest_mock" not in sys.modules:
    sys.modules["pytest_mock"] = types.SimpleNamespace(MockerFixture=Any)  # type: ignore[assignment]


@pytest.fixture
def mocker(monkeypatch: pytest.MonkeyPatch) -> Any:
    def spy(owner: Any, name: str) -> Mock:
        real = getattr(owner, name)
        double = create_autospec(real, side_effect=real)
        monkeypatch.setattr(owner, name, double)
        return double

    return types.SimpleNamespace(stub=Mock, spy=spy)


# -- collection and counts -------------------------------------------------------------------------------------------

_counts: Counter[str] = Counter()
_used: set[str] = set()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flaky: of pytest-retry; nothing is repeated here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for pattern, reason in SKIPPED.items():
            if re.search(pattern, f"{SUITE}: {item.name}"):
                _used.add(pattern)
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _close_memories() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _counts[report.outcome] += 1


def pytest_sessionfinish() -> None:
    REPORT.write_text(json.dumps({"counts": dict(_counts), "skip_patterns_used": sorted(_used)}))
