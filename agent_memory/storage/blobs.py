"""Immutable objects for values that are too large for the catalog; here in local files.

A blob is one object a chunk, ``<id>.<number>``, written once and never changed. Durability (G5) is why this is our own
code: a file and its folder reach the disk before the write is acknowledged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ..disk import disk_error, private, sync_file, sync_folder, write_trial
from ..errors import AgentMemoryError, ConflictError, IntegrityError, UnavailableError
from ..messages import MAX_VALUE_BYTES, Blob, Chunk

_BLOCK: Final = 1024 * 1024
_BLOB_URI: Final = "blob:"
_ID: Final = re.compile(r"[0-9a-f-]{1,64}")

URL_SECONDS: Final = 300
"""How long a chunk's URL lives."""

GRACE_SECONDS: Final = 2 * URL_SECONDS + 300
"""How long a blob outlives its last use: nobody holds a working URL to it then."""


MAX_CHUNKS: Final = 10_000


def chunk_sizes(size: int, chunk_size: int | None) -> list[int]:
    """Return the sizes of a value's chunks: all but the last are ``chunk_size``; without one there is one chunk."""
    # A database that is damaged, or that somebody else made, may say anything: nothing is made of such a size.
    if (
        type(size) is not int
        or not 0 <= size <= MAX_VALUE_BYTES
        or (chunk_size is not None and (type(chunk_size) is not int or size > chunk_size * MAX_CHUNKS))
    ):
        raise IntegrityError("the sizes that the catalog has of a value's chunks are damaged")
    if chunk_size is None or size <= chunk_size:
        return [size]
    whole, rest = divmod(size, chunk_size)
    return [chunk_size] * whole + ([rest] if rest else [])


def is_blob_id(blob_id: str) -> bool:
    """Say whether a store made this id: any other may lead out of its folder or prefix, or be no name at all."""
    return type(blob_id) is str and _ID.fullmatch(blob_id) is not None


def check_blob_id(blob_id: str) -> str:
    """Return the id of a blob; raise IntegrityError for one that no store made, which a damaged catalog may name."""
    if not is_blob_id(blob_id):
        raise IntegrityError("the catalog names a blob that no store made")
    return blob_id


def blob_of(blob_id: str, size: int, chunk_size: int | None) -> Blob:
    """Return a blob whose chunks are named for the blob store; a server puts URLs in the names' place."""
    sizes = enumerate(chunk_sizes(size, chunk_size))
    check_blob_id(blob_id)
    return Blob(blob_id, tuple(Chunk(f"{_BLOB_URI}{blob_id}/{number}", one) for number, one in sizes))


def chunk_name(chunk: Chunk) -> tuple[str, int]:
    """Return the blob id and the number of a chunk that ``blob_of`` named."""
    blob_id, _, index = chunk.uri.removeprefix(_BLOB_URI).rpartition("/")
    return blob_id, int(index)


class BlobObject(NamedTuple):
    """One stored chunk, as a listing sees it: its blob, its number, its size in bytes and its age in seconds."""

    blob_id: str
    number: int
    size: int
    age_seconds: float


class BlobStore(Protocol):
    """Thread-safe. Raises UnavailableError when a call may be repeated, IntegrityError for an object that is gone."""

    def put(self, blob_id: str, index: int, data: memoryview) -> str:
        """Store a chunk durably and return its etag. The same bytes again give the same; others are a ConflictError."""
        ...

    def read_into(self, blob_id: str, index: int, offset: int, into: memoryview) -> None:
        """Fill ``into`` with a chunk's bytes from ``offset`` on; raise IntegrityError if there are not as many."""
        ...

    def digest(self, blob_id: str, sizes: list[int], sha256: str | None = None) -> tuple[str, list[str]] | None:
        """Return the sha256 of the whole and the etags of the chunks; None if one is missing or of another size.

        ``sha256`` is what the writer says it is: a store from which the bytes would have to be fetched may take it,
        once it has compared the sizes and etags itself.
        """
        ...

    def delete(self, blobs: Iterable[tuple[str, int]]) -> None:
        """Delete blobs, given with their numbers of chunks; objects that are not there do not matter."""
        ...

    def objects(self) -> Iterator[BlobObject]:
        """Iterate over everything that is stored."""
        ...

    def discard(self, found: BlobObject) -> None:
        """Delete an object that no row of the catalog knows."""
        ...

    def ping(self) -> None:
        """Raise UnavailableError if the store cannot serve, or a folder takes no writes."""
        ...

    def close(self) -> None: ...


