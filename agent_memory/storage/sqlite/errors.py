"""What an error of SQLite means: the one place where apsw's errors become ours."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import apsw

from ...errors import AgentMemoryError, IntegrityError, LimitExceededError, UnavailableError

FAILURES: Final = (apsw.Error, UnicodeDecodeError, OverflowError)
"""Only Unicode is written: a text that is none is damage that SQLite does not see.

So is a number that counts on from what stands there and needs more than 64 bits.
"""


@contextmanager
def translated() -> Generator[None]:
    """Raise our errors in the place of SQLite's."""
    try:
        yield
    except FAILURES as error:
        raise translate(error) from None


def translate(error: apsw.Error | UnicodeDecodeError | OverflowError) -> AgentMemoryError:
    """Name what went wrong without SQLite's own text, which may repeat a value."""
    match error:
        case apsw.BusyError() | apsw.LockedError():
            return UnavailableError("the database is busy with another process's write")
        case apsw.FullError():
            return UnavailableError("the disk is full; nothing was changed", code="disk_full")
        case apsw.IOError():
            return UnavailableError("the disk failed; nothing was changed", code="disk_failed")
        case apsw.CantOpenError() | apsw.ReadOnlyError() | apsw.PermissionsError():
            return UnavailableError("the database cannot be opened for writing; check the file and its folder")
        # No statement breaks a rule of a sound table; a damaged one has types and duplicates that it forbids.
        case (
            apsw.NotADBError()
            | apsw.CorruptError()
            | apsw.ConstraintError()
            | apsw.MismatchError()
            | UnicodeDecodeError()
            | OverflowError()
        ):
            return IntegrityError("the database file is damaged, or no SQLite database; restore it from a backup")
        case apsw.TooBigError():
            return LimitExceededError("the value is too large for the catalog")
        case apsw.ConnectionClosedError():
            return UnavailableError("this memory is closed", code="closed")
        case _:
            return UnavailableError(f"the database failed: {type(error).__name__}", code="database_failed")
