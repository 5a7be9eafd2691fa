"""Two servers over one PostgreSQL and one object store: killed, cut off, restarted and swept while they are used."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest

from agent_memory import AgentMemory, UnavailableError
from agent_memory.flows import call
from agent_memory.ids import uuid7
from agent_memory.messages import Blob, Chunk, CommitWrite, PrepareWrite, PutChunk, Scope
from agent_memory.storage.blobs import GRACE_SECONDS
from agent_memory.storage.postgres.connections import Settings
from tests.faults.processes import counter_of, value
from tests.support.api import wait_for
from tests.support.balancer import Balancer
from tests.support.cluster import Cluster
from tests.support.models import Counter
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from tests.support.stores import BUCKET_URL, Bucket, ThreadServer, TimedHttpStore, TimedStore, postgres_place
from tests.support.strict_s3 import StrictS3

PASSWORD: Final = "a-password-nobody-may-see"
LARGE: Final = 200 * 1024
SIZES: Final = (LARGE, 300, 40_000)
"""An object, a small row, and one that spans pages."""


def with_password(address: str) -> str:
    """Return an address with a password in it; the PostgreSQL of the tests asks for none."""
    assert "postgres:@" in address
    return address.replace("postgres:@", f"postgres:{PASSWORD}@")


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that may be stopped and killed."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def address(own_postgres: PostgresServer) -> str:
    return with_password(own_postgres.database())


@pytest.fixture(scope="module")
def fragile(
    address: str, object_store: StrictS3, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Cluster]]:
    """Clusters of that PostgreSQL, with large values in files and in objects, that may be killed."""
    folder = tmp_path_factory.mktemp("fragile")
    hosts = [object_store.host]
    with (
        Cluster(address, str(folder / "blobs"), folder) as files,
        Cluster(address, BUCKET_URL, folder, environment=object_store.environment(), blob_hosts=hosts) as objects,
    ):
        yield {"files": files, "objects": objects}
        for server in (*files.servers, *objects.servers):
            assert PASSWORD not in server.log
            assert "Traceback" not in server.log


@pytest.fixture(params=["files", "objects"])
def cluster(request: pytest.FixtureRequest, fragile: dict[str, Cluster]) -> Cluster:
    return fragile[request.param]


@pytest.fixture
def application() -> str:
    return f"t{uuid7()}"


@pytest.fixture
def open_memory(application: str) -> Iterator[Callable[..., AgentMemory]]:
    """``open_memory(url, **options)`` opens a client of this test's application."""
    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(AgentMemory(url, application=application, **options))


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """Run functions at once; return what they gave, or raise what one of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


# -- consistency -----------------------------------------------------------------------------------------------------


def test_thirty_two_writers_through_two_servers_lose_no_increment(
    cluster_s3: Cluster, open_memory: Callable[..., AgentMemory]
) -> None:
    times = 100
    counters = [open_memory(server.url, timeout=100).app_state.key("counter", Counter) for server in cluster_s3.servers]

    def increment(number: int) -> list[tuple[int, int]]:
        counter = counters[number % 2]
        snapshots = [counter.update(lambda old: Counter(count=old.count + 1)) for _ in range(times)]
        return [(snapshot.version, snapshot.value.count) for snapshot in snapshots]

    histories = in_threads(*(lambda number=number: increment(number) for number in range(32)))
    assert counters[0].get() == Counter(count=32 * times)
    assert sorted(itertools.chain(*histories)) == [(number, number) for number in range(1, 32 * times + 1)]
    assert all(history == sorted(history) for history in histories), "a writer's own versions rise"


@pytest.mark.parametrize("size", [300, LARGE])
def test_no_read_through_another_server_is_older_than_an_acknowledged_write(
    cluster_s3: Cluster, open_memory: Callable[..., AgentMemory], size: int
) -> None:
    states = [open_memory(server.url, **cluster_s3.options).app_state for server in cluster_s3.servers]
    states[0].set("key", value(0, size))
    lock, writing = threading.Lock(), threading.Event()
    newest, seen = 1, {1: 0}
    counters = itertools.count(1)

    def saw(version: int, counter: int) -> None:
        nonlocal newest
        with lock:
            newest = max(newest, version)
            assert seen.setdefault(version, counter) == counter, "one version has one value"

    def write(number: int) -> None:
        for _ in range(20):
            counter = next(counters)
            saw(states[number % 2].set("key", value(counter, size)).version, counter)

    def read(number: int) -> int:
        reads = 0
        while not writing.is_set():
            floor = newest
            snapshot = states[number % 2].snapshot("key")
            assert snapshot is not None
            assert snapshot.version >= floor, "a stale read"
            saw(snapshot.version, counter_of(snapshot.value))
            reads += 1
        return reads

    def write_all() -> None:
        try:
            in_threads(*(lambda number=number: write(number) for number in range(4)))
        finally:
            writing.set()

    _, *reads = in_threads(write_all, *(lambda number=number: read(number) for number in range(4)))
    assert min(reads) > 0
    assert seen.keys() == set(range(1, 82)), "every version was acknowledged to its writer"


# -- servers that are killed -----------------------------------------------------------------------------------------


PHASES: Final = ("before prepare", "before transfer", "before commit", "before the commit's reply")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("phase", PHASES)
def test_when_a_server_is_killed_in_a_write_the_other_one_finishes_it(
    cluster: Cluster, open_memory: Callable[..., AgentMemory], application: str, phase: str, victim: int
) -> None:
    memory = open_memory(cluster.url, **cluster.options)
    scope, data = Scope("default", application), value(1, LARGE)

    def send(message: Any) -> Any:
        return memory._client.run(call(message))

    def reached(now: str) -> None:
        if phase == now:
            cluster.servers[victim].kill()

    try:
        reached("before prepare")
        blob = send(PrepareWrite(scope, "key", len(data)))
        reached("before transfer")
        assert memory.app_state.get("key") is None
        etag = send(PutChunk(blob.chunks[0], memoryview(data)))
        reached("before commit")
        assert memory.app_state.get("key") is None
        blob = Blob(blob.id, (Chunk(blob.chunks[0].uri, len(data), etag),))
        commit = CommitWrite(scope, "key", blob.id, None, blob)
        entry = send(commit)
        reached("before the commit's reply")
        assert send(commit) == entry
        assert memory.app_state.snapshot("key") == (data, entry)
        assert entry.version == 1
    finally:
        cluster.restart(victim)


def write_on(
    memory: AgentMemory, name: str, known: dict[str, tuple[int, int]], progress: list[int], stop: threading.Event
) -> int:
    """Write small and large values, and increments, until ``stop``; return how many increments were acknowledged."""
    counter = memory.app_state.key(f"{name}counter", Counter)
    for number in itertools.count(1):
        if stop.is_set():
            return number - 1
        key = f"{name}{number % 5}"
        entry = memory.app_state.set(key, value(number, SIZES[number % 3]))
        assert entry.version > known.get(key, (0, 0))[0], "versions rise"
        known[key] = (entry.version, number)
        counter.update(lambda old: Counter(count=old.count + 1))
        progress.append(number)
    raise AssertionError("counting ends never")


def trouble(memories: list[AgentMemory], make_trouble: Callable[[], None]) -> None:
    """Write while there is trouble; then find all that was acknowledged, whole, and nothing twice."""
    stop = threading.Event()
    known: list[dict[str, tuple[int, int]]] = [{} for _ in memories]
    progress: list[list[int]] = [[] for _ in memories]

    def make() -> None:
        try:
            make_trouble()
            before = [len(written) for written in progress]
            deadline = time.monotonic() + 20
            while any(len(written) < 5 + old for written, old in zip(progress, before, strict=True)):
                assert time.monotonic() < deadline, "a client does not recover"
                time.sleep(0.02)
        finally:
            stop.set()

    def writer(number: int) -> Callable[[], int]:
        return lambda: write_on(memories[number], f"w{number}-", known[number], progress[number], stop)

    _, *counts = in_threads(make, *map(writer, range(len(memories))))
    for number, written in enumerate(known):
        found = memories[0].app_state.snapshot(f"w{number}-counter", as_type=Counter)
        assert found is not None
        assert (found.version, found.value.count) == (counts[number], counts[number])
        for key, (version, counter) in written.items():
            snapshot = memories[0].app_state.snapshot(key)
            assert snapshot is not None, f"{key} is lost"
            assert (snapshot.version, counter_of(snapshot.value)) == (version, counter)


def test_writers_go_on_when_servers_are_killed_and_started_again(
    cluster: Cluster, open_memory: Callable[..., AgentMemory], soak: bool
) -> None:
    dice = random.Random(30)

    def kill() -> None:
        for number in range(40 if soak else 4):
            time.sleep(dice.uniform(0.2, 0.5))
            cluster.servers[number % 2].kill()
            cluster.restart(number % 2)
        time.sleep(0.3)

    trouble([open_memory(cluster.url, timeout=30, **cluster.options) for _ in range(3)], kill)


# -- PostgreSQL that comes and goes ----------------------------------------------------------------------------------


def test_clients_recover_by_themselves_when_postgresql_is_restarted(
    fragile: dict[str, Cluster],
    own_postgres: PostgresServer,
    address: str,
    bucket: StrictS3,
    open_memory: Callable[..., AgentMemory],
    soak: bool,
) -> None:
    cluster = fragile["objects"]
    dice = random.Random(31)

    def restart() -> None:
        for number in range(24 if soak else 4):
            time.sleep(dice.uniform(0.3, 0.8))
            own_postgres.stop(kill=number % 2 == 0)
            own_postgres.start()
        time.sleep(0.5)

    memories = [open_memory(cluster.url, timeout=60, **cluster.options) for _ in range(2)]
    direct = [open_memory(address, timeout=60, blobs=BUCKET_URL)]
    trouble([*memories, *direct], restart)


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """Have no process of PostgreSQL run: it takes connections and answers nothing."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(server.pid)], capture_output=True, text=True, check=True)
    processes = [server.pid, *map(int, listed.stdout.split())]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def timed_get(url: str) -> tuple[int, float, str]:
    began = time.monotonic()
    response = httpx.get(url, timeout=30)
    return response.status_code, time.monotonic() - began, response.text


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 20
    while timed_get(f"{url}/readyz")[0] != 200:
        assert time.monotonic() < deadline, "the server does not recover"
        time.sleep(0.05)


