"""What a batch is made of: operations that are carried out together, in order, all or none, in one round trip.

Give them to ``memory.app_state.batch([...])``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from .messages import Entry, Pattern
from .values import MISSING, Missing, Snapshot

__all__ = ["Delete", "Get", "Hit", "Parents", "Pattern", "Search", "Set"]

T = TypeVar("T")


class Get(NamedTuple):
    """Read a key -> Snapshot, or None if there is none. ``refresh_ttl`` restarts its time to live."""

    key: str
    as_type: Any = None
    refresh_ttl: bool = False


class Set(NamedTuple):
    """Write a key -> Entry.

    ``expected`` is a snapshot, entry or etag that must still stand there, or None if nothing may. The value expires
    after ``ttl`` seconds. ``vectors`` stand for it in semantic searches.
    """

    key: str
    value: Any
    as_type: Any = None
    expected: Snapshot[Any] | Entry | str | Missing | None = MISSING
    ttl: float | None = None
    reason: str | None = None
    vectors: Sequence[Sequence[float]] = ()


class Delete(NamedTuple):
    """Delete a key -> Entry of the deletion, or None if there was nothing."""

    key: str
    expected: Snapshot[Any] | Entry | str | Missing = MISSING
    reason: str | None = None


class Search(NamedTuple):
    """Find JSON objects whose keys start with ``prefix`` -> list of Hits.

    The newest change comes first; with a ``vector``, the most similar. ``filter`` compares fields, such as
    ``{"sport": "run", "km": {"$gte": 5}}``, with $eq $ne $gt $gte $lt $lte $in, combined by $and and $or; a field is
    taken literally first and then as a dotted path, and one that is missing matches nothing, nor does a value above
    4 MiB. ``nested`` leaves out keys without a ``/``.

    At most ``limit``, 1 to 1,000, behind the first ``offset``. Raises InvalidRequestError for a filter or a vector that
    is none, and TimedOutError with the code ``search_timeout`` where finding them takes too long.
    """

    prefix: str
    filter: Mapping[str, Any] | None = None
    limit: int = 10
    offset: int = 0
    vector: Sequence[float] | None = None
    refresh_ttl: bool = False
    nested: bool = False


class Parents(NamedTuple):
    """List the distinct parents (a key up to its last ``/``) of the JSON objects under ``prefix`` -> list of str.

    Only those that fit all ``patterns``, cut to ``depth`` segments. They are in byte order: those after ``after``, of
    which ``offset`` are skipped.
    """

    prefix: str = ""
    after: str | None = None
    limit: int = 1_000
    patterns: Sequence[Pattern] = ()
    depth: int | None = None
    offset: int = 0


class Hit(NamedTuple, Generic[T]):
    """Something a search found. ``score`` is the cosine similarity, None without a query or without vectors."""

    value: T
    entry: Entry
    score: float | None
