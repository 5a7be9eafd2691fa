"""``check`` finds what does not agree and mends what can be mended; ``backup`` copies a store that is in use."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apsw
import pytest

from agent_memory import AgentMemory, ConflictError, IntegrityError, InvalidRequestError, UnavailableError, maintenance
from agent_memory.ids import uuid7
from agent_memory.maintenance import lie_here
from agent_memory.opening import open_service
from agent_memory.storage.blobs import GRACE_SECONDS, FileBlobs
from agent_memory.storage.catalog import GARBAGE
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from tests.faults.processes import Child, Report, counter_of, value
from tests.support.read_only import make_read_only

LARGE = 200_000


class Plain:
    """A value that only a pickle can hold."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def memory(database: Path) -> Iterator[AgentMemory]:
    with AgentMemory(database, application="app", timeout=5, chunk_size=100_000) as memory:
        memory.app_state.set("small", {"a": "sound"})
        memory.app_state.set("large", value(1, LARGE))
        yield memory


def sql(database: Path, statement: str, *bindings: Any) -> list[Any]:
    connection = apsw.Connection(str(database))
    try:
        connection.set_busy_timeout(1000)
        return connection.execute(statement, bindings).fetchall()
    finally:
        connection.close()


def chunk_files(database: Path) -> list[Path]:
    return sorted(path for path in database.with_name("store.db.blobs").rglob("*") if path.is_file())


def make_old(path: Path) -> None:
    then = time.time() - GRACE_SECONDS - 60
    os.utime(path, (then, then))


def kinds(memory: AgentMemory, *, fix: bool = False) -> list[tuple[str, bool]]:
    report = memory.check(fix=fix)
    assert report.ok == all(problem.fixed for problem in report.problems)
    return [(problem.kind, problem.fixed) for problem in report.problems]


def test_a_sound_store_has_no_problems(memory: AgentMemory) -> None:
    report = memory.check()
    assert report.ok
    assert report.problems == ()
    assert (report.values, report.objects) == (2, 2)


def test_files_of_a_value_are_no_orphans_whatever_else_is_damaged(memory: AgentMemory, database: Path) -> None:
    memory.app_state.set("other", value(2, LARGE))
    sql(database, "UPDATE entry SET sha256 = 'x' WHERE key = 'large'")
    sql(database, "DELETE FROM blob WHERE key = 'large'")
    files = chunk_files(database)
    for file in files:
        make_old(file)
    assert kinds(memory, fix=True) == [("damaged", False)]
    assert chunk_files(database) == files


def test_a_value_whose_blob_id_is_damaged_keeps_its_files_until_it_is_written_again(
    memory: AgentMemory, database: Path
) -> None:
    sql(database, "UPDATE entry SET blob_id = replace(blob_id, '-7', '-6') WHERE key = 'large'")
    assert kinds(memory, fix=True) == [("missing", False), ("unused", False)]
    sql(database, "UPDATE entry SET blob_id = replace(blob_id, '-6', '-7') WHERE key = 'large'")
    assert kinds(memory, fix=True) == []
    sql(database, "UPDATE entry SET blob_id = replace(blob_id, '-7', '-6') WHERE key = 'large'")
    memory.app_state.set("large", 1)
    assert kinds(memory, fix=True) == [("unused", True)]


def test_an_empty_store_has_no_problems(tmp_path: Path) -> None:
    with AgentMemory(tmp_path / "empty.db", application="app") as memory:
        assert memory.check(fix=True) == (0, 0, ())


def test_a_check_changes_nothing_unless_it_is_told_to(memory: AgentMemory, database: Path) -> None:
    orphan = chunk_files(database)[0].with_name(f"{uuid7()}.0")
    orphan.write_bytes(b"x")
    make_old(orphan)
    assert kinds(memory) == kinds(memory) == [("orphan", False)]
    assert orphan.exists()


@pytest.mark.parametrize(
    "suffix", ["0", "0.0123456789abcdef.part", "\udcff"], ids=["whole", "unfinished", "named by bytes that are no text"]
)
def test_a_file_that_nothing_refers_to_is_found_and_removed(memory: AgentMemory, database: Path, suffix: str) -> None:
    orphan = chunk_files(database)[0].with_name(f"{uuid7()}.{suffix}")
    orphan.write_bytes(b"x" * 1000)
    assert kinds(memory, fix=True) == [], "an upload may still be going on"
    make_old(orphan)
    assert kinds(memory, fix=True) == [("orphan", True)]
    assert not orphan.exists()
    assert kinds(memory) == []
    assert counter_of(memory.app_state.get("large")) == 1


