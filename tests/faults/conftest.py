"""Child processes, and servers in them that can be killed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.processes import Child, Report
from tests.support.s3_stand import Stand
from tests.support.stores import ThreadServer
from tests.support.strict_s3 import StrictS3

Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(function, *args)`` forks a process that runs ``function(report, *args)`` until the test ends."""
    children: list[Child] = []

    def start_child(function: Callable[..., object], *args: Any) -> Child:
        child = Child(function, *args)
        children.append(child)
        return child

    yield start_child
    for child in children:
        child.close()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where a store in a file lies, or will."""
    return tmp_path / "store.db"


class Server(NamedTuple):
    """A server in a process of its own."""

    url: str
    process: Child


def serve(report: Report, database: Path, log: Path) -> None:
    """Run ``agent-memory serve``; what it prints goes to ``log``."""
    from agent_memory.cli import main

    with open(log, "a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        report("ready")
        main(["serve", "--data", str(database), "--port", "0"])


@pytest.fixture
def start_server(start: Start, tmp_path: Path) -> Callable[[Path], Server]:
    """``start_server(database)`` serves a store on a free port of this machine."""
    # Imported before the fork: the child has no second to spend on it.
    import agent_memory.server.run  # noqa: F401

    count = 0

    def start_one(database: Path) -> Server:
        nonlocal count
        count += 1
        log = tmp_path / f"server{count}.log"
        child = start(serve, database, log)
        child.report()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = re.search(r"listening on (http://\S+)\n", log.read_text()) if log.exists() else None
            if found:
                return Server(found.group(1), child)
            time.sleep(0.005)
        raise AssertionError(f"the server did not start: {log.read_text()}")

    return start_one


@pytest.fixture
def server(start_server: Callable[[Path], Server], database: Path) -> Server:
    """A server of ``database`` alone, in the place of the one that other tests share."""
    return start_server(database)


# -- an object store with faults ---------------------------------------------------------------------------------------


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictS3]:
    """An object store of the test's own, with an environment that leads to it."""
    with StrictS3() as s3:
        for name, text in s3.environment().items():
            monkeypatch.setenv(name, text)
        yield s3


@pytest.fixture
def stand(s3: StrictS3, thread_server: ThreadServer, tmp_path: Path) -> Iterator[Stand]:
    """A server and embedded stores whose large values lie there."""
    stand = Stand(s3, thread_server, tmp_path)
    yield stand
    stand.close()