def test_without_postgresql_a_server_says_so_and_recovers_without_a_restart(
    fragile: dict[str, Cluster], own_postgres: PostgresServer, open_memory: Callable[..., AgentMemory]
) -> None:
    server = fragile["objects"].servers[0]
    memory = open_memory(server.url, timeout=1.5)
    memory.app_state.set("key", 1)
    with stopped(own_postgres):
        status, seconds, text = timed_get(f"{server.url}/readyz")
        assert (status, seconds < 4) == (503, True)
        assert "PostgreSQL" in text
        assert PASSWORD not in text
        assert timed_get(f"{server.url}/healthz")[0] == 200
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="PostgreSQL") as caught:
            memory.app_state.get("key")
        assert time.monotonic() - began < 4
        assert PASSWORD not in repr(caught.value)
    wait_until_ready(server.url)
    assert memory.app_state.get("key") == 1


def test_a_server_whose_postgresql_only_reads_is_not_ready_until_it_writes_again(
    fragile: dict[str, Cluster], own_postgres: PostgresServer, open_memory: Callable[..., AgentMemory]
) -> None:
    url = fragile["files"].servers[0].url

    def check_only_reads() -> None:
        wait_for(lambda: "read_only" in timed_get(f"{url}/readyz")[2])
        status, seconds, _ = timed_get(f"{url}/readyz")
        assert (status, seconds < 2) == (503, True)

    wait_until_ready(url)
    own_postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    own_postgres.execute("SELECT pg_reload_conf()")
    try:
        check_only_reads()
    finally:
        own_postgres.execute("ALTER SYSTEM RESET default_transaction_read_only")
        own_postgres.execute("SELECT pg_reload_conf()")
    wait_until_ready(url)

    own_postgres.stop()
    own_postgres.start(standby=True)
    check_only_reads()
    own_postgres.execute("SELECT pg_promote()")
    wait_until_ready(url)
    open_memory(url).app_state.set("key", 1)


