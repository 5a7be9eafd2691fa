"""A user's training in numbers: what the reports draw and the coach talks about."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any, Final, NamedTuple

from agent_memory import Entity

from .models import KM_PER_MILE, Preferences, Units, Workout

WEEKS: Final = 12
"""Weeks that are looked at, the present one included."""


class Week(NamedTuple):
    """A week from Monday on, and the kilometres of each sport in it."""

    monday: date
    km: dict[str, float]

    @property
    def total_km(self) -> float:
        return sum(self.km.values())


class Training(NamedTuple):
    """Workouts and the last weeks, oldest first, the units the user thinks in, and the day it is seen from."""

    workouts: list[Workout]
    weeks: list[Week]
    units: Units
    today: date

    @property
    def silence(self) -> str | None:
        """Why there is no distance to show in these weeks, None if there is some."""
        if any(week.total_km for week in self.weeks):
            return None
        days = [workout.when.date() for workout in self.workouts]
        lately = f"in the last {len(self.weeks)} weeks"
        if any(self.weeks[0].monday <= day < self.weeks[-1].monday + timedelta(weeks=1) for day in days):
            return f"no distance {lately}"
        before = [day for day in days if day < self.weeks[0].monday]
        latest = f"; the latest was on {day_of(before[-1], self.today)}" if before else ""
        return f"no workout {lately}{latest}"


def read_training(user: Entity, today: date) -> Training:
    """Read all workouts of a user. Their ids are made of their times, so they come in the order of their happening."""
    workouts = [item.value for item in user.collection(Workout).list()]
    preferences = user.document(Preferences).get(default=Preferences())
    return Training(workouts, weekly(workouts, today), preferences.units, today)


def weekly(workouts: Iterable[Workout], today: date, weeks: int = WEEKS) -> list[Week]:
    """Return the last weeks, oldest first, those without a workout included."""
    this_monday = today - timedelta(days=today.weekday())
    mondays = [this_monday - timedelta(weeks=back) for back in reversed(range(weeks))]
    found = {monday: Week(monday, {}) for monday in mondays}
    for workout in workouts:
        day = workout.when.date()
        week = found.get(day - timedelta(days=day.weekday()))
        if week is not None and workout.distance_km:
            week.km[workout.sport] = week.km.get(workout.sport, 0.0) + workout.distance_km
    return list(found.values())


def in_short(training: Training) -> dict[str, Any]:
    """Return what a coach wants to know, ready for JSON. Distances are in the user's units."""
    latest = training.workouts[-1] if training.workouts else None
    return {
        "units": training.units,
        "this_week": round(in_units(training.weeks[-1].total_km, training.units), 1),
        "last_week": round(in_units(training.weeks[-2].total_km, training.units), 1),
        "workouts": len(training.workouts),
        "latest": None if latest is None else described(latest, training.units, training.today),
    }


def described(workout: Workout, units: Units, today: date) -> str:
    """Say in a few words what a workout was."""
    distance = "" if workout.distance_km is None else f" {far(workout.distance_km, units, 1)}"
    duration = "" if workout.duration_s is None else f" in {clock(workout.duration_s)}"
    return f"{workout.sport}{distance}{duration} on {day_of(workout.when.date(), today)}"


def in_units(km: float, units: Units) -> float:
    """Return a distance in a user's units. Only what is shown is rounded: rounded parts do not add up."""
    return km if units == "km" else km / KM_PER_MILE


def far(km: float, units: Units, digits: int) -> str:
    """Write a distance as 5 km or 3.1 miles."""
    number = f"{round(in_units(km, units), digits):g}"
    return f"{number} {'mile' if (number, units) == ('1', 'miles') else units}"


def clock(seconds: int | None) -> str:
    """Write a duration as 28:30, or 1:05:00 from an hour on; a dash if it is not known."""
    if not seconds:
        return "–"
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def day_of(day: date, today: date) -> str:
    """Write a day as 18 Apr, and as 18 Apr 2025 if that is not this year."""
    return f"{day.day} {day:%b}" if day.year == today.year else f"{day.day} {day:%b} {day.year}"


def counted(number: int, noun: str) -> str:
    """Write 1 workout, 2 workouts."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Return what somebody said without the characters that move a terminal's cursor, or more; lines stay lines."""
    return "".join(one if one.isprintable() or one == "\n" else " " for one in text)
