"""Which types can be stored so that nothing of their values is lost, and by which keys a model's fields are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, NamedTuple, NotRequired, Required, cast, get_args, get_origin, get_type_hints

from pydantic import AliasChoices, AliasPath, BaseModel, Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict  # typing's knows none of those that Pydantic takes on Python 3.11

from .errors import SerializationError

_SECRETS: Final = (SecretStr, SecretBytes, Secret)


class _Part(NamedTuple):
    """A class inside a type, and the field or type that it stands in."""

    place: str
    kind: type[object]


class Storable(NamedTuple):
    """What has to be looked for in the values of a type."""

    nests_models: bool
    """A model can stand somewhere inside."""
    doubles: bool
    """A model can hold an unknown field with the key of one of its own; JSON has room for one of them."""
    names: frozenset[str]
    """What its classes, and their fields in JSON, are called: of the texts in a location those that are no data."""


def check_storable(value_type: Any) -> Storable:
    """Refuse what would be lost in silence: secrets, which JSON masks, and fields left out or not read."""
    models, doubles, names = 0, False, {"[key]"}
    for place, kind in _parts(value_type, type_name(value_type), set()):
        if issubclass(kind, _SECRETS):
            raise SerializationError(f"{place} is a secret type: its value would be masked; store it elsewhere")
        if issubclass(kind, BaseModel):
            models += 1
            doubles = doubles or _can_double(kind)
            for name, field in kind.model_fields.items():
                _check_key(kind, name, field)
        names |= {kind.__name__, *_annotations(kind)}
        for name, field in _declared(kind):
            names.update(part for path in _paths(field) for part in path if isinstance(part, str))
            if field.exclude or getattr(field, "exclude_if", None):
                raise SerializationError(
                    f"{kind.__name__}.{name} is excluded from the dump: it would be lost; do not exclude it"
                )
    is_model = isinstance(value_type, type) and issubclass(value_type, BaseModel)
    return Storable(models > (1 if is_model else 0), doubles, frozenset(names))


def _parts(value_type: Any, place: str, seen: set[Any]) -> Iterator[_Part]:
    """Iterate over the classes that a type is made of, and those of their fields the first time that they occur."""
    for part in (*get_args(value_type), get_origin(value_type)):
        if part is not None:
            yield from _parts(part, place, seen)
    # Python's own class of aliases and typing-extensions' are two.
    if type(value_type).__name__ in ("TypeAliasType", "NewType", "TypeVar") and value_type not in seen:
        seen.add(value_type)
        for part in _stands_for(value_type):
            yield from _parts(part, place, seen)
    if not isinstance(value_type, type):
        return
    kind = cast("type[object]", value_type)
    if issubclass(kind, BaseModel) and kind is not BaseModel:
        kind.model_rebuild(raise_errors=False)  # It may name classes that are defined after it.
    yield _Part(place, kind)
    if kind not in seen:
        seen.add(kind)
        for name, annotation in _annotations(kind).items():
            yield from _parts(annotation, f"{kind.__name__}.{name}", seen)


def _stands_for(name: Any) -> list[Any]:
    """Return the types that a name can stand for: an alias, a NewType or a variable."""
    attributes = ("__value__", "__supertype__", "__bound__", "__default__")
    found = [getattr(name, one) for one in attributes if hasattr(name, one)]
    return [*found, *getattr(name, "__constraints__", ())]


def _annotations(kind: type[object]) -> Mapping[str, Any]:
    """Return the fields of a model, a dataclass, a TypedDict or a NamedTuple."""
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if not (dataclasses.is_dataclass(kind) or is_typeddict(kind) or hasattr(kind, "_fields")):
        return {}
    try:
        return get_type_hints(kind, include_extras=True)
    except NameError:
        # A name that exists only for a type checker; Pydantic will have its own word on it.
        return {}


def _declared(kind: type[object]) -> Iterator[tuple[str, FieldInfo]]:
    """Iterate over what Pydantic is told of a class's fields, by ``Field(…)`` as a default or in an annotation."""
    known = cast("Mapping[str, FieldInfo] | None", getattr(kind, "__pydantic_fields__", None))
    if known is not None:
        yield from known.items()
        return
    if hasattr(kind, "_fields"):
        return  # Pydantic excludes nothing from a NamedTuple.
    for name, annotation in _annotations(kind).items():
        if get_origin(annotation) in (Required, NotRequired):
            annotation = get_args(annotation)[0]
        told = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        for one in (*told, getattr(kind.__dict__.get("__dataclass_fields__", {}).get(name), "default", None)):
            if isinstance(one, FieldInfo):
                yield name, one


