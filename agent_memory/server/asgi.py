"""What every endpoint needs of ASGI: reading a body within bounds, answering, and being told that nobody listens."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

from starlette.types import Message, Receive, Scope, Send

from ..errors import AgentMemoryError, AuthenticationError, LimitExceededError, ProtocolError, UnavailableError
from ..wire import LOGGED_ID, encode_error
from ..wire.problems import PROBLEM_TYPE
from .auth import Headers
from .log import Record

T = TypeVar("T")

BODY_SECONDS: Final = 20.0
"""How long a body may take that hardly moves, and how long a transfer may stand still."""

BLOCK: Final = 1024 * 1024
"""How much of a transfer is in memory at most."""

PIECE: Final = 256 * 1024
"""How much of an answer is sent in one step: at the slowest pace a block would take longer than one may stand still."""

JSON: Final = b"application/json"

KEPT: Final = 64 * 1024
"""How much of an answer may stay with a connection when all else of the request is over."""

# Bytes a second that a body or a transfer has to reach: a link of half a megabit is enough.
_SLOWEST: Final = 50_000

DISCARDED: Final = 64 * 1024 * 1024
"""How much of a refused body is read, so that a client which sends it all first goes on with its connection."""

_RECORD: Final = "agent_memory.record"


class Disconnected(Exception):
    """The client went away."""


def record_of(scope: Scope) -> Record:
    """Return what is known of the request that is being served."""
    record: Record | None = scope.get(_RECORD)
    if record is None:
        client: tuple[str, int] | None = scope.get("client")
        record = scope[_RECORD] = Record(scope["method"], client[0] if client else None)
        for name, value in scope["headers"]:
            if name == b"x-request-id" and LOGGED_ID.fullmatch(text := value.decode("latin-1")):
                record.request_id = text
    return record


def header(headers: Headers, name: bytes) -> str | None:
    """Return a header that may stand there once; None if it does not. Twice is a ProtocolError."""
    found = [value for one, value in headers if one == name]
    if len(found) > 1:
        raise ProtocolError("a header stands there twice", code="malformed_headers")
    return found[0].decode("latin-1").strip() if found else None


def declared_size(headers: Headers) -> int | None:
    """Return the Content-Length of a request; None if it does not name exactly one."""
    values = [value for name, value in headers if name == b"content-length"]
    return int(values[0]) if len(values) == 1 and values[0].isdigit() and len(values[0]) < 19 else None


async def read_body(
    scope: Scope, receive: Receive, limit: int, small: int, make_room: Callable[[int], Awaitable[object]]
) -> bytes:
    """Return a request's body; raise LimitExceededError as soon as it is known to be too long.

    Before more than ``small`` bytes of it are kept, ``make_room`` is awaited with how many it may have. One that comes
    slower than ``Pace`` allows is an UnavailableError.
    """
    declared = declared_size(scope["headers"])
    if declared is not None and declared > limit:
        raise LimitExceededError(f"a request body may have at most {limit} bytes")
    record = record_of(scope)
    if declared is not None and declared > small:
        await make_room(declared)
    receive = Pace().of(receive)
    parts: list[bytes] = []
    while True:
        part, more = await next_part(receive)
        before = record.bytes_in
        record.bytes_in += len(part)
        if record.bytes_in > limit:
            raise LimitExceededError(f"a request body may have at most {limit} bytes")
        if declared is None and before <= small < record.bytes_in:
            await make_room(limit)
        if not more and not parts:
            return part
        parts.append(part)
        if not more:
            return b"".join(parts)


async def wait_until_gone(receive: Receive) -> None:
    """Wait until nobody waits for the answer any more; only after the body is read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Pace:
    """What a transfer may take: so long without moving, and over time as many bytes a second as a slow link has.

    Only the other side is hurried. Steps on a thread are waited for: a file that they open would stay open.
    """

    def __init__(self) -> None:
        self._credit = BODY_SECONDS

    def of(self, step: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """Return ``receive`` or ``send``, which raises UnavailableError when it takes too long."""

        async def hurried(*arguments: Any) -> T:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(self._credit):
                    result = await step(*arguments)
            except TimeoutError:
                pass
            else:
                message = cast(Message, arguments[0] if arguments else result)
                earned = len(message.get("body", b"")) / _SLOWEST - (time.monotonic() - begun)
                # What moved fast is no reserve to stand still on.
                self._credit = min(BODY_SECONDS, self._credit + earned)
                return result
            raise UnavailableError("the bytes did not travel in time", code="request_timeout")

        return hurried


def no_route() -> ProtocolError:
    """Return what is raised where a path leads nowhere."""
    return ProtocolError(
        "there is nothing at this path; the address that clients take ends before /v1", code="unknown_route"
    )


class MethodNotAllowedError(ProtocolError):
    """A path that takes the ``allowed`` methods was asked with another."""

    code = "method_not_allowed"

    def __init__(self, message: str, *allowed: str) -> None:
        super().__init__(message)
        self.allowed = ", ".join(allowed)


async def next_part(receive: Receive) -> tuple[bytes, bool]:
    """Return the next piece of a body and whether more is to come."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message.get("body", b""), message.get("more_body", False)


async def answer(
    send: Send, status: int, body: bytes, content_type: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send a whole answer, and wait until no more than KEPT of it is left; nothing in between may keep it."""
    fields = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    # In pieces, each of which waits until the one before is nearly gone; of a long answer the last one is empty.
    start = 0
    while start + KEPT < len(body):
        await send({"type": "http.response.body", "body": body[start : start + PIECE], "more_body": True})
        start += PIECE
    await send({"type": "http.response.body", "body": body[start:]})


async def refuse(scope: Scope, send: Send, error: AgentMemoryError, *, status: int | None = None) -> None:
    """Answer with the problem that stands for an error."""
    status, body = encode_error(error, status)
    record_of(scope).code = error.code
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, AuthenticationError):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", error.allowed.encode()))
    # A client's own pauses begin short and grow: only where there is too much to do does the server know better.
    pause = getattr(error, "retry_after", None) or (1 if error.code == "overloaded" else None)
    if pause is not None:
        headers.append((b"retry-after", str(math.ceil(pause)).encode()))
    if status == 408 or (declared_size(scope["headers"]) or 0) > DISCARDED:
        # The rest of the body would be read only to be thrown away.
        headers.append((b"connection", b"close"))
    await answer(send, status, body, PROBLEM_TYPE.encode(), headers)
