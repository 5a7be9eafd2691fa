"""Blobs in an object store: S3 and what speaks its language, Google Cloud Storage, Azure.

One immutable object a chunk, ``<prefix>/<two characters>/<id>/<number>``: no multipart upload, so nothing has to be
completed twice. A bucket and prefix belong to one catalog: a check deletes what its catalog does not know.

Credentials, region, endpoint and path style come from the usual environment (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``) or
from the machine's own identity; profiles in ``~/.aws`` are not read.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeVar, cast

from ..errors import AgentMemoryError, ConflictError, IntegrityError, InvalidRequestError, UnavailableError
from ..executors import Executor
from .blobs import BlobObject, check_blob_id, is_blob_id

T = TypeVar("T")

SCHEMES: Final = ("s3", "gs", "az")
# What else a URL may hold the library leaves out without a word: two stores would meet behind one prefix.
_URL: Final = re.compile(rf"({'|'.join(SCHEMES)})://[^/?#@:\x00-\x1f]+(/[^?#\x00-\x1f]*)?")
# Where the environment names an endpoint. What is no address the library takes, and panics at its first request.
_ENDPOINTS: Final = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
# What goes into a header. A line's end, as a file with a secret has one, makes the library panic at its first request.
_ONE_LINE: Final = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ),
    "gs": (),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}
_ENDPOINT: Final = re.compile(r"https?://[^/?#\s]+(/[^?#\s]*)?")
_BLOCK: Final = 8 * 1024 * 1024
_AHEAD: Final = 4
_BULK: Final = 1_000
_CONNECT_SECONDS: Final = 3.0
# Until the answer begins, and between the pieces of its body: an upload has to be through within it.
_TRANSFER_SECONDS: Final = 120.0
_SILENCE_SECONDS: Final = 20.0
# What moves no bytes is answered at once or not at all.
_CONTROL_SECONDS: Final = 8.0
# The flows repeat a whole step within the call's deadline; here a blip is all that is bridged.
_RETRIES: Final = 2
_RETRY_SECONDS: Final = 10.0
_BACKOFF: Final = {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=1), "base": 2}
_NUMBER: Final = re.compile("0|[1-9][0-9]{0,5}")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
# Where a machine's own identity comes from, once the environment has named no credentials.
_IDENTITY: Final = ("http://169.254.", "metadata.google.internal", "Failed to read token file")
# In the answer's body, which a HEAD has not. Nothing but letters is repeated: no key, no URL.
_CODE: Final = re.compile(r"<Code>([A-Za-z]{1,64})<")
_OTHER_REGION: Final = "our region: set AWS_REGION to the bucket's"
# All but the first S3 calls a bad request (400) or answers with a redirect.
_REFUSED: Final = {
    "RequestTimeTooSkewed": "our clock: it is too far from its own",
    "<Code>InvalidAccessKeyId<": "our credentials: it knows no such access key",
    "<Code>SignatureDoesNotMatch<": "our credentials: what is signed with them has a wrong signature",
    "<Code>AuthenticationFailed<": "our credentials",
    "<Code>ExpiredToken<": "our credentials: their session token has expired",
    "<Code>InvalidToken<": "our credentials: their session token is not valid",
    "<Code>AuthorizationHeaderMalformed<": _OTHER_REGION,
    "incorrectly configured region": _OTHER_REGION,
}
# Said of credentials that are not known, and by others of rules that forbid one thing or the other.
_DENIED: Final = "our credentials, or does not allow them this"
# What the library's TLS says of a certificate, and of an answer that is none of TLS.
_NO_TLS: Final = re.compile(r"InvalidCertificate\(\s*(\w+?)(?:Context)?\b|InvalidContentType")
_CERTIFICATES: Final = {
    "Expired": "its certificate has expired",
    "NotValidYet": "its certificate is not valid yet",
    "NotValidForName": "its certificate is for another host",
    "UnknownIssuer": "nobody who is trusted issued its certificate (SSL_CERT_FILE can name the authorities to trust)",
}

_process: int | None = None
"""The process that obstore's threads run in, once there are any."""


