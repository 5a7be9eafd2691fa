"""The coach as an agent: a chat model, the tools of its memory, and the conversation of one user with it.

Whose memory it is comes from the run's context, which the application sets. Nothing that is said can change it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, NamedTuple

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, dynamic_prompt
from langchain.chat_models import init_chat_model
from langchain.tools import ToolRuntime, tool
from langchain.tools.tool_node import ToolCallRequest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.types import Command

from agent_memory import AgentMemory, Document
from agent_memory_langchain import MemoryMiddleware

from .coach import OfflineCoach
from .models import Club, Note, Preferences, Profile, UnknownModelError, Workout
from .notes import keep_note, note_embedding, recall_notes
from .summary import in_short, read_training

INSTRUCTIONS: Final = (
    "You are a fitness coach. Store what the user tells you about themselves with your tools: workouts, goals, weight, "
    "likes and dislikes, and as a note whatever else is worth keeping, such as pain. Store only what they said, in "
    "kilometres and seconds, with the day it happened. Answer briefly, in their units. You serve this one user and can "
    "see nobody else's memory. Today is {today} ({weekday})."
)


GENERATED_TOOLS: Final = [
    "read_profile", "update_profile", "add_to_profile", "remove_from_profile", "forget_profile",
    "read_preferences", "update_preferences", "add_to_preferences", "remove_from_preferences", "forget_preferences",
    "add_workout", "list_workouts", "search_workouts", "update_workout", "forget_workout",
    "list_notes", "forget_note",
]  # fmt: skip
"""The tools that the middleware makes of the models; those that add and search notes are made here, with vectors."""


@dataclass(frozen=True)
class Run:
    """What the application says of a run: whose it is, and which day it is."""

    user: str
    today: date


class Turn(NamedTuple):
    """What came of a message: the answer, and the tools that were called on the way to it, with their arguments."""

    answer: str
    calls: list[tuple[str, dict[str, Any]]]


class Conversation:
    """A user's conversation with the coach. It keeps what was said; what is remembered is in the store."""

    def __init__(
        self, memory: AgentMemory, user: str, model: BaseChatModel, *, today: Callable[[], date] = date.today
    ) -> None:
        self._agent = build_agent(memory, model)
        self._user = user
        self._today = today
        self._messages: list[AnyMessage] = []

    def say(self, text: str) -> Turn:
        """Say something to the coach and return what it answers."""
        run = Run(self._user, self._today())
        before = len(self._messages) + 1
        state = self._agent.invoke({"messages": [*self._messages, HumanMessage(text)]}, context=run)
        self._messages = state["messages"]
        calls = [
            (call["name"], call["args"])
            for message in self._messages[before:]
            if isinstance(message, AIMessage)
            for call in message.tool_calls
        ]
        return Turn(self._messages[-1].text, calls)


def build_agent(memory: AgentMemory, model: BaseChatModel) -> Any:
    """Return the agent. It serves every user: each run says in its context whose memory it works with."""
    remembers = MemoryMiddleware(
        memory,
        documents=[Profile, Preferences],
        collections=[Workout, Note],
        entity=("user", "user"),  # a user whose id is the run's context.user
        tools=GENERATED_TOOLS,
    )

    @tool
    def training_summary(runtime: ToolRuntime[Run]) -> str:
        """Sum up the user's training: distance of this week and last week, how many workouts, the latest one."""
        run = runtime.context
        return json.dumps(in_short(read_training(memory.entity("user", run.user), run.today)))

    @tool
    def add_note(text: str, runtime: ToolRuntime[Run]) -> str:
        """Keep something the user said, in their own words."""
        run = runtime.context
        when = datetime.combine(run.today, datetime.now().time(), UTC)  # the hour belongs to the day: local, too
        return f"Added. item_id: {keep_note(memory, run.user, Note(text=text, when=when), note_embedding())}"

    @tool("recall_notes")
    def recall(about: str, runtime: ToolRuntime[Run]) -> str:
        """Find what the user said about something: the most similar notes, the best first."""
        found = recall_notes(memory, runtime.context.user, about, note_embedding())
        return "\n".join(note.model_dump_json() for note in found) or "There are no such notes."

    middleware = [_instructions, remembers, ClubTotal(memory)]
    tools = [training_summary, add_note, recall]
    return create_agent(model, tools, middleware=middleware, context_schema=Run, name="coach")


def choose_model(name: str | None) -> BaseChatModel:
    """Return the chat model of that name, such as ``openai:gpt-5``, or without a name the offline stand-in.

    Raises UnknownModelError if LangChain cannot load it: an unknown provider, a package or a key that is missing.
    """
    if name is None:
        return OfflineCoach()
    try:
        return init_chat_model(name)
    except Exception as error:  # each provider's package raises errors of its own
        raise UnknownModelError(f"the model {name} cannot be loaded: {error}") from error


@dynamic_prompt
def _instructions(request: ModelRequest[Run]) -> str:
    today = request.runtime.context.today
    return INSTRUCTIONS.format(today=today.isoformat(), weekday=f"{today:%A}")


# -- the club --------------------------------------------------------------------------------------------------------


def club_of(memory: AgentMemory) -> Document[Club]:
    """Return what all users share: a key of the application, not of an entity."""
    return memory.app_state.key("club", Club)


class ClubTotal(AgentMiddleware[Any, Run]):
    """Add every workout that is told to the club's total, whichever process it is told in."""

    def __init__(self, memory: AgentMemory) -> None:
        super().__init__()
        self._memory = memory

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        result = handler(request)
        if _is_new_workout(request, result):
            club_of(self._memory).update(_with(request), reason="a workout was told")
        return result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        result = await handler(request)
        if _is_new_workout(request, result):
            club = self._memory.aio.app_state.key("club", Club)
            await club.update(_with(request), reason="a workout was told")
        return result


def _is_new_workout(request: ToolCallRequest, result: ToolMessage | Command[Any]) -> bool:
    return request.tool_call["name"] == "add_workout" and isinstance(result, ToolMessage) and result.status != "error"


def _with(request: ToolCallRequest) -> Callable[[Club], None]:
    metres = round(1000 * float(request.tool_call["args"].get("distance_km") or 0))

    def add(club: Club) -> None:
        club.metres += metres
        club.workouts += 1

    return add
