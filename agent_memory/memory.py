"""AgentMemory and AsyncAgentMemory: what an address opens, and the way to everything in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, Final, Self

from .checks import check_type
from .client import Client, Config
from .context import AsyncRequestContext, RequestContext, open_request
from .entities import AsyncEntity, Entity, entity_page
from .errors import InvalidRequestError, UnavailableError
from .flows import Transfer, call
from .keys import check_scope_name
from .maintenance import CheckReport
from .messages import Backup, Check, Scope, SetTimes, Sweep, to_us
from .opening import HTTP_SCHEMES, VOLATILE, open_config, scheme_of
from .state import AsyncState, State
from .sweeping import SweepReport
from .uploads import MIN_CHUNK_BYTES

MAX_TIMEOUT_SECONDS: Final = 300.0


class _AgentMemory:
    """What both faces share: opening, and the open client."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        application: str,
        namespace: str = "default",
        token: str | None = None,
        blobs: str | os.PathLike[str] | None = None,
        signing_keys: Sequence[str | bytes] | None = None,
        timeout: float = 30.0,
        chunk_size: int = 8 * 1024 * 1024,
        parallelism: int = 4,
        blob_hosts: Sequence[str] = (),
    ) -> None:
        """Open a memory.

        Args:
            url: a file path (embedded), ``memory://`` (embedded and volatile), ``postgresql://`` (no server of ours in
                between), or ``http(s)://`` of a server.
            application: the application whose state this is.
            namespace: the tenant.
            token: what the server asks for; http only.
            blobs: where values above 64 KiB lie: a folder, or ``s3://``, ``gs://`` or ``az://`` with a bucket and a
                prefix. By default a folder beside the file; needed with ``postgresql://``; a server knows its own.
            signing_keys: secrets of at least 16 bytes for pickled values: the first signs, all verify. Without them
                ``AGENT_MEMORY_SIGNING_KEYS`` (comma-separated), and an embedded store makes a key of its own.
            timeout: seconds that one call may take, retries included; at most 300.
            chunk_size: bytes in which values above 64 KiB travel; at least 65,536.
            parallelism: chunks that travel at once.
            blob_hosts: hosts besides the server's own from which large values may be fetched; http only.

        Raises:
            InvalidKeyError: the application's or namespace's name is not allowed.
            ValueError: the address has a scheme that is not one of these, or another argument makes no sense.
            UnavailableError: the file cannot be opened.
        """
        check_type(url, (str, os.PathLike), "url is a str or a path")
        check_type(timeout, (int, float), "timeout is a number of seconds")
        if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
            raise InvalidRequestError(f"timeout must be above 0 and at most {MAX_TIMEOUT_SECONDS:.0f} seconds")
        check_type(chunk_size, int, "chunk_size is a whole number of bytes")
        check_type(parallelism, int, "parallelism is a whole number")
        if chunk_size < MIN_CHUNK_BYTES or not 1 <= parallelism <= 64:
            raise InvalidRequestError(f"chunk_size must be at least {MIN_CHUNK_BYTES} bytes, parallelism 1 to 64")
        check_type(token, (str, NoneType), "token is a str")
        check_type(blobs, (str, os.PathLike, NoneType), "blobs is a str or a path")
        address = os.fspath(url)
        scheme = scheme_of(address)
        if scheme not in HTTP_SCHEMES and (token is not None or blob_hosts):
            raise InvalidRequestError("token and blob_hosts belong to an http:// or https:// address")
        if isinstance(blob_hosts, str):
            raise InvalidRequestError("blob_hosts is a list of hosts, not one")
        if any("/" in host for host in blob_hosts):
            raise InvalidRequestError("blob_hosts names hosts, such as bucket.example.com, and no addresses")
        if scheme in (VOLATILE, *HTTP_SCHEMES) and blobs is not None:
            raise InvalidRequestError("blobs belongs to a file or a postgresql:// address")
        config = Config(
            str(Path(address).absolute()) if scheme is None else address,
            check_scope_name(application, "an application"),
            check_scope_name(namespace, "a namespace"),
            token,
            _keys(signing_keys),
            float(timeout),
            Transfer(chunk_size, parallelism),
            tuple(blob_hosts),
            open_config,
            None if blobs is None else os.fspath(blobs),
        )
        self._client = _volatile(config) if scheme == VOLATILE else Client(config)
        self._bound: Mapping[str, str] | None = None

    @classmethod
    def of(cls, client: Client, bound: Mapping[str, str] | None = None) -> Self:
        """Return this face of a client that is open already; closing either closes both."""
        face = cls.__new__(cls)
        face._client = client
        face._bound = bound
        return face

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """Open what the environment names.

        Reads AGENT_MEMORY_URL and AGENT_MEMORY_APPLICATION, and if they are set AGENT_MEMORY_NAMESPACE,
        AGENT_MEMORY_TOKEN, AGENT_MEMORY_BLOBS and AGENT_MEMORY_SIGNING_KEYS. ``options`` override and complete
        them. Raises ValueError if the first two are missing.
        """
        found = {
            name: os.environ.get(_variable(name)) for name in ("url", "application", "namespace", "token", "blobs")
        }
        settings: dict[str, Any] = {**{name: text for name, text in found.items() if text}, **options}
        for name in ("url", "application"):
            if name not in settings:
                raise InvalidRequestError(f"set {_variable(name)}, or pass {name}=")
        return cls(**settings)

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self._client.scope.namespace

    @property
    def application(self) -> str:
        """The application whose state this is."""
        return self._client.scope.application

    def __repr__(self) -> str:
        return f"{type(self).__name__}(application={self.application!r}, namespace={self.namespace!r})"


