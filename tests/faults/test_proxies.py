"""Two servers behind the load balancers that people have, where these are installed: nginx and HAProxy."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from agent_memory import AgentMemory, AsyncAgentMemory, LimitExceededError
from agent_memory.operations import Get, Set
from tests.support.server import ServerProcess, free_port

_NGINX = """
daemon off;
user {user};
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream memory {{ server 127.0.0.1:{first}; server 127.0.0.1:{second}; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://memory; {settings} }}
  }}
}}
"""
_HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend all
  bind 127.0.0.1:{port}
  default_backend memory
backend memory
  {settings}
  server first 127.0.0.1:{first} check inter 200
  server second 127.0.0.1:{second} check inter 200
"""
# As the documents have them.
_SETTINGS = {"nginx": "client_max_body_size 0;", "haproxy": "option httpchk GET /readyz"}
TOKEN = "a-token-of-the-tests"
_LARGE = os.urandom(20_000_000)


class Stand(NamedTuple):
    """A load balancer's address, and the servers behind it."""

    url: str
    servers: list[ServerProcess]


@pytest.fixture(params=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest) -> str:
    """A load balancer that is installed."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def settings(proxy: str) -> str:
    return _SETTINGS[proxy]


@pytest.fixture
def stand(proxy: str, settings: str, tmp_path: Path) -> Iterator[Stand]:
    port, first, second = free_port(), free_port(), free_port()
    file = tmp_path / "proxy.conf"
    user = "root" if os.getuid() == 0 else "nobody"
    text = _NGINX if proxy == "nginx" else _HAPROXY
    file.write_text(text.format(user=user, folder=tmp_path, port=port, first=first, second=second, settings=settings))
    command = ["nginx", "-p", str(tmp_path), "-c", str(file)] if proxy == "nginx" else ["haproxy", "-f", str(file)]
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "tokens").write_text(f"{TOKEN} default\n")
    options = ("--public-url", url, "--token-file", str(tmp_path / "tokens"))
    with ExitStack() as stack:
        servers = [stack.enter_context(ServerProcess(tmp_path, *options, port=one)) for one in (first, second)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_until_ready(url)
        yield Stand(url, servers)


def wait_until_ready(url: str) -> None:
    stop = time.monotonic() + 15
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        assert time.monotonic() < stop
        time.sleep(0.05)


def test_values_of_every_size_pass(stand: Stand) -> None:
    with AgentMemory(stand.url, application="app", token=TOKEN) as memory:
        for key, value in {"small": b"x", "middle": b"m" * 60_000, "large": _LARGE, "k" * 1_000: b"y"}.items():
            memory.app_state.set(key, value)
            assert memory.app_state.get(key) == value
        memory.app_state.batch([Set(f"many/{number}", "y" * 8_000) for number in range(1_000)])
        found = memory.app_state.batch([Get(f"many/{number}") for number in range(1_000)])
        assert {snapshot.value for snapshot in found} == {"y" * 8_000}

    async def run() -> bool:
        async with AsyncAgentMemory(stand.url, application="app", token=TOKEN) as memory:
            await memory.app_state.set("async", _LARGE)
            return await memory.app_state.get("async") == _LARGE

    assert asyncio.run(run())


def test_a_server_that_is_killed_makes_no_call_fail(stand: Stand) -> None:
    stop = time.monotonic() + 3

    def work(number: int) -> None:
        with AgentMemory(stand.url, application="app", token=TOKEN) as memory:
            key = memory.app_state.key(f"count-{number}", int)
            key.set(0)
            done = 0
            while time.monotonic() < stop:
                key.update(lambda count: count + 1)
                done += 1
            counts[number] = (key.get(), done)

    counts: dict[int, tuple[int, int]] = {}
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    stand.servers[0].process.kill()
    for thread in threads:
        thread.join()
    assert len(counts) == 4
    assert all(stored == done > 0 for stored, done in counts.values())


@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
@pytest.mark.parametrize("settings", [""])
def test_what_nginx_finds_too_large_is_said_to_be(stand: Stand) -> None:
    with (
        AgentMemory(stand.url, application="app", token=TOKEN) as memory,
        pytest.raises(LimitExceededError, match="in front of it"),
    ):
        memory.app_state.set("large", _LARGE)
