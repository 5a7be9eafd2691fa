"""A database that is damaged, not one, newer than the code, or out of reach: a typed error, never an empty store."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from agent_memory import AgentMemory, IntegrityError, InvalidRequestError, UnavailableError
from agent_memory.copying import copy
from agent_memory.messages import JSON, CommitWrite, Scope
from agent_memory.opening import open_service
from agent_memory.storage.sqlite.rows import all_rows
from tests.faults.processes import Child, Report
from tests.support.server import ServerProcess

Start = Callable[..., Child]


def open_and_read(database: Path) -> list[str]:
    with AgentMemory(database, application="faults", timeout=2) as memory:
        keys = list(memory.app_state.keys())
        for key in keys:
            memory.app_state.get(key)
        return keys


def fill(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        for number in range(200):
            memory.app_state.set(f"k{number}", "x" * 500)


def test_a_file_that_is_no_database_is_an_integrity_error(database: Path) -> None:
    database.write_bytes(b"Once upon a time, there was a text. " * 500)
    with pytest.raises(IntegrityError):
        open_and_read(database)


def test_the_database_of_something_else_is_left_as_it_is(database: Path) -> None:
    with closing(apsw.Connection(str(database))) as connection:
        connection.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, name TEXT)")
    before = database.read_bytes()
    with pytest.raises(InvalidRequestError, match=r"'store\.db' is the database of something else"):
        open_and_read(database)
    assert database.read_bytes() == before
    assert list(database.parent.iterdir()) == [database]


def test_a_database_with_damaged_pages_is_an_integrity_error(database: Path) -> None:
    fill(database)
    size = database.stat().st_size
    with open(database, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(IntegrityError):
        open_and_read(database)


def test_a_database_that_was_cut_short_is_an_integrity_error(database: Path) -> None:
    fill(database)
    os.truncate(database, database.stat().st_size // 2)
    with pytest.raises(IntegrityError):
        open_and_read(database)


def test_damage_that_appears_while_the_store_is_open_is_an_integrity_error(database: Path) -> None:
    fill(database)
    with AgentMemory(database, application="faults", timeout=2) as memory:
        assert memory.app_state.get("k1")
        size = database.stat().st_size
        with open(database, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))

        def read_all() -> list[str]:
            return [memory.app_state.get(f"k{number}") for number in range(200)]

        with pytest.raises(IntegrityError):
            read_all()


def test_a_check_finds_that_keys_may_hide_and_calls_no_files_unused(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("large", b"x" * 200_000)
    with closing(apsw.Connection(str(database))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data, place = database.read_bytes(), b"default/faultslarge"
    hidden = strange = 0
    # The place stands in the rows of the tables and in the index that a key is looked up in.
    for found in re.finditer(place, data):
        database.write_bytes(data[: found.end() - 1] + b"d" + data[found.end() :])
        with AgentMemory(database, application="faults") as memory:
            try:
                value = memory.app_state.get("large")
            except IntegrityError:
                strange += 1
                continue
            if value is None:
                report = memory.check(fix=True)
                hidden += 1
                assert ("the database", False) in [(problem.place, problem.fixed) for problem in report.problems]
                assert not any(problem.fixed for problem in report.problems)
    assert strange, "where the row has another key than the index"
    assert hidden


def point_elsewhere(database: Path, index: str, entry: bytes, rowid: int) -> None:
    """Damage an index: its one entry that ends in these bytes stands for another row."""
    with closing(apsw.Connection(str(database))) as connection:
        all_rows(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
        [(page, size)] = all_rows(
            connection, "SELECT rootpage, page_size FROM sqlite_schema, pragma_page_size WHERE name = ?", (index,)
        )
    with open(database, "r+b") as file:
        file.seek((page - 1) * size)
        place = file.read(size).index(entry) + len(entry)
        file.seek((page - 1) * size + place)
        file.write(bytes([rowid]))


KEYS = "sqlite_autoindex_entry_1"


@pytest.fixture
def astray(database: Path) -> Path:
    """A store whose index leads from ``b`` to the row of ``d``, of another application, and from ``c`` to no row."""
    for application, keys in (("faults", "abc"), ("others", "d")):
        with AgentMemory(database, application=application) as memory:
            for key in keys:
                memory.app_state.set(key, {"is": key})
    # A rowid up to 127 is one byte behind the key, except 1, which is none.
    point_elsewhere(database, KEYS, b"default/faultsb", 4)
    point_elsewhere(database, KEYS, b"default/faultsc", 99)
    return database


@pytest.mark.parametrize("key", ["b", "c"])
def test_a_damaged_index_never_gives_the_value_of_another_key(astray: Path, key: str) -> None:
    with AgentMemory(astray, application="faults") as memory:
        state = memory.app_state
        assert state.get("a") == {"is": "a"}
        for call in (
            lambda: state.get(key),
            lambda: state.get_many(["a", key]),
            lambda: state.keys(),
            lambda: state.search(key),
            lambda: state.search(key, filter={"is": {"$ne": "a"}}),
            lambda: state.set(key, {"is": "new"}),
            lambda: state.delete(key),
            memory.check,
        ):
            with pytest.raises(IntegrityError):
                list(call() or ())
    with AgentMemory(astray, application="others") as memory:
        assert memory.app_state.get("d") == {"is": "d"}, "no write went there"


def test_a_damaged_index_brings_nothing_wrong_into_a_copy(astray: Path, tmp_path: Path) -> None:
    with (
        closing(open_service(str(astray), None)) as source,
        closing(open_service(str(tmp_path / "copy.db"), None)) as target,
        pytest.raises(IntegrityError),
    ):
        copy(source, target)


def test_a_copy_into_a_store_with_a_damaged_index_takes_the_place_of_no_other_key(astray: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.db"
    with AgentMemory(source, application="faults") as memory:
        memory.app_state.set("b", "old")
        memory.app_state.set("b", "newer than what is there")
    with (
        closing(open_service(str(source), None)) as copied,
        closing(open_service(str(astray), None)) as target,
        pytest.raises(IntegrityError),
    ):
        target.catalog.take(copied.catalog.stored(after=("", ""), limit=10))
    with AgentMemory(astray, application="others") as memory:
        assert memory.app_state.get("d") == {"is": "d"}


def test_a_damaged_index_makes_no_garbage_of_the_value_of_another_key(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        for key in ("first", "a", "b"):
            memory.app_state.set(key, b"x" * 100_000)
    with closing(apsw.Connection(str(database))) as connection:
        [(blob_id,)] = all_rows(connection, "SELECT id FROM blob WHERE key = 'a'")
        [(rowid,)] = all_rows(connection, "SELECT rowid FROM blob WHERE key = 'b'")
    point_elsewhere(database, "sqlite_autoindex_blob_1", blob_id.encode(), rowid)
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("a", 1)
    with closing(apsw.Connection(str(database))) as connection:
        assert all_rows(connection, "SELECT state FROM blob WHERE rowid = ?", (rowid,)) == [("live",)]


LONG_AGO = 10**15
"""In microseconds since 1970; eight bytes in an index."""

AGES = LONG_AGO.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("old", "index", "entry", "used"),
    [
        ("UPDATE entry SET expires_us = {} WHERE key = 'a'", "entry_expiry", AGES, "entry"),
        ("UPDATE entry SET deleted = 1, updated_us = {} WHERE key = 'a'", "entry_tombstone", AGES, "entry"),
        ("UPDATE blob SET state = 'garbage', at_us = {} WHERE key = 'a'", "blob_state", b"garbage" + AGES, "blob"),
        ("UPDATE blob SET state = 'dead', at_us = {} WHERE key = 'a'", "blob_state", b"dead" + AGES, "blob"),
        ("UPDATE scope SET last_write_us = {} WHERE scope LIKE '%old'", "scope_last_write", AGES, "scope"),
        ("UPDATE scope SET last_write_us = {} WHERE scope LIKE '%old'", KEYS, b"default/faults/oldk", "entry"),
    ],
    ids=["expired", "deleted", "garbage", "dead", "request", "key of a request"],
)
def test_a_damaged_index_makes_no_sweep_take_what_is_in_use(
    database: Path, old: str, index: str, entry: bytes, used: str
) -> None:
    large = b"x" * 100_000
    with AgentMemory(database, application="faults") as memory:
        for key in ("first", "a", "b"):
            memory.app_state.set(key, large)
        for request in ("first", "old", "now"):
            with memory.request(request) as context:
                context.state.set("k", 1)
    with closing(apsw.Connection(str(database))) as connection:
        all_rows(connection, old.format(LONG_AGO))
        where = "scope LIKE '%now'" if used == "scope" else "key = 'b'"
        [(rowid,)] = all_rows(connection, f"SELECT rowid FROM {used} WHERE {where}")
    point_elsewhere(database, index, entry, rowid)
    with AgentMemory(database, application="faults") as memory:
        memory.sweep()
        memory.sweep()
        assert memory.app_state.get("b") == large
        with memory.request("now") as context:
            assert context.state.get("k") == 1


@pytest.mark.parametrize("text", [b"reason", b"because"], ids=["provenance", "unicode"])
def test_damaged_text_in_the_database_is_an_integrity_error(database: Path, text: bytes) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 1, reason="because")
    with closing(apsw.Connection(str(database))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = database.read_bytes()
    place = data.index(text)
    harm = b'"' if text == b"reason" else b"\xff"
    database.write_bytes(data[:place] + harm + data[place + 1 :])
    with AgentMemory(database, application="faults") as memory:
        for call in (lambda: memory.app_state.get("k"), lambda: list(memory.app_state.keys())):
            with pytest.raises(IntegrityError):
                call()


@pytest.mark.parametrize(
    "harm",
    ["value = CAST(value AS TEXT)", "expires_us = 1e300", "provenance = 1"],
    ids=["value", "expiry", "provenance"],
)
def test_a_type_that_is_damaged_in_the_database_is_an_integrity_error(database: Path, harm: str) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("a/k", {"is": 1})
        with closing(apsw.Connection(str(database))) as connection:
            all_rows(connection, "PRAGMA writable_schema = ON")
            all_rows(connection, "UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE name = 'entry'")
        with closing(apsw.Connection(str(database))) as connection:
            all_rows(connection, f"UPDATE entry SET {harm}")
        for call in (lambda: memory.app_state.get("a/k"), lambda: memory.app_state.get_many(["a/k"])):
            with pytest.raises(IntegrityError, match="damaged"):
                call()


def test_a_text_that_is_damaged_under_a_write_is_an_integrity_error(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 1)
        with closing(apsw.Connection(str(database))) as connection:
            connection.execute("UPDATE entry SET etag = CAST(x'ff' AS TEXT)")
        for call in (memory.app_state.keys, memory.app_state.delete, lambda key: memory.app_state.set(key, 2)):
            with pytest.raises(IntegrityError, match="damaged"):
                list(call("k") or ())


def change(database: Path, statement: str) -> None:
    """Change a database as damage does, which keeps to no types."""
    with closing(apsw.Connection(str(database))) as connection:
        all_rows(connection, "PRAGMA writable_schema = ON")
        all_rows(connection, "UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE type = 'table'")
    with closing(apsw.Connection(str(database))) as connection:
        all_rows(connection, statement)


@pytest.mark.parametrize(
    "harm",
    ["size = -1", "size = 1 << 62", "size = x'00'", "chunk_size = 'a'", "blob_id = 'a' || char(0)", "blob_id = x'00'"],
)
@pytest.mark.parametrize("size", [100, 200_000], ids=["small", "large"])
def test_damaged_sizes_and_ids_of_blobs_are_integrity_errors(database: Path, harm: str, size: int) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("other", 1)
        memory.app_state.set("a/k", {"is": "x" * 200_000})
        if size == 100:
            # A large one whose row says that it is small: the store itself fetches it.
            change(database, "UPDATE entry SET size = 100 WHERE key = 'a/k'")
        change(database, f"UPDATE entry SET {harm} WHERE key = 'a/k'")
        state = memory.app_state
        for call in (
            lambda: state.get("a/k"),
            lambda: state.get_many(["a/k", "other"]),
            lambda: state.search("a/"),
            lambda: state.search("a/", filter={"is": {"$ne": 1}}, limit=5) or state.get("a/k"),
        ):
            with pytest.raises(IntegrityError):
                call()
        assert ("damaged", "default/faults a/k") in {(one.kind, one.place) for one in memory.check().problems}
        assert state.get("other") == 1
        state.set("a/k", {"is": "new"})
        assert state.get("a/k") == {"is": "new"}


def test_damaged_sizes_and_ids_of_blobs_stop_no_sweep(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        for number, harm in enumerate(["size = -1", "size = 1 << 62", "id = 'a' || char(0)"]):
            memory.app_state.set(f"k{number}", b"x" * 100_000)
            change(database, f"UPDATE blob SET state = 'garbage', at_us = 0, {harm} WHERE key = 'k{number}'")
        assert memory.sweep().blobs == 3


@pytest.mark.parametrize(
    "harm",
    [
        "updated_us = 1 << 62",
        "created_us = -(1 << 62)",
        "expires_us = 1 << 62",
        "version = 1 << 60",
        "etag = x'00'",
        "provenance = '{\"a\": [1]}'",
    ],
)
def test_metadata_that_cannot_be_true_is_an_integrity_error(database: Path, harm: str) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 1)
        change(database, f"UPDATE entry SET {harm}")
        for call in (memory.app_state.get, memory.app_state.snapshot, memory.app_state.keys):
            with pytest.raises(IntegrityError, match="damaged"):
                list(call("k") or ())  # type: ignore[arg-type]
        [problem] = memory.check().problems
        assert (problem.kind, problem.place) == ("damaged", "default/faults k")


def test_a_value_that_seems_deleted_is_not_absent(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("there", 1)
        memory.app_state.set("gone", 1)
        memory.app_state.delete("gone")
        change(database, "UPDATE entry SET deleted = NOT deleted")
        for call in (memory.app_state.get, memory.app_state.keys, lambda key: memory.app_state.get_many([key])):
            for key in ("there", "gone"):
                with pytest.raises(IntegrityError, match="damaged"):
                    list(call(key) or ())


def test_a_write_mends_when_a_value_was_written(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 1)
        change(database, "UPDATE entry SET created_us = 1 << 62, updated_us = 1 << 62")
        assert memory.app_state.set("k", 2).created_at.year < 3000
        assert memory.app_state.get("k") == 2


@pytest.mark.parametrize("version", [2**63 - 1, 2**60, -1])
def test_a_version_that_is_damaged_never_counts_on(database: Path, version: int) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 1)
        change(database, f"UPDATE entry SET version = {version}")
        for call in (lambda: memory.app_state.set("k", 2), lambda: memory.app_state.delete("k")):
            with pytest.raises(IntegrityError, match="damaged"):
                call()


@pytest.mark.parametrize("floor", ["1 << 60", "-1", "'text'"])
def test_a_floor_of_versions_that_is_damaged_never_counts_on(database: Path, floor: str) -> None:
    with AgentMemory(database, application="faults") as memory:
        change(database, f"INSERT INTO scope (scope, version_floor) VALUES ('default/faults', {floor})")
        with pytest.raises(IntegrityError, match="damaged"):
            memory.app_state.set("k", 1)


@pytest.mark.parametrize(
    "harm", ["fingerprint = 1", "version = 1 << 60", "created_us = 'text'", "expires_us = 1 << 62"]
)
def test_a_damaged_receipt_is_an_integrity_error(database: Path, harm: str) -> None:
    write = CommitWrite(Scope("default", "faults"), "k", "a-write-id", b"1", None, JSON)
    with closing(open_service(str(database), None)) as service:
        service.catalog.write(write)
        change(database, f"UPDATE receipt SET {harm}")
        with pytest.raises(IntegrityError, match="receipt"):
            service.catalog.write(write)


@pytest.mark.parametrize("harm", ["1", "'text'", "x'00'", "5000000000"])
def test_a_damaged_secret_is_an_integrity_error(database: Path, harm: str) -> None:
    with closing(open_service(str(database), None)) as service:
        service.catalog.secret("urls")
        change(database, f"UPDATE secret SET value = {harm}")
        with pytest.raises(IntegrityError, match="secret"):
            service.catalog.secret("urls")


def test_who_keeps_the_error_of_a_damaged_row_still_reads_what_is_written_later(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        for key in ("a", "b", "c"):
            memory.app_state.set(key, 1)
        change(database, "UPDATE entry SET provenance = 'none' WHERE key = 'b'")
        with pytest.raises(IntegrityError) as kept:
            list(memory.app_state.keys())
        memory.app_state.set("a", 2)
        assert memory.app_state.get("a") == 2
        assert kept.value


def test_a_blob_without_a_place_stops_neither_a_check_nor_a_sweep(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        for key in ("a", "b", "c"):
            memory.app_state.set(key, key.encode() * 200_000)
        with closing(apsw.Connection(str(database))) as connection:
            connection.execute("UPDATE entry SET blob_id = '../../outside' WHERE key = 'a'")
            connection.execute("UPDATE entry SET value = NULL, sha256 = 'none' WHERE key = 'b'")
            found = {(problem.kind, problem.place) for problem in memory.check().problems}
            assert {("damaged", "default/faults a"), ("damaged", "default/faults b")} <= found
            garbage = "UPDATE blob SET state = 'garbage', at_us = 0, size = size * 100000, chunk_size = 2"
            connection.execute(f"{garbage} WHERE key = 'a'")
            connection.execute("UPDATE blob SET state = 'garbage', at_us = 0, id = '../../outside' WHERE key = 'b'")
            connection.execute("UPDATE blob SET state = 'garbage', at_us = 0 WHERE key = 'c'")
        assert memory.sweep().blobs == 3
        assert len(list(Path(f"{database}.blobs").rglob("*.0"))) == 1, "the one whose name is lost"


def test_damaged_sizes_of_a_value_are_named_by_a_check(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("large", b"x" * 200_000)
        with closing(apsw.Connection(str(database))) as connection:
            connection.execute("UPDATE entry SET chunk_size = 0")
        assert [(problem.kind, problem.place) for problem in memory.check().problems] == [
            ("damaged", "default/faults large")
        ]
        with pytest.raises(IntegrityError):
            memory.app_state.get("large")


@pytest.mark.parametrize(
    "harm", ["size = -1", "size = 100, blob_id = 'a' || char(0)", "updated_us = 1 << 62", "etag = x'00'"]
)
def test_a_server_answers_that_a_row_is_damaged_and_goes_on(tmp_path: Path, harm: str) -> None:
    with ServerProcess(tmp_path) as server, AgentMemory(server.url, application="faults", timeout=5) as memory:
        state = memory.app_state
        state.set("a/k", {"is": "x" * 200_000})
        state.set("other", 1)
        change(server.data, f"UPDATE entry SET {harm} WHERE key = 'a/k'")
        for call in (
            lambda: state.get("a/k"),
            lambda: state.get_many(["a/k"]),
            lambda: state.search("a/", filter={"is": {"$ne": 1}}) or state.get("a/k"),
        ):
            with pytest.raises(IntegrityError) as caught:
                call()
            assert caught.value.code == "integrity"
        assert state.get("other") == 1
        state.set("a/k", {"is": "new"})
        assert state.get("a/k") == {"is": "new"}
        assert '"internal"' not in server.log


def test_a_folder_in_the_place_of_the_database_is_an_unavailable_error(database: Path) -> None:
    database.mkdir()
    with pytest.raises(UnavailableError):
        open_and_read(database)


def test_a_database_in_a_folder_that_is_not_there_is_an_unavailable_error(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        open_and_read(tmp_path / "nowhere" / "store.db")
    assert "store.db" in str(caught.value)


def open_as_nobody(report: Report, database: Path) -> None:
    os.setgid(65534)
    os.setuid(65534)
    try:
        open_and_read(database)
    except UnavailableError as error:
        report(str(error))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("there", [False, True], ids=["a new file", "another user's file"])
def test_a_path_that_may_not_be_written_is_an_unavailable_error(database: Path, start: Start, there: bool) -> None:
    if there:
        fill(database)
        database.chmod(0o400)
    (reported,) = start(open_as_nobody, database).join()
    assert "open" in reported[0]


def test_a_blob_folder_that_may_not_be_written_is_an_unavailable_error(database: Path) -> None:
    database.with_name("store.db.blobs").write_bytes(b"a file is in the way")
    with AgentMemory(database, application="faults", timeout=2) as memory:
        with pytest.raises(UnavailableError):
            memory.app_state.set("large", b"x" * 100_000)
        memory.app_state.set("small", 1)
        assert memory.app_state.get("small") == 1
        assert memory.app_state.get("large") is None


def test_a_database_of_a_newer_version_is_refused_and_says_why(database: Path) -> None:
    fill(database)
    connection = apsw.Connection(str(database))
    connection.execute("INSERT INTO migration VALUES ('9999_from_the_future', 0)").fetchall()
    connection.close()
    with pytest.raises(UnavailableError, match=r"newer.*9999_from_the_future.*upgrade") as caught:
        open_and_read(database)
    assert caught.value.code == "newer_schema"
    connection = apsw.Connection(str(database))
    connection.execute("DELETE FROM migration WHERE name = '9999_from_the_future'").fetchall()
    connection.close()
    assert len(open_and_read(database)) == 200, "the refusal changed nothing"
