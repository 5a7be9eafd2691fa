"""A server as users start it: its own process, on loopback, on a port that the system picks."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
WARNINGS_ARE_ERRORS: Final = (
    "-Werror",
    # Python 3.14 wants inspect to be asked; LangGraph and what LangChain imports ask asyncio.
    *(
        f"-Wignore:'asyncio.iscoroutinefunction' is deprecated:DeprecationWarning:{module}"
        for module in ("langgraph.store.base.embed", "langsmith._internal._beta_decorator")
    ),
)
"""Options of an interpreter."""

_START_SECONDS: Final = 20.0
_ADDRESS: Final = re.compile(r"http://[\w.\[\]:-]+:\d+")


def child_environment(**extra: str) -> dict[str, str]:
    """Return the environment of a child process: this one's, without our own variables, and the project importable."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("AGENT_MEMORY_")}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, **extra}


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class ServerProcess:
    """``agent-memory serve`` on a store in a folder of its own. Stop it, or use it as a context manager.

    Options that name a ``--database`` stand in for that folder.
    """

    def __init__(self, folder: Path, *options: str, port: int = 0, **environment: str) -> None:
        self.data = folder / "server.db"
        store = () if "--database" in options else ("--data", str(self.data))
        self._log: list[str] = []
        self._ready = threading.Event()
        self.url = ""
        command = [
            sys.executable, "-m", "agent_memory.cli", "serve",
            *store, "--host", "127.0.0.1", "--port", str(port), *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=child_environment(PYTHONUNBUFFERED="1", **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(_START_SECONDS) or not self.url:
            self.stop()
            raise RuntimeError("the server did not start:\n" + self.log)

    @property
    def log(self) -> str:
        """What the server has printed so far."""
        return "".join(self._log)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._log.append(line)
                found = _ADDRESS.search(line)
                if found and not self.url:
                    self.url = found[0]
                    self._ready.set()
        self._ready.set()

    def stop(self) -> int:
        """Ask the server to stop, by its process id, and return its exit status."""
        self.process.terminate()
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join(5)
        return status

    def kill(self) -> None:
        """End the server at once, as ``kill -9`` does."""
        self.process.kill()
        self.process.wait()
        self._reader.join(5)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
