"""Large values through signed URLs: the server never sees the bytes, and believes nobody about them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_memory import AgentMemory, ConflictError, IntegrityError, State, UnavailableError
from agent_memory.errors import AgentMemoryError, InvalidRequestError, PermissionDeniedError
from agent_memory.flows import call
from agent_memory.ids import uuid7
from agent_memory.messages import Blob, Chunk, CommitWrite, Entry, Message, PrepareRead, PrepareWrite, Scope
from agent_memory.opening import open_service
from tests.support.s3_stand import CHUNK, KIB, Stand
from tests.support.stores import ThreadServer
from tests.support.strict_s3 import ACCESS_KEY, BUCKET, SECRET_KEY, StrictS3

SCOPE = Scope("default", "a")
LARGE = os.urandom(200 * KIB)


@pytest.fixture
def memory(stand: Stand) -> Iterator[AgentMemory]:
    with stand.remote(chunk_size=CHUNK) as memory:
        yield memory


def send(memory: AgentMemory, message: Message) -> Any:
    return memory._client.run(call(message))


def prepare(memory: AgentMemory, size: int, chunk_size: int | None = CHUNK) -> Blob:
    return send(memory, PrepareWrite(SCOPE, "key", size, chunk_size))


def upload(blob: Blob, data: bytes) -> list[str]:
    """Put the chunks as a foreign client does, and return their etags."""
    etags: list[str] = []
    for chunk in blob.chunks:
        answer = httpx.put(chunk.uri, content=data[: chunk.size], trust_env=False)
        answer.raise_for_status()
        etags.append(answer.headers["etag"])
        data = data[chunk.size :]
    return etags


def commit(memory: AgentMemory, blob: Blob, etags: list[str | None], **fields: Any) -> Entry:
    chunks = tuple(Chunk(chunk.uri, chunk.size, etag) for chunk, etag in zip(blob.chunks, etags, strict=True))
    return send(memory, CommitWrite(SCOPE, "key", blob.id, None, Blob(blob.id, chunks), **fields))


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [CHUNK, 8 * 1024 * KIB], ids=["several chunks", "one chunk"])
def test_a_large_value_is_written_and_read_past_the_server(stand: Stand, chunk_size: int) -> None:
    with stand.remote(chunk_size=chunk_size) as memory:
        memory.app_state.set("key", LARGE)
        assert memory.app_state.get("key") == LARGE
    seen = stand.s3.seen
    assert len(stand.s3.objects) == -(-len(LARGE) // min(chunk_size, len(LARGE)))
    assert {one.agent for one in seen if one.presigned} == {"agent-memory"}
    assert sum(one.received for one in seen if one.presigned) == len(LARGE)
    assert sum(one.sent for one in seen if one.presigned) == len(LARGE)
    assert all(one.method in ("GET", "HEAD") and one.received == 0 for one in seen if not one.presigned)
    assert sum(one.sent for one in seen if not one.presigned) < 4 * KIB


def test_a_value_may_have_a_part_of_a_large_chunk_asked_for(stand: Stand) -> None:
    with stand.remote() as memory:
        memory.app_state.set("key", LARGE)
    with stand.remote(chunk_size=CHUNK) as memory:
        assert memory.app_state.get("key") == LARGE
    assert len([one for one in stand.s3.seen if one.status == 206]) == 4


def test_a_value_that_lies_in_the_catalog_is_read_by_url_too(stand: Stand, memory: AgentMemory) -> None:
    memory.app_state.set("key", b"small")
    found = send(memory, PrepareRead(SCOPE, "key", 0))
    assert httpx.get(found.blob.chunks[0].uri, trust_env=False).content == b"small"


def test_a_client_that_does_not_trust_the_object_store_refuses(stand: Stand) -> None:
    with AgentMemory(stand.server.url, application="a") as memory, pytest.raises(AgentMemoryError, match="blob_hosts"):
        memory.app_state.set("key", LARGE)
    assert not stand.s3.objects


def test_a_store_in_this_process_keeps_large_values_in_the_object_store(s3: StrictS3, tmp_path: Path) -> None:
    with AgentMemory(tmp_path / "x.db", application="a", blobs=f"s3://{BUCKET}/prefix", chunk_size=CHUNK) as memory:
        memory.app_state.set("key", LARGE)
        assert memory.app_state.get("key") == LARGE
        assert memory.check().ok
    assert len(s3.objects) == 4
    assert not (tmp_path / "x.db.blobs").exists()


def test_a_server_opens_a_file_and_an_object_store(s3: StrictS3, thread_server: ThreadServer, tmp_path: Path) -> None:
    service = open_service(str(tmp_path / "x.db"), f"s3://{BUCKET}/prefix")
    thread_server.serve(service)
    with AgentMemory(thread_server.url, application="a", blob_hosts=[s3.host]) as memory:
        memory.app_state.set("key", LARGE)
        assert memory.app_state.get("key") == LARGE
    service.close()


# -- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", ["read", "write"])
def test_a_url_that_has_expired_is_asked_for_again(
    stand: Stand, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch, face: str
) -> None:
    memory.app_state.set("key", LARGE)
    url, signed = stand.blobs.url, 0

    def short_lived(method: str, blob_id: str, index: int, seconds: int) -> str:
        nonlocal signed
        signed += 1
        return url(method, blob_id, index, 1 if signed <= 6 else seconds)

    monkeypatch.setattr(stand.blobs, "url", short_lived)
    stand.s3.skew = 10.0
    stand.s3.seen.clear()
    if face == "read":
        assert memory.app_state.get("key") == LARGE
    else:
        memory.app_state.set("key", LARGE[::-1])
    refused = sum(one.status == 403 for one in stand.s3.seen)
    # The first four URLs and two of the next are too old; none is tried twice.
    assert 2 <= refused <= 6
    assert memory.app_state.get("key") == (LARGE if face == "read" else LARGE[::-1])


@pytest.mark.parametrize(
    "use", [lambda state: state.get("key"), lambda state: state.set("key", LARGE[::-1])], ids=["read", "write"]
)
def test_a_url_that_is_always_too_old_is_an_error_without_the_url(
    stand: Stand, memory: AgentMemory, use: Callable[[State], object]
) -> None:
    memory.app_state.set("key", LARGE)
    stand.s3.skew = 400.0
    with pytest.raises(UnavailableError) as caught:
        use(memory.app_state)
    assert caught.value.code == "url_expired"
    assert "://" not in f"{caught.value!r} {caught.value.__context__!r}"


@pytest.mark.parametrize(
    "alter", [lambda url: url[:-1] + "g", lambda url: url.replace("X-Amz-Expires=300", "X-Amz-Expires=900")]
)
def test_an_altered_url_is_an_error_that_is_not_repeated(
    stand: Stand, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch, alter: Callable[[str], str]
) -> None:
    memory.app_state.set("key", LARGE)
    url = stand.blobs.url
    monkeypatch.setattr(stand.blobs, "url", lambda *arguments: alter(url(*arguments)))
    stand.s3.seen.clear()
    with pytest.raises(PermissionDeniedError, match="the blob store answered 403"):
        memory.app_state.get("key", default=b"")
    assert len(stand.s3.seen) <= 4


def test_an_upload_that_the_store_refuses_is_an_error_that_names_its_code(
    stand: Stand, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand.s3, "forbids", {"PUT": "QuotaExceeded"})
    with pytest.raises(PermissionDeniedError, match=r"^QuotaExceeded: the blob store answered 403$"):
        memory.app_state.set("key", LARGE)


# -- commits ---------------------------------------------------------------------------------------------------------


def test_a_foreign_commit_without_a_hash_gets_one(stand: Stand, memory: AgentMemory) -> None:
    blob = prepare(memory, len(LARGE))
    entry = commit(memory, blob, list(upload(blob, LARGE)))
    assert entry.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert memory.app_state.get("key") == LARGE


def test_a_foreign_commit_without_etags_is_looked_at_all_the_same(stand: Stand, memory: AgentMemory) -> None:
    blob = prepare(memory, len(LARGE), None)
    upload(blob, LARGE)
    commit(memory, blob, [None])
    assert memory.app_state.get("key") == LARGE


@pytest.mark.parametrize("sha256", [None, hashlib.sha256(LARGE).hexdigest()], ids=["without sha256", "with sha256"])
def test_an_etag_that_is_not_the_one_of_the_bytes_is_refused(
    stand: Stand, memory: AgentMemory, sha256: str | None
) -> None:
    blob = prepare(memory, len(LARGE))
    etags: list[str | None] = list(upload(blob, LARGE))
    etags[2] = etags[1]
    with pytest.raises(InvalidRequestError, match="etag"):
        commit(memory, blob, etags, sha256=sha256)
    assert memory.app_state.get("key") is None


@pytest.mark.parametrize("sha256", [None, hashlib.sha256(LARGE).hexdigest()], ids=["without sha256", "with sha256"])
@pytest.mark.parametrize("lost", ["gone", "short"])
def test_a_chunk_that_is_not_there_or_not_whole_is_refused(
    stand: Stand, memory: AgentMemory, sha256: str | None, lost: str
) -> None:
    blob = prepare(memory, len(LARGE))
    etags = upload(blob, LARGE)
    key = next(key for key in stand.s3.objects if key.endswith("/1"))
    stored = stand.s3.objects.pop(key)
    if lost == "short":
        stand.s3.objects[key] = stored._replace(data=stored.data[:-1])
    with pytest.raises(ConflictError) as caught:
        commit(memory, blob, list(etags), sha256=sha256)
    assert caught.value.code == "blob_incomplete"
    assert memory.app_state.get("key") is None


def test_a_wrong_hash_of_the_stored_bytes_is_found_by_the_reader(stand: Stand, memory: AgentMemory) -> None:
    blob = prepare(memory, len(LARGE))
    commit(memory, blob, list(upload(blob, LARGE)), sha256=hashlib.sha256(b"other").hexdigest())
    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default=b"")


@pytest.mark.parametrize(
    "other", [LARGE[::-1], LARGE[1:], LARGE + b"!", b""], ids=["other", "shorter", "longer", "empty"]
)
def test_bytes_that_are_put_after_the_commit_are_never_a_value(stand: Stand, memory: AgentMemory, other: bytes) -> None:
    blob = prepare(memory, len(LARGE), None)
    commit(memory, blob, list(upload(blob, LARGE)), sha256=hashlib.sha256(LARGE).hexdigest())
    httpx.put(blob.chunks[0].uri, content=other, trust_env=False).raise_for_status()
    with pytest.raises(IntegrityError):
        memory.app_state.get("key", default=b"")
    with stand.embedded() as embedded:
        try:
            # It reads as many bytes as were committed.
            assert embedded.app_state.get("key", default=b"") == LARGE
            assert other.startswith(LARGE)
        except IntegrityError:
            pass


def test_nothing_that_a_client_sees_holds_the_secret(stand: Stand, memory: AgentMemory) -> None:
    blob = prepare(memory, len(LARGE))
    assert all(ACCESS_KEY in chunk.uri and SECRET_KEY not in chunk.uri for chunk in blob.chunks)


def test_the_same_upload_after_the_commit_changes_nothing(stand: Stand, memory: AgentMemory) -> None:
    blob = prepare(memory, len(LARGE))
    etags = upload(blob, LARGE)
    first = commit(memory, blob, list(etags))
    assert upload(blob, LARGE) == etags
    assert commit(memory, blob, list(etags), sha256=first.sha256) == first
    assert memory.app_state.get("key") == LARGE


def test_an_unknown_write_is_refused(stand: Stand, memory: AgentMemory) -> None:
    blob = Blob(uuid7(), (Chunk("http://127.0.0.1/x", 1),))
    with pytest.raises(ConflictError) as caught:
        commit(memory, blob, [None])
    assert caught.value.code == "blob_gone"
