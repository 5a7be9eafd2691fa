"""Every error a caller can meet.

    AgentMemoryError
    ├── InvalidKeyError            (also ValueError)   a key, id, name, namespace or application that is not allowed
    ├── InvalidRequestError        (also ValueError)   an argument or a request field that makes no sense
    ├── SerializationError                             this value cannot be stored
    ├── DeserializationError                           the stored bytes cannot be turned into a value
    │   └── SchemaError                                they are JSON, but not the model asked for
    ├── ConflictError                                  a condition failed: somebody else wrote first
    ├── NotFoundError              (also LookupError)  there is nothing to change
    ├── NoRequestContextError      (also LookupError)  no request is being served here
    ├── AuthenticationError                            no valid token
    ├── PermissionDeniedError                          a valid token, but not for this scope
    ├── LimitExceededError                             too large, too many, too long
    ├── IntegrityError                                 the bytes are not the ones that were written
    ├── UnavailableError                               try again: the store, the disk or the network did not serve
    │   └── TimedOutError          (also TimeoutError) the call's deadline passed
    └── ProtocolError                                  the other side does not speak the protocol

No message, ``repr`` or ``args`` of these holds a value, a token or a signed URL. ``code`` is the stable name that the
wire uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self


class AgentMemoryError(Exception):
    """The root of every error raised by this package."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    def about(self, what: str) -> Self:
        """Say what the error is about: a key, a file."""
        self.args = (f"{what}: {self.args[0]}", *self.args[1:])
        return self


class InvalidKeyError(AgentMemoryError, ValueError):
    """A key, entity kind, id, name, namespace or application that is not allowed; nothing was sent."""

    code = "invalid_key"


class InvalidRequestError(AgentMemoryError, ValueError):
    """An argument or a request field with a value that makes no sense."""

    code = "invalid_request"


class SerializationError(AgentMemoryError):
    """This value cannot be stored; nothing was sent."""

    code = "serialization"


class DeserializationError(AgentMemoryError):
    """The stored bytes are sound but cannot be turned into a value; ``raw()`` still reads them."""

    code = "deserialization"


class SchemaError(DeserializationError):
    """The stored JSON is not the model asked for.

    ``problems`` lists ``(location, type)`` pairs as Pydantic names them, never the values. But a location in a mapping
    holds its keys, which the message leaves out, and in a model that forbids more fields the names of those.
    """

    code = "schema"

    def __init__(self, message: str, *, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class ConflictError(AgentMemoryError):
    """A condition failed: the key is not at the version that the writer expected.

    ``key`` is the key that the condition was for, None where the conflict is another one.
    ``current`` is the snapshot that stands there now, None when there is none. Reading it raises ``SchemaError`` or
    ``DeserializationError`` if what stands there is not the type that the writer works with, and ``AgentMemoryError``
    where the error came from another process.
    """

    code = "condition_failed"

    def __init__(self, message: str, *, code: str | None = None, key: str | None = None, found: Any = None) -> None:
        super().__init__(message, code=code)
        self.key = key
        self.found = found
        self._load: Callable[[], Any] | None = None

    def with_loader(self, load: Callable[[], Any]) -> ConflictError:
        """Say how ``current`` is made from what the store found."""
        self._load = load
        return self

    @property
    def current(self) -> Any:
        """The snapshot that stands there now, None if there is none."""
        return None if self._load is None else self._load()

    def __reduce__(self) -> tuple[Any, ...]:
        # The loader is bound to an open store; what reaches another process is the message, the code and the key.
        return (_conflict, (str(self), self.code, self.key))


def _conflict(message: str, code: str, key: str | None) -> ConflictError:
    return ConflictError(message, code=code, key=key).with_loader(_left_behind)


def _left_behind() -> Any:
    # None would say that the key is absent.
    raise AgentMemoryError("another process met this conflict, and what stood there was left behind: read the key")


class NotFoundError(AgentMemoryError, LookupError):
    """There is no value to change and no default to start from."""

    code = "not_found"


class NoRequestContextError(AgentMemoryError, LookupError):
    """``RequestContext.get()`` was called where no ``memory.request(...)`` is open."""

    code = "no_request_context"


class AuthenticationError(AgentMemoryError):
    """The server wants a valid token."""

    code = "unauthenticated"


class PermissionDeniedError(AgentMemoryError):
    """The token is valid, but not for this namespace, application or operation."""

    code = "permission_denied"


class LimitExceededError(AgentMemoryError):
    """A value, a batch, a page or a request is larger than this store takes."""

    code = "limit_exceeded"


class IntegrityError(AgentMemoryError):
    """The bytes that arrived are not the ones that were written; no value is returned."""

    code = "integrity"


class UnavailableError(AgentMemoryError):
    """The store, its disk or the way to it did not serve; the same call may succeed later.

    ``retry_after`` is the pause in seconds that the other side asked for, if it did.
    """

    code = "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class TimedOutError(UnavailableError, TimeoutError):
    """The call's deadline passed. A write may have happened, or happen yet; repeating it is safe."""

    code = "timeout"


class ProtocolError(AgentMemoryError):
    """The other side's answer is not one of this protocol."""

    code = "protocol"
