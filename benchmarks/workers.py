"""Two server workers against one on PostgreSQL: throughput, and the CPU time that a request costs.

Servers, PostgreSQL and the load share this machine's cores, so throughput says how well the cores are used, not how far
workers scale. What must not rise is the CPU time of a request, in the servers and in PostgreSQL together.
"""

from __future__ import annotations

import hashlib
import itertools
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import psutil

from agent_memory.ids import uuid7
from agent_memory.messages import INLINE_LIMIT, JSON, CommitWrite, Message, PrepareRead, Scope
from agent_memory.wire import encode_request
from benchmarks.embedded import profile
from benchmarks.http import served
from tests.support.postgres import PostgresServer

CONNECTIONS: Final = 8
ROUNDS: Final = 20
SECONDS: Final = 1.0
NOISE: Final = 1.05
"""By how much the CPU time of a request may seem to rise: two runs of one and the same server differ by as much."""

_SCOPE: Final = Scope("default", "bench")
_ENOUGH: Final = 256 * 1024


class Load(NamedTuple):
    """What a round of requests took: requests a second, and microseconds of CPU time a request."""

    per_second: float
    server_us: float
    postgres_us: float

    @property
    def cpu_us(self) -> float:
        return self.server_us + self.postgres_us


def read(connection: int, _: int) -> Message:
    return PrepareRead(_SCOPE, f"user/{connection}/profile", INLINE_LIMIT)


def write(connection: int, number: int) -> Message:
    data = profile(number).model_dump_json().encode()
    sha256 = hashlib.sha256(data).hexdigest()
    return CommitWrite(_SCOPE, f"user/{connection}/profile", uuid7(), data, None, JSON, sha256)


class Meter:
    """CPU time of a process and of its children; those that have ended count as their parent's."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def seconds(self) -> float:
        total = 0.0
        # The parent last: a child that ends meanwhile has become a part of its time.
        for process in (*self._process.children(recursive=True), self._process):
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total


class Server(NamedTuple):
    """A server under load and the meters of what works for it."""

    url: str
    meter: Meter
    postgres: Meter

    def load(self, make: Callable[[int, int], Message], seconds: float = SECONDS) -> Load:
        """Send one request after the other on each of several connections."""
        counts = [0] * CONNECTIONS
        end = time.perf_counter() + seconds
        senders = [threading.Thread(target=self._send, args=(make, one, counts, end)) for one in range(CONNECTIONS)]
        before, started = (self.meter.seconds(), self.postgres.seconds()), time.perf_counter()
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        took = time.perf_counter() - started
        count = sum(counts)
        assert all(counts), "a connection was not served"
        server, postgres = self.meter.seconds() - before[0], self.postgres.seconds() - before[1]
        return Load(count / took, server / count * 1e6, postgres / count * 1e6)

    def _send(self, make: Callable[[int, int], Message], connection: int, counts: list[int], end: float) -> None:
        # Bare sockets: a whole HTTP client would take most of the cores for itself.
        place = urlsplit(self.url)
        with socket.create_connection((place.hostname, place.port)) as peer:
            for number in itertools.count():
                if time.perf_counter() > end:
                    return
                verb, body = encode_request(make(connection, number))
                path = f"/v1/namespaces/{_SCOPE.namespace}/applications/{_SCOPE.application}/app_state/{verb}"
                head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                peer.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                status = _answer(peer)
                assert status == b"200", status
                counts[connection] += 1


def _answer(peer: socket.socket) -> bytes:
    """Read a whole answer and return its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += peer.recv(_ENOUGH)
    head, _, body = data.partition(b"\r\n\r\n")
    left = int(head.lower().partition(b"content-length:")[2].split()[0]) - len(body)
    while left > 0:
        left -= len(peer.recv(_ENOUGH))
    return head.split(b" ", 2)[1]


class Row(NamedTuple):
    """Medians with one worker and with two, and of the ratios of the rounds, in which they take turns."""

    what: str
    one: Load
    two: Load
    throughput: float
    cpu: float


def compare() -> list[Row]:
    """Load one worker and two in turn, with small writes and with small reads."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, PostgresServer(durable=True) as postgres, ExitStack() as stack:
        place = ["--database", postgres.database(), "--blobs", folder, "--port", "0"]
        servers: list[Server] = []
        for workers in ("1", "2"):
            server = stack.enter_context(served(["-m", "agent_memory.cli", "serve", *place, "--workers", workers]))
            servers.append(Server(server.url, Meter(server.pid), Meter(postgres.pid)))
        for what, make in (("small set", write), ("small get", read)):
            for server in servers:
                server.load(make)
            rounds = [[server.load(make) for server in servers] for _ in range(ROUNDS)]
            medians = [Load(*map(statistics.median, zip(*of, strict=True))) for of in zip(*rounds, strict=True)]
            throughput = statistics.median(two.per_second / one.per_second for one, two in rounds)
            found.append(
                Row(what, *medians, throughput, statistics.median(two.cpu_us / one.cpu_us for one, two in rounds))
            )
    return found


def main() -> None:
    print(f"Two server workers against one on PostgreSQL, {CONNECTIONS} connections, all on {psutil.cpu_count()} cores")
    print(f"{'':<12}{'workers':>8}{'requests/s':>12}{'servers':>12}{'PostgreSQL':>13}{'CPU a request':>16}")
    for what, one, two, throughput, cpu in compare():
        for workers, load in ((1, one), (2, two)):
            print(
                f"{what:<12}{workers:>8}{load.per_second:>12,.0f}{load.server_us:>9.0f} µs{load.postgres_us:>10.0f} µs"
                f"{load.cpu_us:>13.0f} µs"
            )
        verdict = "holds" if cpu <= NOISE else "DOES NOT HOLD"
        print(f"{'':<12}throughput × {throughput:.2f}, CPU a request × {cpu:.2f}  limit ≤ {NOISE:g} ×  {verdict}")


if __name__ == "__main__":
    main()
