"""The arguments of tools: the JSON schema that a model is shown, and the validation of what it sends.

Tools get their schema as JSON Schema rather than as a Pydantic class: LangChain would fill in a class's defaults, and
with them the difference between a field that was not sent and one that was sent as null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, Union, cast, get_args, get_origin

from langchain_core.tools import ToolException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic import create_model as make_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticSerializationError, core_schema, from_json, to_json

from agent_memory import InvalidRequestError

from .annotations import by_location, visible_fields, writable_fields
from .item_schemas import dropped
from .reading import safe_json, safe_text

_RESERVED: Final = frozenset({"self", "config", "run_manager", "callbacks", "runtime", "item_id"})
"""Names that LangChain, or the tool itself, passes besides the arguments; a field of that name gets underscores."""

_KEPT_CONFIG: Final = (
    "strict", "arbitrary_types_allowed", "use_enum_values", "str_strip_whitespace", "str_to_lower", "str_to_upper",
    "str_min_length", "str_max_length", "allow_inf_nan", "coerce_numbers_to_str", "ser_json_timedelta",
    "ser_json_bytes", "val_json_bytes", "regex_engine",
)  # fmt: skip

# Infinity and NaN are no JSON.
_CONFIG: Final = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

# What these say comes from the schema; other kinds are the words of the application's own validators.
_PLAIN_KINDS: Final = frozenset(get_args(core_schema.ErrorType)) - {"value_error", "assertion_error"}

# In Pydantic's words, which a model gets for a wrong name that is not inside a field.
_UNKNOWN: Final = "extra_forbidden: Extra inputs are not permitted"

Definition: TypeAlias = tuple[Any, FieldInfo]


class Refused(ToolException):
    """The call was refused and changed nothing; the text goes to the model, which can call again."""


class Sent(NamedTuple):
    """What was sent to a tool: arguments of its own, and fields of the model by their names, which may be the same."""

    own: dict[str, Any]
    fields: dict[str, Any]


class Arguments:
    """The arguments of one tool. ``optional`` are left out of what ``parse`` returns when they are not sent."""

    def __init__(
        self,
        tool: str,
        optional: Mapping[str, Definition],
        *,
        required: Mapping[str, Definition] | None = None,
        own: Mapping[str, tuple[Any, Any]] | None = None,
        config: ConfigDict | None = None,
    ) -> None:
        """Make the arguments of a tool from fields of a model, and the tool's ``own``, whose names come first."""
        self._tool = tool
        self._fields: dict[str, str] = {}
        definitions: dict[str, Any] = dict(own or {})
        names = {*(required or {}), *optional}
        for fields, default in ((required or {}, ...), (optional, None)):
            for name, (annotation, info) in fields.items():
                argument = name
                while argument in _RESERVED or argument in (own or {}) or (argument != name and argument in names):
                    argument += "_"
                self._fields[argument] = name
                definitions[argument] = (_annotated(annotation, info), _shown(info, default))
        kept = {key: one for key, one in (config or {}).items() if key in _KEPT_CONFIG}
        try:
            self._model = make_model(tool, __config__=cast(ConfigDict, {**_CONFIG, **kept}), **definitions)
            self._adapter = TypeAdapter[Any](self._model)
            self.schema = self._json_schema()
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise InvalidRequestError(f"{tool} cannot be described to a model: {error.code}") from None

    def _json_schema(self) -> dict[str, Any]:
        schema = self._model.model_json_schema(by_alias=False, schema_generator=_Untitled)
        return {**schema, "properties": schema.get("properties", {})}

    def parse(self, sent: Mapping[str, Any]) -> Sent:
        """Return the arguments that were sent; raise Refused if they do not validate."""
        try:
            data = to_json(dict(sent), inf_nan_mode="constants")
            # As JSON, where strict models too take dates and enums from text.
            found = self._model.model_validate_json(data, by_name=True, by_alias=True)
            # A model that ignores what it does not know would answer "Saved" to a name that is wrong deeper down.
            unknown = dropped(self._adapter, found, from_json(data), by_name=True)
        except ValidationError as error:
            raise refusal(self._tool, [_of_arguments(one) for one in error.errors(include_url=False)]) from None
        except PydanticSerializationError:
            raise refusal(self._tool, ["the arguments are not JSON"]) from None
        if unknown:
            raise refusal(self._tool, sorted(f"{safe_text('.'.join(map(str, one)))}: {_UNKNOWN}" for one in unknown))
        own = {name: getattr(found, name) for name in type(found).model_fields if name not in self._fields}
        given = [name for name in self._fields if name in found.model_fields_set]
        return Sent(own, {self._fields[name]: getattr(found, name) for name in given})


