"""How names become segments of keys, and what lies between two keys."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_memory.errors import InvalidKeyError, InvalidRequestError
from agent_memory.ids import item_id
from agent_memory.keys import check_key, check_prefix, check_request_id, check_scope_name, segment, successor, unescape

NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("%/25F"), min_size=1
)


@given(NAMES)
@example("%2F")
def test_a_segment_is_undone_exactly(name: str) -> None:
    assert unescape(segment(name, "a name")) == name


@given(NAMES)
def test_a_segment_holds_no_slash(name: str) -> None:
    assert "/" not in segment(name, "a name")


@given(NAMES, NAMES)
def test_two_names_have_two_segments(first: str, second: str) -> None:
    assert (segment(first, "a name") == segment(second, "a name")) == (first == second)


@given(st.text("abcABC123-_. \u00e9", min_size=1))
def test_nothing_but_slash_and_percent_is_escaped(name: str) -> None:
    assert segment(name, "a name") == name


@pytest.mark.parametrize("part", ["%", "%2f", "%zz", "a/b", "", "%2", "%25%", "\0"])
def test_a_segment_that_no_name_has_is_none(part: str) -> None:
    if part == "\0":
        with pytest.raises(InvalidKeyError):
            unescape(part)
    else:
        assert unescape(part) is None


@given(NAMES, NAMES)
def test_every_key_with_a_prefix_is_below_its_successor(prefix: str, rest: str) -> None:
    end = successor(prefix)

    assert end is None or (prefix + rest).encode() < end.encode()


@given(NAMES, NAMES)
def test_every_key_from_a_prefix_to_its_successor_has_it(prefix: str, key: str) -> None:
    end = successor(prefix)
    between = key.encode() >= prefix.encode() and (end is None or key.encode() < end.encode())

    assert between == key.startswith(prefix)


def test_the_successor_steps_over_the_surrogates() -> None:
    assert successor("\ud7ff") == "\ue000"


def test_the_largest_prefix_has_no_successor() -> None:
    assert successor("\U0010ffff") is None
    assert successor("a\U0010ffff") == "b"
    assert successor("") is None


class Kind(str, Enum):  # noqa: UP042  (StrEnum, which would be new, shows its value)
    USER = "user"


@pytest.mark.parametrize(
    "check",
    [
        check_key,
        check_prefix,
        check_request_id,
        lambda name: segment(name, "a name"),
        lambda name: check_scope_name(name, "it"),
    ],
    ids=["key", "prefix", "request id", "segment", "scope"],
)
def test_a_member_of_an_enum_of_texts_stands_for_its_value(check: Callable[[object], str]) -> None:
    found = check(Kind.USER)
    assert (type(found), found) == (str, "user")


def test_a_subclass_of_str_is_made_plain() -> None:
    class Text(str):
        __slots__ = ()

    assert type(check_key(Text("a"))) is str


@pytest.mark.parametrize("size", [1, 2_048])
def test_a_key_has_one_to_2048_bytes(size: int) -> None:
    assert check_key("x" * size)


@pytest.mark.parametrize("key", ["", "x" * 2_049, "\u00e9" * 1_025, "a\0", "\ud800", b"a", 1, None])
def test_anything_else_is_no_key(key: object) -> None:
    with pytest.raises(InvalidKeyError):
        check_key(key)


def test_the_empty_prefix_is_one() -> None:
    assert check_prefix("") == ""


def test_an_error_about_a_key_does_not_repeat_it() -> None:
    with pytest.raises(InvalidKeyError) as caught:
        check_key("mark\0")

    assert "mark" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "A", "0", "a.b-c_d", "x" * 63])
def test_a_scope_name_is_allowed(name: str) -> None:
    assert check_scope_name(name, "an application") == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "x" * 64, "\u00e9", 1, None])
def test_a_scope_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidKeyError):
        check_scope_name(name, "an application")


def test_the_time_of_an_item_has_a_time_zone() -> None:
    with pytest.raises(InvalidRequestError):
        item_id(datetime(2026, 1, 2), "strava-991")
