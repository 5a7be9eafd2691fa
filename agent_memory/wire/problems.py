"""Errors as RFC 9457 problems with a status and a stable code, and back.

The code decides which error a client raises; the status does where the code is not known or the answer is no problem,
so that a proxy's own answer is never taken for the store's. A 5xx may be repeated, unless its code says that this would
not help. What the server did not foresee is ``internal``: its reason stands in the server's log alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple, cast

from pydantic import ValidationError
from pydantic_core import to_json

from ..errors import (
    AgentMemoryError,
    AuthenticationError,
    ConflictError,
    DeserializationError,
    IntegrityError,
    InvalidKeyError,
    InvalidRequestError,
    LimitExceededError,
    NoRequestContextError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    SchemaError,
    SerializationError,
    TimedOutError,
    UnavailableError,
)
from ..messages import Batch, Found, Message
from .blobs import as_is
from .bodies import PROBLEM, Problem
from .replies import found_body, found_of

PROBLEM_TYPE: Final = "application/problem+json"


class _Kind(NamedTuple):
    error: type[AgentMemoryError]
    status: int


# A code that is not here travels with the status of its class and comes back as the class of its status.
_CODES: Final[Mapping[str, _Kind]] = {
    "invalid_key": _Kind(InvalidKeyError, 400),
    "invalid_request": _Kind(InvalidRequestError, 400),
    "malformed_headers": _Kind(ProtocolError, 400),
    "malformed_http": _Kind(ProtocolError, 400),
    "malformed": _Kind(InvalidRequestError, 422),
    "serialization": _Kind(SerializationError, 422),
    "deserialization": _Kind(DeserializationError, 500),
    "schema": _Kind(SchemaError, 500),
    "no_request_context": _Kind(NoRequestContextError, 400),
    "unauthenticated": _Kind(AuthenticationError, 401),
    "permission_denied": _Kind(PermissionDeniedError, 403),
    "url_invalid": _Kind(PermissionDeniedError, 403),
    "url_expired": _Kind(UnavailableError, 403),
    "not_found": _Kind(NotFoundError, 404),
    "unknown_route": _Kind(ProtocolError, 404),
    "chunk_missing": _Kind(IntegrityError, 404),
    "method_not_allowed": _Kind(ProtocolError, 405),
    "request_timeout": _Kind(UnavailableError, 408),
    "version_gone": _Kind(ConflictError, 409),
    "write_id_reused": _Kind(ConflictError, 409),
    "chunk_exists": _Kind(ConflictError, 409),
    "blob_incomplete": _Kind(ConflictError, 409),
    "blob_gone": _Kind(ConflictError, 409),
    "condition_failed": _Kind(ConflictError, 412),
    "limit_exceeded": _Kind(LimitExceededError, 413),
    "unsupported_media_type": _Kind(ProtocolError, 415),
    "range_not_satisfiable": _Kind(IntegrityError, 416),
    "integrity": _Kind(IntegrityError, 500),
    "protocol": _Kind(ProtocolError, 500),
    "internal": _Kind(UnavailableError, 500),
    "unavailable": _Kind(UnavailableError, 503),
    "timeout": _Kind(UnavailableError, 504),
    "search_timeout": _Kind(TimedOutError, 504),
}
_STATUS: Final[tuple[_Kind, ...]] = (
    _Kind(InvalidKeyError, 400),
    _Kind(InvalidRequestError, 400),
    _Kind(AuthenticationError, 401),
    _Kind(PermissionDeniedError, 403),
    _Kind(NotFoundError, 404),
    _Kind(ConflictError, 409),
    _Kind(LimitExceededError, 413),
    _Kind(UnavailableError, 503),
)
_BY_STATUS: Final[Mapping[int, type[AgentMemoryError]]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    409: ConflictError,
    410: ConflictError,
    412: ConflictError,
    413: LimitExceededError,
    422: InvalidRequestError,
    408: UnavailableError,
    429: UnavailableError,
}
# The server's end of a call is not the client's: its deadline and its shutting down are reasons to try again.
_PASSING: Final = frozenset({"timeout", "closed", "no_answer"})
_LONGEST_DETAIL: Final = 300
_LONGEST_PAUSE: Final = 60


def status_of(error: AgentMemoryError) -> int:
    """Return the status that an error is answered with."""
    kind = _CODES.get(error.code)
    if kind is not None and isinstance(error, kind.error):
        return kind.status
    return next((kind.status for kind in _STATUS if isinstance(error, kind.error)), 500)


def encode_error(error: AgentMemoryError, status: int | None = None) -> tuple[int, bytes]:
    """Return the status and the problem that stand for an error; another ``status`` where the place asks for it."""
    status = status or status_of(error)
    code = "unavailable" if isinstance(error, UnavailableError) and error.code in _PASSING else error.code
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": str(error),
    }
    if isinstance(error, ConflictError) and code == "condition_failed":
        body |= {"key": error.key, **found_body(error.found, as_is)}
    return status, to_json(body)


def decode_error(
    status: int,
    content_type: str,
    raw: bytes,
    *,
    message: Message | None = None,
    retry_after: str | None = None,
    secret: str | None = None,
    who: str = "the server",
) -> AgentMemoryError:
    """Return the error that an answer with this status stands for.

    Args:
        message: what was sent; a failed condition that is none of its own is a ProtocolError.
        retry_after: the header of that name, in seconds.
        secret: text that no error may repeat, should the other side send it back.
        who: what the other side is called where it does not say anything itself.
    """
    problem = _problem(content_type, raw, secret)
    if problem is None:
        # A server of ours says itself what was too large; nginx takes 1 MB unless it is told otherwise.
        hint = ": what stands in front of it takes no request of this size" if status == 413 else ""
        return _by_status(status, f"{who} answered {status}{hint}", None, retry_after)
    code = problem["code"]
    text = _detail(problem, secret) or f"{who} answered {status} ({code})"
    kind = _CODES.get(code)
    if kind is None or kind.status != status:
        return _by_status(status, text, code, retry_after)
    if kind.error is UnavailableError:
        return _unavailable(text, code, retry_after)
    if kind.error is ConflictError:
        key, found = problem.get("key"), found_of(problem) if code == "condition_failed" else None
        if message is not None and not _is_of(message, key, found):
            return ProtocolError("the server answered for another key")
        return ConflictError(text, code=code, key=key, found=found)
    error = kind.error(text)
    error.code = code
    return error


def _problem(content_type: str, raw: bytes, secret: str | None) -> Problem | None:
    if content_type.partition(";")[0].strip().lower() != PROBLEM_TYPE:
        return None
    try:
        problem = cast(Problem, PROBLEM.validator.validate_json(raw))
    except ValidationError:
        return None
    # A code is repeated in errors and logs as it is.
    return None if secret and secret in problem["code"] and problem["code"] not in _CODES else problem


def _is_of(message: Message, key: str | None, found: Found | None) -> bool:
    """Say whether a conflict is about a key of the message, and what it found there that key's own."""
    operations = message.operations if isinstance(message, Batch) else (message,)
    keys = {getattr(one, "key", None) for one in operations}
    return (key is None or key in keys) and (found is None or found.entry.key in (keys if key is None else {key}))