def test_what_a_late_upload_brought_back_of_a_dead_blob_is_found_and_removed(
    memory: AgentMemory, database: Path
) -> None:
    late = chunk_files(database)[0].with_name(f"{(dead := uuid7())}.0")
    late.write_bytes(b"x")
    make_old(late)
    sql(database, "INSERT INTO blob VALUES (?, 'default/app', 'k', 1, NULL, 'dead', 0)", dead)
    assert kinds(memory, fix=True) == [("orphan", True)]
    assert not late.exists()


def test_a_missing_file_is_found_and_reading_the_key_is_an_error_not_absence(
    memory: AgentMemory, database: Path
) -> None:
    chunk_files(database)[0].unlink()
    assert kinds(memory, fix=True) == [("missing", False)]
    with pytest.raises(IntegrityError):
        memory.app_state.get("large")
    with pytest.raises(IntegrityError):
        memory.app_state.get("large", default="nothing")
    assert list(memory.app_state.keys()) == ["large", "small"]
    memory.app_state.set("large", value(2, LARGE))
    assert kinds(memory) == []


def test_a_missing_blob_folder_is_found(memory: AgentMemory, database: Path) -> None:
    shutil.rmtree(database.with_name("store.db.blobs"))
    assert kinds(memory) == [("missing", False)]
    with pytest.raises(IntegrityError):
        memory.app_state.get("large")


@pytest.mark.parametrize("change", ["cut short", "emptied", "made longer"])
def test_a_file_of_another_length_is_found(memory: AgentMemory, database: Path, change: str) -> None:
    path = chunk_files(database)[1]
    size = path.stat().st_size
    os.truncate(path, {"cut short": size - 1, "emptied": 0, "made longer": size + 1}[change])
    assert kinds(memory, fix=True) == [("missing", False)]
    if change != "made longer":
        with pytest.raises(IntegrityError):
            memory.app_state.get("large")


@pytest.mark.parametrize("where", [0, 50_000, -1])
def test_a_flipped_bit_in_a_file_is_found(memory: AgentMemory, database: Path, where: int) -> None:
    path = chunk_files(database)[0]
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    assert kinds(memory, fix=True) == [("damaged", False)]
    with pytest.raises(IntegrityError):
        memory.app_state.get("large")


def test_a_flipped_bit_in_a_small_value_is_found(memory: AgentMemory, database: Path) -> None:
    sql(database, "UPDATE entry SET value = ? WHERE key = 'small'", b'{"a":"round"}')
    assert kinds(memory, fix=True) == [("damaged", False)]
    with pytest.raises(IntegrityError):
        memory.app_state.get("small")
    assert counter_of(memory.app_state.get("large")) == 1, "one damaged value harms no other"


def test_damaged_state_of_a_request_and_a_damaged_size_are_found(memory: AgentMemory, database: Path) -> None:
    with memory.request("r-1") as context:
        context.state.set("draft", 1)
    sql(database, "UPDATE entry SET value = x'32' WHERE key = 'draft'")
    sql(database, "UPDATE entry SET size = 1 WHERE key = 'small'")
    assert kinds(memory) == 2 * [("damaged", False)]


def test_a_value_whose_blob_the_catalog_forgot_is_found_and_mended(memory: AgentMemory, database: Path) -> None:
    sql(database, "DELETE FROM blob")
    assert kinds(memory) == [("unregistered", False)] + 2 * [("orphan", False)] or kinds(memory) == [
        ("unregistered", False)
    ]
    assert ("unregistered", True) in kinds(memory, fix=True)
    assert kinds(memory) == []
    assert counter_of(memory.app_state.get("large")) == 1


def test_mending_a_forgotten_blob_never_deletes_the_files_of_a_live_value(memory: AgentMemory, database: Path) -> None:
    for path in chunk_files(database):
        make_old(path)
    sql(database, "DELETE FROM blob")
    memory.check(fix=True)
    assert counter_of(memory.app_state.get("large")) == 1
    assert kinds(memory) == []


