"""Large values in stores that others wrote, Azure's and Ceph's: signed URLs, conditions, listings and deletions.

It runs with ``--soak`` alone. Azurite comes from npm into ``.cache``, which takes half a minute and 230 MB once; Ceph
has to be installed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import httpx
import pytest

from agent_memory import AgentMemory, AsyncAgentMemory
from agent_memory.errors import UnavailableError
from agent_memory.messages import Check
from agent_memory.opening import open_service
from agent_memory.storage.object_blobs import ObjectBlobs
from tests.support.object_stores import Place, azurite, ceph
from tests.support.server import ServerProcess

pytestmark = pytest.mark.timeout(600)

LARGE: Final = 20_000_000


@pytest.fixture(scope="module", params=[azurite, ceph], ids=["azure", "ceph"])
def running(request: pytest.FixtureRequest, soak: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    start: Callable[[Path], AbstractContextManager[Place]] = request.param
    if not soak:
        pytest.skip("needs --soak: it installs Azurite from npm, or starts a cluster")
    with start(tmp_path_factory.mktemp("objects")) as place:
        yield place


@pytest.fixture
def place(running: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An object store to which the environment leads."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    return running


def test_large_values_travel_by_signed_urls(place: Place, tmp_path: Path) -> None:
    first, second = os.urandom(LARGE), os.urandom(300_000)
    with ServerProcess(tmp_path, "--blobs", f"{place.scheme}://memory/travel", **place.environment) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        with AgentMemory(server.url, application="app", blob_hosts=[place.host]) as memory:
            memory.app_state.set("key", first)
            assert memory.app_state.get("key") == first
            memory.app_state.set("key", second)
            assert memory.app_state.get("key") == second

        async def run() -> object:
            async with AsyncAgentMemory(server.url, application="app", blob_hosts=[place.host]) as memory:
                await memory.app_state.set("other", first)
                return await memory.app_state.get("other")

        assert asyncio.run(run()) == first
    service = open_service(str(tmp_path / "server.db"), f"{place.scheme}://memory/travel")
    report = service.check(Check())
    service.close()
    # Of eight MiB each at most: three for each of the large ones.
    assert (report.problems, report.values, report.objects) == ((), 2, 7)


def test_objects_are_made_once_read_in_part_listed_and_deleted(place: Place) -> None:
    blobs = ObjectBlobs(f"{place.scheme}://memory/objects")
    ids = [f"0190aaaa-0000-7000-8000-00000000000{number}" for number in range(3)]
    etags = [blobs.put(blob_id, 0, memoryview(b"0123456789")) for blob_id in ids]
    assert blobs.put(ids[0], 0, memoryview(b"0123456789")) == etags[0]
    with pytest.raises(Exception, match="other bytes"):
        blobs.put(ids[0], 0, memoryview(b"9876543210"))
    part = bytearray(3)
    blobs.read_into(ids[0], 0, 4, memoryview(part))
    assert part == b"456"
    assert blobs.digest(ids[0], [10]) == (hashlib.sha256(b"0123456789").hexdigest(), etags[:1])
    assert blobs.digest(ids[0], [10, 10]) is None
    assert sorted(found.blob_id for found in blobs.objects()) == ids
    blobs.delete([(ids[0], 3), (ids[1], 1)])
    assert [found.blob_id for found in blobs.objects()] == ids[2:]


def test_a_signed_url_is_for_one_method_one_object_and_a_while(place: Place) -> None:
    blobs = ObjectBlobs(f"{place.scheme}://memory/urls")
    blob_id = "0190aaaa-0000-7000-8000-000000000000"
    put, get = blobs.url("PUT", blob_id, 0, 60), blobs.url("GET", blob_id, 0, 60)
    kind = place.put_headers
    assert httpx.put(get, content=b"value", headers=kind).status_code == 403
    assert httpx.put(put.replace(f"{blob_id}/0", f"{blob_id}/1"), content=b"value", headers=kind).status_code == 403
    assert httpx.put(put, content=b"value", headers=kind).status_code in (200, 201)
    assert httpx.get(get).content == b"value"
    short = blobs.url("GET", blob_id, 0, 1)
    time.sleep(2)
    assert httpx.get(short).status_code == 403


def test_a_bucket_that_is_not_there_and_a_wrong_key_are_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="no such bucket"):
        ObjectBlobs(f"{place.scheme}://absent/prefix").ping()
    monkeypatch.setenv(place.secret, base64.b64encode(b"another key").decode())
    with pytest.raises(UnavailableError, match="refuses our credentials"):
        ObjectBlobs(f"{place.scheme}://memory/prefix").ping()
