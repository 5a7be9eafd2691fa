"""A large value through signed URLs against a bare transfer of the same chunks: ``python -m benchmarks.object_store``.

Server and object store are processes of their own; the object store is the strict one of the tests, unless the
environment names another by AWS_ENDPOINT_URL and AGENT_MEMORY_BENCH_BLOBS (``s3://bucket/prefix``).
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from agent_memory import AgentMemory
from agent_memory.ids import uuid7
from agent_memory.storage.object_blobs import ObjectBlobs
from benchmarks.harness import Row, at_most, table
from tests.support.strict_s3 import ACCESS_KEY, BUCKET, REGION, SECRET_KEY

SIZE: Final = 64 * 1024 * 1024
CHUNK: Final = 8 * 1024 * 1024
PARALLELISM: Final = 4
ROUNDS: Final = 24
WARM: Final = 6
TOUCHED: Final = 1024 * 1024 * 1024

_SERVE: Final = """
import sys, uvicorn
from agent_memory.opening import open_service
from agent_memory.server.app import Settings, create_app
from agent_memory.server.auth import LoopbackGate
from agent_memory.server.log import RequestLog
service = open_service(sys.argv[1], sys.argv[2])
app = create_app(service, Settings(LoopbackGate(), RequestLog(sys.stderr)))
config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, loop="asyncio")
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print("listening on http://127.0.0.1:%d" % self.servers[0].sockets[0].getsockname()[1], flush=True)
Server(config).run()
"""


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """Run a Python that says where it listens; it is stopped by its process id."""
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout is not None
        yield child.stdout.readline().strip().rpartition(" ")[2]
    finally:
        child.terminate()
        child.communicate(timeout=15)


@contextmanager
def object_store() -> Iterator[str]:
    """Lead the environment to an object store and return where in it blobs may lie."""
    if (named := os.environ.get("AGENT_MEMORY_BENCH_BLOBS")) is not None:
        yield named
        return
    with process("-m", "tests.support.strict_s3") as url:
        os.environ |= {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
        }
        yield f"s3://{BUCKET}/bench"


class Bare:
    """The same chunks by httpx alone, with the same parallelism: bytes that nobody checks or puts together."""

    def __init__(self, blobs: ObjectBlobs, client: httpx.Client, pool: ThreadPoolExecutor) -> None:
        self._blobs, self._client, self._pool = blobs, client, pool
        self._id = uuid7()

    def put(self, data: bytes) -> None:
        self._id = uuid7()
        view = memoryview(data)
        urls = [self._blobs.url("PUT", self._id, index, 300) for index in range(SIZE // CHUNK)]

        def one(index: int) -> None:
            self._client.put(urls[index], content=bytes(view[index * CHUNK : (index + 1) * CHUNK])).raise_for_status()

        list(self._pool.map(one, range(len(urls))))

    def get(self) -> list[bytes]:
        urls = [self._blobs.url("GET", self._id, index, 300) for index in range(SIZE // CHUNK)]
        return list(self._pool.map(lambda url: self._client.get(url).raise_for_status().content, urls))


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def in_turn(ways: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the seconds that each way took in each round; who begins a round changes, and the first do not count."""
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM + ROUNDS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            took = seconds(ways[name])
            if turn >= WARM:
                found[name].append(took)
    return found


def touch_memory() -> None:
    """Use as much memory once as the transfers will use again.

    A virtual machine gets a page from its host when it first uses it: 64 MiB of such pages took 170 ms, twice as long
    as a transfer. Our side met them, whose value is one block from the system; httpx's pieces had all been used before.
    """
    with mmap.mmap(-1, TOUCHED) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, TOUCHED, mmap.PAGESIZE):
            memory[offset] = 1


def compare() -> list[Row]:
    """Time a set and a get of 64 MiB; the two sides take turns within every round."""
    data = os.urandom(SIZE)
    with contextlib.ExitStack() as stack:
        blobs = stack.enter_context(object_store())
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd()))
        url = stack.enter_context(process("-c", _SERVE, str(Path(folder) / "memory.db"), blobs))
        store = ObjectBlobs(blobs)
        host = urlsplit(store.url("GET", uuid7(), 0, 60)).netloc
        memory = stack.enter_context(
            AgentMemory(
                url, application="bench", blob_hosts=[host], chunk_size=CHUNK, parallelism=PARALLELISM, timeout=120
            )
        )
        client = stack.enter_context(httpx.Client(trust_env=False, timeout=60))
        bare = Bare(store, client, stack.enter_context(ThreadPoolExecutor(PARALLELISM)))
        sets: dict[str, Callable[[], object]] = {
            "set": lambda: memory.app_state.set("large", data),
            "bare put": lambda: bare.put(data),
            "checked put": lambda: (hashlib.sha256(data).hexdigest(), bare.put(data)),
        }
        gets: dict[str, Callable[[], object]] = {
            "get": lambda: memory.app_state.get("large"),
            "bare get": bare.get,
            "checked get": lambda: hashlib.sha256(b"".join(bare.get())).hexdigest(),
        }
        # One after the other: what follows an upload waits for what the store still does with it.
        found = in_turn(sets)
        touch_memory()
        found |= in_turn(gets)
        us = {name: statistics.median(all_times) * 1e6 for name, all_times in found.items()}
    put, get = "httpx PUT of the same chunks", "httpx GET of the same chunks"
    return [
        at_most("set of 64 MiB by signed URLs", us["set"], put, us["bare put"], 1.25),
        at_most("set of 64 MiB by signed URLs", us["set"], f"{put}, sha256", us["checked put"], 1.25),
        at_most("get of 64 MiB by signed URLs", us["get"], get, us["bare get"], 1.25),
        at_most("get of 64 MiB by signed URLs", us["get"], f"{get}, sha256", us["checked get"], 1.25),
    ]


if __name__ == "__main__":
    print(table("Large values in an object store", compare()))
