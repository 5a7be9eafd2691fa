"""A user's training in numbers: what the reports draw and the coach talks about."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any, Final, NamedTuple

from agent_memory import Entity

from .models import KM_PER_MILE, Preferences, Workout

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
    """Workouts and the last weeks, oldest first, and the units the user thinks in."""

    workouts: list[Workout]
    weeks: list[Week]
    units: str


def read_training(user: Entity, today: date) -> Training:
    """Read all workouts of a user. Their ids are made of their times, so they come in the order of their happening."""
    workouts = [item.value for item in user.collection(Workout).list()]
    preferences = user.document(Preferences).get(default=Preferences())
    return Training(workouts, weekly(workouts, today), preferences.units)


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
        "this_week": in_units(training.weeks[-1].total_km, training.units),
        "last_week": in_units(training.weeks[-2].total_km, training.units),
        "workouts": len(training.workouts),
        "latest": None if latest is None else described(latest, training.units),
    }


def described(workout: Workout, units: str) -> str:
    """Say in a few words what a workout was."""
    distance = "" if workout.distance_km is None else f" {in_units(workout.distance_km, units):g} {units}"
    duration = "" if workout.duration_s is None else f" in {clock(workout.duration_s)}"
    return f"{workout.sport}{distance}{duration} on {day_of(workout.when.date())}"


def in_units(km: float, units: str) -> float:
    """Return a distance in a user's units, to a tenth."""
    return round(km if units == "km" else km / KM_PER_MILE, 1)


def clock(seconds: int | None) -> str:
    """Write a duration as 28:30, or 1:05:00 from an hour on; a dash if it is not known."""
    if not seconds:
        return "–"
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def day_of(day: date) -> str:
    """Write a day as 18 Apr."""
    return f"{day.day} {day:%b}"


def counted(number: int, noun: str) -> str:
    """Write 1 workout, 2 workouts."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
