"""Text for a prompt from an entity's memory: the same bytes for the same memory, and never more than its budget.

    <memory>
    <document name="profile">
    weight_kg: 72.0
    goals: ["5k"]
    </document>
    <collection name="workout" order="newest first" keys="item_id">
    "0198…": {"kind": "run", "km": 5.0}
    </collection>
    </memory>

What is stored is untrusted: somebody's words may have got there through an agent. So every value stands as JSON in one
line, in which ``<``, ``>``, ``&``, control and invisible characters are escaped; no text can end the block, start a
line of its own, or hide. Everything else in the block comes from the models and from this module.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from agent_memory import AsyncEntity, Entity, InvalidRequestError

from .annotations import rule
from .bindings import Models, Plan, Spec, arun_plan, collection_specs, document_specs, run_plan
from .reading import Row, read_document, read_items, safe_fields, safe_json

CHARACTERS_PER_TOKEN: Final = 4

_LEFT_OUT: Final = "(left out to save space)"

Counter: TypeAlias = Callable[[str], int]


def count_by_characters(text: str) -> int:
    """Estimate tokens as a quarter of the characters, rounded up: the usual rule for English and JSON."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def render_memory(
    entity: Entity,
    *,
    documents: Models = (),
    collections: Models = (),
    token_budget: int = 800,
    latest: int = 5,
    count_tokens: Counter = count_by_characters,
) -> str:
    """Return an entity's documents and the latest items of its collections as one delimited block of text.

    Args:
        entity: whose memory.
        documents: models of its documents, or a mapping by the names to use; shown in this order.
        collections: models of its collections, likewise.
        token_budget: tokens that the block may have. Lines are taken as they fit: fields by their ``Agent(priority=…)``
            and then as declared, items after the fields of priority 0, newer ones first. What is left out is named.
            Empty if not even the frame fits.
        latest: items of each collection, at most.
        count_tokens: counts the tokens of a text.

    A value that does not validate is reported in the block by place and kind of error; a store that does not answer
    raises UnavailableError as ever, because an agent without memory must not pass for one with nothing to remember.
    """
    _check_face(entity, Entity)
    specs = document_specs(entity, documents), collection_specs(entity, collections)
    view = View(*specs, token_budget, latest, count_tokens)
    return run_plan(view.plan(), entity)


async def arender_memory(
    entity: AsyncEntity,
    *,
    documents: Models = (),
    collections: Models = (),
    token_budget: int = 800,
    latest: int = 5,
    count_tokens: Counter = count_by_characters,
) -> str:
    """See ``render_memory``."""
    _check_face(entity, AsyncEntity)
    specs = document_specs(entity, documents), collection_specs(entity, collections)
    view = View(*specs, token_budget, latest, count_tokens)
    return await arun_plan(view.plan(), entity)


def _check_face(entity: object, face: type[Entity | AsyncEntity]) -> None:
    if not isinstance(entity, face):
        raise InvalidRequestError(
            f"render_memory takes an Entity, arender_memory an AsyncEntity; given was {type(entity).__name__}"
        )


class View:
    """What of an entity's memory a prompt shows, and in how many tokens."""

    def __init__(
        self, documents: list[Spec], collections: list[Spec], token_budget: int, latest: int, count_tokens: Counter,
        *, name: str | None = None,
    ) -> None:  # fmt: skip
        if token_budget < 1 or latest < 0:
            raise InvalidRequestError("token_budget must be at least 1, and latest at least 0")
        self._documents = documents
        self._collections = collections
        self._budget = token_budget
        self._latest = latest
        self._count = count_tokens
        self.opening = "<memory>" if name is None else f'<memory name="{html.escape(name)}">'

    def plan(self) -> Plan[str]:
        """Read everything once and return the block."""
        sections: list[_Section] = []
        for spec in self._documents:
            row = yield from read_document(spec)
            sections.append(_document_section(spec, row))
        for spec in self._collections if self._latest else ():
            # One more than is shown, to know whether there are older ones.
            rows = yield from read_items(spec, self._latest + 1)
            sections.append(_collection_section(spec, rows, self._latest))
        return _fitted(self.opening, sections, self._budget, self._count)


class _Line(NamedTuple):
    """A line that may be left out; those of a lower rank are taken first."""

    rank: tuple[int, int, int]
    label: str
    text: str


class _Section(NamedTuple):
    opening: str
    lines: list[_Line]
    fixed: list[str]
    closing: str
    counted: bool
    """Whether what is left out is counted (items) rather than named (fields)."""


def _document_section(spec: Spec, row: Row) -> _Section:
    lines: list[_Line] = []
    fixed: list[str] = []
    if row.problem is not None:
        fixed.append(f"(unreadable: {row.problem})")
    elif row.data is None:
        fixed.append("(nothing is stored yet)")
    else:
        for index, (name, value) in enumerate(row.data.items()):
            rank = (-rule(spec.model.model_fields[name]).priority, 0, index)
            lines.append(_Line(rank, name, f"{name}: {safe_json(value)}"))
    return _Section(f'<document name="{html.escape(spec.name)}">', lines, fixed, "</document>", False)


def _collection_section(spec: Spec, rows: list[Row], latest: int) -> _Section:
    lines: list[_Line] = []
    for index, row in enumerate(rows[:latest]):
        text = safe_fields(row.data) if row.data is not None else f"(unreadable: {row.problem})"
        lines.append(_Line((0, 1, index), "", f"{safe_json(row.id)}: {text}"))
    fixed = ["(nothing is stored yet)"] if not rows else ["(there are older ones)"] if len(rows) > latest else []
    opening = f'<collection name="{html.escape(spec.name)}" order="newest first" keys="item_id">'
    return _Section(opening, lines, fixed, "</collection>", True)


def _fitted(opening: str, sections: list[_Section], budget: int, count: Counter) -> str:
    """Return the block with as many lines as fit, taken by rank; one that is too long does not stop those after it."""
    lines = [(line.rank, number, line) for number, section in enumerate(sections) for line in section.lines]
    ranked = [line for _, _, line in sorted(lines, key=lambda one: one[:2])]
    text = _block(opening, sections, {id(line) for line in ranked})
    if count(text) <= budget:
        return text
    kept: set[int] = set()
    text = _block(opening, sections, kept)
    if count(text) > budget:
        text = _block(opening, [section._replace(lines=[], fixed=[_LEFT_OUT]) for section in sections], kept)
        return text if count(text) <= budget else ""
    for line in ranked:
        longer = _block(opening, sections, kept | {id(line)})
        if count(longer) <= budget:
            text = longer
            kept.add(id(line))
    return text


def _block(opening: str, sections: list[_Section], kept: set[int]) -> str:
    lines = [opening]
    for section in sections:
        lines += [section.opening, *(line.text for line in section.lines if id(line) in kept)]
        missing = [line for line in section.lines if id(line) not in kept]
        if missing:
            what = str(len(missing)) if section.counted else ", ".join(line.label for line in missing)
            lines.append(f"{_LEFT_OUT[:-1]}: {what})")
        lines += [*section.fixed, section.closing]
    return "\n".join([*lines, "</memory>"]) if sections else ""
