"""Which call of a tool it is that runs: the same one whenever LangGraph runs its node again.

A node runs again, from its start, after a crash, an interrupt inside it, or a retry. What it starts from is the same
then: the checkpoint, whose id holds a time, the task, and the message that holds the call. A call's own id says too
little: some models count their calls from one in every message.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, cast

from langchain_core.messages import AIMessage
from langgraph.prebuilt import ToolRuntime

from agent_memory import item_id

_FIRST_DAY: Final = datetime(1582, 10, 15, tzinfo=UTC)
"""Where the time of a UUID of version 6 begins (RFC 9562, section 5.6)."""


class Call(NamedTuple):
    """A call that can be told from every other one: the time at which its node first ran, and its name."""

    at: datetime
    name: str

    @property
    def id(self) -> str:
        """The UUIDv7 that stands for it."""
        return item_id(self.at, self.name)


def this_call(runtime: ToolRuntime | None, sent: Mapping[str, Any]) -> Call | None:
    """Return the call that runs, None if another one could pass for it.

    The arguments are a part of its name: whoever stands around a tool may call it twice for one call of the model.
    """
    task = None if runtime is None else runtime.execution_info
    if runtime is None or task is None or not runtime.tool_call_id:
        return None
    message = latest_answer(runtime.state)
    started = _time_of(task.checkpoint_id)
    if message is None or not message.id or started is None:
        return None
    ids = [one["id"] for one in message.tool_calls]
    if ids.count(runtime.tool_call_id) != 1:
        return None
    # The calls of one message start together; their order there is the only one they have.
    at = started + timedelta(microseconds=ids.index(runtime.tool_call_id))
    parts = [task.task_id, message.id, runtime.tool_call_id, dict(sent)]
    return Call(at, json.dumps(parts, sort_keys=True, default=str))


def latest_answer(state: Any) -> AIMessage | None:
    """Return the message of a state that holds the calls which run."""
    if isinstance(state, Mapping):
        state = cast("Mapping[str, Any]", state).get("messages")
    elif not isinstance(state, list):
        state = getattr(state, "messages", None)
    messages = cast("list[Any]", state) if isinstance(state, list) else []
    return next((one for one in reversed(messages) if isinstance(one, AIMessage)), None)


def _time_of(checkpoint_id: str) -> datetime | None:
    try:
        id = uuid.UUID(checkpoint_id)
    except ValueError:
        return None
    if id.version != 6:
        return None
    tenths = id.int >> 80 << 12 | id.int >> 64 & 0xFFF
    return _FIRST_DAY + timedelta(microseconds=tenths // 10)
