"""Names: what a key, an id and a scope may look like, and how ids become segments of a key.

Only ``%`` and ``/`` are escaped in a segment, so an id may hold any character and no two ids share a key.
"""

from __future__ import annotations

import re
from typing import Final

from .errors import InvalidKeyError

MAX_KEY_BYTES: Final = 2048
_SCOPE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LAST_CODE_POINT: Final = 0x10FFFF


def check_key(key: object) -> str:
    """Return ``key`` if it is 1 to 2,048 bytes of UTF-8 without NUL; raise InvalidKeyError otherwise."""
    if type(key) is str and key.isascii() and 0 < len(key) <= MAX_KEY_BYTES and "\0" not in key:
        return key
    return _check_text(key, "a key")


def check_prefix(prefix: object) -> str:
    """Return ``prefix`` if some key could start with it (the empty prefix is every key)."""
    return "" if prefix == "" else _check_text(prefix, "a key prefix")


def check_request_id(request_id: object) -> str:
    """Return ``request_id`` if it can name a request: 1 to 2,048 bytes of UTF-8 without NUL."""
    return _check_text(request_id, "a request id")


def check_scope_name(name: object, what: str) -> str:
    """Return a namespace or application name; raise InvalidKeyError if it does not match the allowed pattern."""
    if not isinstance(name, str) or not _SCOPE_NAME.fullmatch(name):
        raise InvalidKeyError(f"{what} must match {_SCOPE_NAME.pattern}")
    return _plain(name)


def segment(name: object, what: str) -> str:
    """Return one escaped segment of a key, made from an entity kind, an id or a name."""
    return _check_text(name, what).replace("%", "%25").replace("/", "%2F")


def unescape(part: str) -> str | None:
    """Return the name that a key's segment stands for, or None if no name is escaped that way."""
    name = part.replace("%2F", "/").replace("%25", "%")
    return name if name and segment(name, "a segment") == part else None


def successor(prefix: str) -> str | None:
    """Return the smallest string above every string that starts with ``prefix``; None if there is none.

    UTF-8 sorts bytes as it sorts code points, so counting up the last code point is enough.
    """
    while prefix:
        last = ord(prefix[-1])
        if last < _LAST_CODE_POINT:
            # U+D800 to U+DFFF are surrogates, which UTF-8 cannot hold.
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return None


def end_of_parent(parent: str) -> str:
    """Return the smallest key above every key below a parent, which ends with ``/``."""
    # "0" follows "/" in every encoding of text.
    return f"{parent[:-1]}0"


def shown(text: str) -> str:
    """Return a text in one line and without what moves a terminal's cursor: keys may hold any character."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _check_text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise InvalidKeyError(f"{what} must be a string, not {type(text).__name__}")
    text = _plain(text)
    if not text:
        raise InvalidKeyError(f"{what} must not be empty")
    if "\0" in text:
        raise InvalidKeyError(f"{what} must not contain NUL")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidKeyError(f"{what} must be valid Unicode; it has a lone surrogate") from None
    if size > MAX_KEY_BYTES:
        raise InvalidKeyError(f"{what} must be at most {MAX_KEY_BYTES} bytes of UTF-8, not {size}")
    return text


def _plain(text: str) -> str:
    """Return a text without what a subclass of str adds: the members of an enum show themselves by their name."""
    return str.__str__(text)
