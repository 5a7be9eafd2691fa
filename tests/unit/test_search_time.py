"""A search ends in time: in a file, what writes besides keeps all other writers waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import AgentMemory, TimedOutError
from agent_memory.flows import call
from agent_memory.messages import Check
from agent_memory.operations import Delete, Parents, Pattern, Search, Set
from agent_memory.storage import finding
from agent_memory.storage.postgres import search as postgres_search
from agent_memory.storage.sqlite import apply as sqlite_apply
from agent_memory.storage.sqlite import rows as sqlite_rows
from agent_memory.storage.sqlite import writes as sqlite_writes
from agent_memory.wire import decode_error, encode_error
from agent_memory.wire.problems import PROBLEM_TYPE
from tests.support.postgres import PostgresServer

STEP = 1_000
NOBODY = {"text": {"$ne": "x"}, "number": {"$ne": 0}, "absent": 1}
EVERYBODY = {"text": {"$ne": "y"}}


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[AgentMemory]:
    """A store of 4,000 values: a search that looks at each of them takes some 50 ms."""
    with AgentMemory(str(tmp_path / "store.db"), application="any", timeout=1) as memory:
        for start in range(0, 4 * STEP, STEP):
            memory.app_state.batch(
                [Set(f"user/{n}/doc", {"text": "x" * 300, "number": n}) for n in range(start, start + STEP)]
            )
        yield memory


def impatient(folder: Path) -> AgentMemory:
    """Open the store of ``memory`` for calls that may take next to no time."""
    return AgentMemory(str(folder / "store.db"), application="any", timeout=0.001)


def test_a_batch_that_writes_does_not_search_for_longer_than_others_wait(
    memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_apply, "BUSY_SECONDS", 0.2)
    searches = [Search("", filter=EVERYBODY, limit=1, offset=100 * STEP)] * 900
    began = time.monotonic()

    with pytest.raises(TimedOutError, match="search took too long"):
        memory.app_state.batch([Delete("user/1/doc"), *searches])

    assert time.monotonic() - began < 10
    assert memory.app_state.get("user/1/doc") is not None, "nothing of it is done"


def test_what_a_batch_writes_takes_nothing_from_the_time_of_its_searches(
    memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        return sqlite_writes.carry_out(*arguments)

    monkeypatch.setattr(sqlite_apply, "carry_out", slow)
    monkeypatch.setattr(sqlite_apply, "BUSY_SECONDS", 0.4)

    replies = memory.app_state.batch([Set("user/1/doc", {"text": "y"}), Search("user/1/")])

    assert [hit.value for hit in replies[1]] == [{"text": "y"}]


@pytest.mark.usefixtures("memory")
def test_a_search_of_a_server_that_took_too_long_is_not_sent_again(tmp_path: Path) -> None:
    with impatient(tmp_path) as hasty, pytest.raises(TimedOutError) as caught:
        hasty.app_state.search("", filter=EVERYBODY, limit=1, offset=100 * STEP)
    status, body = encode_error(caught.value)
    sending = call(Check(fix=False))
    next(sending)

    with pytest.raises(TimedOutError, match="search took too long"):
        sending.throw(decode_error(status, PROBLEM_TYPE, body))


@pytest.mark.parametrize("condition", [EVERYBODY, NOBODY], ids=["in Python", "in SQL"])
def test_a_search_ends_when_its_time_is_over(
    memory: AgentMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: dict[str, object]
) -> None:
    monkeypatch.setattr(sqlite_rows, "_STEPS", 1_000)
    with impatient(tmp_path) as hasty, pytest.raises(TimedOutError, match="search took too long"):
        hasty.app_state.search("", filter=condition, limit=1, offset=100 * STEP)

    assert len(memory.app_state.search("", filter=EVERYBODY, limit=5)) == 5


# -- PostgreSQL limits each statement, but a search may take many ------------------------------------------------------


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with PostgresServer() as server:
        yield server.database()


@pytest.mark.parametrize(
    "operations",
    [
        [Search("", filter={"absent": {"$ne": 1}})],
        [Search("", filter={"text": {"$ne": "x"}}, limit=5)] * 900,
        [Parents(patterns=[Pattern(("nobody",), at_end=True)])],
    ],
    ids=["in pieces", "many", "parents"],
)
def test_the_searches_of_a_call_to_postgresql_end_when_their_time_is_over(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: list[Any]
) -> None:
    def slowly(work: Any) -> Any:
        def slow(*arguments: Any) -> Any:
            time.sleep(0.005)
            return work(*arguments)

        return slow

    with AgentMemory(database, application="any", blobs=str(tmp_path)) as memory:
        memory.app_state.batch([Set(f"user/{n}/doc", {"text": "y", "number": n}) for n in range(1_000)])
    monkeypatch.setattr(postgres_search, "holds", slowly(postgres_search.holds))
    monkeypatch.setattr(finding, "shown_name", slowly(finding.shown_name))
    began = time.monotonic()
    with (
        AgentMemory(database, application="any", blobs=str(tmp_path), timeout=0.5) as hasty,
        pytest.raises(TimedOutError, match="search took too long"),
    ):
        hasty.app_state.batch(operations)

    assert time.monotonic() - began < 3
