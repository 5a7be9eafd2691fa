"""A server, a PostgreSQL and an object store behind TLS: who is trusted, and what is said of whom is not."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from agent_memory import AgentMemory, AsyncAgentMemory
from agent_memory.errors import InvalidRequestError, UnavailableError
from agent_memory.storage.object_blobs import ObjectBlobs
from agent_memory.storage.postgres.catalog import PostgresCatalog
from tests.support.balancer import Balancer
from tests.support.server import ServerProcess, free_port

LARGE = b"x" * 300_000


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def url(authority: trustme.CA, tmp_path: Path) -> Iterator[str]:
    """The address of a server behind a proxy that speaks TLS for it, as 127.0.0.1 and under no other name."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    port = free_port()
    with (
        Balancer([f"http://127.0.0.1:{port}"], tls) as proxy,
        ServerProcess(tmp_path, "--public-url", proxy.url, port=port),
    ):
        yield proxy.url


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


@pytest.mark.usefixtures("trusted")
def test_an_authority_of_ones_own_is_trusted_by_the_usual_variable(url: str) -> None:
    with AgentMemory(url, application="app") as memory:
        memory.app_state.set("small", 1)
        memory.app_state.set("large", LARGE)
        assert memory.app_state.get("small") == 1
        assert memory.app_state.get("large") == LARGE

    async def read() -> list[object]:
        async with AsyncAgentMemory(url, application="app") as memory:
            return [await memory.app_state.get("small"), await memory.app_state.get("large")]

    assert asyncio.run(read()) == [1, LARGE]


def test_a_certificate_of_an_unknown_authority_is_refused_at_once_and_by_name(url: str) -> None:
    expected = f"no TLS connection to the server at {url.removeprefix('https://')} is possible: .*SSL_CERT_FILE"
    began = time.monotonic()
    with AgentMemory(url, application="app") as memory, pytest.raises(UnavailableError, match=expected) as caught:
        memory.app_state.get("small")
    assert caught.value.code == "tls_failed"

    async def read() -> None:
        async with AsyncAgentMemory(url, application="app") as memory:
            await memory.app_state.get("small")

    with pytest.raises(UnavailableError, match=expected):
        asyncio.run(read())
    assert time.monotonic() - began < 5, "nothing is gained by trying again until the call's time is over"


@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_another_host_is_refused(url: str) -> None:
    with (
        AgentMemory(url.replace("127.0.0.1", "localhost"), application="app") as memory,
        pytest.raises(UnavailableError, match="not valid for 'localhost'"),
    ):
        memory.app_state.set("small", 1)


def test_a_server_that_speaks_no_tls_is_told_from_one_that_is_away(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        ServerProcess(tmp_path) as server,
        AgentMemory(server.url.replace("http", "https"), application="app") as memory,
        pytest.raises(UnavailableError, match=r"wrong version number .*http://"),
    ):
        memory.app_state.get("small")
    assert time.monotonic() - began < 10


def test_a_failure_that_the_caller_is_handling_is_not_taken_for_the_calls_own() -> None:
    def call() -> str | None:
        with AgentMemory("http://127.0.0.1:1", application="app", timeout=0.3) as memory:
            with pytest.raises(UnavailableError) as caught:
                memory.app_state.get("small")
            return caught.value.code

    try:
        raise ssl.SSLCertVerificationError("of another connection")
    except ssl.SSLError:
        assert call() == "no_answer"


def test_a_file_without_certificates_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (None, "no certificates"):
        file = tmp_path / "authority.pem"
        if content is not None:
            file.write_text(content)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with pytest.raises(InvalidRequestError, match="SSL_CERT_FILE"):
            AgentMemory("https://127.0.0.1:1", application="app")


# -- what a server itself connects to ----------------------------------------------------------------------------------


def _certificate(authority: trustme.CA, kind: str) -> trustme.LeafCert:
    now = datetime.now(UTC)
    if kind == "expired":
        return authority.issue_cert("127.0.0.1", not_before=now - timedelta(days=2), not_after=now - timedelta(days=1))
    if kind == "of another host":
        return authority.issue_cert("db.example")
    return (trustme.CA() if kind == "of an unknown authority" else authority).issue_cert("127.0.0.1")


@pytest.fixture
def refused_port(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[int]:
    """A port where a certificate is shown, at once or to who asks for TLS as PostgreSQL's clients do, and no more."""
    kind, asked_for = request.param
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _certificate(authority, kind).configure_cert(tls)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), connection:
                if asked_for:
                    connection.recv(8)
                    connection.sendall(b"S")
                tls.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize(
    ("refused_port", "says"),
    [
        (("expired", True), "expired"),
        (("of another host", True), "another host"),
        (("of an unknown authority", True), "sslrootcert"),
    ],
    indirect=["refused_port"],
)
def test_why_postgresql_is_not_trusted_is_said(
    refused_port: int, says: str, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    trust = f"sslmode=verify-full&sslrootcert={tmp_path / 'authority.pem'}"
    with pytest.raises(UnavailableError, match=f"PostgreSQL shows a certificate .*{says}") as caught:
        PostgresCatalog(f"postgresql://me@127.0.0.1:{refused_port}/x?{trust}")
    assert caught.value.code == "unreachable"


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("refused_port", "says"),
    [
        (("expired", False), "has expired"),
        (("of another host", False), "for another host"),
        (("of an unknown authority", False), "SSL_CERT_FILE"),
    ],
    indirect=["refused_port"],
)
def test_why_an_object_store_is_not_trusted_is_said(
    refused_port: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "AWS_ENDPOINT_URL": f"https://127.0.0.1:{refused_port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(
        UnavailableError, match=f"no TLS connection to the object store is possible: .*{says}"
    ) as caught:
        ObjectBlobs("s3://bucket").ping()
    assert caught.value.code == "unreachable"
