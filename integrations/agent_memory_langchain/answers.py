"""What the tools answer with: stored values as text, in no more tokens than an answer may have.

An answer stays in the conversation and is read again with every later turn. What does not fit is left out whole and
named: an agent that saw half a text might write that half back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel

from .annotations import rule
from .bindings import Spec
from .reading import Row, safe_fields, safe_json
from .render import Counter


class Answers(NamedTuple):
    """Makes answers of at most ``budget`` tokens; what names the rest comes on top."""

    budget: int
    count_tokens: Counter

    def document(self, spec: Spec, row: Row) -> str:
        """Return what there is of a document."""
        if row.data is None and row.problem is None:
            return f"There is no {spec.label} yet."
        head = f"{spec.label}: "
        return head + self._shown(spec.model, row, head)

    def items(self, spec: Spec, many: str, rows: Sequence[Row], rest: str | None) -> str:
        """Return items, the newest first, and behind which one the rest begins, to which belongs what does not fit."""
        if not rows and rest is None:
            return f"There are no such {many}."
        lines = [f"{many}, newest first, by item_id:"] if rows else [f"There are no such {many} so far."]
        for number, row in enumerate(rows):
            head = f"{safe_json(row.id)}: "
            whole = head + _whole(row)
            if number == 0:
                # Whatever its length: the agent gets on with every answer.
                whole = head + self._shown(spec.model, row, f"{lines[0]}\n{head}")
            elif not self._fits([*lines, whole]):
                rest = rows[number - 1].id
                break
            lines.append(whole)
        if rest is not None:
            lines.append(f"(for more, send older_than {safe_json(rest)})")
        return "\n".join(lines)

    def _shown(self, model: type[BaseModel], row: Row, before: str) -> str:
        """Return a value behind the text ``before``: whole, or the fields that fit, by their priority."""
        whole = _whole(row)
        if row.data is None or self._fits([before + whole]):
            return whole
        order = {name: index for index, name in enumerate(row.data)}
        kept: set[str] = set()
        for name in sorted(order, key=lambda name: (-rule(model.model_fields[name]).priority, order[name])):
            if self._fits([before + _fields(row.data, kept | {name})]):
                kept.add(name)
        left_out = ", ".join(name for name in row.data if name not in kept)
        return f"{_fields(row.data, kept)} (too long to show: {left_out})"

    def _fits(self, lines: Sequence[str]) -> bool:
        return self.count_tokens("\n".join(lines)) <= self.budget


def _whole(row: Row) -> str:
    return f"unreadable: {row.problem}" if row.data is None else safe_fields(row.data)


def _fields(data: dict[str, object], names: set[str]) -> str:
    return safe_fields({name: one for name, one in data.items() if name in names})
