"""What the contract runs against. A new backend is one more class here and one more name in ``BACKENDS``."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from anyio.from_thread import BlockingPortal

from agent_memory import AgentMemory, AsyncAgentMemory, AsyncRequestContext, RequestContext, SweepReport
from agent_memory.client import Client, Config, Opened
from agent_memory.flows import call
from agent_memory.maintenance import blob_folder, signing_key_file
from agent_memory.messages import Message
from agent_memory.service import StateService
from agent_memory.signing import Keyring
from agent_memory.storage.blobs import FileBlobs
from agent_memory.storage.sqlite import SqliteCatalog
from agent_memory.transports.local import LocalTransport

from .blocking import Blocking, unwrap
from .server import ROOT, ServerProcess, child_environment

BACKENDS: Final = ("embedded", "http")
FACES: Final = ("sync", "async")

KEYS: Final = ["a signing key of the tests", "an older signing key of the tests"]


class Store:
    """One store of one test. ``open`` gives clients with the face under test; they are closed when the test ends."""

    def __init__(self, url: str, application: str, face: str, portal: BlockingPortal) -> None:
        self.url = url
        self.application = application
        self.face = face
        self.portal = portal
        self._opened = ExitStack()

    def open(self, **options: Any) -> Any:
        """Open a client of this store; several may be open at once."""
        settings = {"application": self.application, "signing_keys": KEYS, **options}
        return self.faced(AgentMemory(self.url, **settings))

    def open_sync(self, **options: Any) -> AgentMemory:
        """Open a client with the sync face whichever is under test: somebody else, who acts in between."""
        face, self.face = self.face, "sync"
        try:
            return self.open(**options)
        finally:
            self.face = face

    def faced(self, memory: AgentMemory) -> Any:
        """Return a client with the face under test, closed at the end of the test."""
        if self.face == "sync":
            return self._opened.enter_context(memory)
        return self._opened.enter_context(Blocking(AsyncAgentMemory.of(memory._client), self.portal))

    def context(self) -> Any:
        """Return the current request's context, with the face under test."""
        if self.face == "sync":
            return RequestContext.get()
        return Blocking(AsyncRequestContext.get(), self.portal)

    def send(self, memory: Any, message: Message) -> Any:
        """Send one message of the protocol by a client of this store and return the reply."""
        client = unwrap(memory)._client
        return client.run(call(message)) if self.face == "sync" else self.portal.call(client.arun, call(message))

    def run_child(self, code: str, *pickled: Any) -> str:
        """Run code in a new process and return what it printed.

        There ``memory`` is a client of this store, and ``given`` the list of what was pickled for it.
        """
        prelude = (
            "import pickle, sys\n"
            "from agent_memory import AgentMemory\n"
            "given = pickle.load(sys.stdin.buffer)\n"
            "memory = AgentMemory.from_env()\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", prelude + code],
            cwd=ROOT,
            env=child_environment(
                AGENT_MEMORY_URL=self.url,
                AGENT_MEMORY_APPLICATION=self.application,
                AGENT_MEMORY_SIGNING_KEYS=",".join(KEYS),
            ),
            input=pickle.dumps([unwrap(one) for one in pickled]),
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"the child failed with {done.returncode}:\n{done.stderr.decode()}")
        return done.stdout.decode()

    def close(self) -> None:
        self._opened.close()


def embedded_store(face: str, portal: BlockingPortal, folder: Path) -> Store:
    """A file that each client opens for itself."""
    return Store(str(folder / "memory.db"), "contract", face, portal)


def http_store(face: str, portal: BlockingPortal, server: ServerProcess) -> Store:
    """An application of its own on the session's server."""
    return Store(server.url, f"t{uuid.uuid4().hex}", face, portal)


# -- stores whose clock the test turns -------------------------------------------------------------------------------


class Clock:
    """Microseconds since 1970 that stand still until they are told to move."""

    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.us

    def advance(self, *, seconds: float = 0, hours: float = 0, days: float = 0) -> None:
        self.us += round((seconds + hours * 3_600 + days * 86_400) * 1_000_000)


class TimedStore(Store):
    """A store with a clock that stands still; its service runs in this process, behind HTTP or not."""

    def __init__(self, face: str, portal: BlockingPortal, folder: Path) -> None:
        super().__init__(str(folder / "memory.db"), "contract", face, portal)
        self.clock = Clock()
        path = Path(self.url)
        self.key_file = signing_key_file(path)
        self.blobs = FileBlobs(blob_folder(path), durable=False)
        self.service = StateService(
            SqliteCatalog(path, durable=False, clock=self.clock), self.blobs, key_file=self.key_file
        )

    def open(self, **options: Any) -> Any:
        settings = {"application": self.application, "signing_keys": KEYS, **options}
        template = AgentMemory("memory://", **settings)
        template.close()
        config = template._client.config._replace(url=self.url, volatile_owner=None, open=self._opener())
        return self.faced(AgentMemory.of(Client(config)))

    def _opener(self) -> Callable[[Config], Opened]:
        return lambda config: Opened(_Shared(self.service), Keyring(config.signing_keys, self.key_file))

    def sweep(self) -> SweepReport:
        """Sweep, as the store does by itself from time to time."""
        return self.service.sweep()

    def files(self) -> list[str]:
        """Return the names of the files that hold large values."""
        return sorted(file.name for file in self.blobs.folder.rglob("*") if file.is_file())

    def close(self) -> None:
        super().close()
        self.service.close()


class _Shared(LocalTransport):
    """A transport to a service that outlives it."""

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class TimedHttpStore(TimedStore):
    """The same service behind a server on a thread of this process: a clock cannot be handed to another process."""

    def __init__(self, face: str, portal: BlockingPortal, folder: Path, server: ThreadServer) -> None:
        super().__init__(face, portal, folder)
        server.serve(self.service)
        self.url = server.url

    def open(self, **options: Any) -> Any:
        return Store.open(self, **options)


class ThreadServer:
    """Uvicorn on a thread, with our application for one service after another."""

    def __init__(self) -> None:
        import uvicorn

        # Without the lifespan it does not sweep: that is the test's to do.
        config = uvicorn.Config(
            self._answer,
            host="127.0.0.1",
            port=0,
            log_level="warning",
            access_log=False,
            lifespan="off",
            # A bound method is taken for an application of the old kind.
            interface="asgi3",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def serve(self, service: StateService) -> None:
        """Answer from this service from now on."""
        from agent_memory.server.app import Settings, create_app
        from agent_memory.server.auth import LoopbackGate
        from agent_memory.server.log import RequestLog

        self._app = create_app(service, Settings(LoopbackGate(), RequestLog(io.StringIO())))

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
