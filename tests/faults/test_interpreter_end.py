"""Threads that outlive the main thread, and what ``atexit`` calls, read and write to the end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory import AgentMemory
from tests.faults.conftest import Server
from tests.support.server import child_environment

LARGE = 20 * 1024 * 1024
"""Bytes that travel in several chunks."""

PROGRAM = f"""
import asyncio, atexit, sys, threading
from agent_memory import AgentMemory

memory = AgentMemory(sys.argv[1], application="faults")

def write():
    memory.app_state.set("large", bytes({LARGE}))
    memory.app_state.set("read", len(memory.app_state.get("large")))
    memory.close()

async def write_async():
    state = memory.aio.app_state
    await state.set("large", bytes({LARGE}))
    await state.set("read", len(await state.get("large")))
    await memory.aio.close()

def write_on_a_loop():
    asyncio.run(write_async())

def outlive(write):
    threading.main_thread().join()
    write()
"""
IN_A_THREAD = "threading.Thread(target=outlive, args=[{}]).start()"
AT_EXIT = "atexit.register({})"


@pytest.mark.parametrize("write", ["write", "write_on_a_loop"])
@pytest.mark.parametrize("where", [IN_A_THREAD, AT_EXIT], ids=["in a thread", "at exit"])
@pytest.mark.parametrize("over", ["file", "http"])
def test_what_is_written_once_the_main_thread_is_over_is_kept(
    database: Path, start_server: Callable[[Path], Server], over: str, where: str, write: str
) -> None:
    address = str(database) if over == "file" else start_server(database).url
    command = [sys.executable, "-W", "error", "-c", PROGRAM + where.format(write), address]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    with AgentMemory(address, application="faults") as memory:
        assert memory.app_state.get("read") == LARGE
