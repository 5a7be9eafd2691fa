"""PgBouncer between a store and its PostgreSQL: what the deployment page says of its pool modes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from pydantic import BaseModel

from agent_memory import AgentMemory
from agent_memory.operations import Set
from tests.support.postgres import PostgresServer

_THREADS = 12


def _version() -> tuple[int, ...]:
    found = shutil.which("pgbouncer")
    text = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout if found else ""
    return tuple(map(int, re.findall(r"PgBouncer (\d+)\.(\d+)", text)[0])) if found else ()


pytestmark = pytest.mark.skipif(not _version(), reason="PgBouncer is not installed")
needs_prepared_statements = pytest.mark.skipif(
    _version() < (1, 21), reason="PgBouncer knows prepared statements since 1.21"
)


class Runs(BaseModel):
    count: int = 0


@contextmanager
def pgbouncer(address: str, settings: str) -> Iterator[str]:
    """Run PgBouncer in front of a database; give the address that leads through it."""
    database = psycopg.conninfo.conninfo_to_dict(address)
    # It does not run as root, and only who owns PostgreSQL's socket gets to it.
    owner = os.stat(str(database["host"])).st_uid
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="agent-memory-pgbouncer-"))
    folder.chmod(0o755)
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={database['host']} user={database['user']}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\n{settings}"
    )
    command = [shutil.which("pgbouncer") or "", "-q", str(folder / "pgbouncer.ini")]
    other = owner if os.getuid() == 0 else None
    process = subprocess.Popen(command, user=other, stderr=subprocess.DEVNULL)
    through = f"postgresql://{database['user']}@127.0.0.1:{port}/{database['dbname']}"
    try:
        for _ in range(200):
            try:
                psycopg.connect(through).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.05)
        yield through
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param("pool_mode = session\ndefault_pool_size = 40\n", id="session"),
        pytest.param(
            # Server connections come and go all the time, so none has seen a client's settings or statements before.
            "pool_mode = transaction\nmax_prepared_statements = 200\ndefault_pool_size = 3\nserver_lifetime = 1\n",
            id="transaction",
            marks=needs_prepared_statements,
        ),
    ],
)
def test_through_pgbouncer_no_increment_is_lost_and_no_call_fails(
    postgres: PostgresServer, tmp_path: Path, settings: str, soak: bool
) -> None:
    with ExitStack() as stack:
        address = stack.enter_context(pgbouncer(postgres.database(), settings))
        memories = [
            stack.enter_context(AgentMemory(address, application="a", blobs=str(tmp_path / "blobs"))) for _ in range(2)
        ]
        until = time.monotonic() + (60 if soak else 4)

        def work(number: int) -> int:
            memory = memories[number % 2]
            runs = memory.entity("user", "ada").document(Runs)
            mine = memory.entity("user", f"u{number}")
            rounds = 0
            while time.monotonic() < until:
                runs.update(lambda old: Runs(count=old.count + 1))
                mine.collection(Runs).add_many([Runs(count=rounds) for _ in range(5)])
                large = bytes([number]) * 100_000
                memory.app_state.set(f"large-{number}", large)
                assert memory.app_state.get(f"large-{number}") == large
                memory.app_state.batch([Set(f"note-{number}", {"rounds": rounds}, vectors=[[1.0, number]])])
                found = memory.app_state.search("note-", filter={"rounds": rounds}, vector=[1.0, number])
                assert f"note-{number}" in {hit.entry.key for hit in found}
                rounds += 1
            assert sum(1 for _ in memory.app_state.keys(f"user/u{number}/")) == 5 * rounds
            return rounds

        with ThreadPoolExecutor(_THREADS) as pool:
            rounds = sum(pool.map(work, range(_THREADS)))
        assert rounds > 0
        assert memories[0].entity("user", "ada").document(Runs).get() == Runs(count=rounds)
        assert memories[0].check().ok
