"""Transports that lose, record and alter messages. They stand between a client and its real transport."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from agent_memory.drivers import Transport
from agent_memory.errors import TimedOutError, UnavailableError
from agent_memory.messages import Message

from .blocking import unwrap

When: TypeAlias = Literal["request", "reply"]


class Between:
    """Hands every message on. ``before`` and ``after`` may raise; ``after`` may return another reply."""

    loses_replies: bool = True

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.sent: list[Message] = []

    def before(self, message: Message) -> None:
        self.sent.append(message)

    def after(self, message: Message, reply: Any) -> Any:
        return reply

    def send(self, message: Message, deadline: float) -> Any:
        self.before(message)
        return self.after(message, self.inner.send(message, deadline))

    async def asend(self, message: Message, deadline: float) -> Any:
        self.before(message)
        return self.after(message, await self.inner.asend(message, deadline))

    def close(self) -> None:
        self.inner.close()

    async def aclose(self) -> None:
        await self.inner.aclose()


class Lossy(Between):
    """Loses messages of one kind: the first ``times`` of them, before the store acts or after it.

    Without ``times`` it loses them all, the first of them at the end of the caller's time: nothing is repeated then.
    """

    def __init__(self, inner: Transport, kind: type, when: When, times: int | None = 1) -> None:
        super().__init__(inner)
        self._kind = kind
        self._when = when
        self._left = times
        self._lock = threading.Lock()
        self.lost = 0

    def before(self, message: Message) -> None:
        super().before(message)
        if self._when == "request":
            self._lose(message)

    def after(self, message: Message, reply: Any) -> Any:
        if self._when == "reply":
            self._lose(message)
        return reply

    def _lose(self, message: Message) -> None:
        with self._lock:
            if type(message) is not self._kind or self._left == 0:
                return
            self.lost += 1
            if self._left is None:
                raise TimedOutError(f"the {self._when} was lost, and there is no time left")
            self._left -= 1
        raise UnavailableError(f"the {self._when} was lost")


class Meddling(Between):
    """Calls ``act`` with every message before it is handed on, and ``alter`` with every reply."""

    def __init__(
        self,
        inner: Transport,
        *,
        act: Callable[[Message], None] = lambda _: None,
        alter: Callable[[Message, Any], Any] = lambda _, reply: reply,
    ) -> None:
        super().__init__(inner)
        self._act = act
        self._alter = alter

    def before(self, message: Message) -> None:
        super().before(message)
        self._act(message)

    def after(self, message: Message, reply: Any) -> Any:
        return self._alter(message, reply)


def put_between(memory: Any, make: Callable[[Transport], Any]) -> Any:
    """Put a transport between an open memory and its own; return it."""
    client = unwrap(memory)._client
    client._transport = make(client.transport())
    return client._transport
