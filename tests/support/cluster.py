"""Two servers over one PostgreSQL and one place for large values, behind one address."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from .balancer import Balancer
from .server import ServerProcess


class Cluster:
    """``options`` are what a client has to be told besides ``url``."""

    def __init__(
        self, database: str, blobs: str, folder: Path, *, environment: dict[str, str] | None = None, **options: Any
    ) -> None:
        self.options = options
        self._command = ("--database", database, "--blobs", blobs)
        self._environment = environment or {}
        self._folder = folder
        self._stack = ExitStack()
        self.servers = [self.start() for _ in range(2)]
        self.balancer = self._stack.enter_context(Balancer([server.url for server in self.servers]))
        self.url = self.balancer.url

    def start(self, port: int = 0) -> ServerProcess:
        """Start one more server; it is stopped with the cluster."""
        server = ServerProcess(self._folder, *self._command, port=port, **self._environment)
        self._stack.callback(server.stop)
        return server

    def restart(self, number: int) -> None:
        """Start a server that has ended again, on its port."""
        self.servers[number] = self.start(int(self.servers[number].url.rpartition(":")[2]))

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