def _check_key(model: type[BaseModel], name: str, field: FieldInfo) -> None:
    if not _is_read_back(model, name, field):
        key = written_key(name, field)
        raise SerializationError(
            f"{model.__name__}.{name} is written as {key!r} and not read from there: it would be lost; add that to its "
            "validation_alias"
        )


def _is_read_back(model: type[BaseModel], name: str, field: FieldInfo) -> bool:
    """Say whether a field is read from the key that it is written to."""
    config = model.model_config
    keys = _aliases(field) if config.get("validate_by_alias", True) else []
    if field.validation_alias is None or config.get("validate_by_name") or config.get("populate_by_name"):
        keys = [*keys, name]
    own = model.__pydantic_decorators__
    # A serializer of the model may write it anywhere, and a validator that runs before read it from there.
    trusted = own.model_serializers or any(one.info.mode != "after" for one in own.model_validators.values())
    return bool(trusted) or written_key(name, field) in keys


def _can_double(model: type[BaseModel]) -> bool:
    """Say whether a model may keep, as an unknown field, what has the key of one of its own."""
    fields = model.model_fields.values()
    return model.model_config.get("extra") == "allow" and any(one.validation_alias is not None for one in fields)


def written_key(name: str, field: FieldInfo) -> str:
    """Return the key that a field has in JSON."""
    return field.serialization_alias or name


def by_stored_keys(model: type[BaseModel], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's fields by the keys that they have in JSON, by which validators that run before know them."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        key = written_key(name, field)
        keys[name] = key if key in _aliases(field) else name
    if len(set(keys.values())) < len(keys):
        return dict(fields)
    return {keys.get(name, name): value for name, value in fields.items()}


def _aliases(field: FieldInfo) -> list[str]:
    """Return the keys besides its name that a field is read from."""
    return [path[0] for path in _paths(field) if len(path) == 1 and isinstance(path[0], str)]


def _paths(field: FieldInfo) -> list[list[str | int]]:
    """Return the places besides its name that a field is read from."""
    read = field.validation_alias
    if isinstance(read, AliasChoices | AliasPath):
        found = read.convert_to_aliases()
        return cast("list[list[str | int]]", found if isinstance(read, AliasChoices) else [found])
    return [] if read is None else [[read]]


def with_article(name: str) -> str:
    """Return a name with its article."""
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def type_name(value_type: Any) -> str:
    """Return what a type is called in messages; of a value that was given in its place nothing but its class."""
    if get_origin(value_type) is Annotated:
        # What it is annotated with says nothing to a reader, and may hold defaults.
        return type_name(get_args(value_type)[0])
    if get_origin(value_type) is not None:
        return str(value_type)
    name = getattr(value_type, "__name__", None)
    return name if isinstance(name, str) else f"an instance of {type(value_type).__name__}"


def mismatch(expected: type[Any], value: object) -> str:
    """Say that a value is of another class than expected."""
    if isinstance(value, type):
        return f"expected an instance of {expected.__name__}, not a class"
    name, found = with_article(expected.__name__), with_article(type(value).__name__)
    if name == found:
        # In a notebook a cell that defines a class runs again, and older documents keep the older class.
        found = "one of another class with this name; if it was defined again, make the document anew"
    return f"expected {name}, not {found}"
