"""The rules of a write: its conditions, version, etag and receipt.

Pure functions, so that every catalog has the same rules; each runs them inside a transaction of its own.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

from ..errors import ConflictError
from ..messages import BYTES, CommitWrite, Delete, Entry, PrepareWrite, Write
from .catalog import Row

EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
"""What stands with ``BYTES`` in the entry of a deletion: nothing of the value that was there."""


class Current(NamedTuple):
    """What a write needs to know of the row that stands there."""

    version: int
    etag: str
    live: bool
    created_us: int
    expires_us: int | None
    ttl_us: int | None

    @property
    def live_etag(self) -> str | None:
        """The etag if it is a live value's."""
        return self.etag if self.live else None


class Receipt(NamedTuple):
    """The result of a write that was carried out: ``version`` is None for a delete that found nothing."""

    fingerprint: str
    version: int | None
    etag: str
    created_us: int
    updated_us: int
    expires_us: int | None


def fingerprint(write: Write) -> str:
    """Return what identifies the intent of a write: the same write id may only ever come with the same intent."""
    if isinstance(write, Delete):
        intent: tuple[Any, ...] = ("delete", write.key, write.if_match)
    else:
        intent = (
            "write", write.key, write.if_match, write.if_none_match, write.sha256, write.content_type,
            write.signature, write.schema_name, write.schema_version, write.ttl_seconds, write.keep_ttl,
            write.vectors,
        )  # fmt: skip
    return hashlib.blake2b(repr(intent).encode(), digest_size=16).hexdigest()


def write_digest(scope: str, write_id: str) -> bytes:
    """Return 16 bytes that stand for a write id in its scope, whatever its length."""
    name = f"{scope}\0{write_id}"
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def write_mark(digest: bytes, intent: bytes) -> bytes:
    """Return what the etag of a write is made of, from its ``write_digest`` and its fingerprint.

    In a store that was restored the same write id may come again, with another value.
    """
    return hashlib.blake2b(digest + intent, digest_size=8).digest()


def etag_of(mark: bytes, version: int) -> str:
    """Return the etag of the version that a write made: its mark makes it unique, the version makes it readable."""
    return f"{version}-{mark.hex()}"


def swept_requests(scope: str) -> str:
    """Return the name under which an application keeps the version floor of all its requests that were swept.

    No request has an empty id, so no scope has this name; one row stands for any number of requests.
    """
    # Of a name that is damaged there may be less.
    namespace, _, rest = scope.partition("/")
    return f"{namespace}/{rest.partition('/')[0]}/"


def replay(write: Write, receipt: Receipt) -> Entry | None:
    """Return the first result of a repeated write; raise ConflictError if it is another write with the same id."""
    if receipt.fingerprint != fingerprint(write):
        raise ConflictError("this write id was used for a different write", code="write_id_reused")
    if receipt.version is None:
        return None
    return entry_of(write, receipt.version, receipt.etag, receipt.created_us, receipt.updated_us, receipt.expires_us)


def conditions_hold(write: Write | PrepareWrite, etag: str | None) -> bool:
    """Say whether the live value that stands there, None if none does, is the one the writer expects."""
    if write.if_match is not None:
        return etag == write.if_match
    return isinstance(write, Delete) or not write.if_none_match or etag is None


def condition_failed(write: Write | PrepareWrite, found: Row | None) -> ConflictError:
    """Return the error of a write whose condition does not hold; ``found`` is the live value that stands there."""
    if not isinstance(write, Delete) and write.if_none_match:
        return ConflictError("there is a value already", key=write.key, found=found)
    return ConflictError("the key is not at the version that was expected", key=write.key, found=found)


def blob_gone() -> ConflictError:
    """Return the error of a write whose blob is no longer staged for its key."""
    return ConflictError(
        "no write of this id, key and size is prepared, or not any more; prepare it again", code="blob_gone"
    )


def next_entry(write: Write, mark: bytes, current: Current | None, floor: int, now_us: int) -> tuple[Entry, int | None]:
    """Return the entry of the version that this write makes, and its time to live in microseconds.

    ``mark`` makes its etag unique; ``floor`` is the version above which a key without a row starts.
    """
    version = (current.version if current else floor) + 1
    etag = etag_of(mark, version)
    live = current if current and current.live else None
    expires_us = ttl_us = None
    if isinstance(write, CommitWrite):
        if write.ttl_seconds is not None:
            ttl_us = round(write.ttl_seconds * 1_000_000)
            expires_us = now_us + ttl_us
        elif write.keep_ttl and live:
            expires_us, ttl_us = live.expires_us, live.ttl_us
    return entry_of(write, version, etag, live.created_us if live else now_us, now_us, expires_us), ttl_us


def entry_of(write: Write, version: int, etag: str, created_us: int, updated_us: int, expires_us: int | None) -> Entry:
    """Return the entry of the version that a write made."""
    if isinstance(write, Delete):
        return Entry(
            write.key, version, etag, 0, EMPTY_SHA256, BYTES, None, None, None,
            created_us, updated_us, None, write.provenance, True,
        )  # fmt: skip
    size = len(write.data) if write.data is not None else write.blob.size if write.blob is not None else 0
    return Entry(
        write.key, version, etag, size, write.sha256 or "", write.content_type, write.signature,
        write.schema_name, write.schema_version, created_us, updated_us, expires_us, write.provenance, False,
    )  # fmt: skip
