"""An executor carries out what no thread takes any more, and never twice."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from agent_memory import AgentMemory, AsyncAgentMemory, UnavailableError
from agent_memory.executors import Executor


def fail() -> None:
    raise KeyError("key")


def test_what_is_brought_after_the_end_is_carried_out_at_once() -> None:
    executor = Executor(1)
    executor.shutdown()
    assert executor.submit(threading.current_thread).result() is threading.current_thread()
    with pytest.raises(KeyError):
        executor.submit(fail).result()


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_what_no_thread_could_be_started_for_is_not_carried_out_later(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    with Executor(1) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(UnavailableError, match="no further thread") as caught:
                executor.submit(done.append, 1)
        executor.submit(done.append, 2).result()
    assert (caught.value.code, done) == ("overloaded", [2])


def test_where_no_further_thread_can_be_started_the_others_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with Executor(2) as executor:
        go_on = threading.Event()
        first = executor.submit(go_on.wait, 10)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            second = executor.submit(threading.current_thread)
        go_on.set()
        assert first.result()
        assert second.result() is not threading.current_thread()


def test_a_call_that_no_thread_could_be_started_for_is_told_of_and_writes_nothing_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with AsyncAgentMemory(tmp_path / "store.db", application="app", timeout=0.2) as memory:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                with pytest.raises(UnavailableError):
                    await memory.app_state.set("k", "too late")
            memory.sync.app_state.set("k", "the last")
            await memory.app_state.set("other", 1)
            assert await memory.app_state.get("k") == "the last"

    asyncio.run(main())


def test_large_values_are_written_and_read_without_any_other_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = os.urandom(3 * 1024 * 1024)
    with (
        AgentMemory(tmp_path / "store.db", application="app", chunk_size=1024 * 1024) as memory,
        monkeypatch.context() as patch,
    ):
        patch.setattr(threading.Thread, "start", refuse)
        memory.app_state.set("k", value)
        assert memory.app_state.get("k") == value
