"""The shapes of the bodies: what a request may hold, what a reply does hold.

A request is refused for a field that is not known, a reply is not: servers grow before their clients. In requests null
is the same as leaving a field out, except for conditions: a writer that lost its etag must not overwrite.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired, TypeAlias

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from ..messages import (
    MAX_VALUE_BYTES,
    Batch,
    CommitWrite,
    Delete,
    List,
    ListParents,
    ListSegments,
    PrepareRead,
    PrepareWrite,
    Search,
)

LOGGED_ID: Final = re.compile(r"[A-Za-z0-9._:/@=+-]{1,128}")
"""An ``X-Request-Id`` that a server's log repeats: nothing that could be taken for more than a name."""

BODY_LIMIT: Final = 12 * 1024 * 1024
"""Bytes of one JSON body: 8 MiB of values in base64, and their metadata."""

_STRICT: Final = ConfigDict(extra="forbid", strict=True)
_LENIENT: Final = ConfigDict(extra="ignore", strict=True)

Size: TypeAlias = Annotated[int, Field(ge=0, le=2**53)]
Number: TypeAlias = Annotated[int, Field(ge=1, le=2**53)]
Text: TypeAlias = Annotated[str, Field(max_length=1024)]
Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A batch's results are validated as plain objects, in which a time is still a string. With an offset it may lie beyond
# the calendar.
Time: TypeAlias = Annotated[
    AwareDatetime,
    Field(strict=False, ge=datetime.min.replace(tzinfo=UTC), le=datetime.max.replace(tzinfo=UTC)),
]
# Little-endian 32-bit floats in base64.
Vector: TypeAlias = Annotated[str, Field(max_length=128 * 1024, json_schema_extra={"contentEncoding": "base64"})]
Seconds: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@with_config(_STRICT)
class ChunkBody(TypedDict):
    uri: str
    size: Size
    etag: NotRequired[Text | None]


@with_config(_STRICT)
class BlobBody(TypedDict):
    id: Text
    chunks: Annotated[list[ChunkBody], Field(max_length=10_000)]


@with_config(_STRICT)
class _Call(TypedDict):
    # Tensorlake's client says which allocation it runs in; nothing here depends on it.
    allocation_id: NotRequired[Text | None]
    request_id: NotRequired[str | None]


@with_config(_STRICT)
class _Read(TypedDict):
    state_key: str
    max_inline_size: NotRequired[Size | None]
    version: NotRequired[Number | None]
    refresh_ttl: NotRequired[bool | None]


@with_config(_STRICT)
class _Commit(TypedDict):
    state_key: str
    blob: BlobBody
    write_id: NotRequired[str | None]
    if_match: NotRequired[Text]
    if_none_match: NotRequired[Literal["*"]]
    content_type: NotRequired[str | None]
    sha256: NotRequired[Sha256 | None]
    signature: NotRequired[Text | None]
    schema_name: NotRequired[Text | None]
    schema_version: NotRequired[Size | None]
    ttl_seconds: NotRequired[Seconds | None]
    keep_ttl: NotRequired[bool | None]
    vectors: NotRequired[list[Vector] | None]
    provenance: NotRequired[dict[str, str] | None]
    max_inline_size: NotRequired[Size | None]


@with_config(_STRICT)
class _Delete(TypedDict):
    state_key: str
    write_id: NotRequired[str | None]
    if_match: NotRequired[Text]
    provenance: NotRequired[dict[str, str] | None]
    max_inline_size: NotRequired[Size | None]


@with_config(_STRICT)
class _List(TypedDict):
    prefix: str
    cursor: NotRequired[str | None]
    limit: NotRequired[Size | None]
    reverse: NotRequired[bool | None]
    max_inline_size: NotRequired[Size | None]


@with_config(_STRICT)
class _Search(TypedDict):
    prefix: str
    filter: NotRequired[dict[str, Any] | None]
    limit: NotRequired[Size | None]
    offset: NotRequired[Size | None]
    vector: NotRequired[Vector | None]
    max_inline_size: NotRequired[Size | None]
    refresh_ttl: NotRequired[bool | None]
    nested: NotRequired[bool | None]


@with_config(_STRICT)
class _Names(TypedDict):
    prefix: str
    cursor: NotRequired[str | None]
    limit: NotRequired[Size | None]


@with_config(_STRICT)
class PatternBody(TypedDict):
    segments: list[str | None]
    at_end: NotRequired[bool | None]


@with_config(_STRICT)
class _Parents(_Names):
    patterns: NotRequired[list[PatternBody] | None]
    depth: NotRequired[Number | None]
    offset: NotRequired[Size | None]


@with_config(_STRICT)
class PrepareReadBody(_Read, _Call): ...


@with_config(_STRICT)
class PrepareWriteBody(_Call):
    state_key: str
    size: Size
    chunk_size: NotRequired[Number | None]
    write_id: NotRequired[Text | None]
    if_match: NotRequired[Text]
    if_none_match: NotRequired[Literal["*"]]


@with_config(_STRICT)
class CommitWriteBody(_Commit, _Call): ...


