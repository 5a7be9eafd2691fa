"""What an error of SQLite means: the one place where apsw's errors become ours."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import apsw

from ...errors import AgentMemoryError, IntegrityError, LimitExceededError, UnavailableError

FAILURES: Final = (apsw.Error, UnicodeDecodeError)
"""Only Unicode is written: a text that is none is damage that SQLite does not see."""


@contextmanager
def translated() -> Generator[None]:
    """Raise our errors in the place of SQLite's."""
    try:
        yield
    except FAILURES as error:
        raise translate(error) from None


def translate(error: apsw.Error | UnicodeDecodeError) -> AgentMemoryError:
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
        case apsw.NotADBError() | apsw.CorruptError() | UnicodeDecodeError():
            return IntegrityError("the database file is damaged, or no SQLite database; restore it from a backup")
        case apsw.TooBigError():
            return LimitExceededError("the value is too large for the catalog")
        case apsw.ConnectionClosedError():
            return UnavailableError("this memory is closed", code="closed")
        case _:
            return UnavailableError(f"the database failed: {type(error).__name__}", code="database_failed")
