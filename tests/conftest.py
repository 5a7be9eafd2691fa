"""Every backend behind one fixture: ``memory`` is a client of it, ``store`` opens more of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings

from tests.support.server import ServerProcess
from tests.support.stores import (
    BACKENDS,
    FACES,
    Store,
    ThreadServer,
    TimedHttpStore,
    TimedStore,
    embedded_store,
    http_store,
)

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


@pytest.fixture(params=[f"{backend}-{face}" for backend in BACKENDS for face in FACES])
def store(request: pytest.FixtureRequest, tmp_path: Path, portal: BlockingPortal) -> Iterator[Store]:
    """An empty store of every backend, with each face."""
    backend, face = request.param.split("-")
    if backend == "embedded":
        store = embedded_store(face, portal, tmp_path)
    else:
        store = http_store(face, portal, request.getfixturevalue("server"))
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


@pytest.fixture(params=[f"{backend}-{face}" for backend in BACKENDS for face in FACES])
def timed(request: pytest.FixtureRequest, tmp_path: Path, portal: BlockingPortal) -> Iterator[TimedStore]:
    """An empty store of every backend whose clock and sweeping are in the test's hands."""
    backend, face = request.param.split("-")
    if backend == "embedded":
        store = TimedStore(face, portal, tmp_path)
    else:
        store = TimedHttpStore(face, portal, tmp_path, request.getfixturevalue("thread_server"))
    yield store
    store.close()
