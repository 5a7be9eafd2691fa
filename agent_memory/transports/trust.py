"""Whom a client talks to: origins and blob hosts, and what is checked of their certificates."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from typing import Final, NamedTuple

import httpx

from ..errors import InvalidRequestError

_PORTS: Final = {"http": 80, "https": 443}
_NO_COMMON_TLS: Final = frozenset(
    {
        "HTTP_REQUEST",
        "RECORD_LAYER_FAILURE",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)


class Origin(NamedTuple):
    """Who answers at a URL."""

    scheme: str
    host: str
    port: int


def http_url(text: str) -> httpx.URL | None:
    """Return an http or https URL that names a host and holds no password; None for anything else."""
    try:
        url = httpx.URL(text)
        # Asking for the host decodes it, which may fail.
        return url if url.scheme in _PORTS and url.host and not url.userinfo else None
    except (httpx.InvalidURL, ValueError, TypeError):
        return None


def origin_of(url: httpx.URL) -> Origin:
    """Return the origin of a URL that ``http_url`` gave."""
    return Origin(url.scheme, url.host.lower(), url.port or _PORTS[url.scheme])


class BlobHosts:
    """The object stores that chunks may be fetched from and sent to, as ``host`` or ``host:port``."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in names)

    def __bool__(self) -> bool:
        return bool(self._names)

    def __contains__(self, origin: Origin) -> bool:
        """Say whether an origin is one of them; only on this machine it may do without TLS."""
        if origin.scheme != "https" and not is_loopback(origin.host):
            return False
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        names = {f"{host}:{origin.port}"}
        if origin.port == _PORTS[origin.scheme]:
            names.add(host)
        return not names.isdisjoint(self._names)


def is_loopback(host: str) -> bool:
    """Say whether a host, as a name in lower case or an address, is this machine and nothing else."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ssl_context_for(*, https: bool) -> ssl.SSLContext:
    """Return what certificates are checked with; raise InvalidRequestError if those that are named cannot be read."""
    # Reading the certificates takes 20 ms. Without them every https connection is refused, which is right: none is due.
    if not https:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return httpx.create_ssl_context()
    except OSError:
        raise InvalidRequestError(
            "the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read as PEM"
        ) from None


def tls_problem(error: Exception) -> str | None:
    """Return what is in the way of TLS, where trying again would not help."""
    # A download's error comes from the one of the connection; httpx's from httpcore's, which was raised while that was
    # handled. No further: what that one was raised in may be an error that the caller is just handling.
    failure = error.__cause__
    if not isinstance(failure, ssl.SSLError):
        failure = failure and failure.__context__
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"{failure.verify_message} (SSL_CERT_FILE can name the authorities to trust)"
    if isinstance(failure, ssl.SSLError) and failure.reason in _NO_COMMON_TLS:
        return f"{failure.reason.lower().replace('_', ' ')} (an http:// address speaks none)"
    return None
