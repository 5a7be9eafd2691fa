"""Connections to PostgreSQL: a small pool, and the one place where psycopg's errors become ours.

The connection used last is used next, on the thread that asks, without a background thread: a check-out costs 2 µs of a
read's 50, psycopg_pool's 25. A connection that failed is dropped together with the idle ones, which the same restart or
failover has cut, so that the next attempt starts with a fresh one.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from struct import Struct, pack
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from ..errors import (
    AgentMemoryError,
    IntegrityError,
    InvalidRequestError,
    LimitExceededError,
    PermissionDeniedError,
    UnavailableError,
)

# The catalog's other modules take psycopg from here, so that one place says what is missing.
try:
    import psycopg
    from psycopg import conninfo, waiting
    from psycopg import pq as pq
    from psycopg import sql as sql
    from psycopg.abc import PQGen
    from psycopg.adapt import AdaptersMap, Dumper
    from psycopg.types.numeric import Int8BinaryDumper
except ImportError:
    raise ImportError("PostgreSQL needs psycopg: pip install 'agent-memory[postgres]'") from None

# It warns of what it ignores, where an error is on its way to the caller anyway.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

T = TypeVar("T")
Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"
Cursor: TypeAlias = "psycopg.Cursor[tuple[Any, ...]]"

DUPLICATES: Final = frozenset({"23505", "42P06", "42P07", "42710"})
"""What two sessions that make the same table or schema at once may meet."""

_CONNECT_SECONDS: Final = 5
# PostgreSQL ends a statement that takes too long; for so much longer it may take to say so.
_GRACE_SECONDS: Final = 1.0
_LIFETIME_SECONDS: Final = 3_600.0
_IDLE_SECONDS: Final = 300.0
_ATTEMPTS: Final = 5
# A server that vanishes without a word is noticed within some 15 seconds.
_NETWORK: Final = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "application_name": "agent-memory",
}

_SESSION: Final = {
    "default_transaction_isolation": "read committed",
    # Planning a write takes three times as long as carrying it out: plan once. (Measured: 550 µs, then 166.)
    "plan_cache_mode": "force_generic_plan",
    # A plan made while a table was still empty would go on reading the whole of it. There is an index for everything.
    "enable_seqscan": "off",
}


class Statement(NamedTuple):
    """A statement with numbered parameters, and their names in that order."""

    text: Any
    names: list[str]


def positional(text: str) -> Statement:
    """Number the parameters of a statement. psycopg remembers no long ones, and would do it each time."""
    names = list(dict.fromkeys(_PARAMETER.findall(text)))
    return Statement(_PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", text), names)


_PARAMETER: Final = re.compile(r"%\((\w+)\)s")


class Settings(NamedTuple):
    """How many connections there are, and how many seconds anything may take."""

    connections: int = 16
    wait: float = 2.0
    statement: float = 10.0
    lock: float = 5.0


class Vector(NamedTuple):
    """A vector to bind: its little-endian 32-bit floats."""

    data: bytes


class _VectorDumper(Dumper):
    """pgvector's binary form: the number of dimensions, two unused bytes, big-endian 32-bit floats."""

    format = pq.Format.BINARY
    # The type's number differs from database to database; the statement's cast says what it is.
    oid = 0

    def dump(self, obj: Vector) -> bytes:
        floats = array("f", obj.data)
        floats.byteswap()
        return pack(">HH", len(floats), 0) + floats.tobytes()


class Array(NamedTuple):
    """Values to bind as an array of int8, text, boolean or bytea; psycopg's own takes three times as long."""

    type: str
    values: Sequence[Any]


class _ArrayDumper(Dumper):
    """https://github.com/postgres/postgres/blob/REL_18_STABLE/src/backend/utils/adt/arrayfuncs.c, array_recv."""

    format = pq.Format.BINARY
    oid = 0

    def dump(self, obj: Array) -> bytes | None:
        oid, encode = _ELEMENTS[obj.type]
        parts = [pack(">5i", 1, 1, oid, len(obj.values), 1)]
        for value in obj.values:
            if value is None:
                parts.append(b"\xff\xff\xff\xff")
            else:
                data = encode(value)
                parts += _LENGTH(len(data)), data
        return b"".join(parts)


