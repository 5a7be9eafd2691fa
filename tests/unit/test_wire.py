"""What one side of the wire writes, the other reads as the same thing."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory import errors
from agent_memory.errors import (
    AgentMemoryError,
    ConflictError,
    InvalidRequestError,
    ProtocolError,
    SchemaError,
    TimedOutError,
    UnavailableError,
)
from agent_memory.messages import (
    MAX_VALUE_BYTES,
    Batch,
    Blob,
    Chunk,
    CommitWrite,
    Delete,
    Entry,
    Found,
    Hit,
    List,
    ListParents,
    ListSegments,
    Maintenance,
    Message,
    Page,
    Pattern,
    PrepareRead,
    PrepareWrite,
    Scope,
    Search,
    SegmentPage,
    to_us,
)
from agent_memory.wire import (
    VERBS,
    decode_error,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
)
from agent_memory.wire.blobs import as_is
from agent_memory.wire.problems import PROBLEM_TYPE, status_of

text = st.text(st.characters(codec="utf-8"), max_size=20)
sizes = st.integers(0, 2**53)
request_ids = st.none() | text.filter(bool).filter(lambda name: "\0" not in name)
scopes = st.builds(Scope, st.just("acme"), st.just("shop"), request_ids)
provenances = st.none() | st.dictionaries(text, text, min_size=1, max_size=3)
chunks = st.builds(Chunk, text.map(lambda name: f"https://bucket/{name}"), sizes, st.none() | text)
blobs = st.builds(Blob, text, st.lists(chunks, max_size=3).map(tuple))
digests = st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)
calendar = [to_us(end.replace(tzinfo=UTC)) for end in (datetime.min, datetime.max)]
times = st.sampled_from(calendar) | st.integers(*calendar)

reads = st.builds(PrepareRead, scopes, text, sizes, st.none() | st.integers(1, 2**53), st.booleans())
conditions = st.fixed_dictionaries({"if_match": st.none() | text, "provenance": provenances, "max_inline_size": sizes})
commits = st.builds(
    lambda scope, key, write_id, payload, fields, more: CommitWrite(scope, key, write_id, *payload, **fields, **more),
    scopes,
    text,
    text,
    st.binary(max_size=50).map(lambda data: (data, None)) | blobs.map(lambda blob: (None, blob)),
    conditions,
    st.fixed_dictionaries(
        {
            "content_type": text.filter(bool),
            "sha256": digests,
            "signature": st.none() | text,
            "schema_name": st.none() | text,
            "schema_version": st.none() | sizes,
            "if_none_match": st.booleans(),
            "ttl_seconds": st.none() | st.floats(0, 1e9, exclude_min=True),
            "keep_ttl": st.booleans(),
            "vectors": st.lists(st.binary(max_size=8), max_size=2).map(tuple),
        }
    ),
)
prepares = st.builds(
    PrepareWrite, scopes, text, sizes, st.none() | st.integers(1, 2**53), st.none() | text, st.none() | text,
    st.booleans(),
)  # fmt: skip
deletes = st.builds(
    lambda scope, key, write_id, fields: Delete(scope, key, write_id, **fields),
    scopes,
    text,
    text.filter(bool),
    conditions,
)
lists = st.builds(List, scopes, text, st.none() | text, sizes, st.booleans(), st.none() | sizes)
filters = st.none() | st.dictionaries(
    text, text | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none(), max_size=3
)
searches = st.builds(
    Search, scopes, text, filters, sizes, sizes, st.none() | st.binary(max_size=8), sizes, st.booleans(), st.booleans()
)
patterns = st.builds(Pattern, st.lists(st.none() | text, max_size=3).map(tuple), st.booleans())
parents = st.builds(
    ListParents, scopes, text, st.none() | text, sizes, st.lists(patterns, max_size=2).map(tuple),
    st.none() | st.integers(1, 2**53), sizes,
)  # fmt: skip
operations = reads | commits | deletes | lists | searches | parents
messages = (
    operations
    | prepares
    | st.builds(ListSegments, scopes, text, st.none() | text, sizes)
    | st.builds(
        lambda scope, parts: Batch(scope, tuple(part._replace(scope=scope) for part in parts)),
        scopes,
        st.lists(operations, max_size=4),
    )
)


@given(messages)
def test_a_request_arrives_as_it_was_sent(message: Any) -> None:
    verb, body = encode_request(message)
    state = "app_state" if message.scope.request_id is None else "request_state"

    assert decode_request(verb, "acme", "shop", state, body) == hashed(message)


def hashed(message: Any) -> Any:
    """Return a message with the hashes of the bytes that it carries, which the wire adds."""
    if isinstance(message, Batch):
        return message._replace(operations=tuple(map(hashed, message.operations)))
    if isinstance(message, CommitWrite) and message.data is not None and message.sha256 is None:
        return message._replace(sha256=hashlib.sha256(message.data).hexdigest())
    return message


entries = st.builds(
    Entry, text, st.integers(1, 2**53), text, st.integers(0, MAX_VALUE_BYTES), text, text, st.none() | text,
    st.none() | text, st.none() | st.integers(0, 2**31), times, times, st.none() | times, provenances, st.booleans(),
)  # fmt: skip
found = st.builds(lambda entry, data: Found(entry, data, None), entries, st.binary(max_size=50)) | st.builds(
    lambda entry, blob: Found(entry, None, blob), entries, blobs
)
SCOPE = Scope("acme", "shop")


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Message, Any]:
    one, many = draw(found), draw(st.lists(found, max_size=3))
    entry = one.entry
    bare = [Found(each.entry, None, None) for each in many]
    names = SegmentPage(draw(st.lists(text)), draw(st.none() | text))
    choices: list[tuple[Any, Any]] = [
        (PrepareRead(SCOPE, entry.key), draw(st.sampled_from([None, one]))),
        (CommitWrite(SCOPE, entry.key, "w", b"", None), entry),
        (Delete(SCOPE, entry.key, "w"), draw(st.sampled_from([None, entry]))),
        (List(SCOPE, ""), Page(bare, draw(st.none() | text))),
        (List(SCOPE, "", max_inline_size=9), Page(many, draw(st.none() | text))),
        (ListParents(SCOPE, ""), names),
        (Search(SCOPE, ""), [Hit(each, draw(st.none() | st.floats(-1, 1))) for each in many]),
    ]
    place = draw(blobs)
    single = [(PrepareWrite(SCOPE, "k", place.size), place), (ListSegments(SCOPE, ""), names)]
    batch = draw(st.lists(st.sampled_from(choices), max_size=4))
    together = (Batch(SCOPE, tuple(part for part, _ in batch)), [reply for _, reply in batch])
    return draw(st.sampled_from([*choices, *single, together]))


@given(exchanges())
def test_a_reply_arrives_as_it_was_given(exchange: tuple[Message, Any]) -> None:
    message, reply = exchange

    assert decode_reply(message, encode_reply(message, reply, as_is)) == reply


def test_every_message_with_a_scope_has_a_verb() -> None:
    scoped = {kind for kind in Message.__args__ if "scope" in kind._fields}
    scoped -= set(Maintenance.__args__)  # They belong to whoever holds the store.

    assert {verb.message for verb in VERBS.values()} == scoped


CLASSES = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, AgentMemoryError) and kind is not AgentMemoryError
]  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_arrives_as_its_class(kind: type[AgentMemoryError]) -> None:
    status, body = encode_error(kind("what is wrong"))

    error = decode_error(status, PROBLEM_TYPE, body)

    # The deadline that passed was the server's: the caller's own has not.
    assert type(error) is (UnavailableError if kind is TimedOutError else kind)
    assert str(error) == "what is wrong"
    assert 400 <= status < 600


@pytest.mark.parametrize(
    "error",
    [
        ConflictError("x", code=code)
        for code in ("write_id_reused", "blob_gone", "blob_incomplete", "chunk_exists", "version_gone")
    ],
    ids=lambda error: error.code,
)
def test_a_conflict_that_is_no_failed_condition_is_409_and_keeps_its_code(error: ConflictError) -> None:
    status, body = encode_error(error)

    assert status == 409
    assert decode_error(status, PROBLEM_TYPE, body).code == error.code


@given(found)
def test_a_failed_condition_brings_what_stands_there(one: Found) -> None:
    status, body = encode_error(ConflictError("x", found=one))

    error = decode_error(status, PROBLEM_TYPE, body)

    assert isinstance(error, ConflictError)
    assert error.found == one


def test_a_code_of_a_newer_server_travels_with_its_status() -> None:
    error = decode_error(413, PROBLEM_TYPE, b'{"status": 413, "code": "too_blue", "detail": "too blue"}')

    assert (type(error).__name__, error.code, str(error)) == ("LimitExceededError", "too_blue", "too blue")


def test_a_body_that_a_proxy_refuses_is_told_from_one_that_the_server_does() -> None:
    error = decode_error(413, "text/html", b"<html>413 Request Entity Too Large</html>")

    assert type(error).__name__ == "LimitExceededError"
    assert "in front of it" in str(error)


def test_a_proxy_that_lies_about_the_status_is_not_believed() -> None:
    body = json.dumps({"status": 412, "code": "condition_failed"}).encode()

    assert type(decode_error(502, PROBLEM_TYPE, body)) is UnavailableError


def test_a_schema_error_is_answered_as_the_servers_own_fault() -> None:
    assert status_of(SchemaError("x")) == 500


@pytest.mark.parametrize("code", ["closed", "timeout", "no_answer"])
def test_the_servers_own_end_is_a_reason_to_try_again(code: str) -> None:
    status, body = encode_error(UnavailableError("x", code=code))

    assert (status, decode_error(status, PROBLEM_TYPE, body).code) in [(503, "unavailable"), (504, "unavailable")]


def test_a_malformed_body_is_described_without_its_values() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_request("prepare_read", "a", "b", "app_state", b'{"state_key": ["the-secret"], "version": "the-secret"}')

    assert str(caught.value) == "state_key: string_type; version: int_type"


def test_a_body_of_very_many_faults_is_described_by_their_number() -> None:
    with pytest.raises(InvalidRequestError, match=r"^60000 fields are not"):
        decode_request("batch", "a", "b", "app_state", b'{"operations": [%s]}' % b",".join([b"0"] * 60_000))


@pytest.mark.parametrize(
    ("operand", "complaint"),
    [
        (functools.reduce(lambda inner, _: [inner], range(300), []), "nested too deeply"),
        ("\ud800", "not valid Unicode"),
    ],
    ids=["deep", "surrogate"],
)
def test_what_json_cannot_hold_is_refused_for_what_it_is(operand: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        encode_request(Search(SCOPE, "", {"field": operand}))


def test_a_reply_that_is_not_of_the_protocol_is_described_without_its_values() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_reply(PrepareRead(SCOPE, "k"), b'{"blob": "the-secret", "entry": null}')

    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None
