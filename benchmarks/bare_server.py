"""The peer of the HTTP benchmark: one route that does nothing, one that does a single durable upsert."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.embedded import upsert, upsert_connection


def main(path: str) -> None:
    connection = upsert_connection(Path(path))

    async def nothing(request: Request) -> Response:
        await request.body()
        return Response(b"{}", media_type="application/json")

    def upsert_body(body: bytes) -> None:
        upsert(connection, "user/1", body)

    async def write(request: Request) -> Response:
        # On the event loop: no thread hop, which is the fastest that a server can be.
        upsert_body(await request.body())
        return Response(b"{}", media_type="application/json")

    app = Starlette(routes=[Route("/nothing", nothing, methods=["POST"]), Route("/upsert", write, methods=["POST"])])
    # asyncio switches Nagle's algorithm off only where the protocol is named.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
