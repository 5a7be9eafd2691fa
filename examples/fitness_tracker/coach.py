"""OfflineCoach: what stands in for a language model where there is none, in tests and in the demo.

It takes part in the agent's loop as any chat model does: it is offered tools, asks for calls of them, reads their
results and answers. What it cannot do is understand: it knows the kinds of sentences of ``sentences.py`` and says so
when it meets another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final, NamedTuple

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from .models import Units
from .sentences import (
    AddToList,
    AskEverything,
    AskField,
    AskNotes,
    AskProgress,
    AskSomebodyElse,
    ClearField,
    Greeting,
    KeepNote,
    LogWorkout,
    Meaning,
    SetField,
    Unclear,
    understand,
)
from .summary import clock, counted, day_of, far, in_units

WHAT_IT_READS: Final = (
    "I am a stand-in for a language model and read only a few kinds of sentences: 'ran 5 km in 28:30', 'my goal is …', "
    "'I weigh 72 kg', 'I hate …', 'my knee hurts', 'how am I doing?', 'what do you know about me?', 'forget my weight'."
)
_READING: Final = ("read_", "list_", "search_", "recall_", "training_")
_LABELS: Final = {"weight_kg": "weight"}


class _Call(NamedTuple):
    """A tool to call."""

    tool: str
    args: dict[str, Any]


class OfflineCoach(BaseChatModel):
    """A stand-in for a language model: it reads a few kinds of sentences by rules, and nothing else."""

    @property
    def _llm_type(self) -> str:
        return "offline-coach"

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **options: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools; each call of the model then gets their descriptions, as with any provider's model."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **options)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - part of the interface
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - part of the interface
        **options: Any,
    ) -> ChatResult:
        offered = {tool["function"]["name"] for tool in options.get("tools") or []}
        return ChatResult(generations=[ChatGeneration(message=_next_message(messages, offered))])


def _next_message(messages: Sequence[BaseMessage], offered: set[str]) -> AIMessage:
    """Ask for tool calls, or answer if there are none to make, or they have been made."""
    last_said = max(at for at, message in enumerate(messages) if isinstance(message, HumanMessage))
    memory, said = _memory_and_words(messages[last_said].text)
    today = _today(messages)
    meanings = understand(said, today)
    turn = messages[last_said + 1 :]
    requested = [call for message in turn if isinstance(message, AIMessage) for call in message.tool_calls]
    already = {call["name"] for call in requested}
    calls = [call for call in _calls(meanings, memory) if call.tool not in already]
    # Calls of one message run at the same time: what reads must wait for what writes.
    calls = [call for call in calls if not call.tool.startswith(_READING)] or calls
    missing = sorted({call.tool for call in calls} - offered)
    if missing:
        return AIMessage(f"I cannot do that: I was not given the tool {', '.join(missing)}.")
    if calls:
        requests = [
            ToolCall(name=call.tool, args=call.args, id=f"call-{last_said}-{number}", type="tool_call")
            for number, call in enumerate(calls, start=len(requested))
        ]
        return AIMessage("", tool_calls=requests)
    results = {message.tool_call_id: message for message in turn if isinstance(message, ToolMessage)}
    answers = [(call["name"], results[call["id"] or ""]) for call in requested]
    return AIMessage(_Answer(meanings, memory, answers, today).text())


def _today(messages: Sequence[BaseMessage]) -> date:
    """Return the day that the system prompt names: a model knows no other."""
    system = " ".join(message.text for message in messages if isinstance(message, SystemMessage))
    found = re.search(r"Today is (\d{4}-\d\d-\d\d)", system)
    return date.fromisoformat(found[1]) if found else date.today()


def _memory_and_words(text: str) -> tuple[dict[str, Any], str]:
    """Split a user message into the fields of the documents in its memory block, and what the user said.

    The application puts the block in front, and no text inside it can hold its closing tag.
    """
    block, closing, words = text.partition("</memory>")
    if not closing or not block.startswith("<memory>"):
        return {}, text
    fields: dict[str, Any] = {}
    for document in re.findall(r'^<document name="\w+">\n(.*?)^</document>', block, re.M | re.S):
        for name, value in re.findall(r"^(\w+): (.+)$", document, re.M):
            fields[name] = json.loads(value)
    return fields, words


# -- from meanings to calls ------------------------------------------------------------------------------------------


def _calls(meanings: Sequence[Meaning], memory: Mapping[str, Any]) -> list[_Call]:
    """Return the calls to make; what goes into one document goes there in one call."""
    calls: list[_Call] = []
    for meaning in meanings:
        for tool, args in _calls_of(meaning, memory):
            same = next((call for call in calls if call.tool == tool), None)
            if same is None or tool in ("add_workout", "add_note"):
                calls.append(_Call(tool, dict(args)))
            else:
                _merge(same.args, args)
    return calls


def _calls_of(meaning: Meaning, memory: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    match meaning:
        case SetField(document, field, value):
            return [(f"update_{document}", {field: value})]
        case AddToList(document, field, value):
            return [(f"add_to_{document}", {field: [value]})]
        case ClearField(document, field):
            return [(f"forget_{document}", {"fields": [field]})]
        case LogWorkout(sport, day, distance_km, duration_s, _):
            facts = {"sport": sport, "when": day.isoformat(), "distance_km": distance_km, "duration_s": duration_s}
            return [("add_workout", {name: value for name, value in facts.items() if value is not None})]
        case KeepNote(text):
            return [("add_note", {"text": text})]
        case AskField(document, field):
            # What the memory block shows needs no tool; it leaves fields out when it has no room.
            return [] if field in memory else [(f"read_{document}", {})]
        case AskProgress():
            return [("training_summary", {}), ("read_profile", {})]
        case AskEverything() | AskSomebodyElse():
            tools = ("read_profile", "read_preferences", "training_summary", "list_notes")
            return [(tool, {}) for tool in tools]
        case AskNotes(topic):
            return [("recall_notes", {"about": topic})]
        case Greeting() | Unclear():
            return []


def _merge(args: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        args[name] = [*args[name], *value] if isinstance(args.get(name), list) else value


# -- from results to an answer ---------------------------------------------------------------------------------------


class _Answer:
    """The answer to a message, made of what the tools said, clause by clause."""

    def __init__(
        self,
        meanings: Sequence[Meaning],
        memory: Mapping[str, Any],
        results: Sequence[tuple[str, ToolMessage]],
        today: date,
    ) -> None:
        self._meanings = meanings
        self._memory = memory
        self._results = results
        self._today = today

    def text(self) -> str:
        failed = [result.text for _, result in self._results if result.status == "error"]
        if failed:
            return "That did not work: " + " ".join(failed)
        sentences = [self._sentence(meaning) for meaning in self._meanings]
        return " ".join(dict.fromkeys(sentences)) or WHAT_IT_READS

    def _sentence(self, meaning: Meaning) -> str:
        match meaning:
            case SetField("profile", "name", name):
                return f"Nice to meet you, {name}."
            case SetField("profile", "weight_kg", kg):
                return f"Noted: you weigh {kg:g} kg."
            case SetField(_, field, value):
                return f"Noted: your {_label(field)}: {value}."
            case AddToList("profile", _, goal):
                return f"A fine goal: {goal}. I will remember it."
            case AddToList(_, field, what):
                return f"I will keep in mind that you {field.removesuffix('s')} {what}."
            case ClearField(_, field):
                return f"Forgotten: your {_label(field)}."
            case LogWorkout():
                return self._workout(meaning)
            case KeepNote(text):
                return f"I made a note: {_quoted(text)}."
            case AskField(document, field):
                known = self._memory if field in self._memory else self._object(f"read_{document}")
                value = known.get(field)
                return f"Your {_fact(field, value)}." if value else f"I do not know your {_label(field)}."
            case AskProgress():
                return self._progress()
            case AskEverything():
                return self._everything()
            case AskSomebodyElse():
                return f"This conversation has one memory, yours, and I can see no other. {self._everything()}"
            case AskNotes(topic):
                found = [_quoted(note["text"]) for note in self._items("recall_notes")]
                return f"You said: {'; '.join(found)}." if found else f"I have no note about {topic}."
            case Greeting():
                name = self._memory.get("name")
                return f"Hello{f' {name}' if name else ''}! Tell me about a workout, or ask how you are doing."
            case Unclear(text, hint):
                return hint or f"I did not understand {_quoted(text)}, and stored nothing of it."
        raise AssertionError(meaning)

    def _workout(self, logged: LogWorkout) -> str:
        lately = {self._today: "today", self._today - timedelta(days=1): "yesterday"}
        parts = [logged.sport, lately.get(logged.day, f"on {day_of(logged.day, self._today)}")]
        units = self._units(logged.units)
        if logged.distance_km is not None:
            parts.insert(1, far(logged.distance_km, units, 2))
        if logged.duration_s is not None:
            parts.append(f"in {clock(logged.duration_s)}")
        if logged.distance_km and logged.duration_s and logged.sport == "running":
            pace = clock(round(logged.duration_s / in_units(logged.distance_km, units)))
            parts.append(f"({pace} per {units.removesuffix('s')})")
        return f"Logged: {' '.join(parts)}."

    def _units(self, told: Units) -> Units:
        """Return the user's units, as they stand after this message; who never named any hears those they used."""
        set_now = [
            meaning.value for meaning in self._meanings if isinstance(meaning, SetField) and meaning.field == "units"
        ]
        return [self._memory.get("units", told), *set_now][-1]

    def _progress(self) -> str:
        summary = self._object("training_summary")
        goals = self._object("read_profile").get("goals") or []
        if not summary["workouts"]:
            return "I know of no workout yet."
        units, last = summary["units"], summary["last_week"]
        text = f"This week {summary['this_week']:.1f} {units} in all sports, last week {last:.1f} {units}"
        text += f"; {counted(summary['workouts'], 'workout')} in all, the latest: {summary['latest']}."
        return text + (f" Your goal: {_shown(goals)}." if goals else "")

    def _everything(self) -> str:
        fields = {**self._object("read_profile"), **self._object("read_preferences")}
        known = [_fact(name, value) for name, value in fields.items() if value]
        summary = self._object("training_summary")
        if summary["workouts"]:
            known.append(f"{counted(summary['workouts'], 'workout')}, the latest: {summary['latest']}")
        notes = [_quoted(note["text"]) for note in self._items("list_notes")]
        text = f"What I know of you: {'; '.join(known)}." if known else "I know nothing of you yet."
        return text + (f" You said: {'; '.join(notes)}." if notes else "")

    def _object(self, tool: str) -> dict[str, Any]:
        """Return the JSON object in a tool's result, an empty one if it says that there is nothing."""
        found = self._items(tool)
        return found[0] if found else {}

    def _items(self, tool: str) -> list[dict[str, Any]]:
        """Return the JSON objects in a tool's result; each stands at the end of a line."""
        text = next((result.text for name, result in self._results if name == tool), "")
        return [json.loads(line[line.index("{") :]) for line in text.splitlines() if line.endswith("}")]


def _label(field: str) -> str:
    return _LABELS.get(field, field)


def _fact(field: str, value: Any) -> str:
    return f"{_label(field)}: {value:g} kg" if field == "weight_kg" else f"{_label(field)}: {_shown(value)}"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"


def _quoted(text: str) -> str:
    return f'"{text}"'
