"""What a listing or a search shows, and how much one transaction may find: the same for every catalog.

Pure functions on what a catalog has read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import pydantic_core

from ..errors import LimitExceededError
from ..filters import AllOf, matches
from ..messages import Entry, ListParents
from .catalog import LoadBlob, Row

READ_LIMIT: Final = 128 * 1024**2
"""Bytes of values and entries that one transaction holds in memory: two of the largest searches."""

FILTER_LIMIT: Final = 4 * 1024**2
"""Bytes of the largest value that a filter looks into: as values of Python they may take thirty times as many."""

# What the rest of an entry, and a name, take beside their texts.
_ENTRY_BYTES: Final = 512
_NAME_BYTES: Final = 64


def add_up(carried: int, found: Iterable[Row | str]) -> int:
    """Return how many bytes of rows and names a transaction has found by now.

    Raises LimitExceededError if they are too many.
    """
    carried += sum(map(_kept, found))
    if carried > READ_LIMIT:
        raise LimitExceededError(
            f"one batch may find {READ_LIMIT // 1024**2} MiB of values and entries; ask for less at once"
        )
    return carried


def _kept(found: Row | str) -> int:
    return text_bytes(found) if isinstance(found, str) else len(found.data or b"") + entry_bytes(found.entry)


def entry_bytes(entry: Entry) -> int:
    """Return what an entry takes of the memory of who answers with it."""
    texts = [entry.key, entry.content_type, entry.signature or "", entry.schema_name or ""]
    for pair in (entry.provenance or {}).items():
        texts += pair
    return _ENTRY_BYTES + text_bytes("".join(texts))


def text_bytes(text: str) -> int:
    """Return what a text takes of memory: once as itself, and in three copies of its JSON."""
    return _NAME_BYTES + len(text) * (1 if text.isascii() else 4) + 3 * len(pydantic_core.to_json(text))


def holds(condition: AllOf, row: Row, load: LoadBlob) -> bool:
    """Say whether a row's value is an object that fulfils a condition; ``load`` gives the bytes of a large one."""
    if not condition.terms:
        return row.data is not None or load(row, min(1, row.entry.size)) == b"{"
    if row.entry.size > FILTER_LIMIT:
        return False
    data = row.data if row.data is not None else load(row, row.entry.size)
    # With blanks before it, other clients may write one; no search finds it, with a filter or without.
    if not data.startswith(b"{"):
        return False
    try:
        value = pydantic_core.from_json(data)
    except ValueError:
        # One unreadable row never fails a search; reading it by key says what is wrong with it.
        return False
    return matches(condition, cast("dict[str, Any]", value))


def shown_name(request: ListParents, parent: str) -> str | None:
    """Return the name that a parent has in a listing, None if it does not fit."""
    segments = parent.split("/")[:-1]
    if not all(pattern.fits(segments) for pattern in request.patterns):
        return None
    return parent if request.depth is None else "".join(f"{segment}/" for segment in segments[: request.depth])


def chosen_parents(request: ListParents, parents: Iterable[str]) -> list[str]:
    """Return the names that a listing shows, from all parents after its cursor in byte order.

    No more of them are taken than the listing needs. Those that are cut to the same name stand together.
    """
    names: list[str] = []
    last, skip = request.cursor or "", request.offset
    for parent in parents:
        name = shown_name(request, parent)
        if name is None or name <= last:
            continue
        last = name
        if skip:
            skip -= 1
            continue
        names.append(name)
        if len(names) == request.limit:
            break
    return names
