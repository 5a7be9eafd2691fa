"""An index whose ``embed`` is a provider's name and a model: LangChain's init_embeddings, a provider's own package."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from langchain_ollama import OllamaEmbeddings
from langgraph.store.base import PutOp

from agent_memory import AgentMemory
from agent_memory_langchain import AgentMemoryStore
from tests.support.langgraph import DIMENSIONS, Faced, embed
from tests.support.stores import Store

NOTES = ("user", "ada", "note")


class Ollama(ThreadingHTTPServer):
    """Answers on loopback as Ollama does when it embeds, and keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Embed)
        self.asked: list[dict[str, Any]] = []


class _Embed(BaseHTTPRequestHandler):
    server: Ollama

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append({"path": self.path, "model": request["model"], "input": request["input"]})
        body = json.dumps({"model": request["model"], "embeddings": embed(request["input"])}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ollama]:
    with Ollama() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("store", ["embedded-sync", "embedded-async"], indirect=True)
def test_a_providers_model_embeds_what_is_put_and_asked(memory: Any, store: Store, ollama: Ollama) -> None:
    faced = Faced(memory, store, index={"dims": DIMENSIONS, "embed": "ollama:all-minilm", "fields": ["text"]})
    assert isinstance(faced.store.embeddings, OllamaEmbeddings)
    faced.batch([PutOp(NOTES, "1", {"text": "my knee hurts"}), PutOp(NOTES, "2", {"text": "new shoes"})])

    best, other = faced.search(NOTES, query="my knee hurts")
    assert (best.key, other.key) == ("1", "2")
    assert best.score == pytest.approx(1, abs=1e-5)
    assert other.score < best.score
    assert ollama.asked == [
        {"path": "/api/embed", "model": "all-minilm", "input": ["my knee hurts", "new shoes"]},
        {"path": "/api/embed", "model": "all-minilm", "input": ["my knee hurts"]},
    ]


def test_a_provider_that_cannot_be_had_is_an_error_when_the_store_is_made() -> None:
    with AgentMemory("memory://", application="test") as memory:
        for name, error, text in (
            ("cohere:embed-english-v3.0", ImportError, "langchain-cohere"),
            ("nobody:model", ValueError, "not supported"),
            ("all-minilm", ValueError, "provider"),
        ):
            with pytest.raises(error, match=text):
                AgentMemoryStore(memory, index={"dims": 3, "embed": name})
