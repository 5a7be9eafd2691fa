"""A disk that the system has made read-only, as it does when it fails."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest


def make_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to Python new files, and to remove any: the system does so before it looks whether there is one."""
    opened = os.open

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def open_there(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT and not os.path.lexists(path):
            refuse()
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", open_there)
    monkeypatch.setattr(os, "unlink", refuse)
