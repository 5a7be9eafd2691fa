"""An executor carries out what no thread takes any more, and never twice."""

from __future__ import annotations

import threading

import pytest

from agent_memory.executors import Executor


def fail() -> None:
    raise KeyError("key")


def test_what_is_brought_after_the_end_is_carried_out_at_once() -> None:
    executor = Executor(1)
    executor.shutdown()
    assert executor.submit(threading.current_thread).result() is threading.current_thread()
    with pytest.raises(KeyError):
        executor.submit(fail).result()


def test_what_waits_for_a_thread_that_could_not_be_started_is_not_carried_out_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[int] = []

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Executor(1) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError, match="can't start"):
                executor.submit(done.append, 1)
        executor.submit(done.append, 2).result()
    assert done == [1, 2]
