"""The connections of one process to one SQLite file: one that writes, a pool of readers, and what a fork does to them.

The writer stands under a lock and begins every transaction with ``BEGIN IMMEDIATE``; readers never wait for it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import apsw

from ...disk import disk_error, write_trial
from ...errors import InvalidRequestError, UnavailableError
from ..catalog import Clock
from .busy import retry_busy, waiting
from .checkpoints import Checkpoints
from .errors import FAILURES, translate, translated
from .migrations import MIGRATIONS
from .preallocation import Preallocation
from .rows import all_rows

T = TypeVar("T")

_IDLE_READERS: Final = 16
_FORK_SECONDS: Final = 10.0
"""How long a fork waits for calls of other threads; after that the child keeps the connections as they are."""

_JOURNAL_BYTES: Final = 64 * 1024 * 1024
_CACHE_KIB: Final = 8 * 1024
"""Memory for pages, at most, of each connection. With SQLite's 2 MiB a search of 5 MB read most pages several times."""


class Writing:
    """The one connection that writes, in one transaction after the other."""

    def __init__(
        self,
        connection: apsw.Connection,
        busy_seconds: float,
        checkpoints: Checkpoints,
        preallocation: Preallocation | None,
    ) -> None:
        self.connection = connection
        self._checkpoints = checkpoints
        self._preallocation = preallocation
        self.busy_seconds = busy_seconds
        self.lock = threading.Lock()
        self.closed = False
        # One cursor for all statements whose rows nobody reads step by step.
        self.run: Callable[..., Any] = cast(Any, connection.cursor()).execute

    def transaction(self, work: Callable[[apsw.Connection], T]) -> T:
        """Return what ``work`` does in a transaction, committed or rolled back as a whole.

        Not a context manager: Ctrl-C may come before the first step of its ``__exit__``, and then nobody would ever
        release the lock.
        """
        held: list[bool] = []
        try:
            # One step of the interpreter takes the lock and notes it, so that no Ctrl-C comes in between.
            held.extend(map(self.lock.acquire, (True,), (self.busy_seconds,)))
            if True not in held:
                raise UnavailableError("the database is busy with other writes of this process")
            if self.closed:
                raise UnavailableError("this memory is closed", code="closed")
            return self._carry_out(work)
        except FAILURES as error:
            raise translate(error) from None
        finally:
            # The first call here: Ctrl-C may come after any other one.
            if True in held:
                self.lock.release()

    def _carry_out(self, work: Callable[[apsw.Connection], T]) -> T:
        try:
            if self.connection.in_transaction:
                # The last transaction was interrupted, and its ROLLBACK was, too.
                self.run("ROLLBACK")
            self.run("BEGIN IMMEDIATE")
            result = work(self.connection)
            self.run("COMMIT")
            self._checkpoints.after_commit(self.connection)
            if self._preallocation is not None:
                self._preallocation.after_commit()
            return result
        finally:
            # None is open after COMMIT, nor where SQLite rolled back by itself, as it does on a full disk.
            if self.connection.in_transaction:
                self.run("ROLLBACK")

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.connection.close()


