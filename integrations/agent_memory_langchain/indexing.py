"""What of an item is embedded for semantic search, and the check of what an embedding function gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.embeddings import Embeddings
from langgraph.store.base import IndexConfig, ensure_embeddings, get_text_at_path, tokenize_path
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from agent_memory import InvalidRequestError


class Index:
    """An ``IndexConfig`` that is ready for use.

    Raises ValueError if ``dims`` or ``embed`` is missing, or ``fields`` is no list.
    """

    def __init__(self, config: IndexConfig) -> None:
        self.dims = config.get("dims")
        if not isinstance(self.dims, int) or self.dims < 1:
            raise ValueError("index needs dims, the number of dimensions of its embeddings")
        self.embeddings: Embeddings = ensure_embeddings(config.get("embed"))
        fields = config.get("fields") or ["$"]
        if isinstance(fields, str):
            # Each letter would be a path, and nothing would be found there to embed.
            raise InvalidRequestError("fields of an index is a list of paths, not one path")
        self.config = cast(IndexConfig, {**config, "fields": list(fields)})
        self._paths = [_path(field) for field in fields]

    def texts(self, value: Mapping[str, Any] | BaseModel, index: bool | Sequence[str] | None) -> list[str]:
        """Return the texts of a value as it is stored, one for each path or element of a list, none twice."""
        if index is False:
            return []
        if isinstance(index, str | bool):
            raise InvalidRequestError("index is False, None or a list of paths")
        paths = self._paths if index is None else [_path(path) for path in index]
        try:
            stored = to_jsonable_python(value, round_trip=True)
        except ValueError:
            return []  # it is no JSON, for which its write is refused
        found = (text for path in paths for text in get_text_at_path(stored, path))
        return list(dict.fromkeys(found))

    def checked(self, vectors: Sequence[Sequence[float]], texts: Sequence[str]) -> dict[str, Sequence[float]]:
        """Return the vector of each text; raise InvalidRequestError if they are not what the index is made for."""
        if len(vectors) != len(texts):
            raise InvalidRequestError(f"the embedding function gave {len(vectors)} vectors for {len(texts)} texts")
        for vector in vectors:
            if len(vector) != self.dims:
                raise InvalidRequestError(
                    f"the embedding function gave a vector of {len(vector)} dimensions; the index has {self.dims}"
                )
        return dict(zip(texts, vectors, strict=True))


def _path(path: str) -> str | list[str]:
    return "$" if path == "$" else tokenize_path(path)
