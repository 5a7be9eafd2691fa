"""Memory while 200 MiB travel: the server's is bounded by a few chunks, the client's by the value and a few chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ServerProcess

MIB = 1024 * 1024
SIZE = 200 * MIB
CHUNKS = 4 * 8 * MIB
"""What four chunks at once take."""
SLACK = 48 * MIB
"""What the interpreter, the allocator and the network's buffers may take besides."""

WRITE = """
data = bytes(range(200)) * (1 << 20)
before = peak()
memory.app_state.set("large", data)
"""
READ = """
before = peak()
data = memory.app_state.get("large")
assert len(data) == 200 << 20
assert all(data[n * 200 << 10 : (n * 200 << 10) + 200] == bytes(range(200)) for n in range(1 << 10))
"""
CLIENT = """
import sys
from agent_memory import AgentMemory

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

with AgentMemory(sys.argv[1], application="large", timeout=120) as memory:
    memory.app_state.get("warm")
    {step}
    print(peak() - before)
"""


def grown(address: str, step: str) -> int:
    """Run a client and return by how many bytes its memory grew at most."""
    code = CLIENT.replace("{step}", "\n    ".join(step.strip().splitlines()))
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def server_peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_200_mib_take_the_server_a_few_chunks_and_the_client_the_value_and_a_few(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        grown(server.url, "before = peak()")
        idle = server_peak(server.process.pid)
        written, read = grown(server.url, WRITE), grown(server.url, READ)
        served = server_peak(server.process.pid) - idle

    print(f"server {served / MIB:.0f} MiB, writer {written / MIB:.0f} MiB, reader {read / MIB:.0f} MiB")
    assert served < CHUNKS + SLACK
    # The writer's value was there before; the reader's came.
    assert written < CHUNKS + SLACK
    assert read < SIZE + CHUNKS + SLACK


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_200_mib_take_an_embedded_store_the_value_and_a_few_chunks(tmp_path: Path) -> None:
    address = str(tmp_path / "memory.db")
    assert grown(address, WRITE) < CHUNKS + SLACK
    assert grown(address, READ) < SIZE + CHUNKS + SLACK
