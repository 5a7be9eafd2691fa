"""Waiting for what must not be abandoned when the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anyio


async def end_of(call: asyncio.Future[Any]) -> None:
    """Wait until a call is over, however often the waiting task is cancelled; its error is nobody's any more."""
    # anyio would go on cancelling without its own shield, which does not hold off asyncio's Task.cancel().
    with anyio.CancelScope(shield=True):
        while not call.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([call])
    _ = call.cancelled() or call.exception()
