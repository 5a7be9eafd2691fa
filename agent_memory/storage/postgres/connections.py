"""Connections to PostgreSQL: a small pool, and one connection at a time.

The connection used last is used next, on the thread that asks, without a background thread: a check-out costs 2 µs of a
read's 50, psycopg_pool's 25. A connection that failed is dropped together with the idle ones, which the same restart or
failover has cut, so that the next attempt starts with a fresh one.
"""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from ...errors import InvalidRequestError, UnavailableError
from .binding import adapters
from .errors import Failure, NoAnswer, abc, adapt, conninfo, pq, psycopg, translate, unconnected, waiting

T = TypeVar("T")
Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"
Cursor: TypeAlias = "psycopg.Cursor[tuple[Any, ...]]"

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
    # A user or a database may have it that warnings are not sent: one of them is about a commit.
    "client_min_messages": "warning",
}


UNLIMITED: Final = "SET statement_timeout = 0"
"""For statements that take as long as there is data, whatever limit the user or the database has for others."""


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


class Session:
    """A connection in use by one thread."""

    __slots__ = ("born", "connection", "cursor", "idle_since", "reader", "searches_vectors", "unconfirmed")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # Making a cursor for every statement would be a third of a read's time.
        self.reader = psycopg.RawCursor(connection)
        self.cursor = connection.cursor(binary=True)
        self.born = self.idle_since = time.monotonic()
        self.searches_vectors = False
        # No method: the connection would hold its session, which it ends with.
        self.unconfirmed: list[None] = []
        connection.add_notice_handler(partial(_note, self.unconfirmed))

    def rows(self, statement: Any, values: Any = None, *, prepare: bool | None = None) -> list[Any]:
        """Run a statement and return its rows; ``prepare=False`` has it planned for these values."""
        self.cursor.execute(statement, values, prepare=prepare)
        return self.cursor.fetchall() if self.cursor.description else []


def _note(unconfirmed: list[None], notice: psycopg.errors.Diagnostic) -> None:
    """Note that ``pg_cancel_backend`` let a commit wait for no standby: PostgreSQL warns, and calls it done.

    The text may be in any language; the function that it comes from is not.
    """
    if notice.source_function == "SyncRepWaitForLSN":
        unconfirmed.append(None)


class Pool:
    """Hands out sessions in autocommit mode, at most ``settings.connections`` at once."""

    def __init__(self, dsn: str, settings: Settings) -> None:
        self._dsn = dsn
        self._settings = settings
        self._context = adapters()
        self._idle: deque[Session] = deque()
        # No semaphore, which is written in Python: one that Ctrl-C interrupts may stay locked for ever.
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(settings.connections):
            self._places.put(None)
        self._closed = False

    def run(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` with a session, again after a deadlock, a lost connection or a commit that no standby confirmed.

        Foreign errors are translated.

        What it does is safe to repeat: a write is known by its write id, a sweep finds what is left.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            held: list[None] = []
            try:
                # In one step the place is taken and known to be: Ctrl-C may come after any call.
                held.extend(map(self._places.get, (True,), (self._settings.wait,)))
                session = self._take()
                try:
                    session.unconfirmed.clear()
                    result = work(session)
                    if not session.unconfirmed:
                        return result
                    # Repeated, it is found to be done, and waits for the standby again.
                    failure = Failure(UnavailableError("PostgreSQL has this write, but no standby does"), again=True)
                except (psycopg.Error, UnicodeEncodeError) as error:
                    failure = translate(error, lost=session.connection.closed)
                    if failure.lost:
                        session.connection.close()
                        self._drop_idle()
                finally:
                    # A session that an interrupt keeps from it is closed with the last reference to it.
                    self._give_back(session)
            except Empty:
                raise UnavailableError(
                    "all connections to PostgreSQL are in use: open fewer calls at once, or allow more connections",
                    code="overloaded",
                    retry_after=1.0,
                ) from None
            finally:
                # No call before it, after which an interrupt may come.
                if held:
                    self._places.put(None)
            if not failure.again or attempt == _ATTEMPTS or (failure.lost and attempt > 1):
                raise failure.error from None
            if not failure.lost:
                # Those that met in a deadlock would meet again if all waited alike.
                time.sleep(0.005 * attempt * random.uniform(1, 2))
        raise AssertionError("the last attempt returns or raises")

    def _take(self) -> Session:
        if self._closed:
            raise UnavailableError("this memory is closed", code="closed")
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()

    def _give_back(self, session: Session) -> None:
        """Keep a session; one that is not between transactions is rolled back, or dropped."""
        status = session.connection.pgconn.transaction_status
        if status != pq.TransactionStatus.IDLE:
            self._settle(session, status)
        else:
            self._keep(session)

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
        session.idle_since = now = time.monotonic()
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


def connect(dsn: str, context: adapt.AdaptersMap | None = None, *, patience: float | None = None) -> Connection:
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
        connection = _Connection.connect(dsn, autocommit=True, context=_Context(context or adapters()), **options)
        connection.patience = patience
        return connection
    except psycopg.Error as error:
        raise unconnected(str(error)) from None


def execute(connection: Connection, statement: Any) -> None:
    """Execute a statement that was put together; psycopg's types want it to be written out."""
    connection.execute(statement)


class _Connection(psycopg.Connection[Any]):
    patience: float | None = None

    def wait(self, gen: abc.PQGen[T], *arguments: Any, **options: Any) -> T:
        if self.patience is None:
            return super().wait(gen, *arguments, **options)
        try:
            return super().wait(_impatient(gen, time.monotonic() + self.patience), *arguments, **options)
        except NoAnswer:
            # Those who leave a pipeline and a transaction now would each wait once more.
            self.pgconn.finish()
            raise

    def __del__(self, __warn: Any = None) -> None:
        """Say nothing: a pool may end with the program, and with a forked child."""


def _impatient(gen: abc.PQGen[T], deadline: float) -> abc.PQGen[T]:
    """Do what a generator of psycopg does; raise NoAnswer at the deadline. psycopg asks ten times a second."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready == waiting.Ready.NONE and time.monotonic() > deadline:
                raise NoAnswer
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class _Context:
    """Where a new connection takes its adapters from."""

    connection = None

    def __init__(self, adapters: adapt.AdaptersMap) -> None:
        self.adapters = adapters
