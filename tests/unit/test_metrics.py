"""What a server counts, and who gets to see it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from agent_memory import AgentMemory, ConflictError
from agent_memory.errors import UnavailableError
from agent_memory.opening import open_service
from agent_memory.server import app, metrics, run
from agent_memory.server.auth import LoopbackGate
from agent_memory.server.log import RequestLog
from agent_memory.server.metrics import Metrics
from agent_memory.service import StateService
from agent_memory.sweeping import SweepReport
from tests.support.api import wait_for
from tests.support.server import ServerProcess

_METRICS = re.compile(r"metrics at (http://[\w.:]+/metrics)")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no /dev/shm")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def counted(text: str) -> Samples:
    """Return the samples of a scrape by their names and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(url: str) -> Samples:
    answer = httpx.get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return counted(answer.text)


def requests(samples: Samples, **labels: str) -> float:
    """Add up the requests whose labels include these."""
    return sum(
        value
        for (name, found), value in samples.items()
        if name == "agent_memory_requests_total" and found >= frozenset(labels.items())
    )


def metrics_url(server: ServerProcess) -> str:
    wait_for(lambda: _METRICS.search(server.log) is not None)
    found = _METRICS.search(server.log)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("served"), "--metrics-port", "0") as running:
        yield running


def test_requests_are_counted_by_route_status_and_problem(server: ServerProcess) -> None:
    url = metrics_url(server)
    before = scrape(url)
    with AgentMemory(server.url, application="counted", namespace="acme") as memory:
        for number in range(3):
            memory.app_state.set("secret-key", f"secret-value-{number}")
        memory.app_state.get("secret-key")
        with pytest.raises(ConflictError):
            memory.app_state.key("secret-key", str).create("again")
        memory.app_state.set("large", b"x" * 100_000)
        memory.app_state.get("large")
    for path in ("/nowhere", "/nowhere/else"):
        httpx.delete(server.url + path)
    after = scrape(url)

    def more(**labels: str) -> float:
        return requests(after, **labels) - requests(before, **labels)

    commit = {"method": "POST", "route": "app_state/commit_write"}
    assert more(**commit, status="200", code="") == 4
    assert more(**commit, status="412", code="condition_failed") == 1
    assert more(method="POST", route="app_state/prepare_read", status="200", code="") == 2
    assert more(method="PUT", route="/v1/blobs/{blob}/{chunk}", status="200") == 1
    assert more(method="GET", route="/v1/blobs/{blob}/{chunk}", status="200") == 1
    assert more(method="other", route="unknown", status="404", code="unknown_route") == 2
    seconds = frozenset(commit.items())
    assert after["agent_memory_request_seconds_count", seconds] == 5
    assert 0 < after["agent_memory_request_seconds_sum", seconds] < 60
    upload = frozenset({"method": "PUT", "route": "/v1/blobs/{blob}/{chunk}"}.items())
    download = frozenset({"method": "GET", "route": "/v1/blobs/{blob}/{chunk}"}.items())
    assert after["agent_memory_received_bytes_total", upload] == 100_000
    assert after["agent_memory_sent_bytes_total", download] == 100_000
    assert after["process_resident_memory_bytes", frozenset()] > 0


def test_a_failure_of_the_server_is_counted_before_the_first_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> object:
        raise RuntimeError("unforeseen")

    service, counting = open_service(str(tmp_path / "store.db")), Metrics()
    monkeypatch.setattr(service.catalog, "list", fail)
    served = app.create_app(service, app.Settings(LoopbackGate(), RequestLog(io.StringIO()), metrics=counting))

    async def ask() -> None:
        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.post("/v1/namespaces/a/applications/b/app_state/list", json={"prefix": ""})

    before = counted(counting.text().decode())
    asyncio.run(ask())
    service.close()
    more = {
        sample: value - before.get(sample, -1)
        for sample, value in counted(counting.text().decode()).items()
        if sample[0] == "agent_memory_requests_total" and value != before.get(sample)
    }
    assert list(more.values()) == [1], "a series that begins with its first event is no rise of it"


def test_metrics_name_no_tenant_and_no_key(server: ServerProcess) -> None:
    with AgentMemory(server.url, application="shy", namespace="acme") as memory:
        memory.app_state.set("a-key-of-somebody", "value")
    httpx.get(f"{server.url}/a-path-of-somebody")
    text = httpx.get(metrics_url(server)).text
    assert not re.search("acme|shy|somebody", text)


def test_the_port_of_the_metrics_serves_nothing_else_and_the_apis_no_metrics(server: ServerProcess) -> None:
    url = metrics_url(server)
    other = url.removesuffix("/metrics")
    for path in ("/healthz", "/", "/openapi.json", "/metrics/", "/v1/namespaces/acme/applications/a/app_state/list"):
        assert httpx.get(other + path).status_code == 404
    assert httpx.post(url, json={}).status_code == 404
    assert httpx.head(url).status_code == 200
    answer = httpx.get(f"{server.url}/metrics", headers={"host": "localhost"})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_route")


def test_scrapes_are_neither_logged_nor_counted(server: ServerProcess) -> None:
    url = metrics_url(server)
    before, log = scrape(url), server.log
    assert requests(scrape(url)) == requests(before)
    assert server.log == log


def test_workers_count_together_and_what_a_killed_one_counted_stays(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--workers", "2", "--metrics-port", "0") as server:
        url = metrics_url(server)
        parent = psutil.Process(server.process.pid)
        wait_for(lambda: len(parent.children()) == 2)

        def write(count: int) -> None:
            for number in range(count):
                # A connection each, so that both workers get some.
                with AgentMemory(server.url, application="together") as memory:
                    memory.app_state.set("key", number)

        def written() -> set[float]:
            return {requests(scrape(url), route="app_state/commit_write") for _ in range(6)}

        write(12)
        assert written() == {12}
        killed = parent.children()[0].pid
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: killed not in {one.pid for one in parent.children()} and len(parent.children()) == 2)
        assert written() == {12}
        write(3)
        assert written() == {15}
        assert server.stop() == 0


