"""Moving a store: ``agent-memory copy`` between a file and PostgreSQL, and back."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent_memory import AgentMemory, ConflictError, IntegrityError, UnavailableError
from agent_memory.cli import main
from agent_memory.copying import copy, verify
from agent_memory.ids import uuid7
from agent_memory.messages import JSON, Check, CommitWrite, Delete, PrepareRead, Scope, Search
from agent_memory.opening import open_service
from agent_memory.operations import Set
from agent_memory.service import StateService
from agent_memory.storage.catalog import ScopeRow, Times
from agent_memory.storage.postgres.connections import Session
from agent_memory.storage.postgres.migrations import migrate
from agent_memory.vectors import pack_vector
from tests.support.postgres import PostgresServer, name_of
from tests.support.stores import BUCKET_URL
from tests.support.strict_s3 import StrictS3


class Profile(BaseModel):
    name: str = ""
    visits: int = 0


LARGE = os.urandom(300_000)
SCOPE = Scope("default", "app")
RIGHT = pack_vector([1.0, 0.0])


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def filled(path: Path) -> None:
    """Make a store with everything that a copy has to carry."""
    with AgentMemory(path, application="app", chunk_size=65_536) as memory:
        document = memory.entity("user", "ada").document(Profile)
        document.set(Profile(name="Ada"), reason="she said so")
        document.update(visits=2)
        memory.app_state.set("large", LARGE)
        memory.app_state.set("empty", b"")
        memory.app_state.set("gone", 1)
        memory.app_state.delete("gone")
        memory.app_state.set("soon", 1, ttl=3_600)
        memory.app_state.set("pickled", (1, {2}))
        memory.app_state.batch([Set("user/ada/note/1", {"text": "knee"}, vectors=[[1.0, 0.0], [0.0, 1.0]])])
        with memory.request("r-1", agent="coach") as ctx:
            ctx.state.set("draft", {"nul": "\0"})


@contextmanager
def ends(
    folder: Path, target: str | None = None, blobs: str | None = None
) -> Generator[tuple[StateService, StateService]]:
    """Open the store ``source.db`` and another one to copy it to, by default a new file beside it."""
    address, place = target or str(folder / "target.db"), blobs or str(folder / "blobs")
    with closing(open_service(str(folder / "source.db"))) as source, closing(open_service(address, place)) as other:
        yield source, other


@pytest.fixture(params=["file", "postgresql"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresServer) -> str:
    """The address of an empty store."""
    return str(tmp_path / "target.db") if request.param == "file" else postgres.database()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent_memory.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_store_survives_the_way_to_postgresql_and_back(tmp_path: Path, postgres: PostgresServer) -> None:
    filled(tmp_path / "first.db")
    dsn = postgres.empty_database()
    assert run("migrate", "--database", dsn).returncode == 0
    there = run("copy", str(tmp_path / "first.db"), dsn, "--target-blobs", str(tmp_path / "blobs"))
    assert there.returncode == 0, there.stderr
    assert "first.db.key', with which pickles are read, was not copied" in there.stderr
    back = run("copy", dsn, str(tmp_path / "second.db"), "--source-blobs", str(tmp_path / "blobs"))
    assert (back.returncode, back.stderr) == (0, "")

    first, second = open_service(str(tmp_path / "first.db")), open_service(str(tmp_path / "second.db"))
    try:
        rows = first.catalog.stored(after=("", ""), limit=100)
        assert second.catalog.stored(after=("", ""), limit=100) == rows
        assert len(rows) == 8
        assert second.catalog.scopes(after="", limit=100) == first.catalog.scopes(after="", limit=100)
    finally:
        first.close()
        second.close()
    keys = [bytes.fromhex((tmp_path / "first.db.key").read_text())]
    with AgentMemory(tmp_path / "second.db", application="app", signing_keys=keys) as memory:
        snapshot = memory.entity("user", "ada").document(Profile).snapshot()
        assert snapshot is not None
        assert (snapshot.value, snapshot.version) == (Profile(name="Ada", visits=2), 2)
        assert memory.app_state.get("large") == LARGE
        assert memory.app_state.get("pickled") == (1, {2})
        assert [hit.score for hit in memory.app_state.search("user/ada/", vector=[1.0, 0.0])] == [1.0, None]
        assert memory.app_state.set("gone", 2).version == 3
        assert memory.check().ok


def test_a_condition_that_held_before_the_move_holds_after_it(tmp_path: Path) -> None:
    with AgentMemory(tmp_path / "first.db", application="app") as memory:
        entry = memory.app_state.set("k", 1)
    assert run("copy", str(tmp_path / "first.db"), str(tmp_path / "second.db")).returncode == 0
    with AgentMemory(tmp_path / "second.db", application="app") as memory:
        memory.app_state.key("k", int).replace(2, expected=entry)


def test_a_copy_that_was_interrupted_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path) as (source, target):
        monkeypatch.setattr("agent_memory.copying._PAGE", 2)

        def interrupt(done: int, total: int | None) -> None:
            assert total == 8
            if done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            copy(source, target, progress=interrupt)
        report = copy(source, target)
        assert (report.keys, report.copied, report.verified) == (8, 4, 8)
        again = copy(source, target)
        assert (again.copied, again.bytes) == (0, 0)


def test_a_source_that_cannot_be_counted_in_time_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "source.db")
    told: list[object] = []
    with ends(tmp_path) as (source, target):

        def count() -> int:
            raise UnavailableError("counting took too long", code="search_timeout")

        monkeypatch.setattr(source.catalog, "count", count)
        copy(source, target, progress=lambda done, total: told.append((done, total)))
    assert told == [(8, None), (8, None)]


def test_a_terminal_shows_how_far_the_copying_and_the_comparing_are(tmp_path: Path) -> None:
    filled(tmp_path / "source.db")
    terminal, side = os.openpty()
    # Without a width nothing would fit.
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    ends = [str(tmp_path / name) for name in ("source.db", "target.db")]
    with open(terminal, "rb", buffering=0) as shown:
        command = [sys.executable, "-m", "agent_memory.cli", "copy", *ends]
        subprocess.run(command, stderr=side, stdout=subprocess.DEVNULL, timeout=60, check=True)
        text = shown.read(65_536).decode()
        os.close(side)
    first, *_, last = text.partition("\nagent-memory: ")[0].strip().split("\r")
    assert first.endswith("? keys/s]")
    assert "| 8/8 [" in last
    assert last.endswith(" keys compared/s]")


def test_what_an_application_wrote_to_the_target_is_never_replaced(tmp_path: Path, elsewhere: str) -> None:
    filled(tmp_path / "source.db")

    def move() -> None:
        with ends(tmp_path, elsewhere) as (source, target):
            copy(source, target)

    move()
    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        memory.app_state.set("empty", b"later")
    move()
    with ends(tmp_path, elsewhere) as (_, target):
        target.handle(Delete(SCOPE, "large", uuid7()))
        with pytest.raises(ConflictError, match="default/app large has a later version in the target"):
            move()
        assert target.handle(PrepareRead(SCOPE, "large")) is None
        found = target.handle(PrepareRead(SCOPE, "empty", 100))
        assert (found.data, found.entry.version) == (b"later", 2)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_value_that_expired_and_was_swept_on_one_side_stops_no_copy(
    tmp_path: Path, elsewhere: str, side: str
) -> None:
    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        memory.app_state.set("soon", 1, ttl=0.5)
        memory.app_state.set("kept", 1)
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        time.sleep(0.6)
        assert (source if side == "source" else target).sweep().expired == 1
        assert copy(source, target).verified == 2
        found = target.handle(PrepareRead(SCOPE, "soon"))
        assert found is None


def test_a_key_that_the_target_deleted_stays_deleted_when_its_tombstone_is_swept(
    tmp_path: Path, elsewhere: str
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        target.handle(Delete(SCOPE, "large", uuid7()))
        assert target.catalog.drop_tombstones(before=target.catalog.clock() + 1, limit=100) > 0
        with pytest.raises(ConflictError, match="default/app large was deleted in the target"):
            copy(source, target)
        assert target.handle(PrepareRead(SCOPE, "large")) is None


def test_what_is_gone_in_the_source_too_stops_no_copy_when_the_target_has_forgotten_it(
    tmp_path: Path, elsewhere: str
) -> None:
    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        memory.app_state.set("gone", 1)
        memory.app_state.delete("gone")
        memory.app_state.set("soon", 1, ttl=0.5)
        memory.app_state.set("kept", 1)
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        time.sleep(0.6)
        target.sweep()
        assert target.catalog.drop_tombstones(before=target.catalog.clock() + 1, limit=100) == 2
        with AgentMemory(tmp_path / "source.db", application="app") as memory:
            memory.app_state.set("kept", 2)
        report = copy(source, target)
        assert (report.copied, report.verified) == (1, 3)


DAY_US = 86_400 * 1_000_000


@pytest.mark.parametrize("days", [0, 3, 8])
def test_what_a_sweep_takes_from_the_target_while_it_is_compared_stops_no_copy(
    tmp_path: Path, elsewhere: str, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "source.db")

    def swept(source: StateService, target: StateService, *progress: Any) -> int:
        # A tombstone that the first sweep makes is taken by the second one.
        for _ in range(2):
            target.sweep()
            now[0] += days * DAY_US
        return verify(source, target, *progress)

    with ends(tmp_path, elsewhere) as (source, target):
        now = [source.catalog.clock() + 3_601 * 1_000_000]
        for service in (source, target):
            monkeypatch.setattr(service.catalog, "_clock", lambda: now[0])
        monkeypatch.setattr("agent_memory.copying.verify", swept)
        assert copy(source, target).verified == 8
        assert target.handle(PrepareRead(SCOPE, "soon")) is None
        assert copy(source, target).copied == 0


def test_a_value_whose_time_began_anew_in_the_source_takes_the_place_of_its_tombstone(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        now = source.catalog.clock()
        for service in (source, target):
            monkeypatch.setattr(service.catalog, "_clock", lambda: now)
        source.catalog.touch(SCOPE, ["soon"])
        now += 3_599 * 1_000_000
        source.catalog.touch(SCOPE, ["soon"])
        now += 2 * 1_000_000
        assert target.sweep().expired == 1
        assert copy(source, target).copied == 1
        assert target.handle(PrepareRead(SCOPE, "soon")) is not None


def test_a_later_version_ends_when_its_writer_said(tmp_path: Path, elsewhere: str) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        later = source.handle(CommitWrite(SCOPE, "soon", uuid7(), b"2", None, ttl_seconds=60.0))
        copy(source, target)
        assert target.handle(PrepareRead(SCOPE, "soon")).entry == later


def test_a_value_whose_time_began_anew_in_the_target_keeps_it(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        now = source.catalog.clock() + 1_800 * 1_000_000
        for service in (source, target):
            monkeypatch.setattr(service.catalog, "_clock", lambda: now)
        target.catalog.touch(SCOPE, ["soon"])
        source.catalog.set_times(SCOPE, [Times("soon", 1, 2)])
        assert copy(source, target).copied == 1
        now += 3_000 * 1_000_000
        assert copy(source, target).copied == 0
        assert target.handle(PrepareRead(SCOPE, "soon")).entry.updated_us == 2


@pytest.mark.parametrize("end", ["overwritten", "deleted", "deleted at the version of the source"])
def test_what_an_application_did_to_a_key_whose_value_expired_in_the_source_ends_the_copy(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        deletion = Delete(SCOPE, "soon", uuid7())
        target.handle(CommitWrite(SCOPE, "soon", uuid7(), b"2", None) if end == "overwritten" else deletion)
        if end == "deleted at the version of the source":
            source.handle(CommitWrite(SCOPE, "soon", uuid7(), b"2", None, ttl_seconds=60.0))
        now = source.catalog.clock() + 3_601 * 1_000_000
        for service in (source, target):
            monkeypatch.setattr(service.catalog, "_clock", lambda: now)
        with pytest.raises(ConflictError, match="default/app soon has a later version in the target"):
            copy(source, target)


def test_what_the_source_deleted_and_forgot_since_an_earlier_copy_is_named(
    tmp_path: Path, elsewhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, elsewhere) as (source, target):
        assert copy(source, target).strays == ()
        target.handle(CommitWrite(SCOPE, "own", uuid7(), b"1", None))
        target.handle(CommitWrite(Scope("default", "other"), "own", uuid7(), b"1", None))
        for key in ("large", "user/ada/profile"):
            source.handle(Delete(SCOPE, key, uuid7()))
        assert copy(source, target).strays == ()
        source.handle(Delete(SCOPE, "empty", uuid7()))
        assert source.catalog.drop_tombstones(before=source.catalog.clock() + 1, limit=100) == 4

    places = [str(tmp_path / "source.db"), elsewhere, "--target-blobs", str(tmp_path / "blobs")]
    assert main(["copy", *places]) == 0
    said = capsys.readouterr().err
    assert said.startswith("only in the target: default/app empty\nonly in the target: default/app own\nagent-memory:")
    with ends(tmp_path, elsewhere) as (_, target):
        assert target.handle(PrepareRead(SCOPE, "own")) is not None


def test_only_so_many_places_are_named_and_only_those_that_the_source_may_have_forgotten(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Scope("default", "a"), Scope("default", "b")
    with AgentMemory(tmp_path / "source.db", application="a"):
        pass
    with ends(tmp_path, elsewhere) as (source, target):
        now = target.catalog.clock()
        monkeypatch.setattr(target.catalog, "_clock", lambda: now)
        monkeypatch.setattr("agent_memory.copying._PAGE", 2)

        def write(scope: Scope, key: str, *, times: int = 1, ttl: float | None = None) -> None:
            for _ in range(times):
                target.handle(CommitWrite(scope, key, uuid7(), b"1", None, ttl_seconds=ttl))

        source.catalog.take_scopes([ScopeRow(scope.path, 2, None) for scope in (first, second)])
        write(first, "expired", ttl=1)
        write(first, "later than all that is forgotten", times=3)
        write(first, "old")
        write(first, "that old", times=2)
        write(second, "old")
        now += 2_000_000
        assert copy(source, target).strays == ("default/a old", "default/a that old", "default/b old")
        monkeypatch.setattr("agent_memory.copying._STRAYS", 2)
        assert copy(source, target).strays == ("default/a old", "default/a that old")


def test_a_request_that_seemed_long_over_in_the_target_is_copied_while_that_is_swept(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        eight_days_later = target.catalog.clock() + 8 * 86_400_000_000
        for service in (source, target):
            monkeypatch.setattr(service.catalog, "_clock", lambda: eight_days_later)
        source.handle(CommitWrite(Scope("default", "app", "r-1"), "answer", uuid7(), b"1", None))
        copy(source, target, progress=lambda _done, _all: target.sweep())
        assert target.handle(PrepareRead(Scope("default", "app", "r-1"), "answer", 100)).data == b"1"


def test_what_takes_long_to_copy_is_not_swept_meanwhile(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentMemory(tmp_path / "source.db", application="app", chunk_size=65_536) as memory:
        for key in ("a", "b", "c"):
            memory.app_state.set(key, LARGE)
    with ends(tmp_path, elsewhere) as (source, target):
        now = target.catalog.clock()
        put = target.blobs.put

        def slow(*arguments: Any) -> str:
            nonlocal now
            now += 600 * 1_000_000
            target.sweep()
            return put(*arguments)

        monkeypatch.setattr(target.catalog, "_clock", lambda: now)
        monkeypatch.setattr(target.blobs, "put", slow)
        assert copy(source, target).copied == 3
        assert target.check(Check()).ok


def test_a_value_that_was_swept_while_it_was_copied_is_copied_by_the_next_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path) as (source, target):
        put = target.blobs.put

        def swept(blob_id: str, index: int, data: memoryview) -> str:
            later = target.catalog.clock() + 3_600 * 1_000_000
            target.catalog.claim_blobs(staged_before=later, garbage_before=later, limit=1)
            return put(blob_id, index, data)

        with monkeypatch.context() as patch:
            patch.setattr(target.blobs, "put", swept)
            with pytest.raises(UnavailableError, match="swept"):
                copy(source, target)
        copy(source, target)
        assert target.check(Check()).ok


def test_a_copy_of_times_that_is_interrupted_leaves_the_bytes_alone(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        memory.app_state.set("large", LARGE)
        memory.app_state.batch([Set("note", {"text": "knee"}, vectors=[[1.0, 0.0]])])
    with ends(tmp_path, elsewhere) as (source, target):

        def interrupted(_rows: object) -> None:
            raise KeyboardInterrupt

        copy(source, target)
        source.catalog.set_times(SCOPE, [Times("large", 1, 2), Times("note", 1, 2)])
        with monkeypatch.context() as patch:
            patch.setattr(target.catalog, "take", interrupted)
            with pytest.raises(KeyboardInterrupt):
                copy(source, target)
        later = target.catalog.clock() + 3_600 * 1_000_000
        assert target.catalog.claim_blobs(staged_before=later, garbage_before=later, limit=1) == []
        copy(source, target)
        assert target.check(Check()).ok


def test_another_value_with_the_same_version_is_not_replaced(tmp_path: Path, elsewhere: str) -> None:
    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        memory.app_state.set("before", 1)
        memory.app_state.set("k", "the source's")
    with ends(tmp_path, elsewhere) as (source, target):
        target.handle(CommitWrite(SCOPE, "k", uuid7(), b'"the target\'s"', None))
        with pytest.raises(ConflictError, match="default/app k has a later version in the target"):
            copy(source, target)
        assert target.handle(PrepareRead(SCOPE, "k", 100)).data == b'"the target\'s"'
        assert target.handle(PrepareRead(SCOPE, "before", 100)) is None


def test_no_version_that_the_source_has_forgotten_comes_back(tmp_path: Path, elsewhere: str) -> None:
    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        memory.app_state.set("k", 1)
        memory.app_state.delete("k")
    with ends(tmp_path, elsewhere) as (source, target):
        assert source.catalog.drop_tombstones(before=source.catalog.clock() + 1, limit=1) == 1
        copy(source, target)
        assert target.handle(CommitWrite(SCOPE, "k", uuid7(), b"1", None)).version == 3
        for last_write_us in (5, None, 4):
            target.catalog.take_scopes([ScopeRow("default/app", 1, last_write_us)])
        assert target.catalog.scopes(after="", limit=9) == [ScopeRow("default/app", 2, 5)]


def test_the_bytes_that_a_later_copy_replaces_become_garbage(tmp_path: Path, elsewhere: str) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, elsewhere) as (source, target):
        copy(source, target)
        with AgentMemory(tmp_path / "source.db", application="app") as memory:
            memory.app_state.set("large", LARGE[::-1])
            memory.app_state.batch([Set("user/ada/note/1", {"text": "elbow"}, vectors=[[0.0, 1.0]])])
        copy(source, target)
        assert target.check(Check()).problems == ()
        hits = target.handle(Search(SCOPE, "user/ada/note/", vector=RIGHT))
        assert [hit.score for hit in hits] == [0]
        assert len(target.handle(Search(SCOPE, "user/ada/note/", {"text": "elbow"}))) == 1
        assert target.catalog.stored(after=("", ""), limit=100) == source.catalog.stored(after=("", ""), limit=100)


def test_bytes_that_arrive_otherwise_in_an_object_store_are_found_too(
    tmp_path: Path, bucket: StrictS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, blobs=BUCKET_URL) as (source, target):
        put = target.blobs.put
        with monkeypatch.context() as patch:
            patch.setattr(
                target.blobs, "put", lambda blob_id, index, data: put(blob_id, index, memoryview(bytes(len(data))))
            )
            with pytest.raises(IntegrityError, match="large"):
                copy(source, target)


def test_what_the_target_lost_of_a_row_is_brought_by_the_next_copy(tmp_path: Path) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path) as (source, target):
        copy(source, target)
        with closing(sqlite3.connect(tmp_path / "target.db")) as connection, connection:
            connection.execute("UPDATE entry SET ttl_us = 1 WHERE key = 'soon'")
            connection.execute("UPDATE entry SET vectors = 0 WHERE key = 'user/ada/note/1'")
            connection.execute("DELETE FROM vector")
            connection.execute("UPDATE entry SET value = x'00' WHERE key = 'user/ada/profile'")
            connection.execute("UPDATE entry SET chunk_size = NULL WHERE key = 'large'")
        assert copy(source, target).copied == 4
        assert target.catalog.stored(after=("", ""), limit=100) == source.catalog.stored(after=("", ""), limit=100)


def test_a_row_that_does_not_arrive_is_found_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path) as (source, target):
        take = target.catalog.take
        monkeypatch.setattr(target.catalog, "take", lambda rows: take(rows[1:]))
        with pytest.raises(
            IntegrityError, match="default/app empty is not in the copy as it is in the source: copy again"
        ):
            copy(source, target)


def test_bytes_that_arrive_otherwise_are_found_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path) as (source, target):
        put = target.blobs.put
        monkeypatch.setattr(
            target.blobs, "put", lambda blob_id, index, data: put(blob_id, index, memoryview(bytes(len(data))))
        )
        with pytest.raises(IntegrityError, match="large"):
            copy(source, target)


@pytest.mark.parametrize("damage", ["missing", "shorter", "other bytes"])
def test_a_large_value_that_was_damaged_in_the_target_is_brought_again_by_the_next_copy(
    tmp_path: Path, damage: str
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path) as (source, target):
        copy(source, target)
        *_, file = chunk_files(tmp_path / "blobs")
        harm(file, damage)
        copy(source, target)
        assert target.check(Check()).problems == ()


def test_a_large_value_that_was_damaged_in_a_bucket_is_brought_again_by_the_next_copy(
    tmp_path: Path, bucket: StrictS3
) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path, blobs=BUCKET_URL) as (source, target):
        copy(source, target)
        first, second, *_ = list(target.blobs.objects())
        for one in (first, second):
            target.blobs.discard(one)
        target.blobs.put(first.blob_id, first.number, memoryview(bytes(first.size)))
        copy(source, target)
        assert target.check(Check()).problems == ()


def test_what_an_interrupted_copy_brought_and_was_damaged_since_is_brought_again(tmp_path: Path) -> None:
    filled(tmp_path / "source.db")

    def interrupted(_rows: object) -> None:
        raise KeyboardInterrupt

    with ends(tmp_path) as (source, target), pytest.MonkeyPatch.context() as patch:
        patch.setattr(target.catalog, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            copy(source, target)
    harm(chunk_files(tmp_path / "blobs")[0], "other bytes")
    with ends(tmp_path) as (source, target):
        copy(source, target)
        assert target.check(Check()).problems == ()


def test_what_was_damaged_in_the_source_takes_the_place_of_nothing_in_the_target(tmp_path: Path) -> None:
    filled(tmp_path / "source.db")
    with ends(tmp_path) as (source, target):
        copy(source, target)
        theirs, ours = chunk_files(tmp_path / "source.db.blobs"), chunk_files(tmp_path / "blobs")
        harm(theirs[0], "other bytes")
        harm(ours[1], "other bytes")
        kept = ours[0].read_bytes()
        with pytest.raises(IntegrityError, match="default/app large is damaged or missing in the source"):
            copy(source, target)
        assert ours[0].read_bytes() == kept


def test_what_is_missing_in_the_source_is_named_and_the_target_is_called_no_whole_copy(tmp_path: Path) -> None:
    filled(tmp_path / "source.db")
    chunk_files(tmp_path / "source.db.blobs")[1].unlink()
    done = run("copy", str(tmp_path / "source.db"), str(tmp_path / "target.db"))
    assert done.returncode == 2
    assert "no whole copy" in done.stderr
    assert "default/app large is damaged or missing in the source" in done.stderr


def test_a_small_value_that_was_damaged_in_the_source_is_named_as_that(tmp_path: Path) -> None:
    filled(tmp_path / "source.db")
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection, connection:
        connection.execute("UPDATE entry SET value = x'00' WHERE key = 'soon'")
    with (
        ends(tmp_path) as (source, target),
        pytest.raises(IntegrityError, match="soon is damaged or missing in the source"),
    ):
        copy(source, target)


def test_a_copy_from_where_the_large_values_do_not_lie_asks_for_their_place(tmp_path: Path) -> None:
    filled(tmp_path / "source.db")
    source, target = str(tmp_path / "source.db"), str(tmp_path / "target.db")
    done = run("copy", source, target, "--source-blobs", str(tmp_path / "nowhere"))
    assert (done.returncode, "--source-blobs" in done.stderr) == (2, True)
    assert not (tmp_path / "target.db").exists()


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_copy_that_lacks_a_place_for_large_values_names_the_option_of_that_end(tmp_path: Path, end: str) -> None:
    filled(tmp_path / "store.db")
    addresses = [str(tmp_path / "store.db"), "postgresql://127.0.0.1:1/none"]
    done = run("copy", *(addresses if end == "target" else addresses[::-1]))
    assert (done.returncode, f"--{end}-blobs" in done.stderr) == (2, True)


def chunk_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def harm(file: Path, damage: str) -> None:
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[1:] if damage == "shorter" else bytes(len(data)))


def test_a_source_that_is_not_there_is_an_error_and_no_new_store(tmp_path: Path) -> None:
    done = run("copy", str(tmp_path / "none.db"), str(tmp_path / "second.db"))
    assert done.returncode == 2
    assert "there is no database" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_migration_names_the_steps_and_takes_none(postgres: PostgresServer) -> None:
    dsn = postgres.empty_database()
    first, second = run("migrate", "--database", dsn, "--dry-run"), run("migrate", "--database", dsn, "--dry-run")
    assert first.stdout == second.stdout
    assert "would take" in first.stdout
    assert postgres.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'", name_of(dsn)) == []
    assert migrate(dsn) != []
    assert run("migrate", "--database", dsn).stdout == "the database is up to date\n"


def test_json_that_jsonb_cannot_hold_is_copied_and_found(tmp_path: Path, postgres: PostgresServer) -> None:
    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        memory.app_state.batch([Set(f"k/{number}", {"n": number}) for number in range(9)])
    dsn = postgres.database()
    with ends(tmp_path, dsn) as (source, target):
        source.handle(CommitWrite(SCOPE, "k/4", uuid7(), b'{"n": 1e-20000, "far": true}', None, JSON))
        assert copy(source, target).copied == 9
        (hit,) = target.handle(Search(SCOPE, "k/", {"far": True}))
        assert hit.found.entry.key == "k/4"
    unprojected = "SELECT key FROM agent_memory.entry WHERE projection IS NULL"
    assert postgres.execute(unprojected, name_of(dsn)) == [("k/4",)]


@pytest.mark.parametrize("to", ["file", "postgresql"])
def test_a_copy_asks_postgresql_for_a_page_at_a_time(
    tmp_path: Path, postgres: PostgresServer, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = 0
    rows = Session.rows

    def counted(*arguments: Any, **options: Any) -> list[Any]:
        nonlocal statements
        statements += 1
        return rows(*arguments, **options)

    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        vectors = [[1.0, 0.0], [0.0, 1.0]]
        memory.app_state.batch([Set(f"k/{number}", {"n": number}, vectors=vectors) for number in range(300)])
    with (
        ends(tmp_path, postgres.database()) as (file, database),
        closing(open_service(str(tmp_path / "back.db"))) as back,
    ):
        if to == "file":
            copy(file, database)
        monkeypatch.setattr(Session, "rows", counted)
        assert (copy(database, back) if to == "file" else copy(file, database)).verified == 300
    assert statements < 50


def test_a_page_with_many_vectors_is_no_statement_that_takes_too_long(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentMemory(tmp_path / "source.db", application="app") as memory:
        memory.app_state.batch([Set(f"k/{number}", {"n": number}, vectors=[[1.0, 0.0]]) for number in range(15)])
    dsn = postgres.database()
    postgres.execute(
        """CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN new; END';
        CREATE TRIGGER dawdle BEFORE INSERT ON agent_memory.vector FOR EACH ROW EXECUTE FUNCTION dawdle()""",
        name_of(dsn),
    )
    monkeypatch.setattr("agent_memory.storage.postgres.copy._STATEMENT_BYTES", 8)
    with (
        closing(open_service(str(tmp_path / "source.db"))) as source,
        closing(open_service(dsn, str(tmp_path / "blobs"), timeout=1)) as target,
    ):
        assert copy(source, target).copied == 15


def test_postgresql_knows_how_much_a_copy_brought_once_it_has_ended(tmp_path: Path, postgres: PostgresServer) -> None:
    filled(tmp_path / "source.db")
    dsn = postgres.database()
    done = run("copy", str(tmp_path / "source.db"), dsn, "--target-blobs", str(tmp_path / "blobs"))
    assert done.returncode == 0, done.stderr
    known = "SELECT sum(reltuples) FROM pg_class WHERE relname ~ '^entry_..$' AND reltuples > 0"
    assert postgres.execute(known, name_of(dsn)) == [(8,)]


def test_a_copy_that_is_interrupted_says_that_the_target_is_no_whole_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "source.db")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent_memory.copying.verify", interrupt)
    assert main(["copy", str(tmp_path / "source.db"), str(tmp_path / "target.db")]) == 130
    assert "no whole copy" in capsys.readouterr().err