def test_a_server_stays_alive_while_postgresql_answers_nothing(
    fragile: dict[str, Cluster], own_postgres: PostgresServer, open_memory: Callable[..., AgentMemory]
) -> None:
    server = fragile["objects"].servers[0]
    memory = open_memory(server.url, timeout=2)
    memory.app_state.set("key", 1)

    def fails(work: Callable[[], Any]) -> float:
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            work()
        return time.monotonic() - began

    with ThreadPoolExecutor(8) as pool, frozen(own_postgres):
        calls = [pool.submit(fails, lambda: memory.app_state.get("key")) for _ in range(4)]
        calls += [pool.submit(fails, lambda: memory.app_state.set("key", 2)) for _ in range(4)]
        time.sleep(0.2)
        status, seconds, _ = timed_get(f"{server.url}/healthz")
        assert (status, seconds < 1) == (200, True), f"the event loop was blocked for {seconds:.1f} s"
        status, seconds, _ = timed_get(f"{server.url}/readyz")
        assert (status, seconds < 5) == (503, True)
        assert max(call.result() for call in calls) < 5
    wait_until_ready(server.url)
    # Not the key of those writes: what PostgreSQL had received of them it may carry out only now.
    memory.app_state.set("later", 3)
    assert memory.app_state.get("later") == 3
    assert memory.app_state.get("key") in (1, 2)