_NEVER_SYNCED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENOTSUP})
"""Somebody else's folder may stand where this process cannot look, or on a disk of which folders are not synced."""


class FileBlobs:
    """Blobs in a local folder, spread over 256 subfolders.

    Args:
        folder: made, readable by its owner alone, with the first blob.
        durable: whether bytes reach the disk before they are acknowledged; False only for volatile stores.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder
        self._durable = durable
        self._was_there = os.path.isdir(folder)
        self._lasting = set[Path]()
        """Folders whose names have been synced."""

    def path(self, blob_id: str, index: int) -> Path:
        """Return where a chunk lies; raise IntegrityError for a name that leads out of the folder."""
        check_blob_id(blob_id)
        return self.folder / blob_id[-2:] / f"{blob_id}.{index}"

    def put(self, blob_id: str, index: int, data: memoryview) -> str:
        with self.writer(blob_id, index) as upload:
            upload.write(data)
            return upload.finish()

    def writer(self, blob_id: str, index: int) -> Upload:
        """Open an upload that becomes the chunk when it is finished, and leaves nothing behind otherwise."""
        path = self.path(blob_id, index)
        try:
            self._make_folder(path.parent)
            return Upload(path, self._durable)
        except FileNotFoundError:
            raise _no_place() from None
        except OSError as error:
            raise _translate(error) from None

    def read_into(self, blob_id: str, index: int, offset: int, into: memoryview) -> None:
        try:
            with open(self.path(blob_id, index), "rb", buffering=0) as file:
                file.seek(offset)
                filled = 0
                while filled < len(into):
                    count = file.readinto(into[filled : filled + 64 * _BLOCK])
                    if not count:
                        raise IntegrityError("a stored chunk is shorter than the catalog says")
                    filled += count
        except OSError as error:
            raise _translate(error) from None

    def digest(self, blob_id: str, sizes: list[int], sha256: str | None = None) -> tuple[str, list[str]] | None:
        del sha256  # The bytes are here: they are always read.
        whole, etags = hashlib.sha256(), list[str]()
        buffer = bytearray(_BLOCK)
        view = memoryview(buffer)
        for index, size in enumerate(sizes):
            try:
                with open(self.path(blob_id, index), "rb", buffering=0) as file:
                    if os.fstat(file.fileno()).st_size != size:
                        return None
                    chunk = whole if len(sizes) == 1 else hashlib.sha256()
                    while count := file.readinto(buffer):
                        whole.update(view[:count])
                        if chunk is not whole:
                            chunk.update(view[:count])
                    etags.append(chunk.hexdigest())
            except FileNotFoundError:
                return None
            except OSError as error:
                raise _translate(error) from None
        return whole.hexdigest(), etags

    def delete(self, blobs: Iterable[tuple[str, int]]) -> None:
        # By name, not by number: an upload that was killed left a file of its own. Each folder is read once.
        gone: defaultdict[Path, set[str]] = defaultdict(set)
        for blob_id, _ in blobs:
            # What leads out of the folder is no file of it.
            with contextlib.suppress(IntegrityError):
                gone[self.path(blob_id, 0).parent].add(blob_id)
        try:
            for folder, ids in gone.items():
                with contextlib.suppress(FileNotFoundError):
                    for name in os.listdir(folder):
                        if name.partition(".")[0] in ids:
                            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _translate(error) from None

    def objects(self) -> Iterator[BlobObject]:
        """Iterate over stored chunks; an unfinished upload is chunk -1 of a blob with its file's name."""
        now = time.time()
        try:
            for folder in sorted(self.folder.glob("??")) if self.folder.is_dir() else ():
                for file in sorted(folder.iterdir()):
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat()
                        blob_id, _, index = file.name.rpartition(".")
                        number = int(index) if index.isdecimal() and is_blob_id(blob_id) else -1
                        yield BlobObject(
                            blob_id if number >= 0 else file.name, number, status.st_size, now - status.st_mtime
                        )
        except OSError as error:
            raise _translate(error) from None

    def discard(self, found: BlobObject) -> None:
        """Delete an object that no row of the catalog knows."""
        name = f"{found.blob_id}.{found.number}" if found.number >= 0 else found.blob_id
        try:
            for folder in self.folder.glob("??"):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _translate(error) from None

    def ping(self) -> None:
        self._check_there()
        try:
            write_trial(self.folder if self._was_there else self.folder.parent, self.folder.name)
        except FileNotFoundError:
            raise _no_place() from None
        except OSError as error:
            raise _translate(error) from None

    def _check_there(self) -> None:
        """Raise UnavailableError if the folder is gone, as when what was mounted there no longer is."""
        # Asked before looking: meanwhile another thread may make it.
        was_there = self._was_there
        if os.path.isdir(self.folder):
            self._was_there = True
        elif was_there:
            raise UnavailableError("the blob folder is not there any more", code="disk_failed")

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _make_folder(self, folder: Path) -> None:
        if folder in self._lasting and folder.is_dir():
            return
        # A new one in its place would hide what lies there when it is back.
        self._check_there()
        for path in (self.folder, folder):
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                if path not in self._lasting:
                    # Who made it may have been killed before it was synced, or not have come to it yet.
                    self._sync_theirs(path.parent)
            else:
                self._sync_folder(path.parent)
            self._lasting.add(path)
        self._was_there = True

    def _sync_theirs(self, folder: Path) -> None:
        try:
            self._sync_folder(folder)
        except OSError as error:
            if error.errno not in _NEVER_SYNCED:
                raise

    def _sync_folder(self, folder: Path) -> None:
        if self._durable:
            sync_folder(folder)


