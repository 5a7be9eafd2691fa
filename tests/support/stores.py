"""What the contract runs against. A new backend is a name in ``BACKENDS`` and a line in two fixtures."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from anyio.from_thread import BlockingPortal

from agent_memory import AgentMemory, AsyncAgentMemory, AsyncRequestContext, RequestContext, SweepReport
from agent_memory.client import Client, Config, Opened
from agent_memory.flows import call
from agent_memory.maintenance import blob_folder, signing_key_file
from agent_memory.messages import Message
from agent_memory.service import StateService
from agent_memory.signing import Keyring
from agent_memory.storage.blobs import BlobStore, FileBlobs
from agent_memory.storage.catalog import Catalog
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from agent_memory.transports.local import LocalTransport

from .blocking import Blocking, unwrap
from .server import ROOT, child_environment
from .strict_s3 import BUCKET, StrictS3

BACKENDS: Final = (
    "embedded-sync", "embedded-async", "http-sync", "http-async",
    # PostgreSQL has large values in files or in an object store, and is used directly or through two servers. Each of
    # these goes with one face: what the faces do not share is a few lines a method, which know nothing of what is
    # behind them, and two of three backends meet each face and each kind of blob store.
    "postgres_files-sync", "postgres_s3-async", "cluster_s3-sync",
)  # fmt: skip
SOAK_BACKENDS: Final = ("cluster_files-async", "cluster_s3-async", "postgres_files-async", "postgres_s3-sync")
"""The other combinations, for which only a long run has time."""

ONE_PER_CATALOG: Final = ("embedded-sync", "postgres_files-sync", "cluster_s3-sync")
"""For tests of many examples, of what only the catalog decides and the wire may spoil."""

BUCKET_URL: Final = f"s3://{BUCKET}/prefix"

KEYS: Final = ["a signing key of the tests", "an older signing key of the tests"]


class Store:
    """One store of one test. ``open`` gives clients with the face under test; they are closed when the test ends."""

    def __init__(self, url: str, application: str, face: str, portal: BlockingPortal, **options: Any) -> None:
        self.url = url
        self.application = application
        self.face = face
        self.portal = portal
        self.options = options
        self._opened = ExitStack()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead to this store."""
        found = {"URL": self.url, "APPLICATION": self.application, "SIGNING_KEYS": ",".join(KEYS)}
        if "blobs" in self.options:
            found["BLOBS"] = self.options["blobs"]
        return {f"AGENT_MEMORY_{name}": text for name, text in found.items()}

    def open(self, **options: Any) -> Any:
        """Open a client of this store; several may be open at once."""
        settings = {"application": self.application, "signing_keys": KEYS, **self.options, **options}
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
            "options, given = pickle.load(sys.stdin.buffer)\n"
            "memory = AgentMemory.from_env(**options)\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", prelude + code],
            cwd=ROOT,
            env=child_environment(**self.environment),
            input=pickle.dumps((self.options, [unwrap(one) for one in pickled])),
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


def shared_store(url: str, face: str, portal: BlockingPortal, **options: Any) -> Store:
    """An application of its own in a store that serves the whole session."""
    return Store(url, f"t{uuid.uuid4().hex}", face, portal, **options)


# -- stores whose clock the test turns -------------------------------------------------------------------------------


class Clock:
    """Microseconds since 1970 that stand still until they are told to move."""

    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.us

    def advance(self, *, seconds: float = 0, hours: float = 0, days: float = 0) -> None:
        self.us += round((seconds + hours * 3_600 + days * 86_400) * 1_000_000)


Harm: TypeAlias = Callable[[bytes], bytes | None]


class Folder(NamedTuple):
    """Where large values lie in files."""

    path: Path

    def blobs(self) -> BlobStore:
        return FileBlobs(self.path, durable=False)

    def names(self) -> list[str]:
        return sorted(str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file())

    def harm(self, name: str, change: Harm) -> None:
        """Store what ``change`` makes of a file, without the store's knowledge."""
        file = self.path / name
        harmed = change(file.read_bytes())
        file.unlink() if harmed is None else file.write_bytes(harmed)


class Bucket(NamedTuple):
    """Where large values are objects. The environment leads to ``s3``."""

    s3: StrictS3

    def blobs(self) -> BlobStore:
        from agent_memory.storage.object_blobs import ObjectBlobs

        return ObjectBlobs(BUCKET_URL)

    def names(self) -> list[str]:
        return sorted(self.s3.objects)

    def harm(self, name: str, change: Harm) -> None:
        """Store what ``change`` makes of an object; its etag stays, as after a fault of a disk."""
        found = self.s3.objects.pop(name)
        harmed = change(found.data)
        if harmed is not None:
            self.s3.objects[name] = found._replace(data=harmed)


class Place(NamedTuple):
    """What a timed store is made of."""

    catalog: Callable[[Clock], Catalog]
    large: Folder | Bucket
    key_file: Path | None = None


def file_place(folder: Path) -> Place:
    """A database in a file, and a folder beside it."""
    path = folder / "memory.db"
    return Place(
        lambda clock: SqliteCatalog(path, durable=False, clock=clock),
        Folder(blob_folder(path)),
        signing_key_file(path),
    )


def postgres_place(address: str, large: Folder | Bucket) -> Place:
    """A database in PostgreSQL."""
    from agent_memory.storage.postgres.catalog import PostgresCatalog

    return Place(lambda clock: PostgresCatalog(address, connections=4, clock=clock), large)


class TimedStore(Store):
    """A store with a clock that stands still; its services run in this process, behind HTTP or not."""

    def __init__(
        self, face: str, portal: BlockingPortal, place: Place, url: str = "", *, services: int = 1, **options: Any
    ) -> None:
        super().__init__(url, "contract", face, portal, **options)
        self.clock = Clock()
        self.key_file = place.key_file
        self.large = place.large
        self.services = [
            StateService(place.catalog(self.clock), place.large.blobs(), key_file=place.key_file)
            for _ in range(services)
        ]
        self.service = self.services[0]

    def open(self, **options: Any) -> Any:
        settings = {"application": self.application, "signing_keys": KEYS, **options}
        template = AgentMemory("memory://", **settings)
        template.close()
        config = template._client.config._replace(volatile_owner=None, open=self._opener())
        return self.faced(AgentMemory.of(Client(config)))

    def _opener(self) -> Callable[[Config], Opened]:
        return lambda config: Opened(_Shared(self.service), Keyring(config.signing_keys, self.key_file))

    def sweep(self) -> SweepReport:
        """Sweep, as the store does by itself from time to time: by one of its services, then by another."""
        self.services.append(self.services.pop(0))
        return self.services[0].sweep()

    def files(self) -> list[str]:
        """Return the names of the files or objects that hold large values."""
        return self.large.names()

    def close(self) -> None:
        super().close()
        for service in self.services:
            service.close()


class _Shared(LocalTransport):
    """A transport to a service that outlives it."""

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class TimedHttpStore(TimedStore):
    """Such services behind servers on threads of this process: a clock cannot be handed to another process."""

    def __init__(
        self,
        face: str,
        portal: BlockingPortal,
        place: Place,
        url: str,
        servers: Sequence[ThreadServer],
        **options: Any,
    ) -> None:
        super().__init__(face, portal, place, url, services=len(servers), **options)
        for server, service in zip(servers, self.services, strict=True):
            server.serve(service)

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
            ws="none",
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
