"""Models for some of a store's items: what is put has to be one, what is found is compared with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast, get_args

import pydantic_core
from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError

from agent_memory import AgentMemoryError, InvalidRequestError, SerializationError

from .namespaces import fits

Schemas: TypeAlias = Mapping[tuple[str, ...], Mapping[str, type[BaseModel]]]
"""Models by namespace and key; ``*`` stands for any one label, and for any key."""

Location: TypeAlias = tuple[int | str, ...]
"""Where in a value something is: names of fields, keys of mappings and numbers of items."""

_FORM: Final = 'schemas= names Pydantic models by namespace and key, such as {("user", "*"): {"profile": Profile}}'

JSON_OBJECT: Final[Any] = dict[str, Any]
"""The type of an item without a model; stored as it, a value is never a pickle."""

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
        if not isinstance(schemas, Mapping | None):
            raise InvalidRequestError(_FORM)
        self._rules = [_rule(*one) for one in (schemas or {}).items()]
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
        adapter, sent = self._adapters[model], as_json(dict(value))
        try:
            made = _made(adapter, sent)
            unknown = dropped(adapter, made, sent)
            if not unknown:
                return made
            names = _declared(model, set())
            places = sorted({_place(location, "extra_forbidden", names) for location in unknown})
            problem = f"{model.__name__} has no field {', '.join(places)}"
        except ValidationError as error:
            problem = f"it is not a {model.__name__}: {_problems(error, model)}"
        except pydantic_core.PydanticSerializationError:
            problem = "it is no JSON"
        except (AgentMemoryError, MemoryError):
            raise
        except Exception as error:
            # Validators are the application's own code, and may raise anything.
            problem = f"it is not a {model.__name__}: (the value): {type(error).__name__}"
        raise SerializationError(f"{where} was not put: {problem}")

    def report(self, namespace: tuple[str, ...], key: str, value: Mapping[str, Any]) -> None:
        """Log a warning if a stored item is not what its model says; it is used as it is."""
        model = self.model(namespace, key) if self._rules else None
        if model is None:
            return
        try:
            self._adapters[model].validate_json(pydantic_core.to_json(value))
        except ValidationError as error:
            problem = _problems(error, model)
        except (AgentMemoryError, MemoryError):
            raise
        except Exception as error:
            problem = f"(the value): {type(error).__name__}"
        else:
            return
        logger.warning("%s is not a %s: %s", item_name(namespace, key), model.__name__, problem)


def _rule(namespace: Any, models: Any) -> tuple[tuple[str, ...], dict[str, type[BaseModel]]]:
    """Return a rule; raise InvalidRequestError for one that would fit nothing, by which nothing would be checked."""
    labels = cast("Sequence[Any]", namespace if isinstance(namespace, list | tuple) else ())
    if not labels or not all(isinstance(one, str) for one in labels):
        raise InvalidRequestError("a namespace in schemas= is a tuple of labels, such as ('user', '*')")
    found = cast("Mapping[Any, Any] | None", models if isinstance(models, Mapping) else None)
    if found is None or not all(isinstance(one, type) and issubclass(one, BaseModel) for one in found.values()):
        raise InvalidRequestError(_FORM)
    return tuple(labels), dict(found)


def _made(adapter: TypeAdapter[Any], sent: Any, by_name: bool | None = None) -> Any:
    data = pydantic_core.to_json(sent, inf_nan_mode="constants")
    return adapter.validate_json(data, by_name=by_name, by_alias=by_name)


def dropped(adapter: TypeAdapter[Any], made: Any, sent: Any, by_name: bool | None = None) -> list[Location]:
    """Return the places of what a model dropped in silence: no field of its, without which nothing is different.

    ``by_name`` says that fields were accepted by their names as well as by their aliases, whatever their model says.
    """
    suspects = list(_unknown(made, sent, by_name))
    if not suspects:
        return []
    found: list[Location] = []
    # Without what was not given: a default may be another one each time.
    given = adapter.dump_json(made, exclude_unset=True)
    for place, holder, key in suspects:
        one = holder.pop(key)
        try:
            # A validator of a field that runs before it may know it.
            if adapter.dump_json(_made(adapter, sent, by_name), exclude_unset=True) == given:
                found.append(place)
        except ValidationError:
            pass
        holder[key] = one
    return found


def _unknown(
    made: Any, sent: Any, by_name: bool | None, place: Location = ()
) -> Iterator[tuple[Location, dict[str, Any], str]]:
    """Iterate over what was sent under the name of no field: its place, what holds it, and its name there."""
    if isinstance(made, RootModel):
        yield from _unknown(cast("RootModel[Any]", made).root, sent, by_name, place)
    elif isinstance(made, BaseModel) and isinstance(sent, dict):
        held, names = cast("dict[str, Any]", sent), _names(type(made), by_name)
        if not _takes_other_names(type(made)):
            yield from (((*place, key), held, key) for key in held if key not in names)
        for key, name in names.items():
            yield from _unknown(getattr(made, name), held.get(key), by_name, (*place, key))
    elif isinstance(made, Mapping) and isinstance(sent, dict):
        for key, one in cast("dict[str, Any]", sent).items():
            yield from _unknown(cast("Mapping[Any, Any]", made).get(key), one, by_name, (*place, key))
    elif isinstance(made, list | tuple) and isinstance(sent, list):
        for number, (one, other) in enumerate(zip(cast("Sequence[Any]", made), cast("list[Any]", sent), strict=False)):
            yield from _unknown(one, other, by_name, (*place, number))


def _names(model: type[BaseModel], by_name: bool | None) -> dict[Any, str]:
    """Return the fields of a model by the names under which it is given them."""
    named = by_name or model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    found: dict[Any, str] = {}
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        for choice in getattr(alias, "choices", [alias]):
            found[getattr(choice, "path", [choice])[0]] = name
        if alias is None or named:
            found[name] = name
    return found


def _takes_other_names(model: type[BaseModel]) -> bool:
    """Say whether a model keeps what is no field of it, or may read it by its own validators."""
    validators = model.__pydantic_decorators__.model_validators.values()
    return model.model_config.get("extra") == "allow" or any(one.info.mode != "after" for one in validators)


def item_name(namespace: tuple[str, ...], key: str) -> str:
    """Return an item's place for messages."""
    return f"item {key!r} of {namespace!r}"


