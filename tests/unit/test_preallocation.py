"""Zeros where the write-ahead log is about to grow: what they are for, and that nothing is lost by them."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import apsw
import pytest

from agent_memory.ids import uuid7
from agent_memory.messages import CommitWrite, Scope
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from agent_memory.storage.sqlite.preallocation import Preallocation

ZEROS = 64 * 1024
FRAME = 4096 + 24
FULL = 1000 * FRAME


def log_of(database: Path) -> Path:
    return Path(f"{database}-wal")


def value(number: int, size: int = 500) -> bytes:
    """Return bytes that differ on every page: SQLite does not write a page that did not change."""
    return b"%010d" % number * (size // 10)


def write(catalog: SqliteCatalog, number: int, size: int = 500) -> None:
    data = value(number, size)
    catalog.write(CommitWrite(Scope("default", "app"), "key", uuid7(), data, None))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "memory.db"
    SqliteCatalog(path).close()
    return path


@pytest.mark.parametrize("linked", [False, True])
def test_few_commits_make_the_log_longer(database: Path, linked: bool) -> None:
    path = database
    if linked:
        path = database.with_name("link.db")
        path.symlink_to(database)
    lengths = list[int]()
    with closing(SqliteCatalog(path)) as catalog:
        for number in range(300):
            write(catalog, number)
            lengths.append(log_of(database).stat().st_size)
    assert lengths[-1] > 300 * FRAME
    assert len(set(lengths)) <= lengths[-1] / ZEROS


def test_no_file_stays_open(database: Path) -> None:
    with closing(SqliteCatalog(database)) as catalog:
        write(catalog, 0)
        before = len(os.listdir("/dev/fd"))
        for number in range(100):
            write(catalog, number)
        assert len(os.listdir("/dev/fd")) == before


def test_a_commit_does_not_fail_where_no_zeros_can_be_written(tmp_path: Path) -> None:
    Preallocation(tmp_path / "without a log.db").after_commit()


def test_a_store_that_is_not_durable_writes_no_zeros(database: Path) -> None:
    with closing(SqliteCatalog(database, durable=False)) as catalog:
        write(catalog, 0)
        assert log_of(database).stat().st_size < ZEROS


def test_a_log_that_is_written_over_gets_no_more(database: Path) -> None:
    with closing(SqliteCatalog(database)) as catalog:
        for number in range(1500):
            write(catalog, number)
        assert log_of(database).stat().st_size < FULL + 2 * ZEROS


def test_a_log_that_a_reader_keeps_from_ending_gets_no_more(database: Path) -> None:
    with closing(SqliteCatalog(database)) as catalog, closing(apsw.Connection(str(database))) as reader:
        reader.execute("BEGIN").execute("SELECT count(*) FROM entry").fetchall()
        for number in range(100):
            write(catalog, number, 60_000)
        write(catalog, 0)  # which writes zeros over the pages of the last one
        lengths = [log_of(database).stat().st_size]
        for number in range(40):
            write(catalog, number)
            lengths.append(log_of(database).stat().st_size)
        assert lengths[0] > FULL
        assert all(after - before < ZEROS for before, after in pairwise(lengths))


def test_several_processes_do_not_add_to_the_zeros_of_one_another(database: Path) -> None:
    with closing(SqliteCatalog(database)) as one:
        for number in range(40):
            write(one, number)
        alone = log_of(database).stat().st_size
    with closing(SqliteCatalog(database)) as one, closing(SqliteCatalog(database)) as other:
        for number in range(20):
            write(one, number)
            write(other, number)
        assert log_of(database).stat().st_size <= alone + 2 * ZEROS


def test_what_a_crash_leaves_behind_zeros_is_read(database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with closing(SqliteCatalog(database)) as catalog:
        for number in range(40):
            write(catalog, number)
            for suffix in ("", "-wal"):
                Path(f"{copy}{suffix}").write_bytes(Path(f"{database}{suffix}").read_bytes())
            with closing(apsw.Connection(str(copy))) as connection:
                [(data,)] = connection.execute("SELECT value FROM entry")
                assert data == value(number)
                assert connection.pragma("integrity_check") == "ok"


def test_commits_lose_nothing_to_zeros_that_are_appended_meanwhile(database: Path) -> None:
    stop = threading.Event()

    def append() -> None:
        while not stop.is_set():
            Preallocation(database).after_commit()

    with closing(SqliteCatalog(database)) as catalog:
        write(catalog, 0)
        appending = threading.Thread(target=append)
        appending.start()
        try:
            for number in range(200):
                # Several frames each, which one commit writes one after the other.
                write(catalog, number, 20_000)
                with closing(apsw.Connection(str(database))) as connection:
                    [(data,)] = connection.execute("SELECT value FROM entry")
                    assert data == value(number, 20_000)
        finally:
            stop.set()
            appending.join()
        with closing(apsw.Connection(str(database))) as connection:
            assert connection.pragma("integrity_check") == "ok"
