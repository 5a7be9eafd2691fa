"""The recipe for LangGraph's Agent Server, run: its own development server, with our store behind its HTTP API.

Its packages need an environment of their own, which is made in ``.cache`` once: 160 MB, in ten seconds with uv.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from agent_memory import AgentMemory
from tests.support.postgres import PostgresServer
from tests.support.server import ROOT, ServerProcess, child_environment, free_port

pytestmark = pytest.mark.timeout(600)

PINS: Final = ROOT / "requirements" / "agent-server.txt"
CACHE: Final = ROOT / ".cache"
START_SECONDS: Final = 60.0
AGENT: Final = """
from typing import TypedDict

from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime


class State(TypedDict):
    said: str


async def remember(state: State, runtime: Runtime) -> dict:
    await runtime.store.aput(("user", "ada"), "profile", {"name": state["said"]})
    return {}


graph = StateGraph(State).add_node("remember", remember).add_edge(START, "remember").compile()
"""


@pytest.fixture(scope="module")
def langgraph() -> Path:
    """The command of an environment with the Agent Server's packages, the pinned versions."""
    folder = CACHE / f"agent-server-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    command = folder / "bin" / "langgraph"
    if not command.exists():
        python = str(folder / "bin" / "python")
        uv = Path(sys.executable).with_name("uv")
        pip = [str(uv), "pip", "install", "--python", python] if uv.exists() else [python, "-m", "pip", "install"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        done = subprocess.run(
            [*pip, "--quiet", "--requirement", str(PINS)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed:\n{done.stderr}")
    return command


@pytest.fixture(params=["file", "postgres", "http"])
def address(request: pytest.FixtureRequest, tmp_path: Path, soak: bool) -> Iterator[str]:
    """The address of an empty store."""
    if request.param != "file" and not soak:
        pytest.skip("needs --soak: the Agent Server takes long to start")
    if request.param == "file":
        yield str(tmp_path / "memory.db")
    elif request.param == "http":
        with ServerProcess(tmp_path) as server:
            yield server.url
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        database = postgres.database()
        yield database
        postgres.drop(database)


@pytest.fixture
def api(langgraph: Path, address: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """The HTTP API of an Agent Server whose folder is what the recipe says."""
    app = tmp_path / "app"
    app.mkdir()
    recipe = (ROOT / "docs" / "langchain.md").read_text().partition("### Agent Server\n")[2].partition("\n### ")[0]
    for name, block in (("langgraph.json", r"```json\n(.*?)```"), ("store.py", r"```py\n(# store\.py.*?)```")):
        found = re.search(block, recipe, re.DOTALL)
        assert found is not None, name
        (app / name).write_text(found[1])
    (app / "agent.py").write_text(AGENT)
    port = free_port()
    environment = child_environment(
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "integrations")]), AGENT_MEMORY_URL=address,
        AGENT_MEMORY_APPLICATION="agents", AGENT_MEMORY_BLOBS=str(tmp_path / "blobs") if "postgres" in address else "",
    )  # fmt: skip
    with (app / "log").open("w") as log:
        server = subprocess.Popen(
            [str(langgraph), "dev", "--no-browser", "--no-reload", "--port", str(port)],
            cwd=app, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            _wait_for(client, server, app / "log")
            yield client
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        finally:
            server.kill()


def _wait_for(client: httpx.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/ok").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the Agent Server did not start:\n{log.read_text()}")


def test_the_agent_servers_graphs_and_http_api_use_our_store(api: httpx.Client, address: str, tmp_path: Path) -> None:
    def post(path: str, **body: Any) -> Any:
        return api.post(path, json=body).raise_for_status().json()

    post("/runs/wait", assistant_id="agent", input={"said": "Ada"})
    large = {"text": "x" * 300_000}
    for namespace, key, value, ttl in (
        (["user", "bob"], "profile", {"name": "Bob", "km": 10}, 5),
        (["user", "bob", "note"], "1", large, None),
    ):
        api.put(
            "/store/items", json={"namespace": namespace, "key": key, "value": value, "ttl": ttl}
        ).raise_for_status()

    blobs = str(tmp_path / "blobs") if "postgres" in address else None
    with AgentMemory(address, application="agents", blobs=blobs) as memory:
        assert memory.app_state.get("user/ada/profile") == {"name": "Ada"}
        assert memory.app_state.get("user/bob/note/1") == large
        profile = memory.app_state.snapshot("user/bob/profile")
        assert profile is not None
        assert profile.entry.expires_at is not None

    got = api.get("/store/items", params={"namespace": "user.bob", "key": "profile", "refresh_ttl": "true"}).json()
    assert got["value"] == {"name": "Bob", "km": 10}
    found = post("/store/items/search", namespace_prefix=["user"], filter={"km": {"$gt": 9}}, limit=5)["items"]
    assert [(item["namespace"], item["key"]) for item in found] == [(["user", "bob"], "profile")]
    listed = post("/store/namespaces", prefix=["user"], limit=10, offset=0)["namespaces"]
    assert listed == [["user", "ada"], ["user", "bob"], ["user", "bob", "note"]]
    api.request("DELETE", "/store/items", json={"namespace": ["user", "ada"], "key": "profile"}).raise_for_status()
    assert api.get("/store/items", params={"namespace": "user.ada", "key": "profile"}).json() is None
    refused = api.put("/store/items", json={"namespace": ["langgraph"], "key": "k", "value": {}})
    assert refused.status_code == 400
