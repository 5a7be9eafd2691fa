"""Taking away what nobody can reach any more: how old it has to be, and when a store does so by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from .errors import AgentMemoryError, IntegrityError
from .storage.blobs import GRACE_SECONDS, BlobStore, chunk_sizes
from .storage.catalog import BlobRow, Catalog

DEAD_SECONDS: Final = 86_400
RECEIPT_SECONDS: Final = 3_600
TOMBSTONE_SECONDS: Final = 86_400
REQUEST_SECONDS: Final = 7 * 86_400

_AT_ONCE: Final = 1_000
_EVERY_SECONDS: Final = 60.0
_SMALL_SWEEP: Final = 100


class SweepReport(NamedTuple):
    """What a sweep took away, in numbers of things."""

    blobs: int = 0
    expired: int = 0
    tombstones: int = 0
    receipts: int = 0
    request_keys: int = 0


def sweep(catalog: Catalog, blobs: BlobStore, *, limit: int | None = None) -> SweepReport:
    """Take away what nobody can reach any more; at most ``limit`` things of each kind, or all of them."""
    now = catalog.clock()
    most = limit or _AT_ONCE

    def all_of(step: Callable[[], int]) -> int:
        total = 0
        while True:
            count = step()
            total += count
            if count < most or limit is not None:
                return total

    return SweepReport(
        expired=all_of(lambda: catalog.expire(limit=most)),
        request_keys=all_of(lambda: catalog.drop_requests(before=now - _us(REQUEST_SECONDS), limit=most)),
        tombstones=all_of(lambda: catalog.drop_tombstones(before=now - _us(TOMBSTONE_SECONDS), limit=most)),
        receipts=all_of(lambda: catalog.drop_receipts(before=now - _us(RECEIPT_SECONDS), limit=most)),
        blobs=all_of(lambda: _sweep_blobs(catalog, blobs, now, most)),
    )


def _sweep_blobs(catalog: Catalog, blobs: BlobStore, now: int, limit: int) -> int:
    before = now - _us(GRACE_SECONDS)
    claimed = catalog.claim_blobs(staged_before=before, garbage_before=before, limit=limit)
    # An upload that was late may have put objects of a dead blob back.
    dead = catalog.dead_blobs(before=now - _us(DEAD_SECONDS), limit=limit)
    blobs.delete((blob.id, _chunks(blob)) for blob in (*claimed, *dead))
    catalog.forget_blobs([blob.id for blob in dead])
    return max(len(claimed), len(dead))


def _chunks(blob: BlobRow) -> int:
    """Return how many chunks a blob has. Where its sizes are damaged, that is one: ``check`` finds what it leaves."""
    try:
        return len(chunk_sizes(blob.size, blob.chunk_size))
    except IntegrityError:
        return 1


def _us(seconds: int) -> int:
    return seconds * 1_000_000


class SweepAfterWrites:
    """Sweeps after a write, at most once a minute, until nothing is left; for stores that no server tends.

    ``sweep`` takes away at most so many things of each kind as it is given.
    """

    def __init__(self, sweep: Callable[[int], SweepReport]) -> None:
        self._sweep = sweep
        self._next = time.monotonic() + _EVERY_SECONDS
        self._closing = threading.Event()
        self._has_written = self._has_swept = False
        self.thread: threading.Thread | None = None

    def after_write(self) -> None:
        """Sweep, if it is time to, on a thread: the writer, and those behind it, do not wait for an object store."""
        self._has_written = True
        if time.monotonic() < self._next or (self.thread is not None and self.thread.is_alive()):
            return
        self._next = time.monotonic() + _EVERY_SECONDS
        # No lock says that it runs: Ctrl-C behind its acquiring would leave it taken, and nothing could be closed.
        self.thread = threading.Thread(target=self._sweep_all, name="agent-memory-sweep", daemon=True)
        # No thread may be to be had. The write before it is done and must not look as if it were not.
        with suppress(RuntimeError):
            self.thread.start()

    def _sweep_all(self) -> None:
        """Sweep in pieces, and rest as long as each took: of the one writer that a file has others need the most."""
        rest = 0.0
        # The next one tries again.
        with suppress(AgentMemoryError):
            while not self._closing.wait(rest):
                self._has_swept = True
                began = time.monotonic()
                if max(self._sweep(_SMALL_SWEEP)) < _SMALL_SWEEP:
                    return
                rest = time.monotonic() - began

    def close(self, *, sweep: bool) -> None:
        """Begin no other sweep, and wait for the end of one that has begun.

        With ``sweep`` one is made now if there were writes and none yet: processes that live for less than a minute
        would never sweep.
        """
        self._closing.set()
        if self.thread is not None and self.thread.is_alive():
            self.thread.join()
        if sweep and self._has_written and not self._has_swept:
            with suppress(AgentMemoryError):
                self._sweep(_AT_ONCE)
