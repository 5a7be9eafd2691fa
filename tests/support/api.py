"""The wire contract spoken without our own client: raw requests, and what is checked of every refusal."""

from __future__ import annotations

import base64
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from .server import ServerProcess


class Api:
    """A scope of a server, spoken to without our own client."""

    def __init__(
        self, http: httpx.Client, url: str, namespace: str, application: str, token: str | None = None
    ) -> None:
        self.http = http
        self.path = f"/v1/namespaces/{namespace}/applications/{application}"
        self.url = url + self.path
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def post(self, verb: str, body: Any, state: str = "app_state", **headers: str) -> httpx.Response:
        return self.http.post(f"{self.url}/{state}/{verb}", json=body, headers={**self.headers, **headers})

    def send(self, verb: str, content: Any, content_type: str = "application/json") -> httpx.Response:
        headers = {**self.headers, "Content-Type": content_type}
        return self.http.post(f"{self.url}/app_state/{verb}", content=content, headers=headers)

    def set(self, key: str, data: bytes, **fields: Any) -> httpx.Response:
        return self.post("commit_write", {"state_key": key, "blob": inline(data), **fields})

    def get(self, key: str, **fields: Any) -> Any:
        response = self.post("prepare_read", {"state_key": key, "max_inline_size": 65_536, **fields})
        assert response.status_code == 200
        return response.json()

    def place(self, key: str, size: int, **fields: Any) -> Any:
        response = self.post("prepare_write", {"state_key": key, "size": size, **fields})
        assert response.status_code == 200
        return response.json()["blob"]


def inline(data: bytes) -> dict[str, Any]:
    uri = "data:;base64," + base64.b64encode(data).decode()
    return {"id": str(uuid.uuid4()), "chunks": [{"uri": uri, "size": len(data), "etag": None}]}


def problem(response: httpx.Response) -> tuple[int, str]:
    """Return the status and code of a refusal, having checked that it is a problem."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["title"]
    return response.status_code, body["code"]


def raw(url: str, request: bytes) -> bytes:
    """Send bytes and return all that comes back until the server closes or says nothing for five seconds."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), 5) as connection:
        connection.sendall(request)
        connection.settimeout(5)
        received = b""
        while True:
            try:
                piece = connection.recv(65_536)
            except TimeoutError:
                return received
            if not piece:
                return received
            received += piece


def part_files(server: ServerProcess) -> list[Path]:
    return list(server.data.with_name("server.db.blobs").rglob("*.part"))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
