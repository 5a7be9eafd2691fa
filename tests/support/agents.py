"""A chat model that says what a test tells it to, and remembers what it was shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, PrivateAttr, field_validator, model_validator

from agent_memory_langchain import Agent

Call = tuple[str, dict[str, Any]]


class ScriptedModel(BaseChatModel):
    """Plays ``turns`` one after the other: a text, tool calls as (name, arguments), or a function of the messages.

    When they are used up it says "done".
    """

    turns: list[Any] = Field(default_factory=list)
    _shown: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _tools: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @property
    def shown(self) -> list[list[BaseMessage]]:
        """The messages of each call."""
        return self._shown

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools of the latest call, as a provider would be sent them."""
        return self._tools

    @property
    def prompt(self) -> str:
        """All text of the latest call."""
        return "\n".join(message.text for message in self._shown[-1])

    @property
    def system(self) -> str:
        """The system message of the latest call."""
        return "\n".join(message.text for message in self._shown[-1] if isinstance(message, SystemMessage))

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> Any:
        self._tools = [convert_to_openai_tool(tool) for tool in tools]
        return self

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
        number = len(self._shown)
        self._shown.append(messages)
        turn = self.turns[number] if number < len(self.turns) else "done"
        if isinstance(turn, Callable):
            turn = turn(messages)
        if isinstance(turn, str):
            message = AIMessage(turn)
        else:
            calls = [
                {"name": name, "args": arguments, "id": f"call-{number}-{index}"}
                for index, (name, arguments) in enumerate(turn)
            ]
            message = AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])


def results(output: dict[str, Any]) -> list[ToolMessage]:
    """Return what the tools answered in a run."""
    return [message for message in output["messages"] if isinstance(message, ToolMessage)]


class Injury(BaseModel):
    part: str
    diagnosis: Annotated[str, Agent(hidden=True)] = ""


class Athlete(BaseModel):
    """Fields of every kind, for agents with limits."""

    name: str = "Ann"
    weight_kg: float | None = Field(None, gt=0, le=500, description="body weight in kg")
    steps: int = 0
    goals: Annotated[list[str], Agent(priority=10)] = []
    tags: set[str] = set()
    best: dict[str, float] = {}
    coach: Annotated[str, Agent(read_only=True)] = "Kim"
    risk: Annotated[float, Agent(hidden=True)] = 0.25
    injuries: list[Injury] = []

    @field_validator("name")
    @classmethod
    def _not_blank(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("a name is not blank")
        return name

    @model_validator(mode="after")
    def _risk_rises_with_weight(self) -> Athlete:
        if self.weight_kg is not None and self.weight_kg > 300 and self.risk < 1:
            raise ValueError(f"a risk of {self.risk} is too low for this weight")
        return self


class Session(BaseModel):
    kind: str
    km: float = Field(0, ge=0)
    note: str | None = None
    invoice: Annotated[str, Agent(hidden=True)] = "unpaid"
