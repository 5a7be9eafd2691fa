"""Models that the tests store; importable by name, so that child processes have them too."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator


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


class Between(BaseModel):
    """In the middle of a renaming: ``name`` becomes ``full_name``, and processes of all releases write."""

    model_config = ConfigDict(extra="allow")

    full_name: str = Field("", validation_alias=AliasChoices("full_name", "name"), serialization_alias="name")
    goals: list[str] = []


class Camel(BaseModel):
    """Renamed by an alias alone, beside a release that writes the field by its name."""

    model_config = ConfigDict(extra="allow")

    full_name: str = Field("", alias="fullName")
    goals: list[str] = []


class Upgraded(BaseModel):
    """Its validator knows but one older form, and raises what Pydantic does not expect on another."""

    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def upgrade(cls, data: Any) -> Any:
        return data if "note" in data else {"note": data["text"]}


class Point:
    """Not a model: stored as a pickle."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]  # mutable


class Measured(BaseModel):
    """Its validator knows the weight by the name that it has in JSON, as one that upgrades old values does."""

    weight: float = Field(0, alias="weightKg")
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def upgrade(cls, data: Any) -> Any:
        return {"weightKg": 0, **data} if isinstance(data, dict) else data
