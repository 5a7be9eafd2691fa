"""Importing what LangGraph's stores hold."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import BaseStore, PutOp
from langgraph.store.memory import InMemoryStore
from langgraph.store.postgres import PostgresStore
from langgraph.store.sqlite import SqliteStore

from agent_memory import (
    AgentMemory,
    AgentMemoryError,
    AuthenticationError,
    InvalidRequestError,
    PermissionDeniedError,
    ProtocolError,
    UnavailableError,
)
from agent_memory.cli import main
from agent_memory.ids import uuid7
from agent_memory.messages import JSON, Batch, CommitWrite, Scope
from agent_memory_langchain import AgentMemoryStore, ImportReport, import_langgraph
from tests.support.faults import Between, Lossy, Meddling, put_between
from tests.support.langgraph import DIMENSIONS, INDEX, embed
from tests.support.postgres import PostgresServer, name_of
from tests.support.server import ServerProcess


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[AgentMemory]:
    with AgentMemory(tmp_path / "memory.db", application="import", timeout=5) as memory:
        yield memory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A SqliteStore's file with 250 items of three users."""
    path = tmp_path / "langgraph.db"
    with SqliteStore.from_conn_string(str(path)) as store:
        store.setup()
        store.batch([PutOp(("user", f"{n % 3}"), f"item {n}", {"n": n, "text": "tëxt"}) for n in range(250)])
    return path


def execute(path: Path, statement: str, *bindings: Any) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, bindings)


def test_every_item_is_copied_and_a_second_time_none(source: Path, memory: AgentMemory) -> None:
    seen: list[int] = []
    report = import_langgraph(source, memory, progress=lambda so_far: seen.append(so_far.seen))

    assert report == ImportReport(copied=250)
    assert seen == [100, 200, 250]
    assert memory.app_state.get("user/1/item 7") == {"n": 7, "text": "tëxt"}
    assert len(AgentMemoryStore(memory).search(("user",), limit=300)) == 250
    assert import_langgraph(str(source), memory) == ImportReport(unchanged=250)


def test_an_interrupted_import_is_resumed(source: Path, memory: AgentMemory) -> None:
    def interrupt(report: ImportReport) -> None:
        if report.seen == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_langgraph(source, memory, progress=interrupt)
    assert import_langgraph(source, memory) == ImportReport(copied=50, unchanged=200)


def test_what_was_changed_since_is_kept_unless_told_otherwise(source: Path, memory: AgentMemory) -> None:
    memory.app_state.set("user/1/item 7", {"n": "newer"})
    memory.app_state.set("user/2/item 5", {5: "not JSON", "n": 5})

    assert import_langgraph(source, memory) == ImportReport(copied=248, kept=2)
    assert memory.app_state.get("user/1/item 7") == {"n": "newer"}
    assert import_langgraph(source, memory, overwrite=True) == ImportReport(copied=2, unchanged=248)
    assert memory.app_state.get("user/1/item 7") == {"n": 7, "text": "tëxt"}


def test_a_number_in_the_place_of_a_truth_is_another_value(memory: AgentMemory) -> None:
    memory.app_state.set("user/1/done", {"all": [True], "one": 1})
    source = InMemoryStore()
    source.put(("user", "1"), "done", {"all": [1], "one": 1})
    assert import_langgraph(source, memory) == ImportReport(kept=1)
    assert import_langgraph(source, memory, overwrite=True) == ImportReport(copied=1)
    assert import_langgraph(source, memory) == ImportReport(unchanged=1)


def test_the_remaining_time_to_live_is_copied(source: Path, memory: AgentMemory) -> None:
    # As SqliteStore writes it at a put, and as it does at a refresh.
    later = datetime.now(UTC) + timedelta(hours=1)
    execute(source, "UPDATE store SET expires_at = ?, ttl_minutes = 60 WHERE key = 'item 1'", str(later))
    execute(source, "UPDATE store SET expires_at = ? WHERE key = 'item 2'", f"{later:%Y-%m-%d %H:%M:%S}")
    execute(source, "UPDATE store SET expires_at = '2020-01-01 00:00:00' WHERE key = 'item 3'")

    assert import_langgraph(source, memory) == ImportReport(copied=249, expired=1)
    for key in ("user/1/item 1", "user/2/item 2"):
        snapshot = memory.app_state.snapshot(key)
        assert snapshot is not None
        assert snapshot.entry.expires_at is not None
        assert abs(snapshot.entry.expires_at - later) < timedelta(seconds=5)
    assert memory.app_state.get("user/0/item 3") is None


