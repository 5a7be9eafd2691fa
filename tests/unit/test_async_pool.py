"""A call that is cancelled ends where httpcore takes it well, and nowhere else."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest

from agent_memory.transports import cancellation
from agent_memory.transports.async_pool import _Call


class Connection:
    """Stands for httpcore: goes through its steps, and waits for ``go_on`` at one of them."""

    def __init__(self, halt: str) -> None:
        self.places = asyncio.Semaphore(1)
        self.transport = self
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self.log: list[str] = []
        self._halt = halt

    async def handle_async_request(self, request: httpx.Request) -> Any:
        for step in ("connection.connect_tcp.complete", "http11.send_request_headers.started"):
            await request.extensions["trace"](step, None)
            await self._at(step)
        return SimpleNamespace(status_code=200, headers={}, stream=self._body(), aclose=lambda: self._at("given back"))

    async def _body(self) -> AsyncIterator[bytes]:
        yield b""

    async def _at(self, step: str) -> None:
        self.log.append(step)
        if step == self._halt:
            self.reached.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.log.append("cancelled")
                raise


MADE, SENT, GIVEN_BACK = "connection.connect_tcp.complete", "http11.send_request_headers.started", "given back"


@pytest.mark.parametrize(
    ("halt", "log"),
    [
        (MADE, [MADE]),
        (SENT, [MADE, SENT, "cancelled"]),
        (GIVEN_BACK, [MADE, SENT, GIVEN_BACK]),
    ],
)
def test_a_call_is_cancelled_where_its_connection_is_closed_then_and_not_left_as_taken(
    halt: str, log: list[str]
) -> None:
    async def run() -> list[str]:
        connection: Any = Connection(halt)
        exchange: Any = SimpleNamespace(begin=lambda *_: None, feed=lambda _: None)
        call = _Call(connection, httpx.Request("GET", "http://any"), exchange)
        ending = asyncio.create_task(call.end(time.monotonic() + 30))
        await connection.reached.wait()
        ending.cancel()
        asyncio.get_running_loop().call_later(0.2, connection.go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await ending
        return connection.log

    assert asyncio.run(run()) == log


def test_what_is_not_abandoned_is_waited_for_and_not_asked_for_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    wait = asyncio.wait

    def counted(calls: Any) -> Any:
        waits.append(calls)
        return wait(calls)

    async def run() -> None:
        call = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, call.set_result, None)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await cancellation.end_of(call)
        assert call.done()

    monkeypatch.setattr(cancellation, "asyncio", SimpleNamespace(wait=counted, CancelledError=asyncio.CancelledError))
    asyncio.run(run())
    assert len(waits) <= 2


def test_the_error_of_what_was_waited_for_to_its_end_is_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        call = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(call.set_exception, ValueError())
        await cancellation.end_of(call)

    asyncio.run(run())
    gc.collect()
    assert "never retrieved" not in caplog.text