@pytest.mark.parametrize("state", ["staged", "garbage", "dead"])
def test_a_live_blob_that_the_catalog_would_sweep_is_found_and_mended(
    memory: AgentMemory, database: Path, state: str
) -> None:
    sql(database, "UPDATE blob SET state = ?, at_us = 0", state)
    assert ("unregistered", True) in kinds(memory, fix=True)
    memory.sweep()
    assert counter_of(memory.app_state.get("large")) == 1


def test_a_live_blob_that_no_key_uses_is_found_and_given_to_the_sweep(memory: AgentMemory, database: Path) -> None:
    unused = uuid7()
    sql(database, "INSERT INTO blob VALUES (?, 'default/app', 'k', 70000, NULL, 'live', 0)", unused)
    assert kinds(memory) == [("unused", False)]
    assert kinds(memory, fix=True) == [("unused", True)]
    assert kinds(memory) == []
    assert sql(database, "SELECT state FROM blob WHERE id = ?", unused) == [("garbage",)]


def test_mending_deletes_no_file_where_the_catalog_knows_none_of_them(
    memory: AgentMemory, database: Path, tmp_path: Path
) -> None:
    for path in chunk_files(database):
        make_old(path)
    with AgentMemory(tmp_path / "other.db", application="app", blobs=f"{database}.blobs") as other:
        other.app_state.set("small", 1)
        assert kinds(other, fix=True) == 2 * [("orphan", False)]
    assert counter_of(memory.app_state.get("large")) == 1


def test_large_values_lie_where_one_of_them_is(memory: AgentMemory, database: Path, tmp_path: Path) -> None:
    elsewhere = FileBlobs(tmp_path / "elsewhere")
    with contextlib.closing(open_service(str(tmp_path / "empty.db"))) as service:
        assert lie_here(service.catalog, elsewhere)
    memory.app_state.set("other", value(1, LARGE))
    with contextlib.closing(open_service(str(database))) as service:
        assert lie_here(service.catalog, service.blobs)
        assert not lie_here(service.catalog, elsewhere)
        sql(database, "UPDATE blob SET id = id || '?' WHERE key = 'other'")
        assert not lie_here(service.catalog, elsewhere)
        sql(database, "UPDATE blob SET id = rtrim(id, '?')")
        *others, cut = chunk_files(database)
        os.truncate(cut, 0)
        for path in others:
            path.unlink()
        assert not lie_here(service.catalog, service.blobs), "only second chunks are left"
        others[0].touch()
        assert lie_here(service.catalog, service.blobs)
        sql(database, "UPDATE blob SET state = 'dead'")
        assert lie_here(service.catalog, elsewhere)


def test_what_was_swept_since_a_backup_does_not_hide_what_still_lies_there(
    memory: AgentMemory, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_SAMPLE", 2)
    for number in range(3):
        memory.app_state.set("large", value(number, LARGE))
    with contextlib.closing(open_service(str(database))) as service:
        for blob in service.catalog.blobs():
            if blob.state == GARBAGE:
                service.blobs.delete([(blob.id, 2)])
        assert lie_here(service.catalog, service.blobs)


def test_after_a_restore_no_etag_of_a_lost_version_stands_for_another_value(
    memory: AgentMemory, database: Path, tmp_path: Path
) -> None:
    memory.backup(tmp_path / "backup.db")
    lost = memory.app_state.key("small", dict[str, str]).update(lambda _: {"a": "lost"}, write_id="job-1")
    with AgentMemory(tmp_path / "backup.db", application="app") as restored:
        key = restored.app_state.key("small", dict[str, str])
        again = key.update(lambda _: {"a": "done again"}, write_id="job-1")
        assert again.version == lost.version
        with pytest.raises(ConflictError):
            key.replace({"a": "on top of what was lost"}, expected=lost)


def overwrite(report: Report, database: Path) -> None:
    with AgentMemory(database, application="app") as memory:
        report("ready")
        for counter in itertools.count():
            memory.app_state.set(f"k{counter % 20}", value(counter, 70_000 if counter % 2 else 500))
            if counter % 7 == 0:
                memory.app_state.delete(f"k{counter % 20}")


@contextlib.contextmanager
def others_write(database: Path) -> Iterator[None]:
    child = Child(overwrite, database)
    try:
        child.report()
        yield
    finally:
        child.close()


def test_a_check_while_others_write_finds_nothing_and_mends_nothing(database: Path) -> None:
    with (
        others_write(database),
        AgentMemory(database, application="app") as memory,
    ):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert memory.check(fix=True).problems == ()


# -- whose it is -----------------------------------------------------------------------------------------------------


def test_nobody_but_its_owner_reads_a_store(database: Path) -> None:
    before = os.umask(0)
    try:
        with AgentMemory(database, application="app") as memory:
            memory.app_state.set("small", 1)
            memory.app_state.set("large", value(1, LARGE))
            memory.app_state.set("pickled", Plain(1))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.rglob("*")}
    finally:
        os.umask(before)

    assert {"store.db", "store.db-wal", "store.db.blobs", "store.db.key"} <= set(modes)
    assert len(modes) >= 6
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}


