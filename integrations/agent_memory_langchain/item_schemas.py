"""Models for some of a store's items: what is put has to be one, what is found is compared with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

import pydantic_core
from pydantic import BaseModel, TypeAdapter, ValidationError

from agent_memory import InvalidRequestError, SerializationError

from .namespaces import fits

Schemas: TypeAlias = Mapping[tuple[str, ...], Mapping[str, type[BaseModel]]]
"""Models by namespace and key; ``*`` stands for any one label, and for any key."""

logger = logging.getLogger(__name__)


def as_json(value: Any) -> Any:
    """Return a value with its dates, tuples and models as what they are in JSON, as other stores keep them.

    What is no JSON stays as it is: its write is refused.
    """
    try:
        return pydantic_core.to_jsonable_python(value, round_trip=True)
    except (ValueError, RecursionError):
        return value


class SchemaRules:
    """Which model an item has to be, if any: the first namespace that fits, there its key or else ``*``."""

    def __init__(self, schemas: Schemas | None) -> None:
        self._rules = [(_pattern(namespace), dict(models)) for namespace, models in (schemas or {}).items()]
        for one in (model for _, models in self._rules for model in models.values()):
            if not (isinstance(one, type) and issubclass(one, BaseModel)):
                raise InvalidRequestError("schemas= names Pydantic models by namespace and key")
        # Made here, so that a model that Pydantic cannot build fails at once.
        self._adapters = {model: TypeAdapter[Any](model) for _, models in self._rules for model in models.values()}

    def model(self, namespace: tuple[str, ...], key: str) -> type[BaseModel] | None:
        """Return the model of an item, None if it has none."""
        for pattern, models in self._rules:
            model = models.get(key) or models.get("*")
            if model is not None and fits(pattern, namespace):
                return model
        return None

    def to_model(self, model: type[BaseModel], value: Mapping[str, Any], where: str) -> BaseModel:
        """Return a value as its model; raise SerializationError with places and types of what is wrong, no values."""
        # A validation error's own text repeats the value, so it becomes neither cause nor context of ours.
        try:
            made = self._adapters[model].validate_json(pydantic_core.to_json(value, inf_nan_mode="constants"))
            unknown = _unknown(model, value)
            if not unknown:
                return made
            problem = f"{model.__name__} has no field {', '.join(unknown)}"
        except ValidationError as error:
            problem = f"it is not a {model.__name__}: {_problems(error)}"
        except pydantic_core.PydanticSerializationError:
            problem = "it is no JSON"
        raise SerializationError(f"{where} was not put: {problem}")

    def report(self, namespace: tuple[str, ...], key: str, value: Mapping[str, Any]) -> None:
        """Log a warning if a stored item is not what its model says; it is used as it is."""
        model = self.model(namespace, key) if self._rules else None
        if model is None:
            return
        try:
            self._adapters[model].validate_json(pydantic_core.to_json(value))
        except ValidationError as error:
            logger.warning("%s is not a %s: %s", item_name(namespace, key), model.__name__, _problems(error))


def _pattern(namespace: Any) -> tuple[str, ...]:
    if isinstance(namespace, str):
        # Taken as its letters it would fit nothing, and nothing would be checked.
        raise InvalidRequestError(f"a namespace in schemas= is a tuple of labels, such as ({namespace!r}, '*')")
    return tuple(namespace)


def _unknown(model: type[BaseModel], value: Mapping[str, Any]) -> list[str]:
    """Return the fields of a value that its model would drop in silence."""
    validators = model.__pydantic_decorators__.model_validators.values()
    if model.model_config.get("extra") == "allow" or any(one.info.mode != "after" for one in validators):
        # It keeps them, or may read fields under names that only its validators know.
        return []
    by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    known: set[Any] = set()
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        for choice in getattr(alias, "choices", [alias]):
            known.add(getattr(choice, "path", [choice])[0])
        if alias is None or by_name:
            known.add(name)
    return sorted(set(value) - known)


def item_name(namespace: tuple[str, ...], key: str) -> str:
    """Return an item's place for messages."""
    return f"item {key!r} of {namespace!r}"


def _problems(error: ValidationError) -> str:
    # From location and type alone: Pydantic's own text repeats the input.
    found = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, problem['loc'])) or '(the value)'}: {problem['type']}" for problem in found[:5]]
    return ", ".join(shown) + (f", and {len(found) - 5} more" if len(found) > 5 else "")