class Connections:
    """All connections of this process to one file; see ``SqliteCatalog`` for the arguments and what is raised."""

    def __init__(self, path: Path, *, durable: bool, busy_seconds: float, clock: Clock) -> None:
        self._path = path
        self._durable = durable
        self._busy_seconds = busy_seconds
        self._clock = clock
        self._readers: deque[apsw.Connection] = deque()
        self._opening_reader = threading.Lock()
        self._idle: list[apsw.Connection] = []
        # Weak references: a read that is interrupted may not give its connection back.
        self._all_readers: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()
        self._closed = False
        self._make_file()
        try:
            self.writing = Writing(
                retry_busy(self._open),
                busy_seconds,
                Checkpoints(path, busy_seconds),
                # What is not written to disk has no length to be written either.
                Preallocation(path) if durable else None,
            )
            # Beside each whether a fork holds it.
            self._fork_locks = [(lock, list[bool]()) for lock in (self.writing.lock, self._opening_reader)]
            retry_busy(self._prepare_file)
        except FAILURES as error:
            raise translate(error).about(repr(path.name)) from None
        _open_files.add(self)

    def _make_file(self) -> None:
        try:
            # Only ever a new file: closing a descriptor of one that is open here would drop SQLite's locks on it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if self._path.is_dir():
                raise UnavailableError(f"cannot open the database {str(self._path)!r}: it is a folder") from None
        except OSError as error:
            raise UnavailableError(f"cannot open the database {str(self._path)!r}: {error.strerror}") from None

    def _open(self) -> apsw.Connection:
        # Without the flag to create: a file that was removed meanwhile would be made again, readable by others.
        connection = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_handler(waiting(self._busy_seconds))
        # Else SQLite plans every statement that might be planned otherwise for other values anew when these are bound:
        # 10 of the 18 µs of a short listing. Its plans would not differ: there are no statistics of what stands where.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        all_rows(connection, "PRAGMA trusted_schema = OFF")
        all_rows(connection, f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        all_rows(connection, "PRAGMA fullfsync = ON")
        # What was deleted is overwritten with zeros, and does not wait in the file for something else to take its room.
        all_rows(connection, "PRAGMA secure_delete = ON")
        all_rows(connection, f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        all_rows(connection, f"PRAGMA cache_size = -{_CACHE_KIB}")
        return connection

    def _prepare_file(self) -> None:
        writer = self.writing.connection
        tables = {row[0] for row in all_rows(writer, "SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if tables and "migration" not in tables:
            raise InvalidRequestError(
                f"{self._path.name!r} is the database of something else; give the memory a file of its own"
            )
        all_rows(writer, "PRAGMA journal_mode = WAL")
        all_rows(writer, "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, applied_us INTEGER) STRICT")
        # Looked at first without a lock: a store that is up to date opens while others write.
        for name, migrate in MIGRATIONS:
            if name in self._applied(writer):
                continue
            self.writing.transaction(partial(self._apply, name, migrate))

    def _apply(self, name: str, migrate: Callable[[apsw.Connection], None], connection: apsw.Connection) -> None:
        if name not in self._applied(connection):
            migrate(connection)
            all_rows(connection, "INSERT INTO migration VALUES (?, ?)", (name, self._clock()))

    def _applied(self, connection: apsw.Connection) -> set[str]:
        applied = {str(row[0]) for row in all_rows(connection, "SELECT name FROM migration")}
        newer = sorted(applied.difference(name for name, _ in MIGRATIONS))
        if newer:
            raise UnavailableError(
                f"the database {self._path.name!r} was made by a newer agent-memory (it has {newer[-1]}): "
                "upgrade this one",
                code="newer_schema",
            )
        return applied

    @contextmanager
    def reading(self) -> Generator[apsw.Connection]:
        connection = self.take()
        try:
            with translated():
                yield connection
        finally:
            self.release(connection)

    def take(self) -> apsw.Connection:
        """Return a connection to read with, which ``release`` wants back."""
        try:
            return self._readers.pop()
        except IndexError:
            return self._new_reader()

    def _new_reader(self) -> apsw.Connection:
        with self._opening_reader:
            if self._closed:
                raise UnavailableError("this memory is closed", code="closed")
            with translated():
                connection = self._open()
                all_rows(connection, "PRAGMA query_only = ON")
                # A reader is hardly ever kept waiting in WAL mode; if it is, the flow waits, not the event loop.
                connection.set_busy_timeout(0)
            self._all_readers.add(connection)
            return connection

    def release(self, connection: apsw.Connection) -> None:
        """Take a connection back, or close it: one whose transaction was interrupted would read old values for ever.

        So would one with a statement that was not fetched to its end, which is in no transaction of its own.
        """
        if (
            self._closed
            or len(self._readers) >= _IDLE_READERS
            or connection.in_transaction
            or connection.txn_state() != apsw.SQLITE_TXN_NONE
        ):
            self._close_reader(connection)
        else:
            self._readers.append(connection)

    def _close_reader(self, connection: apsw.Connection) -> None:
        connection.close()
        # An error that somebody keeps refers to it by its traceback: each fork would wait for it to be given back.
        self._all_readers.discard(connection)

    def check_writable(self) -> None:
        """Raise UnavailableError if the file or its folder takes no writes.

        Without a transaction, which would wait for others and, rolled back, would never reach the disk. The file itself
        is only asked: closing a descriptor of it would drop SQLite's locks.
        """
        if not os.access(self._path, os.W_OK):
            raise UnavailableError("the database cannot be written; check the file and its folder", code="read_only")
        try:
            write_trial(self._path.parent, self._path.name)
        except OSError as error:
            raise disk_error(error, "the folder of the database") from None

    # -- fork --------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let no thread be inside SQLite while the process forks: the child gets its locks as they stand then."""
        deadline = time.monotonic() + _FORK_SECONDS
        for lock, held in self._fork_locks:
            if not held:
                held.extend(map(lock.acquire, (True,), (max(0.0, deadline - time.monotonic()),)))
        while len(self._idle) < len(self._all_readers) and time.monotonic() < deadline:
            try:
                self._idle.append(self._readers.pop())
            except IndexError:
                time.sleep(0.0005)

    def after_fork(self, *, child: bool) -> None:
        """In the parent go on; in the child close what it inherited.

        SQLite remembers in memory which locks the process has on the file; the child has none of them, and would
        believe that it has. Closing forgets them and touches nothing of the parent's: locks belong to a process.
        """
        quiet = all(True in held for _, held in self._fork_locks) and len(self._idle) == len(self._all_readers)
        if child and quiet:
            while self._idle:
                self._close_reader(self._idle.pop())
            self.writing.connection.close()
            self._closed = self.writing.closed = True
        while self._idle:
            self._readers.append(self._idle.pop())
        for lock, held in self._fork_locks:
            _give_up(lock, held)

    def close(self) -> None:
        self._closed = True
        self.writing.close()
        while self._readers:
            self._close_reader(self._readers.pop())


_open_files: Final[weakref.WeakSet[Connections]] = weakref.WeakSet()
_one_fork: Final = threading.Lock()
"""Held while a thread forks: another's would undo what this one has prepared."""


class _Fork(threading.local):
    """What the thread that forks has to give back after it: its turn, and the connections that it has prepared."""

    def __init__(self) -> None:
        self.turn: list[bool] = []
        self.prepared: list[Connections] = []


_fork: Final = _Fork()


def _before_fork() -> None:
    if not _fork.turn:
        _fork.turn.extend(map(_one_fork.acquire, (True,)))
    for connections in list(_open_files):
        if connections not in _fork.prepared:
            _fork.prepared.append(connections)
        connections.before_fork()


def _after_fork(*, child: bool) -> None:
    while _fork.prepared:
        _fork.prepared[-1].after_fork(child=child)
        _fork.prepared.pop()
    _give_up(_one_fork, _fork.turn)


def _give_up(lock: threading.Lock, held: list[bool]) -> None:
    """Release a lock if it is held, in one step with forgetting that it is: Ctrl-C comes only after a call."""
    is_held = True in held
    held[:] = ()
    if is_held:
        lock.release()


if hasattr(os, "register_at_fork"):
    # Twice: Python forks on where Ctrl-C ends one of these functions, and the second time does what the first left.
    for _ in range(2):
        os.register_at_fork(
            before=_before_fork,
            after_in_parent=partial(_after_fork, child=False),
            after_in_child=partial(_after_fork, child=True),
        )