class Upload:
    """One chunk on its way to disk: written beside its place and linked there when it is whole and synced."""

    def __init__(self, path: Path, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._temporary = path.parent / f"{path.name}.{secrets.token_hex(8)}.part"
        self._hash = hashlib.sha256()
        self._file = open(self._temporary, "xb", buffering=0, opener=private)  # noqa: SIM115  (closed in __exit__)

    def write(self, data: memoryview | bytes) -> None:
        view = memoryview(data)
        self._hash.update(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _translate(error) from None

    def finish(self) -> str:
        """Make the bytes the chunk, durably, and return their etag; other bytes in its place are a ConflictError."""
        etag = self._hash.hexdigest()
        try:
            if self._durable:
                sync_file(self._file.fileno())
            # A link, unlike a rename, never replaces what another upload put there first.
            try:
                os.link(self._temporary, self._path)
            except FileExistsError:
                if _file_sha256(self._path) != etag:
                    raise ConflictError("other bytes were uploaded to this chunk before", code="chunk_exists") from None
            if self._durable:
                # Whoever put the bytes there before may have been killed before it came to this.
                sync_folder(self._path.parent)
        except OSError as error:
            raise _translate(error) from None
        return etag

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_place() -> UnavailableError:
    return UnavailableError("the place of the blob folder is not there", code="disk_failed")


def _translate(error: OSError) -> AgentMemoryError:
    if error.errno == errno.ENOENT:
        return IntegrityError("a chunk of the value is missing from the blob store", code="chunk_missing")
    return disk_error(error, "the blob folder")
