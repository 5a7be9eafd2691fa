"""Semantic search in LangGraph's store: what is embedded, what is found, and what no longer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, ClassVar

import numpy
import pytest
from langchain_core.embeddings import Embeddings
from langgraph.store.base import PutOp, SearchOp
from pydantic import BaseModel, computed_field

from agent_memory import AgentMemory, InvalidRequestError, SerializationError
from agent_memory.operations import Set
from agent_memory_langchain import AgentMemoryStore
from tests.support.langgraph import DIMENSIONS, INDEX, Faced, embed
from tests.support.stores import Store, TimedStore

DOCS = ("docs",)


@pytest.fixture
def open_store(memory: Any, store: Store) -> Callable[..., Faced]:
    return lambda **index: Faced(memory, store, index={**INDEX, **index})


def keys(items: list[Any]) -> list[str]:
    return [item.key for item in items]


def scored(faced: Faced, query: str, **options: Any) -> dict[str, bool]:
    """Return the keys that a query finds in their order, and whether each has a score."""
    return {item.key: item.score is not None for item in faced.search(DOCS, query=query, **options)}


def test_the_most_similar_comes_first_and_what_has_no_vector_last(open_store: Callable[..., Faced]) -> None:
    faced = open_store()
    faced.put(DOCS, "none", {"other": 1})
    faced.put(DOCS, "cat", {"text": "the cat"})
    faced.put(DOCS, "run", {"text": "running fast"})
    faced.put(DOCS, "off", {"text": "the cat"}, index=False)

    found = faced.search(DOCS, query="the cat")
    assert keys(found) == ["cat", "run", "off", "none"]
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    assert found[1].score < found[0].score
    assert [item.score for item in found[2:]] == [None, None]
    assert [item.score for item in faced.search(DOCS)] == [None] * 4


def test_the_best_of_several_vectors_counts(open_store: Callable[..., Faced]) -> None:
    faced = open_store(fields=["title", "notes[*].text"])
    faced.put(DOCS, "many", {"title": "zzz", "notes": [{"text": "qqq"}, {"text": "swim"}, {"text": "jjj"}]})
    faced.put(DOCS, "one", {"title": "swims", "notes": []})

    found = faced.search(DOCS, query="swim")
    assert keys(found) == ["many", "one"]
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    assert [key for n in range(2) for key in keys(faced.search(DOCS, query="swim", limit=1, offset=n))] == [
        "many",
        "one",
    ]


def test_a_put_names_its_own_paths(open_store: Callable[..., Faced]) -> None:
    faced = open_store()
    faced.put(DOCS, "k", {"text": "aaa", "title": "swim"}, index=["title"])
    faced.put(DOCS, "l", {"text": "aaa", "title": "swim"})

    found = faced.search(DOCS, query="swim")
    assert keys(found) == ["k", "l"]
    assert found[0].score > 0.999 > found[1].score


def test_paths_that_are_no_list_are_refused(open_store: Callable[..., Faced]) -> None:
    faced = open_store()
    for index in ("text", True):
        with pytest.raises(InvalidRequestError):
            faced.put(DOCS, "k", {"text": "swim"}, index=index)
    assert faced.search(DOCS) == []


def test_the_whole_item_is_embedded_by_default(open_store: Callable[..., Faced]) -> None:
    faced = open_store(fields=None)
    faced.put(DOCS, "k", {"b": 1, "a": "ü"})
    assert faced.search(DOCS, query='{"a": "ü", "b": 1}')[0].score == pytest.approx(1.0, abs=1e-5)


def test_what_is_embedded_is_what_is_stored(memory: Any, store: Store) -> None:
    class Note(BaseModel):
        day: date = date(2026, 4, 18)
        tags: tuple[str, ...] = ("knee",)

        @computed_field
        @property
        def length(self) -> str:
            return "computed, not stored"

    seen: list[str] = []

    def noted(texts: Sequence[str]) -> list[list[float]]:
        seen.extend(texts)
        return embed(texts)

    index: Any = {**INDEX, "embed": noted, "fields": ["day", "tags[*]", "notes[0].day", "length"]}
    faced = Faced(memory, store, index=index, schemas={DOCS: {"typed": Note}})
    faced.put(DOCS, "typed", {})
    faced.put(DOCS, "plain", {"notes": (Note(day=date(2026, 4, 19)),)})
    assert seen == ["2026-04-18", "knee", "2026-04-19"]
    with pytest.raises(SerializationError):
        faced.put(DOCS, "none", {"day": object()})


def test_vectors_of_another_length_are_not_compared(memory: Any) -> None:
    state = memory.app_state
    state.batch([Set("a/short", {"n": 1}, vectors=[[1.0, 0.0]]), Set("a/long", {"n": 1}, vectors=[[1.0, 0.0, 0.0]])])

    for filter in (None, {"n": 1}):
        hits = state.search("a/", filter=filter, vector=[1.0, 0.0])
        assert [(hit.entry.key, hit.score) for hit in hits] == [("a/short", pytest.approx(1)), ("a/long", None)]


def test_vectors_go_with_their_value(open_store: Callable[..., Faced]) -> None:
    faced = open_store()
    for key in ("deleted", "unindexed", "changed"):
        faced.put(DOCS, key, {"text": "swim"})
    faced.delete(DOCS, "deleted")
    faced.put(DOCS, "unindexed", {"text": "swim"}, index=False)
    faced.put(DOCS, "changed", {"text": "xyz"})
    assert scored(faced, "swim") == {"changed": True, "unindexed": False}

    faced.put(DOCS, "deleted", {"other": 1})
    assert scored(faced, "swim") == {"changed": True, "deleted": False, "unindexed": False}
    # A write past this store has no vectors either: the old ones stand for another value.
    faced.memory.app_state.set("docs/changed", {"text": "swim"})
    assert scored(faced, "swim") == {"changed": False, "deleted": False, "unindexed": False}


def test_expired_items_have_no_vectors(timed: TimedStore) -> None:
    faced = Faced(timed.open(), timed, index=INDEX)
    faced.put(DOCS, "brief", {"text": "swim"}, ttl=1)
    faced.put(DOCS, "kept", {"text": "swimming"})
    timed.clock.advance(seconds=61)
    assert scored(faced, "swim", limit=1) == {"kept": True}


def test_filters_and_pages_hold_for_similarity_too(open_store: Callable[..., Faced]) -> None:
    faced = open_store()
    faced.batch([PutOp(DOCS, f"{n:02}", {"text": f"{'abcdefgh'[n % 8] * 3}", "even": n % 2 == 0}) for n in range(40)])
    every = keys(faced.search(DOCS, query="abc", limit=100))

    assert len(every) == len(set(every)) == 40
    assert [
        key for offset in range(0, 40, 7) for key in keys(faced.search(DOCS, query="abc", limit=7, offset=offset))
    ] == every
    even = keys(faced.search(DOCS, query="abc", filter={"even": True}, limit=100))
    assert even == [key for key in every if int(key) % 2 == 0]
    assert keys(faced.search(DOCS, query="abc", filter={"even": True}, limit=3, offset=2)) == even[2:5]


def test_equally_similar_items_come_newest_first(open_store: Callable[..., Faced]) -> None:
    faced = open_store()
    for number in range(200):
        faced.put(DOCS, f"{number:03}", {"text": "same"})
    assert keys(faced.search(DOCS, query="same", limit=3)) == ["199", "198", "197"]
    assert keys(faced.search(DOCS, query="same", limit=2, offset=198)) == ["001", "000"]


def test_without_an_index_a_query_only_lists(memory: Any, store: Store) -> None:
    faced = Faced(memory, store)
    faced.put(DOCS, "k", {"text": "swim"}, index=["text"])
    [found] = faced.search(DOCS, query="swim")
    assert (found.key, found.score) == ("k", None)


def test_texts_are_embedded_once_a_batch(open_store: Callable[..., Faced]) -> None:
    asked: list[list[str]] = []

    def counted(texts: Any) -> list[list[float]]:
        asked.append(list(texts))
        return embed(texts)

    faced = open_store(embed=counted)
    faced.batch([PutOp(DOCS, f"{n}", {"text": "same"}) for n in range(5)] + [PutOp(DOCS, "x", {"text": "other"})])
    assert asked == [["same", "other"]]
    faced.batch([SearchOp(DOCS, query="q"), SearchOp(DOCS, query="q"), PutOp(DOCS, "y", None)])
    assert asked[1:] == [["q"]]


def test_embeddings_may_be_arrays(open_store: Callable[..., Faced]) -> None:
    faced = open_store(embed=lambda texts: numpy.array(embed(texts), "float32"))
    faced.put(DOCS, "cat", {"text": "the cat"})
    (found,) = faced.search(DOCS, query="the cat")
    assert found.score == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("face", ["sync", "async"])
def test_async_calls_use_async_embeddings(memory: Any, store: Store, face: str) -> None:
    class Recorded(Embeddings):
        used: ClassVar[set[str]] = set()

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            self.used.add("sync")
            return embed(texts)

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            self.used.add("async")
            return embed(texts)

        async def aembed_query(self, text: str) -> list[float]:
            return (await self.aembed_documents([text]))[0]

    Recorded.used = set()
    faced = Faced(memory, store, index={**INDEX, "embed": Recorded()})
    faced.put(DOCS, "k", {"text": "swim"})
    faced.search(DOCS, query="swim")
    assert Recorded.used == {store.face}


def failing(_: Any) -> list[list[float]]:
    raise RuntimeError("the provider is down")


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (failing, RuntimeError),
        (lambda texts: [[1.0] * (DIMENSIONS - 1) for _ in texts], InvalidRequestError),
        (lambda _: [], (InvalidRequestError, IndexError)),
        (lambda texts: [[float("nan")] * DIMENSIONS for _ in texts], InvalidRequestError),
        (lambda texts: [["x"] * DIMENSIONS for _ in texts], InvalidRequestError),
    ],
    ids=["fails", "wrong dimensions", "too few", "not finite", "no numbers"],
)
def test_when_embedding_fails_nothing_is_written(open_store: Callable[..., Faced], broken: Any, expected: Any) -> None:
    faced = open_store(embed=broken)
    with pytest.raises(expected):
        faced.batch([PutOp(DOCS, "plain", {"a": 1}), PutOp(DOCS, "k", {"text": "swim"})])
    with pytest.raises(expected):
        faced.search(DOCS, query="swim")
    assert faced.search(()) == []


def test_an_index_needs_dimensions_and_embeddings() -> None:
    with AgentMemory("memory://", application="test") as memory:
        for index in ({"embed": embed}, {"dims": 3}, {"dims": 0, "embed": embed}):
            with pytest.raises(ValueError, match=r"dims|embed"):
                AgentMemoryStore(memory, index=index)  # type: ignore[arg-type]


def test_one_path_in_place_of_a_list_of_paths_is_refused() -> None:
    with (
        AgentMemory("memory://", application="test") as memory,
        pytest.raises(InvalidRequestError, match="list of paths"),
    ):
        AgentMemoryStore(memory, index={"dims": 3, "embed": embed, "fields": "text"})  # type: ignore[typeddict-item]