def _detail(problem: Problem, secret: str | None) -> str | None:
    """Return the server's own words, unless they could hold what no error may."""
    detail = problem.get("detail")
    if not detail or len(detail) > _LONGEST_DETAIL or not detail.isprintable() or "://" in detail:
        return None
    return None if secret and secret in detail else detail


def _by_status(status: int, text: str, code: str | None, retry_after: str | None) -> AgentMemoryError:
    kind = UnavailableError if status >= 500 else _BY_STATUS.get(status, ProtocolError)
    if 300 <= status < 400:
        return ProtocolError("the server answered with a redirect, which is never followed", code="redirect")
    if kind is ConflictError and code is None:
        # Whoever answered did not say what stands there: this is no failed condition of the store.
        return ProtocolError(f"{text} without saying why")
    if kind is UnavailableError:
        return _unavailable(text, code, retry_after)
    return kind(text, code=code)


def _unavailable(text: str, code: str | None, retry_after: str | None) -> UnavailableError:
    code = "unavailable" if code in _PASSING else code
    return UnavailableError(text, code=code, retry_after=_seconds(retry_after))


def _seconds(retry_after: str | None) -> float | None:
    if retry_after is None or not retry_after.isascii() or not retry_after.isdigit() or len(retry_after) > 9:
        return None
    # Zero would be a loop without a pause.
    return float(min(int(retry_after), _LONGEST_PAUSE)) or None
