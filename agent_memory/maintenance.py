"""Looking after a store: comparing its parts, and copying one in files while others use it."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from .disk import private, sync_file, sync_folder
from .errors import IntegrityError, InvalidRequestError, UnavailableError
from .messages import Scope
from .storage.blobs import GRACE_SECONDS, BlobObject, BlobStore, FileBlobs, chunk_sizes, is_blob_id
from .storage.catalog import DEAD, GARBAGE, LIVE, BlobRow, Catalog, StoredValue
from .storage.sqlite.catalog import SqliteCatalog

_COPY_ATTEMPTS: Final = 3
_SAMPLE: Final = 100


class Problem(NamedTuple):
    """One disagreement. ``place`` is ``scope key`` or a blob's id; ``fixed`` says whether it is mended now.

    ``kind`` is ``damaged`` or ``missing`` for bytes, ``unregistered`` for a value whose blob the catalog does not know,
    ``unused`` for a blob that it takes for a value's and is none, ``orphan`` for a file that nothing refers to.
    """

    kind: str
    place: str
    detail: str
    fixed: bool


class CheckReport(NamedTuple):
    """What a check looked at, and what does not agree."""

    values: int
    objects: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True if nothing is wrong, or all that was is mended."""
        return all(problem.fixed for problem in self.problems)


def check(catalog: Catalog, blobs: BlobStore, *, fix: bool = False) -> CheckReport:
    """Compare every value with its hash, every row with its file and every file with its row.

    ``fix=True`` deletes files that no row knows once they are older than any upload, and mends what the catalog says of
    a blob. Where the catalog knows none of the files, they may be another's, and stay; where the database itself is
    damaged, nothing is mended. Bytes that are damaged or missing cannot be mended: such a key raises IntegrityError
    until it is written again, and is never taken for absent.
    """
    values = 0
    live: set[str] = set()
    harmed: set[tuple[str, str]] = set()
    problems: list[Problem] = []
    if not catalog.is_sound():
        # A key that hides makes its files look unused: nothing is mended by what such a database says.
        fix = False
        detail = "its file is damaged, and keys may seem absent; restore it from a backup"
        problems.append(Problem("damaged", "the database", detail, False))
    for value in catalog.values():
        values += 1
        if value.blob_id is not None:
            live.add(value.blob_id)
        found = _harm(catalog, blobs, value)
        # Others write meanwhile: what was overwritten since is not wrong.
        if found is not None and _is_current(catalog, value):
            kind, detail = found
            mended = fix and kind == "unregistered"
            if mended:
                _register(catalog, value)
            elif kind != "unregistered":
                harmed.add((value.scope, value.key))
            problems.append(Problem(kind, f"{value.scope} {value.key}", detail, mended))
    problems += _unused_rows(catalog, live, harmed, fix)
    objects, orphans = _orphans(catalog, blobs, live, fix)
    return CheckReport(values, objects, (*problems, *orphans))


def _register(catalog: Catalog, value: StoredValue) -> None:
    """Let the catalog know the blob of a value."""
    id, now = value.blob_id or "", catalog.clock()
    catalog.mend_blob(BlobRow(id, value.scope, value.key, value.size, value.chunk_size, LIVE, now))


def _orphans(catalog: Catalog, blobs: BlobStore, live: set[str], fix: bool) -> tuple[int, list[Problem]]:
    """Return how many files there are, and those that no row knows; where it knows none at all, they stay.

    So do those of ``live`` values: what else the catalog says of such a one may be damaged.
    """
    objects = known_objects = 0
    orphans: list[BlobObject] = []
    for found in blobs.objects():
        objects += 1
        # An unfinished upload is a file without a row's name, which may be no text at all; a young one may be going on.
        known = catalog.blob(found.blob_id) if found.number >= 0 else None
        known_objects += known is not None
        is_known = found.blob_id in live or (known is not None and known.state != DEAD)
        if not is_known and found.age_seconds >= GRACE_SECONDS:
            orphans.append(found)
    mended = fix and known_objects > 0
    for orphan in orphans if mended else ():
        blobs.discard(orphan)
    detail = "a file that nothing refers to" if known_objects else "the catalog knows none of the files here"
    return objects, [Problem("orphan", orphan.blob_id, detail, mended) for orphan in orphans]


def lie_here(catalog: Catalog, blobs: BlobStore) -> bool:
    """Say whether a catalog's blobs lie in this store: False if it has some, and none of the oldest hundred is there.

    A catalog does not say where its blobs lie; their ids are unique, so one that is found is enough. Those of current
    values are looked for first: of a catalog that was restored the others may be swept.
    """
    has_some = False
    for state in (LIVE, GARBAGE):
        some = (blob for blob in catalog.blobs() if blob.state == state and is_blob_id(blob.id))
        for blob in islice(some, _SAMPLE):
            if _has(blobs, blob.id):
                return True
            has_some = True
    return not has_some


def _has(blobs: BlobStore, blob_id: str) -> bool:
    try:
        blobs.read_into(blob_id, 0, 0, memoryview(bytearray(1)))
    except IntegrityError as error:
        return error.code != "chunk_missing"
    return True


