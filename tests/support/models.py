"""Models that the tests store; importable by name, so that child processes have them too."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Profile(BaseModel):
    name: str = ""
    weight_kg: float = 0.0
    goals: list[str] = []


class Workout(BaseModel):
    kind: str
    minutes: int = 30


class Counter(BaseModel):
    count: int = 0


class UserProfile(BaseModel):
    """What Profile has become in a later release: a new field with a default, one field gone."""

    memory_name: ClassVar[str] = "profile"

    name: str = ""
    goals: list[str] = []
    units: str = "metric"


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    heart_rate: int = Field(alias="heartRate")


class Point:
    """Not a model: stored as a pickle."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]  # mutable