def waiting_for_locks(watch: psycopg.Connection[Any]) -> int:
    row = watch.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
    assert row is not None
    return row[0]


def test_a_server_without_a_free_connection_says_when_to_come_back(
    fragile: dict[str, Cluster], address: str, open_memory: Callable[..., AgentMemory], application: str
) -> None:
    server = fragile["objects"].servers[0]
    memory = open_memory(server.url)
    memory.app_state.set("key", 1)
    path = f"{server.url}/v1/namespaces/default/applications/{application}/app_state"
    limits = httpx.Limits(max_connections=100)
    with ExitStack() as stack:
        http = stack.enter_context(httpx.Client(timeout=30, limits=limits))
        pool = stack.enter_context(ThreadPoolExecutor(60))
        holder = stack.enter_context(psycopg.connect(address))
        holder.execute("SELECT 1 FROM agent_memory.entry WHERE key = 'key' FOR UPDATE")

        def post(verb: str, body: Any) -> tuple[httpx.Response, float]:
            began = time.monotonic()
            return http.post(f"{path}/{verb}", json=body), time.monotonic() - began

        deletes = [pool.submit(post, "delete", {"state_key": "key"}) for _ in range(30)]
        watch = stack.enter_context(psycopg.connect(address, autocommit=True))
        wait_for(lambda: waiting_for_locks(watch) == Settings().connections)
        reads = [pool.submit(post, "prepare_read", {"state_key": "key"}) for _ in range(10)]
        status, seconds, _ = timed_get(f"{server.url}/healthz")
        answered = [future.result() for future in (*deletes, *reads)]
        holder.rollback()

    assert (status, seconds < 1) == (200, True), f"the event loop was blocked for {seconds:.1f} s"
    assert max(seconds for _, seconds in answered) < 12
    refused = [response for response, _ in answered if response.status_code == 503]
    assert len(refused) == len(answered), "nobody gets the lock"
    overloaded = [response for response in refused if response.json()["code"] == "overloaded"]
    assert overloaded
    assert all(float(response.headers["retry-after"]) >= 1 for response in overloaded)
    assert memory.app_state.set("key", 2).version == 2


# -- PostgreSQL that is not there from the start ---------------------------------------------------------------------