def _problems(error: ValidationError, model: type[BaseModel]) -> str:
    # From location and type alone: Pydantic's own text repeats the input.
    found = error.errors(include_url=False, include_context=False, include_input=False)
    names = _declared(model, set())
    shown = [f"{_place(problem['loc'], problem['type'], names)}: {problem['type']}" for problem in found[:5]]
    return ", ".join(shown) + (f", and {len(found) - 5} more" if len(found) > 5 else "")


def _place(location: Location, kind: str, names: set[Any]) -> str:
    """Return the place of a problem in JSON without the keys of mappings, which are data."""
    # The name of a field that the model does not have is what is wrong.
    unknown = len(location) - 1 if kind == "extra_forbidden" else None
    parts = [
        str(part) if isinstance(part, int) or part in names or depth == unknown else "…"
        for depth, part in enumerate(location)
    ]
    return _in_one_line(".".join(parts)) or "(the value)"


def _declared(kind: Any, names: set[Any]) -> set[Any]:
    """Add the models of a type to ``names``, and what they and their fields are called in a location; return it."""
    for part in get_args(kind):
        _declared(part, names)
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in names:
        names |= {kind, kind.__name__, *_names(kind, True)}
        for field in kind.model_fields.values():
            _declared(field.annotation, names)
    return names


def _in_one_line(text: str) -> str:
    """Return text with what is not printable escaped: whoever puts an item chooses the names in it."""
    return text if text.isprintable() else repr(text)[1:-1]
