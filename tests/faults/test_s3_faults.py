"""An object store that fails now and then, for a while, or from the start: nothing wrong is read, nothing is left."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from agent_memory import AgentMemory, UnavailableError
from agent_memory.errors import AgentMemoryError
from agent_memory.messages import PrepareWrite, PutChunk, Scope
from agent_memory.storage.blobs import GRACE_SECONDS
from tests.support.s3_stand import CHUNK, KIB, Stand
from tests.support.strict_s3 import ACCESS_KEY, SECRET_KEY, Fault, StrictS3, seeded

WEATHER: Final = {
    Fault.REFUSED: 0.04,
    Fault.REFUSED_EMPTY: 0.03,
    Fault.REFUSED_AFTER: 0.03,
    Fault.RESET: 0.02,
    Fault.RESET_AFTER: 0.02,
    Fault.RESET_MIDWAY: 0.01,
    Fault.SLOW: 0.03,
    Fault.TRUNCATED: 0.02,
    Fault.LYING: 0.005,
}
SCOPE: Final = Scope("default", "a")
WORKERS: Final = 8


def lying_only_where_s3_may(seed: int) -> Callable[[str, str], Fault | None]:
    """Return the weather; a 200 with an error comes in answer to writes alone."""
    plan = seeded(seed, WEATHER)

    def weather(method: str, key: str) -> Fault | None:
        fault = plan(method, key)
        return None if fault is Fault.LYING and method not in ("PUT", "POST") else fault

    return weather


@pytest.mark.parametrize("way", ["remote", "embedded"])
def test_in_bad_weather_every_value_is_the_right_one(stand: Stand, soak: bool, way: str) -> None:
    operations = (20_000 if soak else 2_000) // WORKERS
    wrong: list[str] = []
    failed: list[str] = []

    def work(worker: int, memory: AgentMemory) -> None:
        numbers = random.Random(worker)
        material = numbers.randbytes(400 * KIB)
        # What may stand there: the last value written, and those whose writes were not answered.
        possible: dict[str, list[bytes | None]] = {}
        for _ in range(operations):
            key = f"{worker}/{numbers.randrange(12)}"
            size = numbers.choice((0, KIB, 40 * KIB, 100 * KIB, 200 * KIB, 300 * KIB))
            start = numbers.randrange(100 * KIB)
            data = material[start : start + size]
            try:
                if numbers.random() < 0.4:
                    possible.setdefault(key, [None]).append(data)
                    memory.app_state.set(key, data)
                    possible[key] = [data]
                elif memory.app_state.get(key) not in possible.get(key, [None]):
                    wrong.append(key)
            except AgentMemoryError as error:
                failed.append(repr(error))

    stand.s3.plan = lying_only_where_s3_may(7)
    open_one = stand.remote if way == "remote" else stand.embedded
    with open_one(chunk_size=CHUNK, timeout=30.0) as memory, ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(work, worker, memory) for worker in range(WORKERS)]:
            done.result()
    assert not wrong
    assert len(failed) <= WORKERS * operations / 1_000, failed[:5]
    assert stand.s3.faults > operations / 4


def test_abandoned_writes_leave_no_object_after_one_sweep(stand: Stand, soak: bool) -> None:
    writes = 5_000 if soak else 1_000
    kept = os.urandom(100 * KIB)
    with stand.embedded() as memory, httpx.Client(trust_env=False) as client:
        memory.app_state.set("kept", kept)
        chunk = memoryview(bytes(CHUNK))
        for number in range(writes):
            blob = stand.service.prepare_write(PrepareWrite(SCOPE, f"key-{number}", 3 * CHUNK, CHUNK))
            if number % 2:
                stand.service.put_chunk(PutChunk(blob.chunks[0], chunk))
            else:
                client.put(stand.blobs.url("PUT", blob.id, 1, 60), content=bytes(chunk)).raise_for_status()
        assert len(stand.s3.objects) == writes + 1
        stand.clock.advance(seconds=GRACE_SECONDS + 1)
        stand.s3.seen.clear()
        assert stand.service.sweep().blobs == writes
        assert len(stand.s3.objects) == 1
        assert len(stand.s3.seen) <= 3 * writes / 1_000 + 1
        assert memory.app_state.get("kept") == kept


def test_a_late_upload_of_an_abandoned_write_is_swept_a_day_later(stand: Stand) -> None:
    blob = stand.service.prepare_write(PrepareWrite(SCOPE, "key", CHUNK))
    url = stand.blobs.url("PUT", blob.id, 0, 300)
    stand.clock.advance(seconds=GRACE_SECONDS + 1)
    stand.service.sweep()
    httpx.put(url, content=bytes(CHUNK), trust_env=False).raise_for_status()
    stand.clock.advance(days=2)
    stand.service.sweep()
    assert not stand.s3.objects


def test_a_sweep_that_the_object_store_interrupts_is_made_up_for(stand: Stand) -> None:
    with stand.embedded() as memory:
        for _ in range(3):
            memory.app_state.set("key", os.urandom(100 * KIB))
        stand.clock.advance(seconds=GRACE_SECONDS + 1)
        stand.s3.plan = seeded(1, {Fault.REFUSED: 1.0})
        with pytest.raises(UnavailableError):
            stand.service.sweep()
        stand.s3.plan = None
        stand.clock.advance(days=2)
        stand.service.sweep()
        assert len(stand.s3.objects) == 1


@pytest.mark.parametrize("way", ["remote", "embedded"])
def test_no_read_fails_while_its_store_is_swept(stand: Stand, soak: bool, way: str) -> None:
    values = [os.urandom(200 * KIB) for _ in range(4)]
    ended = threading.Event()
    failed: list[str] = []
    reads = 0

    def guarded(work: Callable[[], Any], pause: float) -> None:
        while not ended.is_set():
            try:
                work()
            except Exception as error:
                failed.append(repr(error))
            time.sleep(pause)

    open_one = stand.remote if way == "remote" else stand.embedded
    with open_one(chunk_size=CHUNK) as memory:

        def write_and_sweep() -> None:
            memory.app_state.set("key", random.choice(values))
            # Every grace is over at once: what was overwritten goes, readers or not.
            stand.clock.advance(seconds=GRACE_SECONDS + 1)
            stand.service.sweep()

        def read() -> None:
            nonlocal reads
            reads += 1
            if memory.app_state.get("key") not in values:
                failed.append("a value that was never written")

        write_and_sweep()
        jobs = [(write_and_sweep, 0.1), (read, 0.0), (read, 0.0), (read, 0.0)]
        threads = [threading.Thread(target=guarded, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        time.sleep(60 if soak else 4)
        ended.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert reads > 20
    stand.clock.advance(seconds=GRACE_SECONDS + 1)
    stand.service.sweep()
    assert len(stand.s3.objects) == 4


# -- not there -------------------------------------------------------------------------------------------------------


def test_an_object_store_that_is_away_is_named_and_comes_back(stand: Stand) -> None:
    def ready() -> httpx.Response:
        return httpx.get(f"{stand.server.url}/readyz", trust_env=False)

    large = os.urandom(100 * KIB)
    stand.s3.stop()
    away = ready()
    assert (away.status_code, "object store" in away.text) == (503, True)
    with stand.remote(timeout=1.0) as memory:
        memory.app_state.set("small", 1)
        for _ in range(2):
            with pytest.raises(UnavailableError) as caught:
                memory.app_state.set("large", large)
            assert "blob store" in str(caught.value)
            text = f"{away.text} {caught.value!r} {caught.value.__context__!r}"
            assert not any(part in text for part in ("://", stand.s3.host, ACCESS_KEY, SECRET_KEY))
            assert memory.app_state.get("small") == 1
            stand.s3.start()
            assert ready().status_code == 200
            memory.app_state.set("large", large)
            assert memory.app_state.get("large") == large
            stand.s3.stop()
            with pytest.raises(UnavailableError):
                memory.app_state.get("large", default=b"")
    stand.s3.start()


def test_an_embedded_store_opens_while_its_object_store_is_away(s3: StrictS3, tmp_path: Path) -> None:
    s3.stop()
    with AgentMemory(tmp_path / "x.db", application="a", blobs="s3://bucket/prefix", timeout=1.0) as memory:
        memory.app_state.set("small", 1)
        with pytest.raises(UnavailableError, match="the object store does not serve"):
            memory.app_state.set("large", bytes(100 * KIB))
        s3.start()
        memory.app_state.set("large", bytes(100 * KIB))


def test_credentials_that_are_refused_are_an_error_at_once(
    s3: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    started = time.monotonic()
    with (
        AgentMemory(tmp_path / "x.db", application="a", blobs="s3://bucket/prefix") as memory,
        pytest.raises(UnavailableError, match="refuses our credentials"),
    ):
        memory.app_state.set("large", bytes(100 * KIB))
    assert time.monotonic() - started < 5


def test_an_answer_that_never_comes_does_not_hold_up_a_server(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.s3.plan = seeded(1, {Fault.STALLED: 1.0})
    started = time.monotonic()
    assert httpx.get(f"{stand.server.url}/readyz", trust_env=False).status_code == 503
    with stand.remote() as memory:
        memory.app_state.set("small", 1)
    assert time.monotonic() - started < 5
