"""LangChain's key-value stores on a memory: its own suites, and what they do not ask."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import GeneratorType
from typing import Any

import pytest
import pytest_asyncio
from anyio.from_thread import BlockingPortal
from langchain_core.documents import Document
from langchain_core.stores import BaseStore
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests

from agent_memory import AgentMemory, AsyncAgentMemory, SchemaError, SerializationError
from agent_memory_langchain import AgentMemoryByteStore, AgentMemoryKVStore
from tests.support.models import Profile

KEYS = ["a signing key of the tests"]


@pytest.fixture(params=["embedded", "http"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "memory.db") if request.param == "embedded" else request.getfixturevalue("server").url


@pytest.fixture
def application() -> str:
    return f"kv-{uuid.uuid4().hex}"


@pytest.fixture
def memory(url: str, application: str, portal: BlockingPortal) -> Iterator[AgentMemory]:
    memory = AgentMemory(url, application=application, signing_keys=KEYS)
    yield memory
    portal.call(memory.aio.close)


@pytest_asyncio.fixture
async def async_memory(url: str, application: str) -> AsyncIterator[AsyncAgentMemory]:
    async with AsyncAgentMemory(url, application=application, signing_keys=KEYS) as memory:
        yield memory


def awaited(tests: type) -> type:
    """Run a suite's async tests on an event loop; it has sync ones besides."""
    ignored = pytest.mark.filterwarnings("ignore:The test .* is marked with '@pytest.mark.asyncio'")
    return pytest.mark.asyncio(ignored(tests))


class TestValues(BaseStoreSyncTests[Any]):
    @pytest.fixture
    def kv_store(self, memory: AgentMemory) -> AgentMemoryKVStore[Any]:
        return AgentMemoryKVStore(memory)

    @pytest.fixture
    def three_values(self) -> tuple[Any, Any, Any]:
        return {"n": 1}, (1, {2}), 3


@awaited
class TestValuesAsync(BaseStoreAsyncTests[Any]):
    @pytest.fixture
    def kv_store(self, async_memory: AsyncAgentMemory) -> AgentMemoryKVStore[Any]:
        return AgentMemoryKVStore(async_memory)

    @pytest.fixture
    def three_values(self) -> tuple[Any, Any, Any]:
        return {"n": 1}, "two", [3]


class TestDocuments(BaseStoreSyncTests[Document]):
    @pytest.fixture
    def kv_store(self, memory: AgentMemory) -> AgentMemoryKVStore[Document]:
        return AgentMemoryKVStore(memory, "documents", as_type=Document)

    @pytest.fixture
    def three_values(self) -> tuple[Document, Document, Document]:
        return Document("one"), Document("two", metadata={"page": 2}), Document("three", id="3")


class TestBytes(BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, memory: AgentMemory) -> AgentMemoryByteStore:
        return AgentMemoryByteStore(memory)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return b"", b"\x00\xff", b"x" * 100_000


@awaited
class TestBytesAsync(BaseStoreAsyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, async_memory: AsyncAgentMemory) -> AgentMemoryByteStore:
        return AgentMemoryByteStore(async_memory)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return b"1", b"2", b"3"


def test_stores_with_different_prefixes_do_not_meet(memory: AgentMemory) -> None:
    one: AgentMemoryKVStore[int] = AgentMemoryKVStore(memory, "a")
    other: AgentMemoryKVStore[int] = AgentMemoryKVStore(memory, "ab/")
    one.mset([("bc", 1), ("b/c", 2)])
    other.mset([("c", 3)])

    assert list(one.yield_keys()) == ["b/c", "bc"]
    assert list(one.yield_keys(prefix="b/")) == ["b/c"]
    assert list(other.yield_keys()) == ["c"]
    assert memory.app_state.get("a/b/c") == 2


def test_keys_come_as_they_are_asked_for(memory: AgentMemory, portal: BlockingPortal) -> None:
    store: BaseStore[str, int] = AgentMemoryKVStore(memory)
    store.mset([(f"{n:04}", n) for n in range(1_205)])
    names = store.yield_keys(prefix="0")
    assert isinstance(names, GeneratorType)
    assert [next(names), next(names)] == ["0000", "0001"]
    assert len(list(names)) == 998

    async def listed() -> list[str]:
        return [name async for name in store.ayield_keys()]

    assert len(portal.call(partial(listed))) == 1_205
    assert store.mget(["0003", "none", "0003"]) == [3, None, 3]
    store.mdelete([f"{n:04}" for n in range(1_205)])
    assert list(store.yield_keys()) == []


def test_one_key_is_not_taken_for_those_of_its_letters(memory: AgentMemory) -> None:
    store = AgentMemoryKVStore(memory)
    store.mset([("a", 1)])
    for call in (store.mget, store.mdelete):
        with pytest.raises(ValueError, match="not one key"):
            call("a")
    assert store.mget(["a"]) == [1]


def test_values_may_have_a_type(memory: AgentMemory) -> None:
    store: AgentMemoryKVStore[Profile] = AgentMemoryKVStore(memory, "profiles", as_type=Profile)
    store.mset([("ada", Profile(name="Ada"))])
    assert store.mget(["ada"]) == [Profile(name="Ada")]

    memory.app_state.set("profiles/old", {"name": 1})
    with pytest.raises(SchemaError):
        store.mget(["old"])
    with pytest.raises(SerializationError):
        AgentMemoryByteStore(memory).mset([("k", "text")])  # type: ignore[list-item]


def test_a_store_of_everything_is_refused(memory: AgentMemory) -> None:
    for prefix in ("", "/"):
        with pytest.raises(ValueError, match="prefix"):
            AgentMemoryKVStore(memory, prefix)
