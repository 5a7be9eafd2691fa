"""What a call costs is what it finds, not how much the store holds: counted in SQLite's steps and PostgreSQL's rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import psycopg
import pytest

from agent_memory import drivers, flows
from agent_memory.ids import uuid7
from agent_memory.messages import JSON, Batch, CommitWrite, List, ListParents, Message, Scope
from agent_memory.service import StateService
from agent_memory.storage.blobs import FileBlobs
from agent_memory.storage.postgres import listing as postgres_listing
from agent_memory.storage.postgres import sweep as postgres_sweep
from agent_memory.storage.postgres.catalog import PostgresCatalog
from agent_memory.storage.postgres.connections import Pool, Session
from agent_memory.storage.postgres.rows import TimeLimit
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from tests.support.api import wait_for
from tests.support.postgres import PostgresServer, name_of

SCOPE = Scope("default", "app")


class Steps:
    """Counts what SQLite's virtual machine does on all connections that are opened while it is there."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, call: Callable[[], Any]) -> int:
        """Return how many steps a call takes."""
        before = self.count
        call()
        assert self.count > before
        return self.count - before

    def watch(self, connection: apsw.Connection) -> None:
        # No progress handler, which a search puts another one in the place of.
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._add)

    def _add(self, statement: dict[str, Any]) -> None:
        self.count += statement["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(apsw, "connection_hooks", [steps.watch])
    return steps


@pytest.fixture
def service(steps: Steps, tmp_path: Path) -> Iterator[StateService]:
    service = StateService(
        SqliteCatalog(tmp_path / "store.db", durable=False), FileBlobs(tmp_path / "b", durable=False)
    )
    yield service
    service.close()


def put(service: StateService, keys: list[str]) -> None:
    for first in range(0, len(keys), 1_000):
        writes = (CommitWrite(SCOPE, key, uuid7(), b'{"a": 1}', None, JSON) for key in keys[first : first + 1_000])
        service.handle(Batch(SCOPE, tuple(writes)))


def test_a_listing_without_values_reads_no_pages_of_them(service: StateService) -> None:
    def pages() -> int:
        kinds = (apsw.SQLITE_DBSTATUS_CACHE_HIT, apsw.SQLITE_DBSTATUS_CACHE_MISS)
        return sum(one.status(kind)[0] for one in apsw.connections() for kind in kinds)

    def read(value: bytes) -> int:
        writes = (CommitWrite(SCOPE, f"k{number}", uuid7(), value, None, JSON) for number in range(50))
        service.handle(Batch(SCOPE, tuple(writes)))
        before = pages()
        assert len(service.handle(List(SCOPE, "", limit=100)).found) == 50
        return pages() - before

    assert read(b"1") > 0
    assert read(b"1" * 60_000) < 50 * 5, "each of them lies on fifteen pages"


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_page_of_a_listing_costs_what_the_first_does(
    service: StateService, steps: Steps, reverse: bool
) -> None:
    keys = [f"user/{number:05}" for number in range(5_000)]
    put(service, keys)
    first = List(SCOPE, "user/", limit=10, reverse=reverse)
    last = first._replace(cursor=keys[10] if reverse else keys[-11])
    assert len(service.handle(last).found) == 10

    assert steps.of(lambda: service.handle(last)) <= 1.1 * steps.of(lambda: service.handle(first))


@pytest.mark.parametrize("depth", [None, 2])
def test_a_page_of_parents_costs_what_it_shows(service: StateService, steps: Steps, depth: int | None) -> None:
    put(service, [f"user/{number:05}/{name}" for number in range(1_000) for name in ("profile", "log/1", "log/2")])
    page = ListParents(SCOPE, "", "user/00500/", limit=10, depth=depth)
    assert len(service.handle(page).segments) == 10

    assert steps.of(lambda: service.handle(page)) < 5_000


@pytest.mark.parametrize("cursor", [None, "user/00500/"])
def test_the_only_parent_of_many_at_a_depth_is_found_without_looking_at_all(
    service: StateService, steps: Steps, cursor: str | None
) -> None:
    put(service, [f"user/{number:05}/profile" for number in range(1_000)])
    page = ListParents(SCOPE, "", cursor, depth=1)
    assert service.handle(page).segments == ([] if cursor else ["user/"])

    assert steps.of(lambda: service.handle(page)) < 1_000


def clear(service: StateService, prefix: str, before: Callable[[Message], object] = lambda _: None) -> int:
    """Delete all keys under a prefix, ten at a time; ``before`` is called with each message ahead of its answer."""

    def send(message: Message, _: float) -> Any:
        before(message)
        return service.handle(message)

    transport: Any = SimpleNamespace(send=send)
    return drivers.run(flows.delete_all(SCOPE, prefix, 10, uuid7), transport, math.inf)


def test_clearing_twice_as_much_costs_twice_as_much(service: StateService, steps: Steps) -> None:
    def listings(prefix: str, many: int) -> int:
        put(service, [f"{prefix}{number:05}" for number in range(many)])
        count = 0

        def look(message: Message) -> None:
            nonlocal count
            if isinstance(message, List):
                count += steps.of(lambda: service.handle(message))

        assert clear(service, prefix, look) == many
        return count

    assert listings("b/", 2_000) <= 2.2 * listings("a/", 1_000)


def test_clearing_ends_when_nothing_is_left(service: StateService) -> None:
    put(service, [f"key/{number}" for number in range(30)])
    messages = itertools.count()

    def write(_: Message) -> None:
        if next(messages) == 3:
            put(service, ["key/", "key/99"])

    assert clear(service, "key/", write) == 32
    assert not service.handle(List(SCOPE, "key/")).found


# -- PostgreSQL ------------------------------------------------------------------------------------------------------

_ROWS = """
    INSERT INTO agent_memory.entry (scope, key, version, size, created_us, updated_us, expires_us, deleted, searchable,
        etag, sha256, content_type)
    SELECT '{scope}', n, 1, 0, 0, 0, {expires_us}, {deleted}, false, '1-' || n, '', 'text/plain'
    FROM generate_series({first}, {last}) AS n
"""
_SWEEPS: dict[str, Callable[[Session], int]] = {
    "expired": lambda session: postgres_sweep.expire(session, limit=100, now=2_000, vectors=True),
    "tombstones": lambda session: postgres_sweep.drop_tombstones(session, before=1, limit=100),
    "receipts": lambda session: postgres_sweep.drop_receipts(session, before=1, limit=100),
    "requests": lambda session: postgres_sweep.drop_requests(session, before=1, limit=100, now=1, vectors=True),
}


@pytest.fixture(scope="module")
def large_database() -> Iterator[str]:
    """Values that nobody sweeps yet, and a tenth as many of each kind to sweep."""
    with PostgresServer() as server:
        address = server.database()
        for statement in (
            _ROWS.format(scope="default/app", expires_us=3_000, deleted=False, first=1, last=40_000),
            _ROWS.format(scope="default/app", expires_us=1_000, deleted=False, first=40_001, last=44_000),
            _ROWS.format(scope="default/app", expires_us="NULL", deleted=True, first=44_001, last=48_000),
            _ROWS.format(scope="default/app/r", expires_us="NULL", deleted=False, first=1, last=4_000),
            "INSERT INTO agent_memory.scope VALUES ('default/app/r', 0, 0)",
            "INSERT INTO agent_memory.receipt (scope, write_id, at_us, created_us, updated_us, fingerprint, etag) "
            "SELECT 'default/app', n, CASE WHEN n <= 4000 THEN 0 ELSE 1 END, 0, 0, '', '' "
            "FROM generate_series(1, 44_000) AS n",
            "INSERT INTO agent_memory.vector SELECT scope, key, version, 0, '[1]' FROM agent_memory.entry",
            "ANALYZE agent_memory.entry, agent_memory.receipt, agent_memory.vector",
        ):
            server.execute(statement, name_of(address))
        yield address


@pytest.fixture
def session(large_database: str) -> Iterator[Session]:
    """A session in a transaction that is rolled back."""
    catalog = PostgresCatalog(large_database)
    session = catalog._pool._take()  # pyright: ignore[reportPrivateUsage]
    with session.connection.transaction(force_rollback=True):
        yield session
    catalog._pool._give_back(session)  # pyright: ignore[reportPrivateUsage]
    catalog.close()


def rows_read(session: Session) -> int:
    """Return how many rows this transaction has read."""
    statement = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
    return int(session.rows(statement)[0][0])


@pytest.mark.parametrize("kind", _SWEEPS)
def test_a_sweep_in_postgresql_reads_what_it_takes_away(session: Session, kind: str) -> None:
    assert _SWEEPS[kind](session) >= 100
    assert rows_read(session) < 4_000


@pytest.mark.parametrize("depth", [None, 2])
@pytest.mark.parametrize("cursor", [None, "user/10950/"])
def test_a_page_of_parents_in_postgresql_costs_what_it_shows(
    session: Session, cursor: str | None, depth: int | None
) -> None:
    session.rows(
        "INSERT INTO agent_memory.entry (scope, key, version, size, created_us, updated_us, deleted, searchable, etag, "
        "sha256, content_type) "
        "SELECT 'default/parents', key, 1, 2, 0, 0, false, true, '', '', '' FROM generate_series(10000, 11999) AS n, "
        "LATERAL (VALUES ('user/' || n || '/profile'), ('user/' || n || '/log/1'), ('user/' || n || '/log/2'), "
        "('user/0')) AS one (key) ON CONFLICT DO NOTHING"
    )
    before = rows_read(session)
    page = ListParents(Scope("default", "parents"), "", cursor, limit=10, depth=depth)

    assert len(postgres_listing.list_parents(session, page, None, TimeLimit(10))) == 10
    assert rows_read(session) - before < 500


def test_the_only_parent_of_many_at_a_depth_is_found_in_postgresql_without_looking_at_all(session: Session) -> None:
    session.rows(
        "INSERT INTO agent_memory.entry (scope, key, version, size, created_us, updated_us, deleted, searchable, etag, "
        "sha256, content_type) "
        "SELECT 'default/parents', 'user/' || n || '/profile', 1, 2, 0, 0, false, true, '', '', '' "
        "FROM generate_series(10000, 11999) AS n"
    )
    before = rows_read(session)
    page = ListParents(Scope("default", "parents"), "", depth=1)

    assert postgres_listing.list_parents(session, page, None, TimeLimit(10)) == ["user/"]
    assert rows_read(session) - before < 100


def test_restarting_a_time_to_live_in_postgresql_reads_its_row_though_the_table_was_never_analyzed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with PostgresServer() as server:
        address = server.database()
        rows = _ROWS.format(scope=SCOPE.path, expires_us=3_000, deleted=False, first=1, last=4_000)
        server.execute(rows, name_of(address))
        catalog = PostgresCatalog(address, clock=lambda: 2_000)
        session = catalog._pool._take()  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(Pool, "run", lambda _, work: work(session))
        with session.connection.transaction(force_rollback=True):
            catalog.touch(SCOPE, ["17"])
            assert rows_read(session) < 20
        session.connection.close()
        catalog.close()


def test_sweeping_requests_in_postgresql_passes_each_once_while_a_long_transaction_keeps_those_that_are_gone() -> None:
    with PostgresServer() as server:
        address = server.database()
        server.execute(
            "INSERT INTO agent_memory.scope SELECT 'default/app/' || n, 0, n FROM generate_series(1, 200) AS n",
            name_of(address),
        )
        catalog = PostgresCatalog(address)
        with psycopg.connect(address) as other:
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT count(*) FROM agent_memory.scope")
            assert catalog.drop_requests(before=1_000, limit=1_000) == 200
        # A session tells what it has read when it ends.
        catalog.close()
        entries = (
            "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'scope_last_write' AND idx_scan > 0"
        )
        wait_for(lambda: bool(server.execute(entries, name_of(address))))
        assert server.execute(entries, name_of(address))[0][0] < 1_000