@pytest.fixture(params=["refuses", "says nothing", "has no such database", "was never migrated"])
def useless(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[str]:
    """An address of a PostgreSQL that no store can be opened in."""
    if request.param == "has no such database":
        yield with_password(postgres.address("nothing"))
        return
    if request.param == "was never migrated":
        address = with_password(postgres.empty_database())
        yield address
        postgres.drop(address)
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "says nothing":
            listener.listen(8)
        yield f"postgresql://somebody:{PASSWORD}@127.0.0.1:{listener.getsockname()[1]}/memory"


def test_a_store_without_its_postgresql_does_not_open_and_says_why(useless: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="PostgreSQL") as caught:
        AgentMemory(useless, application="a", blobs=str(tmp_path))
    assert time.monotonic() - began < 10
    assert PASSWORD not in "".join(map(str, (caught.value, repr(caught.value), caught.value.args)))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_without_its_postgresql_does_not_start_and_says_why(
    useless: str, tmp_path: Path, workers: str
) -> None:
    with pytest.raises(RuntimeError, match="did not start") as caught:
        ServerProcess(tmp_path, "--database", useless, "--blobs", str(tmp_path), "--workers", workers)
    log = str(caught.value).partition("\n")[2]
    assert len(set(log.splitlines())) == 1, "one reason, and no traceback"
    assert log.startswith("agent-memory: ")
    assert "PostgreSQL" in log
    assert PASSWORD not in log


# -- sweeping --------------------------------------------------------------------------------------------------------


@pytest.fixture
def timed_cluster(
    own_database: str,
    bucket: StrictS3,
    portal: Any,
    balancer: Balancer,
    thread_server: ThreadServer,
    second_server: Any,
) -> Iterator[TimedStore]:
    """Two servers of this process with one clock, which the test turns."""
    place = postgres_place(own_database, Bucket(bucket))
    servers = [thread_server, second_server]
    store = TimedHttpStore("sync", portal, place, balancer.url, servers, blob_hosts=[bucket.host])
    yield store
    store.close()


def test_of_a_thousand_abandoned_writes_one_sweep_leaves_nothing(timed_cluster: TimedStore, bucket: StrictS3) -> None:
    memory = timed_cluster.open(chunk_size=65_536)
    kept = memory.app_state.set("kept", value(1, LARGE))
    scope = Scope("default", timed_cluster.application)

    def abandon(number: int) -> None:
        blob = timed_cluster.send(memory, PrepareWrite(scope, f"key{number}", 100_000, chunk_size=65_536))
        # Some were never begun, some are half there, some lack only their commit.
        for chunk in blob.chunks[: number % 3]:
            timed_cluster.send(memory, PutChunk(chunk, memoryview(bytes(chunk.size))))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(abandon, range(1_000)))
    assert len(bucket.objects) > 900
    assert list(memory.app_state.keys()) == ["kept"]

    timed_cluster.clock.advance(seconds=GRACE_SECONDS + 1)
    assert timed_cluster.sweep().blobs == 1_000
    blob_id = next(timed_cluster.service.catalog.values()).blob_id
    assert all(blob_id in name.split("/") for name in bucket.objects), "only what was committed is left"
    assert memory.app_state.snapshot("kept") == (value(1, LARGE), kept)

    timed_cluster.clock.advance(days=2)
    timed_cluster.sweep()
    assert [row.id for row in timed_cluster.service.catalog.blobs()] == [blob_id]


def test_no_read_fails_while_two_servers_sweep(timed_cluster: TimedStore) -> None:
    memory = timed_cluster.open(chunk_size=65_536)
    done = threading.Event()
    memory.app_state.set("key", value(0, LARGE))

    def write() -> None:
        try:
            for number in range(1, 41):
                memory.app_state.set("key", value(number, LARGE))
                timed_cluster.clock.advance(seconds=GRACE_SECONDS + 1)
                in_threads(*(service.sweep for service in timed_cluster.services))
        finally:
            done.set()

    def read() -> list[int]:
        found = [counter_of(memory.app_state.get("key"))]
        while not done.is_set():
            found.append(counter_of(memory.app_state.get("key")))
        return found

    _, *histories = in_threads(write, *[read] * 4)
    assert all(history == sorted(history) for history in histories)
    assert min(map(len, histories)) > 5
    timed_cluster.clock.advance(seconds=GRACE_SECONDS + 1)
    timed_cluster.sweep()
    assert len(timed_cluster.files()) == 4, "the chunks of the newest value"
