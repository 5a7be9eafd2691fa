"""The few kinds of sentences that the offline coach can read, by rules.

A message is split into clauses; each becomes what its speaker wants. Whatever no rule fits is ``Unclear`` and is
answered as such: nothing is guessed, and nothing is stored of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .models import KM_PER_MILE

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
_KM_PER_UNIT: Final = {"k": 1.0, "mi": KM_PER_MILE, "m": 0.001}
_DISTANCE: Final = re.compile(
    r"(?<![\d:.,])(\d+(?:[.,]\d+)?)[ -]?(k(?:m|ms|ilomet(?:re|er)s?)?|mi(?:les?)?|m(?:et(?:re|er)s?)?)\b", re.I
)
_RACES: Final = {"half marathon": 21.0975, "half-marathon": 21.0975, "marathon": 42.195}
# Not "at 7:30", which is a time of day, and not "5:30/km", which is a pace.
_CLOCK: Final = re.compile(
    r"(?<!\bat )(?<!\d)(\d{1,2}):(\d\d)(?::(\d\d))?(?!\d| ?[ap]m\b|(?: ?min)? ?(?:/|per\b))( ?h(?:ours?)?\b)?", re.I
)
_HOURS: Final = re.compile(r"\b(\d+(?:[.,]\d+)?) ?-?h(?:ours?|rs?)?\b", re.I)
_MINUTES: Final = re.compile(r"(?<![\w:])(\d+(?:[.,]\d+)?) ?-?min(?:ute)?s?\b", re.I)
_SECONDS: Final = re.compile(r"\b(\d+) ?s(?:ec(?:ond)?s?)?\b", re.I)
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TOO_FAST_KM_H: Final = 70.0
_POUNDS_PER_KG: Final = 2.204623
_NOT_A_FACT: Final = re.compile(r"\b(?:not|never|didn't|haven't|if|would|could|should|will|almost|dreamt|dreamed)\b")


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
    if len(sports) > 1 or len(_DISTANCE.findall(lower)) > 1:
        return Unclear(text, "One workout in a sentence, please.")
    distance = _distance_km(lower)
    duration = _duration_s(lower, distance)
    if distance is None and duration is None:
        return Unclear(text, "How far was it, or how long did it take?")
    day = _day(lower, today)
    if day is None:
        return Unclear(text, "Which day was that?")
    return LogWorkout(sports[0], day, distance, duration)


def _distance_km(text: str) -> float | None:
    match = _DISTANCE.search(text)
    if match is None:
        return next((km for race, km in _RACES.items() if race in text), None)
    unit = match[2].lower()
    factor = _KM_PER_UNIT["k" if unit.startswith("k") else "mi" if unit.startswith("mi") else "m"]
    return round(_number(match[1]) * factor, 3)


def _duration_s(text: str, distance_km: float | None) -> int | None:
    match = _CLOCK.search(text)
    if match is not None:
        first, second, third = int(match[1]), int(match[2]), match[3]
        if third is not None:
            return first * 3600 + second * 60 + int(third)
        seconds = first * 60 + second
        # 50 km in 2:10 is hours and minutes, as nobody rides that fast.
        too_fast = distance_km is not None and distance_km * 3600 > _TOO_FAST_KM_H * seconds
        return seconds * 60 if match[4] or too_fast else seconds
    parts = [(_HOURS, 3600), (_MINUTES, 60), (_SECONDS, 1)]
    found = [_number(match[1]) * factor for pattern, factor in parts if (match := pattern.search(text))]
    if "half an hour" in text:
        found.append(1800)
    elif re.search(r"\ban hour\b", text):
        found.append(3600)
    return round(sum(found)) if found else None


def _day(text: str, today: date) -> date | None:
    """Return the day a text speaks of, today if it names none, None for one that cannot be told."""
    if "day before yesterday" in text:
        return today - timedelta(days=2)
    if "yesterday" in text or "last night" in text:
        return today - timedelta(days=1)
    ago = re.search(r"\b(\d+) days? ago\b", text)
    if ago is not None:
        return today - timedelta(days=int(ago[1]))
    if "tomorrow" in text or re.search(r"\b(?:last|ago|next)\b", text):
        return None
    for number, name in enumerate(_WEEKDAYS):
        if re.search(rf"\b{name}\b", text):
            return today - timedelta(days=(today.weekday() - number) % 7 or 7)
    return today


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _weight(match: re.Match[str]) -> Meaning:
    unit = match["unit"].lower()
    kg = _number(match["number"])
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
        r"(?:i (?:now )?weigh|my weight is(?: now)?)(?: about)? (?P<number>\d+(?:[.,]\d+)?) ?"
        r"(?P<unit>kg|kgs|kilos?|kilograms?|lbs?|pounds)(?: now| today)?",
        _weight,
    ),
    _rule(r"(?:my birthday is(?: on)?|i was born on) (?:the )?(?P<day>.+)", _birthday),
    _rule(
        r"(?:i (?:think|count) in|(?:please )?use) (?P<units>miles|kilomet(?:re|er)s|km)"
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
