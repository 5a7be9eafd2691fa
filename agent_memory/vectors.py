"""Vectors as the protocol carries them: little-endian 32-bit floats."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from .errors import InvalidRequestError


def pack_vector(vector: Sequence[float]) -> bytes:
    """Return a vector's bytes; raise InvalidRequestError unless it is a list of finite numbers."""
    try:
        packed = struct.pack(f"<{len(vector)}f", *vector)
    except (struct.error, OverflowError, TypeError):
        raise InvalidRequestError("a vector is a list of numbers that fit 32-bit floats") from None
    # Its own truth would be an error for an array of numpy.
    if not packed or not all(map(math.isfinite, vector)):
        raise InvalidRequestError("a vector has at least one number, all of them finite")
    return packed
