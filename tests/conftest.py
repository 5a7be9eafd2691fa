"""Every backend behind one fixture: ``memory`` is a client of it, ``store`` opens more of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings

from tests.support.balancer import Balancer
from tests.support.cluster import Cluster
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from tests.support.stores import (
    BACKENDS,
    BUCKET_URL,
    ONE_PER_CATALOG,
    SOAK_BACKENDS,
    Bucket,
    Folder,
    Store,
    ThreadServer,
    TimedHttpStore,
    TimedStore,
    embedded_store,
    file_place,
    postgres_place,
    shared_store,
)
from tests.support.strict_s3 import StrictS3

settings.register_profile(
    "tests",
    deadline=None,
    database=None,
    derandomize=bool(os.environ.get("CI")),
    max_examples=50,
    # The fixtures are made to be used by many examples: each takes keys of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tests")


# What a script starts in the background ignores Ctrl-C, and so would each process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the fault and model tests for longer")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Say whether there is time for long runs."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """The event loop, on a thread of its own, that everything async runs on."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One ``agent-memory serve`` for the whole session; tests are told apart by their application."""
    with ServerProcess(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole session."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_database(postgres: PostgresServer) -> str:
    """A database for the whole session; tests are told apart by their application."""
    return postgres.database()


@pytest.fixture(scope="session")
def object_store() -> Iterator[StrictS3]:
    """One object store for the whole session."""
    with StrictS3() as object_store:
        yield object_store


@pytest.fixture
def bucket(object_store: StrictS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictS3]:
    """That object store, empty, with an environment that leads to it."""
    for name, text in object_store.environment().items():
        monkeypatch.setenv(name, text)
    # Clusters that outlive a test write here too.
    object_store.objects.clear()
    yield object_store
    object_store.objects.clear()
    object_store.seen.clear()


@pytest.fixture(scope="session")
def cluster_files(shared_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two servers that share a folder for large values."""
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster(shared_database, str(folder / "blobs"), folder) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_s3(
    shared_database: str, object_store: StrictS3, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two servers whose clients go to the object store for large values."""
    with Cluster(
        shared_database,
        BUCKET_URL,
        tmp_path_factory.mktemp("cluster"),
        environment=object_store.environment(),
        blob_hosts=[object_store.host],
    ) as cluster:
        yield cluster


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test every backend; one of many examples, whose keys only a catalog can spoil, one of each catalog."""
    backends = BACKENDS
    if hasattr(metafunc.function, "hypothesis"):
        backends = ONE_PER_CATALOG
    elif metafunc.config.getoption("--soak"):
        backends += SOAK_BACKENDS
    chosen = [name for mark in metafunc.definition.iter_markers("parametrize") for name in mark.args[:1]]
    for fixture in ("store", "timed"):
        if fixture in metafunc.fixturenames and fixture not in chosen:
            metafunc.parametrize(fixture, backends, indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, portal: BlockingPortal) -> Iterator[Store]:
    """An empty store of every backend."""
    use = request.getfixturevalue
    backend, face = request.param.split("-")
    if backend == "embedded":
        store = embedded_store(face, portal, tmp_path)
    elif backend == "http":
        store = shared_store(use("server").url, face, portal)
    elif backend == "postgres_files":
        store = shared_store(use("shared_database"), face, portal, blobs=str(tmp_path / "blobs"))
    elif backend == "postgres_s3":
        use("bucket")
        store = shared_store(use("shared_database"), face, portal, blobs=BUCKET_URL)
    else:
        if backend == "cluster_s3":
            use("bucket")
        cluster: Cluster = use(backend)
        store = shared_store(cluster.url, face, portal, **cluster.options)
    yield store
    store.close()


@pytest.fixture
def memory(store: Store) -> Any:
    """A client of an empty store: an AgentMemory, or an AsyncAgentMemory that blocks."""
    return store.open()


@pytest.fixture(scope="session")
def thread_server() -> Iterator[ThreadServer]:
    """A server in this process, for stores whose clock the test turns."""
    server = ThreadServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def second_server() -> Iterator[ThreadServer]:
    """Another server in this process."""
    server = ThreadServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def balancer(thread_server: ThreadServer, second_server: ThreadServer) -> Iterator[Balancer]:
    """One address for the two servers of this process."""
    with Balancer([thread_server.url, second_server.url]) as balancer:
        yield balancer


@pytest.fixture(scope="session")
def timed_database(postgres: PostgresServer) -> str:
    """A database for one test after the other."""
    return postgres.database()


@pytest.fixture
def own_database(postgres: PostgresServer, timed_database: str) -> Iterator[str]:
    """An empty database that no other test uses at the time: a sweep takes what all applications have left."""
    yield timed_database
    postgres.clear(timed_database)


@pytest.fixture
def timed(request: pytest.FixtureRequest, tmp_path: Path, portal: BlockingPortal) -> Iterator[TimedStore]:
    """An empty store of every backend whose clock and sweeping are in the test's hands."""
    use = request.getfixturevalue
    backend, face = request.param.split("-")
    if backend in ("embedded", "http"):
        place = file_place(tmp_path)
    else:
        large = Bucket(use("bucket")) if backend.endswith("_s3") else Folder(tmp_path / "blobs")
        place = postgres_place(use("own_database"), large)
    if backend.startswith("cluster"):
        options = {"blob_hosts": [use("bucket").host]} if backend == "cluster_s3" else {}
        servers = [use("thread_server"), use("second_server")]
        store: TimedStore = TimedHttpStore(face, portal, place, use("balancer").url, servers, **options)
    elif backend == "http":
        server = use("thread_server")
        store = TimedHttpStore(face, portal, place, server.url, [server])
    else:
        store = TimedStore(face, portal, place)
    yield store
    store.close()
