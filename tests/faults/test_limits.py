"""What a server can get no more of: it says so, and goes on by itself when there is more."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from agent_memory import AgentMemory, UnavailableError
from tests.support.server import ServerProcess

NO_THREADS = """
import os, threading

really_start = threading.Thread.start

def start(thread):
    if os.path.exists(os.environ["NO_THREADS"]):
        raise RuntimeError("can't start new thread")
    really_start(thread)

threading.Thread.start = start
"""


def test_a_server_that_gets_no_thread_is_overloaded_until_it_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_THREADS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    none = tmp_path / "none"
    with (
        ServerProcess(tmp_path, NO_THREADS=str(none)) as server,
        AgentMemory(server.url, application="faults", timeout=1) as memory,
    ):
        none.touch()
        for write in (1, "x" * 300_000):
            with pytest.raises(UnavailableError) as caught:
                memory.app_state.set("k", write)
            assert caught.value.code == "overloaded"
        answer = httpx.get(f"{server.url}/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        none.unlink()
        assert memory.app_state.get("k") is None
        assert memory.app_state.set("k", "x" * 300_000).version == 1, "nothing that failed was carried out later"
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert '"error"' not in server.log