def _harm(catalog: Catalog, blobs: BlobStore, value: StoredValue) -> tuple[str, str] | None:
    """Return the kind and the description of what is wrong with a value."""
    if not value.sound:
        return "damaged", "what the catalog says of the value cannot be true"
    if value.blob_id is None:
        data = value.data or b""
        if type(data) is not bytes:
            return "damaged", "the value in the catalog is not what was written"
        if hashlib.sha256(data).hexdigest() != value.sha256 or len(data) != value.size:
            return "damaged", "the value in the catalog is not what was written"
        return None
    try:
        digest = blobs.digest(value.blob_id, chunk_sizes(value.size, value.chunk_size))
    except IntegrityError as error:
        return "damaged", str(error)
    if digest is None:
        return "missing", "a file of the value is missing or cut short"
    if digest[0] != value.sha256:
        return "damaged", "the files of the value are not what was written"
    known = catalog.blob(value.blob_id)
    if known is None or known.state != LIVE:
        return "unregistered", "the catalog does not know its value's files"
    return None


def _is_current(catalog: Catalog, value: StoredValue) -> bool:
    if not value.sound:
        return True
    namespace, _, rest = value.scope.partition("/")
    application, _, request = rest.partition("/")
    row = catalog.read(Scope(namespace, application, request or None), value.key)
    return row is not None and (row.blob_id, row.entry.sha256) == (value.blob_id, value.sha256)


def _unused_rows(catalog: Catalog, live: set[str], harmed: set[tuple[str, str]], fix: bool) -> Iterator[Problem]:
    """Give the blobs that are no key's value. One of a ``harmed`` key stays: the id in its row may be the damage."""
    suspects = [blob for blob in catalog.blobs() if blob.state == LIVE and blob.id not in live]
    if not suspects:
        return
    # What was committed after the values were read is in use; what was overwritten since is no longer live.
    used = {value.blob_id for value in catalog.values()}
    for blob in suspects:
        known = catalog.blob(blob.id)
        if blob.id in used or known is None or known.state != LIVE:
            continue
        mended = fix and (known.scope, known.key) not in harmed
        if mended:
            catalog.mend_blob(known._replace(state=GARBAGE, at_us=catalog.clock()))
        yield Problem("unused", blob.id, "no key has this blob as its value", mended)


def backup(catalog: SqliteCatalog, blobs: FileBlobs, key_file: Path, target: Path) -> None:
    """Copy a store in files to ``target``, consistently, while others read and write.

    The database is copied in one step; then the files that the copy refers to, which outlive their last use by
    GRACE_SECONDS. The database gets its name last: a backup that was cut short is not there.
    """
    target_blobs = FileBlobs(blob_folder(target))
    # SQLite would take a log that an earlier database left there for the copy's own.
    log, shared = (Path(f"{target}{suffix}") for suffix in ("-wal", "-shm"))
    for path in (target, target_blobs.folder, signing_key_file(target), log, shared):
        if os.path.lexists(path):
            raise InvalidRequestError(f"{path.name or str(path)!r} is already there; a backup never overwrites")
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    try:
        for attempt in range(_COPY_ATTEMPTS):
            catalog.copy_to(temporary)
            if _copy_blobs(temporary, blobs, target_blobs):
                break
            # Slower than the grace: what the copy refers to was swept meanwhile. A newer copy refers to less of it.
            remove_database(temporary)
            if attempt == _COPY_ATTEMPTS - 1:
                raise UnavailableError(
                    "the store changed faster than it could be copied, or files are missing: run check"
                )
        if key_file.exists():
            with open(signing_key_file(target), "xb", opener=private) as file:
                file.write(key_file.read_bytes())
            _sync(signing_key_file(target))
        _sync(temporary)
        os.rename(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise UnavailableError(f"the backup cannot be written: {error.strerror}", code="disk_failed") from None
    finally:
        remove_database(temporary)
        if not target.exists():
            shutil.rmtree(target_blobs.folder, ignore_errors=True)
            _remove(signing_key_file(target))


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        sync_file(file.fileno())


def remove_database(database: Path) -> None:
    """Remove a database that nobody uses, and what SQLite leaves beside it where the disk is full."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        _remove(Path(f"{database}{suffix}"))


def _remove(path: Path) -> None:
    # Where nothing can be written, not even what is not there can be removed: why it is to go says more than that.
    with suppress(OSError):
        path.unlink()


def _copy_blobs(copy: Path, source: FileBlobs, target: FileBlobs) -> bool:
    """Copy the files that a copied database refers to; False if one is no longer there."""
    catalog = SqliteCatalog(copy)
    try:
        return all(_copy_blob(value, source, target) for value in catalog.values())
    finally:
        catalog.close()


def _copy_blob(value: StoredValue, source: FileBlobs, target: FileBlobs) -> bool:
    """Copy those files of a value that are not in the target yet; False if one is no longer there."""
    if not value.blob_id:
        return True
    for index, _ in enumerate(chunk_sizes(value.size, value.chunk_size)):
        if target.path(value.blob_id, index).exists():
            continue
        try:
            with open(source.path(value.blob_id, index), "rb") as file, target.writer(value.blob_id, index) as upload:
                while block := file.read(1024 * 1024):
                    upload.write(block)
                upload.finish()
        except FileNotFoundError:
            return False
    return True


def blob_folder(database: Path) -> Path:
    """Return the folder beside a database file that holds its large values."""
    return _beside(database, ".blobs")


def signing_key_file(database: Path) -> Path:
    """Return the file beside a database file that holds its signing key."""
    return _beside(database, ".key")


def _beside(database: Path, suffix: str) -> Path:
    # Where the file itself lies, as SQLite does with its log: links to it lead to the same store.
    return Path(f"{os.path.realpath(database)}{suffix}")
