"""Whose memory a message is about: marks where no model is shown them, in the artifacts of answers and beside calls.

A thread may serve several entities, one after the other. What a tool answered from the memory of one is not for the
next, and a call that waited for an approval must not change the memory of whoever gave it. A mark is a digest, so that
no id enters checkpoints and streams.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final, cast

from langchain.agents.middleware import ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langgraph.prebuilt import ToolRuntime

from agent_memory import InvalidRequestError

from .calls import latest_answer

_KEY: Final = "memory_of"


def mark_of(kind: str, id: str) -> str:
    """Return the mark of an entity."""
    return hashlib.sha256(json.dumps([kind, id]).encode()).hexdigest()[:32]


def artifact_of(mark: str) -> dict[str, str]:
    """Return the artifact of what a tool answers from this entity's memory."""
    return {_KEY: mark}


def for_entity(message: AnyMessage, tools: Collection[str], kind: str, mark: str) -> AnyMessage:
    """Return a message without its text if one of these tools answered it from the memory of another entity."""
    if not isinstance(message, ToolMessage) or message.name not in tools or not isinstance(message.artifact, Mapping):
        return message
    if cast("Mapping[str, Any]", message.artifact).get(_KEY, mark) == mark:
        return message
    return message.model_copy(update={"content": f"(This was about another {kind}, and is not shown.)"})


def with_marked_calls(response: ModelResponse[Any], tools: Collection[str], mark: str) -> ModelResponse[Any]:
    """Return a model's response in which each call of these tools says for which entity it was made."""
    return replace(response, result=[_marked(message, tools, mark) for message in response.result])


def _marked(message: Any, tools: Collection[str], mark: str) -> Any:
    # By the tool's name, which is one agent's only one: ids of calls need not be.
    made = {call["name"]: mark for call in getattr(message, "tool_calls", ()) if call["name"] in tools}
    if not isinstance(message, AIMessage) or not made:
        return message
    others = message.response_metadata.get(_KEY, {})
    return message.model_copy(update={"response_metadata": {**message.response_metadata, _KEY: {**others, **made}}})


def check_call(runtime: ToolRuntime | None, tool: str, kind: str, mark: str) -> None:
    """Raise InvalidRequestError if the call that runs was made for another entity than the one that this run serves."""
    message = None if runtime is None else latest_answer(runtime.state)
    if message is None:
        return
    made = cast("dict[str, str]", message.response_metadata.get(_KEY, {}))
    if made.get(tool, mark) != mark:
        raise InvalidRequestError(
            f"this call was made for another {kind} than this run serves: resume it with the context that it began with"
        )
