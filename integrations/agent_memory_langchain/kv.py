"""Key-value stores of LangChain in a memory: for its document stores, its caches of embeddings and the like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, overload

from langchain_core.stores import BaseStore
from typing_extensions import TypeVar  # typing's has no default below Python 3.13

from agent_memory import AgentMemory, AsyncAgentMemory, InvalidRequestError
from agent_memory.operations import Delete, Get, Set

from .faces import Faces

if TYPE_CHECKING:
    from typing_extensions import TypeForm  # Older ones have none.

V = TypeVar("V", default=Any)

_BATCH = 1_000


class AgentMemoryKVStore(BaseStore[str, V], Generic[V]):
    """A LangChain ``BaseStore`` whose keys are the state keys under ``prefix/``.

    Thread-safe, sync and async on the same instance; it does not close the memory. Each call is one transaction per
    1,000 keys.

    Args:
        memory: an open memory, of either face.
        prefix: what the store's state keys start with, before a ``/``.
        as_type: what every value is, such as LangChain's ``Document``. Without it any value, as ``app_state.set``
            stores it: of a Pydantic model, which ``Document`` is one of, plain data comes back.
    """

    @overload
    def __init__(self, memory: AgentMemory | AsyncAgentMemory, prefix: str = "kv") -> None: ...
    @overload
    def __init__(self, memory: AgentMemory | AsyncAgentMemory, prefix: str = "kv", *, as_type: TypeForm[V]) -> None: ...
    def __init__(self, memory: AgentMemory | AsyncAgentMemory, prefix: str = "kv", *, as_type: Any = None) -> None:
        if not prefix.strip("/"):
            raise InvalidRequestError("prefix must not be empty: the store would hold the whole application state")
        faces = Faces(memory)
        self._state, self._async_state = faces.sync.app_state, faces.aio.app_state
        self._prefix = f"{prefix.rstrip('/')}/"
        self._as_type = as_type

    def mget(self, keys: Sequence[str]) -> list[V | None]:
        """Return the values of keys in their order, None for each that is not there."""
        return [_value(one) for part in self._gets(keys) for one in self._state.batch(part)]

    async def amget(self, keys: Sequence[str]) -> list[V | None]:
        """See ``mget``."""
        return [_value(one) for part in self._gets(keys) for one in await self._async_state.batch(part)]

    def mset(self, key_value_pairs: Sequence[tuple[str, V]]) -> None:
        """Set the values of keys."""
        for part in self._sets(key_value_pairs):
            self._state.batch(part)

    async def amset(self, key_value_pairs: Sequence[tuple[str, V]]) -> None:
        """See ``mset``."""
        for part in self._sets(key_value_pairs):
            await self._async_state.batch(part)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys; those that are not there are no error."""
        for part in self._deletes(keys):
            self._state.batch(part)

    async def amdelete(self, keys: Sequence[str]) -> None:
        """See ``mdelete``."""
        for part in self._deletes(keys):
            await self._async_state.batch(part)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Iterate over the keys that start with ``prefix``, in byte order, page by page."""
        for key in self._state.keys(self._prefix + (prefix or "")):
            yield key[len(self._prefix) :]

    # The base class's is an async generator too, which its annotation, without a yield in its body, does not say.
    async def ayield_keys(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, prefix: str | None = None
    ) -> AsyncIterator[str]:
        """See ``yield_keys``."""
        async for key in self._async_state.keys(self._prefix + (prefix or "")):
            yield key[len(self._prefix) :]

    def _gets(self, keys: Sequence[str]) -> Iterator[list[Get]]:
        return _parts([Get(self._prefix + key, self._as_type) for key in _several(keys)])

    def _sets(self, pairs: Sequence[tuple[str, V]]) -> Iterator[list[Set]]:
        return _parts([Set(self._prefix + key, value, self._as_type) for key, value in pairs])

    def _deletes(self, keys: Sequence[str]) -> Iterator[list[Delete]]:
        return _parts([Delete(self._prefix + key) for key in _several(keys)])


class AgentMemoryByteStore(AgentMemoryKVStore[bytes]):
    """The same for bytes alone: a LangChain ``ByteStore``. Other values are refused."""

    def __init__(self, memory: AgentMemory | AsyncAgentMemory, prefix: str = "bytes") -> None:
        super().__init__(memory, prefix, as_type=bytes)


def _several(keys: Sequence[str]) -> Sequence[str]:
    if isinstance(keys, str):
        raise InvalidRequestError("keys is a list of keys, not one key")  # each letter would be one
    return keys


def _parts(operations: list[Any]) -> Iterator[list[Any]]:
    return (operations[start : start + _BATCH] for start in range(0, len(operations), _BATCH))


def _value(snapshot: Any) -> Any:
    return None if snapshot is None else snapshot.value
