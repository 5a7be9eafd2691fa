"""Compare what the store holds with what was said, without asking the coach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from agent_memory import AgentMemory, Entity

from .agent import club_of
from .models import Note, Preferences, Profile, Workout


class Fact(NamedTuple):
    """A field of the profile or the preferences; of a list, words that one element contains."""

    field: str
    value: Any


class Ran(NamedTuple):
    """A workout."""

    sport: str
    day: date
    distance_km: float | None
    duration_s: int | None


class NoteAbout(NamedTuple):
    """Words that a note contains."""

    words: str


class Check(NamedTuple):
    """One comparison: what was counted, and what does not agree."""

    text: str
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass
class Expected:
    """What must be remembered of one user."""

    imported: int = 0
    single: dict[str, Any] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    workouts: list[Ran] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, fact: Fact | Ran | NoteAbout) -> None:
        """Expect one thing more; a later value of a single field takes the place of an earlier one."""
        if isinstance(fact, Ran):
            self.workouts.append(fact)
        elif isinstance(fact, NoteAbout):
            self.notes.append(fact.words)
        elif fact.field in ("goals", "likes", "dislikes"):
            self.lists.setdefault(fact.field, []).append(fact.value)
        else:
            self.single[fact.field] = fact.value


def verify(memory: AgentMemory, expected: Mapping[str, Expected], *, laps: int) -> list[Check]:
    """Return a check per user, and one of the club's shared totals."""
    checks = [_verify_user(memory.entity("user", user), one) for user, one in expected.items()]
    return [*checks, _verify_club(memory, expected, laps)]


def _verify_user(user: Entity, expected: Expected) -> Check:
    stored = [item.value for item in user.collection(Workout).list()]
    problems: list[str] = []

    imported = sum(_is_imported(workout) for workout in stored)
    if imported != expected.imported:
        problems.append(f"{imported} imported workouts instead of {expected.imported}")

    said = [Ran(one.sport, one.when.date(), one.distance_km, one.duration_s) for one in stored if not _is_imported(one)]
    problems += _differences("workout", Counter(map(repr, expected.workouts)), Counter(map(repr, said)))

    profile = user.document(Profile).get(default=Profile())
    preferences = user.document(Preferences).get(default=Preferences())
    held = {**dict(profile), **dict(preferences)}
    untouched = {**dict(Profile()), **dict(Preferences())}
    for name, value in {**untouched, **expected.single}.items():
        if not isinstance(value, list) and held[name] != value:
            problems.append(f"{name} is {held[name]!r} instead of {value!r}")
    for name in ("goals", "likes", "dislikes"):
        problems += _missing_words(name, expected.lists.get(name, []), held[name])
    notes = [item.value.text for item in user.collection(Note).list()]
    problems += _missing_words("notes", expected.notes, notes)

    remembered = [value for value in expected.single.values() if value is not None]
    facts = len(remembered) + sum(map(len, expected.lists.values())) + len(expected.notes)
    workouts = f"{_of(len(said), len(expected.workouts))} workouts told, {_of(imported, expected.imported)} imported"
    return Check(f"{user.id}: {workouts}, {facts} facts, and nothing else", problems)


def _is_imported(workout: Workout) -> bool:
    return workout.source.startswith("strava-")


def _verify_club(memory: AgentMemory, expected: Mapping[str, Expected], laps: int) -> Check:
    club = club_of(memory).get()
    told = [workout for one in expected.values() for workout in one.workouts]
    metres = sum(round(1000 * (workout.distance_km or 0)) for workout in told)
    found = (0, 0, 0) if club is None else (club.metres, club.workouts, club.laps)
    wanted = (metres, len(told), laps)
    totals = zip(("metres", "workouts", "laps"), found, wanted, strict=True)
    problems = [f"{have} {name} instead of {want}" for name, have, want in totals if have != want]
    return Check(
        f"club, one document that all processes changed at once: {_of(found[2], laps)} laps, "
        f"{found[0] / 1000:g} of {wanted[0] / 1000:g} km",
        problems,
    )


def _differences(noun: str, expected: Counter[str], found: Counter[str]) -> list[str]:
    lost = [f"lost {noun}: {what}" for what in (expected - found).elements()]
    return lost + [f"{noun} that nobody told: {what}" for what in (found - expected).elements()]


def _missing_words(name: str, expected: list[str], found: list[str]) -> list[str]:
    """Return what is missing from a list of texts, and whether it holds more than was said."""
    rest = list(found)
    problems: list[str] = []
    for words in expected:
        match = next((text for text in rest if words.lower() in text.lower()), None)
        if match is None:
            problems.append(f"{name} without {words!r}")
        else:
            rest.remove(match)
    return problems + [f"{name} hold what nobody said: {text!r}" for text in rest]


def _of(found: int, expected: int) -> str:
    return f"{found} of {expected}"
