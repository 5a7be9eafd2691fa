"""A small S3 that forgives nothing: one bucket in memory, path style, signatures and expiry checked, faults on demand.

``python -m tests.support.strict_s3`` serves one in a process of its own, for benchmarks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import re
import socket
import struct
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, quote, unquote_to_bytes
from xml.sax.saxutils import escape

import uvicorn

ACCESS_KEY: Final = "AKIDSTRICT"
SECRET_KEY: Final = "a secret that must never be seen"
REGION: Final = "eu-test-1"
BUCKET: Final = "bucket"

_SKEW_SECONDS: Final = 15 * 60
_LONGEST_EXPIRY: Final = 7 * 86_400
_PAGE: Final = 1_000
_PIECE: Final = 256 * 1024
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^,\s]+), ?SignedHeaders=([^,\s]+), ?Signature=([0-9a-f]{64})"
)
_PRESIGNED: Final = frozenset(
    f"X-Amz-{name}" for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")
)
_LISTING: Final = frozenset(
    {"list-type", "prefix", "delimiter", "continuation-token", "start-after", "max-keys", "encoding-type"}
)
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")


class Fault(Enum):
    """What can go wrong with one request."""

    REFUSED = "a 503 with an error in XML, nothing was done"
    REFUSED_EMPTY = "a 500 without a body, nothing was done"
    REFUSED_AFTER = "a 500, though it was done"
    RESET = "the connection is reset, nothing was done"
    RESET_AFTER = "the connection is reset, though it was done"
    RESET_MIDWAY = "the connection is reset in the middle of the answer's body"
    TRUNCATED = "the connection ends in the middle of the answer's body"
    SLOW = "the answer's body comes in pieces with pauses between them"
    STALLED = "no answer comes for a long while"
    LYING = "a 200 whose body is an error, nothing was done"


Plan: TypeAlias = Callable[[str, str], Fault | None]
"""Says what goes wrong with a request, from its method and key."""


def seeded(seed: int, rates: Mapping[Fault, float]) -> Plan:
    """Return a plan in which each fault strikes its share of requests; the same seed gives the same sequence."""
    numbers = random.Random(seed)

    def plan(_method: str, _key: str) -> Fault | None:
        number = numbers.random()
        for fault, rate in rates.items():
            number -= rate
            if number < 0:
                return fault
        return None

    return plan


def once(fault: Fault, method: str, *, times: int = 1) -> Plan:
    """Return a plan in which the next requests with this method meet a fault."""
    left = times

    def plan(found: str, _key: str) -> Fault | None:
        nonlocal left
        if found != method or not left:
            return None
        left -= 1
        return fault

    return plan


class Stored(NamedTuple):
    """An object."""

    data: bytes
    etag: str
    modified: float


class Seen(NamedTuple):
    """A request that was answered: how it was signed, and the bytes of the two bodies."""

    method: str
    key: str
    presigned: bool
    status: int
    received: int
    sent: int
    agent: str


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str = "no") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


class _Answer(NamedTuple):
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None


class _Request(NamedTuple):
    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return unquote_to_bytes(self.path).decode().removeprefix(f"/{BUCKET}").removeprefix("/")

    @property
    def presigned(self) -> bool:
        return any(name == "X-Amz-Signature" for name, _ in self.query)


class StrictS3:
    """Serves on a thread, on loopback. ``stop`` and ``start`` keep the port and the objects.

    ``plan`` decides which requests fail, ``forbids`` names the code that a method is refused with, ``skew`` is what its
    clock is ahead by, in seconds.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.objects: dict[str, Stored] = {}
        self.seen: list[Seen] = []
        self.faults = 0
        self.plan: Plan | None = None
        self.skew = 0.0
        self.pause = 0.02
        self.bulk_errors: set[str] = set()
        self.forbids: dict[str, str] = {}
        self.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that lead a client of S3 here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
        }

    def start(self) -> None:
        """Serve; return when the port takes connections."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(256)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._serve,
            http="httptools",
            ws="none",
            lifespan="off",
            log_level="critical",
            access_log=False,
            interface="asgi3",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the object store did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.should_exit = True
        self._thread.join(10)

    def __enter__(self) -> StrictS3:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def now(self) -> float:
        return time.time() + self.skew

    # -- one request -------------------------------------------------------------------------------------------------

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        request = _Request(
            scope["method"],
            scope["raw_path"].decode("ascii"),
            parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True),
            headers,
            b"".join(parts),
        )
        fault = self.plan(request.method, request.key) if self.plan else None
        if fault is not None:
            self.faults += 1
        answer = self._faulted(request, fault)
        if answer is None or fault is Fault.RESET_AFTER:
            await _break_off(receive, send, reset=True)
            return
        await self._answer(request, answer, fault, receive, send)

    def _faulted(self, request: _Request, fault: Fault | None) -> _Answer | None:
        match fault:
            case Fault.RESET:
                return None
            case Fault.REFUSED:
                return _error(503, "SlowDown", "Please reduce your request rate.")
            case Fault.REFUSED_EMPTY:
                return _Answer(500)
            case Fault.LYING:
                return _error(200, "InternalError", "We encountered an internal error. Please try again.")
            case _:
                answer = self._handled(request)
                return _error(500, "InternalError") if fault is Fault.REFUSED_AFTER else answer

    def _handled(self, request: _Request) -> _Answer:
        try:
            self._check(request)
            if request.method in self.forbids:
                raise _Refusal(403, self.forbids[request.method])
            return self._act(request)
        except _Refusal as refusal:
            return _error(refusal.status, refusal.code, refusal.message)

    async def _answer(self, request: _Request, answer: _Answer, fault: Fault | None, receive: Any, send: Any) -> None:
        body = b"" if request.method == "HEAD" else answer.body
        self.seen.append(
            Seen(
                request.method,
                request.key,
                request.presigned,
                answer.status,
                len(request.body),
                len(body),
                request.headers.get("user-agent", ""),
            )
        )
        if fault is Fault.STALLED:
            await asyncio.sleep(60)
        length = len(body) if answer.length is None else answer.length
        headers = [("content-length", str(length)), ("server", "StrictS3"), *answer.headers]
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
            }
        )
        if fault in (Fault.RESET_MIDWAY, Fault.TRUNCATED) and len(body) > 1:
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            await _break_off(receive, send, reset=fault is Fault.RESET_MIDWAY)
            return
        size = max(1, -(-len(body) // 4)) if fault is Fault.SLOW else _PIECE
        for start in range(0, len(body), size):
            if fault is Fault.SLOW:
                await asyncio.sleep(self.pause)
            await send({"type": "http.response.body", "body": body[start : start + size], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    # -- signatures --------------------------------------------------------------------------------------------------

    def _check(self, request: _Request) -> None:
        if request.headers.get("host") != self.host:
            raise _Refusal(400, "InvalidRequest", "another host")
        if request.presigned:
            if "authorization" in request.headers:
                raise _Refusal(400, "InvalidArgument", "Only one auth mechanism allowed")
            credential, signed, signature, at = self._presigned(dict(request.query))
            payload = _UNSIGNED
        else:
            credential, signed, signature, at = self._signed(request)
            payload = request.headers.get("x-amz-content-sha256", "")
            if payload not in (_UNSIGNED, hashlib.sha256(request.body).hexdigest()):
                raise _Refusal(400, "XAmzContentSHA256Mismatch")
        unsigned = {name for name in request.headers if name.startswith("x-amz-")} - set(signed)
        if "host" not in signed or unsigned:
            raise _Refusal(403, "AccessDenied", "There were headers present in the request which were not signed")
        access_key, _, place = credential.partition("/")
        if access_key != ACCESS_KEY:
            raise _Refusal(403, "InvalidAccessKeyId")
        if place != f"{at[:8]}/{REGION}/s3/aws4_request":
            raise _Refusal(400, "AuthorizationHeaderMalformed")
        expected = _signature(_canonical(request, signed, payload), at, place)
        if not hmac.compare_digest(expected, signature):
            raise _Refusal(403, "SignatureDoesNotMatch")
        if "x-amz-security-token" in request.headers:
            raise _Refusal(400, "ExpiredToken", "The provided token has expired.")

    def _presigned(self, query: Mapping[str, str]) -> tuple[str, list[str], str, str]:
        if not query.keys() >= _PRESIGNED or query["X-Amz-Algorithm"] != "AWS4-HMAC-SHA256":
            raise _Refusal(400, "AuthorizationQueryParametersError")
        at, lifetime = query["X-Amz-Date"], query["X-Amz-Expires"]
        if not lifetime.isdigit() or int(lifetime) > _LONGEST_EXPIRY:
            raise _Refusal(400, "AuthorizationQueryParametersError")
        since = self.now() - _seconds(at)
        if since < -_SKEW_SECONDS:
            raise _Refusal(403, "AccessDenied", "Request is not yet valid")
        if since > int(lifetime):
            raise _Refusal(403, "AccessDenied", "Request has expired")
        return query["X-Amz-Credential"], query["X-Amz-SignedHeaders"].split(";"), query["X-Amz-Signature"], at

    def _signed(self, request: _Request) -> tuple[str, list[str], str, str]:
        match = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
        if match is None:
            raise _Refusal(403, "AccessDenied", "Access Denied")
        at = request.headers.get("x-amz-date", "")
        if abs(self.now() - _seconds(at)) > _SKEW_SECONDS:
            raise _Refusal(403, "RequestTimeTooSkewed")
        return match[1], match[2].split(";"), match[3], at

    # -- operations --------------------------------------------------------------------------------------------------

    def _act(self, request: _Request) -> _Answer:
        names = {name for name, _ in request.query} - _PRESIGNED
        if not request.path.startswith(f"/{BUCKET}"):
            raise _Refusal(404, "NoSuchBucket")
        if request.key:
            if names:
                raise _Refusal(501, "NotImplemented", ",".join(sorted(names)))
            operations = {"GET": self._get, "HEAD": self._get, "PUT": self._put, "DELETE": self._delete}
            if request.method in operations:
                return operations[request.method](request)
        elif request.method == "GET" and "list-type" in names <= _LISTING:
            return self._list(dict(request.query))
        elif request.method == "POST" and names == {"delete"}:
            return self._delete_many(request)
        raise _Refusal(405, "MethodNotAllowed")

    def _put(self, request: _Request) -> _Answer:
        if request.headers.get("content-length") != str(len(request.body)):
            raise _Refusal(411, "MissingContentLength")
        found = self.objects.get(request.key)
        wanted = request.headers.get("if-match")
        if request.headers.get("if-none-match") == "*" and found is not None:
            raise _Refusal(412, "PreconditionFailed")
        if wanted is not None and (found is None or found.etag != wanted):
            raise _Refusal(412, "PreconditionFailed")
        stored = Stored(request.body, f'"{hashlib.md5(request.body).hexdigest()}"', self.now())
        self.objects[request.key] = stored
        return _Answer(200, headers=(("etag", stored.etag),))

    def _get(self, request: _Request) -> _Answer:
        found = self.objects.get(request.key)
        if found is None:
            raise _Refusal(404, "NoSuchKey", "The specified key does not exist.")
        if request.headers.get("if-match", found.etag) not in (found.etag, "*"):
            raise _Refusal(412, "PreconditionFailed")
        if request.headers.get("if-none-match") in (found.etag, "*"):
            return _Answer(304)
        headers = (
            ("etag", found.etag),
            ("accept-ranges", "bytes"),
            ("content-type", "application/octet-stream"),
            ("last-modified", datetime.fromtimestamp(found.modified, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")),
        )
        size = len(found.data)
        span = _RANGE.fullmatch(request.headers.get("range", ""))
        if span is None:
            return _Answer(200, found.data, headers, size)
        start, last = int(span[1]), min(int(span[2] or size - 1), size - 1)
        if start >= size or last < start:
            raise _Refusal(416, "InvalidRange")
        headers += (("content-range", f"bytes {start}-{last}/{size}"),)
        return _Answer(206, found.data[start : last + 1], headers)

    def _delete(self, request: _Request) -> _Answer:
        self.objects.pop(request.key, None)
        return _Answer(204)

    def _delete_many(self, request: _Request) -> _Answer:
        checksums = {
            "content-md5": lambda: base64.b64encode(hashlib.md5(request.body).digest()).decode(),
            "x-amz-checksum-crc32": lambda: base64.b64encode(struct.pack(">I", zlib.crc32(request.body))).decode(),
            "x-amz-checksum-sha256": lambda: base64.b64encode(hashlib.sha256(request.body).digest()).decode(),
        }
        given = checksums.keys() & request.headers.keys()
        if not given:
            raise _Refusal(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
        if any(request.headers[name] != checksums[name]() for name in given):
            raise _Refusal(400, "BadDigest")
        root = ElementTree.fromstring(request.body)
        keys = [node.text or "" for node in root.iter() if node.tag.rpartition("}")[2] == "Key"]
        if not 0 < len(keys) <= _PAGE:
            raise _Refusal(400, "MalformedXML")
        parts: list[str] = []
        for key in keys:
            if key in self.bulk_errors:
                parts.append(f"<Error><Key>{escape(key)}</Key><Code>InternalError</Code><Message>no</Message></Error>")
                continue
            self.objects.pop(key, None)
            parts.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
        return _xml(200, f"<DeleteResult>{''.join(parts)}</DeleteResult>")

    def _list(self, query: Mapping[str, str]) -> _Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most = min(int(query.get("max-keys", _PAGE)), _PAGE)
        contents: list[str] = []
        prefixes: dict[str, None] = {}
        last, more = "", False
        for key in sorted(self.objects):
            if key <= after or not key.startswith(prefix):
                continue
            if len(contents) + len(prefixes) >= most:
                more = True
                break
            last = key
            head, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
            if found:
                prefixes[prefix + head + delimiter] = None
                continue
            stored = self.objects[key]
            modified = datetime.fromtimestamp(stored.modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}</LastModified>"
                f"<ETag>{escape(stored.etag)}</ETag><Size>{len(stored.data)}</Size></Contents>"
            )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in prefixes)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return _xml(
            200,
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{most}</MaxKeys>"
            f"<KeyCount>{len(contents) + len(prefixes)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{''.join(contents)}{common}</ListBucketResult>",
        )


def _canonical(request: _Request, signed: list[str], payload: str) -> str:
    query = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in request.query
        if name != "X-Amz-Signature"
    )
    return "\n".join(
        [
            request.method,
            quote(unquote_to_bytes(request.path), safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in signed),
            "",
            ";".join(signed),
            payload,
        ]
    )


def _signature(canonical: str, at: str, place: str) -> str:
    text = f"AWS4-HMAC-SHA256\n{at}\n{place}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{SECRET_KEY}".encode()
    for part in (*place.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()


def _seconds(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise _Refusal(403, "AccessDenied", "a date is missing") from None


def _xml(status: int, text: str) -> _Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return _Answer(status, body, (("content-type", "application/xml"),))


def _error(status: int, code: str, message: str = "no") -> _Answer:
    return _xml(status, f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>")


async def _break_off(receive: Any, send: Any, *, reset: bool) -> None:
    transport = send.__self__.transport
    if reset:
        # With a linger of zero the kernel answers with RST.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass


def main() -> None:
    with StrictS3() as s3:
        print(f"object store listening on {s3.url}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
