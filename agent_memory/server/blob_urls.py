"""Signed URLs of chunks that the server itself keeps: whoever holds one may do one thing, for a while.

The query has exactly one form. It is compared as a whole, so that no unknown, repeated, reordered or re-encoded
parameter gets past the signature.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import PermissionDeniedError, UnavailableError
from ..messages import Chunk
from ..storage.blobs import URL_SECONDS, chunk_name

PATH: Final = "/v1/blobs/"
_PLACE: Final = re.compile(r"([0-9a-f-]{1,64})/(0|[1-9][0-9]{0,5})")
_QUERY: Final = re.compile(rb"expires=([1-9][0-9]{0,15})&size=(0|[1-9][0-9]{0,15})&signature=([0-9a-f]{64})")


class Place(NamedTuple):
    """What a URL stands for: one chunk of a blob, of so many bytes."""

    blob_id: str
    number: int
    size: int


class BlobUrls:
    """Makes and checks URLs.

    Args:
        key: the secret that all servers of one store share.
        clock: seconds since 1970.
    """

    def __init__(self, key: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock

    def sign(self, base: str, method: str, chunk: Chunk) -> str:
        """Return the URL at which a chunk can be fetched (GET) or stored (PUT) for the next URL_SECONDS."""
        place = Place(*chunk_name(chunk), chunk.size)
        expires = int(self._clock()) + URL_SECONDS
        signature = self._signature(method, place, expires)
        query = f"expires={expires}&size={place.size}&signature={signature}"
        return f"{base}{PATH}{place.blob_id}/{place.number}?{query}"

    def check(self, method: str, path: str, query: bytes) -> Place:
        """Return what a request's path and raw query stand for.

        Raises PermissionDeniedError if they were not made here for this method, UnavailableError with the code
        ``url_expired`` if their time is over.
        """
        named = _PLACE.fullmatch(path.removeprefix(PATH))
        signed = _QUERY.fullmatch(query)
        if named is not None and signed is not None:
            place = Place(named[1], int(named[2]), int(signed[2]))
            expires = int(signed[1])
            wanted = self._signature("GET" if method == "HEAD" else method, place, expires)
            if hmac.compare_digest(wanted.encode(), signed[3]):
                if self._clock() >= expires:
                    raise UnavailableError("the signed URL has expired", code="url_expired")
                return place
        raise PermissionDeniedError("the URL was not signed by this server", code="url_invalid")

    def _signature(self, method: str, place: Place, expires: int) -> str:
        text = f"{method}\n{place.blob_id}\n{place.number}\n{place.size}\n{expires}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
