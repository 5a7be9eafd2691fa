"""Copy what a LangGraph store holds into a memory.

Items are written in transactions of a hundred, and what is there already is not written again. The source is never
changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from langgraph.store.base import BaseStore

from agent_memory import (
    AgentMemory,
    AgentMemoryError,
    AuthenticationError,
    ConflictError,
    DeserializationError,
    IntegrityError,
    InvalidKeyError,
    InvalidRequestError,
    PermissionDeniedError,
    ProtocolError,
    UnavailableError,
)
from agent_memory.operations import Get, Set

from .indexing import Index
from .item_schemas import JSON_OBJECT, item_name
from .namespaces import to_state_key
from .sources import SourceItem, items_of

_AT_ONCE: Final = 100


class ImportReport(NamedTuple):
    """What an import did, in numbers of items.

    copied: written. unchanged: there already, with the same value. kept: there already with another value, which was
    left alone. expired: past their time to live. refused: cannot be stored; ``problems`` says why, without values.
    ``times_kept`` is False where the memory is a server's, which keeps its own times: the source's then stand in the
    provenance alone.
    """

    copied: int = 0
    unchanged: int = 0
    kept: int = 0
    expired: int = 0
    refused: int = 0
    problems: tuple[str, ...] = ()
    times_kept: bool = True

    @property
    def seen(self) -> int:
        """How many items the source had."""
        return self.copied + self.unchanged + self.kept + self.expired + self.refused


def import_langgraph(
    source: str | Path | BaseStore,
    memory: AgentMemory,
    *,
    overwrite: bool = False,
    index: Any = None,
    progress: Callable[[ImportReport], object] | None = None,
) -> ImportReport:
    """Copy every item of a LangGraph store, the longest unchanged first, and return what was done.

    Repeating it is safe, and how an interrupted import is resumed: what is there already is not written again.

    Args:
        source: the file of a SqliteStore, the DSN of a PostgresStore, or any store that is open.
        memory: where the items go; ``("user", "123"), "profile"`` becomes the state key ``user/123/profile``.
        overwrite: write over keys that hold another value; without it they are kept.
        index: an IndexConfig, to embed items anew; without it the source's vectors are copied where it has them.
        progress: called with the numbers so far after every hundred items.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidRequestError: the file or database holds no LangGraph store, or is damaged; or it is another address.
        UnavailableError: the database cannot be reached or read.
        ImportError: a PostgresStore needs psycopg.
    """
    with opened(source) as items:
        return import_items(items, memory, overwrite=overwrite, index=index, progress=progress)


@contextmanager
def opened(source: str | Path | BaseStore) -> Generator[Iterator[SourceItem]]:
    """Open a source now, not when its first item is wanted, and give its items; see ``import_langgraph``."""
    with closing(items_of(source)) as items:
        first = list(islice(items, 1))
        yield chain(first, items)


def import_items(
    items: Iterator[SourceItem],
    memory: AgentMemory,
    *,
    overwrite: bool = False,
    index: Any = None,
    progress: Callable[[ImportReport], object] | None = None,
) -> ImportReport:
    """Copy the items of a source that is open; see ``import_langgraph``."""
    importer = _Importer(memory, None if index is None else Index(index), overwrite)
    while page := list(islice(items, _AT_ONCE)):
        importer.take(page)
        if progress is not None:
            progress(importer.report)
    return importer.report


class _Importer:
    def __init__(self, memory: AgentMemory, index: Index | None, overwrite: bool) -> None:
        self._memory = memory
        self._state = memory.app_state
        self._index = index
        self._overwrite = overwrite
        self.report = ImportReport()

    def take(self, page: Sequence[SourceItem]) -> None:
        """Write those items of a page that are to be written, in one transaction."""
        now = datetime.now(UTC)
        alive = [item for item in page if item.expires_at is None or item.expires_at > now]
        self._count(expired=len(page) - len(alive))
        writes = {key: item for item in alive if (key := self._key(item)) is not None}
        while writes:
            writes = self._write(self._wanted(writes), now)

    def _key(self, item: SourceItem) -> str | None:
        key = to_state_key(item.namespace, item.key)
        try:
            if item.problem is not None:
                raise InvalidRequestError(item.problem)
            if not isinstance(item.value, dict):
                raise InvalidRequestError(f"it holds a {type(item.value).__name__}, not an object")
            if not item.namespace or not item.key or not all(item.namespace):
                raise InvalidKeyError("an empty label or key")
            # Made only for its checks of the key; what is wrong with a value is found when it is written.
            self._state.key(key, JSON_OBJECT)
        except AgentMemoryError as error:
            self._refuse(item, error)
            return None
        return key

    def _wanted(self, items: dict[str, SourceItem]) -> dict[str, tuple[SourceItem, Any]]:
        """Return the items to write, each with what stands in its place."""
        there = self._there(list(items))
        wanted: dict[str, tuple[SourceItem, Any]] = {}
        untimed: dict[str, SourceItem] = {}
        for (key, item), snapshot in zip(items.items(), there, strict=True):
            if snapshot is not None and _same(snapshot.value, item.value):
                self._count(unchanged=1)
                imported = ((snapshot.entry.provenance or {}).get("reason") or "").startswith(_IMPORTED)
                if imported and (snapshot.entry.created_at, snapshot.entry.updated_at) != (
                    item.created_at,
                    item.updated_at,
                ):
                    untimed[key] = item
            elif snapshot is not None and not self._overwrite:
                self._count(kept=1)
            else:
                wanted[key] = (item, snapshot)
        # An import that was cut short between an item and its times goes on here.
        self._set_times(untimed)
        return wanted

    def _there(self, keys: list[str]) -> list[Any]:
        """Return what stands at keys: snapshots, of bytes where a value cannot be read, and None."""
        try:
            return self._state.batch([Get(key) for key in keys])
        except (DeserializationError, IntegrityError):
            if len(keys) > 1:
                return [found for key in keys for found in self._there([key])]
            return [self._state.key(keys[0], JSON_OBJECT).raw()]

    def _set_times(self, items: Mapping[str, SourceItem]) -> None:
        """Give items their times; a server keeps its own, for only whoever runs it may set them."""
        if items:
            try:
                self._memory.set_times({key: (item.created_at, item.updated_at) for key, item in items.items()})
            except PermissionDeniedError:
                self.report = self.report._replace(times_kept=False)

    def _write(self, wanted: dict[str, tuple[SourceItem, Any]], now: datetime) -> dict[str, SourceItem]:
        """Write items all or none; return those to look at again, because somebody else wrote one of them meanwhile."""
        if not wanted:
            return {}
        vectors = self._vectors([item for item, _ in wanted.values()])
        sets = [
            _set(key, item, snapshot, one, now)
            for (key, (item, snapshot)), one in zip(wanted.items(), vectors, strict=True)
        ]
        try:
            self._state.batch(sets)
        except ConflictError:
            return {key: item for key, (item, _) in wanted.items()}
        except (UnavailableError, AuthenticationError, PermissionDeniedError, ProtocolError):
            # No other item would be spared.
            raise
        except AgentMemoryError as error:
            if len(sets) == 1:
                self._refuse(next(iter(wanted.values()))[0], error)
                return {}
            # One of them cannot be stored: one by one they say which.
            again: dict[str, SourceItem] = {}
            for key, one in wanted.items():
                again |= self._write({key: one}, now)
            return again
        self._count(copied=len(sets))
        self._set_times({key: item for key, (item, _) in wanted.items()})
        return {}

    def _vectors(self, items: Sequence[SourceItem]) -> list[Sequence[Sequence[float]]]:
        if self._index is None:
            return [item.vectors for item in items]
        texts = [self._index.texts(item.value, None) for item in items]
        wanted = list(dict.fromkeys(text for found in texts for text in found))
        known = self._index.checked(self._index.embeddings.embed_documents(wanted), wanted)
        return [[known[text] for text in found] for found in texts]

    def _refuse(self, item: SourceItem, error: AgentMemoryError) -> None:
        problem = f"{item_name(item.namespace, item.key)}: {error}"
        self.report = self.report._replace(problems=(*self.report.problems, problem))
        self._count(refused=1)

    def _count(self, **more: int) -> None:
        self.report = self.report._replace(**{name: getattr(self.report, name) + n for name, n in more.items()})


_IMPORTED: Final = "imported from LangGraph"


def _set(key: str, item: SourceItem, snapshot: Any, vectors: Sequence[Sequence[float]], now: datetime) -> Set:
    ttl = None if item.expires_at is None else (item.expires_at - now).total_seconds()
    # The source's times stand here too, for a server does not take them over.
    reason = f"{_IMPORTED}, created {_text(item.created_at)}, updated {_text(item.updated_at)}"
    return Set(key, item.value, JSON_OBJECT, expected=snapshot, ttl=ttl, reason=reason, vectors=vectors)


def _same(stored: Any, given: Any) -> bool:
    """Say whether two values are the same JSON: to Python, True is 1."""
    return stored == given and _spelled(stored) == _spelled(given)


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
