"""Who may do what: bearer tokens bound to a scope, or nothing but this machine."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

from ..errors import AgentMemoryError, AuthenticationError, InvalidKeyError, InvalidRequestError, PermissionDeniedError
from ..keys import check_scope_name

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]")
_HOST: Final = re.compile(rf"({_NAME.pattern})(:[0-9]{{1,5}})?")
# Enough to find a token's line in the file by.
_SHOWN_DIGITS: Final = 8
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Grant(NamedTuple):
    """What a token opens: one application, or every one of a namespace."""

    namespace: str
    application: str | None


class Gate(Protocol):
    """Decides whether a request is let in at all, and what it may touch."""

    def admit(self, headers: Headers) -> None:
        """Raise PermissionDeniedError if a request with these headers is not answered, whatever it asks for."""
        ...

    def authorize(self, headers: Headers, namespace: str, application: str) -> str | None:
        """Return what a log calls the token that opens a scope; None where there are none.

        Raises AuthenticationError or PermissionDeniedError if a request may not touch the scope.
        """
        ...


class LoopbackGate:
    """No tokens: lets in what runs on this machine, and no web page that a browser on it shows.

    A page's requests carry an Origin; a page whose own name was pointed at this machine carries that name as its Host.
    """

    def __init__(self, allowed_hosts: Sequence[str] = ()) -> None:
        if not all(_NAME.fullmatch(name) for name in allowed_hosts):
            raise InvalidRequestError("--allowed-host is a name or an address, without scheme and port")
        self._names = _LOCAL_NAMES | {name.lower() for name in allowed_hosts}

    def admit(self, headers: Headers) -> None:
        host = host_of(headers)
        name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
        if name.lower() not in self._names:
            raise PermissionDeniedError("this Host is not served here: see --allowed-host", code="host_refused")
        if any(name == b"origin" for name, _ in headers):
            raise PermissionDeniedError("requests of web pages are refused", code="origin_refused")

    def authorize(self, headers: Headers, namespace: str, application: str) -> str | None:
        """Whoever is let in may touch everything."""


class TokenGate:
    """Lets in whoever holds a token of a file. Tokens are known by their sha256 alone.

    Raises TokenFileError if the file cannot be used.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        text = _read(file)
        self._grants = _grants(text)
        self._seen = self._judged = _mark(text)

    def look_again(self) -> int | None:
        """Take over what the file holds by now, and return how many tokens; None if nothing is new.

        It must have been the same at the look before: half of a line that is still being written may open more than the
        whole. What cannot be used changes nothing, and is a TokenFileError once.
        """
        text, problem = "", None
        try:
            text = _read(self._file)
        except TokenFileError as error:
            problem = error
        before, self._seen = self._seen, _mark(str(problem or text))
        if self._seen != before or self._seen == self._judged:
            return None
        self._judged = self._seen
        if problem is not None:
            raise problem
        self._grants = _grants(text)
        return len(self._grants)

    def admit(self, headers: Headers) -> None:
        host_of(headers)

    def authorize(self, headers: Headers, namespace: str, application: str) -> str | None:
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # Looking a digest up tells nothing through its timing: nobody can choose a token for a digest.
        digest = hashlib.sha256(token.strip()).digest()
        grants = self._grants.get(digest) if scheme.lower() == b"bearer" else None
        if grants is None:
            raise AuthenticationError("a valid bearer token is needed")
        if not any(one.namespace == namespace and one.application in (None, application) for one in grants):
            raise PermissionDeniedError("the token is not for this namespace and application")
        return digest.hex()[:_SHOWN_DIGITS]


def host_of(headers: Headers) -> str:
    """Return a request's Host; raise InvalidRequestError if there is not exactly one that could be a name."""
    found = [value for name, value in headers if name == b"host"]
    text = found[0].decode("latin-1") if len(found) == 1 else ""
    if not _HOST.fullmatch(text):
        raise InvalidRequestError("a request names exactly one Host")
    return text


class TokenFileError(AgentMemoryError):
    """The token file cannot be used; names the line, never what stands in it."""

    code = "token_file"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        problem = TokenFileError(f"the token file {str(path)!r} cannot be read: {reason}")
    raise problem


def _mark(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def is_exposed(path: Path) -> bool:
    """Say whether others than its owner can read a file; its group may if another user, as root, gives it this way."""
    found = path.stat()
    theirs = stat.S_IRWXO if found.st_uid != os.geteuid() else stat.S_IRWXG | stat.S_IRWXO
    return bool(found.st_mode & theirs)


def _grants(text: str) -> dict[bytes, list[Grant]]:
    """Read lines ``TOKEN NAMESPACE [APPLICATION]``, the token as it is or as ``sha256:<hex>``."""
    grants: dict[bytes, list[Grant]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (2, 3):
            raise TokenFileError(f"line {number} of the token file is not TOKEN NAMESPACE [APPLICATION]")
        grants.setdefault(_digest(words[0], number), []).append(_grant(words[1:], number))
    if not grants:
        raise TokenFileError("the token file holds no token")
    return grants


def _digest(word: str, number: int) -> bytes:
    if word.startswith("sha256:"):
        if _DIGEST.fullmatch(word[7:]):
            return bytes.fromhex(word[7:])
        raise TokenFileError(f"line {number} of the token file: sha256: is followed by 64 lower-case hex digits")
    if not (word.isascii() and word.isprintable()):
        raise TokenFileError(f"line {number} of the token file: a token is printable ASCII")
    return hashlib.sha256(word.encode()).digest()


def _grant(words: Sequence[str], number: int) -> Grant:
    try:
        namespace = check_scope_name(words[0], "a namespace")
        return Grant(namespace, check_scope_name(words[1], "an application") if len(words) == 2 else None)
    except InvalidKeyError as error:
        problem = TokenFileError(f"line {number} of the token file: {error}")
    raise problem
