"""Restarting times to live in the SQLite catalog: of many readers at once, one does it for all."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import apsw

from ...errors import UnavailableError
from ..catalog import Clock
from .connections import Writing
from .rows import all_rows


class _Group:
    """Keys whose times to live are restarted in one transaction, by whoever brought the first of them."""

    def __init__(self) -> None:
        self.places: set[tuple[str, str]] = set()
        self.over = threading.Event()
        self.done = False


class Touches:
    """The groups of keys to touch, one after the other; thread-safe."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._lock = threading.Lock()
        self._group = _Group()

    def touch(self, scope: str, keys: Sequence[str], clock: Clock) -> None:
        """Restart the times to live of keys; see ``Catalog.touch``."""
        with self._lock:
            group = self._group
            first = not group.places
            group.places.update((scope, key) for key in keys)
        if first:
            self._carry_out(group, clock)
        elif not group.over.wait(2 * self._writing.busy_seconds) or not group.done:
            # The first one waits up to busy_seconds for this process's writes, and as long again for another's. If it
            # was interrupted, nobody carries this group out: the next caller begins a new one.
            self._end_joining(group)
            raise UnavailableError("the database is busy with other writes of this process")

    def _carry_out(self, group: _Group, clock: Clock) -> None:
        def restart(connection: apsw.Connection) -> None:
            self._end_joining(group)
            now = clock()
            for place in group.places:
                all_rows(
                    connection,
                    "UPDATE entry SET expires_us = ? + ttl_us WHERE scope = ? AND key = ? AND expires_us > ?",
                    (now, *place, now),
                )

        try:
            self._writing.transaction(restart)
            group.done = True
        finally:
            self._end_joining(group)
            group.over.set()

    def _end_joining(self, group: _Group) -> None:
        with self._lock:
            if self._group is group:
                self._group = _Group()
