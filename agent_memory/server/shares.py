"""What all tenants of a server share, so that none of them takes all of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Generator

from ..errors import UnavailableError


class Shares:
    """So many places, of which one tenant may have twice as many as it leaves free: two thirds, if it is alone.

    However many tenants want as much as they can get, some places stay free for the next one. For one event loop.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._taken: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @contextlib.contextmanager
    def place(self, tenant: str, what: str) -> Generator[None]:
        """Take a place for the block; raise UnavailableError, which calls places ``what``, if there is none."""
        if not self._may(tenant):
            raise _overloaded(what)
        self._take(tenant)
        try:
            yield
        finally:
            self._release(tenant)

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, what: str, seconds: float) -> AsyncGenerator[None]:
        """Take a place for the block, as ``place`` does, and wait for one so long."""
        if self._may(tenant):
            self._take(tenant)
        else:
            await self._wait(tenant, what, seconds)
        try:
            yield
        finally:
            self._release(tenant)

    async def _wait(self, tenant: str, what: str, seconds: float) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tenant, granted))
        try:
            await asyncio.wait([granted], timeout=seconds)
        except asyncio.CancelledError:
            if granted.done():
                self._release(tenant)
            raise
        finally:
            if not granted.done():
                self._waiting.remove((tenant, granted))
        if not granted.done():
            raise _overloaded(what)

    def _may(self, tenant: str) -> bool:
        return self._taken[tenant] < 2 * self._free

    def _take(self, tenant: str) -> None:
        self._free -= 1
        self._taken[tenant] += 1

    def _release(self, tenant: str) -> None:
        self._free += 1
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
        # Who has least comes first: behind all that others wait for, a tenant would wait as long as they do.
        for one in sorted(self._waiting, key=lambda one: self._taken[one[0]]):
            waiting, granted = one
            if self._may(waiting):
                self._waiting.remove(one)
                self._take(waiting)
                granted.set_result(None)


def _overloaded(what: str) -> UnavailableError:
    return UnavailableError(f"too many {what} at once", code="overloaded", retry_after=1)
