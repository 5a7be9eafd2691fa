"""Memory for large values."""

from __future__ import annotations

import ctypes
import io
import mmap
from contextlib import suppress
from typing import Any, Final

_HUGE_PAGE: Final = 2 * 1024 * 1024
_ADVICE: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)


def zeroed(size: int) -> io.BytesIO:
    """Return a buffer of so many zero bytes, to be filled through ``getbuffer``; its ``getvalue`` is no copy.

    The system makes the pages when they are first written to. In pages of 4 KiB that takes longer than a sha256 of what
    is written (64 MiB: 60 ms, in huge ones 6), so where there are huge ones, they are asked for.
    """
    buffer = _Buffer(bytes(size))
    if _ADVICE is not None and size >= 2 * _HUGE_PAGE:
        with buffer.getbuffer() as view:
            address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        start = -(-address // _HUGE_PAGE) * _HUGE_PAGE
        # Advice only: a system that does not take it says so, and all goes on as before.
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), _ADVICE)
    return buffer


class _Buffer(io.BytesIO):
    """A buffer that a garbage collection frees in silence.

    A read that fails leaves frames that hold each other, and views of its buffer. A collection finalizes such a cycle
    before it takes it apart: the finalizer closes, which views do not allow, and since Python 3.13 it reports that.
    """

    def close(self) -> None:
        with suppress(BufferError):
            super().close()


_libc: Final[Any] = ctypes.CDLL(None) if _ADVICE is not None else None
