"""Blobs in an object store: the contract on a strict S3 and on moto's, and what goes wrong with one."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent_memory import AgentMemory
from agent_memory.errors import ConflictError, IntegrityError, InvalidRequestError, UnavailableError
from agent_memory.storage import object_blobs
from agent_memory.storage.blobs import BlobObject
from agent_memory.storage.object_blobs import ObjectBlobs
from tests.support.strict_s3 import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, Fault, StrictS3, once, seeded

ID = "0198c0de-0000-7000-8000-0000000000ab"
DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def shared_s3() -> Iterator[StrictS3]:
    with StrictS3() as s3:
        yield s3


@pytest.fixture
def s3(shared_s3: StrictS3, monkeypatch: pytest.MonkeyPatch) -> StrictS3:
    """An empty object store to which the environment leads."""
    shared_s3.objects.clear()
    shared_s3.seen.clear()
    shared_s3.plan, shared_s3.skew, shared_s3.bulk_errors, shared_s3.forbids = None, 0.0, set(), {}
    for name, text in shared_s3.environment().items():
        monkeypatch.setenv(name, text)
    return shared_s3


@pytest.fixture
def strict(s3: StrictS3) -> ObjectBlobs:
    return ObjectBlobs(f"s3://{BUCKET}/some/prefix")


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = importlib.import_module("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["strict", "moto"])
def blobs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectBlobs:
    """An empty blob store on each server."""
    if request.param == "strict":
        return request.getfixturevalue("strict")
    url: str = request.getfixturevalue("moto_url")
    bucket = f"b{time.time_ns()}"
    httpx.put(f"{url}/{bucket}", trust_env=False).raise_for_status()
    for name, text in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, text)
    return ObjectBlobs(f"s3://{bucket}/prefix")


def read(blobs: ObjectBlobs, index: int = 0, offset: int = 0, size: int = len(DATA)) -> bytes:
    into = bytearray(size)
    blobs.read_into(ID, index, offset, memoryview(into))
    return bytes(into)


def put(blobs: ObjectBlobs, *chunks: bytes, blob_id: str = ID) -> list[str]:
    return [blobs.put(blob_id, index, memoryview(chunk)) for index, chunk in enumerate(chunks)]


# -- the contract ----------------------------------------------------------------------------------------------------


def test_what_was_put_is_read(blobs: ObjectBlobs) -> None:
    put(blobs, DATA)
    assert read(blobs) == DATA


def test_a_part_of_a_chunk_is_read(blobs: ObjectBlobs) -> None:
    put(blobs, DATA)
    assert read(blobs, offset=100, size=300) == DATA[100:400]


def test_a_chunk_may_be_a_view_of_something_larger(blobs: ObjectBlobs) -> None:
    blobs.put(ID, 0, memoryview(bytearray(DATA))[10:20])
    assert read(blobs, size=10) == DATA[10:20]


def test_an_empty_chunk_is_a_chunk(blobs: ObjectBlobs) -> None:
    etags = put(blobs, b"")
    assert read(blobs, size=0) == b""
    assert blobs.digest(ID, [0]) == (hashlib.sha256().hexdigest(), etags)


def test_the_same_bytes_again_give_the_same_etag(blobs: ObjectBlobs) -> None:
    assert put(blobs, DATA) == put(blobs, DATA)


@pytest.mark.parametrize("other", [DATA[::-1], DATA[1:]], ids=["same size", "another size"])
def test_other_bytes_for_a_chunk_are_refused(blobs: ObjectBlobs, other: bytes) -> None:
    put(blobs, DATA)
    with pytest.raises(ConflictError) as caught:
        put(blobs, other)
    assert caught.value.code == "chunk_exists"
    assert read(blobs) == DATA


def test_a_missing_chunk_is_an_integrity_error(blobs: ObjectBlobs) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(blobs)
    assert caught.value.code == "chunk_missing"


@pytest.mark.parametrize("offset", [len(DATA) - 10, len(DATA) + 10])
def test_a_chunk_that_is_too_short_is_an_integrity_error(blobs: ObjectBlobs, offset: int) -> None:
    put(blobs, DATA)
    with pytest.raises(IntegrityError):
        read(blobs, offset=offset, size=20)


@pytest.mark.parametrize("chunks", [(DATA,), (DATA, DATA[::-1], b"end")], ids=["one chunk", "three chunks"])
def test_the_digest_is_computed_from_what_is_stored(blobs: ObjectBlobs, chunks: tuple[bytes, ...]) -> None:
    etags = put(blobs, *chunks)
    assert blobs.digest(ID, [len(one) for one in chunks]) == (hashlib.sha256(b"".join(chunks)).hexdigest(), etags)


def test_the_digest_of_more_than_fits_in_memory_at_once_keeps_the_order(
    blobs: ObjectBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_blobs, "_BLOCK", 1_000)
    etags = put(blobs, DATA, DATA[::-1])
    assert blobs.digest(ID, [len(DATA)] * 2) == (hashlib.sha256(DATA + DATA[::-1]).hexdigest(), etags)


@pytest.mark.parametrize("sizes", [[len(DATA), 4], [len(DATA) - 1, 3], [len(DATA), 3, 1], [len(DATA) + 3]])
@pytest.mark.parametrize("sha256", [None, "what the writer says"])
def test_there_is_no_digest_of_what_is_not_as_it_was_prepared(
    blobs: ObjectBlobs, sizes: list[int], sha256: str | None
) -> None:
    put(blobs, DATA, b"end")
    assert blobs.digest(ID, sizes, sha256) is None


def test_what_is_deleted_is_gone_and_may_be_deleted_again(blobs: ObjectBlobs) -> None:
    put(blobs, DATA, DATA)
    other = "0198c0de-0000-7000-8000-0000000000cd"
    put(blobs, DATA, blob_id=other)
    for _ in range(2):
        blobs.delete([(ID, 2), (other, 1)])
        assert list(blobs.objects()) == []


def test_a_listing_shows_every_chunk(blobs: ObjectBlobs) -> None:
    put(blobs, DATA, b"end")
    found = sorted(blobs.objects())
    assert [one[:3] for one in found] == [(ID, 0, len(DATA)), (ID, 1, 3)]
    assert all(-5 < one.age_seconds < 60 for one in found)


def test_a_chunk_that_nobody_knows_is_discarded(blobs: ObjectBlobs) -> None:
    put(blobs, DATA, b"end")
    blobs.discard(BlobObject(ID, 0, 0, 0.0))
    assert [one.number for one in blobs.objects()] == [1]


def test_a_store_that_serves_is_ready(blobs: ObjectBlobs) -> None:
    blobs.ping()


def test_a_signed_url_uploads_and_downloads(blobs: ObjectBlobs) -> None:
    with httpx.Client(trust_env=False) as client:
        uploaded = client.put(blobs.url("PUT", ID, 0, 60), content=DATA)
        assert uploaded.status_code == 200
        assert client.get(blobs.url("GET", ID, 0, 60)).content == DATA
    assert blobs.digest(ID, [len(DATA)]) == (hashlib.sha256(DATA).hexdigest(), [uploaded.headers["etag"].strip('"')])


# -- what it costs ---------------------------------------------------------------------------------------------------


def test_the_digest_that_a_writer_names_moves_no_bytes(s3: StrictS3, strict: ObjectBlobs) -> None:
    etags = put(strict, DATA)
    s3.seen.clear()
    assert strict.digest(ID, [len(DATA)], "named") == ("named", etags)
    assert [(one.method, one.sent) for one in s3.seen] == [("HEAD", 0)]


def test_many_chunks_are_looked_at_in_one_request(s3: StrictS3, strict: ObjectBlobs) -> None:
    etags = put(strict, *(bytes([index]) for index in range(12)))
    s3.seen.clear()
    assert strict.digest(ID, [1] * 12, "named") == ("named", etags)
    assert [(one.method, one.key) for one in s3.seen] == [("GET", "")]


def test_a_listing_that_lags_behind_is_no_reason_to_miss_a_chunk(s3: StrictS3, strict: ObjectBlobs) -> None:
    etags = put(strict, b"a", b"b")
    # An error under a status of success reads like a listing of nothing.
    s3.plan = once(Fault.LYING, "GET")
    assert strict.digest(ID, [1, 1], "named") == ("named", etags)


def test_thousands_of_objects_are_deleted_in_a_few_requests(s3: StrictS3, strict: ObjectBlobs) -> None:
    strict.delete((f"{number:032x}", 2) for number in range(1_250))
    assert [one.method for one in s3.seen] == ["POST"] * 3


@pytest.mark.parametrize("blob_id", ["../../other", "a/b", "a\0", "", "x", "a" * 65])
def test_a_blob_that_no_store_made_is_none_of_its_objects(s3: StrictS3, strict: ObjectBlobs, blob_id: str) -> None:
    put(strict, b"bytes")
    before = len(s3.seen)
    for call in (
        lambda: strict.read_into(blob_id, 0, 0, memoryview(bytearray(1))),
        lambda: strict.digest(blob_id, [1]),
        lambda: strict.url("GET", blob_id, 0, 60),
    ):
        with pytest.raises(IntegrityError):
            call()
    strict.delete([(blob_id, 1)])
    assert len(s3.seen) == before
    assert read(strict, size=5) == b"bytes"


def test_what_others_keep_behind_the_prefix_is_not_listed(s3: StrictS3, strict: ObjectBlobs) -> None:
    put(strict, DATA)
    stored = next(iter(s3.objects.values()))
    for key in ("notes.txt", f"ab/{ID}.0", f"xy/{ID}/0", f"ab/{ID}/zero", f"deeper/ab/{ID}/0", f"ab/{ID}/00"):
        s3.objects[f"some/prefix/{key}"] = stored
    s3.objects["some/prefix-of-others/ab/x/0"] = stored
    assert [(one.blob_id, one.number) for one in strict.objects()] == [(ID, 0)]


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.REFUSED_EMPTY, Fault.REFUSED_AFTER, Fault.RESET, Fault.LYING])
def test_a_put_that_fails_may_be_repeated(s3: StrictS3, strict: ObjectBlobs, fault: Fault) -> None:
    s3.plan = once(fault, "PUT", times=3)
    etag = None
    for _ in range(4):
        try:
            [etag] = put(strict, DATA)
            break
        except UnavailableError:
            continue
    assert etag == hashlib.md5(DATA).hexdigest()
    assert read(strict) == DATA


@pytest.mark.parametrize("fault", list(Fault)[:8])
def test_a_blip_while_reading_is_bridged(s3: StrictS3, strict: ObjectBlobs, fault: Fault) -> None:
    put(strict, DATA)
    s3.plan = once(fault, "GET")
    assert read(strict) == DATA


def test_a_deletion_that_failed_for_one_object_of_many_is_repeated(s3: StrictS3, strict: ObjectBlobs) -> None:
    put(strict, DATA, DATA)
    s3.bulk_errors = {next(iter(s3.objects))}
    with pytest.raises(UnavailableError):
        strict.delete([(ID, 2)])
    s3.bulk_errors = set()
    strict.delete([(ID, 2)])
    assert not s3.objects


@pytest.mark.parametrize(
    "act",
    [
        lambda blobs: put(blobs, DATA),
        lambda blobs: read(blobs),
        lambda blobs: blobs.digest(ID, [1]),
        lambda blobs: blobs.digest(ID, [1, 1]),
        lambda blobs: blobs.delete([(ID, 1)]),
        lambda blobs: list(blobs.objects()),
        lambda blobs: blobs.ping(),
    ],
    ids=["put", "read", "digest", "digest of many", "delete", "objects", "ping"],
)
@pytest.mark.parametrize(
    ("trouble", "says"),
    [("refuses", "answered 503"), ("secret", "refuses our credentials"), ("bucket", "bucket"), ("silent", "reached")],
)
def test_an_error_names_the_object_store_and_no_secret(
    s3: StrictS3, monkeypatch: pytest.MonkeyPatch, act: Callable[[ObjectBlobs], object], trouble: str, says: str
) -> None:
    bucket = BUCKET
    if trouble == "refuses":
        s3.plan = seeded(1, {Fault.REFUSED: 1.0})
    elif trouble == "secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another secret")
    elif trouble == "bucket":
        bucket = "nobody-made-this"
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    blobs = ObjectBlobs(f"s3://{bucket}")
    try:
        act(blobs)
        error = None
    except (UnavailableError, IntegrityError) as caught:
        error = caught
    if trouble == "bucket" and not isinstance(error, UnavailableError):
        # Asked for a single object, the store does not say that it is the bucket that is missing.
        return
    text = f"{error!r} {error and (error.args, error.__context__, error.__cause__)!r}"
    assert "the object store" in text
    assert says in text
    assert not any(part in text for part in ("127.0.0.1", "://", ACCESS_KEY, SECRET_KEY, "secret", ID))


def test_a_clock_that_is_too_far_off_is_told_from_wrong_credentials(s3: StrictS3, strict: ObjectBlobs) -> None:
    s3.skew = 16 * 60.0
    with pytest.raises(UnavailableError, match="the object store refuses our clock"):
        strict.ping()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("AWS_SESSION_TOKEN", "a secret session", "session token has expired"), ("AWS_REGION", "us-east-1", "AWS_REGION")],
)
def test_a_session_that_is_over_and_another_region_are_named(
    s3: StrictS3, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match=f"the object store refuses our .*{says}") as caught:
        ObjectBlobs(f"s3://{BUCKET}").ping()
    assert caught.value.code == "blobs_refused"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("QuotaExceeded", "what was asked of it: QuotaExceeded"),
        ("AccessDenied", "our credentials, or does not allow them this"),
        ("InvalidAccessKeyId", "our credentials: it knows no such access key"),
        ("SignatureDoesNotMatch", "our credentials: what is signed with them has a wrong signature"),
        ("https://host/?key=secret1", "our credentials, or does not allow them this"),
    ],
)
def test_a_refusal_is_named_by_the_code_that_the_store_gives(
    s3: StrictS3, strict: ObjectBlobs, code: str, says: str
) -> None:
    s3.forbids = {"PUT": code}
    with pytest.raises(UnavailableError) as caught:
        strict.put(ID, 0, memoryview(DATA))
    assert str(caught.value) == f"the object store refuses {says}"
    assert caught.value.code == "blobs_refused"


def test_an_answer_that_is_no_success_is_named_by_its_code(s3: StrictS3, strict: ObjectBlobs) -> None:
    s3.plan = seeded(1, {Fault.REFUSED: 1.0})
    with pytest.raises(UnavailableError, match=r"answered 503 \(SlowDown\)"):
        strict.ping()


@pytest.mark.usefixtures("s3")
def test_a_redirect_to_nowhere_is_taken_for_another_region(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_redirect, args=(listener,), daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UnavailableError, match="AWS_REGION"):
            ObjectBlobs(f"s3://{BUCKET}").ping()
        thread.join(5)


def _redirect(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 301 Moved Permanently\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def test_a_machine_without_credentials_is_told_so(s3: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", s3.url.replace("127.0.0.1", "169.254.169.254"))
    monkeypatch.setattr(object_blobs, "_RETRIES", 0)
    with pytest.raises(UnavailableError, match="no credentials for the object store"):
        ObjectBlobs(f"s3://{BUCKET}").ping()


def test_a_role_whose_token_cannot_be_read_is_no_credentials(s3: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/any")
    with pytest.raises(UnavailableError, match="no credentials for the object store"):
        ObjectBlobs(f"s3://{BUCKET}").ping()


@pytest.mark.parametrize(
    "alter",
    [
        lambda url: url.replace("/0?", "/1?"),
        lambda url: url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
        lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
        lambda url: url + "&more=1",
        lambda url: url.replace(ACCESS_KEY, "SOMEBODY"),
    ],
    ids=["another object", "a longer life", "another signature", "a parameter more", "another key"],
)
def test_an_altered_url_is_refused(s3: StrictS3, strict: ObjectBlobs, alter: Callable[[str], str]) -> None:
    put(strict, DATA, DATA)
    answer = httpx.get(alter(strict.url("GET", ID, 0, 60)), trust_env=False)
    assert answer.status_code == 403


def test_a_url_for_reading_does_not_write(s3: StrictS3, strict: ObjectBlobs) -> None:
    put(strict, DATA)
    assert httpx.put(strict.url("GET", ID, 0, 60), content=b"other", trust_env=False).status_code == 403
    assert read(strict) == DATA


def test_a_url_ends_with_its_time(s3: StrictS3, strict: ObjectBlobs) -> None:
    url = strict.url("GET", ID, 0, 60)
    s3.skew = 62
    answer = httpx.get(url, trust_env=False)
    assert (answer.status_code, "Request has expired" in answer.text) == (403, True)


def test_a_forked_child_is_refused_instead_of_waiting_for_ever(s3: StrictS3, strict: ObjectBlobs) -> None:
    put(strict, DATA)
    child = os.fork()
    if not child:
        try:
            ObjectBlobs(f"s3://{BUCKET}").ping()
        except UnavailableError as error:
            os._exit(7 if error.code == "forked" else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert read(strict) == DATA


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest", ["bucket/p?team=a", "bucket/p#1", "key:hunter2@bucket/p", "bucket:9000/p", "bucket?region=x", "bucket/a\tb"]
)
def test_a_part_of_an_address_that_would_be_left_out_is_refused(rest: str) -> None:
    with pytest.raises(InvalidRequestError, match="environment") as caught:
        ObjectBlobs(f"s3://{rest}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["a b", "ü", "a%b", "a+b", "a&b=c", "日本", "a'b"])
def test_a_prefix_may_hold_any_other_character(s3: StrictS3, prefix: str) -> None:
    blobs = ObjectBlobs(f"s3://{BUCKET}/{prefix}")
    put(blobs, DATA)
    assert httpx.get(blobs.url("GET", ID, 0, 60), trust_env=False).content == read(blobs) == DATA
    assert [found.blob_id for found in blobs.objects()] == [ID]
    assert all(key.startswith(f"{prefix}/") for key in s3.objects)


@pytest.mark.parametrize("url", ["ftp://bucket", "s3:bucket", "file:///tmp", "/tmp/blobs", ""])
def test_an_address_that_is_no_object_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        ObjectBlobs(url)


def test_a_store_that_knows_no_conditions_is_written_without_them(
    s3: StrictS3, strict: ObjectBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    blobs = ObjectBlobs(f"s3://{BUCKET}/prefix")
    assert put(blobs, DATA) == put(blobs, DATA) == put(strict, DATA)
    assert read(blobs) == DATA


def test_the_endpoint_for_s3_alone_goes_first(s3: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    ObjectBlobs(f"s3://{BUCKET}").ping()


@pytest.mark.parametrize("endpoint", ["", "minio:9000", "http://", " http://127.0.0.1:1", "http://127.0.0.1:1?a=b"])
@pytest.mark.parametrize(
    ("name", "url"),
    [("AWS_ENDPOINT_URL", "s3://bucket"), ("GOOGLE_BASE_URL", "gs://bucket"), ("AZURE_ENDPOINT", "az://bucket")],
)
def test_an_endpoint_that_is_no_address_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str, endpoint: str
) -> None:
    monkeypatch.setenv(name, endpoint)
    with pytest.raises(InvalidRequestError, match=name):
        ObjectBlobs(url)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("AWS_ACCESS_KEY_ID", "s3://bucket"),
        ("AWS_SECRET_ACCESS_KEY", "s3://bucket"),
        ("AWS_SESSION_TOKEN", "s3://bucket"),
        ("AWS_REGION", "s3://bucket"),
        ("AWS_DEFAULT_REGION", "s3://bucket"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "az://container"),
    ],
)
def test_a_setting_with_the_end_of_a_line_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv(name, "hidden\n")
    with pytest.raises(InvalidRequestError, match=name) as caught:
        ObjectBlobs(url)
    assert "hidden" not in str(caught.value)


def test_an_endpoint_without_tls_is_only_used_where_the_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", REGION)
    assert ObjectBlobs("s3://bucket/prefix").url("GET", ID, 0, 60).startswith(f"https://s3.{REGION}.amazonaws.com/")


def test_a_store_that_hangs_is_waited_for_no_longer_than_a_call_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The system takes the connection; nobody ever answers.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name, text in (("ENDPOINT_URL", endpoint), ("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret")):
            monkeypatch.setenv(f"AWS_{name}", text)
        monkeypatch.setenv("AWS_REGION", REGION)
        with AgentMemory(
            str(tmp_path / "store.db"), application="app", blobs="s3://bucket/prefix", timeout=1
        ) as memory:
            began = time.monotonic()
            with pytest.raises(UnavailableError, match="the object store does not serve"):
                memory.app_state.set("large", bytes(200_000))
            assert time.monotonic() - began < 5


def test_google_and_azure_are_reached_by_their_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {"private_key": pem, "private_key_id": "1", "client_email": "a@b.example"}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    url = ObjectBlobs("gs://bucket/prefix").url("PUT", ID, 0, 60)
    assert url.startswith(f"https://storage.googleapis.com/bucket/prefix/ab/{ID}/0?X-Goog-Algorithm=GOOG4-RSA-SHA256&")

    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    url = ObjectBlobs("az://container/prefix").url("PUT", ID, 0, 60)
    assert url.startswith(f"https://account.blob.core.windows.net/container/prefix/ab/{ID}/0?")


# -- the server of these tests ---------------------------------------------------------------------------------------


def test_the_strict_store_takes_what_another_library_signs(s3: StrictS3) -> None:
    botocore: Any = importlib.import_module("botocore.session")
    config = importlib.import_module("botocore.config").Config(
        s3={"addressing_style": "path"},
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client = botocore.Session().create_client(
        "s3", REGION, endpoint_url=s3.url, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, config=config
    )
    client.put_object(Bucket=BUCKET, Key="a ü/b+c~", Body=DATA)
    assert client.get_object(Bucket=BUCKET, Key="a ü/b+c~", Range="bytes=1-9")["Body"].read() == DATA[1:10]
    assert [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix="a ")["Contents"]] == ["a ü/b+c~"]
    url = client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "a ü/b+c~"}, ExpiresIn=60)
    assert httpx.get(url, trust_env=False).content == DATA
    client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "a ü/b+c~"}]})
    assert not s3.objects
    client.close()


def test_the_strict_store_refuses_what_is_not_signed(s3: StrictS3) -> None:
    assert httpx.get(f"{s3.url}/{BUCKET}/key", trust_env=False).status_code == 403
