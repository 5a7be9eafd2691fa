"""Running the server: what it opens, when it refuses to start, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

from ..errors import AgentMemoryError, InvalidRequestError, UnavailableError
from ..maintenance import lie_here
from ..opening import not_here, open_service
from ..service import StateService
from ..transports.trust import is_loopback
from .app import Settings, create_app
from .auth import Gate, LoopbackGate, TokenFileError, TokenGate, is_exposed
from .connections import ACCEPTED_AT_ONCE, BoundedProtocol, raise_file_limit
from .log import RequestLog, ServerEvents
from .workers import Role, run_workers

_SHARED_MEMORY: Final = Path("/dev/shm")
# Of a worker, with room for what it may come to count.
_COUNTED_BYTES: Final = 1024 * 1024
_WAITING_CONNECTIONS: Final = 2_048
_STOP_SECONDS: Final = 5
_TOKEN_SECONDS: Final = 1.0
_STALLED_MS: Final = 30_000
_UNSENT_BYTES: Final = 256 * 1024
# Longer than clients keep an idle connection, so that it is they who close it.
_KEEP_ALIVE_SECONDS: Final = 75
_ANNOUNCED: Final = ("agent-memory listening on {}", "agent-memory metrics at {}/metrics")


class Options(NamedTuple):
    """What ``agent-memory serve`` is told; ``store`` is a database file or ``postgresql://…``."""

    store: str
    blobs: str | None = None
    workers: int = 1
    host: str = "127.0.0.1"
    port: int = 8420
    token_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    public_url: str | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; requests that have begun are finished, within seconds.

    Raises an AgentMemoryError that says why if the server does not start.
    """
    raise_file_limit()
    gate = _gate(options)
    if options.token_file is not None and is_exposed(options.token_file):
        print(
            "agent-memory: warning: others can read the token file; make it readable by the server alone",
            file=sys.stderr,
        )
    public_url = _public_url(options.public_url)
    if options.workers < 1:
        raise InvalidRequestError("--workers is 1 or more")
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(contextlib.closing(_listen(options.host, options.port)))]
        if options.metrics_port is not None:
            listeners.append(
                stack.enter_context(contextlib.closing(_listen(options.metrics_host, options.metrics_port)))
            )
            if len({one.getsockname()[1] for one in listeners}) == 1:
                # They are told apart by it, also where the addresses differ.
                raise InvalidRequestError("--metrics-port is a port of its own, not that of the API")
        settings = Settings(gate, RequestLog(sys.stderr), public_url)
        if options.workers == 1:
            _serve(options, settings, listeners, announce=True)
        else:
            if options.metrics_port is not None:
                stack.enter_context(_counting_together(options.workers))
            run_workers(options.workers, lambda role: _work(options, settings, listeners, role))


@contextlib.contextmanager
def _counting_together(workers: int) -> Generator[None]:
    """Let processes that are started in the block count in files that all of them read, in memory where the system can.

    They are mapped: a process that counts where a disk has become full is ended by the system.
    """
    place = str(_SHARED_MEMORY) if _has_room(_SHARED_MEMORY, workers * _COUNTED_BYTES) else None
    with tempfile.TemporaryDirectory(prefix="agent-memory-metrics-", dir=place) as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield


def _has_room(folder: Path, size: int) -> bool:
    if not os.access(folder, os.W_OK):
        return False
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize >= size


def _work(options: Options, settings: Settings, listeners: list[socket.socket], role: Role) -> None:
    try:
        # The tokens of this moment: what starts now may follow a worker that died long after the server was started.
        _serve(options, settings._replace(gate=_gate(options)), listeners, announce=role is Role.FIRST)
    except AgentMemoryError as error:
        if role is Role.FIRST:
            print(f"agent-memory: {error}", file=sys.stderr)
        elif role is Role.SUCCESSOR:
            settings.log.event({"event": "worker", "error": type(error).__name__, "message": str(error)})
        sys.exit(2)


def _serve(options: Options, settings: Settings, listeners: list[socket.socket], *, announce: bool) -> None:
    """Serve in this process; the second listener is that of the metrics."""
    service = open_service(options.store, options.blobs)
    if announce:
        # Beside the start: an object store that does not answer must not hold it up.
        threading.Thread(target=_warn_of_other_blobs, args=(service, options), daemon=True).start()
    if isinstance(settings.gate, TokenGate):
        # A thread that nobody waits for: the file may lie where reading it hangs.
        threading.Thread(target=_follow_tokens, args=(settings.gate, settings.log), daemon=True).start()
    # Of all who log: Python itself would write their texts to stderr.
    events = ServerEvents(settings.log)
    logging.getLogger().addHandler(events)
    try:
        app = _create_app(service, settings, listeners)
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        _Server(config, announce=announce).run(sockets=listeners)
    finally:
        logging.getLogger().removeHandler(events)
        service.close()


def _create_app(service: StateService, settings: Settings, listeners: list[socket.socket]) -> ASGIApp:
    if len(listeners) == 1:
        return create_app(service, settings)
    # Here, because it looks where to count when it is imported.
    from .metrics import Metrics, MetricsPort

    metrics = Metrics()
    app = create_app(service, settings._replace(metrics=metrics))
    return MetricsPort(app, metrics.text, listeners[1].getsockname()[1])


def _warn_of_other_blobs(service: StateService, options: Options) -> None:
    """Warn of a place for blobs that is not the store's: reads fail, and a sweep forgets what it did not delete.

    No more than that: if all of them are lost, what lies in the catalog can still be served.
    """
    try:
        here = lie_here(service.catalog, service.blobs)
    except Exception:
        # What cannot be reached yet is not ready, and may be later; and the server may end while this looks.
        return
    if not here:
        print(f"agent-memory: warning: {not_here(options.store, options.blobs)}", file=sys.stderr)


def _follow_tokens(gate: TokenGate, log: RequestLog) -> None:
    while True:
        time.sleep(_TOKEN_SECONDS)
        try:
            tokens = gate.look_again()
        except TokenFileError as error:
            log.event({"event": "token_file", "error": type(error).__name__, "message": f"{error}; the old ones stay"})
        else:
            if tokens is not None:
                log.event({"event": "token_file", "tokens": tokens})


class _Server(uvicorn.Server):
    """Says where it listens once it does, and ends without an error when it is told to."""

    def __init__(self, config: uvicorn.Config, *, announce: bool) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            # How many may wait is another matter than how many are taken at once, which asyncio gives one number.
            one.listen(_WAITING_CONNECTIONS)
        for one, shown in zip((sockets or []) if self._announce else [], _ANNOUNCED, strict=False):
            host, port = one.getsockname()[:2]
            try:
                print(shown.format(f"http://{f'[{host}]' if ':' in host else host}:{port}"), flush=True)
            except OSError:
                # Nobody reads it, or its disk is full: no reason not to serve. It would be printed again at the end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        def stop(_signal: int, _frame: FrameType | None) -> None:
            self.should_exit = True

        before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def _gate(options: Options) -> Gate:
    if options.token_file is not None:
        return TokenGate(options.token_file)
    if not is_loopback(options.host):
        raise InvalidRequestError(f"{options.host} can be reached from other machines: it needs a --token-file")
    return LoopbackGate(options.allowed_hosts)


def _public_url(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise InvalidRequestError("--public-url is http:// or https:// with a host, and without a query or a password")
    return text.rstrip("/")


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        # getaddrinfo would take it modulo 65,536.
        raise InvalidRequestError(f"there is no port {port}")
    try:
        # With the protocol named, asyncio sends small answers at once; without it they would wait 40 ms for an ACK.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # Linux ends a connection whose other side takes nothing for so long; accepted ones inherit it.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_MS)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                # By itself Linux takes some megabytes for a connection, and more only when a third of them has gone:
                # a slow one, behind a proxy on this machine, would seem to stand still for longer than it may.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
            listener.bind(address)
            stack.pop_all()
            return listener
    except OSError as error:
        reason = error.strerror
    except UnicodeError:
        reason = "that is no name of a host"
    raise UnavailableError(f"cannot listen on {host} port {port}: {reason}")
