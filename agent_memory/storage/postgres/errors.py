"""What an error of PostgreSQL means: the one place where psycopg's errors become ours, a missing psycopg among them."""

from __future__ import annotations

import logging
import re
from typing import Final, NamedTuple

from ...errors import (
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
    from psycopg import abc as abc
    from psycopg import adapt as adapt
    from psycopg import conninfo as conninfo
    from psycopg import pq as pq
    from psycopg import sql as sql
    from psycopg import waiting as waiting
    from psycopg.types import numeric as numeric
except ImportError:
    raise ImportError("PostgreSQL needs psycopg: pip install 'agent-memory[postgres]'") from None

# It warns of what it ignores, where an error is on its way to the caller anyway.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

DUPLICATES: Final = frozenset({"23505", "42P06", "42P07", "42710"})
"""What two sessions that make the same table or schema at once may meet."""


class NoAnswer(psycopg.OperationalError):
    """A server that took a statement said nothing for too long: it hangs, or a pooler has no connection for us."""


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
    if isinstance(error, NoAnswer):
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


def unconnected(text: str) -> UnavailableError:
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


def no_vectors() -> InvalidRequestError:
    return InvalidRequestError(
        "semantic search needs the PostgreSQL extension pgvector: install it on the server, run agent-memory migrate, "
        "and give this user the rights on the new table"
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
    "42501": _Kind(
        "does not allow this user to do that: migrate and index-vectors run as the owner of the tables, all else needs "
        "the rights to read and write them",
        PermissionDeniedError,
    ),
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
    "TLS host": _Kind("shows a certificate for another host than the address names", code="unreachable"),
    "TLS trust": _Kind(
        "shows a certificate that is not trusted: it has expired, or its authority is not in sslrootcert",
        code="unreachable",
    ),
    "TLS": _Kind("and this side do not agree on TLS: see sslmode and sslrootcert", code="unreachable"),
    "58": _Kind("had a failure of its disk", code="disk_failed"),
    "XX001": _Kind("found damaged data; restore it from a backup", IntegrityError),
    "XX002": _Kind("found a damaged index; rebuild it", IntegrityError),
}
_REFUSALS: Final = {
    "too many c|connection slots|no more connections": "53300",
    "does not match host": "TLS host",
    "certificate verify failed": "TLS trust",
    "SSL|certificate|no encryption": "TLS",
    "password|role|pg_hba": "28",
    "database +does not exist": "3D000",
    # With target_session_attrs: of several hosts those that answer are standbys.
    "session is read-only|is in hot standby": "25006",
}
"""What PostgreSQL, PgBouncer and libpq say of a connection that they refuse, where they speak English."""
