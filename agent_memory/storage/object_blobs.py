"""Blobs in an object store: S3 and what speaks its language, Google Cloud Storage, Azure.

One immutable object a chunk, ``<prefix>/<two characters>/<id>.<number>``: no multipart upload, so nothing has to be
completed twice. Credentials, region, endpoint and path style come from the usual environment (``AWS_*``, ``GOOGLE_*``,
``AZURE_*``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, cast

from ..errors import AgentMemoryError, IntegrityError, InvalidRequestError, UnavailableError
from .blobs import BlobObject

T = TypeVar("T")

SCHEMES: Final = ("s3", "gs", "az")
_BLOCK: Final = 8 * 1024 * 1024
_CLIENT: Final = {"timeout": timedelta(seconds=30), "connect_timeout": timedelta(seconds=3)}
# The flows repeat a whole step within the call's deadline; here a blip is all that is bridged.
_RETRIES: Final = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=1), "base": 2},
}


class ObjectBlobs:
    """Blobs behind a URL such as ``s3://bucket/prefix``.

    Args:
        url: a scheme of SCHEMES, the bucket or container, and optionally a prefix.

    Raises:
        InvalidRequestError: the URL or the environment's settings make no sense.
    """

    def __init__(self, url: str) -> None:
        try:
            import obstore
            import obstore.store
        except ImportError:
            raise ImportError("blobs in an object store need obstore: pip install 'agent-memory[s3]'") from None
        if url.partition("://")[0] not in SCHEMES:
            raise InvalidRequestError("blobs lie in a folder or behind s3://, gs:// or az://")
        self._api = cast(Any, obstore)
        try:
            self._store: Any = cast(Any, obstore.store).from_url(
                url, client_options={**_CLIENT, "allow_http": _names_http()}, retry_config=_RETRIES
            )
        except Exception as error:
            # The library's own text may repeat a secret from the environment.
            raise InvalidRequestError(f"the object store's address makes no sense: {type(error).__name__}") from None

    def put(self, blob_id: str, index: int, data: memoryview) -> str:
        result = self._call(lambda: self._api.put(self._store, _path(blob_id, index), data, use_multipart=False))
        return str(result["e_tag"]).strip('"')

    def read_into(self, blob_id: str, index: int, offset: int, into: memoryview) -> None:
        if not into:
            return
        part = self._call(
            lambda: self._api.get_range(self._store, _path(blob_id, index), start=offset, length=len(into))
        )
        view = memoryview(part)
        if len(view) != len(into):
            raise IntegrityError("a stored chunk is shorter than the catalog says")
        into[:] = view

    def digest(self, blob_id: str, sizes: list[int], sha256: str | None = None) -> tuple[str, list[str]] | None:
        """Return the sha256 of the whole and the etags of the chunks; None if one is missing or of another size.

        With the ``sha256`` that the writer names, the objects' sizes and etags are asked for and no byte is moved: the
        writer's checks and every reader's hold the bytes to it. Without one it is computed from the stored bytes.
        """
        etags: list[str] = []
        whole = hashlib.sha256()
        for index, size in enumerate(sizes):
            path = _path(blob_id, index)
            try:
                found = self._call(lambda path=path: self._api.head(self._store, path))
            except IntegrityError:
                return None
            if found["size"] != size:
                return None
            etags.append(str(found["e_tag"]).strip('"'))
            for offset in range(0, size if sha256 is None else 0, _BLOCK):
                length = min(_BLOCK, size - offset)
                whole.update(
                    memoryview(
                        self._call(
                            lambda path=path, offset=offset, length=length: self._api.get_range(
                                self._store, path, start=offset, length=length
                            )
                        )
                    )
                )
        return (whole.hexdigest() if sha256 is None else sha256), etags

    def delete(self, blob_id: str, count: int) -> None:
        paths = [_path(blob_id, index) for index in range(count)]
        try:
            self._call(lambda: self._api.delete(self._store, paths))
        except IntegrityError:
            # Some stores call the deletion of what is not there an error.
            for path in paths:
                self._delete_one(path)

    def _delete_one(self, path: str) -> None:
        try:
            self._call(lambda: self._api.delete(self._store, path))
        except IntegrityError:
            return

    def url(self, method: str, blob_id: str, index: int, seconds: int) -> str:
        """Return a signed URL to GET or PUT a chunk with, for so many seconds."""
        return self._call(
            lambda: self._api.sign(self._store, method, _path(blob_id, index), timedelta(seconds=seconds))
        )

    def objects(self) -> Iterator[BlobObject]:
        now = datetime.now(UTC)
        for page in self._call(lambda: self._api.list(self._store)):
            for found in page:
                blob_id, _, number = str(found["path"]).rpartition("/")[2].rpartition(".")
                age = (now - found["last_modified"]).total_seconds()
                yield BlobObject(blob_id, int(number) if number.isdigit() else -1, found["size"], age)

    def discard(self, found: BlobObject) -> None:
        self._delete_one(_path(found.blob_id, found.number))

    def ping(self) -> None:
        try:
            self._call(lambda: self._api.head(self._store, "readiness"))
        except IntegrityError:
            # The store answered that there is no such object: it serves.
            return

    def close(self) -> None:
        """The library's connections close with the object."""

    def _call(self, function: Callable[[], T]) -> T:
        from obstore import exceptions

        try:
            return function()
        except FileNotFoundError:
            failure: AgentMemoryError = IntegrityError(
                "a chunk of the value is missing from the blob store", code="chunk_missing"
            )
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError):
            failure = UnavailableError("the object store refuses our credentials", code="blobs_refused")
        except (exceptions.BaseError, OSError, ValueError) as error:
            failure = UnavailableError(f"the object store does not serve: {type(error).__name__}")
        # Outside the handlers: the library's text holds URLs.
        raise failure


def _names_http() -> bool:
    """Say whether the environment names an endpoint without TLS: whoever writes http:// there means it."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in names)


def _path(blob_id: str, index: int) -> str:
    return f"{blob_id[-2:]}/{blob_id}.{index}"
