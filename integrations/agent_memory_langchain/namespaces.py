"""How the namespaces and keys of LangGraph become state keys, and back.

``(namespace…, key)`` are the segments of a state key, escaped as agent_memory escapes ids: only ``%`` and ``/``. So
``("user", "123"), "profile"`` is the document that ``memory.entity("user", "123")`` calls ``profile``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import cast

from langgraph.store.base import InvalidNamespaceError, MatchCondition

from agent_memory.operations import Pattern


def escape(name: str) -> str:
    """Return a label or key as one segment of a state key."""
    return name.replace("%", "%25").replace("/", "%2F")


def unescape(segment: str) -> str:
    """Return what a segment stands for; one that no name is escaped to stands for itself."""
    if "%" not in segment:
        return segment
    name = segment.replace("%2F", "/").replace("%25", "%")
    return name if escape(name) == segment else segment


def to_state_key(namespace: tuple[str, ...], key: str) -> str:
    """Return the state key of an item."""
    return to_prefix(namespace) + escape(key)


@lru_cache(4_096)
def to_prefix(namespace: tuple[str, ...]) -> str:
    """Return what the state keys of a namespace and of those below it start with: it ends at a segment's end."""
    return "".join(f"{escape(label)}/" for label in namespace)


def from_state_key(state_key: str) -> tuple[tuple[str, ...], str]:
    """Return the namespace and key of an item; its state key has two segments or more."""
    parent, slash, key = state_key.rpartition("/")
    return from_parent(parent + slash), unescape(key)


@lru_cache(4_096)
def from_parent(parent: str) -> tuple[str, ...]:
    """Return the namespace that a state key's parent (the key up to its last ``/``) stands for."""
    return tuple(map(unescape, parent.removesuffix("/").split("/")))


def checked(labels: Sequence[str]) -> tuple[str, ...]:
    """Return a namespace as a tuple (some callers pass lists); raise InvalidNamespaceError if LangGraph forbids it.

    A bare string is not taken for its letters.
    """
    try:
        return _checked(labels)
    except TypeError:
        # A list, or a label that cannot be hashed.
        return _checked.__wrapped__(labels)


@lru_cache(4_096)
def _checked(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise InvalidNamespaceError("A namespace is a tuple of labels, not one string.")
    namespace = tuple(labels)
    check_labels(namespace)
    return namespace


def check_labels(labels: Sequence[str]) -> None:
    """Raise InvalidNamespaceError for what is no label; a string is taken for its letters, as LangGraph does."""
    # LangGraph itself has a function for it only from langgraph-checkpoint 4.3 on.
    for label in cast("Sequence[object]", labels):
        if not isinstance(label, str) or not label or "." in label or "\0" in label:
            raise InvalidNamespaceError(
                f"{label!r} in {tuple(labels)} is no label: a text without '.' and NUL, not empty."
            )


def to_pattern(condition: MatchCondition) -> Pattern:
    """Return what a condition says of state keys; ``*`` stands for any one label."""
    if condition.match_type not in ("prefix", "suffix"):
        raise ValueError(f"Unsupported match type: {condition.match_type!r}; there are 'prefix' and 'suffix'.")
    segments = tuple(None if label == "*" else escape(label) for label in condition.path)
    return Pattern(segments, at_end=condition.match_type == "suffix")


def common_start(patterns: Iterable[Pattern]) -> list[str]:
    """Return the segments that whatever fits all these patterns starts with."""
    longest: list[str] = []
    for pattern in patterns:
        start: list[str] = []
        for segment in () if pattern.at_end else pattern.segments:
            if segment is None:
                break
            start.append(segment)
        longest = max(longest, start, key=len)
    return longest


def fits(pattern: Sequence[str], namespace: Sequence[str]) -> bool:
    """Say whether a namespace has exactly the labels of a pattern, in which ``*`` stands for any one label."""
    return len(pattern) == len(namespace) and all(
        wanted in ("*", label) for wanted, label in zip(pattern, namespace, strict=True)
    )