def test_the_order_of_changes_is_kept_and_their_times_noted(source: Path, memory: AgentMemory) -> None:
    execute(source, "UPDATE store SET updated_at = '2024-05-06 07:08:09', created_at = '2023-01-02 03:04:05'")
    execute(source, "UPDATE store SET updated_at = '2025-01-01 00:00:00' WHERE key = 'item 42'")
    import_langgraph(source, memory)

    [newest] = AgentMemoryStore(memory).search(("user",), limit=1)
    assert newest.key == "item 42"
    snapshot = memory.app_state.snapshot("user/0/item 42")
    assert snapshot is not None
    assert snapshot.entry.provenance == {
        "reason": "imported from LangGraph, created 2023-01-02T03:04:05+00:00, updated 2025-01-01T00:00:00+00:00"
    }


def test_the_times_of_items_come_along_and_are_mended_by_the_next_run(source: Path, memory: AgentMemory) -> None:
    execute(source, "UPDATE store SET updated_at = '2024-05-06 07:08:09', created_at = '2023-01-02 03:04:05'")
    created, updated = datetime(2023, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert import_langgraph(source, memory).times_kept
    item = AgentMemoryStore(memory).get(("user", "0"), "item 42")
    assert item is not None
    assert (item.created_at, item.updated_at) == (created, updated)

    memory.set_times({"user/0/item 42": (updated, updated)})
    assert import_langgraph(source, memory).unchanged == 250
    item = AgentMemoryStore(memory).get(("user", "0"), "item 42")
    assert item is not None
    assert item.created_at == created


def test_a_server_keeps_its_own_times(source: Path, server: ServerProcess) -> None:
    with AgentMemory(server.url, application="import") as memory:
        assert import_langgraph(source, memory) == ImportReport(copied=250, times_kept=False)
        assert import_langgraph(source, memory) == ImportReport(unchanged=250, times_kept=False)


def test_the_command_imports_and_counts(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent_memory.cli", "import-langgraph", str(source), "--application", "app"]
    for expected in ("copied: 250, unchanged: 0", "copied: 0, unchanged: 250"):
        done = subprocess.run(
            [*command, "--to", str(tmp_path / "to.db")], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected)


def test_the_command_gives_a_token_to_a_server_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_TOKEN", "a token that no header can carry")
    monkeypatch.chdir(tmp_path)
    assert main(["import-langgraph", str(source), "--application", "app", "--to", "http.db"]) == 0
    assert main(["import-langgraph", str(source), "--application", "app", "--to", "HTTP://127.0.0.1:9"]) == 2
    assert "a token is printable ASCII" in capsys.readouterr().err


def test_the_command_makes_no_memory_of_the_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, link = source.read_bytes(), tmp_path / "link.db"
    link.symlink_to(source)
    assert main(["import-langgraph", str(source), "--application", "app", "--to", str(link)]) == 2
    assert "another file" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    "address",
    ["postgresql://u:secret@127.0.0.1:1/none", "https://u:secret@host", "mysql://u:secret@host/x", "other.db"],
)
def test_the_command_makes_no_memory_of_what_it_cannot_open(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    execute(tmp_path / "other.db", "CREATE TABLE t (a)")
    assert main(["import-langgraph", address, "--application", "app", "--to", "to.db"]) == 2
    assert re.search("cannot be read|no other address|no LangGraph store", error := capsys.readouterr().err)
    assert "secret" not in error
    assert list(tmp_path.glob("to*")) == []


def test_what_cannot_be_stored_is_reported_and_the_rest_copied(source: Path, memory: AgentMemory) -> None:
    for key, value in (("list", "[1]"), ("no json", "{secret"), ("x" * 3_000, "{}"), ("nan", '{"a": NaN}')):
        execute(source, "INSERT INTO store (prefix, key, value) VALUES ('user.bad', ?, ?)", key, value)
    for prefix, key in (("", "no labels"), ("user..bad", "no label"), ("user", "")):
        execute(source, "INSERT INTO store (prefix, key, value) VALUES (?, ?, '{}')", prefix, key)
    report = import_langgraph(source, memory)

    assert (report.copied, report.refused, len(report.problems)) == (250, 7, 7)
    assert "secret" not in str(report)
    assert "item 'list' of ('user', 'bad'): it holds a list, not an object" in report.problems
    assert sum(problem.endswith("an empty label or key") for problem in report.problems) == 3


def test_an_item_with_a_time_or_vector_that_is_none_is_refused_and_the_rest_copied(
    source: Path, memory: AgentMemory
) -> None:
    execute(source, "CREATE TABLE store_vectors (prefix, key, field_name, embedding, created_at, updated_at)")
    execute(source, "INSERT INTO store_vectors VALUES ('user.0', 'item 0', 'text', x'0102030405', '', '')")
    for column, key in (("created_at", "item 1"), ("updated_at", "item 2"), ("expires_at", "item 3")):
        execute(source, f"UPDATE store SET {column} = 'yesterday' WHERE key = ?", key)
    report = import_langgraph(source, memory)

    assert (report.copied, report.refused, len(report.problems)) == (246, 4, 4)
    assert all("a time or a vector of it cannot be read" in problem for problem in report.problems)
    assert "yesterday" not in str(report)


def test_vectors_are_copied(source: Path, memory: AgentMemory) -> None:
    execute(source, "CREATE TABLE store_vectors (prefix, key, field_name, embedding, created_at, updated_at)")
    for key, text in (("item 0", "swim"), ("item 3", "ride"), ("gone", "swim")):
        blob = struct.pack(f"<{DIMENSIONS}f", *embed([text])[0])
        execute(source, "INSERT INTO store_vectors VALUES ('user.0', ?, 'text', ?, '', '')", key, blob)
    import_langgraph(source, memory)

    index: Any = INDEX
    found = AgentMemoryStore(memory, index=index).search(("user", "0"), query="swim", limit=3)
    assert [item.key for item in found[:2]] == ["item 0", "item 3"]
    assert found[0].score == pytest.approx(1, abs=1e-5)
    assert found[2].score is None


def test_items_are_embedded_anew_if_an_index_is_given(source: Path, memory: AgentMemory) -> None:
    texts: list[str] = []
    index: Any = {**INDEX, "embed": lambda given: texts.extend(given) or embed(given)}
    import_langgraph(source, memory, index=index)
    assert texts == ["tëxt"] * 3, "once for every hundred items"
    found = AgentMemoryStore(memory, index=index).search(("user",), query="tëxt", limit=300)
    assert all(item.score == pytest.approx(1, abs=1e-5) for item in found)


def test_any_store_can_be_imported(memory: AgentMemory) -> None:
    store: BaseStore = InMemoryStore()
    store.batch([PutOp((f"root {n % 150}", "a"), f"{n}", {"n": n}) for n in range(1_500)])
    store.put(("root 1",), "top", {"n": -1})

    assert import_langgraph(store, memory) == ImportReport(copied=1_501)
    assert memory.app_state.get("root 1/top") == {"n": -1}
    with AgentMemory("memory://", application="copy") as copy:
        assert import_langgraph(AgentMemoryStore(memory), copy).copied == 1_501


def test_what_a_store_holds_besides_json_is_imported_as_json_and_once(memory: AgentMemory) -> None:
    store = InMemoryStore()
    store.put(("user", "ada"), "visit", {"on": date(2026, 1, 2), "pair": (1, 2)})

    assert import_langgraph(store, memory) == ImportReport(copied=1)
    assert memory.app_state.get("user/ada/visit") == {"on": "2026-01-02", "pair": [1, 2]}
    assert import_langgraph(store, memory) == ImportReport(unchanged=1)


def test_reading_a_store_restarts_no_time_to_live_in_it(memory: AgentMemory) -> None:
    store = AgentMemoryStore(memory)
    store.put(("user",), "k", {"n": 1}, ttl=60)
    before = memory.app_state.snapshot("user/k")
    with AgentMemory("memory://", application="copy") as copy:
        assert import_langgraph(store, copy).copied == 1
    assert memory.app_state.snapshot("user/k") == before


def test_lost_replies_change_no_number(source: Path, memory: AgentMemory) -> None:
    from agent_memory.messages import Batch

    put_between(memory, lambda inner: Lossy(inner, Batch, "reply", 3))
    assert import_langgraph(source, memory) == ImportReport(copied=250)


def test_a_store_that_fails_ends_the_import(source: Path, memory: AgentMemory) -> None:
    memory.close()
    with pytest.raises(UnavailableError):
        import_langgraph(source, memory)


@pytest.mark.parametrize("error", [AuthenticationError, PermissionDeniedError, ProtocolError])
def test_a_store_that_refuses_every_write_ends_the_import(
    source: Path, memory: AgentMemory, error: type[AgentMemoryError]
) -> None:
    class Refusing(Between):
        def before(self, message: Any) -> None:
            if isinstance(message, Batch) and any(isinstance(one, CommitWrite) for one in message.operations):
                raise error("no writes")

    put_between(memory, Refusing)
    with pytest.raises(error, match="no writes"):
        import_langgraph(source, memory)


def test_a_store_that_fails_between_reading_and_writing_ends_the_import(source: Path, memory: AgentMemory) -> None:
    class Overloaded(Between):
        def before(self, message: Any) -> None:
            if isinstance(message, Batch) and any(isinstance(one, CommitWrite) for one in message.operations):
                raise UnavailableError("no room", code="overloaded")

    memory.app_state.set("other", 1)
    put_between(memory, Overloaded)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="no room"):
        import_langgraph(source, memory)
    assert time.monotonic() - began < 8, "one call's time, not that of every item"


@pytest.mark.parametrize("refused", [0, 1])
def test_what_is_written_meanwhile_is_kept_and_the_rest_copied(
    source: Path, memory: AgentMemory, tmp_path: Path, refused: int
) -> None:
    """Also where one item that cannot be stored makes those of its page be written one by one."""
    if refused:
        execute(source, """UPDATE store SET value = '{"n": "\\ud800"}' WHERE key = 'item 9'""")
    written: list[str] = []

    def write_first(message: Any) -> None:
        sets = [one.key for one in getattr(message, "operations", [message]) if isinstance(one, CommitWrite)]
        if sets and not written:
            written.append(sets[-1])
            with AgentMemory(tmp_path / "memory.db", application="import") as other:
                other.app_state.set(sets[-1], {"mine": True})

    put_between(memory, lambda inner: Meddling(inner, act=write_first))
    report = import_langgraph(source, memory)
    assert (report.copied, report.kept, report.refused) == (249 - refused, 1, refused)
    assert memory.app_state.get(written[0]) == {"mine": True}


def test_what_the_application_wrote_itself_keeps_its_times(source: Path, memory: AgentMemory) -> None:
    import_langgraph(source, memory)
    key = memory.app_state.key("user/1/item 7", dict)
    key.set({})
    written = key.set({"n": 7, "text": "tëxt"})

    assert import_langgraph(source, memory) == ImportReport(unchanged=250)
    assert memory.app_state.snapshot("user/1/item 7").entry == written


def test_a_value_in_the_way_that_cannot_be_read_is_kept_like_any_other(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "signed.db"
    with AgentMemory(path, application="import", signing_keys=[b"a" * 32]) as memory:
        memory.app_state.set("user/1/item 7", (1, 2))
        broken = CommitWrite(Scope("default", "import"), "user/2/item 5", uuid7(), b"{", None, content_type=JSON)
        memory._client.transport().send(broken, time.monotonic() + 5)
    with AgentMemory(path, application="import", signing_keys=[b"b" * 32]) as memory:
        assert import_langgraph(source, memory) == ImportReport(copied=248, kept=2)
        assert import_langgraph(source, memory, overwrite=True) == ImportReport(copied=2, unchanged=248)
        assert memory.app_state.get("user/1/item 7") == {"n": 7, "text": "tëxt"}


def test_a_source_that_is_none_is_an_error(tmp_path: Path, memory: AgentMemory) -> None:
    with pytest.raises(FileNotFoundError):
        import_langgraph(tmp_path / "absent.db", memory)
    assert not (tmp_path / "absent.db").exists()
    (tmp_path / "text").write_text(json.dumps({}) * 1_000)
    with pytest.raises(InvalidRequestError, match="no SQLite database"):
        import_langgraph(tmp_path / "text", memory)
    execute(tmp_path / "other.db", "CREATE TABLE t (a)")
    with pytest.raises(InvalidRequestError, match="no LangGraph store"):
        import_langgraph(tmp_path / "other.db", memory)


def test_a_damaged_source_is_an_error_that_says_so(source: Path, memory: AgentMemory) -> None:
    with source.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * (source.stat().st_size - 4_096))
    with pytest.raises(InvalidRequestError, match=r"'langgraph\.db' is damaged"):
        import_langgraph(source, memory)


def test_a_locked_source_is_an_error_that_says_so(
    source: Path, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(source, "PRAGMA journal_mode = DELETE")
    with closing(sqlite3.connect(source)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.05))
        with pytest.raises(UnavailableError, match=r"'langgraph\.db' is locked"):
            import_langgraph(source, memory)


# -- from a PostgresStore --------------------------------------------------------------------------------------------


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """A PostgresStore's database: 250 items of three users, every second one embedded, some with a time to live."""
    address = postgres.empty_database()
    index: Any = INDEX
    with PostgresStore.from_conn_string(address, index=index, ttl={"default_ttl": None}) as store:
        store.setup()
        store.batch(
            PutOp(
                ("user", f"{n % 3}"), f"item {n}", {"n": n, "text": "swim" if n == 6 else "tëxt"},
                index=None if n % 2 == 0 else False, ttl=60 if n % 10 == 0 else None,
            )
            for n in range(250)
        )  # fmt: skip
    yield address
    postgres.drop(address)


def test_a_postgres_store_is_imported_with_times_ttl_and_vectors(
    database: str, postgres: PostgresServer, memory: AgentMemory
) -> None:
    times = "created_at = '2023-01-02 03:04:05+02', updated_at = '2024-05-06 07:08:09.123456+02'"
    postgres.execute(f"UPDATE store SET {times} WHERE key = 'item 42'", name_of(database))
    postgres.execute("UPDATE store SET expires_at = '2020-01-01' WHERE key = 'item 20'", name_of(database))
    before = postgres.execute("SELECT * FROM store ORDER BY prefix, key", name_of(database))

    assert import_langgraph(database, memory) == ImportReport(copied=249, expired=1)
    assert postgres.execute("SELECT * FROM store ORDER BY prefix, key", name_of(database)) == before

    index: Any = INDEX
    store = AgentMemoryStore(memory, index=index)
    item = store.get(("user", "0"), "item 42")
    assert item is not None
    assert item.value == {"n": 42, "text": "tëxt"}
    assert item.created_at == datetime(2023, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert item.updated_at == datetime(2024, 5, 6, 5, 8, 9, 123456, tzinfo=UTC)

    expiry = dict(postgres.execute("SELECT key, expires_at FROM store WHERE key LIKE 'item 1%'", name_of(database)))
    limited, unlimited = memory.app_state.snapshot("user/1/item 10"), memory.app_state.snapshot("user/2/item 11")
    assert limited is not None
    assert limited.entry.expires_at is not None
    assert abs(limited.entry.expires_at - expiry["item 10"]) < timedelta(seconds=5)
    assert unlimited is not None
    assert unlimited.entry.expires_at is None

    found = store.search(("user",), query="swim", limit=300)
    assert found[0].key == "item 6"
    assert found[0].score == pytest.approx(1, abs=1e-5)
    assert sum(item.score is not None for item in found) == 124  # of 125 with vectors one has expired


def test_an_interrupted_import_from_a_postgres_store_is_resumed_and_counted(database: str, tmp_path: Path) -> None:
    def interrupt(report: ImportReport) -> None:
        if report.seen == 100:
            raise KeyboardInterrupt

    with AgentMemory(tmp_path / "to.db", application="app") as memory, pytest.raises(KeyboardInterrupt):
        import_langgraph(database, memory, progress=interrupt)
    command = [sys.executable, "-m", "agent_memory.cli", "import-langgraph", database, "--application", "app"]
    for expected in ("copied: 150, unchanged: 100, kept: 0, expired: 0", "copied: 0, unchanged: 250"):
        done = subprocess.run(
            [*command, "--to", str(tmp_path / "to.db")], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected)


def test_a_postgres_store_of_an_older_release_is_imported(
    database: str, postgres: PostgresServer, memory: AgentMemory
) -> None:
    older = "ALTER TABLE store DROP COLUMN expires_at, DROP COLUMN ttl_minutes; DROP TABLE store_vectors"
    postgres.execute(older, name_of(database))
    assert import_langgraph(database, memory) == ImportReport(copied=250)


def test_a_database_that_is_no_source_is_an_error_without_its_address(
    postgres: PostgresServer, memory: AgentMemory, shared_database: str
) -> None:
    with pytest.raises(InvalidRequestError, match="no LangGraph store"):
        import_langgraph(shared_database, memory)
    with pytest.raises(UnavailableError) as failed:
        import_langgraph("postgresql://someone:secret@127.0.0.1:1/none", memory)
    assert "secret" not in str(failed.value)
    assert "someone" not in str(failed.value)
