"""The vectors that stand for values in semantic searches of the SQLite catalog."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import apsw

from .rows import all_rows


def keep_vectors(connection: apsw.Connection, scope: str, key: str, vectors: Sequence[bytes]) -> None:
    """Remember the vectors that stand for a key's value."""
    for number, embedding in enumerate(vectors):
        all_rows(connection, "INSERT INTO vector VALUES (?, ?, ?, ?)", (scope, key, number, embedding))


def forget_vectors(connection: apsw.Connection, scope: str, key: str) -> None:
    """Forget the vectors of a key: a value that is overwritten, deleted or expired is found no more."""
    all_rows(connection, "DELETE FROM vector WHERE scope = ? AND key = ?", (scope, key))


def load_vector_functions(connection: apsw.Connection) -> None:
    """Give a connection sqlite-vec's functions; raise ImportError, which names the extra, if it is not installed."""
    known = all_rows(connection, "SELECT 1 FROM pragma_function_list WHERE name = 'vec_distance_cosine' LIMIT 1")
    if known:
        return
    try:
        import sqlite_vec  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise ImportError("semantic search needs sqlite-vec: pip install 'agent-memory[vectors]'") from None
    connection.enable_load_extension(True)
    connection.load_extension(cast(Any, sqlite_vec).loadable_path())
    connection.enable_load_extension(False)
