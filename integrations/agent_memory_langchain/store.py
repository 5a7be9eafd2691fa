"""AgentMemoryStore: a memory as the store of LangGraph, for its graphs, its Agent Server and langmem."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, cast

from langgraph.store.base import BaseStore, IndexConfig, Op, Result, TTLConfig

from agent_memory import AgentMemory, AsyncAgentMemory, InvalidRequestError, LimitExceededError, PermissionDeniedError

from .batches import Embed, carry_out, minutes
from .faces import Faces
from .indexing import Index
from .item_schemas import SchemaRules, Schemas

logger = logging.getLogger(__name__)

_SWEEP_MINUTES = 5.0


class AgentMemoryStore(BaseStore):
    """A memory through LangGraph's eyes: ``("user", "123"), "profile"`` is ``memory.entity("user", "123")``'s profile.

    It shows what holds a JSON object under a state key of two segments or more. A put or delete goes to the key it
    names whatever stands there. Thread-safe, sync and async on the same instance; it does not close the memory.

    A batch is one transaction and one round trip: reads see what was there before it, then the puts apply, all or
    none, the last one per item. (Only more than 1,000 operations, a read of more than 1,000 results, or reads that find
    more than the store takes up at once, 128 MiB, take several.) Searches give the newest change first, ties by key;
    with a query and an index the most similar first, then what has no vectors, with ``score=None``. Filters are those
    of ``agent_memory.operations.Search``. Expired items are never returned.

    Args:
        memory: an open memory, of either face.
        index: LangGraph's IndexConfig: ``dims``, ``embed``, ``fields``. Without it queries only list.
        ttl: LangGraph's TTLConfig, in minutes. ``refresh_on_read`` is on unless it says otherwise.
        schemas: models by namespace and key, such as ``{("user", "*"): {"profile": Profile}}``; ``*`` stands for any
            label or key. A put has to be its model, else SerializationError, and is stored as the typed document
            would store it. A stored item that is no longer its model is returned as it is, and a warning is logged.
    """

    supports_ttl = True

    def __init__(
        self,
        memory: AgentMemory | AsyncAgentMemory,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        schemas: Schemas | None = None,
    ) -> None:
        faces = Faces(memory)
        self._memory = faces.sync
        self._state, self._async_state = faces.sync.app_state, faces.aio.app_state
        self._index = None if index is None else Index(index)
        self._rules = SchemaRules(schemas)
        self.ttl_config = _checked(ttl)
        self._sweeper: threading.Thread | None = None
        self._stop_sweeper = threading.Event()

    @property
    def index_config(self) -> IndexConfig | None:
        """What the store embeds, None if it embeds nothing."""
        return None if self._index is None else self._index.config

    @property
    def embeddings(self) -> Any:
        """The embeddings in use, None if there are none."""
        return None if self._index is None else self._index.embeddings

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations; see the class for their order."""
        flow = carry_out(ops, self._index, self._rules)
        reply: Any = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                return end.value
            try:
                reply = self._embed(step) if isinstance(step, Embed) else self._state.batch(step)
            except LimitExceededError as error:
                reply = error

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations; see the class for their order."""
        flow = carry_out(ops, self._index, self._rules)
        reply: Any = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                return end.value
            try:
                reply = await (self._aembed(step) if isinstance(step, Embed) else self._async_state.batch(step))
            except LimitExceededError as error:
                reply = error

    def _embed(self, wanted: Embed) -> tuple[list[list[float]], list[list[float]]]:
        texts = self.embeddings.embed_documents(wanted.texts) if wanted.texts else []
        return texts, [self.embeddings.embed_query(query) for query in wanted.queries]

    async def _aembed(self, wanted: Embed) -> tuple[list[list[float]], list[list[float]]]:
        texts = await self.embeddings.aembed_documents(wanted.texts) if wanted.texts else []
        return texts, await asyncio.gather(*map(self.embeddings.aembed_query, wanted.queries))

    # -- time to live ------------------------------------------------------------------------------------------------

    def sweep_ttl(self) -> int:
        """Take away expired items, which nobody can read any more, and return how many there were.

        Behind a server there is nothing to do: it sweeps its store by itself.
        """
        try:
            return self._memory.sweep().expired
        except PermissionDeniedError:
            return 0

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> Future[None]:
        """Sweep every so many minutes, on a thread, until ``stop_ttl_sweeper`` or the future's ``cancel``.

        The interval is the one given, else the configured one, else 5 minutes. Without a TTL configuration there is
        nothing to do. Stores sweep by themselves too; a sweeper only makes it more regular.
        """
        future: Future[None] = Future()
        if self.ttl_config is None:
            future.set_result(None)
            return future
        if self._sweeper is not None and self._sweeper.is_alive() and not self._stop_sweeper.is_set():
            stop = self._stop_sweeper
        else:
            interval = sweep_interval_minutes or self.ttl_config.get("sweep_interval_minutes") or _SWEEP_MINUTES
            # With less than nothing in between it would sweep without a pause.
            seconds = minutes(interval, "sweep_interval_minutes") * 60.0
            # One that was told to stop, and still sweeps, keeps its own event.
            stop = self._stop_sweeper = threading.Event()
            self._sweeper = threading.Thread(
                target=self._sweep_until_stopped,
                args=(seconds, stop, future),
                name="agent-memory-ttl",
                daemon=True,
            )
            self._sweeper.start()
        future.add_done_callback(lambda done: stop.set() if done.cancelled() else None)
        return future

    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stop the sweeper, waiting up to ``timeout`` seconds for it; return whether it has stopped."""
        self._stop_sweeper.set()
        if self._sweeper is not None:
            self._sweeper.join(timeout)
            if self._sweeper.is_alive():
                return False
            self._sweeper = None
        return True

    def _sweep_until_stopped(self, seconds: float, stop: threading.Event, future: Future[None]) -> None:
        while not stop.wait(seconds):
            try:
                self.sweep_ttl()
            except Exception:
                # The next round tries again; a store that is gone for good is for its owner to notice.
                logger.exception("sweeping expired items failed")
        if not future.done():
            future.set_result(None)


def _checked(ttl: Any) -> TTLConfig | None:
    """Return the configuration; raise InvalidRequestError for one by which items would never expire, unnoticed."""
    if ttl is None:
        return None
    known = sorted(TTLConfig.__annotations__)
    if not isinstance(ttl, Mapping) or not set(cast("Mapping[Any, Any]", ttl)) <= set(known):
        raise InvalidRequestError(f"ttl= is a mapping with some of {', '.join(known)}")
    config = cast(TTLConfig, ttl)
    if (default := config.get("default_ttl")) is not None:
        minutes(default)
    return config