class AgentMemory(_AgentMemory):
    """The memory of an application: typed state per entity, and any state by key.

    Thread-safe, works after ``fork``, and can be pickled to another process (the pickle holds the token and the signing
    keys: treat it as a secret). Close it, or use it as a context manager.
    """

    @property
    def app_state(self) -> State:
        """The application's state by key."""
        return State(self._client, self._client.scope, self._bound)

    @contextmanager
    def request(self, request_id: str, **labels: str) -> Generator[RequestContext]:
        """Serve a request: inside, ``RequestContext.get()`` finds it and every write carries its id.

        ``labels``, such as ``agent=`` and ``source=``, are provenance too. Raises InvalidKeyError for an id that is
        empty, holds NUL or has more than 2,048 bytes, and InvalidRequestError for a label that is no text.
        """
        with open_request(self._client, request_id, labels):
            yield RequestContext.get()

    def entity(self, kind: str, id: str) -> Entity:
        """Return what is remembered about one thing, such as ``("user", "123")``. Nothing is read or written yet.

        Raises InvalidKeyError for a kind or an id that is no text, is empty, or is too long for a key.
        """
        return Entity(self._client, kind, id, self._bound)

    def entities(self, kind: str) -> Iterator[str]:
        """Iterate over the ids of a kind's entities that remember anything, in byte order, page by page."""
        return self._client.iterate(lambda cursor: entity_page(self._client, kind, cursor))

    def sweep(self) -> SweepReport:
        """Take away what nobody can reach any more: abandoned uploads, overwritten and expired values, old requests.

        A store that no server tends does so by itself, after every minute's first write; one all in files also when it
        is closed, if its process wrote and lived for less than a minute. A server does it once a minute.
        """
        return self._client.run(call(Sweep()))

    def check(self, *, fix: bool = False) -> CheckReport:
        """Compare every value with its hash and its files, and with ``fix`` repair what can be repaired."""
        return self._client.run(call(Check(fix)))

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Write a consistent copy of an embedded store, files and signing key included, while others use it.

        Raises InvalidRequestError if there is a file at ``path`` already, and PermissionDeniedError where the store is
        a server's, as ``sweep`` and ``check`` do too.
        """
        self._client.run(call(Backup(os.fspath(path))))

    def set_times(self, times: Mapping[str, tuple[datetime, datetime]]) -> None:
        """Set when keys of the application state were first and last written, as whoever imports them knows it.

        Maintenance: for imports from elsewhere. Versions and etags stay; nothing is ordered by these times but the
        hits of a search without a vector. Raises InvalidRequestError for a time without a zone, and
        PermissionDeniedError where the store is a server's.
        """
        self._client.run(call(_set_times(self._client.scope, times)))

    @property
    def aio(self) -> AsyncAgentMemory:
        """The async face of the same store, closed with it."""
        return AsyncAgentMemory.of(self._client, self._bound)

    def close(self) -> None:
        """Close files and connections; calls afterwards raise UnavailableError."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncAgentMemory(_AgentMemory):
    """The async face of ``AgentMemory``: the same methods, awaited."""

    @property
    def app_state(self) -> AsyncState:
        """See ``AgentMemory.app_state``."""
        return AsyncState(self._client, self._client.scope, self._bound)

    @contextmanager
    def request(self, request_id: str, **labels: str) -> Generator[AsyncRequestContext]:
        """See ``AgentMemory.request``; a plain ``with`` serves, nothing is awaited."""
        with open_request(self._client, request_id, labels):
            yield AsyncRequestContext.get()

    def entity(self, kind: str, id: str) -> AsyncEntity:
        """See ``AgentMemory.entity``."""
        return AsyncEntity(self._client, kind, id, self._bound)

    def entities(self, kind: str) -> AsyncIterator[str]:
        """See ``AgentMemory.entities``."""
        return self._client.aiterate(lambda cursor: entity_page(self._client, kind, cursor))

    async def sweep(self) -> SweepReport:
        """See ``AgentMemory.sweep``."""
        return await self._client.arun(call(Sweep()))

    async def check(self, *, fix: bool = False) -> CheckReport:
        """See ``AgentMemory.check``."""
        return await self._client.arun(call(Check(fix)))

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """See ``AgentMemory.backup``."""
        await self._client.arun(call(Backup(os.fspath(path))))

    async def set_times(self, times: Mapping[str, tuple[datetime, datetime]]) -> None:
        """See ``AgentMemory.set_times``."""
        await self._client.arun(call(_set_times(self._client.scope, times)))

    @property
    def sync(self) -> AgentMemory:
        """The sync face of the same store, closed with it."""
        return AgentMemory.of(self._client, self._bound)

    async def close(self) -> None:
        """See ``AgentMemory.close``."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _volatile(config: Config) -> Client:
    try:
        folder = Path(tempfile.mkdtemp(prefix="agent-memory-"))
    except OSError as error:
        raise UnavailableError(f"cannot make a folder for memory://: {error.strerror}") from None
    try:
        return Client(config._replace(url=str(folder / "memory.db"), volatile_owner=os.getpid()))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _set_times(scope: Scope, times: Mapping[str, tuple[datetime, datetime]]) -> SetTimes:
    if any(time.tzinfo is None for pair in times.values() for time in pair):
        raise InvalidRequestError("the times of a key need a time zone")
    stamps = ((key, to_us(created), to_us(updated)) for key, (created, updated) in times.items())
    return SetTimes(scope, tuple(stamps))


def _variable(setting: str) -> str:
    return f"AGENT_MEMORY_{setting.upper()}"


def _keys(given: Sequence[str | bytes] | None) -> tuple[bytes, ...]:
    if given is None:
        given = [key for key in os.environ.get("AGENT_MEMORY_SIGNING_KEYS", "").split(",") if key.strip()]
    if isinstance(given, str | bytes):
        raise InvalidRequestError("signing_keys is a list of keys, not one")
    for key in given:
        check_type(key, (str, bytes), "a signing key is a str or bytes")
    return tuple(key.strip().encode() if isinstance(key, str) else key for key in given)