_LENGTH: Final = Struct(">i").pack
_ELEMENTS: Final[dict[str, tuple[int, Callable[[Any], bytes]]]] = {
    "bigint": (20, Struct(">q").pack), "text": (25, str.encode), "bytea": (17, bytes),
    "boolean": (16, Struct("?").pack),
}  # fmt: skip


def _adapters() -> AdaptersMap:
    found = AdaptersMap(psycopg.adapters)
    # One type for integers of every size, so that a statement is prepared once.
    found.register_dumper(int, Int8BinaryDumper)
    found.register_dumper(Vector, _VectorDumper)
    found.register_dumper(Array, _ArrayDumper)
    return found


class Session:
    """A connection in use by one thread."""

    __slots__ = ("born", "connection", "cursor", "idle_since", "reader", "searches_vectors")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # Making a cursor for every statement would be a third of a read's time.
        self.reader = psycopg.RawCursor(connection)
        self.cursor = connection.cursor(binary=True)
        self.born = self.idle_since = time.monotonic()
        self.searches_vectors = False

    def rows(self, statement: Any, values: Any = None, *, prepare: bool | None = None) -> list[Any]:
        """Run a statement and return its rows; ``prepare=False`` has it planned for these values."""
        self.cursor.execute(statement, values, prepare=prepare)
        return self.cursor.fetchall() if self.cursor.description else []


