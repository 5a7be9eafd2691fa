"""What the coach remembers of a user, and what the club shares.

Every field that an older version may lack has a default, so yesterday's values still load after a field was added.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, Field

from agent_memory_langchain import Agent

KM_PER_MILE: Final = 1.609344

Units: TypeAlias = Literal["km", "miles"]


def _in_utc(time: datetime) -> datetime:
    """Return an aware time: one without a zone, as language models like to write it, is taken as UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


Time = Annotated[datetime, AfterValidator(_in_utc)]


class Profile(BaseModel):
    """Who the user is and what they train for."""

    name: str | None = None
    weight_kg: float | None = Field(default=None, gt=0, lt=700, description="in kilograms")
    birthday: date | None = None
    goals: list[str] = Field(default_factory=list, description="what the user trains for, in their own words")


class Preferences(BaseModel):
    """How the user likes to train, and the units they think in."""

    units: Units = "km"
    likes: list[str] = Field(default_factory=list)
    dislikes: list[str] = Field(default_factory=list)


class Workout(BaseModel):
    """One training session."""

    sport: str = Field(description="running, cycling, swimming, …")
    when: Annotated[Time, Agent(orders=True)] = Field(description="the day or the time of its start, ISO 8601")
    distance_km: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="in kilometres")
    duration_s: int | None = Field(default=None, ge=0, description="in seconds")
    note: str | None = None
    source: Annotated[str, Agent(read_only=True)] = Field(
        default="chat", description="where it was learned: chat, or an activity such as strava-991"
    )


class Note(BaseModel):
    """Something the user said that is worth keeping, in their own words."""

    text: str
    when: Annotated[Time, Agent(orders=True)] = Field(description="when it was said, ISO 8601")


class Club(BaseModel):
    """What all members have done together. One document of the application, changed by every process at once."""

    metres: int = 0
    workouts: int = 0
    laps: int = 0
    """Laps of the charity run in the demo."""


class UnknownModelError(Exception):
    """There is no chat model of that name, or it cannot be loaded here."""


class UnusableError(Exception):
    """What an option names cannot be used: a file that cannot be written, a store or a user that is not there."""


class NotEmptyError(Exception):
    """The demo cannot tell what it wrote from what was there before."""
