"""What providers' own chat models send of an agent's memory tools; a stand-in answers in place of the provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware
from langchain.agents.structured_output import ProviderStrategy
from langchain.chat_models import init_chat_model
from langchain_anthropic.chat_models import convert_to_anthropic_tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from agent_memory import AgentMemory, InvalidRequestError
from agent_memory_langchain import MemoryMiddleware, memory_tools
from tests.support.agents import Athlete, ScriptedModel


@dataclass
class Context:
    user_id: str


class Answer(BaseModel):
    text: str


ASK: Any = {"messages": [("user", "my name is Bea")]}
BOB = Context("bob")


@pytest.fixture
def memory() -> Iterator[AgentMemory]:
    with AgentMemory("memory://", application="fitness") as memory:
        yield memory


class OpenAI:
    """Answers chat completions with one tool call after the other, and keeps what it was sent."""

    def __init__(self, *calls: tuple[str, dict[str, Any]]) -> None:
        self.calls = list(calls)
        self.sent: list[dict[str, Any]] = []

    def model(self, **options: Any) -> Any:
        client = httpx.Client(transport=httpx.MockTransport(self._answer))
        return ChatOpenAI(**{"model": "gpt-4.1", "api_key": "none", "http_client": client, **options})

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(json.loads(request.content))
        if request.url.path.endswith("/responses"):
            output = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
            output["content"] = [{"type": "output_text", "text": "done", "annotations": []}]  # type: ignore[assignment]
            return httpx.Response(200, json={"id": "r", "object": "response", "model": "gpt", "output": [output]})
        message: dict[str, Any] = {"role": "assistant", "content": "done"}
        if self.calls:
            name, arguments = self.calls.pop(0)
            call = {"name": name, "arguments": json.dumps(arguments)}
            message["tool_calls"] = [{"id": f"call-{len(self.sent)}", "type": "function", "function": call}]
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return httpx.Response(200, json={"id": "c", "object": "chat.completion", "model": "gpt", "choices": [choice]})

    def function(self, name: str) -> dict[str, Any]:
        """Return a tool of the latest request, as either of the two protocols holds it."""
        return next(one for tool in self.sent[-1]["tools"] if (one := tool.get("function", tool))["name"] == name)


def agent_of(memory: AgentMemory, model: Any, **more: Any) -> Any:
    own: Any = MemoryMiddleware(memory, documents=[Athlete], entity=("user", "user_id"))
    return create_agent(model, middleware=[own], context_schema=Context, **more)


@pytest.mark.parametrize("responses", [False, True])
def test_openais_models_may_leave_out_what_does_not_change(memory: AgentMemory, responses: bool) -> None:
    provider = OpenAI()
    agent_of(memory, provider.model(use_responses_api=responses)).invoke(ASK, context=BOB)
    # What is not said to be otherwise is strict in one of the two protocols.
    update = provider.function("update_athlete")
    assert update["strict"] is False
    assert "required" not in update["parameters"]


@pytest.mark.parametrize("answer", [Answer, Answer.model_json_schema()])
def test_so_they_may_where_the_answer_has_a_schema(memory: AgentMemory, answer: Any) -> None:
    memory.entity("user", "bob").document(Athlete).set(Athlete(weight_kg=72, goals=["5k"]))
    provider = OpenAI(("update_athlete", {"name": "Bea"}), ("Answer", {"text": "saved"}))
    output = agent_of(memory, provider.model(), response_format=answer).invoke(ASK, context=BOB)
    assert "required" not in provider.function("update_athlete")["parameters"]
    assert output["structured_response"] in (Answer(text="saved"), {"text": "saved"})
    found = memory.entity("user", "bob").document(Athlete).get()
    assert found == Athlete(name="Bea", weight_kg=72, goals=["5k"])


def configured(model: Any) -> Any:
    options = {"api_key": "none", "http_client": model.http_client, "use_responses_api": model.use_responses_api}
    return init_chat_model("openai:gpt-4.1", configurable_fields=("temperature",), **options)


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize(
    "around",
    [
        lambda model: model.with_config(tags=["mine"]),
        lambda model: model.with_fallbacks([Unavailable()]),
        configured,
    ],
    ids=["bound", "fallbacks", "configured"],
)  # fmt: skip
def test_so_they_may_whatever_stands_around_the_model(memory: AgentMemory, around: Any, responses: bool) -> None:
    provider = OpenAI()
    model = around(provider.model(use_responses_api=responses))
    agent_of(memory, model).invoke(ASK, context=BOB)
    assert provider.function("update_athlete")["strict"] is False


def test_so_may_a_model_that_each_run_gives_its_key(memory: AgentMemory, monkeypatch: Any) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    provider, settings = OpenAI(), {"configurable": {"api_key": "none"}}
    model = init_chat_model(
        "openai:gpt-4.1", configurable_fields=("api_key",), http_client=provider.model().http_client
    )
    agent_of(memory, model).invoke(ASK, settings, context=BOB)
    assert provider.function("update_athlete")["strict"] is False


class Unavailable(ScriptedModel):
    def _generate(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("try another")


def test_so_may_a_model_that_takes_over(memory: AgentMemory) -> None:
    provider = OpenAI()
    own: Any = MemoryMiddleware(memory, documents=[Athlete], entity=("user", "user_id"))
    around: Any = ModelFallbackMiddleware(provider.model(use_responses_api=True))
    create_agent(Unavailable(), middleware=[around, own], context_schema=Context).invoke(ASK, context=BOB)
    assert provider.function("update_athlete")["strict"] is False


@pytest.mark.parametrize(
    ("answer", "says"),
    [(ProviderStrategy(Answer), "use response_format=ToolStrategy"), ({"type": "object"}, "needs a title")],
)
def test_an_answer_that_makes_tools_strict_is_refused_before_the_model_is_called(
    memory: AgentMemory, answer: Any, says: str
) -> None:
    provider = OpenAI()
    agent = agent_of(memory, provider.model(), response_format=answer)
    with pytest.raises(InvalidRequestError, match=says):
        agent.invoke(ASK, context=BOB)
    assert provider.sent == []


def test_a_model_whose_provider_keeps_the_prompts_of_other_turns_is_refused(memory: AgentMemory) -> None:
    provider = OpenAI()
    agent = agent_of(memory, provider.model(use_responses_api=True, use_previous_response_id=True))
    with pytest.raises(InvalidRequestError, match="leaves the prompts of earlier turns with the provider"):
        agent.invoke(ASK, context=BOB)
    assert provider.sent == []


class Card(BaseModel):
    kind: Literal["card"]
    digits: str


class Transfer(BaseModel):
    kind: Literal["transfer"]
    account: str


class Branch(BaseModel):
    name: str = ""
    branches: list[Branch] = []


class Payer(BaseModel):
    pays_by: Card | Transfer | None = Field(None, discriminator="kind")
    other_ways: list[Card | Transfer] = []
    tree: Branch = Branch()


def test_no_schema_points_at_what_is_not_sent(memory: AgentMemory) -> None:
    for tool in memory_tools(memory, entity=("user", "user_id"), documents=[Payer], collections=[Branch]):
        for sent in (convert_to_openai_tool(tool), convert_to_anthropic_tool(tool)):
            assert "#/$defs/" not in json.dumps(sent)
