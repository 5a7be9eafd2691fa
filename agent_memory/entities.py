"""Entity: the user, order or device that an agent serves; its documents and collections lie under its key prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from .client import Client
from .codec import schema_name
from .collections import AsyncCollection, Collection
from .documents import AsyncDocument, Document
from .drivers import Flow
from .errors import InvalidKeyError
from .flows import call
from .keys import segment, unescape
from .messages import PAGE_LIMIT, ListSegments, SegmentPage
from .storable import type_name
from .values import TypeForm, Values

T = TypeVar("T")


class _EntityKeys:
    # With slots, `user.name = "Ada"` is an error and not lost.
    __slots__ = ("_bound", "_client", "id", "kind", "prefix")

    def __init__(self, client: Client, kind: str, id: str, bound: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._bound = bound
        self.kind = kind
        self.id = id
        self.prefix = f"{segment(kind, 'an entity kind')}/{segment(id, 'an entity id')}/"
        """What every key of this entity starts with."""

    def _values(self, model: Any, name: str | None) -> Values[Any]:
        return Values(self._client, self._client.scope, self.prefix + self._segment(model, name), model, self._bound)

    def _segment(self, model: Any, name: str | None) -> str:
        name = name if name is not None else schema_name(model)
        if name is None:
            raise InvalidKeyError(
                f"only a class has a name of its own, not {type_name(model)}; give a class, or name= for any other type"
            )
        return segment(name, "a document's or collection's name")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind!r}, {self.id!r})"


class Entity(_EntityKeys):
    """What is remembered about one thing. Nothing reached from here belongs to another.

    ``kind`` and ``id`` are what ``memory.entity`` was given; ``prefix`` is what every key of this entity starts with,
    in the application state.
    """

    __slots__ = ()

    def document(self, model: TypeForm[T], *, name: str | None = None) -> Document[T]:
        """Return the document of this model; ``name`` overrides the model's own. Nothing is read or written yet.

        Raises SerializationError for a type that cannot be stored as it is, and InvalidKeyError for a name that is not
        allowed, or for a type without one, such as ``list[int]``, where ``name`` is missing.
        """
        return Document(self._values(model, name))

    def collection(self, model: TypeForm[T], *, name: str | None = None) -> Collection[T]:
        """Return the collection of this model; ``name`` overrides the model's own. Raises what ``document`` raises."""
        return Collection(self._client, f"{self.prefix}{self._segment(model, name)}/", model, self._bound)


class AsyncEntity(_EntityKeys):
    """The async face of ``Entity``."""

    __slots__ = ()

    def document(self, model: TypeForm[T], *, name: str | None = None) -> AsyncDocument[T]:
        """See ``Entity.document``."""
        return AsyncDocument(self._values(model, name))

    def collection(self, model: TypeForm[T], *, name: str | None = None) -> AsyncCollection[T]:
        """See ``Entity.collection``."""
        return AsyncCollection(self._client, f"{self.prefix}{self._segment(model, name)}/", model, self._bound)


def entity_page(client: Client, kind: str, cursor: str | None) -> Flow[tuple[list[str], str | None]]:
    """Return a page of the ids of a kind's entities, those that remember anything."""
    request = ListSegments(client.scope, f"{segment(kind, 'an entity kind')}/", cursor, PAGE_LIMIT)
    page: SegmentPage = yield from call(request)
    # A raw key may look like an entity's without being one: no id is escaped that way.
    return [name for part in page.segments if (name := unescape(part)) is not None], page.cursor
