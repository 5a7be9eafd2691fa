"""A server against a bare HTTP exchange of the same kind, each server in a process of its own."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from agent_memory import AgentMemory
from benchmarks.embedded import Profile, profile
from benchmarks.harness import Row, at_most, table, times_us


class Served(NamedTuple):
    """A server that runs."""

    url: str
    pid: int


@contextmanager
def served(arguments: list[str]) -> Iterator[Served]:
    """Run a server that says where it listens, and stop it by its process id."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Served(line.strip().rpartition(" ")[2], process.pid)
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout=15)


def round_trips(memory: AgentMemory, function: Callable[[], object]) -> int:
    """Count the messages that a call sends."""
    transport = memory._client.transport()
    count = 0
    send = transport.send

    def counting(message: Any, deadline: float) -> Any:
        nonlocal count
        count += 1
        return send(message, deadline)

    transport.send = counting  # type: ignore[method-assign]
    try:
        function()
    finally:
        transport.send = send  # type: ignore[method-assign]
    return count


def compare() -> tuple[list[Row], list[str]]:
    """Time a small get and a small set, each one round trip, and count the round trips of a batch."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        data = Path(name) / "memory.db"
        ours = ["-m", "agent_memory.cli", "serve", "--data", str(data), "--port", "0"]
        peer = ["-m", "benchmarks.bare_server", str(Path(name) / "bare.db")]
        with (
            served(ours) as server,
            served(peer) as bare,
            AgentMemory(server.url, application="bench") as memory,
            httpx.Client(base_url=bare.url) as client,
        ):
            document = memory.entity("user", "1").document(Profile)
            document.set(profile(0))
            body = profile(0).model_dump_json().encode()
            headers = {"content-type": "application/json"}
            times = times_us(
                {
                    "get": document.get,
                    "bare": lambda: client.post("/nothing", content=body, headers=headers).content,
                    "set": lambda: document.set(profile(next(numbers))),
                    "bare set": lambda: (
                        client.post(
                            "/upsert", content=profile(next(numbers)).model_dump_json().encode(), headers=headers
                        ).content
                    ),
                },
                seconds=0.15,
            )
            keys = [f"key-{number}" for number in range(100)]
            for key in keys:
                memory.app_state.set(key, {"number": key})
            counts = {
                "small get": round_trips(memory, document.get),
                "small set": round_trips(memory, lambda: document.set(profile(next(numbers)))),
                "batch of 100 gets": round_trips(memory, lambda: memory.app_state.get_many(keys)),
            }
    rows = [
        at_most("small get over HTTP", times["get"], "httpx.Client.post, no-op Starlette route", times["bare"], 1.25),
        at_most("small set over HTTP", times["set"], "httpx.Client.post, one raw apsw upsert", times["bare set"], 1.5),
    ]
    return rows, [f"{what}: {count} round trip{'s' if count != 1 else ''}" for what, count in counts.items()]


if __name__ == "__main__":
    compared, counted = compare()
    print(table("Over HTTP, servers in processes of their own", compared))
    print("\n".join(counted))
