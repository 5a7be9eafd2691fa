"""Threads and files of which there are no more: that is said, and all goes on by itself when there are."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_memory import AgentMemory, AsyncAgentMemory, UnavailableError
from tests.faults.processes import Child, Report
from tests.support.server import ServerProcess

Start = Callable[..., Child]

NO_THREADS = """
import os, threading

really_start = threading.Thread.start

def start(thread):
    if os.path.exists(os.environ["NO_THREADS"]):
        raise RuntimeError("can't start new thread")
    really_start(thread)

threading.Thread.start = start
"""


def test_a_server_that_gets_no_thread_is_overloaded_until_it_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_THREADS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    none = tmp_path / "none"
    with (
        ServerProcess(tmp_path, NO_THREADS=str(none)) as server,
        AgentMemory(server.url, application="faults", timeout=1) as memory,
    ):
        none.touch()
        for write in (1, "x" * 300_000):
            with pytest.raises(UnavailableError) as caught:
                memory.app_state.set("k", write)
            assert caught.value.code == "overloaded"
        answer = httpx.get(f"{server.url}/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        none.unlink()
        assert memory.app_state.get("k") is None
        assert memory.app_state.set("k", "x" * 300_000).version == 1, "nothing that failed was carried out later"
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert '"error"' not in server.log


@contextmanager
def no_files() -> Iterator[None]:
    """Leave this process, which is a test's child, no file and no connection to open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as held:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with suppress(OSError):
            while True:
                held.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        yield


def write_without_files(report: Report, address: str, face: str) -> None:
    async def main() -> None:
        async with AsyncAgentMemory(address, application="faults", timeout=1) as memory:

            async def write() -> int:
                state = memory.app_state if face == "async" else memory.sync.app_state
                entry: Any = state.set("k", "x" * 300_000)
                return (await entry if face == "async" else entry).version

            with no_files(), pytest.raises(UnavailableError) as caught:
                await write()
            report(caught.value.code, str(caught.value))
            assert await write() == 1

    asyncio.run(main())


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize("where", ["a file", "a server"])
def test_a_process_without_files_is_told_so_and_may_try_again(
    tmp_path: Path, start: Start, where: str, face: str
) -> None:
    with ExitStack() as stack:
        server = None if where == "a file" else stack.enter_context(ServerProcess(tmp_path))
        child = start(write_without_files, server.url if server else str(tmp_path / "store.db"), face)
        code, text = child.report()
        assert code == "overloaded"
        assert "oo many open files" in text
        child.join()


def test_a_server_without_files_for_connections_does_not_flood_its_log(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, ExitStack() as stack:
        one = stack.enter_context(httpx.Client(trust_env=False))
        assert one.get(f"{server.url}/healthz").status_code == 200
        descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (descriptors, 4096))
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{server.url}/healthz", timeout=3)
        said = [line for line in server.log.splitlines() if "out of system resource" in line]
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        assert 1 <= len(said) <= 6
        assert json.loads(said[0])["event"] == "server"
        assert httpx.get(f"{server.url}/healthz", timeout=5).status_code == 200