def folders_of(server: ServerProcess) -> set[Path]:
    """Return the folders of the files that the workers count in."""
    workers = psutil.Process(server.process.pid).children()
    maps = [Path(one.path) for worker in workers for one in worker.memory_maps()]
    return {path.parent for path in maps if path.parent.name.startswith("agent-memory-metrics-")}


@on_linux
def test_the_files_that_workers_count_in_lie_in_memory_and_are_taken_away(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--workers", "2", "--metrics-port", "0") as server:
        metrics_url(server)
        wait_for(lambda: len(folders_of(server)) == 1)
        (folder,) = folders_of(server)
        assert folder.parent == Path("/dev/shm")
        # Their room is taken: what is mapped and finds none later would end the worker.
        wait_for(lambda: len(list(folder.glob("*.db"))) == 6)
        assert all(one.stat().st_blocks * 512 >= one.stat().st_size for one in folder.iterdir())
        server.stop()
    assert not folder.exists()


@on_linux
def test_where_the_memory_for_counts_is_full_they_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.setattr(run, "_COUNTED_BYTES", 2**50)
    with run._counting_together(2):
        assert Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).parent == tmp_path


@on_linux
def test_a_worker_counts_where_the_one_that_it_follows_did(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--workers", "2", "--metrics-port", "0") as server:
        metrics_url(server)
        parent = psutil.Process(server.process.pid)
        gone: set[int] = set()

        def counts(worker: psutil.Process) -> bool:
            with contextlib.suppress(psutil.Error):
                return any("counter_" in file.path for file in worker.memory_maps())
            return False

        def two_count() -> bool:
            counting = {one.pid for one in parent.children() if counts(one)}
            return len(counting) == 2 and gone.isdisjoint(counting)

        wait_for(two_count)
        (folder,) = folders_of(server)
        for _ in range(3):
            gone.add(parent.children()[0].pid)
            os.kill(parent.children()[0].pid, signal.SIGKILL)
            wait_for(two_count)
        assert len(list(folder.glob("counter_*"))) == 2, "every death would take room"


def test_a_worker_that_has_not_counted_yet_does_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    held = [metrics._take_place(tmp_path) for _ in range(2)]
    assert [place for _, place in held] == [0, 1]
    MultiProcessCollector(CollectorRegistry(), str(tmp_path)).collect()
    for file, _ in held:
        file.close()
    file, place = metrics._take_place(tmp_path)
    assert place == 0, "of a worker that is gone"
    file.close()


def test_where_there_is_no_room_to_count_it_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"counter_{os.getpid()}.db").write_bytes(b"\0")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UnavailableError, match="no room to count") as caught:
        metrics._reserve(tmp_path)
    assert caught.value.code == "disk_full"


@on_linux
def test_no_file_is_mapped_where_there_is_no_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UnavailableError, match="no room to count"):
        metrics.Metrics()
    assert list(tmp_path.glob("*.db")) == [], "writing to it would end the process before it could say why"
    (tmp_path / "counter_0.db").write_bytes(b"\0")
    with open(tmp_path / "0.lock", "wb") as place:
        metrics._find_room(place, 0)  # a worker that follows another needs no more than that had


@on_linux
def test_a_worker_that_is_killed_is_named_in_the_log_with_the_signal(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--workers", "2") as server:
        os.kill(psutil.Process(server.process.pid).children()[1].pid, signal.SIGKILL)
        wait_for(lambda: '"event": "worker", "message": "ended by signal 9"' in server.log)


def test_metrics_need_a_port_of_their_own(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with pytest.raises(RuntimeError, match="--metrics-port is a port of its own"):
        # Two loopback addresses: one port on both could be had.
        ServerProcess(tmp_path, "--metrics-port", port, "--metrics-host", "127.0.0.2", port=int(port))


def test_a_server_without_a_port_for_metrics_has_none(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        assert "metrics" not in server.log.split("\n")[0]


def test_sweeps_are_counted_by_outcome_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Metrics()
    outcomes: list[Any] = [
        SweepReport(blobs=2, expired=3), UnavailableError("away"), RuntimeError("broken"), SweepReport(blobs=1)
    ]  # fmt: skip

    class Service:
        def sweep(self) -> SweepReport:
            outcome = outcomes.pop(0)
            if not outcomes:
                app._SWEEP_SECONDS = 60  # type: ignore[misc]  # that was the last one
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    async def sweep_until_done() -> None:
        settings = app.Settings(LoopbackGate(), RequestLog(io.StringIO()), metrics=counting)
        sweeping = asyncio.create_task(app._sweep_forever(service, settings))
        while outcomes:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping

    service: StateService = Service()  # type: ignore[assignment]
    monkeypatch.setattr(app, "_SWEEP_SECONDS", 0.02)
    asyncio.run(asyncio.wait_for(sweep_until_done(), 10))
    found = counted(counting.text().decode())

    def labelled(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert labelled("agent_memory_sweeps_total", outcome="done") == 2
    assert labelled("agent_memory_sweeps_total", outcome="failed") == 2
    assert labelled("agent_memory_swept_total", kind="blobs") == 3
    assert labelled("agent_memory_swept_total", kind="expired") == 3
    assert abs(labelled("agent_memory_last_sweep_timestamp_seconds") - time.time()) < 60
