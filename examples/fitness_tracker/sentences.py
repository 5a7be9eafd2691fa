"""The few kinds of sentences that the offline coach can read, by rules.

A message is split into clauses; each becomes what its speaker wants. Whatever no rule fits is ``Unclear`` and is
answered as such: nothing is guessed, and nothing is stored of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .measures import NUMBER, TOO_FAST_KM_H, measure, number
from .models import Units

# -- what a clause can mean ------------------------------------------------------------------------------------------


class SetField(NamedTuple):
    """A fact of which there is one: a name, a weight."""

    document: Literal["profile", "preferences"]
    field: str
    value: Any


class AddToList(NamedTuple):
    """A fact of which there are several: a goal, something liked."""

    document: Literal["profile", "preferences"]
    field: str
    value: str


class ClearField(NamedTuple):
    """A fact to forget."""

    document: Literal["profile", "preferences"]
    field: str


class LogWorkout(NamedTuple):
    sport: str
    day: date
    distance_km: float | None
    duration_s: int | None
    units: Units = "km"
    """Those in which the distance was told."""


class KeepNote(NamedTuple):
    text: str


class AskField(NamedTuple):
    """A question about one fact."""

    document: Literal["profile", "preferences"]
    field: str


class AskProgress(NamedTuple):
    pass


class AskEverything(NamedTuple):
    pass


class AskNotes(NamedTuple):
    topic: str


class AskSomebodyElse(NamedTuple):
    """A question about another user, which nothing in a conversation can answer."""

    name: str


class Greeting(NamedTuple):
    pass


class Unclear(NamedTuple):
    text: str
    hint: str | None = None


Meaning: TypeAlias = (
    SetField | AddToList | ClearField | LogWorkout | KeepNote | AskField | AskProgress | AskEverything | AskNotes
    | AskSomebodyElse | Greeting | Unclear
)  # fmt: skip


def understand(message: str, today: date) -> list[Meaning]:
    """Return what each clause of a message means, in order."""
    return [_clause(clause, today) for clause in _clauses(message)]


# -- the rules -------------------------------------------------------------------------------------------------------

_FIELDS: Final[dict[str, tuple[Literal["profile", "preferences"], str]]] = {
    "name": ("profile", "name"),
    "weight": ("profile", "weight_kg"),
    "birthday": ("profile", "birthday"),
    "goal": ("profile", "goals"),
    "goals": ("profile", "goals"),
    "likes": ("preferences", "likes"),
    "dislikes": ("preferences", "dislikes"),
    "units": ("preferences", "units"),
}
_A_FIELD: Final = "|".join(sorted(_FIELDS, key=len, reverse=True))

_SPORTS: Final = {
    "running": r"ran|jogged|went (?:running|jogging)|went for a(?:n? \S+)*? (?:run|jog)",
    "swimming": r"swam|went swimming|went for a(?:n? \S+)*? swim",
    "cycling": r"cycled|biked|rode|went cycling|went for a(?:n? \S+)*? (?:ride|bike ride)",
    "walking": r"walked|went for a(?:n? \S+)*? walk",
    "hiking": r"hiked|went hiking|went for a(?:n? \S+)*? hike",
    "rowing": r"rowed|went rowing",
}
_POUNDS_PER_KG: Final = 2.204623
_NOT_A_FACT: Final = re.compile(
    r"\b(?:not|never|if|would|could|should|will|almost|nearly|dreamt|dreamed|every|usually|often|always)\b|n't\b"
)
_LEFT_OVER: Final = re.compile(
    r"\S*\d\S*|\b(?:minus|negative|half|quarter|twice|thrice|times|each|per|rests|breaks|pauses|intervals|reps|sets"
    r"|elevation|climb(?:ed|ing|s)?|ascent|descent)\b"
)
"""What changes the meaning of the numbers in a sentence, if nothing was made of it."""
_MOST_KM: Final = {"running": 350, "swimming": 250, "cycling": 1300, "walking": 250, "hiking": 250, "rowing": 350}
"""A little more than anybody has done in a day and a night."""
_MOST_SECONDS: Final = 100 * 3600
# A sentence is read without those before it: an answer alone, "5 km", would not be understood.
_AGAIN: Final = " Tell me again, in one sentence."


def _clauses(message: str) -> list[str]:
    """Split a message at sentence ends, and where a new clause begins with a person."""
    sentences = re.split(r"(?<=[.!?;])\s+|\n+", message)
    clauses: list[str] = []
    for sentence in sentences:
        clauses += re.split(r"(?:,\s*)?\b(?:and|but)\s+(?=(?:i|i'm|my)\b)|,\s+(?=(?:i|i'm|my)\b)", sentence, flags=re.I)
    return [clause.strip() for clause in clauses if clause.strip(" .!?;,")]


def _clause(clause: str, today: date) -> Meaning:
    text = clause.strip(" .!?;,").replace("’", "'")
    plain = re.sub(r"^(?:please|well|hey|oh|so|also|and|but|then),? ", "", text, flags=re.I)
    for pattern, meaning in _RULES:
        match = pattern.fullmatch(plain)
        if match is not None:
            found = meaning(match)
            if found is not None:
                return found
    return _workout(plain, today) or Unclear(clause)


def _workout(text: str, today: date) -> Meaning | None:
    lower = text.lower()
    sports = [sport for sport, verb in _SPORTS.items() if re.search(rf"\b(?:{verb})\b", lower)]
    if not sports:
        return None
    if _NOT_A_FACT.search(lower):
        return Unclear(text)
    found = measure(text, today)
    if len(sports) > 1 or len(found.distances) > 1:
        return Unclear(text, "One workout in a sentence, please.")
    left_over = _LEFT_OVER.search(found.rest)
    if left_over is not None:
        return Unclear(text, f'I cannot tell what "{left_over[0]}" means there, and stored nothing of it.')
    if len(found.durations_s) > 1:
        return Unclear(text, "How long did it take in all?" + _AGAIN)
    distance = found.distances[0] if found.distances else None
    duration = found.durations_s[0] if found.durations_s else None
    if distance is None and duration is None:
        return Unclear(text, "How far was it, or how long did it take?" + _AGAIN)
    days = set(found.days) or {today}
    day = days.pop()
    if days or day is None:
        return Unclear(text, "Which day was that?" + _AGAIN)
    km, units = distance or (None, "km")
    if not _possible(sports[0], km, duration):
        right = "That cannot be right, so I stored nothing of it. How far was it, and how long did it take?"
        return Unclear(text, right + _AGAIN)
    return LogWorkout(sports[0], day, km, duration, units)


def _possible(sport: str, km: float | None, seconds: int | None) -> bool:
    far = km is None or 0 < km <= _MOST_KM[sport]
    long = seconds is None or 0 < seconds <= _MOST_SECONDS
    return far and long and (km is None or seconds is None or km * 3600 <= TOO_FAST_KM_H * seconds)


def _weight(match: re.Match[str]) -> Meaning:
    unit = match["unit"].lower()
    kg = number(match["number"])
    return SetField("profile", "weight_kg", round(kg / _POUNDS_PER_KG if unit.startswith(("lb", "pound")) else kg, 1))


def _birthday(match: re.Match[str]) -> Meaning | None:
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b|,", "", match["day"])
    for form in ("%Y-%m-%d", "%d %B %Y", "%B %d %Y", "%d %b %Y", "%b %d %Y"):
        try:
            return SetField("profile", "birthday", datetime.strptime(text, form).date().isoformat())
        except ValueError:
            continue
    return None


def _units(match: re.Match[str]) -> Meaning:
    return SetField("preferences", "units", "miles" if match["units"].lower().startswith("mi") else "km")


def _rule(pattern: str, meaning: Callable[[re.Match[str]], Meaning | None]) -> tuple[re.Pattern[str], Any]:
    return re.compile(pattern, re.I), meaning


_RULES: Final = [
    # About others first: such a sentence must never be read as one about the speaker.
    _rule(
        r".*\b(?:show|give|tell|read|get)\b.*?\b(?P<name>(?!my|your|his|her|today|yesterday)[a-z][\w-]*)'s\b.*",
        lambda m: AskSomebodyElse(m["name"]),
    ),
    _rule(
        r"(?:what|who|how)\b.*\babout (?P<name>user \S+|(?!me\b|my\b|the\b|a\b|an\b|you\b)[A-Z]\w+)",
        lambda m: AskSomebodyElse(m["name"]) if m["name"][0].isupper() or " " in m["name"] else None,
    ),
    # Questions.
    _rule(
        r"(?:what (?:do you (?:know|remember)|have you remembered) about me"
        r"|(?:show|tell) me (?:all|everything) (?:you|that you) (?:know|remember)(?: about me)?|show me my data)",
        lambda _: AskEverything(),
    ),
    _rule(
        r"(?:how am i doing|how(?:'s| is) (?:it|my training) going|(?:show me )?my (?:progress|stats|week)"
        r"|how (?:far|much) (?:did|have) i .*)",
        lambda _: AskProgress(),
    ),
    _rule(
        r"what (?:did|have) i (?:say|said|tell you|told you|mention(?:ed)?) about (?:my |the )?(?P<topic>.+)",
        lambda m: AskNotes(m["topic"]),
    ),
    _rule(rf"what(?:'s| is| are) my (?P<field>{_A_FIELD})", lambda m: AskField(*_FIELDS[m["field"].lower()])),
    _rule(r"how much do i weigh", lambda _: AskField("profile", "weight_kg")),
    _rule(r"(?:hi|hello|hey|good (?:morning|afternoon|evening)|thanks?|thank you)(?: coach)?", lambda _: Greeting()),
    # What to forget.
    _rule(rf"forget (?:about )?my (?P<field>{_A_FIELD})", lambda m: ClearField(*_FIELDS[m["field"].lower()])),
    # Facts.
    _rule(
        r"(?:my name is|my name's|call me) (?P<name>[^\d\s,.!?][^,.!?]{0,40})",
        lambda m: SetField("profile", "name", m["name"].strip()),
    ),
    _rule(
        r"(?:i (?:now )?weigh|my weight is(?: now)?)(?: about)? "
        rf"(?P<number>{NUMBER}) ?(?P<unit>kg|kgs|kilos?|kilograms?|lbs?|pounds)(?: now| today)?",
        _weight,
    ),
    _rule(r"(?:my birthday is(?: on)?|i was born on) (?:the )?(?P<day>.+)", _birthday),
    _rule(
        r"(?:i (?:think|count) in|i prefer|(?:please )?use) (?P<units>miles|kilomet(?:re|er)s|km)"
        r"(?:,? (?:please|from now on))?",
        _units,
    ),
    _rule(
        r"(?:my (?:new |next |big )?goal is(?: to)?|i(?:'m| am) training for"
        r"|i want to(?= (?:run|swim|ride|cycle|walk|hike|row|lose|finish|complete|train)\b)) (?P<goal>.+)",
        lambda m: AddToList("profile", "goals", m["goal"]),
    ),
    _rule(
        r"i (?:really )?(?:hate|dislike|can't stand|do not like|don't like|don't enjoy) (?P<what>.+)",
        lambda m: AddToList("preferences", "dislikes", m["what"]),
    ),
    _rule(
        r"i (?:really )?(?:love|like|enjoy|prefer) (?P<what>.+)",
        lambda m: AddToList("preferences", "likes", m["what"]),
    ),
    # Notes.
    _rule(r"(?:remember|note|write down)(?: that)?:? (?P<text>.+)", lambda m: KeepNote(m["text"])),
    _rule(
        r"(?P<text>my \w+(?: \w+)? (?:hurts?|aches?|(?:is|are|was|feels?) (?:sore|tight|stiff|swollen|better))\b.*)",
        lambda m: KeepNote(m["text"]),
    ),
]
