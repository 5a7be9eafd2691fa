"""Object stores that others wrote: Azure's, which Azurite stands in for, and Ceph's, a whole cluster of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import os
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import httpx
import pytest

from tests.support.server import ROOT, free_port

AZURITE: Final = "azurite@3.35.0"
_ACCOUNT: Final = "devstoreaccount1"
# Published: https://learn.microsoft.com/azure/storage/common/storage-use-azurite, well-known storage account and key.
_AZURE_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_CEPH: Final = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_CEPH_KEY: Final = "a-key-of-ceph"
_START_SECONDS: Final = 60.0
_STARTS: Final = 10


class Place(NamedTuple):
    """Where an object store with an empty bucket ``memory`` is, and what leads there.

    ``put_headers`` are those that an upload needs; ``secret`` names the variable of the environment that has the key.
    """

    scheme: str
    host: str
    environment: dict[str, str]
    secret: str
    put_headers: dict[str, str]


# -- Azure -----------------------------------------------------------------------------------------------------------


@contextmanager
def azurite(folder: Path) -> Generator[Place]:
    """Run Azurite, which npm brings into ``.cache`` first."""
    home = ROOT / ".cache" / AZURITE
    command = home / "node_modules" / ".bin" / "azurite-blob"
    if not command.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("Azurite needs npm")
        install = [npm, "install", "--no-fund", "--no-audit", "--prefix", str(home), AZURITE]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed:\n{done.stderr}")
    port = free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    with _process(str(command), *options, "--silent", "--disableTelemetry", "--skipApiVersionCheck"):
        _make_container(port)
        environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _AZURE_KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{_ACCOUNT}",
        }
        kind = {"x-ms-blob-type": "BlockBlob"}
        yield Place("az", f"127.0.0.1:{port}", environment, "AZURE_STORAGE_ACCOUNT_KEY", kind)


def _make_container(port: int) -> None:
    """Make the container, signed as "Shared Key" wants it, as soon as Azurite answers."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    named = "".join(f"{name}:{value}\n" for name, value in headers.items())
    # Eleven headers that are not sent stand between the method and those of Azure's own.
    text = "PUT" + "\n" * 12 + f"{named}/{_ACCOUNT}/{_ACCOUNT}/memory\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(_AZURE_KEY), text.encode(), hashlib.sha256)).decode()
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{signature}"
    _wait_for(port)
    response = httpx.put(f"http://127.0.0.1:{port}/{_ACCOUNT}/memory?restype=container", headers=headers)
    assert response.status_code == 201, response.text


# -- Ceph ------------------------------------------------------------------------------------------------------------


@contextmanager
def ceph(folder: Path) -> Generator[Place]:
    """Run a cluster of one monitor and one store in memory, and the gateway that speaks S3."""
    if missing := [program for program in _CEPH if shutil.which(program) is None]:
        pytest.skip(f"needs {missing[0]}: Debian's packages ceph-mon, ceph-osd, radosgw and ceph-common")
    monitor, port, cluster = free_port(), free_port(), uuid4()
    settings = folder / "ceph.conf"
    settings.write_text(_ceph_settings(folder, str(cluster), monitor, port))
    named = ("-c", str(settings))
    tell = ("ceph", *named, "--connect-timeout", str(int(_START_SECONDS)))
    monitors, disk = str(folder / "monitors"), str(uuid4())
    for name in ("mon", "osd", "run"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        _run("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{monitor}]", "--fsid", str(cluster), monitors)
        _run("ceph-mon", *named, "--mkfs", "-i", "a", "--monmap", monitors)
        stack.enter_context(_process("ceph-mon", *named, "-i", "a", "-f"))
        _run(*tell, "osd", "new", disk)
        _run("ceph-osd", *named, "-i", "0", "--mkfs", "--osd-uuid", disk)
        _run(*tell, "osd", "crush", "add", "osd.0", "1", "root=default", "host=here")
        stack.enter_context(_process("ceph-osd", *named, "-i", "0", "-f"))
        stack.enter_context(_process("radosgw", *named, "-n", "client.rgw", "-f"))
        _wait_for(port)
        user = ("--uid=memory", "--display-name=memory", f"--access-key={_CEPH_KEY}", f"--secret-key={_CEPH_KEY}")
        _run("radosgw-admin", *named, "-n", "client.rgw", "user", "create", *user)
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": _CEPH_KEY,
            "AWS_SECRET_ACCESS_KEY": _CEPH_KEY,
            "AWS_REGION": "us-east-1",
        }
        _make_bucket(environment)
        yield Place("s3", f"127.0.0.1:{port}", environment, "AWS_SECRET_ACCESS_KEY", {})


def _ceph_settings(folder: Path, cluster: str, monitor: int, port: int) -> str:
    """Return a configuration for one machine, without passwords, copies or a disk."""
    # Debian's own default is no absolute path.
    classes = next(Path("/usr/lib").glob("*/rados-classes"))
    return f"""
[global]
fsid = {cluster}
mon initial members = a
mon host = v1:127.0.0.1:{monitor}
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/$name.log
mon data = {folder}/mon
mon data avail crit = 1
mon allow pool size one = true
mon max pg per osd = 1000
osd data = {folder}/osd
osd class dir = {classes}
osd objectstore = memstore
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


def _make_bucket(environment: dict[str, str]) -> None:
    client: Any = importlib.import_module("boto3").client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=_CEPH_KEY,
        aws_secret_access_key=_CEPH_KEY,
        region_name=environment["AWS_REGION"],
    )
    client.create_bucket(Bucket="memory")


# -- both ------------------------------------------------------------------------------------------------------------


@contextmanager
def _process(*command: str) -> Generator[None]:
    """Run a program; one that ends at once is started again, as Ceph's store when it is ahead of what it is to know."""
    quiet = subprocess.DEVNULL
    for _ in range(_STARTS):
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        if process.returncode is None:
            break
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_SECONDS)
    assert done.returncode == 0, done.stderr


def _wait_for(port: int) -> None:
    """Wait until a server answers at all."""
    stop = time.monotonic() + _START_SECONDS
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
        except httpx.TransportError:
            assert time.monotonic() < stop, "the object store did not start"
            time.sleep(0.1)
        else:
            return
