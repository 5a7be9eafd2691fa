"""Files and folders that have to last, and what is wrong with a disk."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import Final

from .errors import UnavailableError

OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""A process, or the system, has as many files and connections open as it may: that passes."""

_TRIAL_BYTES: Final = 4096


def write_trial(folder: Path, name: str) -> None:
    """Raise OSError if a folder takes no new bytes; the file of that trial is gone afterwards."""
    trial = folder / f".{name}.{secrets.token_hex(8)}"
    try:
        with open(trial, "xb", buffering=0, opener=private) as file:
            file.write(bytes(_TRIAL_BYTES))
    finally:
        trial.unlink(missing_ok=True)


def sync_file(descriptor: int) -> None:
    """Bring a file to the medium, past the drive's cache where the system lets us."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined]  # macOS only
    except (ImportError, AttributeError, OSError):
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the medium: a new file is not durable before its name is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private(path: str, flags: int) -> int:
    """Open a file, as the ``opener`` of ``open``, that only its owner may read."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def disk_error(error: OSError, what: str) -> UnavailableError:
    """Name what is wrong with the disk that ``what`` lies on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UnavailableError("the disk is full; nothing was changed", code="disk_full")
    if error.errno in OUT_OF_FILES:
        return UnavailableError(f"{what} failed: {os.strerror(error.errno)}", code="overloaded")
    return UnavailableError(f"{what} failed: {os.strerror(error.errno or 0)}", code="disk_failed")
