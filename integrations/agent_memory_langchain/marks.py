"""Whose memory a message is about: marks where no model is shown them, in the artifacts of answers and beside calls.

A thread may serve several entities, one after the other. What a tool answered from the memory of one is not for the
next, and a call that waited for an approval must not change the memory of whoever gave it. A mark is a digest, so that
it brings no id into checkpoints and streams.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias, cast

from langchain.agents.middleware import ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langgraph.prebuilt import ToolRuntime

from agent_memory import InvalidRequestError

from .calls import latest_answer

_KEY: Final = "memory_of"

Marks: TypeAlias = Mapping[str, str]
"""Marks by the tools that work on the memory of what they mark: the names of tools with a space in between."""


def mark_of(kind: str, id: str) -> str:
    """Return the mark of an entity."""
    return hashlib.sha256(json.dumps([kind, id]).encode()).hexdigest()[:32]


def marked(tools: Iterable[str], mark: str) -> dict[str, Marks]:
    """Return what says that these tools work on the memory of one entity."""
    return {_KEY: {" ".join(sorted(tools)): mark}}


def for_entity(messages: Iterable[AnyMessage], tools: Collection[str], kind: str, mark: str) -> list[AnyMessage]:
    """Return the messages, without the text of what these tools answered about another entity."""
    shown: list[AnyMessage] = []
    calls: Marks = {}
    for message in messages:
        if isinstance(message, AIMessage):
            calls = _marks(message.response_metadata)
        elif isinstance(message, ToolMessage):
            # An error has no artifact: it is about whom the call was made for.
            found = _marks(message.artifact) or (calls if message.name in tools else {})
            if _names_another(found, tools, mark):
                message = message.model_copy(update={"content": f"(This was about another {kind}, and is not shown.)"})
        shown.append(message)
    return shown


def with_marked_calls(response: ModelResponse[Any], tools: Collection[str], mark: str) -> ModelResponse[Any]:
    """Return a model's response in which the calls say for which entity they were made.

    All of its calls, of whatever tool: who reviews them may put one of these tools in the place of another.
    """
    return replace(response, result=[_with_marks(message, tools, mark) for message in response.result])


def _with_marks(message: Any, tools: Collection[str], mark: str) -> Any:
    if not isinstance(message, AIMessage) or not message.tool_calls or not tools:
        return message
    made = {**_marks(message.response_metadata), **marked(tools, mark)[_KEY]}
    return message.model_copy(update={"response_metadata": {**message.response_metadata, _KEY: made}})


def check_call(runtime: ToolRuntime | None, tool: str, kind: str, mark: str) -> None:
    """Raise InvalidRequestError if the call that runs was made for another entity than the one that this run serves."""
    message = None if runtime is None else latest_answer(runtime.state)
    if message is not None and _names_another(_marks(message.response_metadata), (tool,), mark):
        raise InvalidRequestError(
            f"this call was made for another {kind} than this run serves: resume it with the context that it began with"
        )


def _marks(holder: Any) -> Marks:
    found = cast("Mapping[str, Any]", holder).get(_KEY) if isinstance(holder, Mapping) else None
    return cast(Marks, found) if isinstance(found, Mapping) else {}


def _names_another(marks: Marks, tools: Collection[str], mark: str) -> bool:
    """Say whether one of these tools is marked otherwise."""
    return any(one != mark and not set(names.split()).isdisjoint(tools) for names, one in marks.items())
