"""Requests: their own state, the application's, and who wrote what."""

from __future__ import annotations

import contextvars
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agent_memory import InvalidKeyError, NoRequestContextError, RequestContext
from agent_memory.messages import PAGE_LIMIT
from agent_memory.operations import Set
from tests.support.blocking import unwrap
from tests.support.models import Profile


def test_outside_a_request_there_is_no_context(store: Any) -> None:
    with pytest.raises(NoRequestContextError):
        store.context()


def test_a_context_knows_where_it_is(memory: Any, store: Any) -> None:
    with memory.request("req-1"):
        context = store.context()

        assert (context.namespace, context.application) == (memory.namespace, memory.application)
        assert context.request_id == "req-1"


def test_a_state_and_a_context_show_where_they_are(memory: Any, store: Any) -> None:
    with memory.request("req-1"):
        context = unwrap(store.context())
        shown = f"{context!r} {context.state!r} {context.app_state!r}"

    place = f"{memory.namespace}/{memory.application}"
    kinds = (type(context), type(context.state), type(context.app_state))
    places = ("req-1", f"{place}/req-1", place)
    assert shown == " ".join(f"{kind.__name__}({where!r})" for kind, where in zip(kinds, places, strict=True))


def test_the_block_gives_the_context(memory: Any) -> None:
    with memory.request("req-1") as context:
        assert context.request_id == "req-1"


def test_a_request_ends_with_its_block(memory: Any, store: Any) -> None:
    with pytest.raises(ZeroDivisionError), memory.request("req-1"):
        raise ZeroDivisionError
    with pytest.raises(NoRequestContextError):
        store.context()


def test_requests_are_nested(memory: Any, store: Any) -> None:
    with memory.request("outer"):
        with memory.request("inner"):
            assert store.context().request_id == "inner"
        assert store.context().request_id == "outer"


def test_two_requests_read_each_others_application_state(memory: Any) -> None:
    with memory.request("req-1") as context:
        context.app_state.set("key", "from the first")
    with memory.request("req-2") as context:
        assert context.app_state.get("key") == "from the first"


def test_the_last_writer_wins_across_requests(memory: Any) -> None:
    for name in ("req-1", "req-2", "req-3"):
        with memory.request(name) as context:
            context.app_state.set("key", name)

    assert memory.app_state.get("key") == "req-3"


def test_request_state_is_read_back_in_the_same_request(memory: Any) -> None:
    with memory.request("req-1") as context:
        context.state.set("draft", {"n": 1})
    with memory.request("req-1") as context:
        assert context.state.get("draft") == {"n": 1}


def test_request_state_has_defaults(memory: Any) -> None:
    with memory.request("req-1") as context:
        assert context.state.get("draft") is None
        assert context.state.get("draft", default=7) == 7


@pytest.mark.parametrize("other", ["req-2", "req", "req-1/state", "req-1%2Fstate", "REQ-1", "req-1 "])
def test_request_state_is_isolated_by_request(memory: Any, other: str) -> None:
    with memory.request("req-1") as context:
        context.state.set("draft", 1)
        context.state.set("state/draft", 1)
    with memory.request(other) as context:
        assert context.state.get("draft") is None
        assert list(context.state.keys()) == []


def test_request_state_and_application_state_do_not_meet(memory: Any) -> None:
    with memory.request("req-1") as context:
        context.state.set("key", "request")
        context.app_state.set("key", "application")

        assert context.state.get("key") == "request"
        assert memory.app_state.get("key") == "application"


def test_a_request_id_holds_any_character(memory: Any) -> None:
    ids = ["a/b", "a%2Fb", "../../x", "\u00e9", "e\u0301", "x" * 1_000, "app_state", "?&#=", "%", "\U0001f600", "a\nb"]
    for request_id in ids:
        with memory.request(request_id) as context:
            context.state.set("key", request_id)

    for request_id in ids:
        with memory.request(request_id) as context:
            assert context.state.get("key") == request_id


@pytest.mark.parametrize("request_id", ["", "a\0b", "\ud800", "x" * 2_049, 7])
def test_a_request_id_that_is_not_allowed_is_refused(memory: Any, request_id: Any) -> None:
    with pytest.raises(InvalidKeyError), memory.request(request_id):
        pass


def test_clearing_takes_the_requests_keys_and_no_others(memory: Any) -> None:
    with memory.request("req-2") as other:
        other.state.set("key", 1)
    with memory.request("req-1") as context:
        context.app_state.set("key", 1)
        for number in range(3):
            context.state.set(f"key{number}", number)

        assert context.state.clear() == 3
        assert list(context.state.keys()) == []
        assert context.app_state.get("key") == 1
    with memory.request("req-2") as other:
        assert other.state.get("key") == 1


def test_clearing_takes_more_keys_than_a_page(memory: Any) -> None:
    with memory.request("req-1") as context:
        context.state.batch([Set(f"key {number}", number) for number in range(PAGE_LIMIT)])
        context.state.set("one more", 1)

        assert context.state.clear() == PAGE_LIMIT + 1
        assert list(context.state.keys()) == []


def test_clearing_nothing_is_no_error(memory: Any) -> None:
    with memory.request("req-1") as context:
        assert context.state.clear() == 0


def test_large_request_state_is_read_back(memory: Any) -> None:
    with memory.request("req-1") as context:
        context.state.set("draft", b"x" * 300_000)

        assert context.state.get("draft") == b"x" * 300_000