class ObjectBlobs:
    """Blobs behind a URL such as ``s3://bucket/prefix``.

    Args:
        url: a scheme of SCHEMES, the bucket or container, and optionally a prefix.
        timeout: seconds that a call may take; without it a transfer may take two minutes.

    Raises:
        InvalidRequestError: the URL or the environment's settings make no sense.
    """

    def __init__(self, url: str, *, timeout: float = math.inf) -> None:
        try:
            import obstore
        except ImportError:
            raise ImportError("blobs in an object store need obstore: pip install 'agent-memory[s3]'") from None
        if not _URL.fullmatch(url):
            raise InvalidRequestError(
                "blobs lie in a folder or behind s3://, gs:// or az:// with a bucket and a prefix; settings and "
                "credentials come from the environment"
            )
        self._api = cast(Any, obstore)
        # A call gets a second attempt before its time is over.
        once = timeout / 2
        self._store = _open(url, once, min(_TRANSFER_SECONDS, timeout), read_timeout=min(_SILENCE_SECONDS, once))
        self._control = _open(url, once, min(_CONTROL_SECONDS, once))

    def put(self, blob_id: str, index: int, data: memoryview) -> str:
        path = _path(blob_id, index)
        if (result := self._create(path, data)) is not None:
            return _etag(result)
        # Ours, if its reply was lost.
        stored = bytearray(len(data))
        found = self._call(lambda: self._api.head(self._control, path))
        if found["size"] == len(data):
            self.read_into(blob_id, index, 0, memoryview(stored))
        if found["size"] != len(data) or memoryview(stored) != data:
            raise ConflictError("other bytes were uploaded to this chunk before", code="chunk_exists")
        return _etag(found)

    def _create(self, path: str, data: memoryview) -> Any:
        """Store an object unless there is one; None if there is."""
        from obstore import exceptions

        def create() -> Any:
            try:
                return self._api.put(self._store, path, data, mode="create")
            except exceptions.AlreadyExistsError:
                return None
            except NotImplementedError:
                # AWS_CONDITIONAL_PUT=disabled, for stores that know no conditions.
                return self._api.put(self._store, path, data, use_multipart=False)

        try:
            return self._call(create)
        except IntegrityError:
            raise _no_bucket() from None

    def read_into(self, blob_id: str, index: int, offset: int, into: memoryview) -> None:
        if not into:
            return
        part = memoryview(self._range(_path(blob_id, index), offset, len(into)))
        if len(part) != len(into):
            raise IntegrityError("a stored chunk is shorter than the catalog says")
        into[:] = part

    def _range(self, path: str, offset: int, length: int) -> Any:
        return self._call(lambda: self._api.get_range(self._store, path, start=offset, length=length))

    def digest(self, blob_id: str, sizes: list[int], sha256: str | None = None) -> tuple[str, list[str]] | None:
        """Return the sha256 of the whole and the etags of the chunks; None if one is missing or of another size.

        With the ``sha256`` that the writer names, the objects' sizes and etags are asked for and no byte is moved: the
        writer's checks and every reader's hold the bytes to it. Without one it is computed from the stored bytes.
        """
        listed = self._listed(blob_id) if len(sizes) > 1 else {}
        etags: list[str] = []
        for index, size in enumerate(sizes):
            found = listed.get(index) or self._head(_path(blob_id, index))
            if found is None or found["size"] != size:
                return None
            etags.append(_etag(found))
        if sha256 is not None:
            return sha256, etags
        try:
            return self._sha256(blob_id, sizes), etags
        except IntegrityError:
            return None

    def _listed(self, blob_id: str) -> dict[int, Any]:
        """Return what a listing says of a blob's chunks: one request for a thousand of them."""
        found = (one for page in self._pages(_path(blob_id)) for one in page)
        named = ((one["path"].rpartition("/")[2], one) for one in found)
        return {int(number): one for number, one in named if _NUMBER.fullmatch(number)}

    def _head(self, path: str) -> Any:
        try:
            return self._call(lambda: self._api.head(self._control, path))
        except IntegrityError:
            return None

    def _sha256(self, blob_id: str, sizes: list[int]) -> str:
        whole = hashlib.sha256()
        ranges = (
            (_path(blob_id, index), offset, min(_BLOCK, size - offset))
            for index, size in enumerate(sizes)
            for offset in range(0, size, _BLOCK)
        )
        with Executor(_AHEAD, "agent-memory-digest") as pool:
            waiting: deque[Future[Any]] = deque()
            try:
                while True:
                    for one in islice(ranges, _AHEAD - len(waiting)):
                        waiting.append(pool.submit(self._range, *one))
                    if not waiting:
                        return whole.hexdigest()
                    whole.update(memoryview(waiting.popleft().result()))
            finally:
                for future in waiting:
                    future.cancel()

    def delete(self, blobs: Iterable[tuple[str, int]]) -> None:
        # What no store made is no object of it.
        paths = (_path(blob_id, index) for blob_id, count in blobs if is_blob_id(blob_id) for index in range(count))
        while some := list(islice(paths, _BULK)):
            self._delete(some)

    def _delete(self, paths: list[str]) -> None:
        try:
            self._call(lambda: self._api.delete(self._control, paths))
        except IntegrityError:
            # Google's and Azure's call the deletion of what is not there an error.
            for path in paths if len(paths) > 1 else ():
                self._delete([path])

    def url(self, method: str, blob_id: str, index: int, seconds: int) -> str:
        """Return a signed URL to GET or PUT a chunk with, for so many seconds; it may have to fetch credentials.

        Its signature binds the method, the object and the time. It cannot bind the size and the bytes of an upload,
        nor that there is nothing yet: the commit compares sizes and etags, and a reader the sha256 of what arrives.
        """
        return self._call(
            lambda: self._api.sign(self._store, method, _path(blob_id, index), timedelta(seconds=seconds))
        )

    def objects(self) -> Iterator[BlobObject]:
        """Iterate over all chunks; what else lies behind the prefix is not ours."""
        now = datetime.now(UTC)
        for page in self._pages(None):
            for found in page:
                blob_id, _, number = found["path"].partition("/")[2].partition("/")
                if is_blob_id(blob_id) and _NUMBER.fullmatch(number) and found["path"] == _path(blob_id, int(number)):
                    age = (now - found["last_modified"]).total_seconds()
                    yield BlobObject(blob_id, int(number), found["size"], age)

    def discard(self, found: BlobObject) -> None:
        self._delete([_path(found.blob_id, found.number)])

    def ping(self) -> None:
        # A listing, unlike a HEAD, tells a bucket that is not there from an object that is not.
        next(self._pages("readiness"), None)

    def close(self) -> None:
        """The library's connections close with the object."""

    def _pages(self, prefix: str | None) -> Iterator[Any]:
        pages = self._call(lambda: iter(self._api.list(self._control, prefix, chunk_size=_BULK)))
        while page := self._call(lambda: next(pages, None)):
            yield page

    def _call(self, function: Callable[[], T]) -> T:
        from obstore import exceptions

        _check_process()
        try:
            return function()
        except FileNotFoundError:
            failure: AgentMemoryError = IntegrityError(
                "a chunk of the value is missing from the blob store", code="chunk_missing"
            )
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
            failure = _refused(str(error))
        except (exceptions.BaseError, OSError, ValueError) as error:
            failure = _translate(str(error))
        # Outside the handlers: the library's text holds URLs.
        raise failure


