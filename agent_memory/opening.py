"""What an address leads to: a file, PostgreSQL or a server, and where the large values lie."""

from __future__ import annotations

import math
import os
import re
import shutil
import weakref
from pathlib import Path
from typing import Final

from .client import Config, Opened, current_request_id
from .errors import InvalidRequestError
from .maintenance import blob_folder, signing_key_file
from .service import StateService
from .signing import Keyring
from .storage.blobs import BlobStore, FileBlobs
from .storage.catalog import Catalog
from .storage.sqlite.apply import SEARCH_SECONDS
from .storage.sqlite.busy import BUSY_SECONDS
from .storage.sqlite.catalog import SqliteCatalog
from .transports.local import LocalTransport

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NO_SLASHES: Final = re.compile(r"(https?|postgres(?:ql)?|memory):(?!//)", re.IGNORECASE)
_HOST_AND_PORT: Final = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):[0-9]+/?")
POSTGRES_SCHEMES: Final = ("postgresql", "postgres")
HTTP_SCHEMES: Final = ("http", "https")
VOLATILE: Final = "memory"


def scheme_of(address: str) -> str | None:
    """Return the scheme of an address, None for a path; raise InvalidRequestError for one that opens nothing."""
    match = _SCHEME.match(address)
    scheme = match.group(1).lower() if match else None
    if scheme not in (None, VOLATILE, *HTTP_SCHEMES, *POSTGRES_SCHEMES):
        raise InvalidRequestError(
            f"{scheme}:// opens no memory: give the path of a file, memory://, http://, https:// or postgresql://"
        )
    if scheme == VOLATILE and address != "memory://":
        raise InvalidRequestError("memory:// stands alone: each one is a private, volatile store")
    if not address:
        raise InvalidRequestError("the address is empty")
    if "\0" in address or address.encode(errors="replace").decode() != address:
        raise InvalidRequestError("an address is UTF-8 without NUL")
    if address == ":memory:":
        raise InvalidRequestError("a volatile store is called memory://")
    if _HOST_AND_PORT.fullmatch(address):
        raise InvalidRequestError(f"{address} looks like a server's address: put http:// in front of it")
    match = _NO_SLASHES.match(address)
    if match:
        raise InvalidRequestError(f"{match[1]}: looks like an address, not a file: put // behind it")
    return scheme


def open_service(
    address: str,
    blobs: str | None = None,
    *,
    sweep_after_writes: bool = False,
    durable: bool = True,
    timeout: float = math.inf,
) -> StateService:
    """Open a store in this process.

    Args:
        address: the path of a database file, or ``postgresql://…``.
        blobs: where large values lie: a folder, or ``s3://``, ``gs://`` or ``az://``; by default beside the file.
        sweep_after_writes: sweep after a write, at most once a minute; for stores that no server tends.
        durable: False for a store that goes with its process.
        timeout: seconds that one call may take, retries included; one attempt takes no longer.
    """
    scheme = scheme_of(address)
    if scheme is not None and scheme not in POSTGRES_SCHEMES:
        # The rest of it may hold a password.
        raise InvalidRequestError(f"a store is opened from a file or postgresql://, not from {scheme}://")
    path = None if scheme else Path(address).absolute()
    store = _open_blobs(path, blobs, durable, timeout)
    try:
        return StateService(
            _open_catalog(address, path, durable, timeout),
            store,
            key_file=path and signing_key_file(path),
            sweep_after_writes=sweep_after_writes,
        )
    except BaseException:
        store.close()
        raise


def _open_catalog(address: str, path: Path | None, durable: bool, timeout: float) -> Catalog:
    # A call ends soon after its deadline, however short that is.
    if path is not None:
        return SqliteCatalog(
            path,
            durable=durable,
            busy_seconds=min(BUSY_SECONDS, timeout / 4),
            search_seconds=min(SEARCH_SECONDS, timeout),
        )
    from .storage.postgres.catalog import STATEMENT_SECONDS, WAIT_SECONDS, PostgresCatalog

    return PostgresCatalog(
        address, wait_seconds=min(WAIT_SECONDS, timeout / 4), statement_seconds=min(STATEMENT_SECONDS, timeout)
    )


def not_here(store: str, blobs: str | None, option: str = "--blobs") -> str:
    """Return what is said where none of a store's large values lies in the place that was opened for them."""
    place = blobs or str(blob_folder(Path(store)))
    return f"none of the store's large values lies in {place!r}: say with {option} where they lie"


def _open_blobs(path: Path | None, blobs: str | None, durable: bool, timeout: float) -> BlobStore:
    if blobs is None:
        if path is None:
            raise InvalidRequestError(
                "say with blobs= (--blobs, AGENT_MEMORY_BLOBS) where large values lie: a folder, or s3://bucket/prefix"
            )
        return FileBlobs(blob_folder(path), durable=durable)
    if _SCHEME.match(blobs):
        from .storage.object_blobs import ObjectBlobs

        return ObjectBlobs(blobs, timeout=timeout)
    return FileBlobs(Path(blobs).absolute(), durable=durable)


def open_config(config: Config) -> Opened:
    """Open what a memory's configuration names."""
    if scheme_of(config.url) in HTTP_SCHEMES:
        from .transports.http import HttpTransport

        transport = HttpTransport(
            config.url,
            config.namespace,
            config.application,
            token=config.token,
            blob_hosts=config.blob_hosts,
            request_id=current_request_id,
        )
        return Opened(transport, Keyring(config.signing_keys))
    keyring = Keyring(config.signing_keys, None if scheme_of(config.url) else signing_key_file(Path(config.url)))
    owner = config.volatile_owner
    service = open_service(
        config.url, config.blobs, sweep_after_writes=True, durable=owner is None, timeout=config.timeout
    )
    if owner is None:
        return Opened(LocalTransport(service), keyring)
    # A store that nobody closes goes with its process, too.
    remove = weakref.finalize(service, _remove, Path(config.url).parent, owner)
    return Opened(LocalTransport(service, on_close=remove), keyring)


def _remove(folder: Path, owner: int) -> None:
    # A forked child sees the same store, which is not its own to remove.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