@with_config(_STRICT)
class DeleteBody(_Delete, _Call): ...


@with_config(_STRICT)
class ListBody(_List, _Call): ...


@with_config(_STRICT)
class SearchBody(_Search, _Call): ...


@with_config(_STRICT)
class NamesBody(_Names, _Call): ...


@with_config(_STRICT)
class ParentsBody(_Parents, _Call): ...


@with_config(_STRICT)
class ReadOperation(_Read):
    verb: Literal["prepare_read"]


@with_config(_STRICT)
class CommitOperation(_Commit):
    verb: Literal["commit_write"]


@with_config(_STRICT)
class DeleteOperation(_Delete):
    verb: Literal["delete"]


@with_config(_STRICT)
class ListOperation(_List):
    verb: Literal["list"]


@with_config(_STRICT)
class SearchOperation(_Search):
    verb: Literal["search"]


@with_config(_STRICT)
class ListParentsOperation(_Parents):
    verb: Literal["list_parents"]


OperationBody: TypeAlias = (
    ReadOperation | CommitOperation | DeleteOperation | ListOperation | SearchOperation | ListParentsOperation
)


@with_config(_STRICT)
class BatchBody(_Call):
    operations: list[Annotated[OperationBody, Field(discriminator="verb")]]


@with_config(_LENIENT)
class ChunkReply(TypedDict):
    uri: str
    size: Size
    etag: NotRequired[str | None]


@with_config(_LENIENT)
class BlobReply(TypedDict):
    id: str
    chunks: list[ChunkReply]


@with_config(_LENIENT)
class EntryReply(TypedDict):
    key: str
    version: Number
    etag: str
    size: Annotated[int, Field(ge=0, le=MAX_VALUE_BYTES)]
    sha256: str
    content_type: str
    signature: NotRequired[str | None]
    schema_name: NotRequired[str | None]
    schema_version: NotRequired[int | None]
    created_at: Time
    updated_at: Time
    expires_at: NotRequired[Time | None]
    provenance: NotRequired[dict[str, str] | None]
    deleted: NotRequired[bool]


@with_config(_LENIENT)
class FoundReply(TypedDict):
    blob: BlobReply | None
    entry: EntryReply | None


@with_config(_LENIENT)
class PlaceReply(TypedDict):
    blob: BlobReply


@with_config(_LENIENT)
class CommitReply(TypedDict):
    entry: EntryReply


@with_config(_LENIENT)
class DeleteReply(TypedDict):
    entry: EntryReply | None


@with_config(_LENIENT)
class ListReply(TypedDict):
    entries: list[EntryReply]
    next_cursor: str | None
    blobs: NotRequired[list[BlobReply | None]]


@with_config(_LENIENT)
class SegmentsReply(TypedDict):
    segments: list[str]
    next_cursor: str | None


@with_config(_LENIENT)
class HitReply(TypedDict):
    entry: EntryReply
    blob: BlobReply
    score: NotRequired[float | None]


@with_config(_LENIENT)
class SearchReply(TypedDict):
    hits: list[HitReply]


@with_config(_LENIENT)
class BatchReply(TypedDict):
    results: list[dict[str, Any]]


@with_config(_LENIENT)
class Problem(TypedDict):
    """What every refusal is answered with (RFC 9457); a failed condition adds its key and what stands there now."""

    status: int
    code: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    title: NotRequired[str]
    detail: NotRequired[str]
    key: NotRequired[str | None]
    entry: NotRequired[EntryReply | None]
    blob: NotRequired[BlobReply | None]


class Verb(NamedTuple):
    """One verb of the wire: the message it stands for and the shapes of its request and its reply."""

    message: type
    request: TypeAdapter[Any]
    reply: TypeAdapter[Any]


VERBS: Final[Mapping[str, Verb]] = {
    "prepare_read": Verb(PrepareRead, TypeAdapter(PrepareReadBody), TypeAdapter(FoundReply)),
    "prepare_write": Verb(PrepareWrite, TypeAdapter(PrepareWriteBody), TypeAdapter(PlaceReply)),
    "commit_write": Verb(CommitWrite, TypeAdapter(CommitWriteBody), TypeAdapter(CommitReply)),
    "delete": Verb(Delete, TypeAdapter(DeleteBody), TypeAdapter(DeleteReply)),
    "list": Verb(List, TypeAdapter(ListBody), TypeAdapter(ListReply)),
    "list_segments": Verb(ListSegments, TypeAdapter(NamesBody), TypeAdapter(SegmentsReply)),
    "list_parents": Verb(ListParents, TypeAdapter(ParentsBody), TypeAdapter(SegmentsReply)),
    "search": Verb(Search, TypeAdapter(SearchBody), TypeAdapter(SearchReply)),
    "batch": Verb(Batch, TypeAdapter(BatchBody), TypeAdapter(BatchReply)),
}
PROBLEM: Final[TypeAdapter[Problem]] = TypeAdapter(Problem)
VERB_OF: Final = {verb.message: name for name, verb in VERBS.items()}
