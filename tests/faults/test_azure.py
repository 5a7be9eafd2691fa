"""Large values in Azure, on Azurite: signed URLs, conditions, listings and deletions as Azure has them.

It runs with ``--soak`` alone: Azurite comes from npm into ``.cache``, which takes half a minute and 230 MB once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Final

import httpx
import pytest

from agent_memory import AgentMemory, AsyncAgentMemory
from agent_memory.errors import UnavailableError
from agent_memory.messages import Check
from agent_memory.opening import open_service
from agent_memory.storage.object_blobs import ObjectBlobs
from tests.support.server import ROOT, ServerProcess

pytestmark = pytest.mark.timeout(600)

AZURITE: Final = "azurite@3.35.0"
ACCOUNT: Final = "devstoreaccount1"
# Published: https://learn.microsoft.com/azure/storage/common/storage-use-azurite, well-known storage account and key.
KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
LARGE: Final = 20_000_000


@pytest.fixture(scope="module")
def azurite(soak: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and port of an Azurite with an empty container, ``memory``."""
    if not soak:
        pytest.skip("needs --soak: it installs Azurite from npm")
    folder = ROOT / ".cache" / AZURITE
    command = folder / "node_modules" / ".bin" / "azurite-blob"
    if not command.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("Azurite needs npm")
        install = [npm, "install", "--no-fund", "--no-audit", "--prefix", str(folder), AZURITE]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed:\n{done.stderr}")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = [
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
        "--location",
        str(tmp_path_factory.mktemp("azurite")),
    ]
    process = subprocess.Popen(
        [str(command), *options, "--silent", "--disableTelemetry", "--skipApiVersionCheck"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        make_container(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def make_container(port: int) -> None:
    """Make the container, signed as "Shared Key" wants it, as soon as Azurite answers."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    named = "".join(f"{name}:{value}\n" for name, value in headers.items())
    # Eleven headers that are not sent stand between the method and those of Azure's own.
    text = "PUT" + "\n" * 12 + f"{named}/{ACCOUNT}/{ACCOUNT}/memory\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    url = f"http://127.0.0.1:{port}/{ACCOUNT}/memory?restype=container"
    stop = time.monotonic() + 30
    while True:
        try:
            response = httpx.put(url, headers=headers)
        except httpx.ConnectError:
            assert time.monotonic() < stop, "Azurite did not start"
            time.sleep(0.1)
        else:
            assert response.status_code == 201, response.text
            return


@pytest.fixture
def environment(azurite: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": f"http://{azurite}/{ACCOUNT}",
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def test_large_values_travel_by_signed_urls(azurite: str, environment: dict[str, str], tmp_path: Path) -> None:
    first, second = os.urandom(LARGE), os.urandom(300_000)
    with ServerProcess(tmp_path, "--blobs", "az://memory/travel", **environment) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        with AgentMemory(server.url, application="app", blob_hosts=[azurite]) as memory:
            memory.app_state.set("key", first)
            assert memory.app_state.get("key") == first
            memory.app_state.set("key", second)
            assert memory.app_state.get("key") == second

        async def run() -> object:
            async with AsyncAgentMemory(server.url, application="app", blob_hosts=[azurite]) as memory:
                await memory.app_state.set("other", first)
                return await memory.app_state.get("other")

        assert asyncio.run(run()) == first
    service = open_service(str(tmp_path / "server.db"), "az://memory/travel")
    report = service.check(Check())
    service.close()
    # Of eight MiB each at most: three for each of the large ones.
    assert (report.problems, report.values, report.objects) == ((), 2, 7)


@pytest.mark.usefixtures("environment")
def test_objects_are_made_once_read_in_part_listed_and_deleted() -> None:
    blobs = ObjectBlobs("az://memory/objects")
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


@pytest.mark.usefixtures("environment")
def test_a_signed_url_is_for_one_method_one_object_and_a_while() -> None:
    blobs = ObjectBlobs("az://memory/urls")
    blob_id = "0190aaaa-0000-7000-8000-000000000000"
    put, get = blobs.url("PUT", blob_id, 0, 60), blobs.url("GET", blob_id, 0, 60)
    kind = {"x-ms-blob-type": "BlockBlob"}
    assert httpx.put(get, content=b"value", headers=kind).status_code == 403
    assert httpx.put(put.replace(f"{blob_id}/0", f"{blob_id}/1"), content=b"value", headers=kind).status_code == 403
    assert httpx.put(put, content=b"value", headers=kind).status_code == 201
    assert httpx.get(get).content == b"value"
    short = blobs.url("GET", blob_id, 0, 1)
    time.sleep(2)
    assert httpx.get(short).status_code == 403


@pytest.mark.usefixtures("environment")
def test_a_container_that_is_not_there_and_a_wrong_key_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="no such bucket"):
        ObjectBlobs("az://absent/prefix").ping()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"another key").decode())
    with pytest.raises(UnavailableError, match="refuses our credentials"):
        ObjectBlobs("az://memory/prefix").ping()
