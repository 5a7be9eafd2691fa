"""The signature that makes a pickle safe to load, and where its keys come from.

Loading a pickle runs whatever it says, so a value is loaded only if somebody who holds a key signed these very bytes
for this very place.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import pickle
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .disk import private, sync_file, sync_folder
from .errors import DeserializationError, IntegrityError, InvalidRequestError, SerializationError, UnavailableError
from .messages import Entry, Scope

MIN_SIGNING_KEY_BYTES: Final = 16


class Keyring:
    """The keys of a store: given ones, or one in a file that the first signature makes.

    Args:
        keys: the first signs, all verify. Each has at least 16 bytes. The text of a key file stands for the file's key.
        file: where an embedded store keeps a key of its own if none is given; readable by its owner alone.
    """

    def __init__(self, keys: Sequence[bytes] = (), file: Path | None = None) -> None:
        for key in keys:
            if len(key) < MIN_SIGNING_KEY_BYTES:
                raise InvalidRequestError(f"a signing key must have at least {MIN_SIGNING_KEY_BYTES} bytes")
        self._keys = (*keys, *(decoded for key in keys if (decoded := _decoded(key)) is not None))
        self._file = None if keys else file
        self._lasts = False

    def signing_key(self) -> bytes | None:
        """Return the key to sign with, made if need be; None if there is none and no place for one."""
        if self._file is not None and not self._lasts:
            _keep_key_file(self._file, make=not self.known_keys())
            self._lasts = True
        keys = self.known_keys()
        return keys[0] if keys else None

    def known_keys(self) -> tuple[bytes, ...]:
        """Return the keys that verify; raise IntegrityError for a key file that is damaged."""
        if not self._keys and self._file is not None:
            try:
                text = self._file.read_bytes().strip()
            except FileNotFoundError:
                return ()
            except OSError as error:
                raise UnavailableError(f"the key file {self._file.name!r} cannot be read: {error.strerror}") from None
            key = _decoded(text)
            if key is None:
                raise IntegrityError(f"the key file {self._file.name!r} is damaged; restore it")
            self._keys = (key, text)
        return self._keys

    def sign(self, scope: Scope, key: str, content_type: str, sha256: str) -> str:
        """Return ``v1:<key id>:<hex HMAC-SHA256>`` over the place and the hash of the bytes."""
        secret = self.signing_key()
        if secret is None:
            raise SerializationError(
                "this value would be pickled, and there is no key to sign it with: pass signing_keys=[…] or set "
                "AGENT_MEMORY_SIGNING_KEYS, or store JSON types, bytes or a Pydantic model"
            )
        return f"v1:{_key_id(secret)}:{_mac(secret, scope, key, content_type, sha256)}"

    def load(self, data: bytes, scope: Scope, entry: Entry) -> Any:
        """Return the object; raise IntegrityError, before anything is loaded, unless the signature holds here."""
        version, _, rest = (entry.signature or "").partition(":")
        key_id, _, mac = rest.partition(":")
        secret = next((known for known in self.known_keys() if _key_id(known) == key_id), None)
        if not entry.signature:
            raise IntegrityError("the value is a pickle without a signature; it was not loaded, raw() reads its bytes")
        if version != "v1" or secret is None:
            raise IntegrityError("the pickle is signed with a key that is not among signing_keys; it was not loaded")
        expected = _mac(secret, scope, entry.key, entry.content_type, entry.sha256)
        if not hmac.compare_digest(mac.encode(), expected.encode()):
            raise IntegrityError("the pickle was altered or signed for another place; it was not loaded")
        try:
            return pickle.loads(data)
        except RecursionError:
            problem = "nested too deeply"
        except Exception as error:
            # Loading runs the value's own code, which may raise anything, a missing module most of all.
            problem = type(error).__name__
        raise DeserializationError(f"the pickle could not be loaded: {problem}; raw() reads it")


def _decoded(key: bytes) -> bytes | None:
    """Return the key that a key file's text stands for, None for any other key."""
    try:
        decoded = bytes.fromhex(key.decode())
    except ValueError:
        return None
    return decoded if len(decoded) >= MIN_SIGNING_KEY_BYTES else None


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"agent-memory key id" + key).hexdigest()[:16]


def _mac(secret: bytes, scope: Scope, key: str, content_type: str, sha256: str) -> str:
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    # An absent request id is told from every present one by a length that no text has.
    for part in (scope.namespace, scope.application, scope.request_id, key, content_type, sha256):
        text = b"" if part is None else part.encode()
        mac.update((2**64 - 1 if part is None else len(text)).to_bytes(8, "big"))
        mac.update(text)
    return mac.hexdigest()


def _keep_key_file(path: Path, *, make: bool) -> None:
    """Bring a key file to the medium; ``make`` makes it first. Of two processes that do so, the first link wins.

    A file that is there already is synced, too: the process that made it may have been killed before it did so, and
    without the key no pickle can be read.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        if make:
            with open(temporary, "xb", opener=private) as file:
                file.write(secrets.token_hex(32).encode())
                file.flush()
                sync_file(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UnavailableError(f"the key file {path.name!r} cannot be made or synced: {error.strerror}") from None
    finally:
        # Where nothing can be written, not even what is not there can be removed.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
