"""What all tenants of a server share, so that none of them takes all of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Generator
from typing import NamedTuple

from ..errors import UnavailableError


class _Waiting(NamedTuple):
    tenant: str
    places: int
    granted: asyncio.Future[None]


class Shares:
    """So many places, of which one tenant may have twice as many as it leaves free: two thirds, if it is alone.

    However many tenants want as much as they can get, some places stay free for the next one. Whoever wants several
    gets them all or none, as if it took one after the other. For one event loop.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._taken: Counter[str] = Counter()
        self._waiting: deque[_Waiting] = deque()

    @contextlib.contextmanager
    def place(self, tenant: str, what: str) -> Generator[None]:
        """Take a place for the block; raise UnavailableError, which calls places ``what``, if there is none."""
        self._take_or_refuse(tenant, what, 1)
        try:
            yield
        finally:
            self._release(tenant, 1)

    @contextlib.asynccontextmanager
    async def turn(
        self, tenant: str, what: str, seconds: float, count: int = 1
    ) -> AsyncGenerator[Callable[[int], None]]:
        """Take places for the block, as ``place`` does, and wait for them so long.

        Gives a function that changes how many they are; more of them are there at once or refused.
        """
        if self._may(tenant, count):
            self._take(tenant, count)
        else:
            await self._wait(tenant, what, seconds, count)

        def change(wanted: int) -> None:
            nonlocal count
            if wanted > count:
                self._take_or_refuse(tenant, what, wanted - count)
            else:
                self._release(tenant, count - wanted)
            count = wanted

        try:
            yield change
        finally:
            self._release(tenant, count)

    async def _wait(self, tenant: str, what: str, seconds: float, count: int) -> None:
        waiting = _Waiting(tenant, count, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await asyncio.wait([waiting.granted], timeout=seconds)
        except asyncio.CancelledError:
            if waiting.granted.done():
                self._release(tenant, count)
            raise
        finally:
            if not waiting.granted.done():
                self._waiting.remove(waiting)
        if not waiting.granted.done():
            raise _overloaded(what)

    def _may(self, tenant: str, count: int) -> bool:
        return self._taken[tenant] + count - 1 < 2 * (self._free - count + 1)

    def _take_or_refuse(self, tenant: str, what: str, count: int) -> None:
        if not self._may(tenant, count):
            raise _overloaded(what)
        self._take(tenant, count)

    def _take(self, tenant: str, count: int) -> None:
        self._free -= count
        self._taken[tenant] += count

    def _release(self, tenant: str, count: int) -> None:
        self._free += count
        self._taken[tenant] -= count
        if not self._taken[tenant]:
            del self._taken[tenant]
        # Who has least comes first: behind all that others wait for, a tenant would wait as long as they do.
        for waiting in sorted(self._waiting, key=lambda one: self._taken[one.tenant]):
            if self._may(waiting.tenant, waiting.places):
                self._waiting.remove(waiting)
                self._take(waiting.tenant, waiting.places)
                waiting.granted.set_result(None)


def _overloaded(what: str) -> UnavailableError:
    return UnavailableError(f"too many {what} at once", code="overloaded")