def test_what_a_database_itself_says_is_not_trusted(memory: AgentMemory, database: Path) -> None:
    memory.check()
    open_ones = [one for one in apsw.connections() if one.filename == str(database)]

    assert open_ones
    assert {one.execute("PRAGMA trusted_schema").fetchall()[0][0] for one in open_ones} == {0}


# -- times -----------------------------------------------------------------------------------------------------------


def test_times_are_set_where_they_are_meant_and_nowhere_else(memory: AgentMemory, database: Path) -> None:
    then = datetime(2023, 1, 2, 3, 4, 5, tzinfo=UTC)
    with AgentMemory(database, application="another") as another:
        before = another.app_state.set("small", 1)
        memory.set_times({"small": (then, then), "absent": (then, then)})
        snapshot, untouched = memory.app_state.snapshot("small"), another.app_state.snapshot("small")

    assert snapshot is not None
    assert (snapshot.entry.created_at, snapshot.entry.updated_at) == (then, then)
    assert untouched == (1, before)
    assert memory.app_state.get("absent") is None


@pytest.mark.parametrize(
    "then",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_a_time_that_utc_does_not_know_is_refused_and_the_key_stays_readable(
    memory: AgentMemory, then: datetime
) -> None:
    memory.app_state.set("small", 1)
    with pytest.raises(InvalidRequestError, match="the years 1 to 9999"):
        memory.set_times({"small": (then, then)})
    assert memory.app_state.get("small") == 1


# -- backup ----------------------------------------------------------------------------------------------------------


def test_a_backup_holds_everything_and_can_be_opened(memory: AgentMemory, tmp_path: Path) -> None:
    memory.app_state.set("pickle", Plain(7))
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "copy.db"
    memory.backup(target)
    memory.app_state.set("small", "changed since")
    with AgentMemory(target, application="app") as copy:
        assert copy.app_state.get("small") == {"a": "sound"}
        assert counter_of(copy.app_state.get("large")) == 1
        assert copy.app_state.get("pickle").number == 7, "the key file came along"
        assert copy.check().problems == ()
        copy.app_state.set("small", "mine")
    assert memory.app_state.get("small") == "changed since"
    assert sorted(path.name for path in target.parent.iterdir()) == ["copy.db", "copy.db.blobs", "copy.db.key"]
    for path in (target, target.with_name("copy.db.key")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_file_of_a_backup_can_be_read_by_others_at_any_moment(
    memory: AgentMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.app_state.set("pickled", Plain(1))
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # a file that is closed to others later was open to them
    monkeypatch.setattr(os, "chmod", lambda *_: None)
    umask = os.umask(0)
    try:
        memory.backup(tmp_path / "copy.db")
    finally:
        os.umask(umask)

    made = [path for path in tmp_path.rglob("*") if path.relative_to(tmp_path).parts[0].startswith("copy.db")]
    assert {path.name for path in made} >= {"copy.db", "copy.db.key", "copy.db.blobs"}
    assert [path.name for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_version_in_a_backup_goes_on_where_it_was(memory: AgentMemory, tmp_path: Path) -> None:
    memory.app_state.set("small", 2)
    memory.backup(tmp_path / "copy.db")
    with AgentMemory(tmp_path / "copy.db", application="app") as copy:
        assert copy.app_state.set("small", 3).version == 3


@pytest.mark.parametrize("name", ["copy.db", "copy.db.blobs", "copy.db.key", "copy.db-wal", "copy.db-shm"])
def test_a_backup_never_overwrites(memory: AgentMemory, tmp_path: Path, name: str) -> None:
    there = tmp_path / name
    there.write_text("precious")
    with pytest.raises(InvalidRequestError):
        memory.backup(tmp_path / "copy.db")
    assert there.read_text() == "precious"
    assert not list(tmp_path.glob("*.part"))


def test_a_backup_onto_itself_is_refused(memory: AgentMemory, database: Path) -> None:
    with pytest.raises(InvalidRequestError):
        memory.backup(database)
    assert memory.app_state.get("small") == {"a": "sound"}


def test_a_backup_while_another_process_writes_is_one_moment_with_every_value_whole(
    database: Path, tmp_path: Path
) -> None:
    with others_write(database), AgentMemory(database, application="app") as memory:
        deadline = time.monotonic() + 30
        while len(list(memory.app_state.keys())) < 2:  # the first one alone is deleted again
            assert time.monotonic() < deadline, "nothing was written"
        for number in range(5):
            time.sleep(0.05)
            memory.backup(tmp_path / f"copy{number}.db")
    for number in range(5):
        with AgentMemory(tmp_path / f"copy{number}.db", application="app") as copy:
            assert copy.check().problems == ()
            counters = [counter_of(copy.app_state.get(key)) for key in copy.app_state.keys()]  # noqa: SIM118  (no dict)
            assert counters
            # The writer goes round twenty keys in order: one moment shows no two counters a round apart.
            assert max(counters) - min(counters) < 20


def test_a_backup_of_a_store_that_misses_a_file_says_so_and_leaves_nothing(
    memory: AgentMemory, database: Path, tmp_path: Path
) -> None:
    chunk_files(database)[1].unlink()
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises((UnavailableError, IntegrityError)):
        memory.backup(tmp_path / "elsewhere" / "copy.db")
    assert list((tmp_path / "elsewhere").iterdir()) == [], "the next attempt would be refused"


def test_a_backup_begins_anew_where_a_file_went_while_it_was_made(
    memory: AgentMemory, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, copy_to = list[Path](), SqliteCatalog.copy_to

    def copy_and_lose(catalog: SqliteCatalog, target: Path) -> None:
        copy_to(catalog, target)
        copies.append(target)
        if len(copies) == 1:
            old = chunk_files(database)
            memory.app_state.set("large", value(2, LARGE))
            for path in old:
                path.unlink()

    monkeypatch.setattr(SqliteCatalog, "copy_to", copy_and_lose)
    memory.backup(tmp_path / "copy.db")
    assert len(copies) == 2
    with AgentMemory(tmp_path / "copy.db", application="app") as copy:
        assert copy.app_state.get("large") == value(2, LARGE)


def test_a_backup_that_fails_at_the_end_leaves_nothing(
    memory: AgentMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "no space")

    memory.app_state.set("pickled", {1, 2})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("agent_memory.maintenance.os.rename", fail)
    with pytest.raises(UnavailableError, match="no space"):
        memory.backup(tmp_path / "elsewhere" / "copy.db")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_backup_to_a_disk_that_is_read_only_is_a_typed_error(
    memory: AgentMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_read_only(monkeypatch)
    with pytest.raises(UnavailableError, match="backup cannot be written: Read-only"):
        memory.backup(tmp_path / "copy.db")


def test_a_backup_into_a_folder_that_is_not_there_is_a_typed_error(memory: AgentMemory, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        memory.backup(tmp_path / "nowhere" / "copy.db")


# -- links to a store ------------------------------------------------------------------------------------------------


def test_a_link_to_a_database_leads_to_the_same_store(memory: AgentMemory, tmp_path: Path, database: Path) -> None:
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(database)
    memory.app_state.set("pickled", {1, 2})

    with AgentMemory(link, application="app") as linked:
        assert linked.app_state.get("large") == value(1, LARGE)
        assert linked.app_state.get("pickled") == {1, 2}
        linked.app_state.set("large", value(2, LARGE))
    assert memory.app_state.get("large") == value(2, LARGE)
    assert list(link.parent.iterdir()) == [link]


@pytest.mark.parametrize("target", [".", "..", "/", ""])
def test_a_backup_does_not_take_the_place_of_a_folder(memory: AgentMemory, target: str) -> None:
    with pytest.raises(InvalidRequestError, match="never overwrites"):
        memory.backup(target)


def test_a_backup_does_not_go_where_a_link_leads(memory: AgentMemory, tmp_path: Path) -> None:
    (tmp_path / "copy.db").symlink_to(tmp_path / "elsewhere.db")

    with pytest.raises(InvalidRequestError, match="never overwrites"):
        memory.backup(tmp_path / "copy.db")