class _Untitled(GenerateJsonSchema):
    """JSON Schema without titles: they repeat the names, and models pay for them by the token."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - Pydantic's signature
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        found = super().model_schema(schema)
        found.pop("title", None)
        return found

    def tagged_union_schema(self, schema: Any) -> dict[str, Any]:
        """Leave out the map of the tags: it points at definitions, and LangChain puts those into their places."""
        found = super().tagged_union_schema(schema)
        found.pop("discriminator", None)
        return found

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """Leave out a default of None: it stands for "not sent", which JSON Schema cannot say."""
        found = super().default_schema(schema)
        return {key: one for key, one in found.items() if key != "default" or one is not None}


def _annotated(annotation: Any, info: FieldInfo) -> Any:
    for one in info.metadata:
        annotation = Annotated[annotation, one]
    return annotation


def _shown(info: FieldInfo, default: Any) -> Any:
    return Field(
        default,
        description=info.description,
        examples=info.examples,
        discriminator=info.discriminator,
        json_schema_extra=info.json_schema_extra,
    )


# -- which fields, for what ------------------------------------------------------------------------------------------


class Addition(NamedTuple):
    """How a field grows: its kind of value, and what may be added to and removed from it."""

    kind: Literal["number", "list", "set", "mapping"]
    build: Callable[[Any], Any]
    added: Any
    removed: Any


def settable(model: type[BaseModel]) -> dict[str, Definition]:
    """Return the fields that agents set, with their types."""
    return {name: (field.annotation, field) for name, field in writable_fields(model).items()}


def forgettable(model: type[BaseModel]) -> dict[str, Definition]:
    """Return the writable fields that have a default or can be null."""
    return {
        name: (annotation, field)
        for name, (annotation, field) in settable(model).items()
        if not field.is_required() or _is_nullable(annotation)
    }


def additions(model: type[BaseModel]) -> dict[str, Addition]:
    """Return the writable fields that hold numbers, lists, sets or mappings, and what goes into them."""
    found = {name: _addition(annotation) for name, (annotation, _) in settable(model).items()}
    return {name: one for name, one in found.items() if one is not None}


def _addition(annotation: Any) -> Addition | None:
    kinds = [one for one in alternatives(annotation) if one is not NoneType]
    for numbers in ((int,), (int, float), (Decimal,)):
        if kinds and all(one in numbers for one in kinds):
            return Addition("number", numbers[-1], numbers[-1], None)
    if len(kinds) != 1:
        return None
    origin, arguments = get_origin(kinds[0]) or kinds[0], get_args(kinds[0])
    if origin in (list, set, frozenset) or (origin is tuple and len(arguments) == 2 and arguments[1] is ...):
        item = arguments[0] if arguments else Any
        return Addition("set" if origin in (set, frozenset) else "list", origin, list[item], list[item])
    if origin is dict:
        key, item = arguments or (str, Any)
        return Addition("mapping", dict, dict[key, item], list[key])
    return None


def alternatives(annotation: Any) -> list[Any]:
    """Return the types that an annotation is a union of, without metadata."""
    if hasattr(annotation, "__value__"):
        return alternatives(annotation.__value__)
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in alternatives(part)]
    return [annotation]


def _is_nullable(annotation: Any) -> bool:
    return NoneType in alternatives(annotation)


# -- what is told when something is wrong ----------------------------------------------------------------------------


def refusal(tool: str, problems: list[str]) -> Refused:
    """Return the error that tells a model what to correct."""
    lines = "\n".join(f"- {one}" for one in problems[:10])
    return Refused(f"{tool} was refused and nothing was changed:\n{lines}\nCorrect the arguments and call it again.")


def _of_arguments(problem: ErrorDetails) -> str:
    """Describe a problem in what the model itself sent, its input included."""
    place = ".".join(map(str, problem["loc"])) or "(the arguments)"
    sent = ""
    if problem["type"] != "missing":
        text = safe_json(_as_json(problem["input"]))
        sent = f" (you sent {text if len(text) <= 100 else text[:100] + '…'})"
    return f"{safe_text(place)}: {problem['type']}: {safe_text(problem['msg'])}{sent}"


def _as_json(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, NoneType, list, dict)) else str(value)


def of_result(
    problem: ErrorDetails, model: type[BaseModel], sent: Mapping[str, Any], *, private: bool, absent: bool
) -> str:
    """Describe a problem in the value that a call would lead to, without any of what is stored.

    The words of the application's own validators may quote stored values: if the model has hidden fields
    (``private``), only their kind is told.
    """
    names = by_location(visible_fields(model))
    name = names.get(str(problem["loc"][0])) if problem["loc"] else None
    if problem["loc"] and name is None:
        return f"a field that you cannot see: {problem['type']}"
    if absent and name is not None and problem["type"] == "missing":
        can = name in writable_fields(model)
        return f"{name}: missing: there is nothing stored yet; " + (
            "send this field too" if can else "only the application can create it"
        )
    told = (problem["type"] in _PLAIN_KINDS or not private) and (name is None or name in sent)
    place = "(all together)" if name is None else name
    return f"{place}: {problem['type']}" + (f": {safe_text(problem['msg'])}" if told else "")
