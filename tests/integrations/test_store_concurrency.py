"""LangGraph's store under many tasks and threads, and when a task is cancelled in the middle."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal
from langgraph.store.base import GetOp, InvalidNamespaceError, PutOp, SearchOp

from agent_memory import AgentMemory, AsyncAgentMemory
from agent_memory_langchain import AgentMemoryStore
from tests.support.faults import Meddling, put_between

USER = ("user", "123")


@pytest.fixture(params=["embedded", "http"])
def langgraph(request: pytest.FixtureRequest, tmp_path: Path, portal: BlockingPortal) -> Iterator[AgentMemoryStore]:
    url = str(tmp_path / "memory.db") if request.param == "embedded" else request.getfixturevalue("server").url
    memory = AgentMemory(url, application=f"concurrency-{uuid.uuid4().hex}")
    yield AgentMemoryStore(memory)
    portal.call(memory.aio.close)


def on_loop(portal: BlockingPortal, function: Callable[..., Any], *args: Any) -> Any:
    return portal.call(partial(function, *args))


def test_concurrent_writes_and_reads_are_not_merged(langgraph: AgentMemoryStore, portal: BlockingPortal) -> None:
    async def both() -> None:
        await langgraph.aput(USER, "k", {"n": 0})
        # What merges the calls of one tick loses the first write and both reads see the same.
        results = await asyncio.gather(
            langgraph.aput(USER, "k", {"n": 1}),
            langgraph.aget(USER, "k"),
            langgraph.aput(USER, "k", {"n": 2}),
            langgraph.aget(USER, "k"),
        )
        assert {results[1].value["n"], results[3].value["n"]} <= {0, 1, 2}
        history = langgraph._memory.app_state.snapshot("user/123/k")
        assert history is not None
        assert history.version == 3

    on_loop(portal, both)


def test_a_bad_call_fails_alone(langgraph: AgentMemoryStore, portal: BlockingPortal) -> None:
    async def together() -> list[Any]:
        return await asyncio.gather(
            langgraph.aput(USER, "a", {"n": 1}),
            langgraph.aput(("a.b",), "k", {"n": 1}),
            langgraph.asearch(USER, filter={"a": {"$bad": 1}}),
            langgraph.aput(USER, "b", {"n": 1}),
            return_exceptions=True,
        )

    results = on_loop(portal, together)
    assert [type(result) for result in results[::3]] == [type(None)] * 2
    assert isinstance(results[1], InvalidNamespaceError)
    assert isinstance(results[2], ValueError)
    assert len(langgraph.search(USER)) == 2


def test_many_tasks_and_threads_lose_no_put(langgraph: AgentMemoryStore, portal: BlockingPortal) -> None:
    async def tasks() -> None:
        await asyncio.gather(*(langgraph.aput(USER, f"task-{n}", {"n": n}) for n in range(60)))
        found = await asyncio.gather(*(langgraph.aget(USER, f"task-{n}") for n in range(60)))
        assert [item.value["n"] for item in found if item] == list(range(60))

    with ThreadPoolExecutor(8) as pool:
        threads = [pool.submit(langgraph.put, USER, f"thread-{n}", {"n": n}) for n in range(60)]
        on_loop(portal, tasks)
        for future in threads:
            future.result()
    assert len(langgraph.search(USER, limit=200)) == 120


def test_a_cancelled_batch_harms_no_other(langgraph: AgentMemoryStore, portal: BlockingPortal) -> None:
    async def cancel_some() -> None:
        for round in range(12):
            doomed = asyncio.create_task(
                langgraph.abatch([PutOp(USER, f"doomed-{round}-{n}", {"n": n}) for n in range(50)])
            )
            others = [asyncio.create_task(langgraph.aput(USER, f"kept-{round}-{n}", {"n": n})) for n in range(3)]
            await asyncio.sleep(0.001 * round)
            doomed.cancel()
            await asyncio.gather(doomed, return_exceptions=True)
            await asyncio.gather(*others)
            # All of the cancelled batch, or nothing of it.
            part = await langgraph.abatch([GetOp(USER, f"doomed-{round}-{n}") for n in range(50)])
            assert len({item is None for item in part}) == 1
        assert sum(item.key.startswith("kept") for item in await langgraph.asearch(USER, limit=1_000)) == 36

    on_loop(portal, cancel_some)
    langgraph.put(USER, "after", {"n": 1})
    assert langgraph.get(USER, "after") is not None


def test_cancelling_while_the_store_writes_leaves_it_usable(tmp_path: Path, portal: BlockingPortal) -> None:
    writing, go_on = threading.Event(), threading.Event()

    async def scenario() -> None:
        async with AsyncAgentMemory(tmp_path / "memory.db", application="test") as memory:
            service: Any = memory._client.transport()
            handle = service.service.handle

            def slow(message: Any) -> Any:
                writing.set()
                go_on.wait(10)
                return handle(message)

            service.service.handle = slow
            store = AgentMemoryStore(memory)
            task = asyncio.create_task(store.abatch([PutOp(USER, "k", {"n": 1}), SearchOp(USER)]))
            await asyncio.to_thread(writing.wait, 10)
            task.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            service.service.handle = handle
            item = await store.aget(USER, "k")
            assert item is not None
            assert item.value == {"n": 1}
            await store.aput(USER, "k", {"n": 2})

    on_loop(portal, scenario)


def test_a_lost_reply_is_no_second_version(tmp_path: Path) -> None:
    from agent_memory import UnavailableError

    with AgentMemory(tmp_path / "memory.db", application="test") as memory:
        lost: list[Any] = []

        def lose_first(message: Any, reply: Any) -> Any:
            if not lost:
                lost.append(message)
                raise UnavailableError("the reply was lost")
            return reply

        put_between(memory, partial(Meddling, alter=lose_first))
        store = AgentMemoryStore(memory)
        store.batch([PutOp(USER, "a", {"n": 1}), PutOp(USER, "b", {"n": 1})])
        snapshot = memory.app_state.snapshot("user/123/a")
        assert snapshot is not None
        assert snapshot.version == 1