def test_the_contexts_memory_is_the_whole_api(memory: Any) -> None:
    with memory.request("req-1") as context:
        context.memory.entity("user", "1").document(Profile).set(Profile(name="Ada"))

    assert memory.entity("user", "1").document(Profile).get() == Profile(name="Ada")


def test_every_write_inside_a_request_carries_its_id(memory: Any) -> None:
    document = memory.entity("user", "1").document(Profile)
    with memory.request("req-1"):
        entries = [
            memory.app_state.set("key", 1),
            document.set(Profile()),
            document.update(name="Ada").entry,
            document.delete(),
        ]

    assert [entry.provenance for entry in entries] == [{"request_id": "req-1"}] * 4


def test_labels_and_reasons_are_provenance_too(memory: Any) -> None:
    with memory.request("req-1", agent="coach", source="chat"):
        memory.app_state.set("key", 1, reason="asked to")

    assert memory.app_state.snapshot("key").entry.provenance == {
        "request_id": "req-1",
        "agent": "coach",
        "source": "chat",
        "reason": "asked to",
    }


def test_a_write_outside_a_request_carries_no_provenance(memory: Any) -> None:
    with memory.request("req-1"):
        pass

    assert memory.app_state.set("key", 1).provenance is None


def test_two_threads_serve_two_requests_at_once(memory: Any, store: Any) -> None:
    both = threading.Barrier(2)
    seen: dict[str, str] = {}

    def serve(request_id: str) -> None:
        with memory.request(request_id):
            both.wait(10)
            memory.app_state.set(f"by-{request_id}", 1)
            seen[request_id] = store.context().request_id

    threads = [threading.Thread(target=serve, args=(f"req-{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == {"req-0": "req-0", "req-1": "req-1"}
    assert memory.app_state.snapshot("by-req-1").entry.provenance == {"request_id": "req-1"}


def test_a_context_handed_to_a_thread_works_there(memory: Any) -> None:
    entries: list[Any] = []
    with memory.request("req-1") as context:
        thread = threading.Thread(target=lambda: entries.append(context.app_state.set("key", "child")))
        thread.start()
        thread.join(20)

    assert entries[0].provenance == {"request_id": "req-1"}
    assert memory.app_state.get("key") == "child"


def test_a_thread_in_a_copied_context_finds_the_request(memory: Any, store: Any) -> None:
    found: list[str] = []
    with memory.request("req-1"):
        inherited = contextvars.copy_context()
        thread = threading.Thread(target=inherited.run, args=(lambda: found.append(store.context().request_id),))
        thread.start()
        thread.join(20)

    assert found == ["req-1"]


def test_a_generator_with_a_request_is_closed_in_any_context(memory: Any, store: Any) -> None:
    def answer() -> Iterator[None]:
        with memory.request("req-1"):
            yield

    streamed = answer()
    contextvars.copy_context().run(next, streamed)
    with memory.request("req-2"):
        streamed.close()

        assert store.context().request_id == "req-2"
    with pytest.raises(NoRequestContextError):
        store.context()


def test_requests_of_generators_end_in_any_order(memory: Any, store: Any) -> None:
    def streaming(request_id: str) -> Iterator[None]:
        with memory.request(request_id):
            yield

    with memory.request("around"):
        first, second, third = (streaming(name) for name in ("first", "second", "third"))
        for generator in (first, second, third):
            next(generator)
        second.close()
        assert store.context().request_id == "third"
        third.close()
        assert store.context().request_id == "first"
        first.close()
        assert memory.app_state.set("key", 1).provenance == {"request_id": "around"}
    assert memory.app_state.set("key", 2).provenance is None


def test_what_a_request_started_keeps_it_after_the_end(memory: Any, store: Any) -> None:
    with memory.request("req-1"):
        background = contextvars.copy_context()

    def work() -> list[str]:
        with memory.request("step"):
            inside = store.context().request_id
        return [inside, store.context().request_id]

    assert background.run(work) == ["step", "req-1"]


def test_a_thread_does_not_inherit_the_request(memory: Any, store: Any) -> None:
    caught: list[BaseException] = []

    def look() -> None:
        try:
            store.context()
        except NoRequestContextError as error:
            caught.append(error)

    with memory.request("req-1"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(20)
    assert len(caught) == 1


def test_a_pickled_context_works_in_another_process(memory: Any, store: Any) -> None:
    memory.app_state.set("key", "parent")
    with memory.request("req-1") as context:
        context.state.set("draft", 1)
        sync = unwrap(context) if store.face == "sync" else unwrap(context).sync
        printed = store.run_child(
            "context, = given\n"
            "print(context.request_id, context.app_state.get('key'), context.state.get('draft'))\n"
            "context.app_state.set('key', 'child')\n"
            "context.memory.entity('user', '1').document(dict, name='profile').set({'by': 'child'})\n"
            "context.memory.close()\n"
            "memory.close()\n",
            sync,
        )

    assert printed == "req-1 parent 1\n"
    assert memory.app_state.get("key") == "child"
    assert memory.app_state.snapshot("key").entry.provenance == {"request_id": "req-1"}
    assert memory.app_state.snapshot("user/1/profile").entry.provenance == {"request_id": "req-1"}


def test_an_async_context_is_pickled_too(memory: Any) -> None:
    with memory.request("req-1") as context:
        copy = pickle.loads(pickle.dumps(unwrap(context)))

    assert copy.request_id == "req-1"
    copy._client.close()


def test_both_faces_find_the_same_request(memory: Any) -> None:
    with memory.request("req-1"):
        assert RequestContext.get().request_id == "req-1"
        assert RequestContext.get().aio.request_id == "req-1"
