"""What a server counts of its requests and sweeps, as Prometheus scrapes it from a port of its own.

The API's port belongs to the tenants, and a tenant's token shows nothing of what others do. The workers of one server
count in files that all of them read: whichever answers a scrape tells of all. A folder for these files has to be named
in ``PROMETHEUS_MULTIPROC_DIR`` before this module is imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count as numbers
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import anyio.to_thread
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, values
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import UnavailableError
from ..sweeping import SweepReport
from ..wire import VERBS
from .asgi import answer
from .log import Record

METRICS_PATH: Final = "/metrics"

_METHODS: Final = ("GET", "HEAD", "POST", "PUT")
_SCOPE: Final = "/v1/namespaces/{namespace}/applications/{application}/"
_FIRST_BYTES: Final = 256 * 1024
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

prometheus_client.disable_created_metrics()


class Metrics:
    """The counters of one process, and with other workers those of all."""

    def __init__(self) -> None:
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        own = CollectorRegistry()
        self._registry = own
        if self._folder is None:
            ProcessCollector(registry=own)
        else:
            self._place, place = _take_place(Path(self._folder))
            if hasattr(os, "posix_fallocate"):
                _find_room(self._place, place)
            values.ValueClass = cast(Any, values).MultiProcessValue(lambda: place)
        self._requests = Counter(
            "agent_memory_requests",
            "Requests that were answered, by the code of the problem if that was the answer.",
            ["method", "route", "status", "code"],
            registry=own,
        )
        self._seconds = Histogram(
            "agent_memory_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=own,
        )
        self._received = Counter(
            "agent_memory_received_bytes", "Bytes of the bodies of requests.", ["method", "route"], registry=own
        )
        self._sent = Counter(
            "agent_memory_sent_bytes", "Bytes of the bodies of answers.", ["method", "route"], registry=own
        )
        self._sweeps = Counter("agent_memory_sweeps", "Sweeps of the store, by outcome.", ["outcome"], registry=own)
        self._swept = Counter("agent_memory_swept", "Things that sweeps took away, by kind.", ["kind"], registry=own)
        self._last_sweep = Gauge(
            "agent_memory_last_sweep_timestamp_seconds",
            "When a sweep last went through to its end, in seconds since 1970.",
            registry=own,
            multiprocess_mode="max",
        )
        # What is known beforehand begins at nothing, not with its first event; and it takes its room now.
        for state, verb in product(("app_state", "request_state"), VERBS):
            self._seconds.labels("POST", f"{state}/{verb}")
            # One failure is worth an alert, and a rate sees none in a series that begins with it.
            self._requests.labels("POST", f"{state}/{verb}", "500", "internal")
        for outcome in ("done", "failed"):
            self._sweeps.labels(outcome)
        for kind in SweepReport._fields:
            self._swept.labels(kind)
        if self._folder is not None and hasattr(os, "posix_fallocate"):
            _reserve(Path(self._folder))

    def finished(self, record: Record) -> None:
        """Count a request that is over."""
        # The labels stay few, however many methods and paths are tried. A client that went away got no status.
        method = record.method if record.method in _METHODS else "other"
        route = record.route.removeprefix(_SCOPE) or "unknown"
        self._requests.labels(method, route, str(record.status or ""), record.code or record.error or "").inc()
        self._seconds.labels(method, route).observe(time.perf_counter() - record.start)
        self._received.labels(method, route).inc(record.bytes_in)
        self._sent.labels(method, route).inc(record.bytes_out)

    def swept(self, report: SweepReport) -> None:
        """Count a sweep that went through."""
        self._sweeps.labels("done").inc()
        self._last_sweep.set_to_current_time()
        for kind, count in report._asdict().items():
            self._swept.labels(kind).inc(count)

    def sweep_failed(self) -> None:
        """Count a sweep that did not go through."""
        self._sweeps.labels("failed").inc()

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        registry = self._registry
        if self._folder is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, self._folder)
        return prometheus_client.generate_latest(registry)


def _take_place(folder: Path) -> tuple[BinaryIO, int]:
    """Return the first number under which no living process counts, and what holds it as long as this one lives.

    A worker that follows one that died goes on with its files: with files of its own, every death would take room.
    """
    import fcntl

    for place in numbers():
        # Not one of the files that are read together: an empty one among them would be an error.
        file = open(folder / f"{place}.lock", "wb")  # noqa: SIM115  (it stays open)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return file, place
    raise AssertionError("there is always another number")


def _find_room(file: BinaryIO, place: int) -> None:
    """Fail where there is no room for the files of a process: they are written to before it can be taken for them."""
    if any(Path(file.name).parent.glob(f"*_{place}.db")):
        return  # the worker before has taken it
    try:
        _allocate(file, _FIRST_BYTES)
        file.truncate(0)
    except UnavailableError:
        file.close()
        raise


def _reserve(folder: Path) -> None:
    """Take the room of the files now: what is mapped and finds none later ends the process."""
    for path in folder.glob("*.db"):
        with open(path, "r+b") as file:
            # Another worker's may have been made just now.
            if size := os.fstat(file.fileno()).st_size:
                _allocate(file, size)


def _allocate(file: BinaryIO, size: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        folder = os.path.dirname(file.name)
        raise UnavailableError(f"there is no room to count in {folder!r}: {error.strerror}", code="disk_full") from None


class MetricsPort:
    """Answers what comes to the port of the metrics, and passes on everything else."""

    def __init__(self, app: ASGIApp, text: Callable[[], bytes], port: int) -> None:
        self._app = app
        self._text = text
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The port of the connection itself, whatever the request says.
        if scope["type"] != "http" or scope["server"][1] != self._port:
            await self._app(scope, receive, send)
        elif scope["path"] == METRICS_PATH and scope["method"] in ("GET", "HEAD"):
            body = await anyio.to_thread.run_sync(self._text)
            await answer(send, 200, body, CONTENT_TYPE_PLAIN_0_0_4.encode())
        else:
            await answer(send, 404, f"metrics are at GET {METRICS_PATH}\n".encode(), b"text/plain; charset=utf-8")
