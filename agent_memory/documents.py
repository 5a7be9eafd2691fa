"""Document: one typed value, of an entity or under a key of one's own choosing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, overload

from .checks import check_type, check_write_id
from .drivers import Flow
from .errors import InvalidRequestError
from .messages import Entry
from .updating import Draft, begin, finish, has_field, update, with_fields
from .values import MISSING, Missing, Snapshot, Values

T = TypeVar("T")
D = TypeVar("D")


class _DocumentFlows(Generic[T]):
    # With slots, `profile.name = "Ada"` is an error and not lost.
    __slots__ = ("_values",)

    def __init__(self, values: Values[T]) -> None:
        self._values = values

    @property
    def key(self) -> str:
        """The key under which the value lies in the application state."""
        return self._values.key

    def _update(
        self, change: Callable[[T], Any] | None, default: Any, reason: str | None, write_id: str | None,
        fields: dict[str, Any],
    ) -> Flow[Snapshot[T]]:  # fmt: skip
        if change is None:
            options = {
                "default": default is not MISSING,
                "reason": reason is not None,
                "write_id": write_id is not None,
            }
            for name, given in options.items():
                if given and has_field(self._values.value_type, name):
                    # It cannot be told whether the field or the option is meant.
                    raise InvalidRequestError(f"the model has a field {name!r} itself: give a function that changes it")
        elif not callable(change):
            raise InvalidRequestError("update takes a function or fields; set() writes a whole value")
        if (change is None) == (not fields):
            raise InvalidRequestError("update takes either a function or fields")
        if write_id is not None:
            check_type(write_id, str, "a write id is text")
            check_write_id(write_id)
        change = change or with_fields(self.key, self._values.value_type, fields)
        return update(self._values, change, default, reason, write_id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key!r})"


class Document(_DocumentFlows[T]):
    """One typed value. Thread-safe; every method is one atomic step on the store.

    Reads raise SchemaError or DeserializationError for a value that is there but cannot be read as this type; writes
    SerializationError for one that is not of it or could not be read back, and nothing is written. ``ttl`` is in
    seconds, without one a value stays. ``reason`` stands in the new version's ``entry.provenance``. Every call may
    raise UnavailableError, below it TimedOutError after the memory's ``timeout``.
    """

    __slots__ = ()

    @overload
    def get(self) -> T | None: ...
    @overload
    def get(self, *, default: T) -> T: ...
    @overload
    def get(self, *, default: D) -> T | D: ...
    def get(self, *, default: Any = None) -> Any:
        """Return the value, ``default`` if there is none."""
        return self._values.client.run(self._values.get(default))

    def snapshot(self) -> Snapshot[T] | None:
        """Return the value with its entry, None if there is none."""
        return self._values.client.run(self._values.snapshot())

    def raw(self) -> Snapshot[bytes] | None:
        """Return the stored bytes with their entry, whatever they hold; None if there is nothing."""
        return self._values.client.run(self._values.raw())

    def set(self, value: T, *, ttl: float | None = None, reason: str | None = None) -> Entry:
        """Write the value, whatever stands there. It expires after ``ttl`` seconds."""
        return self._values.client.run(self._values.write(value, MISSING, ttl, reason))

    def create(self, value: T, *, ttl: float | None = None, reason: str | None = None) -> Entry:
        """Write the value if there is none; raise ConflictError if there is."""
        return self._values.client.run(self._values.write(value, None, ttl, reason))

    def replace(
        self, value: T, *, expected: Snapshot[T] | Entry | str | None, ttl: float | None = None,
        reason: str | None = None,
    ) -> Entry:  # fmt: skip
        """Write the value if what stands there is still ``expected`` (None: nothing); raise ConflictError otherwise."""
        return self._values.client.run(self._values.write(value, expected, ttl, reason))

    def update(
        self, change: Callable[[T], T | None] | None = None, /, *, default: T | Callable[[], T] | Missing = MISSING,
        reason: str | None = None, write_id: str | None = None, **fields: Any,
    ) -> Snapshot[T]:  # fmt: skip
        """Read, change and write until nobody wrote in between; return what stands there then.

        ``change`` gets a private copy and returns the new value, or None after changing the copy; it may run several
        times. Instead of it, ``fields`` sets fields of a model. An absent value starts from ``default`` (a value or a
        function), else from the model's own defaults, else it is a NotFoundError. The result is validated; if it is
        what stands there already, no version is made. A value keeps its time to live. What ``change`` takes counts
        towards the memory's ``timeout``, at which what it awaits is cancelled, and others who are always faster are a
        ConflictError; so is a ``change`` that writes this value itself.

        ``write_id`` (1 to 128 characters) names the change of this value, so that it is made once: if it was made
        within the last hour, nothing is written and what stands there now is returned, or NotFoundError raised if that
        was deleted. A change of nothing is not remembered.
        """
        return self._values.client.run(self._update(change, default, reason, write_id, fields))

    def edit(self, *, default: T | Callable[[], T] | Missing = MISSING, reason: str | None = None) -> Edit[T]:
        """Change a private copy in a block; it is written when the block ends without an error.

        The block cannot be run again: ConflictError if somebody wrote in between.
        """
        return Edit(self._values, default, reason)

    def delete(
        self, *, expected: Snapshot[T] | Entry | str | Missing = MISSING, reason: str | None = None
    ) -> Entry | None:
        """Delete the value and return the entry of the deletion, None if there was nothing.

        With ``expected``, only if it did not change since; else ConflictError.
        """
        return self._values.client.run(self._values.delete(expected, reason))


class AsyncDocument(_DocumentFlows[T]):
    """The async face of ``Document``: the same methods, awaited."""

    __slots__ = ()

    @overload
    async def get(self) -> T | None: ...
    @overload
    async def get(self, *, default: T) -> T: ...
    @overload
    async def get(self, *, default: D) -> T | D: ...
    async def get(self, *, default: Any = None) -> Any:
        """See ``Document.get``."""
        return await self._values.client.arun(self._values.get(default))

    async def snapshot(self) -> Snapshot[T] | None:
        """See ``Document.snapshot``."""
        return await self._values.client.arun(self._values.snapshot())

    async def raw(self) -> Snapshot[bytes] | None:
        """See ``Document.raw``."""
        return await self._values.client.arun(self._values.raw())

    async def set(self, value: T, *, ttl: float | None = None, reason: str | None = None) -> Entry:
        """See ``Document.set``."""
        return await self._values.client.arun(self._values.write(value, MISSING, ttl, reason))

    async def create(self, value: T, *, ttl: float | None = None, reason: str | None = None) -> Entry:
        """See ``Document.create``."""
        return await self._values.client.arun(self._values.write(value, None, ttl, reason))

    async def replace(
        self, value: T, *, expected: Snapshot[T] | Entry | str | None, ttl: float | None = None,
        reason: str | None = None,
    ) -> Entry:  # fmt: skip
        """See ``Document.replace``."""
        return await self._values.client.arun(self._values.write(value, expected, ttl, reason))

    async def update(
        self, change: Callable[[T], T | Awaitable[T | None] | None] | None = None, /, *,
        default: T | Callable[[], T] | Missing = MISSING, reason: str | None = None, write_id: str | None = None,
        **fields: Any,
    ) -> Snapshot[T]:  # fmt: skip
        """See ``Document.update``; ``change`` may be an async function."""
        return await self._values.client.arun(self._update(change, default, reason, write_id, fields))

    def edit(self, *, default: T | Callable[[], T] | Missing = MISSING, reason: str | None = None) -> AsyncEdit[T]:
        """See ``Document.edit``."""
        return AsyncEdit(self._values, default, reason)

    async def delete(
        self, *, expected: Snapshot[T] | Entry | str | Missing = MISSING, reason: str | None = None
    ) -> Entry | None:
        """See ``Document.delete``."""
        return await self._values.client.arun(self._values.delete(expected, reason))


class _EditFlows(Generic[T]):
    # With slots, `profile.edit().name = "Ada"`, without `with`, is an error and not lost.
    __slots__ = ("_default", "_draft", "_reason", "_values")

    def __init__(self, values: Values[T], default: T | Callable[[], T] | Missing, reason: str | None) -> None:
        self._values = values
        self._default = default
        self._reason = reason
        self._draft: Draft[T] | None = None

    def _begin(self) -> Flow[T]:
        if self._draft is not None:
            raise InvalidRequestError("an edit is one block; call edit() again for another")
        self._draft = yield from begin(self._values, self._default)
        return self._draft.value

    def _finish(self) -> Flow[None]:
        if self._draft is not None:
            yield from finish(self._values, self._draft, self._draft.value, self._reason)


class Edit(_EditFlows[T]):
    """What ``Document.edit`` gives: a block with a private copy."""

    __slots__ = ()

    def __enter__(self) -> T:
        return self._values.client.run(self._begin())

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self._values.client.run(self._finish())


class AsyncEdit(_EditFlows[T]):
    """The async face of ``Edit``."""

    __slots__ = ()

    async def __aenter__(self) -> T:
        return await self._values.client.arun(self._begin())

    async def __aexit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            await self._values.client.arun(self._finish())