def _open(url: str, once: float, timeout: float, **more: float) -> Any:
    from obstore import store

    seconds = {"timeout": timeout, "connect_timeout": min(_CONNECT_SECONDS, once), **more}
    options = {name: timedelta(seconds=number) for name, number in seconds.items()}
    retries = {
        "max_retries": _RETRIES,
        "retry_timeout": timedelta(seconds=min(_RETRY_SECONDS, once)),
        "backoff": _BACKOFF,
    }
    _check_lines(url)
    allow_http = _names_http(url)
    try:
        return cast(Any, store).from_url(
            url, client_options={**options, "allow_http": allow_http}, retry_config=retries
        )
    except Exception as error:
        # The library's own text may repeat a secret from the environment.
        failure = InvalidRequestError(f"the object store's address makes no sense: {type(error).__name__}")
    raise failure


def _check_process() -> None:
    """Refuse to work in a forked child: obstore's threads stayed in the parent, and a call would wait for ever."""
    global _process
    process = os.getpid()
    if _process is None:
        _process = process
    elif _process != process:
        raise UnavailableError(
            "an object store that was used before a fork cannot be used after it: start processes with 'spawn', "
            "or go through a server",
            code="forked",
        )


def _translate(text: str) -> AgentMemoryError:
    """Return the error that the library's text stands for, without the text: it holds URLs."""
    if any(mark in text for mark in _NO_BUCKET):
        return _no_bucket()
    if any(mark in text for mark in _IDENTITY):
        return UnavailableError("no credentials for the object store were found")
    if any(mark in text for mark in _REFUSED):
        return _refused(text)
    if match := _STATUS.search(text):
        if match[1] in ("401", "403"):
            return _refused(text)
        if match[1] == "416":
            return IntegrityError("a stored chunk is shorter than the catalog says")
        named = f" ({code})" if (code := _code(text)) else ""
        return UnavailableError(f"the object store does not serve: it answered {match[1]}{named}")
    if match := _NO_TLS.search(text):
        why = _CERTIFICATES.get(match[1], "its certificate is not valid") if match[1] else "it speaks none"
        return UnavailableError(f"no TLS connection to the object store is possible: {why}", code="unreachable")
    return UnavailableError("the object store does not serve: it cannot be reached, or its answer breaks off")


