"""A load balancer: one address in front of several servers, which answer the requests in turn."""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Self, TypeAlias
from urllib.parse import urlsplit

_PIECE: Final = 256 * 1024
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

_Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Balancer:
    """Sends every request to the next of the servers, whichever connection it came by.

    A server that takes no connections is passed over. When one breaks off an answer, so does the balancer. With ``tls``
    it is reached by https.
    """

    def __init__(self, urls: Sequence[str], tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.servers = [(str(parts.hostname), int(parts.port or 80)) for parts in map(urlsplit, urls)]
        self.answered = [0] * len(self.servers)
        self._turns = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), daemon=True)
        self._thread.start()
        if not self._ready.wait(20):
            raise RuntimeError("the balancer did not start")

    async def _run(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE, ssl=self._tls)
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        upstream: dict[int, _Streams] = {}
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                number, theirs = await self._server(upstream)
                theirs[1].write(head)
                await _pass_on(reader, theirs[1], head)
                head = await theirs[0].readuntil(b"\r\n\r\n")
                writer.write(head)
                await _pass_on(theirs[0], writer, head)
                self.answered[number] += 1
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            for one in (writer, *(streams[1] for streams in upstream.values())):
                one.close()

    async def _server(self, upstream: dict[int, _Streams]) -> tuple[int, _Streams]:
        failure: OSError | None = None
        for _ in self.servers:
            number = next(self._turns) % len(self.servers)
            found = upstream.get(number)
            if found is not None and not found[0].at_eof():
                return number, found
            if found is not None:
                upstream.pop(number)[1].close()
            try:
                upstream[number] = await asyncio.open_connection(*self.servers[number], limit=_PIECE)
            except OSError as error:
                failure = error
            else:
                return number, upstream[number]
        assert failure is not None
        raise failure

    def stop(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    """Pass on the body that a head announces."""
    found = _LENGTH.search(head)
    left = int(found[1]) if found else 0
    while left:
        piece = await reader.read(min(left, _PIECE))
        if not piece:
            raise ConnectionResetError
        left -= len(piece)
        writer.write(piece)
        await writer.drain()