class Pool:
    """Hands out sessions in autocommit mode, at most ``settings.connections`` at once."""

    def __init__(self, dsn: str, settings: Settings) -> None:
        self._dsn = dsn
        self._settings = settings
        self._context = _adapters()
        self._idle: deque[Session] = deque()
        self._free = threading.Semaphore(settings.connections)
        self._closed = False

    def run(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` with a session, again after a deadlock or a lost connection; foreign errors are translated.

        What it does is safe to repeat: a write is known by its write id, a sweep finds what is left.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            session = self.acquire()
            try:
                result = work(session)
            except (psycopg.Error, UnicodeEncodeError) as error:
                failure = self.failed(session, error)
                if not failure.again or attempt == _ATTEMPTS or (failure.lost and attempt > 1):
                    raise failure.error from None
                if not failure.lost:
                    # Those that met in a deadlock would meet again if all waited alike.
                    time.sleep(0.005 * attempt * random.uniform(1, 2))
            except BaseException:
                self.release(session)
                raise
            else:
                self.release(session)
                return result
        raise AssertionError("the last attempt returns or raises")

    def acquire(self) -> Session:
        """Take a session; it must be released, or handed to ``failed``."""
        if not self._free.acquire(timeout=self._settings.wait):
            raise UnavailableError(
                "all connections to PostgreSQL are in use: open fewer calls at once, or allow more connections",
                code="overloaded",
                retry_after=1.0,
            )
        try:
            if self._closed:
                raise UnavailableError("this memory is closed", code="closed")
            try:
                return self._idle.pop()
            except IndexError:
                return self._open()
        except BaseException:
            self._free.release()
            raise

    def release(self, session: Session) -> None:
        """Give a session back; one that is not between transactions is rolled back, or dropped."""
        try:
            status = session.connection.pgconn.transaction_status
            if status != pq.TransactionStatus.IDLE:
                self._settle(session, status)
            elif self._closed:
                session.connection.close()
            else:
                session.idle_since = time.monotonic()
                self._keep(session)
        finally:
            self._free.release()

    def failed(self, session: Session, error: Exception) -> Failure:
        """Give back a session whose work raised ``error``, and say what that means."""
        failure = translate(error, lost=session.connection.closed)
        if failure.lost:
            session.connection.close()
            self._drop_idle()
            self._free.release()
        else:
            self.release(session)
        return failure

    def close(self) -> None:
        self._closed = True
        self._drop_idle()

    def _settle(self, session: Session, status: int) -> None:
        if status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
            try:
                session.connection.rollback()
            except psycopg.Error:
                session.connection.close()
            else:
                self._keep(session)
        else:
            # An interrupted statement is still running, or the connection is broken.
            session.connection.close()

    def _keep(self, session: Session) -> None:
        now = time.monotonic()
        if self._closed or now - session.born > _LIFETIME_SECONDS:
            session.connection.close()
            return
        self._idle.append(session)
        try:
            # The one used longest ago stands first.
            oldest = self._idle[0]
            if now - oldest.idle_since > _IDLE_SECONDS:
                self._idle.remove(oldest)
                oldest.connection.close()
        except (IndexError, ValueError):
            # Another thread took it meanwhile.
            pass

    def _drop_idle(self) -> None:
        while True:
            try:
                self._idle.pop().connection.close()
            except IndexError:
                return

    def _open(self) -> Session:
        settings = self._settings
        options = {
            "statement_timeout": f"{settings.statement * 1000:.0f}",
            "lock_timeout": f"{settings.lock * 1000:.0f}",
            "idle_in_transaction_session_timeout": f"{(settings.statement + 20) * 1000:.0f}",
            **_SESSION,
        }
        connection = connect(self._dsn, self._context, patience=settings.statement + _GRACE_SECONDS)
        try:
            row = connection.execute(
                f"SELECT {', '.join('set_config(%s, %s, false)' for _ in options)}, current_setting('server_encoding')",
                [text for option in options.items() for text in option],
            ).fetchone()
        except psycopg.Error as error:
            connection.close()
            raise translate(error, lost=True).error from None
        if row is None or row[-1] != "UTF8":
            connection.close()
            raise UnavailableError("the PostgreSQL database must have the encoding UTF8", code="wrong_encoding")
        return Session(connection)


def connect(dsn: str, context: AdaptersMap | None = None, *, patience: float | None = None) -> Connection:
    """Open one connection in autocommit mode, or raise UnavailableError within seconds.

    No answer on it is waited for longer than ``patience`` seconds.
    """
    try:
        given = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # Its text may repeat the password.
        raise InvalidRequestError(
            "the address of the PostgreSQL database cannot be read; characters such as @ / % in a password are "
            "percent-encoded"
        ) from None
    options: dict[str, Any] = {name: value for name, value in _NETWORK.items() if name not in given}
    if patience is not None and "connect_timeout" in options:
        # libpq takes whole seconds, two of them at least.
        options["connect_timeout"] = max(2, min(_CONNECT_SECONDS, round(patience)))
    try:
        connection = _Connection.connect(dsn, autocommit=True, context=_Context(context or _adapters()), **options)
        connection.patience = patience
        return connection
    except psycopg.Error as error:
        raise _unconnected(str(error)) from None


def execute(connection: Connection, statement: Any) -> None:
    """Execute a statement that was put together; psycopg's types want it to be written out."""
    connection.execute(statement)


class _NoAnswer(psycopg.OperationalError):
    """A server that took a statement said nothing for too long: it hangs, or a pooler has no connection for us."""


class _Connection(psycopg.Connection[Any]):
    patience: float | None = None

    def wait(self, gen: PQGen[T], *arguments: Any, **options: Any) -> T:
        if self.patience is None:
            return super().wait(gen, *arguments, **options)
        try:
            return super().wait(_impatient(gen, time.monotonic() + self.patience), *arguments, **options)
        except _NoAnswer:
            # Those who leave a pipeline and a transaction now would each wait once more.
            self.pgconn.finish()
            raise

    def __del__(self, __warn: Any = None) -> None:
        """Say nothing: a pool may end with the program, and with a forked child."""


def _impatient(gen: PQGen[T], deadline: float) -> PQGen[T]:
    """Do what a generator of psycopg does; raise _NoAnswer at the deadline. psycopg asks ten times a second."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready == waiting.Ready.NONE and time.monotonic() > deadline:
                raise _NoAnswer
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class _Context:
    """Where a new connection takes its adapters from."""

    connection = None

    def __init__(self, adapters: AdaptersMap) -> None:
        self.adapters = adapters


# -- errors ----------------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """What an error means: what to raise, whether trying again may help, whether the connection is of no more use."""

    error: AgentMemoryError
    again: bool = False
    lost: bool = False


def translate(error: Exception, *, lost: bool) -> Failure:
    """Name what went wrong without PostgreSQL's own text, which may repeat a value."""
    state: str | None = getattr(error, "sqlstate", None)
    if isinstance(error, UnicodeEncodeError) or (isinstance(error, psycopg.DataError) and state is None):
        return Failure(InvalidRequestError("PostgreSQL cannot store NUL or a lone surrogate in a text"))
    if isinstance(error, _NoAnswer):
        # What was sent may be carried out yet, and the next connection would hang as well.
        return Failure(UnavailableError("PostgreSQL does not answer"), lost=True)
    kind = _KINDS.get(state or "") or _KINDS.get((state or "")[:2])
    if kind is None:
        if lost or isinstance(error, psycopg.InterfaceError) or state is None:
            kind = _LOST
        else:
            kind = _Kind(f"failed: {type(error).__name__}")
    return Failure(
        kind.type(f"PostgreSQL {kind.text}", code=kind.code), kind.again or kind.lost or lost, kind.lost or lost
    )


def _unconnected(text: str) -> UnavailableError:
    """Name why there is no connection: libpq gives no code for it, but a text that names hosts and users, in quotes."""
    said = re.sub("""["'][^"']*["']""", "", text)
    for mark, state in _REFUSALS.items():
        if re.search(mark, said):
            kind = _KINDS[state]
            return UnavailableError(f"cannot connect: PostgreSQL {kind.text}", code=kind.code)
    return UnavailableError(
        "cannot connect to PostgreSQL: no server answers at that address, or it refuses the user, the password or "
        "the database",
        code="unreachable",
    )


class _Kind(NamedTuple):
    text: str
    type: type[AgentMemoryError] = UnavailableError
    code: str | None = None
    again: bool = False
    lost: bool = False


_LOST: Final = _Kind("closed the connection, or cannot be reached any more", lost=True)
# https://www.postgresql.org/docs/current/errcodes-appendix.html; the first two characters are the class.
_KINDS: Final[dict[str, _Kind]] = {
    "08": _LOST,
    "0A000": _Kind("changed under a running program; it was asked again", lost=True),
    "22": _Kind("cannot store this value", InvalidRequestError),
    "25006": _Kind("takes no writes here: it is a standby, or set to read only", code="read_only", lost=True),
    "26000": _Kind("forgot a prepared statement; is there a pooler that knows none?", lost=True),
    "28": _Kind("refuses the user or the password", code="unreachable"),
    "3D000": _Kind("has no such database", code="unreachable"),
    "3F000": _Kind("does not have the tables of this application", code="schema_missing"),
    "40": _Kind("could not bring this write in order with others", again=True),
    "42P01": _Kind("does not have the tables of this application", code="schema_missing"),
    # Where a pooler gives each transaction another connection, and does not take the statements along.
    "42P05": _Kind("has another prepared statement of that name; is there a pooler that knows none?", lost=True),
    "42501": _Kind("does not allow this user to use the tables", PermissionDeniedError),
    "53100": _Kind("has no space left; nothing was changed", code="disk_full"),
    "53300": _Kind("has no connection left", code="overloaded", lost=True),
    "53": _Kind("is out of resources", code="overloaded"),
    "54": _Kind("has a limit that this exceeds", LimitExceededError),
    "55P03": _Kind("kept this waiting too long for another write"),
    "57014": _Kind("took too long, and was stopped"),
    "57P": _LOST,
    "57P01": _LOST,
    "57P02": _LOST,
    "57P03": _LOST,
    "57P05": _LOST,
    "TLS": _Kind("and this side do not agree on TLS: see sslmode and sslrootcert", code="unreachable"),
    "58": _Kind("had a failure of its disk", code="disk_failed"),
    "XX001": _Kind("found damaged data; restore it from a backup", IntegrityError),
    "XX002": _Kind("found a damaged index; rebuild it", IntegrityError),
}
_REFUSALS: Final = {
    "too many c|connection slots|no more connections": "53300",
    "SSL|certificate|no encryption": "TLS",
    "password|role|pg_hba": "28",
    "database +does not exist": "3D000",
}
"""What PostgreSQL, PgBouncer and libpq say of a connection that they refuse, where they speak English."""