def _refused(text: str) -> UnavailableError:
    what = next((what for mark, what in _REFUSED.items() if mark in text), None)
    if what is None:
        code = _code(text)
        what = _DENIED if code in (None, "AccessDenied", "AuthorizationFailure") else f"what was asked of it: {code}"
    return UnavailableError(f"the object store refuses {what}", code="blobs_refused")


def _code(text: str) -> str | None:
    """Return the object store's own name for what is wrong, if it gave one."""
    match = _CODE.search(text)
    return match and match[1]


def _no_bucket() -> UnavailableError:
    return UnavailableError("the object store has no such bucket", code="blobs_refused")


def _check_lines(url: str) -> None:
    """Raise InvalidRequestError if a setting in the environment has more than one line, or the end of one."""
    for name in _ONE_LINE[url.partition(":")[0]]:
        if not os.environ.get(name, "").isprintable():
            raise InvalidRequestError(f"{name} holds a line's end or another character that cannot be printed")


def _names_http(url: str) -> bool:
    """Say whether the environment names an endpoint without TLS: whoever writes http:// there means it.

    Raises InvalidRequestError if it names one that is no address.
    """
    named = {name: os.environ[name] for name in _ENDPOINTS[url.partition(":")[0]] if name in os.environ}
    for name, endpoint in named.items():
        if not _ENDPOINT.fullmatch(endpoint):
            raise InvalidRequestError(f"{name} is no http:// or https:// address: mend it, or unset it")
    return any(endpoint.startswith("http://") for endpoint in named.values())


def _etag(found: Any) -> str:
    etag = found["e_tag"]
    if not etag:
        raise UnavailableError("the object store does not serve: its answer has no etag")
    return str(etag).strip('"')


def _path(blob_id: str, index: int | None = None) -> str:
    check_blob_id(blob_id)
    return f"{blob_id[-2:]}/{blob_id}" if index is None else f"{blob_id[-2:]}/{blob_id}/{index}"
